//! What tenants may have: a quota holds for memory and for the disk, each by itself.
//!
//! Counted are blocks, not clients: reserved ones, those in the arena, and those on the disk or on their way there. All of it is looked at under the
//! state's lock, where a reservation is made and a load is started, so that no two requests take the same room. A tenant without a quota is not
//! counted at all.

use std::collections::HashMap;

use cache_core::hash::{Namespace, TenantId};
use disk_tier::DiskTier;

use crate::server::class::Class;

/// How often the disk is looked at for figures that belong together.
const LOOKS_MAX: usize = 8;

struct Share {
    quota_bytes: u64,
    namespaces: Vec<Namespace>,
}

/// Quotas of the tenants that have one, by the namespaces that are known.
#[derive(Default)]
pub(crate) struct Quotas {
    shares: HashMap<TenantId, Share>,
    tenants: HashMap<Namespace, TenantId>,
    /// Bytes of slots that are reserved and not committed.
    reserved: HashMap<Namespace, u64>,
}

impl Quotas {
    /// Notes whose a namespace is, when that tenant has a quota.
    pub(crate) fn open(&mut self, namespace: Namespace, tenant: TenantId, quota_bytes: Option<u64>) {
        let Some(quota_bytes) = quota_bytes else {
            return;
        };
        if self.tenants.insert(namespace, tenant).is_none() {
            let share = self.shares.entry(tenant).or_insert(Share { quota_bytes, namespaces: Vec::new() });
            share.namespaces.push(namespace);
        }
    }

    pub(crate) fn reserve(&mut self, namespace: Namespace, bytes: u64) {
        if self.tenants.contains_key(&namespace) {
            *self.reserved.entry(namespace).or_default() += bytes;
        }
    }

    /// A reservation has ended.
    pub(crate) fn settle(&mut self, namespace: &Namespace, bytes: u64) {
        if let Some(reserved) = self.reserved.get_mut(namespace) {
            *reserved -= bytes;
            if *reserved == 0 {
                self.reserved.remove(namespace);
            }
        }
    }

    /// Bytes that the namespace's tenant may still take in memory, and of new blocks in memory and on the disk. `None`: any number. `twice`: bytes of a
    /// namespace that the disk has while they still count as not written.
    pub(crate) fn left(
        &self,
        namespace: &Namespace,
        classes: &[Class],
        disk: Option<&DiskTier>,
        twice: impl Fn(&Namespace) -> u64,
    ) -> Option<Left> {
        let share = &self.shares[self.tenants.get(namespace)?];
        let (mut memory, mut on_disk) = (0, 0);
        for namespace in &share.namespaces {
            let reserved = self.reserved.get(namespace).copied().unwrap_or(0);
            memory += reserved;
            on_disk += disk.map_or(0, |disk| reserved + written(disk, namespace, &twice));
            for class in classes {
                let (census, slot_bytes) = (class.shard.census(namespace), class.shape.slot_bytes());
                memory += u64::from(census.resident) * slot_bytes;
                on_disk += disk.map_or(0, |_| u64::from(census.unwritten) * slot_bytes);
            }
        }
        let loads = share.quota_bytes.saturating_sub(memory);
        Some(Left { loads, stores: loads.min(share.quota_bytes.saturating_sub(on_disk)) })
    }
}

/// Bytes of a namespace on the disk, without those that count elsewhere. The disk ends writes meanwhile: figures that do not belong together are not
/// taken, and if that goes on, all counts.
fn written(disk: &DiskTier, namespace: &Namespace, twice: impl Fn(&Namespace) -> u64) -> u64 {
    let look = || {
        let (before, bytes) = (twice(namespace), disk.bytes_of(namespace));
        (twice(namespace) == before).then(|| bytes.saturating_sub(before))
    };
    (0..LOOKS_MAX).find_map(|_| look()).unwrap_or_else(|| disk.bytes_of(namespace))
}

/// Bytes that are left to a tenant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left {
    /// For blocks that come from the disk.
    pub(crate) loads: u64,
    /// For new ones.
    pub(crate) stores: u64,
}
