//! A source of figures.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cache_core::form::Form;
use cache_core::miss::MissReason;
use cache_core::units::Tier;
use kvtier_daemon::stats::{
    AGE_BOUNDS_US, Ages, Amount, BlockStory, Client, Counters, Disk, Explanation, Gauges, Histogram, Operation,
    Process, ProtocolError, Reclaim, Rejection, Snapshot, Source, State, StoreRefusal, TierUse,
};

/// Figures that go on with every answer, when `moves`; all of them differ, so that one in another's place is noticed.
pub struct Figures {
    counters: Counters,
    moves: bool,
    asked: AtomicU64,
    /// What was answered, by its uptime.
    pub given: Mutex<HashMap<u64, Snapshot>>,
    /// Why it is not ready.
    pub reasons: Mutex<Vec<String>>,
}

impl Figures {
    pub fn new(moves: bool) -> Arc<Figures> {
        let figures = Figures {
            counters: Counters::default(),
            moves,
            asked: AtomicU64::new(0),
            given: Mutex::default(),
            reasons: Mutex::default(),
        };
        figures.work(1);
        Arc::new(figures)
    }

    /// One turn of traffic.
    fn work(&self, turn: u64) {
        let amount = |seed: u64| Amount { blocks: seed, tokens: 64 * seed + 1, bytes: 1_474_560 * seed + 2 };
        let counters = &self.counters;
        counters.requested(amount(100 + turn));
        counters.hit(Tier::Host, amount(31 + turn % 17));
        counters.hit(Tier::Disk, amount(12 + turn % 5));
        for (place, reason) in MissReason::ALL.into_iter().enumerate() {
            counters.missed(reason, place as u64 * turn + 3);
        }
        counters.accepted(amount(9), Form::Kc4vt4, 4 * amount(9).bytes);
        counters.accepted(amount(5), Form::I8h, 2 * amount(5).bytes);
        counters.present(amount(7));
        for (place, refusal) in
            [StoreRefusal::Quota, StoreRefusal::Full, StoreRefusal::FailedCheck, StoreRefusal::Pending]
                .into_iter()
                .enumerate()
        {
            counters.refused(refusal, 41 + place as u64);
        }
        counters.loaded(amount(4));
        counters.evicted(amount(23));
        for (place, operation) in
            [Operation::Lookup, Operation::Acquire, Operation::Commit, Operation::Load].into_iter().enumerate()
        {
            for step in 1..=20 + place as u64 {
                counters.took(operation, Duration::from_nanos(7_300 * step * (place as u64 * 40 + 1)));
            }
        }
        counters.rejected(Rejection::User);
        counters.reclaimed(Reclaim::HangUp, 19);
        counters.protocol_error(ProtocolError::UnknownLease);
        counters.integrity_failure();
        counters.lease_lost();
        counters.scrubbed(77 << 20);
    }

    fn now(&self, asked: u64) -> Gauges {
        let client = |index: u64| Client {
            name: format!("engine <b>{index}</b> \"&"),
            pid: 4000 + index as u32,
            leases: 10 * index + asked % 7,
            reservations: index,
            staging_bytes: index << 24,
        };
        Gauges {
            daemon: [0xa5; 16],
            uptime: Duration::from_millis(90_061_000 + 1007 * asked),
            state: State::Ready,
            host: TierUse::new(700_000_000 + 1_000_000 * (asked % 50), 1 << 30, 480 + asked % 50),
            disk: Some(Disk::default()),
            clients: (1..=3).map(client).collect(),
            clients_max: 256,
            leased_bytes: 123_456_789,
            ages: ages(),
            process: Process {
                cpu_seconds: 12.25,
                start_time_seconds: 1.75e9,
                resident_bytes: 345_678_912,
                virtual_bytes: 4_567_891_236,
                open_fds: 43,
                max_fds: 1024,
            },
        }
    }
}

fn ages() -> Ages {
    let times = |count: u64| {
        let histogram = Histogram::new(&AGE_BOUNDS_US);
        (0..count).for_each(|step| histogram.record(Duration::from_millis(7 * step.pow(4))));
        histogram.read()
    };
    Ages { bounds_us: AGE_BOUNDS_US.to_vec(), lifetime: times(37), idle_before_evict: times(61), reuse_gap: times(90) }
}

impl Source for Figures {
    fn snapshot(&self) -> Snapshot {
        let asked = if self.moves { self.asked.fetch_add(1, Ordering::Relaxed) } else { 0 };
        if asked > 0 {
            self.work(asked);
        }
        let mut snapshot = self.counters.snapshot(self.now(asked));
        let disk = snapshot.tiers.disk.as_mut().expect("there is one");
        disk.usage = TierUse::new(5_000_000_000, 8 << 30, 3100);
        disk.state = "offline".into();
        disk.reason = Some("write: No space left on device".to_owned());
        (disk.read_bytes, disk.written_bytes, disk.io_errors, disk.io_inflight) = (1_000_003, 2_000_005, 6, 3);
        self.given.lock().unwrap().insert(snapshot.uptime_ms, snapshot.clone());
        snapshot
    }

    fn explain(&self, request: &str) -> Option<Explanation> {
        (request == "chat 7&a=b").then(|| Explanation {
            blocks: vec![
                BlockStory::hit(0, Tier::Host),
                BlockStory::miss(1, MissReason::Evicted).gone(Tier::Disk, 2500),
                BlockStory { field: Some("rope.base".into()), ..BlockStory::miss(2, MissReason::Namespace) },
            ],
            ..Explanation::new(request)
        })
    }

    fn ready(&self) -> Result<(), Vec<String>> {
        let reasons = self.reasons.lock().unwrap().clone();
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }
}
