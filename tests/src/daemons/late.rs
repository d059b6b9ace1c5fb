//! Deadlines on the clock: an acquire of blocks that a slow disk has, or one that never answers, beside a thread that sleeps until the same moment.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use disk_tier::io::Medium;
use disk_tier::io::rig::{FailNth, Fault, Plan, Repeat, Scope, SplitMix64};
use kvtier_daemon::config::{Config, Machine};
use kvtier_daemon::testing::{Planted, Testing, serve_with};
use kvtier_sdk::wire::{AcceptId, Acquire, Reply, Request};

use crate::daemons::blocks::{chain, client, put};
use crate::daemons::figures::stats;
use crate::daemons::process::{store_medium, wait_until};
use crate::daemons::raw::{Raw, hashes, run};

/// Chains in the store, and blocks of each.
const CHAINS: u32 = 32;
const BLOCKS: usize = 8;
/// Deadlines, in milliseconds.
const DEADLINES: std::ops::Range<u64> = 10..60;
/// Longer than any test.
const FOREVER_MILLIS: u64 = 3_600_000;

/// What the disk does with reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// Each takes so much longer.
    Slow {
        /// In milliseconds.
        millis: u64,
    },
    /// None ever ends.
    BlackHole,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Acquires.
    pub calls: u64,
    /// Blocks that they missed for the deadline's sake.
    pub cut: u64,
    /// How much later than the sleeping thread an acquire ended: the most, and how many did by more than 50 ms.
    pub late_max: Duration,
    /// See `late_max`.
    pub late: u64,
}

/// So many acquires by several clients at once.
pub fn run_against(disk: Disk, calls: u64, clients: u64) -> Tally {
    let folder = tempfile::tempdir().expect("a folder");
    let store = folder.path().join("store");
    let mut config = Config::defaults(&Machine::here().expect("this machine"));
    config.socket = folder.path().join("kvtier.sock");
    config.http = None;
    config.host_mem_bytes = 32 << 20;
    config.client_staging_bytes = 256 << 10;
    config.disk = Some(store.clone());
    config.disk_size_bytes = 64 << 20;
    let socket = config.socket.clone();
    let start = |testing: Testing| {
        let (config, socket) = (config.clone(), config.socket.clone());
        let thread = std::thread::spawn(move || serve_with(config, testing));
        wait_until("the socket appears", || socket.exists());
        let watcher = client(&socket, "watcher", Duration::from_secs(60));
        wait_until("the index is read", || stats(&watcher)["state"] == "ready");
        (thread, watcher)
    };
    let (thread, writer) = start(Testing::default());
    for number in 0..CHAINS {
        put(&writer, &chain(number, BLOCKS)).expect("a put");
    }
    writer.drain().expect("it is taken");
    drop(writer);
    thread.join().expect("no panic").expect("an orderly end");
    let inner = store_medium(&store, 256, FOREVER_MILLIS);
    let fault = match disk {
        Disk::Slow { millis } => Fault::Slow { millis },
        Disk::BlackHole => Fault::Never { deadline_millis: FOREVER_MILLIS },
    };
    let plan = Plan::nth(1, fault).on(Scope::Read).repeat(Repeat::Forever);
    let rig = FailNth::new(inner, plan);
    rig.heal();
    let medium = Some(Arc::clone(&rig) as Arc<dyn Medium>);
    let (thread, watcher) = start(Testing { medium, planted: Planted::default() });
    rig.arm(plan);
    let parts: Vec<Tally> = std::thread::scope(|scope| {
        let socket = &socket;
        let threads: Vec<_> =
            (0..clients).map(|seed| scope.spawn(move || acquire(socket, calls / clients, seed))).collect();
        threads.into_iter().map(|thread| thread.join().expect("honest calls")).collect()
    });
    rig.heal();
    rig.release();
    watcher.drain().expect("it is taken");
    drop(watcher);
    thread.join().expect("no panic").expect("an orderly end");
    parts.into_iter().fold(Tally::default(), |all, part| Tally {
        calls: all.calls + part.calls,
        cut: all.cut + part.cut,
        late_max: all.late_max.max(part.late_max),
        late: all.late + part.late,
    })
}

fn acquire(socket: &std::path::Path, calls: u64, seed: u64) -> Tally {
    let mut raw = Raw::introduced(socket);
    let parts = raw.open();
    let mut random = SplitMix64::new(seed);
    let (sleeper, moments) = mpsc::channel::<Instant>();
    let (woken, wakes) = mpsc::channel::<Instant>();
    let control = std::thread::spawn(move || {
        for until in moments {
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
            woken.send(Instant::now()).expect("somebody compares");
        }
    });
    let mut tally = Tally::default();
    for _ in 0..calls {
        let links = chain(random.below(u64::from(CHAINS)) as u32, BLOCKS);
        let hashes = hashes(&links);
        let millis = DEADLINES.start + random.below(DEADLINES.end - DEADLINES.start);
        let acquire = Acquire { parts, accept: AcceptId::Exact, run: run(&links, &hashes) };
        sleeper.send(Instant::now() + Duration::from_millis(millis)).expect("it sleeps");
        raw.ask(&Request::Acquire(acquire), millis as u32);
        let found = raw.hear(|answer| match answer.expect("a miss is no refusal") {
            Reply::Acquire(found) => found.hits.len(),
            other => panic!("{other:?}"),
        });
        let ended = Instant::now();
        let late = ended.saturating_duration_since(wakes.recv().expect("it wakes"));
        tally.calls += 1;
        tally.cut += (BLOCKS - found) as u64;
        tally.late_max = tally.late_max.max(late);
        tally.late += u64::from(late > Duration::from_millis(50));
    }
    drop(sleeper);
    control.join().expect("it sleeps");
    tally
}
