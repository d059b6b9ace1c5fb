//! Daemons that die, stop and come back, under clients that never cease to call.
//!
//! Every call ends by its deadline and a little grace, with an answer or without; what was leased stays readable; whoever comes back finds a daemon that knows
//! nothing of leases, reservations and classes of the one before.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cache_core::chain::Link;
use disk_tier::io::rig::SplitMix64;
use kvtier_engine::run::engine::{DaemonOptions, EngineOptions};
use kvtier_sdk::client::{CallError, Lent};
use kvtier_sdk::wire::{
    AcceptId, Acquire, Batch, Commit, CommitCode, KeyParts, LeaseId, MapExtent, Release, Reply, Request, ReservationId,
    Status,
};

use crate::daemons::blocks::{Look, chain, client, get, look, put};
use crate::daemons::process::{CONT, Daemon, STOP, Settings, TERM, wait_until};
use crate::daemons::raw::{Raw, hashes, run};
use crate::disk::expected;
use crate::{ask, fixture, options, turn};

/// What a client adds to its deadline for an answer that is on its way.
const GRACE: Duration = Duration::from_millis(250);
/// Chains that the clients work with, and blocks of each.
const CHAINS: u32 = 16;
const BLOCKS: usize = 8;

/// How a daemon goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// SIGKILL, and a new one.
    Kill,
    /// SIGSTOP, and SIGCONT when every client has felt it.
    Stop,
    /// SIGTERM, and a new one.
    Terminate,
    /// A client's `Drain`, and a new one.
    Drain,
}

impl Death {
    /// All ways, in turn.
    pub const ALL: [Death; 4] = [Death::Kill, Death::Stop, Death::Terminate, Death::Drain];
}

/// How it is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Deaths, all ways in turn.
    pub cycles: usize,
    /// Clients that work meanwhile.
    pub workers: usize,
    /// Deadline of their calls.
    pub deadline: Duration,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Tally {
    /// Daemons that died.
    pub deaths: usize,
    /// Calls, and those that failed: while no daemon was there.
    pub calls: u64,
    /// See `calls`.
    pub failed: u64,
    /// Blocks read and compared, and those with other bytes under a generation that stood.
    pub read: u64,
    /// See `read`.
    pub wrong: u64,
    /// Blocks read whose daemon was gone: leased from one that died.
    pub read_after_death: u64,
    /// The longest that a call took beyond deadline and grace.
    pub late_max: Duration,
    /// The longest from the moment when a daemon accepts connections (again) until a client has its first answer.
    pub reconnect_max: Duration,
    /// The longest that an orderly end took.
    pub drain_max: Duration,
    /// Prompts that an engine answered meanwhile, and the longest that one took.
    pub answers: u64,
    /// See `answers`.
    pub answer_max: Duration,
}

impl Tally {
    /// Panics unless no byte and no logit was wrong, and there was something to see.
    pub fn assert_sound(&self, plan: Plan) {
        assert_eq!((self.deaths, self.wrong), (plan.cycles, 0), "{self:?}");
        assert!(self.read > 100 && self.read_after_death > 0, "too little was done: {self:?}");
        assert!(self.answers >= plan.cycles as u64, "too little was asked: {self:?}");
    }
}

/// One client's state, as the others see it.
#[derive(Default)]
struct Pulse {
    /// The last call that was answered: when it began.
    answered: Option<Instant>,
    /// Calls that were answered.
    served: u64,
    /// Calls that failed.
    failed: u64,
}

/// Calls of each client in the life of a daemon.
const CALLS: u64 = 40;

struct Scene<'a> {
    socket: &'a Path,
    plan: Plan,
    tally: Mutex<Tally>,
    pulses: Vec<Mutex<Pulse>>,
    ends: AtomicBool,
}

/// Lets daemons with a store die in turn while an engine over them answers prompts, again and again. Panics when an answer differs from that of an engine
/// without any cache.
pub fn under_an_engine(program: &str, plan: Plan) -> Tally {
    let _turn = turn();
    let folder = tempfile::tempdir().expect("a folder");
    let store = Some(folder.path().join("store"));
    let settings = Settings { staging_kib: 2048, store, ..Settings::new(program, folder.path()) };
    let prompts = [(0, 70), (900, 140)].map(|(start, length)| fixture().prompt(start, length));
    let expected = prompts.clone().map(|prompt| expected(&prompt, 2));
    let daemon = DaemonOptions { socket: settings.socket.clone(), deadline_millis: plan.deadline.as_millis() as u64 };
    let mut engine = fixture().engine(EngineOptions { daemon: Some(daemon), host_bytes: 0, ..options() });
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            let (mut answers, mut longest) = (0, Duration::ZERO);
            while !ends.load(Ordering::SeqCst) {
                for (prompt, expected) in prompts.iter().zip(&expected) {
                    let begun = Instant::now();
                    assert_eq!(ask(&mut engine, prompt, 2).logits_digest, *expected, "after {answers} answers");
                    longest = longest.max(begun.elapsed());
                    answers += 1;
                }
            }
            engine.cache().audit().expect("sound books");
            (answers, longest)
        });
        let ended = EndsWith(&ends);
        let tally = kill_daemons(&settings, plan);
        drop(ended);
        let (answers, answer_max) = asking.join().expect("every answer is right");
        Tally { answers, answer_max, ..tally }
    })
}

/// Lets daemons die in turn.
pub fn kill_daemons(settings: &Settings, plan: Plan) -> Tally {
    let scene = Scene {
        socket: &settings.socket,
        plan,
        tally: Mutex::default(),
        pulses: (0..plan.workers).map(|_| Mutex::default()).collect(),
        ends: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        let _ends = EndsWith(&scene.ends);
        let mut daemon = settings.start();
        for number in 0..plan.workers {
            let scene = &scene;
            scope.spawn(move || scene.work(number));
        }
        scene.wait_for_all(Instant::now());
        for cycle in 0..plan.cycles {
            daemon = scene.cycle(daemon, settings, Death::ALL[cycle % Death::ALL.len()]);
        }
    });
    scene.tally.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the workers, also when a check fails.
struct EndsWith<'a>(&'a AtomicBool);

impl Drop for EndsWith<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Scene<'_> {
    /// One death, and the life after it.
    fn cycle(&self, daemon: Daemon, settings: &Settings, death: Death) -> Daemon {
        let before = Before::note(self.socket);
        let (daemon, since) = match death {
            Death::Stop => {
                daemon.signal(STOP);
                self.wait_for_failures();
                daemon.signal(CONT);
                (daemon, Instant::now())
            }
            Death::Kill => {
                daemon.kill();
                self.wait_for_failures();
                (settings.start(), Instant::now())
            }
            Death::Terminate | Death::Drain => {
                let begun = Instant::now();
                match death {
                    Death::Terminate => daemon.signal(TERM),
                    _ => client(self.socket, "drains", Duration::from_secs(10)).drain().expect("it is taken"),
                }
                let status = daemon.wait();
                assert!(status.success(), "an orderly end: {status}");
                let mut tally = lock(&self.tally);
                tally.drain_max = tally.drain_max.max(begun.elapsed());
                drop(tally);
                assert!(!self.socket.exists(), "the socket goes with the daemon");
                (settings.start(), Instant::now())
            }
        };
        self.wait_for_all(since);
        let mut tally = lock(&self.tally);
        tally.reconnect_max = tally.reconnect_max.max(since.elapsed());
        tally.deaths += 1;
        drop(tally);
        self.wait_for_work();
        if death == Death::Stop {
            before.must_count();
        } else {
            before.must_not_count(self.socket);
        }
        daemon
    }

    /// Waits until every client has an answer to a call that it began after `since`.
    fn wait_for_all(&self, since: Instant) {
        for pulse in &self.pulses {
            wait_until("clients are served again", || lock(pulse).answered.is_some_and(|answered| answered > since));
        }
    }

    /// Lets every client work a while.
    fn wait_for_work(&self) {
        let before: Vec<u64> = self.pulses.iter().map(|pulse| lock(pulse).served).collect();
        for (pulse, before) in self.pulses.iter().zip(before) {
            wait_until("clients work", || lock(pulse).served >= before + CALLS);
        }
    }

    /// Waits until every client has felt that nobody answers.
    fn wait_for_failures(&self) {
        let before: Vec<u64> = self.pulses.iter().map(|pulse| lock(pulse).failed).collect();
        for (pulse, before) in self.pulses.iter().zip(before) {
            wait_until("clients feel that nobody answers", || lock(pulse).failed >= before + 2);
        }
    }

    fn work(&self, number: usize) {
        let client = client(self.socket, &format!("worker {number}"), self.plan.deadline);
        let mut random = SplitMix64::new(number as u64);
        let mut kept: Option<(Lent, Link)> = None;
        while !self.ends.load(Ordering::SeqCst) {
            let links = chain(random.below(u64::from(CHAINS)) as u32, BLOCKS);
            let was_connected = client.is_connected();
            let put = self.call(number, || put(&client, &links));
            let lent = self.call(number, || get(&client, &links)).map(|(lent, _)| lent).unwrap_or_default();
            let mut looks: Vec<Look> = lent.iter().zip(&links).map(|(lent, link)| look(lent, link)).collect();
            if let Some((lent, link)) = &kept {
                looks.push(look(lent, link));
                lock(&self.tally).read_after_death += u64::from(!was_connected);
            }
            // One lease is kept over deaths, now and then another.
            if let Some(first) = lent.into_iter().next().filter(|_| kept.is_none() || random.chance(16)) {
                kept = Some((first, links[0]));
            }
            let mut tally = lock(&self.tally);
            tally.read += looks.len() as u64;
            tally.wrong += looks.iter().filter(|look| **look == Look::Wrong).count() as u64;
            drop(tally);
            if put.is_none() {
                // Not a busy loop while there is nobody.
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    fn call<T>(&self, number: usize, call: impl FnOnce() -> Result<T, CallError>) -> Option<T> {
        let begun = Instant::now();
        let result = call();
        let late = begun.elapsed().saturating_sub(self.plan.deadline + GRACE);
        let mut tally = lock(&self.tally);
        tally.calls += 1;
        tally.failed += u64::from(result.is_err());
        tally.late_max = tally.late_max.max(late);
        drop(tally);
        let mut pulse = lock(&self.pulses[number]);
        match &result {
            Ok(_) => {
                pulse.answered = Some(begun);
                pulse.served += 1;
            }
            Err(_) => pulse.failed += 1,
        }
        result.ok()
    }
}

/// What a connection held before a death.
struct Before {
    /// It stays open, for the daemon that lives on.
    raw: Raw,
    parts: KeyParts,
    lease: LeaseId,
    reservation: ReservationId,
}

impl Before {
    fn note(socket: &Path) -> Before {
        let links = chain(7000, 2);
        let writer = client(socket, "before", Duration::from_secs(10));
        put(&writer, &links[..1]).expect("a put");
        let mut raw = Raw::introduced(socket);
        let parts = raw.open();
        let hashes = hashes(&links[..1]);
        let acquire = Acquire { parts, accept: AcceptId::Exact, run: run(&links[..1], &hashes) };
        let lease = raw.call(&Request::Acquire(acquire), |reply| match reply {
            Reply::Acquire(found) => found.hits.first().expect("it was put").lease,
            other => panic!("{other:?}"),
        });
        // Where the daemon lived on, the connection of the cycle before may be about to give it back.
        let mut granted = Vec::new();
        wait_until("a reservation is granted", || {
            granted = raw.reserve(parts, &links[1..]);
            !granted.is_empty()
        });
        let (reservation, _) = granted[0];
        Before { raw, parts, lease, reservation }
    }

    /// The same daemon goes on: the connection holds what it held.
    fn must_count(mut self) {
        let counts = self.release();
        assert_eq!(counts, (1, 0), "a lease outlives a daemon that stood still");
    }

    /// Another daemon: it refuses every name of before, and harms nobody by it.
    fn must_not_count(mut self, socket: &Path) {
        self.raw = Raw::introduced(socket);
        let (parts, hash) = (self.parts, [chain(7000, 1)[0].hash]);
        let acquire = Acquire { parts, accept: AcceptId::Exact, run: run(&chain(7000, 1), &hash) };
        for request in [Request::Acquire(acquire), Request::MapExtent(MapExtent { class: parts.class, extent: 0 })] {
            self.raw.ask(&request, 10_000);
            let status = self.raw.hear(|answer| answer.map(|_| ()).expect_err("it was not opened here").status());
            assert_eq!(status, Status::UnknownNamespace);
        }
        assert_eq!(self.release(), (0, 1));
        let reservations = [self.reservation];
        let commit = Commit { reservations: Batch::new(&reservations).expect("one") };
        let code = self.raw.call(&Request::Commit(commit), |reply| match reply {
            Reply::Commit(committed) => committed.answers[0],
            other => panic!("{other:?}"),
        });
        assert_eq!(code, CommitCode::Unknown);
    }

    /// Leases released, and unknown ones.
    fn release(&mut self) -> (u32, u32) {
        let leases = [self.lease];
        let release = Release { leases: Batch::new(&leases).expect("one") };
        self.raw.call(&Request::Release(release), |reply| match reply {
            Reply::Release(released) => (released.released, released.unknown),
            other => panic!("{other:?}"),
        })
    }
}
