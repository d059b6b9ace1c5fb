//! Every I/O fails once: for n = 1, 2, 3, ... the n-th operation of a whole life of a store goes wrong, in each of several ways, until a run
//! is left untouched. What was said to be written is there; what is served is right and whole; what was deleted stays deleted; the budget
//! holds, and the accounting is exact when the store is opened again. Over memory one piece of work at a time, and over files on both ways
//! to the kernel with the tier's own thread. `KVTIER_SOAK=1`: every n.

mod io_common;
mod support;

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cache_core::hash::Namespace;
use disk_tier::io::rig::{Completion, Effect, FailNth, Fault, MemoryMedium, Plan, Repeat, Scope};
use disk_tier::io::{Directory, FileId, IoChoice, IoError, Medium, Memory};
use disk_tier::testing::{PlantedBug, Testing};
use disk_tier::{DiskEnd, DiskOk, DiskState, DiskTier};
use support::*;

const SEGMENTS: u64 = 5;
const NUMBERS: u32 = 4 * SEGMENT_RECORDS;
/// A life has fewer operations than this, whatever its threads do.
const OPERATIONS_MAX: u64 = 1000;

/// More than a disk takes for anything here.
const DEADLINE_MILLIS: u64 = 10_000;

const EIO: i32 = 5;
const EAGAIN: i32 = 11;
const ENOSPC: i32 = 28;
const ETIMEDOUT: i32 = 110;

const FAULTS: [(&str, Fault, Effect); 6] = [
    ("EIO", Fault::Errno(EIO), Effect::Half),
    ("ENOSPC", Fault::Errno(ENOSPC), Effect::Nothing),
    ("EAGAIN", Fault::Errno(EAGAIN), Effect::Nothing),
    ("ETIMEDOUT", Fault::Errno(ETIMEDOUT), Effect::Whole),
    ("short", Fault::Short, Effect::Nothing),
    ("never", Fault::Never { deadline_millis: 5 }, Effect::Nothing),
];

/// Where a store lies, and how it is lived in.
trait Ground {
    /// What is there now as a medium; one at a time.
    fn medium(&self) -> Arc<dyn Medium>;
    /// Bytes that the files occupy and how many of them are segments, counted without the tier.
    fn used(&self) -> (u64, u32);
    /// How long a life waits for what does not come, in milliseconds.
    fn deadline_millis(&self) -> u64;
    fn testing(&self, bug: Option<PlantedBug>) -> Testing;
}

/// Bytes in memory, and no thread.
struct InMemory(Mutex<Arc<MemoryMedium>>);

impl InMemory {
    fn new() -> InMemory {
        InMemory(Mutex::new(MemoryMedium::new(Completion::Inline)))
    }
}

impl Ground for InMemory {
    fn medium(&self) -> Arc<dyn Medium> {
        let mut last = self.0.lock().unwrap();
        *last = MemoryMedium::over(last.image(), Completion::Inline);
        Arc::clone(&last) as Arc<dyn Medium>
    }
    fn used(&self) -> (u64, u32) {
        let image = self.0.lock().unwrap().image();
        let segments = image.files().iter().filter(|(file, _)| *file >= FileId::segment(0)).count();
        (image.allocated_bytes(), segments as u32)
    }
    fn deadline_millis(&self) -> u64 {
        20
    }
    fn testing(&self, bug: Option<PlantedBug>) -> Testing {
        manual(bug)
    }
}

/// Files in a folder, on one way to the kernel, and the tier's thread.
struct OnDisk(tempfile::TempDir, IoChoice);

impl OnDisk {
    fn new(choice: IoChoice) -> OnDisk {
        OnDisk(io_common::directory(), choice)
    }
}

impl Ground for OnDisk {
    fn medium(&self) -> Arc<dyn Medium> {
        Directory::open(self.0.path(), self.1, Vec::new(), 16, DEADLINE_MILLIS).expect("the folder is free")
    }
    fn used(&self) -> (u64, u32) {
        let (mut bytes, mut segments) = (0, 0);
        for entry in std::fs::read_dir(self.0.path()).unwrap().map(Result::unwrap) {
            // A file may go while it is looked at.
            bytes += entry.metadata().map_or(0, |metadata| metadata.blocks() * 512);
            segments += u32::from(entry.file_name().to_string_lossy().starts_with("segment."));
        }
        (bytes, segments)
    }
    fn deadline_millis(&self) -> u64 {
        DEADLINE_MILLIS
    }
    fn testing(&self, bug: Option<PlantedBug>) -> Testing {
        threaded(bug)
    }
}

/// What the run knows about a block.
#[derive(Clone, Copy, PartialEq)]
enum Known {
    Written,
    /// A write failed or a deletion did not end well: there or not.
    Perhaps,
    Gone,
}

/// Waits until a tier that is offline is back.
fn come_back(tier: &DiskTier) {
    let begun = Instant::now();
    while matches!(tier.state(), DiskState::Offline { .. }) {
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", tier.state());
        tier.step();
        std::thread::yield_now();
    }
}

/// Operations that failed so far, in whatever way, and what followed from them.
fn troubles(tier: &DiskTier) -> u64 {
    let counters = tier.counters();
    counters.io_errors + counters.timeouts + counters.offline
}

/// Reads a block that was said to be written, once the tier is there. `Ok`: it is there and whole, or something has failed since its write
/// began (`before` had until then): its read, or what cost the segment or took the tier offline. Errors: how it ended.
fn read_back(tier: &DiskTier, number: u32, before: u64) -> Result<(), DiskEnd> {
    come_back(tier);
    match read(tier, number) {
        Err(end) if troubles(tier) == before => Err(end),
        Err(_) => Ok(()),
        Ok(found) => {
            assert!(is_version(number, 0, &found), "block {number}: wrong bytes");
            Ok(())
        }
    }
}

/// One life: written, read, deleted, reclaimed. Returns what is known, and what the tier said that was not so.
fn live(tier: &DiskTier, known: &mut HashMap<u32, Known>) -> Vec<String> {
    let mut lies = Vec::new();
    for number in 0..NUMBERS {
        come_back(tier);
        let before = troubles(tier);
        let end = write(tier, number, 0);
        let state = match end {
            Ok(DiskOk::Written) => {
                if let Err(end) = read_back(tier, number, before) {
                    lies.push(format!("block {number} was written, and its read ended as {end:?}"));
                }
                Known::Written
            }
            Ok(_) => panic!("block {number} was there before it was written"),
            Err(DiskEnd::Failed(_)) => {
                assert!(tier.find(&key(number)).is_err(), "a failed write is invisible");
                Known::Perhaps
            }
            Err(_) => Known::Gone,
        };
        known.insert(number, state);
        if number % 6 == 5 {
            let before = known[&(number - 3)];
            let after = match delete(tier, number - 3) {
                Ok(_) => Known::Gone,
                Err(DiskEnd::Miss(_)) if before != Known::Perhaps => Known::Gone,
                Err(_) => Known::Perhaps,
            };
            known.insert(number - 3, after);
        }
        if number == NUMBERS / 2 {
            let _ = tier.delete_namespace(Namespace([44; 32]));
        }
    }
    lies
}

/// Reads everything: nothing wrong, nothing that is gone, within the budget. Returns how many blocks are there.
fn check(tier: &DiskTier, ground: &dyn Ground, known: &HashMap<u32, Known>) -> u64 {
    let mut there = 0;
    for number in 0..NUMBERS {
        let state = known.get(&number).copied().unwrap_or(Known::Gone);
        if holds(tier, number, 0) {
            assert!(state != Known::Gone, "block {number} was deleted or never written");
            there += 1;
        }
    }
    assert!(ground.used().0 <= tier.capacity().budget_bytes);
    there
}

/// Records that could be found and were not whole.
fn failed_checks(tier: &DiskTier) -> Option<String> {
    let failed = tier.counters().failed_checks;
    (failed > 0).then(|| format!("{failed} records could be found and were not whole"))
}

/// One life under a plan, and the next one without. Returns whether an operation went wrong, and what the tier said that was not
/// so.
fn run(ground: &dyn Ground, plan: Plan, bug: Option<PlantedBug>) -> (bool, Vec<String>) {
    let rig = FailNth::new(ground.medium(), plan);
    let mut settings = config(SEGMENTS);
    settings.deadline_millis = ground.deadline_millis();
    settings.probe_millis = 1;
    let mut known = HashMap::new();
    let mut lies = Vec::new();
    if let Ok(tier) = DiskTier::over_with(Arc::clone(&rig) as Arc<dyn Medium>, settings, ground.testing(bug)) {
        tier.wait_ready(5000);
        lies = live(&tier, &mut known);
        // What the medium still held comes to pass, late.
        rig.release();
        come_back(&tier);
        check(&tier, ground, &known);
        lies.extend(failed_checks(&tier));
        tier.close(2000);
    }
    let fired = rig.fired() > 0;
    drop(rig);
    let tier = open(ground.medium(), SEGMENTS, manual(None)).unwrap();
    assert_eq!(tier.state(), DiskState::Ready);
    let capacity = tier.capacity();
    assert_eq!((capacity.allocated_bytes, capacity.segments), ground.used(), "the tier knows what it holds");
    let there = check(&tier, ground, &known);
    lies.extend(failed_checks(&tier));
    if bug.is_none() {
        assert_eq!(capacity.records, there, "what can be found is whole");
        assert_eq!(capacity.record_bytes, there * RECORD_BYTES);
    }
    let again = (500..505).filter(|number| write(&tier, *number, 0) == Ok(DiskOk::Written)).count();
    assert_eq!(again, 5, "the store is of use again");
    assert!(ground.used().0 <= capacity.budget_bytes);
    tier.close(5000);
    (fired, lies)
}

/// Lets every `step`-th operation of a life go wrong in one way, from the `first` on, until a life is left untouched. Returns the operations
/// of a life, and how many lives there were.
fn each_fails(step: u64, first: u64, (fault, effect): (Fault, Effect), ground: NewGround<'_>) -> (u64, u64) {
    let (mut n, mut lives) = (first, 0);
    loop {
        lives += 1;
        let (fired, lies) = run(&*ground(), Plan::nth(n, fault).effect(effect), None);
        assert_eq!(lies, Vec::<String>::new(), "{fault:?}, n = {n}");
        if !fired {
            return (n - 1, lives);
        }
        n += step;
        assert!(n < OPERATIONS_MAX, "{fault:?}: something always goes wrong");
    }
}

type NewGround<'a> = &'a (dyn Fn() -> Box<dyn Ground> + Sync);

/// Goes through the faults side by side.
fn every_fault(name: &str, step: u64, ground: NewGround<'_>) {
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for (first, (fault_name, fault, effect)) in (1..).zip(FAULTS) {
            scope.spawn(move || {
                // Each begins at another operation, so that together they meet more of them.
                let (operations, lives) = each_fails(step, 1 + first % step, (fault, effect), ground);
                println!("{name}, {fault_name}: one in {step} of {operations} operations failed once, {lives} lives");
                assert!(operations > 100);
            });
        }
    });
    println!("{name}: {:.1} s", begun.elapsed().as_secs_f64());
}

#[test]
fn the_nth_operation_fails_for_every_n() {
    every_fault("memory", scale(3, 1), &|| Box::new(InMemory::new()));
}

#[test]
fn the_nth_operation_fails_for_every_n_over_the_kernel() {
    for choice in [IoChoice::Pread, IoChoice::IoUring] {
        every_fault(&choice.to_string(), scale(3, 1), &|| Box::new(OnDisk::new(choice)));
    }
}

#[test]
fn a_tier_that_shows_failed_writes_is_caught() {
    let grounds: [(&str, NewGround<'_>); 3] = [
        ("memory", &|| Box::new(InMemory::new())),
        ("pread", &|| Box::new(OnDisk::new(IoChoice::Pread))),
        ("io_uring", &|| Box::new(OnDisk::new(IoChoice::IoUring))),
    ];
    for (name, ground) in grounds {
        let spoilt = |n: u64| {
            let plan = Plan::nth(n, Fault::Errno(EIO)).on(Scope::Write).effect(Effect::Half);
            run(&*ground(), plan, Some(PlantedBug::VisibleAfterFailure)).1.len()
        };
        // About half of the writes are records.
        let lies: usize = (1..60).step_by(3).map(spoilt).sum();
        println!("{name}: {lies} untruths");
        assert!(lies > 0, "{name}: the planted bug was not noticed");
    }
}

/// Writes under way when their tier goes: more than a medium takes at once.
const UNDER_WAY: u32 = 40;

/// A tier goes with operations in hand that fail or have no time to end: its medium's threads, and those that tell of operations refused by a
/// closed medium, go with it. Else the folder would still be held for a moment, and the next tier of this process refused.
#[test]
fn a_folder_is_free_once_its_tier_has_gone() {
    for (choice, round) in
        [IoChoice::Pread, IoChoice::IoUring].into_iter().flat_map(|way| (0..scale(20, 200)).map(move |n| (way, n)))
    {
        let ground = OnDisk::new(choice);
        let rig = FailNth::new(ground.medium(), Plan::nth(u64::MAX, Fault::Short));
        let tier = DiskTier::over_with(Arc::clone(&rig) as Arc<dyn Medium>, config(SEGMENTS), ground.testing(None));
        let tier = tier.unwrap();
        tier.wait_ready(5000);
        written(&tier, 100..102);
        rig.arm(Plan::nth(1 + round % 7, Fault::Errno(EIO)).repeat(Repeat::Times(1 + round % 3 * 100)));
        drop(rig);
        for number in 0..UNDER_WAY {
            tier.write(key(number), Memory::Owned(image(number, 0)));
        }
        if round % 4 < 2 {
            tier.close(0);
        }
        drop(tier);
        // Panics where the folder is held.
        drop(ground.medium());
    }
}

/// A tier without a thread over memory whose writes may never end, and the way to both.
fn with_rig(segments: u64) -> (DiskTier, Arc<FailNth>, Arc<MemoryMedium>) {
    let medium = MemoryMedium::new(Completion::Inline);
    let rig = FailNth::new(Arc::clone(&medium) as Arc<dyn Medium>, Plan::nth(u64::MAX, Fault::Short));
    let mut settings = config(segments);
    settings.probe_millis = 1;
    let tier = DiskTier::over_with(Arc::clone(&rig) as Arc<dyn Medium>, settings, manual(None)).unwrap();
    tier.wait_ready(5000);
    (tier, rig, medium)
}

#[test]
fn a_late_deletion_does_not_reach_the_next_tenant() {
    let never = Plan::nth(1, Fault::Never { deadline_millis: 1 }).on(Scope::Write);
    // In a segment that is being written, and in a sealed one, whose footer is written first.
    for count in [5, 2 * SEGMENT_RECORDS] {
        let (tier, rig, _) = with_rig(SEGMENTS);
        written(&tier, 0..count);
        settle(&tier);
        rig.arm(never);
        assert!(matches!(delete(&tier, 3), Err(DiskEnd::Failed(IoError::TimedOut { .. }))));
        come_back(&tier);
        // Until its segment has been begun anew and is full again.
        written(&tier, 100..100 + 3 * SEGMENTS as u32 * SEGMENT_RECORDS);
        assert_eq!((rig.fired(), rig.release()), (1, 1));
        let there = (100..300).filter(|number| holds(&tier, *number, 0)).count() as u64;
        assert_eq!((failed_checks(&tier), tier.capacity().records), (None, there), "{count} blocks before");
    }
}

#[test]
fn a_late_superblock_does_not_bring_back_what_was_deleted() {
    // The first write of a deletion is that of copy 0, the second that of copy 1.
    for (copy, other) in [(1, 1), (2, 0)] {
        let (tier, rig, medium) = with_rig(SEGMENTS);
        let (key, image) = block_in(2, 7, 0);
        assert_eq!(write_image(&tier, key, image), Ok(DiskOk::Written));
        rig.arm(Plan::nth(copy, Fault::Never { deadline_millis: 1 }).on(Scope::Write));
        tier.delete_namespace(Namespace([1; 32])).unwrap_err();
        come_back(&tier);
        tier.delete_namespace(Namespace([2; 32])).unwrap();
        assert_eq!((rig.fired(), rig.release()), (1, 1));
        // A crash tears the other copy while it is written the next time.
        let mut image = medium.image();
        assert!(image.flip_bit(FileId::SUPERBLOCKS[other], 300));
        let (tier, _) = reopen(&image, SEGMENTS, None).unwrap();
        assert!(read_key(&tier, key).is_err(), "the late superblock is copy {}", copy - 1);
    }
}

#[test]
fn a_damaged_superblock_is_written_before_the_sound_one() {
    for damaged in FileId::SUPERBLOCKS {
        let (tier, medium) = fresh(SEGMENTS);
        written(&tier, 0..3);
        drop(tier);
        let mut image = medium.image();
        assert!(image.flip_bit(damaged, 300));
        let medium = MemoryMedium::over(image, Completion::Inline);
        let second = Plan::nth(2, Fault::Errno(EIO)).on(Scope::Write);
        let rig = FailNth::new(Arc::clone(&medium) as Arc<dyn Medium>, second);
        open(rig as Arc<dyn Medium>, SEGMENTS, manual(None)).unwrap_err();
        let medium = MemoryMedium::over(medium.image(), Completion::Inline);
        assert_eq!(DiskTier::verify_medium(medium as _).unwrap().superblocks, 2, "{damaged:?}");
    }
}
