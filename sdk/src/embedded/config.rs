//! What to open, and how the host budget is split.

use std::sync::Arc;

use cache_core::buffer::PAGE_BYTES;
use cache_core::manager::Budgets;
use cache_core::payload::BlockShape;
use disk_tier::DiskTier;
use gpu_tier::attention::Attention;
use host_tier::{HostConfig, HostError, HostTier};

use crate::cache::CacheError;
use crate::client::ClientSettings;
use crate::embedded::Host;
use crate::embedded::disk::{Aside, DiskSettings, DiskStore, Reserved, Writes, bounce_bytes, record_bytes};
use crate::embedded::extents::ArenaExtent;

/// Settings of [`crate::embedded::Embedded`].
#[derive(Clone)]
pub struct EmbeddedConfig {
    /// Where blocks are attended.
    pub device: Arc<dyn Attention>,
    /// The one shape of the blocks.
    pub shape: BlockShape,
    /// Blocks that device memory holds, at least 1; their bytes are allocated from the device's budget at once.
    pub device_slots: u32,
    /// Hard limit of host memory in bytes: the arena, its metadata, the manager's index and the disk tier's. 0 = no host tier.
    pub host_bytes: u64,
    /// The disk tier, under a host tier; `None` = no disk.
    pub disk: Option<DiskSettings>,
}

/// A daemon below the device: see [`crate::embedded::Embedded::over_daemon`].
#[derive(Clone, Debug)]
pub struct DaemonSettings {
    /// Where it is, and how long it may take.
    pub client: ClientSettings,
    /// Live blocks that only the daemon has, at most.
    pub live_blocks: u32,
    /// Which published blocks are handed over.
    pub writes: Writes,
}

/// How a host budget is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Split {
    /// The manager's index, and the disk tier's index and bounce memory.
    pub(crate) index_bytes: u64,
    /// The host tier.
    pub(crate) tier_bytes: u64,
}

/// What is to be split: everything about an embedded cache that takes host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HostPlan {
    pub(crate) shape: BlockShape,
    pub(crate) device_slots: u32,
    pub(crate) host_bytes: u64,
    /// Live blocks on the disk only.
    pub(crate) below_entries: u32,
    pub(crate) disk_index_bytes: u64,
    /// The store is this cache's own, and its bounce memory with it.
    pub(crate) owns_store: bool,
}

impl HostPlan {
    pub(crate) fn of(config: &EmbeddedConfig) -> HostPlan {
        let disk = config.disk.as_ref();
        HostPlan {
            shape: config.shape,
            device_slots: config.device_slots,
            host_bytes: config.host_bytes,
            below_entries: disk.map_or(0, |disk| disk.live_blocks),
            disk_index_bytes: disk.map_or(0, |disk| {
                disk.store.budget_bytes() / record_bytes(&config.shape) * DiskTier::index_record_bytes()
            }),
            owns_store: disk.is_some_and(|disk| matches!(disk.store, DiskStore::Own(_))),
        }
    }

    /// The disk tier's own memory for staged records.
    fn bounce_bytes(&self) -> u64 {
        if self.owns_store { bounce_bytes(&self.shape, self.host_bytes) } else { 0 }
    }

    /// The manager's budgets with so many host slots.
    pub(crate) fn budgets(&self, host_slots: u32) -> Budgets {
        Budgets { device_slots: self.device_slots, host_slots, below_entries: self.below_entries }
    }

    /// Sets the index aside for as many host slots as would fit without one, so the index never has fewer entries than there are slots.
    pub(crate) fn split(&self) -> Split {
        let per_slot = self.shape.slot_bytes() + Budgets::BYTES_PER_ENTRY;
        let below_bytes = self.disk_index_bytes + self.bounce_bytes();
        let fixed = below_bytes + self.budgets(0).metadata_bytes();
        let most = u32::MAX - self.device_slots - self.below_entries;
        let host_slots = u32::try_from(self.host_bytes.saturating_sub(fixed) / per_slot).unwrap_or(most);
        let index_bytes = below_bytes + self.budgets(host_slots).metadata_bytes();
        Split { index_bytes, tier_bytes: self.host_bytes.saturating_sub(index_bytes) }
    }

    /// The smallest host budget that leaves the host tier `tier_bytes`. More budget means more index, but each slot brings more than its
    /// entry, so the steps shrink.
    fn smallest(&self, tier_bytes: u64) -> u64 {
        let mut host_bytes = tier_bytes;
        loop {
            let missing = tier_bytes.saturating_sub(HostPlan { host_bytes, ..*self }.split().tier_bytes);
            if missing == 0 {
                return host_bytes;
            }
            host_bytes += missing;
        }
    }
}

pub(crate) fn open_host(device: &Arc<dyn Attention>, plan: &HostPlan) -> Result<Host, CacheError> {
    let config = HostConfig::new(plan.split().tier_bytes, plan.shape);
    let tier = HostTier::open(config).map_err(|error| match error {
        HostError::Budget { minimum_bytes, .. } => CacheError::Budget {
            what: "a block with its metadata in host memory",
            budget_bytes: plan.host_bytes,
            minimum_bytes: plan.smallest(minimum_bytes),
        },
        other => CacheError::Host(other.to_string()),
    })?;
    let register = |extent: &Arc<host_tier::Extent>| device.register(Arc::new(ArenaExtent::new(Arc::clone(extent))));
    let extents = tier.extents().iter().map(register).collect::<Result<_, _>>()?;
    Ok(Host { tier, extents })
}

/// The disk's bounce memory, beside which at least one host slot is left for blocks. Errors: [`CacheError::Budget`].
pub(crate) fn set_aside(plan: &HostPlan, host: &Host, pieces_min: u32) -> Result<Reserved, CacheError> {
    let slots = host.tier.layout().slots();
    let aside = Aside::of(&plan.shape, slots, pieces_min);
    if aside.slots() < slots {
        return Ok(Reserved { aside, bounce_bytes: plan.bounce_bytes() });
    }
    let missing = u64::from(aside.slots() + 1 - slots);
    Err(CacheError::Budget {
        what: "a block and the disk's bounce memory in host memory",
        budget_bytes: plan.host_bytes,
        minimum_bytes: plan.host_bytes + missing * (plan.shape.slot_bytes() + Budgets::BYTES_PER_ENTRY + PAGE_BYTES),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cache_core::form::Form;

    #[test]
    fn index_and_tier_never_exceed_the_budget() {
        let shape = BlockShape { layers: 2, kv_heads: 1, head_dim: 16, block_tokens: 16, form: Form::Raw16 };
        for host_bytes in (0..200).map(|step| step * 33_333) {
            let plan = HostPlan {
                shape,
                device_slots: 7,
                host_bytes,
                below_entries: 3,
                disk_index_bytes: 999,
                owns_store: true,
            };
            let split = plan.split();
            if split.tier_bytes > 0 {
                assert_eq!(split.index_bytes + split.tier_bytes, host_bytes);
                let slots = (split.tier_bytes / shape.slot_bytes()) as u32;
                assert!(
                    plan.budgets(slots).metadata_bytes() + 999 + plan.bounce_bytes()
                        <= split.index_bytes + Budgets::BYTES_PER_ENTRY
                );
            }
        }
    }
}
