//! What stands on disk.

use bolero::{check, produce};
use disk_tier::testing::{Format, formats};

use crate::{Outcomes, bytes, edit, edits};

/// Spoilt anywhere, under sums that are right again or not.
fn spoil(names: &[&str]) {
    let formats: Vec<Format> = formats().into_iter().filter(|format| names.contains(&format.name)).collect();
    assert_eq!(formats.len(), names.len(), "{names:?}");
    formats.iter().for_each(|format| assert!((format.parse)(&format.sample), "{}", format.name));
    let outcomes = Outcomes::default();
    let generator = (produce::<u8>(), edits(), produce::<Option<u16>>(), produce::<bool>(), bytes(200));
    check!().with_iterations(20_000).with_generator(generator).for_each(|(which, edits, cut, is_sealed, odd)| {
        let format = &formats[usize::from(*which) % formats.len()];
        let mut bytes = edit(&format.sample, edits, *cut);
        if *is_sealed {
            (format.seal)(&mut bytes);
        }
        outcomes.note((format.parse)(&bytes).then_some(()).ok_or(()));
        (format.parse)(odd);
    });
    outcomes.expect_both();
}

#[test]
fn superblocks() {
    spoil(&["superblock"]);
}

#[test]
fn headers_of_segments() {
    spoil(&["segment header"]);
}

#[test]
fn footers() {
    spoil(&["footer"]);
}

#[test]
fn snapshots() {
    spoil(&["snapshot"]);
}

#[test]
fn records() {
    spoil(&["record"]);
}

#[test]
fn staged_records() {
    spoil(&["record in sx12", "record in lz4", "record in zstd"]);
}

#[test]
fn staged_sections() {
    spoil(&["section in sx12", "section in lz4", "section in zstd"]);
}
