//! Client processes that are killed at every step of the protocol, while others work with the same daemon and the same blocks.
//!
//! A dying client is this program again (`daemon_child die SOCKET STEP NUMBER`). It goes up to its step, says so, and waits there, or does the step over and
//! over, until it is killed. What it held must be free again soon, and nobody else may notice anything.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use cache_core::chain::Link;
use cache_core::hash::TenantId;
use disk_tier::io::rig::SplitMix64;
use host_tier::Staging;
use kvtier_sdk::client::Client;
use kvtier_sdk::wire::{
    AcceptId, Acquire, Await, Batch, Commit, DeleteNamespace, Empty, KeyParts, Lookup, Pin, Reply, Request, Stage,
};

use crate::daemons::blocks::{Look, SHAPE, chain, chain_in, client, get, image_in, look, namespace, namespace_of, put};
use crate::daemons::figures::{Held, held};
use crate::daemons::process::{Daemon, Settings, wait_until};
use crate::daemons::raw::{Raw, frame, hashes, hello, run};

/// Chains that everybody works with, and blocks of each: more than the daemon's memory holds.
pub const CHAINS: u32 = 96;
/// See [`CHAINS`].
pub const BLOCKS: usize = 24;
/// The chain whose only block is reserved by somebody who never fills it.
const STUCK: u32 = 1000;
/// Chains that dying clients write alone: this plus their number.
const OWN: u32 = 2000;
/// For how long dying clients pin.
const PIN_MILLIS: u64 = 500;
/// How long a call of those who die may take: longer than any test.
const FOREVER_MILLIS: u32 = 3_600_000;

/// Where a client dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing was said yet.
    Connected,
    /// In the middle of the introduction's header.
    HalfHello,
    /// The introduction's answer, with a descriptor, is not read.
    HelloUnread,
    /// After the introduction.
    Introduced,
    /// In the middle of a request's body.
    HalfRequest,
    /// With a namespace open.
    Opened,
    /// With leases.
    Leasing,
    /// While it leases, reads in place and gives back.
    Reading,
    /// With places reserved.
    Reserved,
    /// With half an image in staging memory.
    HalfFilled,
    /// With whole images in staging memory.
    Filled,
    /// The commit is sent and its answer not read.
    CommitUnread,
    /// While it puts blocks.
    Putting,
    /// While it waits for a block that somebody else never writes, with leases.
    Awaiting,
    /// While blocks come from the disk for it, with leases.
    Loading,
    /// With loads started for later.
    Prefetching,
    /// With pins.
    Pinning,
    /// With answers unread: the daemon's thread is in a write.
    NotReading,
    /// More staging memory is asked for; the answer, with a descriptor, is not read.
    StageUnread,
    /// While its staging memory is replaced by more, one connection after the other.
    Staging,
    /// While it pins and unpins.
    Unpinning,
    /// While it puts blocks, leases them and deletes their namespace.
    Deleting,
}

impl Step {
    /// All steps.
    pub const ALL: [Step; 22] = [
        Step::Connected,
        Step::HalfHello,
        Step::HelloUnread,
        Step::Introduced,
        Step::HalfRequest,
        Step::Opened,
        Step::Leasing,
        Step::Reading,
        Step::Reserved,
        Step::HalfFilled,
        Step::Filled,
        Step::CommitUnread,
        Step::Putting,
        Step::Awaiting,
        Step::Loading,
        Step::Prefetching,
        Step::Pinning,
        Step::NotReading,
        Step::StageUnread,
        Step::Staging,
        Step::Unpinning,
        Step::Deleting,
    ];
}

/// The dying side. `number`: no two clients have the same.
pub fn die(socket: &Path, step: Step, number: u32) -> ! {
    let mut random = SplitMix64::new(u64::from(number));
    let known = chain(random.below(u64::from(CHAINS)) as u32, BLOCKS);
    let own = chain(OWN + number, 4);
    match step {
        Step::Reading | Step::Putting => by_client(socket, step, &known, number),
        Step::Staging => stage(socket),
        Step::Unpinning => unpin(socket, &known),
        Step::Deleting => delete(socket, number),
        Step::Connected | Step::HalfHello | Step::HelloUnread => {
            let mut raw = Raw::connect(socket);
            let bytes = frame(&hello(), 1, FOREVER_MILLIS);
            match step {
                Step::HalfHello => raw.send(&bytes[..7]),
                Step::HelloUnread => raw.send(&bytes),
                _ => {}
            }
            stay(raw)
        }
        Step::Introduced => stay(Raw::introduced(socket)),
        _ => {
            let mut raw = Raw::introduced(socket);
            let parts = raw.open();
            by_hand(&mut raw, parts, step, &known, &own);
            stay(raw)
        }
    }
}

fn by_hand(raw: &mut Raw, parts: KeyParts, step: Step, known: &[Link], own: &[Link]) {
    let accept = AcceptId::Exact;
    let (known_hashes, own_hashes) = (hashes(known), hashes(own));
    let acquire = Request::Acquire(Acquire { parts, accept, run: run(known, &known_hashes) });
    match step {
        Step::HalfRequest => {
            let bytes = frame(&acquire, 99, FOREVER_MILLIS);
            raw.send(&bytes[..bytes.len() / 2]);
        }
        Step::Leasing => raw.call(&acquire, |reply| assert!(matches!(reply, Reply::Acquire(_)))),
        Step::Reserved | Step::HalfFilled | Step::Filled | Step::CommitUnread => fill(raw, parts, step, own),
        Step::Awaiting => {
            raw.call(&acquire, |_| ());
            let hash = chain(STUCK, 1)[0].hash;
            raw.ask(&Request::Await(Await { parts, hash }), FOREVER_MILLIS);
        }
        Step::Loading => {
            // Some of the next chains lie on the disk alone.
            raw.call(&acquire, |_| ());
            for number in 0..4 {
                let other = chain((known[0].hash.0[0] as u32 + number) % CHAINS, BLOCKS);
                let other_hashes = hashes(&other);
                raw.ask(&Request::Acquire(Acquire { parts, accept, run: run(&other, &other_hashes) }), FOREVER_MILLIS);
            }
        }
        Step::Prefetching => {
            raw.call(&Request::Prefetch(Acquire { parts, accept, run: run(known, &known_hashes) }), |_| ());
        }
        Step::Pinning => {
            let pin = Pin { parts, accept, ttl_ms: PIN_MILLIS, run: run(known, &known_hashes) };
            raw.call(&Request::Pin(pin), |_| ());
        }
        Step::StageUnread => raw.ask(&more_staging(), FOREVER_MILLIS),
        Step::NotReading => {
            let lookup = Lookup { parts, accept, hashes: Batch::new(&own_hashes).expect("few") };
            for _ in 0..64 {
                raw.ask(&Request::Stats(Empty), FOREVER_MILLIS);
                raw.ask(&Request::Lookup(lookup), FOREVER_MILLIS);
            }
        }
        _ => {}
    }
}

fn staging(raw: &mut Raw) -> Staging {
    let staging = raw.descriptor().expect("it came with the introduction");
    let bytes = rustix::fs::fstat(&staging).expect("its length").st_size as u64;
    Staging::map(staging, bytes).expect("staging memory")
}

fn fill(raw: &mut Raw, parts: KeyParts, step: Step, own: &[Link]) {
    let staging = staging(raw);
    let granted = raw.reserve(parts, own);
    for ((_, offset), link) in granted.iter().zip(own) {
        let image = image_in(parts.namespace, link);
        let written = match step {
            Step::Reserved => 0,
            Step::HalfFilled => image.len() / 16 * 8,
            _ => image.len(),
        };
        staging.write(*offset, &image[..written]);
    }
    if step == Step::CommitUnread {
        let reservations: Vec<_> = granted.iter().map(|(reservation, _)| *reservation).collect();
        let reservations = Batch::new(&reservations).expect("few");
        raw.ask(&Request::Commit(Commit { reservations }), FOREVER_MILLIS);
    }
    // Mapped until the end.
    std::mem::forget(staging);
}

/// Through the client, over and over.
fn by_client(socket: &Path, step: Step, known: &[Link], number: u32) -> ! {
    let client = client(socket, "dying", Duration::from_secs(60));
    say_ready();
    for round in 0.. {
        if step == Step::Putting {
            let fresh = chain(OWN * 2 + number * 64 + round % 64, 6);
            put(&client, &fresh).expect("an honest call");
        } else {
            let (lent, _) = get(&client, known).expect("an honest call");
            lent.iter().zip(known).for_each(|(lent, link)| assert_ne!(look(lent, link), Look::Wrong));
        }
    }
    unreachable!("it is killed");
}

/// More staging memory than a connection begins with, or as much where there is no more.
fn more_staging() -> Request<'static> {
    Request::Stage(Stage { least_bytes: SHAPE.slot_bytes() })
}

/// Has its staging memory replaced, over and over, each time in a connection of its own. Ready once it has got more than it began with.
fn stage(socket: &Path) -> ! {
    let mut is_ready = false;
    loop {
        let mut raw = Raw::connect(socket);
        raw.ask(&hello(), FOREVER_MILLIS);
        let first = raw.hear(|answer| match answer {
            Ok(Reply::Hello(hello)) => Some(hello.staging_bytes),
            // Those who were here just before still have theirs.
            _ => None,
        });
        let Some(first_bytes) = first else { continue };
        raw.ask(&more_staging(), FOREVER_MILLIS);
        let has_grown = raw.hear(|answer| match answer {
            Ok(Reply::Stage(staged)) => staged.bytes > first_bytes,
            _ => false,
        });
        if has_grown && !std::mem::replace(&mut is_ready, true) {
            say_ready();
        }
    }
}

/// Pins and unpins, over and over.
fn unpin(socket: &Path, known: &[Link]) -> ! {
    let mut raw = Raw::introduced(socket);
    let (parts, accept) = (raw.open(), AcceptId::Exact);
    let known_hashes = hashes(known);
    let pin = Pin { parts, accept, ttl_ms: PIN_MILLIS, run: run(known, &known_hashes) };
    let unpin = Lookup { parts, accept, hashes: Batch::new(&known_hashes).expect("few") };
    say_ready();
    loop {
        raw.call(&Request::Pin(pin), |reply| assert!(matches!(reply, Reply::Pin(_))));
        raw.call(&Request::Unpin(unpin), |reply| assert!(matches!(reply, Reply::Unpin(_))));
    }
}

/// Puts blocks of a namespace that the others have nothing to do with, leases them and deletes it, over and over. Ready once it has leased and not deleted.
fn delete(socket: &Path, number: u32) -> ! {
    let mut raw = Raw::introduced(socket);
    let staging = staging(&mut raw);
    let (parts, accept) = (raw.open_as(deleting()), AcceptId::Exact);
    let own = chain_in(parts.namespace, OWN + number, 4);
    let own_hashes = hashes(&own);
    let mut is_ready = false;
    loop {
        let granted = raw.reserve(parts, &own);
        for ((_, offset), link) in granted.iter().zip(&own) {
            staging.write(*offset, &image_in(parts.namespace, link));
        }
        let reservations: Vec<_> = granted.iter().map(|(reservation, _)| *reservation).collect();
        let reservations = Batch::new(&reservations).expect("few");
        raw.call(&Request::Commit(Commit { reservations }), |_| ());
        let acquire = Acquire { parts, accept, run: run(&own, &own_hashes) };
        let leases = raw.call(&Request::Acquire(acquire), |reply| match reply {
            Reply::Acquire(acquired) => acquired.hits.len(),
            other => panic!("{other:?}"),
        });
        // Memory may be short just then.
        if leases > 0 && !std::mem::replace(&mut is_ready, true) {
            say_ready();
        }
        let namespace = parts.namespace;
        raw.call(&Request::DeleteNamespace(DeleteNamespace { namespace }), |_| ());
    }
}

/// The tenant of those who delete.
fn deleting() -> TenantId {
    TenantId::of_salt(Some("deleting"))
}

fn say_ready() {
    std::io::stdout().write_all(b"ready\n").expect("the parent listens");
}

/// Says so and waits for the end.
fn stay(raw: Raw) -> ! {
    say_ready();
    loop {
        std::thread::park();
        // Parked threads may wake for no reason.
        let _ = &raw;
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Tally {
    /// Clients killed.
    pub killed: u64,
    /// Calls of those who lived.
    pub calls: u64,
    /// Blocks that they read and compared.
    pub read: u64,
    /// Blocks that they put.
    pub put: u64,
    /// Calls that failed, and the first of them.
    pub failed: u64,
    /// The first failure.
    pub first_failure: Option<String>,
    /// Leased blocks whose generation moved.
    pub moved: u64,
    /// Leased blocks with other bytes.
    pub wrong: u64,
    /// How long after the last kill everything was free again; `None`: not within the patience.
    pub settled: Option<Duration>,
    /// What was held before and after.
    pub before: Option<Held>,
    /// See `before`.
    pub after: Option<Held>,
}

impl Tally {
    /// Panics unless nobody noticed anything and everything is free again.
    pub fn assert_sound(&self) {
        assert_eq!((self.failed, self.moved, self.wrong), (0, 0, 0), "{self:?}");
        assert!(self.read > self.killed && self.put > 0, "too little was done to see anything: {self:?}");
        assert!(self.settled.is_some(), "not everything is free again: {self:?}");
    }
}

/// How it is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Clients to kill, through all steps in turn.
    pub kills: u64,
    /// Clients that work meanwhile.
    pub workers: usize,
    /// How long after the last kill things may take to be free again.
    pub patience: Duration,
}

/// Kills clients of a daemon, whose `settings` name a store for some steps to mean anything.
pub fn kill_clients(settings: &Settings, plan: Plan) -> Tally {
    kill_clients_of(&mut settings.start(), settings, plan, |_| ())
}

/// As [`kill_clients`], of a daemon that runs; `spoil` is done before the first kill.
pub fn kill_clients_of(daemon: &mut Daemon, settings: &Settings, plan: Plan, spoil: impl FnOnce(&mut Daemon)) -> Tally {
    let socket = &settings.socket;
    let watcher = client(socket, "watcher", Duration::from_secs(60));
    let before = at_rest(&watcher, daemon, socket);
    let tally = Mutex::new(Tally { before: Some(before.clone()), ..Tally::default() });
    let (killed, ends) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut stuck = Raw::introduced(socket);
    let parts = stuck.open();
    assert_eq!(stuck.reserve(parts, &chain(STUCK, 1)).len(), 1);
    spoil(daemon);
    std::thread::scope(|scope| {
        for number in 0..plan.workers {
            let (tally, ends) = (&tally, &ends);
            scope.spawn(move || work(socket, number as u64, ends, tally));
        }
        let killers: Vec<_> = (0..KILLERS)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let number = killed.fetch_add(1, Ordering::SeqCst);
                        if number >= plan.kills {
                            return;
                        }
                        kill_one(&settings.program, socket, number);
                    }
                })
            })
            .collect();
        let killers: Vec<_> = killers.into_iter().map(|killer| killer.join()).collect();
        // Also when one of them has failed: the others would work for ever.
        ends.store(true, Ordering::SeqCst);
        killers.into_iter().for_each(|killer| killer.expect("a killer"));
    });
    let since = Instant::now();
    drop(stuck);
    let mut tally = tally.into_inner().unwrap_or_else(PoisonError::into_inner);
    tally.killed = plan.kills;
    loop {
        delete_all(socket);
        let after = held(&watcher, daemon.pid());
        let is_free = after == before;
        tally.after = Some(after);
        if is_free {
            tally.settled = Some(since.elapsed());
        }
        if is_free || since.elapsed() > plan.patience {
            return tally;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Killers at once.
const KILLERS: usize = 3;

/// What a daemon holds that has done everything once and has nothing to do.
fn at_rest(watcher: &Client, daemon: &Daemon, socket: &Path) -> Held {
    put(watcher, &chain(0, 2)).expect("a put");
    let (lent, _) = get(watcher, &chain(0, 2)).expect("a get");
    drop(lent);
    delete_all(socket);
    let mut last = None;
    wait_until("the daemon is at rest", || {
        let now = held(watcher, daemon.pid());
        let is_so = (now.leases, now.leased_bytes, now.reservations, now.clients) == (0, 0, 0, 1)
            && last.replace(now.clone()) == Some(now);
        std::thread::sleep(Duration::from_millis(20));
        is_so
    });
    last.expect("it was looked at")
}

/// Deletes every block, so that what is left is what does not go.
fn delete_all(socket: &Path) {
    let mut raw = Raw::introduced(socket);
    for namespace in [namespace(), namespace_of(deleting())] {
        raw.call(&Request::DeleteNamespace(DeleteNamespace { namespace }), |_| ());
    }
}

fn kill_one(program: &Path, socket: &Path, number: u64) {
    let step = (number % Step::ALL.len() as u64).to_string();
    let mut command = Command::new(program);
    command.arg("die").arg(socket).arg(&step).arg(number.to_string());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("a client's process starts");
    let mut line = String::new();
    let output = child.stdout.as_mut().expect("it was asked for");
    BufReader::new(output).read_line(&mut line).expect("it says how far it is");
    assert_eq!(line, "ready\n", "a client at {:?} failed", Step::ALL[(number % Step::ALL.len() as u64) as usize]);
    // Anywhere in what it does now.
    std::thread::sleep(Duration::from_micros(SplitMix64::new(number).below(3000)));
    child.kill().expect("it runs until it is killed");
    child.wait().expect("it ends");
}

/// Works until it is told to end: puts and gets chains that all have in common.
fn work(socket: &Path, number: u64, ends: &AtomicBool, tally: &Mutex<Tally>) {
    let client = client(socket, &format!("worker {number}"), Duration::from_secs(60));
    let mut random = SplitMix64::new(1_000_003 * number);
    let chains: Vec<Vec<Link>> = (0..CHAINS).map(|number| chain(number, BLOCKS)).collect();
    while !ends.load(Ordering::SeqCst) {
        let links = &chains[random.below(u64::from(CHAINS)) as usize];
        let links = &links[..1 + random.below(BLOCKS as u64) as usize];
        let done = put(&client, links).and_then(|put| {
            let (lent, _) = get(&client, links)?;
            let looks: Vec<Look> = lent.iter().zip(links).map(|(lent, link)| look(lent, link)).collect();
            Ok((put, looks))
        });
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.calls += 2;
        match done {
            Ok((put, looks)) => {
                let count = |which| looks.iter().filter(|look| **look == which).count() as u64;
                tally.put += put as u64;
                tally.read += count(Look::Right);
                tally.moved += count(Look::Moved);
                tally.wrong += count(Look::Wrong);
            }
            Err(error) => {
                tally.failed += 1;
                tally.first_failure.get_or_insert_with(|| format!("{error:?}"));
            }
        }
    }
}
