//! Killed sixty times: what the next process finds was stored, has its bytes, and was not deleted. A thousand times: `cargo xtask soak disk`.

use std::path::Path;

use kvtier_tests::kill;

#[test]
fn a_kill_leaves_nothing_wrong() {
    let tally = kill::run(Path::new(env!("CARGO_BIN_EXE_disk_child")), 60, false);
    println!("{tally:?}");
    tally.assert_sound();
}

/// The oracle must catch a store that acknowledges deletions before they are on disk.
#[test]
fn a_forgotten_deletion_would_be_seen() {
    let tally = kill::run(Path::new(env!("CARGO_BIN_EXE_disk_child")), 12, true);
    assert!(tally.wrong > 0, "{tally:?}");
}
