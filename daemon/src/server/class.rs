//! Classes: the blocks of one shape, their slots in the host arena and the manager shard that decides over them.
//!
//! A class is made when a client first names its shape. Its slot table and index are made for the whole host budget, since nobody knows how much of
//! it the class will use; its slots are **granted** one by one out of the budget that all classes share, as they are needed. A slot's pages stay
//! committed once they were touched, so what a class was granted it keeps.

use std::sync::Arc;

use cache_core::buffer::PAGE_BYTES;
use cache_core::manager::{Budgets, Census, Shard};
use cache_core::payload::BlockShape;
use disk_tier::io::Region;
use host_tier::{HostConfig, HostError, HostTier};
use kvtier_sdk::embedded::ArenaExtent;

use crate::server::ages::Watched;

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
    /// Slots that it was granted. The shard may use fewer, since it does not know of those that rest.
    granted: u32,
}

/// The host budget, in bytes. A part of it is set aside for the staging memory of clients: classes keep what they were granted, so without it a
/// full cache would let nobody in any more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pool {
    pub(crate) budget_bytes: u64,
    /// Metadata of the classes, the slots that they were granted, and staging memory.
    pub(crate) granted_bytes: u64,
    /// Of those, staging memory.
    staging_bytes: u64,
    /// What is kept from the classes for staging memory.
    aside_bytes: u64,
    /// Of what is granted, the attic.
    attic_bytes: u64,
}

impl Pool {
    /// Sets an eighth aside, or `staging_bytes`, what one client may have, if that is more, but no more than a quarter.
    pub(crate) fn new(budget_bytes: u64, staging_bytes: u64) -> Pool {
        let aside_bytes = (budget_bytes / 8).max(staging_bytes).min(budget_bytes / 4);
        Pool { budget_bytes, granted_bytes: 0, staging_bytes: 0, aside_bytes, attic_bytes: 0 }
    }

    /// Takes staging memory for a client that has blocks of `least` bytes to hand over: `most` bytes, unless that is more than half of what there
    /// is; then a quarter of that, in whole pages, since others may come after it. `None` when there is not even `least`. Both are whole pages.
    pub(crate) fn share_staging(&mut self, least_bytes: u64, most_bytes: u64) -> Option<u64> {
        let free = self.budget_bytes - self.granted_bytes;
        let share =
            if most_bytes <= free / 2 { most_bytes } else { (free / 4 / PAGE_BYTES * PAGE_BYTES).min(most_bytes) };
        let bytes = share.max(least_bytes);
        self.take_staging(bytes).then_some(bytes)
    }

    /// Takes staging memory; false when it is not there.
    pub(crate) fn take_staging(&mut self, bytes: u64) -> bool {
        let fits = bytes <= self.budget_bytes - self.granted_bytes;
        if fits {
            self.granted_bytes += bytes;
            self.staging_bytes += bytes;
        }
        fits
    }

    /// Gives it back.
    pub(crate) fn give_staging_back(&mut self, bytes: u64) {
        self.granted_bytes -= bytes;
        self.staging_bytes -= bytes;
    }

    /// Takes the attic's bytes, at most what is left.
    pub(crate) fn take_attic(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.left(), "the attic is cut to what is left");
        self.granted_bytes += bytes;
        self.attic_bytes += bytes;
    }

    /// Gives a part of them back.
    pub(crate) fn give_attic_back(&mut self, bytes: u64) {
        self.granted_bytes -= bytes;
        self.attic_bytes -= bytes;
    }

    /// What classes may still have.
    fn left(&self) -> u64 {
        let aside = self.aside_bytes.saturating_sub(self.staging_bytes);
        (self.budget_bytes - self.granted_bytes).saturating_sub(aside)
    }
}

impl Class {
    /// Makes a class without slots, and takes its metadata out of the pool. Errors: [`HostError::Budget`] when what is left does not hold it with one
    /// slot; what the kernel refuses.
    pub(crate) fn open(shape: BlockShape, pool: &mut Pool, has_disk: bool) -> Result<Class, HostError> {
        let slot_bytes = shape.slot_bytes();
        let host = HostTier::open(HostConfig {
            rest_millis: REST_MILLIS,
            ..HostConfig::new(pool.left() + pool.attic_bytes, shape)
        })?;
        let slots = host.layout().slots();
        let below_entries = if has_disk { LOADING_MAX } else { 0 };
        let budgets = Budgets { device_slots: slots, host_slots: 0, below_entries };
        let metadata_bytes = host.layout().metadata_bytes()
            + budgets.metadata_bytes()
            + u64::from(slots) * (Census::BYTES_PER_SLOT + Watched::BYTES_PER_SLOT);
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
        Ok(Class { shape, host, shard, regions, granted: 0 })
    }

    /// Whether slots are to be touched ahead of their use: fewer than `ahead_bytes` of free ones have been. Grants one more where all have, out of what the
    /// pool can do without: as much again stays for a class that comes later.
    pub(crate) fn wants_touched(&mut self, ahead_bytes: u64, pool: &mut Pool) -> bool {
        let slot_bytes = self.shape.slot_bytes();
        if self.host.touched_free() * slot_bytes >= ahead_bytes {
            return false;
        }
        let (granted, used) = (self.granted, self.shard.device_used());
        if self.host.has_untouched() || granted == self.host.layout().slots() {
            return self.host.has_untouched();
        }
        if pool.left() < ahead_bytes + slot_bytes {
            return false;
        }
        self.grow(granted - used + 1, pool);
        self.host.has_untouched()
    }

    /// True when fewer than `wanted` slots are free and the class could take more than it was granted.
    pub(crate) fn is_short_of(&self, wanted: u32) -> bool {
        self.free() < wanted && self.granted < self.host.layout().slots()
    }

    /// Granted slots with nothing in them.
    pub(crate) fn unused(&self) -> u32 {
        self.granted - self.shard.device_used()
    }

    /// Of those, the ones that can be had now.
    fn free(&self) -> u32 {
        self.unused().saturating_sub(self.host.resting())
    }

    /// Sees to it that `wanted` slots are free, as far as the pool goes and without evicting anything. Where it does not go so far, the shard evicts: it is
    /// told of the free slots alone, since a block that was promised one that rests would be turned away when it is there.
    pub(crate) fn grow(&mut self, wanted: u32, pool: &mut Pool) {
        let affordable = u32::try_from(pool.left() / self.shape.slot_bytes()).unwrap_or(u32::MAX);
        let more = wanted.saturating_sub(self.free()).min(affordable).min(self.host.layout().slots() - self.granted);
        if more > 0 {
            pool.granted_bytes += u64::from(more) * self.shape.slot_bytes();
            self.granted += more;
            self.host.limit_touched(u64::from(self.granted));
        }
        self.shard.set_device_slots(self.shard.device_used() + self.free());
    }
}

#[cfg(test)]
mod tests {
    use cache_core::form::Form;
    use cache_core::store::Store;

    use super::*;

    const SHAPE: BlockShape = BlockShape { layers: 2, kv_heads: 1, head_dim: 16, block_tokens: 16, form: Form::Raw16 };

    #[test]
    fn a_full_cache_still_lets_clients_in() {
        let (budget, staging) = (32 << 20, 1 << 20);
        let mut pool = Pool::new(budget, staging);
        let mut class = Class::open(SHAPE, &mut pool, false).unwrap();
        class.grow(u32::MAX, &mut pool);
        assert!(pool.left() < SHAPE.slot_bytes(), "the class has all that it may have");
        assert!((0..4).all(|_| pool.take_staging(staging)) && pool.granted_bytes <= budget);
        assert!(!pool.take_staging(budget - pool.granted_bytes + 1), "the budget is a hard limit");
        pool.give_staging_back(staging);
        class.grow(u32::MAX, &mut pool);
        assert!(pool.take_staging(staging), "what was given back is for the next client");
    }

    #[test]
    fn staging_memory_is_shared_before_it_runs_out() {
        let (budget, most, least) = (64 << 20, 16 << 20, 1 << 20);
        let mut pool = Pool::new(budget, most);
        let shares: Vec<u64> = std::iter::from_fn(|| pool.share_staging(least, most)).collect();
        assert_eq!(shares[..2], [most, most], "as long as as much is left for others");
        assert!(shares.windows(2).all(|pair| pair[1] <= pair[0]) && shares.len() > 8, "{shares:?}");
        assert!(shares.iter().all(|bytes| (least..=most).contains(bytes) && bytes.is_multiple_of(PAGE_BYTES)));
        assert!(pool.granted_bytes <= budget && budget - pool.granted_bytes < least, "the budget is a hard limit");
    }

    #[test]
    fn free_slots_are_touched_ahead_as_long_as_others_could_still_come() {
        let ahead_bytes = 4 << 20;
        let mut pool = Pool::new(32 << 20, 1 << 20);
        let mut class = Class::open(SHAPE, &mut pool, false).unwrap();
        let touch = |class: &mut Class, pool: &mut Pool| {
            while class.wants_touched(ahead_bytes, pool) {
                assert!(
                    class.host.touch_ahead(64 << 10).unwrap() > 0,
                    "there is something to do when there is said to be"
                );
            }
            class.host.touched_free() * SHAPE.slot_bytes()
        };
        let ahead = touch(&mut class, &mut pool);
        assert!((ahead_bytes..ahead_bytes + SHAPE.slot_bytes()).contains(&ahead), "{ahead} bytes");
        assert!(class.host.capacity().held_bytes <= pool.granted_bytes, "what is touched was granted");
        let mut taken = Vec::new();
        while let Ok(slot) = class.host.reserve_open() {
            taken.push(slot);
            touch(&mut class, &mut pool);
        }
        let left = pool.left();
        assert!((ahead_bytes..ahead_bytes + SHAPE.slot_bytes()).contains(&left), "{left} bytes are left for others");
    }
}
