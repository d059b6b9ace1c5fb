//! Stale and misdirected sectors: an older generation's bytes at the right place, right bytes at the wrong place. None is served.
//! `KVTIER_SOAK=1`: 10,000 images of each kind.

mod support;

use disk_tier::io::FileId;
use disk_tier::io::rig::{Image, SECTOR_BYTES, SplitMix64};
use disk_tier::testing::PlantedBug;
use support::*;

const SEGMENTS: u64 = 6;
const KEYS: u32 = 14;
/// Sectors of a record.
const RECORD_SECTORS: u64 = 8192 / SECTOR_BYTES;

/// The same keys in an earlier and in a later store, with other content, at the same places and in the same files: the later one is what the
/// earlier one became.
fn images() -> (Image, Image) {
    let (tier, medium) = fresh(SEGMENTS);
    written(&tier, 0..KEYS);
    let older = medium.image();
    for number in 0..KEYS {
        delete(&tier, number).unwrap();
    }
    // Once round, so that every segment was begun anew.
    written(&tier, 1000..1000 + 3 * SEGMENTS as u32 * SEGMENT_RECORDS);
    for number in 0..KEYS {
        write(&tier, number, 1).unwrap();
    }
    settle(&tier);
    tier.close(5000);
    (older, medium.image())
}

/// Reads every key; counts those whose bytes are not of version 1.
fn wrong(image: &Image, bug: Option<PlantedBug>) -> u64 {
    let Ok((tier, _)) = reopen(image, SEGMENTS, bug) else { return 0 };
    let is_wrong = |number: &u32| read(&tier, *number).is_ok_and(|found| !is_version(*number, 1, &found));
    (0..KEYS).filter(is_wrong).count() as u64
}

#[test]
fn stale_and_misdirected_sectors_are_never_served() {
    let (older, newer) = images();
    assert_eq!(wrong(&newer, None), 0);
    let mut random = SplitMix64::new(7);
    let files: Vec<FileId> = newer.files().iter().map(|(file, _)| *file).collect();
    let mut changed = 0;
    let images = scale(1000, 10_000);
    for _ in 0..images {
        let mut image = newer.clone();
        let file = files[random.below(files.len() as u64) as usize];
        let sectors = image.bytes(file).unwrap() / SECTOR_BYTES;
        let count = [1, 4, RECORD_SECTORS, sectors][random.below(4) as usize].min(sectors);
        let at = random.below(sectors - count + 1);
        if random.chance(128) {
            changed += image.make_stale(&older, file, at, count);
        } else {
            let other = files[random.below(files.len() as u64) as usize];
            let end = image.bytes(other).unwrap() / SECTOR_BYTES;
            let target = random.below(end.saturating_sub(count) + 1);
            changed += image.misdirect((file, at), (other, target), count.min(end));
        }
        assert_eq!(wrong(&image, None), 0);
    }
    println!("{images} images, {changed} sectors changed, none served");
    assert!(changed > images);
}

#[test]
fn a_tier_that_ignores_places_is_caught() {
    let (older, newer) = images();
    // The older version of each key, put where the newer one is: right key, right sums, another generation and offset.
    let place = |image: &Image, number: u32, version: u32| -> Option<(FileId, u64)> {
        let wanted = support::image(number, version);
        let payload = &wanted.as_slice()[4096..4096 + 64];
        image.files().into_iter().filter(|(file, _)| file.0 >= 3).find_map(|(file, info)| {
            (0..info.bytes / 4096)
                .find(|page| image.bytes_at(file, page * 4096, 64) == payload)
                .map(|page| (file, (page - 1) * 4096 / SECTOR_BYTES))
        })
    };
    let mut caught = 0;
    for number in 0..KEYS {
        let (Some(source), Some(target)) = (place(&older, number, 0), place(&newer, number, 1)) else { continue };
        let mut image = newer.clone();
        let bytes = older.bytes_at(source.0, source.1 * SECTOR_BYTES, 8192);
        image.write(target.0, target.1 * SECTOR_BYTES, &bytes);
        assert_eq!(wrong(&image, None), 0, "key {number}");
        caught += wrong(&image, Some(PlantedBug::IgnorePlace));
    }
    assert_eq!(caught, u64::from(KEYS), "the planted bug was not noticed");
}
