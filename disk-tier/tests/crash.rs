//! Power cuts in the middle of everything: around operations of a whole life of a store, what a crash would leave is opened and read. No
//! wrong or resurrected value; every record that the index knows afterwards is whole; the accounting is exact.
//! `KVTIER_SOAK=1`: 100,000 images.

mod support;

use std::sync::{Arc, Mutex};

use cache_core::hash::Namespace;
use disk_tier::io::rig::{Completion, CrashMedium, Image, SplitMix64};
use disk_tier::io::{Medium, Operation};
use disk_tier::testing::PlantedBug;
use disk_tier::{DiskOk, DiskTier};
use support::*;

const SEGMENTS: u64 = 6;
const KEYS: u32 = 40;
/// Of 256 submissions, so many are looked at.
const LOOKS_OF_256: u64 = 60;

/// Takes what a crash would leave, before or after a submission.
struct Snapper {
    crashing: Arc<CrashMedium>,
    random: Mutex<SplitMix64>,
    images: Mutex<Vec<Image>>,
}

impl Snapper {
    fn look(&self) {
        let mut random = self.random.lock().unwrap();
        if random.chance(LOOKS_OF_256) {
            self.images.lock().unwrap().push(self.crashing.crash(random.next()));
        }
    }

    fn taken(&self) -> Vec<Image> {
        std::mem::take(&mut *self.images.lock().unwrap())
    }
}

impl Between for Snapper {
    fn submit(&self, inner: &dyn Medium, batch: Vec<Operation>) {
        self.look();
        inner.submit(batch);
        self.look();
    }
}

/// What may be read of each key: a version, before and after the operation under way.
type May = Vec<Option<u32>>;

#[derive(Default, Debug)]
struct Tally {
    images: u64,
    records: u64,
    wrong: u64,
    /// In the index, and not whole.
    torn: u64,
}

fn check(image: &Image, before: &May, after: &May, tally: &mut Tally) {
    let (tier, medium) = reopen(image, SEGMENTS, None).expect("one superblock is sound at any moment");
    tally.images += 1;
    let records = tier.capacity().records;
    let mut found = 0;
    for number in 0..KEYS {
        let Ok(bytes) = read_key(&tier, block_in(number as u8 % 2, number, 0).0) else { continue };
        found += 1;
        let fits = |version: &Option<u32>| {
            version.is_some_and(|version| is_same(&block_in(number as u8 % 2, number, version).1, &bytes))
        };
        let at = number as usize;
        tally.wrong += u64::from(!fits(&before[at]) && !fits(&after[at]));
    }
    tally.records += found;
    tally.torn += records - found;
    assert_eq!(tier.capacity().allocated_bytes, medium.image().allocated_bytes());
    assert!(medium.image().allocated_bytes() <= tier.capacity().budget_bytes);
}

/// Lives of a store, one after the other, each on what the last one left, until so many images were looked at.
fn run(seed: u64, images: u64, bug: Option<PlantedBug>) -> Tally {
    let mut random = SplitMix64::new(seed);
    let mut tally = Tally::default();
    let mut may: May = vec![None; KEYS as usize];
    let mut next = vec![0u32; KEYS as usize];
    let mut image = Image::new();
    while tally.images < images {
        let inner = CrashMedium::over(image, Completion::Inline, u64::MAX);
        let snapper = Snapper {
            crashing: Arc::clone(&inner),
            random: Mutex::new(SplitMix64::new(random.next())),
            images: Mutex::default(),
        };
        let tapped = Tapped::new(Arc::clone(&inner) as Arc<dyn Medium>, snapper);
        let snapper = &tapped.between;
        let tier = open(Arc::clone(&tapped) as Arc<dyn Medium>, SEGMENTS, manual(bug)).unwrap();
        for image in snapper.taken() {
            // Before there is a sound superblock there is nothing to open: such a store begins anew.
            check(&image, &may, &may, &mut tally);
        }
        for _ in 0..50 + random.below(150) {
            let before = may.clone();
            step(&tier, &mut random, &mut may, &mut next);
            for image in snapper.taken() {
                check(&image, &before, &may, &mut tally);
            }
        }
        if random.chance(128) {
            tier.close(5000);
            for image in snapper.taken() {
                check(&image, &may, &may, &mut tally);
            }
        }
        image = inner.crash(random.next());
    }
    tally
}

fn step(tier: &DiskTier, random: &mut SplitMix64, may: &mut May, next: &mut [u32]) {
    let number = random.below(u64::from(KEYS)) as u32;
    let at = number as usize;
    match random.below(100) {
        0..70 => {
            let version = may[at].unwrap_or(next[at]);
            let (key, image) = block_in(number as u8 % 2, number, version);
            if write_image(tier, key, image) == Ok(DiskOk::Written) {
                may[at] = Some(version);
                next[at] = version + 1;
            }
        }
        70..95 => {
            tier.delete(block_in(number as u8 % 2, number, 0).0);
            end(tier);
            may[at] = None;
        }
        _ => {
            tier.delete_namespace(Namespace([number as u8 % 2; 32])).unwrap();
            for other in (number % 2..KEYS).step_by(2) {
                may[other as usize] = None;
            }
        }
    }
}

#[test]
fn whatever_a_power_cut_leaves_is_right() {
    let images = scale(5000, 100_000);
    let mut tally = Tally::default();
    for seed in 0..5 {
        let part = run(seed, images / 5, None);
        println!("seed {seed}: {part:?}");
        assert_eq!((part.wrong, part.torn), (0, 0), "seed {seed}");
        tally.images += part.images;
        tally.records += part.records;
    }
    println!("{} crash images, {} records read from them", tally.images, tally.records);
    assert!(tally.records > tally.images * 5);
}

#[test]
fn a_tier_that_forgets_deletions_is_caught() {
    let wrong: u64 = (0..3).map(|seed| run(seed, 400, Some(PlantedBug::ForgetDeletion)).wrong).sum();
    assert!(wrong > 0, "the planted bug was not noticed");
}
