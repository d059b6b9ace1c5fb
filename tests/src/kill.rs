//! Killed again and again: a child process writes, reads and deletes in a store and says on a pipe what it begins and what has ended; the
//! parent kills it at any moment, opens the store itself, and knows from the pipe alone what may be there.
//!
//! Lines of the pipe: `b N K V` a write of version V of key K in namespace N begins, `d N K V` it was acknowledged; `X N K` a deletion
//! begins, `x N K` it was acknowledged; `N N` and `n N` the same for a namespace. A key is written again only after it was deleted, with a new version.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use cache_core::buffer::Buffer;
use cache_core::chain::Link;
use cache_core::form::{Form, Lineage};
use cache_core::hash::{BlockHash, Namespace};
use cache_core::header::seal_image;
use cache_core::key::CopyKey;
use cache_core::payload::BlockShape;
use disk_tier::io::rig::SplitMix64;
use disk_tier::io::{Directory, IoChoice, Memory};
use disk_tier::testing::{PlantedBug, Testing};
use disk_tier::{DiskConfig, DiskDone, DiskOk, DiskState, DiskTier, WriteRequest};

use crate::disk::allocated_bytes;

/// Slot images of 64 KiB with their header.
const SHAPE: BlockShape = BlockShape { layers: 15, kv_heads: 2, head_dim: 32, block_tokens: 16, form: Form::Raw16 };
const BUDGET_BYTES: u64 = 64 << 20;
const KEYS: u64 = 1200;
const NAMESPACES: u64 = 2;
/// Writes under way at once.
const DEPTH: usize = 8;
const PATIENCE_MILLIS: u64 = 20_000;

/// Namespace and number.
type Name = (u8, u32);

fn key((namespace, number): Name) -> CopyKey {
    let mut hash = [0; 32];
    hash[..4].copy_from_slice(&number.to_le_bytes());
    CopyKey::exact(Namespace([namespace; 32]), BlockHash(hash))
}

fn image(name: Name, version: u32) -> Buffer {
    let mut image = Buffer::zeroed(SHAPE.slot_bytes() as usize);
    let mut random = SplitMix64::new(u64::from(name.0) << 60 | u64::from(name.1) << 32 | u64::from(version));
    for word in image.as_mut_slice().chunks_exact_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
    let key = key(name);
    let link = Link { hash: key.hash, parent: None, depth: 0 };
    seal_image(&SHAPE, key, Lineage(SHAPE.form_map()), link, image.as_mut_slice());
    image
}

/// True when the sections are those of this version.
fn is_version(name: Name, version: u32, found: &Buffer) -> bool {
    let payload = SHAPE.header_bytes() as usize..(SHAPE.header_bytes() + SHAPE.payload_bytes()) as usize;
    image(name, version).as_slice()[payload.clone()] == found.as_slice()[payload]
}

fn open(directory: &Path, bug: Option<PlantedBug>) -> DiskTier {
    let config = DiskConfig { record_bytes: SHAPE.slot_bytes(), ..DiskConfig::new(BUDGET_BYTES) };
    let medium = Directory::open(directory, IoChoice::Auto, Vec::new(), config.depth, config.deadline_millis);
    let tier = DiskTier::over_with(medium.expect("a directory"), config, Testing { bug, ..Testing::default() });
    let tier = tier.expect("a tier");
    assert_eq!(tier.wait_ready(PATIENCE_MILLIS), DiskState::Ready);
    tier
}

fn end(tier: &DiskTier) -> DiskDone {
    let mut done = Vec::new();
    while done.is_empty() {
        assert!(tier.wait(PATIENCE_MILLIS), "the operation ends");
        tier.poll(&mut done);
    }
    done.remove(0)
}

fn read(tier: &DiskTier, name: Name) -> Option<Buffer> {
    tier.read(key(name), SHAPE, Memory::Owned(Buffer::zeroed(SHAPE.slot_bytes() as usize)));
    let done = end(tier);
    match (done.result, done.memory) {
        (Ok(_), Some(Memory::Owned(buffer))) => Some(buffer),
        _ => None,
    }
}

/// The child: works on the store until it is killed. `versions`: the first version that was never used.
pub fn work(directory: &Path, seed: u64, versions: u32, bug: Option<PlantedBug>) -> ! {
    let tier = open(directory, bug);
    let mut random = SplitMix64::new(seed);
    // Whole lines in one call each: what was said before the kill is in the pipe.
    let say = |line: String| std::io::stdout().write_all(line.as_bytes()).expect("the parent listens");
    let mut version = versions;
    let mut name = move || (random.below(NAMESPACES) as u8, random.below(KEYS) as u32, random.below(1000));
    say("r\n".to_owned());
    loop {
        let (namespace, number, dice) = name();
        if dice < 15 {
            say(format!("N {namespace}\n"));
            if tier.delete_namespace(Namespace([namespace; 32])).is_ok() {
                say(format!("n {namespace}\n"));
            }
        } else if dice < 300 {
            say(format!("X {namespace} {number}\n"));
            tier.delete(key((namespace, number)));
            if end(&tier).result == Ok(DiskOk::Deleted) {
                say(format!("x {namespace} {number}\n"));
            }
        } else {
            write_some(&tier, &mut name, &mut version, &say);
        }
    }
}

/// Writes several keys that are not there, side by side.
fn write_some(tier: &DiskTier, name: &mut impl FnMut() -> (u8, u32, u64), version: &mut u32, say: &impl Fn(String)) {
    let mut under_way = HashMap::new();
    for _ in 0..DEPTH {
        let (namespace, number, _) = name();
        let key = key((namespace, number));
        if tier.find(&key).is_ok() || under_way.values().any(|(other, _)| *other == (namespace, number)) {
            continue;
        }
        say(format!("b {namespace} {number} {version}\n"));
        let memory = Memory::Owned(image((namespace, number), *version));
        let op = tier.submit_write(WriteRequest { key, shape: Some(SHAPE), memory, is_live: false });
        under_way.insert(op, ((namespace, number), *version));
        *version += 1;
    }
    let mut done = Vec::new();
    while !under_way.is_empty() {
        assert!(tier.wait(PATIENCE_MILLIS), "writes end");
        tier.poll(&mut done);
        for done in done.drain(..) {
            let ((namespace, number), version) = under_way.remove(&done.op).expect("an operation ends once");
            if done.result == Ok(DiskOk::Written) {
                say(format!("d {namespace} {number} {version}\n"));
            }
        }
    }
}

/// What the parent knows.
#[derive(Default)]
struct Oracle {
    /// Versions of which one may be there.
    may: HashMap<Name, HashSet<u32>>,
    /// Of this life, in order, deletions taken out: the newest were not reclaimed.
    acknowledged: Vec<(Name, u32)>,
    versions: u32,
}

impl Oracle {
    fn hear(&mut self, line: &str) {
        let mut words = line.split(' ');
        let what = words.next().unwrap_or_default();
        let numbers: Vec<u32> = words.map(|word| word.parse().expect("a number")).collect();
        match (what, numbers[..].as_ref()) {
            ("b", [namespace, number, version]) => {
                self.may.entry((*namespace as u8, *number)).or_default().insert(*version);
                self.versions = self.versions.max(version + 1);
            }
            ("d", [namespace, number, version]) => self.acknowledged.push(((*namespace as u8, *number), *version)),
            // From here on it may be gone.
            ("X", [namespace, number]) => self.acknowledged.retain(|(name, _)| *name != (*namespace as u8, *number)),
            ("N", [namespace]) => self.acknowledged.retain(|((found, _), _)| u32::from(*found) != *namespace),
            // From here on it must be.
            ("x", [namespace, number]) => drop(self.may.remove(&(*namespace as u8, *number))),
            ("n", [namespace]) => self.may.retain(|(found, _), _| u32::from(*found) != *namespace),
            _ => panic!("{line:?} on the pipe"),
        }
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Children killed.
    pub killed: u64,
    /// Writes that were acknowledged.
    pub written: u64,
    /// Records found after a kill, all lives together.
    pub recovered: u64,
    /// Of those, records that nobody stored, or that were deleted, or with other bytes.
    pub wrong: u64,
    /// The newest acknowledged writes of each life, of which none was reclaimed yet.
    pub newest: u64,
    /// Of those, found.
    pub newest_found: u64,
    /// Times that the files held more than the budget.
    pub over_budget: u64,
    /// Most bytes allocated.
    pub most_bytes: u64,
}

impl Tally {
    /// Panics unless everything was as it must be, and there was something to see.
    pub fn assert_sound(&self) {
        assert_eq!((self.wrong, self.over_budget), (0, 0), "{self:?}");
        assert_eq!(self.newest_found, self.newest, "{self:?}");
        assert!(
            self.recovered > 10 * self.killed && self.newest > self.killed,
            "too little was there to see: {self:?}"
        );
    }
}

/// The newest writes that must be there: far less than a segment.
const NEWEST: usize = 16;

/// Kills `program work DIRECTORY SEED VERSIONS [bug]` so many times.
pub fn run(program: &Path, kills: u64, bug: bool) -> Tally {
    let folder = tempfile::tempdir().expect("a folder");
    let directory = folder.path().join("store");
    let mut oracle = Oracle::default();
    let mut random = SplitMix64::new(kills);
    let mut tally = Tally::default();
    for life in 0..kills {
        let mut command = Command::new(program);
        command.arg("work").arg(&directory).arg(life.to_string()).arg(oracle.versions.to_string());
        command.args(bug.then_some("bug")).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the child starts");
        let mut pipe = BufReader::new(child.stdout.take().expect("it was asked for"));
        let mut line = String::new();
        // Killed while it opens the store, or while it works.
        let works = random.chance(240);
        if works {
            pipe.read_line(&mut line).expect("the child says that it is ready");
        }
        let delay = Duration::from_micros(random.below(if works { 60_000 } else { 15_000 }));
        let heard = std::thread::scope(|scope| {
            let listener = scope.spawn(move || pipe.lines().collect::<Result<Vec<_>, _>>().expect("whole lines"));
            std::thread::sleep(delay);
            child.kill().expect("it runs until it is killed");
            child.wait().expect("it ends");
            listener.join().expect("the listener ends")
        });
        heard.iter().filter(|line| *line != "r").for_each(|line| oracle.hear(line));
        tally.killed += 1;
        tally.written += heard.iter().filter(|line| line.starts_with("d ")).count() as u64;
        check(&directory, &mut oracle, life % 2 == 0, &mut tally);
    }
    tally
}

/// Opens the store as the next process would, and compares.
fn check(directory: &Path, oracle: &mut Oracle, orderly: bool, tally: &mut Tally) {
    let note = |tally: &mut Tally| {
        let held = allocated_bytes(directory);
        tally.most_bytes = tally.most_bytes.max(held);
        tally.over_budget += u64::from(held > BUDGET_BYTES);
    };
    note(tally);
    let tier = open(directory, None);
    for namespace in 0..NAMESPACES as u8 {
        for number in 0..KEYS as u32 {
            let name = (namespace, number);
            let Some(found) = read(&tier, name) else { continue };
            tally.recovered += 1;
            let versions = oracle.may.get(&name);
            let right =
                versions.is_some_and(|versions| versions.iter().any(|version| is_version(name, *version, &found)));
            tally.wrong += u64::from(!right);
        }
    }
    let newest = &oracle.acknowledged[oracle.acknowledged.len().saturating_sub(NEWEST)..];
    tally.newest += newest.len() as u64;
    tally.newest_found += newest.iter().filter(|(name, _)| tier.find(&key(*name)).is_ok()).count() as u64;
    if orderly {
        tier.close(PATIENCE_MILLIS);
    }
    drop(tier);
    note(tally);
    oracle.acknowledged.clear();
}
