//! The manager's shards, the tiers' leases and a disk on virtual time: a whole cache in one thread, driven by a seed.
//!
//! Nothing here is random but by its seed, so a failure names the seed, and the seed fails again the same way.
//!
//! | file | part |
//! |---|---|
//! | `world` | the clock, what happens when, restarts, the end |
//! | `memory`, `disk` | slots with the bytes in them, under the real slot table; records, with latency and failures |
//! | `driver` | performs the shards' actions |
//! | `daemon` | clients of a daemon: leases, reservations, awaits, pins, hang-ups, deletions (a lending shard per class of blocks) |
//! | `engine` | sequences of an engine with tiers of its own (a manager's shards by namespace) |
//! | `waits` | who waits for what and until when; that each is answered at that moment, not before, not later |
//! | `checks` | what must hold after every event |
//! | `bugs` | bugs planted between these parts, which the checks must catch |
//!
//! The model of `manager_model` knows every decision of an embedded shard, but no time, no bytes and no daemon.
#![allow(dead_code, reason = "each target uses its own part")]

mod bugs;
mod checks;
mod daemon;
mod disk;
mod driver;
mod engine;
mod memory;
mod waits;
mod world;

use std::collections::BTreeMap;

pub use bugs::Bug;
pub use world::{Kind, World};

/// Nothing, or what is wrong, in words.
pub type Checked = Result<(), String>;

/// What a run did, by name.
pub type Did = BTreeMap<&'static str, u64>;

/// Returns an error in words unless the condition holds.
macro_rules! must {
    ($holds:expr, $($what:tt)*) => {
        if !$holds {
            return Err(format!($($what)*));
        }
    };
}
pub(crate) use must;

/// Runs one seed to its end. Errors: what went wrong, after the seed and the moment.
pub fn run(seed: u64, kind: Kind, bug: Bug) -> Result<Did, String> {
    let mut world = World::new(seed, kind, bug);
    let ended = world.run();
    ended.map_err(|problem| format!("seed {seed}, {kind:?}, at {} ns: {problem}", world.now))?;
    Ok(world.did)
}

/// Seeds of a test: `KVTIER_SEED` alone, or so many.
pub fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("KVTIER_SEED") {
        Ok(seed) => vec![seed.parse().expect("KVTIER_SEED is a number")],
        Err(_) => (0..count).collect(),
    }
}

/// Runs seeds of one kind; panics at the first that fails, and where something never happened.
pub fn run_all(count: u64, kind: Kind) {
    let mut did = Did::new();
    for seed in seeds(count) {
        for (what, times) in run(seed, kind, Bug::None).unwrap_or_else(|problem| panic!("{problem}")) {
            *did.entry(what).or_default() += times;
        }
    }
    println!("{kind:?}, {count} seeds: {did:?}");
    let is_whole = std::env::var("KVTIER_SEED").is_err();
    for what in world::done_by(kind).iter().filter(|_| is_whole) {
        let times = did.get(what).copied().unwrap_or(0);
        assert!(times >= count / 50, "{times} times only: {what}");
    }
}
