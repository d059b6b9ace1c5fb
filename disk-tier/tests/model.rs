//! A linearizable cache: random operations beside a plain history, with reclaim, deletions of keys and namespaces, orderly ends, kills and
//! power cuts. A miss is always allowed; a wrong, stale or resurrected value never; the budget never exceeded.
//!
//! A key is written again only after a deletion, with a new version. After a power cut a deletion that was acknowledged still counts.

mod support;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::Thread;

use cache_core::buffer::Buffer;
use cache_core::hash::Namespace;
use cache_core::store::OpId;
use disk_tier::io::rig::{Completion, CrashMedium, Image, MemoryMedium, SplitMix64};
use disk_tier::io::{Medium, Memory};
use disk_tier::testing::PlantedBug;
use disk_tier::{DiskDone, DiskEnd, DiskOk, DiskState, DiskTier, Pin, WriteRequest};
use support::*;

const SEGMENTS: u64 = 6;
const KEYS: u32 = 16;
/// Keys of the threads.
const THREAD_KEYS: u32 = 60;
const NAMESPACES: u8 = 3;

/// What may be read of a key: the version that was last written and not deleted since.
#[derive(Clone, Copy, Default)]
struct State {
    /// Versions given out.
    next: u32,
    /// The one that may be there.
    may: Option<u32>,
}

struct Model {
    states: HashMap<(u8, u32), State>,
    random: SplitMix64,
    wrong: u64,
    hits: u64,
    misses: u64,
    reopened: u64,
    pins: Vec<((u8, u32), Pin)>,
    lost_pins: u64,
}

impl Model {
    fn name(&mut self) -> (u8, u32) {
        (self.random.below(u64::from(NAMESPACES)) as u8, self.random.below(u64::from(KEYS)) as u32)
    }

    fn step(&mut self, tier: &DiskTier) {
        let name = self.name();
        let (namespace, number) = name;
        match self.random.below(100) {
            0..50 => {
                let state = self.states.entry(name).or_default();
                // Without a deletion in between the value of a key is one value for ever.
                let version = state.may.unwrap_or(state.next);
                let (key, image) = block_in(namespace, number, version);
                if write_image(tier, key, image) == Ok(DiskOk::Written) {
                    state.may = Some(version);
                    state.next = version + 1;
                }
            }
            50..84 => self.read(tier, name),
            84..92 => {
                let (key, _) = block_in(namespace, number, 0);
                tier.delete(key);
                match end(tier).result {
                    Ok(_) | Err(DiskEnd::Miss(_)) => self.states.entry(name).or_default().may = None,
                    Err(other) => panic!("delete: {other:?}"),
                }
                self.pins.retain(|(pinned, _)| *pinned != name);
            }
            92..94 => {
                tier.delete_namespace(Namespace([namespace; 32])).unwrap();
                for ((found, _), state) in &mut self.states {
                    if *found == namespace {
                        state.may = None;
                    }
                }
                self.pins.retain(|((pinned, _), _)| *pinned != namespace);
            }
            94..97 => {
                if let Some(pin) = tier.pin(&block_in(namespace, number, 0).0) {
                    self.pins.push((name, pin));
                }
            }
            _ => {
                for (name, _) in &self.pins {
                    self.lost_pins += u64::from(tier.find(&block_in(name.0, name.1, 0).0).is_err());
                }
                self.pins.clear();
            }
        }
    }

    fn read(&mut self, tier: &DiskTier, name: (u8, u32)) {
        let state = self.states.get(&name).copied().unwrap_or_default();
        match read_key(tier, block_in(name.0, name.1, 0).0) {
            Err(_) => self.misses += 1,
            Ok(found) => {
                self.hits += 1;
                let right = state.may.is_some_and(|version| same(name, version, &found));
                self.wrong += u64::from(!right);
            }
        }
    }
}

fn same((namespace, number): (u8, u32), version: u32, found: &Buffer) -> bool {
    is_same(&block_in(namespace, number, version).1, found)
}

/// Runs `steps` steps with an end of some kind every hundred or so.
fn run(seed: u64, steps: u64, bug: Option<PlantedBug>) -> Model {
    let mut model = Model {
        states: HashMap::new(),
        random: SplitMix64::new(seed),
        wrong: 0,
        hits: 0,
        misses: 0,
        reopened: 0,
        pins: Vec::new(),
        lost_pins: 0,
    };
    let mut image = Image::new();
    let mut done = 0;
    while done < steps {
        let medium = CrashMedium::over(image, Completion::Inline, u64::MAX);
        let tier = open(Arc::clone(&medium) as Arc<dyn Medium>, SEGMENTS, manual(bug)).unwrap();
        assert_eq!(tier.state(), DiskState::Ready);
        model.reopened += 1;
        for number in 0..KEYS {
            for namespace in 0..NAMESPACES {
                model.read(&tier, (namespace, number));
            }
        }
        let life = 20 + model.random.below(200);
        for _ in 0..life {
            model.step(&tier);
            let (held, capacity) = (medium.live().image().allocated_bytes(), tier.capacity());
            assert!(held <= capacity.budget_bytes, "over budget: {held} of {capacity:?}");
            assert_eq!(held, capacity.allocated_bytes, "the tier knows what it holds");
        }
        done += life;
        model.pins.clear();
        let seed = model.random.next();
        image = match model.random.below(3) {
            0 => {
                tier.close(5000);
                medium.crash(seed)
            }
            // Killed: what was submitted is there.
            1 => medium.live().image(),
            _ => medium.crash(seed),
        };
    }
    model
}

#[test]
fn a_miss_is_always_allowed_and_a_wrong_or_resurrected_value_never() {
    let runs = scale(20, 400);
    let (mut hits, mut misses, mut reopened) = (0, 0, 0);
    for seed in 0..runs {
        let model = run(seed, 1500, None);
        assert_eq!((model.wrong, model.lost_pins), (0, 0), "seed {seed}");
        hits += model.hits;
        misses += model.misses;
        reopened += model.reopened;
    }
    println!("{runs} runs of 1500 steps: {hits} hits, {misses} misses, {reopened} lives, none wrong");
    assert!(hits > misses / 4, "most of what is read was stored");
}

#[test]
fn planted_bugs_are_caught() {
    let wrong = |bug| (0..10).map(|seed| run(seed, 1500, Some(bug)).wrong).sum::<u64>();
    assert!(wrong(PlantedBug::ForgetDeletion) > 0, "ForgetDeletion was not noticed");
    let lost = (0..10).map(|seed| run(seed, 1500, Some(PlantedBug::IgnorePins)).lost_pins).sum::<u64>();
    assert!(lost > 0, "IgnorePins was not noticed");
    let over = std::panic::catch_unwind(|| run(1, 1500, Some(PlantedBug::TooManySegments)).wrong);
    assert!(over.is_err(), "TooManySegments was not noticed");
}

/// One thread polls for all and wakes whoever waits for what has ended.
#[derive(Default)]
struct Mailbox {
    letters: Mutex<HashMap<u64, Letter>>,
    /// Threads that wait for nothing more.
    leavers: AtomicU64,
}

enum Letter {
    Awaited(Thread),
    Ended(DiskDone),
}

impl Mailbox {
    fn wait(&self, op: OpId) -> DiskDone {
        loop {
            let mut letters = self.letters.lock().unwrap();
            if let Some(Letter::Ended(done)) = letters.remove(&op.0) {
                return done;
            }
            letters.insert(op.0, Letter::Awaited(std::thread::current()));
            drop(letters);
            std::thread::park();
        }
    }

    fn serve(&self, tier: &DiskTier, threads: u64) {
        let mut ended = Vec::new();
        while self.leavers.load(Ordering::SeqCst) < threads {
            tier.poll(&mut ended);
            if ended.is_empty() {
                tier.wait(5);
            }
            for done in ended.drain(..) {
                let op = done.op.0;
                let awaited = self.letters.lock().unwrap().insert(op, Letter::Ended(done));
                if let Some(Letter::Awaited(thread)) = awaited {
                    thread.unpark();
                }
            }
        }
    }
}

/// What has happened to one key, by a clock that all threads share.
#[derive(Default)]
struct History {
    /// Version, begin, end.
    writes: Vec<(u32, u64, u64)>,
    /// Begin, end.
    deletions: Vec<(u64, u64)>,
    next: u32,
}

impl History {
    /// Forgets what no operation that began at `oldest` or later can be judged by: versions that were deleted before it, and then deletions
    /// that lie before every version that is left.
    fn forget_before(&mut self, oldest: u64) {
        let History { writes, deletions, .. } = self;
        writes.retain(|(_, _, written)| !deletions.iter().any(|(from, to)| from > written && *to < oldest));
        deletions.retain(|(from, _)| writes.iter().any(|(_, _, written)| written < from));
    }

    /// A value of a version read between `begin` and `end`: its write began before, and no deletion lies wholly between the two.
    fn allows(&self, version: u32, begin: u64, end: u64) -> bool {
        self.writes.iter().filter(|(found, ..)| *found == version).any(|(_, wrote, written)| {
            *wrote < end && !self.deletions.iter().any(|(from, to)| from > written && *to < begin)
        })
    }
}

#[test]
fn many_threads_see_one_cache() {
    let threads = 40;
    let operations = scale(500_000, 20_000_000) / threads;
    let clock = AtomicU64::new(0);
    let tick = || clock.fetch_add(1, Ordering::SeqCst);
    let histories: Vec<Mutex<History>> = (0..THREAD_KEYS).map(|_| Mutex::default()).collect();
    // When each thread's operation under way began.
    let began: Vec<AtomicU64> = (0..threads).map(|_| AtomicU64::new(u64::MAX)).collect();
    let oldest = || began.iter().map(|began| began.load(Ordering::SeqCst)).min().unwrap_or(u64::MAX);
    let mut image = Image::new();
    let (hits, wrong) = (AtomicU64::new(0), AtomicU64::new(0));
    let rounds = 4;
    for round in 0..rounds {
        let medium = MemoryMedium::over(image, Completion::Threads { threads: 4, deadline_millis: 0 });
        let tier = open(Arc::clone(&medium) as Arc<dyn Medium>, SEGMENTS, threaded(None)).unwrap();
        assert_eq!(tier.state(), DiskState::Ready);
        let mailbox = Mailbox::default();
        let wait = |op| mailbox.wait(op);
        std::thread::scope(|scope| {
            scope.spawn(|| mailbox.serve(&tier, threads));
            for thread in 0..threads {
                let (tier, mailbox, histories, hits, wrong, wait, tick) =
                    (&tier, &mailbox, &histories, &hits, &wrong, &wait, &tick);
                let (began, oldest) = (&began[thread as usize], &oldest);
                scope.spawn(move || {
                    let mut random = SplitMix64::new(1000 * round + thread);
                    for _ in 0..operations / rounds {
                        let number = random.below(u64::from(THREAD_KEYS)) as u32;
                        let history = &histories[number as usize];
                        // A moment too early is on the safe side.
                        began.store(tick(), Ordering::SeqCst);
                        match random.below(10) {
                            0..4 => {
                                // A key's versions are written one at a time, each after a deletion of the last.
                                let mut history = history.lock().unwrap();
                                let version = history.next;
                                let begin = tick();
                                let memory = Memory::Owned(support::image(number, version));
                                let op = tier.submit_write(WriteRequest {
                                    key: key(number),
                                    shape: Some(SHAPE),
                                    memory,
                                    is_live: false,
                                });
                                if wait(op).result == Ok(DiskOk::Written) {
                                    history.writes.push((version, begin, tick()));
                                    history.next += 1;
                                }
                                history.forget_before(oldest());
                            }
                            4 => {
                                let begin = tick();
                                let end = wait(tier.delete(key(number))).result;
                                let ended = tick();
                                if matches!(end, Ok(_) | Err(DiskEnd::Miss(_))) {
                                    history.lock().unwrap().deletions.push((begin, ended));
                                }
                            }
                            _ => {
                                let begin = tick();
                                let memory = Memory::Owned(Buffer::zeroed(SHAPE.slot_bytes() as usize));
                                let done = wait(tier.read(key(number), SHAPE, memory));
                                let ended = tick();
                                let (Ok(_), Some(Memory::Owned(found))) = (done.result, done.memory) else {
                                    began.store(u64::MAX, Ordering::SeqCst);
                                    continue;
                                };
                                hits.fetch_add(1, Ordering::Relaxed);
                                let history = history.lock().unwrap();
                                // A write still under way when this was read is of the next version.
                                let right = (0..=history.next)
                                    .rev()
                                    .filter(|version| is_version(number, *version, &found))
                                    .any(|version| history.allows(version, begin, ended));
                                wrong.fetch_add(u64::from(!right), Ordering::Relaxed);
                            }
                        }
                        began.store(u64::MAX, Ordering::SeqCst);
                    }
                    mailbox.leavers.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        if round % 2 == 0 {
            tier.close(5000);
        }
        assert!(medium.image().allocated_bytes() <= tier.capacity().budget_bytes);
        let counters = tier.counters();
        println!("round {round}: {counters:?}");
        assert_eq!(counters.failed_checks, 0, "a record that was deleted under its reader is no damage");
        drop(tier);
        image = medium.image();
    }
    println!("{} operations on {threads} threads, {} hits", operations * threads, hits.load(Ordering::Relaxed));
    assert_eq!(wrong.load(Ordering::Relaxed), 0);
}
