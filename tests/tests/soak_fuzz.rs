//! The long form of `fuzz`: ten minutes for each parser, or `KVTIER_FUZZ_SECONDS`. Run by `cargo xtask soak fuzz`, which runs the wire protocol's
//! (`wire_fuzz` of `sdk`) as long.

use kvtier_tests::fuzz::{self, Effort};

#[test]
#[ignore = "ten minutes: cargo xtask soak fuzz"]
fn files_of_settings() {
    fuzz::settings_file(Effort::soak());
}

#[test]
#[ignore = "ten minutes: cargo xtask soak fuzz"]
fn variables() {
    fuzz::settings_variables(Effort::soak());
}

#[test]
#[ignore = "ten minutes: cargo xtask soak fuzz"]
fn slot_images() {
    fuzz::slot_images(Effort::soak());
}

#[test]
#[ignore = "ten minutes: cargo xtask soak fuzz"]
fn disk_formats() {
    fuzz::disk_formats(Effort::soak());
}

#[test]
#[ignore = "ten minutes: cargo xtask soak fuzz"]
fn queries_of_explain() {
    fuzz::explain_query(Effort::soak());
}
