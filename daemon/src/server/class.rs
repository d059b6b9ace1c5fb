//! Classes: the blocks of one shape, their slots in the host arena and the manager shard that decides over them.
//!
//! A class is made when a client first names its shape. Its slot table and index are made for the whole host budget, since nobody knows how much of
//! it the class will use; its slots are **granted** one by one out of the budget that all classes share, as they are needed. A slot's pages stay
//! committed once they were touched, so what a class was granted it keeps.

use std::sync::Arc;

use cache_core::manager::{Budgets, Shard};
use cache_core::payload::BlockShape;
use disk_tier::io::Region;
use host_tier::{HostConfig, HostError, HostTier};
use kvtier_sdk::embedded::ArenaExtent;

/// Live blocks that may be without a slot at once: those that requests wait for while they come from the disk.
const LOADING_MAX: u32 = 4096;
/// How long the slot of a vanished client rests, in milliseconds.
const REST_MILLIS: u64 = 2000;

/// Number of a class: the order in which they were made.
pub(crate) type ClassId = u32;

pub(crate) struct Class {
    pub(crate) shape: BlockShape,
    pub(crate) host: HostTier,
    pub(crate) shard: Shard,
    /// The arena's extents, as the disk reads into and writes from them.
    pub(crate) regions: Vec<Arc<dyn Region>>,
}

/// The host budget, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pool {
    pub(crate) budget_bytes: u64,
    /// Metadata of the classes and the slots that they were granted.
    pub(crate) granted_bytes: u64,
}

impl Pool {
    pub(crate) fn new(budget_bytes: u64) -> Pool {
        Pool { budget_bytes, granted_bytes: 0 }
    }

    /// Takes so many bytes; false when they are not there.
    pub(crate) fn take(&mut self, bytes: u64) -> bool {
        let fits = bytes <= self.left();
        self.granted_bytes += if fits { bytes } else { 0 };
        fits
    }

    fn left(&self) -> u64 {
        self.budget_bytes - self.granted_bytes
    }
}

impl Class {
    /// Makes a class without slots, and takes its metadata out of the pool. Errors: [`HostError::Budget`] when what is left does not hold it with one
    /// slot; what the kernel refuses.
    pub(crate) fn open(shape: BlockShape, pool: &mut Pool, has_disk: bool) -> Result<Class, HostError> {
        let slot_bytes = shape.slot_bytes();
        let host = HostTier::open(HostConfig { rest_millis: REST_MILLIS, ..HostConfig::new(pool.left(), shape) })?;
        let slots = host.layout().slots();
        let below_entries = if has_disk { LOADING_MAX } else { 0 };
        let budgets = Budgets { device_slots: slots, host_slots: 0, below_entries };
        let metadata_bytes = host.layout().metadata_bytes() + budgets.metadata_bytes();
        if metadata_bytes + slot_bytes > pool.left() {
            let minimum_bytes = metadata_bytes + slot_bytes;
            return Err(HostError::Budget { budget_bytes: pool.left(), slot_bytes, minimum_bytes });
        }
        pool.granted_bytes += metadata_bytes;
        let mut shard = Shard::lending(budgets);
        shard.set_device_slots(0);
        host.limit_touched(0);
        let region =
            |extent: &Arc<host_tier::Extent>| Arc::new(ArenaExtent::new(Arc::clone(extent))) as Arc<dyn Region>;
        let regions = host.extents().iter().map(region).collect();
        Ok(Class { shape, host, shard, regions })
    }

    /// Sees to it that `wanted` slots are free, as far as the pool goes and without evicting anything.
    pub(crate) fn grow(&mut self, wanted: u32, pool: &mut Pool) {
        let granted = self.shard.budgets().device_slots;
        let free = granted - self.shard.device_used();
        let affordable = u32::try_from(pool.left() / self.shape.slot_bytes()).unwrap_or(u32::MAX);
        let more = wanted.saturating_sub(free).min(affordable).min(self.host.layout().slots() - granted);
        if more > 0 {
            pool.granted_bytes += u64::from(more) * self.shape.slot_bytes();
            self.shard.set_device_slots(granted + more);
            self.host.limit_touched(u64::from(granted + more));
        }
    }
}
