//! The rigs do what they say, and each has a planted bug that it catches.
//!
//! Two kinds of bug are planted: a log that trusts what it must not (the rig must catch the log), and a rig that does nothing (the checks of
//! the rig must catch the rig).

mod io_common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use disk_tier::io::rig::{
    Completion, CrashMedium, CrashStyle, Effect, FailNth, Fault, Image, MemoryMedium, Plan, Repeat, SECTOR_BYTES,
    Scope, SplitMix64,
};
use disk_tier::io::{Done, FileId, IoChoice, IoError, Kind, Medium};
use io_common::{FILE, Listener, PAGE, Pages, directory, filled, open, operation, owned, pattern, sync};

const EIO: Fault = Fault::Errno(libc::EIO);
/// The error kinds of the fault matrix.
const FAULTS: [Fault; 6] = [
    EIO,
    Fault::Errno(libc::ENOSPC),
    Fault::Short,
    Fault::Errno(libc::EAGAIN),
    Fault::Errno(libc::ETIMEDOUT),
    Fault::Never { deadline_millis: 1 },
];

/// A store in small: record `r` is two pages and a sync; it may be read back once all three have ended well.
struct Toy {
    medium: Arc<dyn Medium>,
    listener: Arc<Listener>,
    /// Planted: counts a record as there whatever its operations said.
    trusting: bool,
    there: BTreeSet<u64>,
    id: u64,
}

const RECORDS: u64 = 4;

impl Toy {
    fn over(medium: Arc<dyn Medium>, trusting: bool) -> Toy {
        let listener = Listener::on(&*medium);
        Toy { medium, listener, trusting, there: BTreeSet::new(), id: 0 }
    }

    fn perform(&mut self, kind: Kind, offset: u64, seed: u64) -> Done {
        self.id += 1;
        let memory = if kind == Kind::Write { filled(seed, PAGE) } else { owned(PAGE) };
        self.medium.submit(vec![operation(self.id, kind, FILE, offset, memory)]);
        self.listener.next()
    }

    fn store(&mut self, record: u64) {
        let first = self.perform(Kind::Write, 2 * record * PAGE, 2 * record);
        let second = self.perform(Kind::Write, (2 * record + 1) * PAGE, 2 * record + 1);
        let synced = self.perform(Kind::Sync, 0, 0);
        if self.trusting || [first, second, synced].iter().all(|done| done.result == Ok(())) {
            self.there.insert(record);
        }
    }

    /// Reads what it believes to be there. Errors: the first page that is not what was stored.
    fn check(&mut self) -> Result<(), String> {
        for page in self.there.clone().into_iter().flat_map(|record| [2 * record, 2 * record + 1]) {
            let done = self.perform(Kind::Read, page * PAGE, 0);
            let right = done.memory.is_some_and(|memory| memory.as_slice() == pattern(page, PAGE));
            if done.result == Ok(()) && !right {
                return Err(format!("page {page} is served and wrong"));
            }
        }
        Ok(())
    }
}

/// Lets every n-th operation fail until one run is clean. Returns how many runs failed an operation, and the first wrong read.
fn fail_every(make: &dyn Fn() -> Arc<dyn Medium>, plan: Plan, trusting: bool) -> (u64, Result<(), String>) {
    let mut wrong = Ok(());
    for n in 1.. {
        let rig = FailNth::new(make(), Plan { n, ..plan });
        let mut toy = Toy::over(Arc::clone(&rig) as Arc<dyn Medium>, trusting);
        if toy.medium.create(FILE, 2 * RECORDS * PAGE).is_ok() {
            (0..RECORDS).for_each(|record| toy.store(record));
            rig.heal();
            wrong = wrong.and(toy.check());
        }
        rig.close(10_000);
        if rig.fired() == 0 {
            return (n - 1, wrong);
        }
    }
    unreachable!("some run is clean")
}

#[test]
fn the_nth_operation_fails_for_every_n() {
    let memory = || MemoryMedium::new(Completion::THREAD) as Arc<dyn Medium>;
    for fault in FAULTS {
        for effect in [Effect::Nothing, Effect::Half, Effect::Whole] {
            let plan = Plan::nth(1, fault).effect(effect);
            let (failed, wrong) = fail_every(&memory, plan, false);
            assert_eq!(wrong, Ok(()), "{plan:?}");
            assert_eq!(failed, 1 + 3 * RECORDS, "one create, two writes and a sync per record: {plan:?}");
        }
        let (_, wrong) = fail_every(&memory, Plan::nth(1, fault), true);
        assert!(wrong.is_err(), "a log that trusts failed writes is caught by {fault:?}");
    }
    for fault in [Fault::Lost, Fault::Flip { bit: 12_345 }] {
        let plan = Plan::nth(1, fault);
        let (failed, wrong) = fail_every(&memory, plan, false);
        assert_eq!(failed, 1 + 3 * RECORDS);
        assert_eq!(
            wrong.is_err(),
            fault == Fault::Lost,
            "a lost write is acknowledged: only sums can find it: {fault:?}"
        );
    }
}

#[test]
fn the_nth_operation_fails_over_the_kernel_too() {
    let kept: std::sync::Mutex<Vec<tempfile::TempDir>> = std::sync::Mutex::default();
    for choice in [IoChoice::IoUring, IoChoice::Pread] {
        let make = || {
            let directory = directory();
            let medium = open(directory.path(), choice, &Pages::new(PAGE), 4, 10_000);
            kept.lock().unwrap().push(directory);
            medium
        };
        for fault in [EIO, Fault::Short, Fault::Never { deadline_millis: 1 }] {
            let (failed, wrong) = fail_every(&make, Plan::nth(1, fault).effect(Effect::Half), false);
            assert_eq!((failed, wrong), (1 + 3 * RECORDS, Ok(())), "{fault:?}");
            assert!(fail_every(&make, Plan::nth(1, fault), true).1.is_err(), "the trusting log is caught: {fault:?}");
        }
    }
}

/// Which of ten writes a rig lets fail.
fn struck(rig: &FailNth) -> Vec<u64> {
    let listener = Listener::on(rig);
    rig.create(FILE, 16 * PAGE).unwrap();
    let failed = |n: &u64| {
        rig.submit(vec![operation(*n, Kind::Write, FILE, n * PAGE, filled(*n, PAGE))]);
        listener.next().result.is_err()
    };
    (1..=10).filter(failed).collect()
}

#[test]
fn a_rig_that_ignores_its_n_is_noticed() {
    let rig = |plan: Plan| FailNth::new(MemoryMedium::new(Completion::Inline), plan.on(Scope::Write));
    for n in 1..=10 {
        assert_eq!(struck(&rig(Plan::nth(n, EIO))), [n]);
    }
    assert_eq!(struck(&rig(Plan::nth(4, EIO).repeat(Repeat::Times(3)))), [4, 5, 6]);
    assert_eq!(struck(&rig(Plan::nth(8, EIO).repeat(Repeat::Forever))), [8, 9, 10]);
    // Planted: a rig that never fires, and one that counts something else.
    assert_eq!(struck(&rig(Plan::nth(u64::MAX, EIO))), [0u64; 0]);
    let other = FailNth::new(MemoryMedium::new(Completion::Inline), Plan::nth(3, EIO).on(Scope::Read));
    assert_eq!((struck(&other), other.fired(), other.seen()), (vec![], 0, 0));
}

#[test]
fn calls_fail_and_leave_nothing() {
    for (scope, fault, errno) in [
        (Scope::Create, Fault::Errno(libc::ENOSPC), libc::ENOSPC),
        (Scope::Create, Fault::Short, libc::EIO),
        (Scope::Remove, EIO, libc::EIO),
        (Scope::List, Fault::Never { deadline_millis: 1 }, libc::ETIMEDOUT),
    ] {
        let memory = MemoryMedium::new(Completion::Inline);
        memory.create(FileId(7), PAGE).unwrap();
        let rig = FailNth::new(Arc::clone(&memory) as Arc<dyn Medium>, Plan::nth(1, fault).on(scope));
        let failed = match scope {
            Scope::Create => rig.create(FILE, PAGE).map(|()| 0),
            Scope::Remove => rig.remove(FileId(7)).map(|()| 0),
            _ => rig.files().map(|files| files.len()),
        };
        assert_eq!(failed.unwrap_err().raw_os_error(), Some(errno));
        assert_eq!(rig.files().unwrap().iter().map(|(file, _)| *file).collect::<Vec<_>>(), [FileId(7)]);
        rig.create(FILE, PAGE).expect("once only");
    }
    let memory = MemoryMedium::new(Completion::Inline);
    memory.limit(4 * PAGE);
    memory.create(FileId(3), 3 * PAGE).unwrap();
    assert_eq!(memory.create(FileId(4), 2 * PAGE).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(memory.image().allocated_bytes(), 3 * PAGE);
}

#[test]
fn effects_late_writes_and_flips_are_what_they_say() {
    let memory = MemoryMedium::new(Completion::THREAD);
    memory.create(FILE, 64 * PAGE).unwrap();
    let rig = FailNth::new(Arc::clone(&memory) as Arc<dyn Medium>, Plan::nth(1, EIO).effect(Effect::Half));
    let listener = Listener::on(&*rig);
    let write = |id: u64, offset| rig.submit(vec![operation(id, Kind::Write, FILE, offset, filled(id, 4 * PAGE))]);
    let stored = |offset, bytes| memory.image().bytes_at(FILE, offset, bytes);

    write(1, 0);
    let done = listener.next();
    assert_eq!((done.result, done.memory.unwrap().bytes()), (Err(IoError::Errno(libc::EIO)), 4 * PAGE));
    assert_eq!(stored(0, 2 * PAGE), pattern(1, 4 * PAGE)[..2 * PAGE as usize], "half of it");
    assert_eq!(stored(2 * PAGE, 2 * PAGE), vec![0; 2 * PAGE as usize]);

    rig.arm(Plan::nth(1, Fault::Short));
    write(2, 8 * PAGE);
    assert_eq!(listener.next().result, Err(IoError::Short { done_bytes: 2 * PAGE, asked_bytes: 4 * PAGE }));
    assert_eq!(stored(8 * PAGE, 2 * PAGE), pattern(2, 4 * PAGE)[..2 * PAGE as usize]);

    rig.arm(Plan::nth(1, Fault::Never { deadline_millis: 3 }));
    write(3, 16 * PAGE);
    let done = listener.next();
    assert_eq!((done.result, done.memory.is_none()), (Err(IoError::TimedOut { millis: 3 }), true));
    write(4, 16 * PAGE);
    assert_eq!(listener.next().result, Ok(()));
    assert_eq!((rig.held(), rig.release(), rig.held()), (1, 1, 0));
    write(5, 24 * PAGE);
    assert_eq!(listener.next().id, 5, "the late one is not told again");
    assert_eq!(stored(16 * PAGE, 4 * PAGE), pattern(3, 4 * PAGE), "the late write won over the newer one");

    rig.arm(Plan::nth(1, Fault::Lost));
    write(6, 32 * PAGE);
    assert_eq!(listener.next().result, Ok(()));
    assert_eq!(stored(32 * PAGE, 4 * PAGE), vec![0; 4 * PAGE as usize]);

    rig.arm(Plan::nth(1, Fault::Flip { bit: 8 * 5 + 2 }));
    rig.submit(vec![operation(7, Kind::Read, FILE, 16 * PAGE, owned(4 * PAGE))]);
    let done = listener.next();
    let mut right = pattern(3, 4 * PAGE);
    right[5] ^= 4;
    assert_eq!((done.result, done.memory.unwrap().as_slice()), (Ok(()), &right[..]));
    assert_eq!(stored(16 * PAGE, 4 * PAGE), pattern(3, 4 * PAGE), "the bytes on the disk are right");

    rig.arm(Plan::nth(1, Fault::Slow { millis: 60_000 }));
    write(8, 40 * PAGE);
    write(9, 44 * PAGE);
    assert_eq!(listener.next().id, 9, "the slow one is overtaken");
    rig.close(10_000);
    let done = listener.next();
    assert_eq!(done.id, 8, "a close does not wait for its time");
    assert!(matches!(done.result, Ok(()) | Err(IoError::Closed)), "{done:?}");
}

fn crash_subject(completion: Completion) -> (Arc<CrashMedium>, Arc<Listener>) {
    let medium = CrashMedium::over(Image::new(), completion, u64::MAX);
    medium.create(FILE, 16 * PAGE).unwrap();
    let listener = Listener::on(&*medium);
    (medium, listener)
}

fn version(image: &Image, sector: u64) -> Option<u64> {
    let found = image.bytes_at(FILE, sector * SECTOR_BYTES, SECTOR_BYTES);
    let at = (sector * SECTOR_BYTES) as usize % PAGE as usize;
    let of = |seed: &u64| pattern(*seed, PAGE)[at..at + SECTOR_BYTES as usize] == found;
    if found.iter().all(|byte| *byte == 0) { Some(0) } else { (1..=3).find(of) }
}

#[test]
fn a_crash_keeps_what_was_synced_and_anything_of_the_rest() {
    const SECTORS: u64 = PAGE / SECTOR_BYTES;
    let (medium, listener) = crash_subject(Completion::THREAD);
    let write = |seed| {
        medium.submit(vec![operation(seed, Kind::Write, FILE, 0, filled(seed, PAGE))]);
        assert_eq!(listener.next().result, Ok(()));
    };
    write(1);
    assert_eq!(medium.pending_writes(), 1);
    medium.submit(vec![sync(9, FILE)]);
    assert_eq!(listener.next().result, Ok(()));
    assert_eq!(medium.pending_writes(), 0);
    write(2);
    write(3);

    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for style in CrashStyle::ALL {
        for seed in 0..200 {
            let image = medium.crash_with(style, seed);
            assert_eq!(image, medium.crash_with(style, seed), "a seed is a crash");
            let versions: Vec<u64> =
                (0..SECTORS).map(|sector| version(&image, sector).expect("a whole sector")).collect();
            assert!(!versions.contains(&0), "{style:?}, seed {seed}: a synced sector was lost");
            let torn = versions.iter().any(|version| *version != versions[0]);
            let older = versions.contains(&2);
            match style {
                CrashStyle::Nothing => assert_eq!(versions, [1; SECTORS as usize]),
                CrashStyle::Everything => assert_eq!(versions, [3; SECTORS as usize]),
                CrashStyle::Writes | CrashStyle::ReorderedWrites => assert!(!torn),
                CrashStyle::Prefix | CrashStyle::Sectors | CrashStyle::ReorderedSectors => {}
            }
            let kinds = [("torn", torn), ("older wins or newer lost", older), ("newest", versions == [3; 8])];
            kinds.iter().filter(|(_, is)| *is).for_each(|(name, _)| *seen.entry(name).or_default() += 1);
            if style == CrashStyle::ReorderedWrites && versions == [2; 8] {
                *seen.entry("reordered").or_default() += 1;
            }
        }
    }
    println!("{seen:?}");
    assert!(
        ["torn", "older wins or newer lost", "newest", "reordered"].iter().all(|kind| seen.contains_key(kind)),
        "{seen:?}"
    );
    let images: Vec<Image> = (0..50).map(|seed| medium.crash(seed)).collect();
    assert!(images.iter().any(|image| *image != images[0]), "seeds differ");
    assert_eq!(medium.durable(), medium.crash_with(CrashStyle::Nothing, 0));
    assert_eq!(medium.live().image(), medium.crash_with(CrashStyle::Everything, 0));

    // Planted: a drive that lies about syncs. The check above must not pass over it.
    medium.ignore_syncs(true);
    medium.submit(vec![sync(10, FILE)]);
    assert_eq!(listener.next().result, Ok(()));
    let lost = (0..200).any(|seed| version(&medium.crash(seed), 0) != Some(3));
    assert!(lost, "a sync that did nothing is noticed");
    medium.ignore_syncs(false);
    medium.submit(vec![sync(11, FILE)]);
    assert_eq!(listener.next().result, Ok(()));
    assert!((0..200).all(|seed| version(&medium.crash(seed), 0) == Some(3)), "and a real one holds");
}

/// A sync covers the writes that had ended before it was submitted, and no others.
#[test]
fn a_sync_does_not_cover_what_is_still_under_way() {
    let (medium, listener) = crash_subject(Completion::Stepped);
    let write = |seed: u64| operation(seed, Kind::Write, FILE, seed * PAGE, filled(seed, PAGE));
    medium.submit(vec![write(1)]);
    assert_eq!(medium.live().step(5), 1);
    assert_eq!(listener.next().result, Ok(()));
    medium.submit(vec![write(2), sync(9, FILE), write(3)]);
    let kept = |page: u64| {
        (0..100).filter(|seed| medium.crash(*seed).bytes_at(FILE, page * PAGE, PAGE) == pattern(page, PAGE)).count()
    };
    assert!((1..100).contains(&kept(2)), "a write under way may be there or not: {}", kept(2));
    assert!(kept(1) < 100, "the sync has not ended");
    assert_eq!(medium.live().waiting(), 3);
    assert!(medium.live().step_at(1), "the sync ends first");
    assert_eq!(listener.next().id, 9);
    assert_eq!(kept(1), 100);
    assert!(kept(2) < 100 && kept(3) < 100);
    assert_eq!(medium.live().step(10), 2);
    listener.take(2);
    assert_eq!(medium.pending_writes(), 2);
    assert!(listener.within(Duration::ZERO).is_none());
}

#[test]
fn a_window_settles_the_oldest_writes() {
    let medium = CrashMedium::over(Image::new(), Completion::Inline, 4 * PAGE);
    medium.create(FILE, 64 * PAGE).unwrap();
    let listener = Listener::on(&*medium);
    for id in 0..10 {
        medium.submit(vec![operation(id, Kind::Write, FILE, id * PAGE, filled(id, PAGE))]);
        assert_eq!(listener.next().result, Ok(()));
    }
    assert_eq!(medium.pending_writes(), 4);
    let image = medium.crash_with(CrashStyle::Nothing, 0);
    for id in 0..10 {
        let kept = image.bytes_at(FILE, id * PAGE, PAGE) == pattern(id, PAGE);
        assert_eq!(kept, id < 6, "{id}");
    }
    medium.remove(FILE).unwrap();
    assert_eq!((medium.pending_writes(), medium.crash(1)), (0, Image::new()));
}

/// Planted: a log that acknowledges before its sync has ended. The crash rig must find a lost acknowledged record; with the sync it must not.
#[test]
fn the_crash_rig_catches_an_acknowledgement_without_a_sync() {
    let lost = |with_sync: bool| {
        let medium = CrashMedium::over(Image::new(), Completion::THREAD, u64::MAX);
        medium.create(FILE, 16 * PAGE).unwrap();
        let listener = Listener::on(&*medium);
        let mut random = SplitMix64::new(3);
        let mut lost = 0;
        for record in 0..8 {
            medium.submit(vec![operation(record, Kind::Write, FILE, record * PAGE, filled(record, PAGE))]);
            assert_eq!(listener.next().result, Ok(()));
            if with_sync {
                medium.submit(vec![sync(100, FILE)]);
                assert_eq!(listener.next().result, Ok(()));
            }
            for _ in 0..50 {
                let image = medium.crash(random.next());
                let there = |record: &u64| image.bytes_at(FILE, record * PAGE, PAGE) == pattern(*record, PAGE);
                lost += usize::from(!(0..=record).all(|record| there(&record)));
            }
        }
        lost
    };
    let (without, with) = (lost(false), lost(true));
    println!("acknowledged records lost in {without} of 400 crashes without the sync, {with} with it");
    assert_eq!(with, 0);
    assert!(without > 100, "{without}");
}

#[test]
fn images_go_to_a_directory_and_come_back() {
    let mut image = Image::new();
    for (file, seed) in [(FileId(0), 1), (FileId::SNAPSHOT, 2), (FileId::segment(4), 3)] {
        image.create(file, 8 * PAGE);
        image.write(file, 3 * PAGE, &pattern(seed, PAGE));
    }
    let directory = directory();
    image.save(directory.path()).unwrap();
    assert_eq!(Image::load(directory.path()).unwrap(), image);
    let medium = open(directory.path(), IoChoice::Pread, &Pages::new(PAGE), 4, 10_000);
    let listener = Listener::on(&*medium);
    medium.submit(vec![operation(1, Kind::Read, FileId::segment(4), 3 * PAGE, owned(PAGE))]);
    assert_eq!(listener.next().memory.unwrap().as_slice(), pattern(3, PAGE));
    medium.close(1000);
}
