//! Bit flips: every bit of superblocks, of a segment with four records, of its footer and of the snapshot, one at a time. The right value or
//! a miss, never other bytes, never a panic. `KVTIER_SOAK=1` flips all of them; otherwise a sample of each structure.

mod support;

use disk_tier::io::FileId;
use disk_tier::io::rig::{Image, SplitMix64};
use disk_tier::testing::PlantedBug;
use support::*;

const SEGMENTS: u64 = 6;
const RECORDS: u32 = 4;

/// Stores of four records: after a crash (read record by record), with a footer, and with a snapshot.
fn images() -> Vec<(&'static str, Image)> {
    let (tier, medium) = fresh(SEGMENTS);
    written(&tier, 0..RECORDS);
    let open = medium.image();
    tier.close(5000);
    let snapshot = medium.image();
    // Opened and dropped: the mark of the orderly end is gone, the footer is what counts.
    let (tier, medium) = reopen(&snapshot, SEGMENTS, None).unwrap();
    drop(tier);
    vec![("unsealed", open), ("footer", medium.image()), ("snapshot", snapshot)]
}

#[derive(Default, Debug)]
struct Tally {
    flips: u64,
    right: u64,
    missed: u64,
    refused: u64,
    wrong: u64,
}

fn flip(image: &Image, file: FileId, bit: u64, bug: Option<PlantedBug>, tally: &mut Tally) {
    let mut flipped = image.clone();
    assert!(flipped.flip_bit(file, bit));
    tally.flips += 1;
    let Ok((tier, medium)) = reopen(&flipped, SEGMENTS, bug) else {
        tally.refused += 1;
        return;
    };
    for number in 0..RECORDS {
        match read(&tier, number) {
            Err(_) => tally.missed += 1,
            Ok(found) if is_version(number, 0, &found) => tally.right += 1,
            Ok(_) => tally.wrong += 1,
        }
    }
    assert!(medium.image().allocated_bytes() <= tier.capacity().budget_bytes);
}

/// The ranges of a store that hold something: file, first byte, bytes.
fn ranges(image: &Image) -> Vec<(FileId, u64, u64)> {
    let mut ranges = vec![(FileId(0), 0, 4096), (FileId(1), 0, 4096)];
    ranges.push((FileId::segment(0), 0, 4096));
    ranges.push((FileId::segment(0), 4096, u64::from(RECORDS) * 8192));
    ranges.push((FileId::segment(0), SEGMENT_BYTES - 4096, 4096));
    if let Some(bytes) = image.bytes(FileId::SNAPSHOT) {
        ranges.push((FileId::SNAPSHOT, 0, bytes));
    }
    ranges
}

#[test]
fn every_flipped_bit_is_the_right_value_or_a_miss() {
    let mut random = SplitMix64::new(1);
    let mut all = 0;
    for (name, image) in images() {
        let mut tally = Tally::default();
        for (file, first, bytes) in ranges(&image) {
            let bits = bytes * 8;
            let sample = if is_soak() { bits } else { 400 };
            for step in 0..sample {
                let bit = if is_soak() { step } else { random.below(bits) };
                flip(&image, file, first * 8 + bit, None, &mut tally);
            }
        }
        println!("{name}: {tally:?}");
        assert_eq!(tally.wrong, 0, "{name}");
        assert!(tally.right > tally.missed, "{name}: most flips cost one record at most");
        all += tally.flips;
    }
    println!("{all} flips");
}

#[test]
fn a_tier_that_ignores_sums_is_caught() {
    let mut tally = Tally::default();
    let (_, image) = images().swap_remove(2);
    for bit in (0..2000).step_by(7) {
        flip(&image, FileId::segment(0), (4096 + 4096) * 8 + bit, Some(PlantedBug::IgnoreSums), &mut tally);
    }
    assert!(tally.wrong > 100, "{tally:?}");
}
