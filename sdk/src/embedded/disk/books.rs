//! What is under way for the shard.

use std::collections::{HashMap, VecDeque};

use cache_core::key::CopyKey;
use cache_core::manager::EntryId;
use cache_core::store::{OpId, Sealed};
use disk_tier::Pin;

/// Blocks that wait to be copied out, at most; more are not stored.
pub(crate) const WAITING_MAX: usize = 1024;

/// A load under way; the slot that it fills travels with the operation's memory.
pub(crate) struct Load {
    pub(crate) op: OpId,
    pub(crate) entry: EntryId,
    pub(crate) sealed: Sealed,
}

/// A block that is to be copied out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    pub(crate) key: CopyKey,
    /// It is on its way out of memory while somebody reads it: no admission, no rate limit.
    pub(crate) is_live: bool,
}

/// Guarded by the state mutex.
#[derive(Default)]
pub(crate) struct Books {
    /// Published blocks that wait for bounce memory, in order.
    pub(crate) waiting: VecDeque<Waiting>,
    pub(crate) stores: HashMap<OpId, Waiting>,
    pub(crate) loads: Vec<Load>,
    pub(crate) pins: HashMap<CopyKey, Pin>,
    /// Write-behind that was given up: queue full, no source left, or refused by the tier.
    pub(crate) dropped_stores: u64,
}

impl Books {
    /// True when nothing waits to be written or is being written.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.stores.is_empty()
    }
}

impl std::fmt::Debug for Books {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Books")
            .field("waiting", &self.waiting.len())
            .field("stores", &self.stores.len())
            .field("loads", &self.loads.len())
            .field("pins", &self.pins.len())
            .finish()
    }
}
