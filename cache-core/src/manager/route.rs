//! Which shard serves a chain.

use crate::hash::Namespace;
use crate::manager::shard::{Budgets, Shard};

/// Shards, routed by namespace.
///
/// A block's parent is always a block of the same namespace (the namespace is hashed into both), so routing by namespace keeps a whole
/// chain in one shard: parent and child counts never cross shards. The root block's hash would spread one busy namespace over several
/// shards with the same property, but an open block whose chain starts in decode has no root hash yet, and a split of the budgets by
/// root would refuse a sequence that fits the whole.
#[derive(Debug)]
pub struct CacheManager {
    shards: Vec<Shard>,
}

impl CacheManager {
    /// `shards` shards that share the budgets evenly; the first ones take the remainder. Panics when `shards` is 0.
    pub fn new(shards: u32, budgets: Budgets) -> CacheManager {
        assert!(shards > 0, "a manager has at least one shard");
        let share = |slots: u32, index: u32| slots / shards + u32::from(index < slots % shards);
        let part = |index| Budgets {
            device_slots: share(budgets.device_slots, index),
            host_slots: share(budgets.host_slots, index),
            below_entries: share(budgets.below_entries, index),
        };
        CacheManager { shards: (0..shards).map(|index| Shard::new(part(index))).collect() }
    }

    /// Number of the shard that serves a namespace. A namespace is a digest, so any eight of its bytes spread evenly.
    pub fn route(&self, namespace: Namespace) -> usize {
        let word = u64::from_le_bytes(namespace.bytes()[..8].try_into().expect("8 of 32 bytes"));
        (word % self.shards.len() as u64) as usize
    }

    /// The shard that serves a namespace.
    pub fn shard_of(&mut self, namespace: Namespace) -> &mut Shard {
        let index = self.route(namespace);
        &mut self.shards[index]
    }

    /// All shards.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_shared_without_a_rest_and_namespaces_stay_put() {
        let manager = CacheManager::new(3, Budgets { device_slots: 10, host_slots: 5, below_entries: 4 });
        let sum = |pick: fn(&Budgets) -> u32| manager.shards().iter().map(|shard| pick(&shard.budgets())).sum::<u32>();
        assert_eq!((sum(|b| b.device_slots), sum(|b| b.host_slots), sum(|b| b.below_entries)), (10, 5, 4));
        let routes: Vec<usize> = (0..=255u8).map(|byte| manager.route(Namespace([byte; 32]))).collect();
        assert_eq!(routes, (0..=255u8).map(|byte| manager.route(Namespace([byte; 32]))).collect::<Vec<_>>());
        assert!((0..3).all(|shard| routes.contains(&shard)));
    }
}
