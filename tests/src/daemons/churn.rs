//! Clients that come, work and go, for as long as one likes: what the daemon's process takes must not grow.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use disk_tier::io::rig::SplitMix64;
use kvtier_sdk::client::CallError;

use crate::daemons::blocks::{Look, chain, client, get, look, put};
use crate::daemons::figures::{Held, held, resident_bytes, stats};
use crate::daemons::process::{Settings, wait_until};

/// Chains, and blocks of each: more than memory and disk hold, so that everything goes round.
const CHAINS: u32 = 400;
const BLOCKS: usize = 24;
/// Clients at once.
const CLIENTS: u64 = 8;
/// What a client does before it goes.
const CALLS: u64 = 40;

/// What came of it.
#[derive(Debug, Default)]
pub struct Tally {
    /// Clients that came and went.
    pub clients: u64,
    /// Blocks put, and read and compared.
    pub put: u64,
    /// See `put`.
    pub read: u64,
    /// Blocks with other bytes, and leases that were lost.
    pub wrong: u64,
    /// Calls that failed, and the first.
    pub failed: u64,
    /// See `failed`.
    pub first_failure: Option<String>,
    /// Copies that the daemon found damaged.
    pub integrity_failures: u64,
    /// Resident bytes of the daemon after the warm-up, at the end, and the most in between.
    pub resident_warm: u64,
    /// See `resident_warm`.
    pub resident_end: u64,
    /// See `resident_warm`.
    pub resident_max: u64,
    /// What was held when nobody was there: after the warm-up, and at the end.
    pub held_warm: Option<Held>,
    /// See `held_warm`.
    pub held_end: Option<Held>,
}

impl Tally {
    /// Panics unless everything was right and nothing has grown. `growth_bytes`: what resident memory may have grown by.
    pub fn assert_sound(&self, growth_bytes: u64) {
        assert_eq!((self.wrong, self.failed, self.integrity_failures), (0, 0, 0), "{self:?}");
        let (warm, end) = (self.held_warm.as_ref().expect("it was noted"), self.held_end.as_ref().expect("as well"));
        assert_eq!((end.leases, end.reservations, end.clients, end.threads), (0, 0, 1, 1), "{self:?}");
        assert_eq!(warm.descriptors, end.descriptors, "{self:?}");
        assert!(self.resident_end <= self.resident_warm + growth_bytes, "{self:?}");
        assert!(self.clients > CLIENTS && self.read > 100, "too little was done: {self:?}");
    }
}

/// Warms the daemon up for `warm` and then goes on for `duration`.
pub fn churn(settings: &Settings, warm: Duration, duration: Duration) -> Tally {
    let daemon = settings.start();
    let watcher = client(&settings.socket, "watcher", Duration::from_secs(60));
    let mut tally = Tally::default();
    let rest = || {
        wait_until("the daemon is at rest", || {
            let held = held(&watcher, daemon.pid());
            (held.leases, held.leased_bytes, held.reservations, held.clients, held.threads) == (0, 0, 0, 1, 1)
        });
        (held(&watcher, daemon.pid()), resident_bytes(daemon.pid()))
    };
    go_on(&settings.socket, warm, &mut tally, &mut |_| ());
    let (held_warm, resident_warm) = rest();
    let mut resident_max = resident_warm;
    go_on(&settings.socket, duration, &mut tally, &mut |_| {
        resident_max = resident_max.max(resident_bytes(daemon.pid()))
    });
    let (held_end, resident_end) = rest();
    let figures = stats(&watcher);
    let failures = figures["integrity_failures"].as_object().expect("by tier");
    tally.integrity_failures = failures.values().map(|count| count.as_u64().expect("a number")).sum();
    Tally { held_warm: Some(held_warm), held_end: Some(held_end), resident_warm, resident_end, resident_max, ..tally }
}

/// Clients come and go for so long; `watch` is done now and then.
fn go_on(socket: &Path, duration: Duration, tally: &mut Tally, watch: &mut dyn FnMut(Duration)) {
    let ends = AtomicBool::new(false);
    let shared = Mutex::new(std::mem::take(tally));
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for seed in 0..CLIENTS {
            let (ends, shared) = (&ends, &shared);
            scope.spawn(move || {
                let mut random = SplitMix64::new(seed);
                while !ends.load(Ordering::SeqCst) {
                    let done = visit(socket, &mut random);
                    let mut tally = shared.lock().unwrap_or_else(PoisonError::into_inner);
                    tally.clients += 1;
                    match done {
                        Ok([put, read, wrong]) => {
                            tally.put += put;
                            tally.read += read;
                            tally.wrong += wrong;
                        }
                        Err(error) => {
                            tally.failed += 1;
                            tally.first_failure.get_or_insert_with(|| format!("{error:?}"));
                        }
                    }
                }
            });
        }
        while begun.elapsed() < duration {
            std::thread::sleep(Duration::from_millis(100));
            watch(begun.elapsed());
        }
        ends.store(true, Ordering::SeqCst);
    });
    *tally = shared.into_inner().unwrap_or_else(PoisonError::into_inner);
}

/// One client's life: blocks put, read, and wrong.
fn visit(socket: &Path, random: &mut SplitMix64) -> Result<[u64; 3], CallError> {
    let client = client(socket, "visitor", Duration::from_secs(60));
    let mut sum = [0; 3];
    for _ in 0..CALLS {
        let links = chain(random.below(u64::from(CHAINS)) as u32, BLOCKS);
        sum[0] += put(&client, &links)? as u64;
        let (lent, _) = get(&client, &links)?;
        for (lent, link) in lent.iter().zip(&links) {
            match look(lent, link) {
                Look::Right => sum[1] += 1,
                Look::Moved | Look::Wrong => sum[2] += 1,
            }
        }
    }
    Ok(sum)
}
