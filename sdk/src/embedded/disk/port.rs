//! Completions of the disk tier, sorted by who waits for them.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cache_core::store::OpId;
use disk_tier::{DiskDone, DiskTier};

/// One poll of the tier brings ends of anybody's operations; each is kept here until its owner takes it.
pub(crate) struct Port {
    tier: DiskTier,
    arrived: Mutex<Arrived>,
}

#[derive(Default)]
struct Arrived {
    ended: HashMap<OpId, DiskDone>,
    /// Operations whose owner has gone: their ends, and with them their memory, are dropped.
    unwanted: HashSet<OpId>,
}

impl Port {
    pub(crate) fn new(tier: DiskTier) -> Port {
        Port { tier, arrived: Mutex::default() }
    }

    pub(crate) fn tier(&self) -> &DiskTier {
        &self.tier
    }

    /// Takes in what has ended; ends that nobody wants are dropped, with their memory.
    pub(crate) fn collect(&self) {
        self.arrived().collect(&self.tier);
    }

    /// The end of an operation, once.
    pub(crate) fn take(&self, op: OpId) -> Option<DiskDone> {
        let mut arrived = self.arrived();
        arrived.collect(&self.tier);
        arrived.ended.remove(&op)
    }

    /// True when the end of an operation can be taken.
    pub(crate) fn is_done(&self, op: OpId) -> bool {
        let mut arrived = self.arrived();
        arrived.collect(&self.tier);
        arrived.ended.contains_key(&op)
    }

    /// Waits for the end of an operation. The tier ends every one within its deadline; `None` only if it did not, and then nobody
    /// waits for it any more.
    pub(crate) fn wait(&self, op: OpId, limit: Duration) -> Option<DiskDone> {
        let until = Instant::now() + limit;
        loop {
            if let Some(done) = self.take(op) {
                return Some(done);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.forget(op);
                return None;
            }
            // Somebody else may collect the end between the look and the wait, so the wait is short.
            self.tier.wait(left.as_millis().min(2) as u64);
        }
    }

    /// Nobody waits for this operation any more.
    pub(crate) fn forget(&self, op: OpId) {
        let mut arrived = self.arrived();
        arrived.collect(&self.tier);
        if arrived.ended.remove(&op).is_none() {
            arrived.unwanted.insert(op);
        }
    }

    fn arrived(&self) -> MutexGuard<'_, Arrived> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arrived {
    fn collect(&mut self, tier: &DiskTier) {
        let mut ended = Vec::new();
        tier.poll(&mut ended);
        for done in ended {
            if !self.unwanted.remove(&done.op) {
                self.ended.insert(done.op, done);
            }
        }
    }
}
