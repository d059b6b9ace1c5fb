//! Parsers against anything, for a moment each; `soak_fuzz` runs the same bodies for long.

use kvtier_tests::fuzz::{self, Effort};

#[test]
fn files_of_settings() {
    fuzz::settings_file(Effort::Inputs(2_000));
}

#[test]
fn variables() {
    fuzz::settings_variables(Effort::Inputs(2_000));
}

#[test]
fn slot_images() {
    fuzz::slot_images(Effort::Inputs(10_000));
}

#[test]
fn disk_formats() {
    fuzz::disk_formats(Effort::Inputs(10_000));
}

#[test]
fn queries_of_explain() {
    fuzz::explain_query(Effort::Inputs(2_000));
}
