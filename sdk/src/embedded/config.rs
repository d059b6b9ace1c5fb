//! What to open, and how the host budget is split.

use std::sync::Arc;

use cache_core::manager::Budgets;
use cache_core::payload::BlockShape;
use gpu_tier::attention::Attention;
use host_tier::{HostConfig, HostError, HostTier};

use crate::cache::CacheError;
use crate::embedded::Host;
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
    /// Hard limit of host memory in bytes: the arena, its metadata and the manager's index. 0 = no host tier.
    pub host_bytes: u64,
}

/// How a host budget is split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Split {
    /// The manager's index.
    pub(crate) index_bytes: u64,
    /// The host tier.
    pub(crate) tier_bytes: u64,
}

/// Sets the index aside for as many host slots as would fit without one, so the index never has fewer entries than there are slots.
pub(crate) fn split(shape: &BlockShape, device_slots: u32, host_bytes: u64) -> Split {
    let per_slot = shape.slot_bytes() + Budgets::BYTES_PER_ENTRY;
    let fixed = u64::from(device_slots) * Budgets::BYTES_PER_ENTRY;
    let host_slots = u32::try_from(host_bytes.saturating_sub(fixed) / per_slot).unwrap_or(u32::MAX - device_slots);
    let index_bytes = Budgets { device_slots, host_slots }.metadata_bytes();
    Split { index_bytes, tier_bytes: host_bytes.saturating_sub(index_bytes) }
}

/// The smallest host budget that leaves the host tier `tier_bytes`. More budget means more index, but each slot brings more than its
/// entry, so the steps shrink.
fn smallest(shape: &BlockShape, device_slots: u32, tier_bytes: u64) -> u64 {
    let mut host_bytes = tier_bytes;
    loop {
        let missing = tier_bytes.saturating_sub(split(shape, device_slots, host_bytes).tier_bytes);
        if missing == 0 {
            return host_bytes;
        }
        host_bytes += missing;
    }
}

pub(crate) fn open_host(
    device: &Arc<dyn Attention>,
    shape: BlockShape,
    device_slots: u32,
    host_bytes: u64,
    tier_bytes: u64,
) -> Result<Host, CacheError> {
    let tier = HostTier::open(HostConfig::new(tier_bytes, shape)).map_err(|error| match error {
        HostError::Budget { minimum_bytes, .. } => CacheError::Budget {
            what: "a block with its metadata in host memory",
            budget_bytes: host_bytes,
            minimum_bytes: smallest(&shape, device_slots, minimum_bytes),
        },
        other => CacheError::Host(other.to_string()),
    })?;
    let register = |extent: &Arc<host_tier::Extent>| device.register(Arc::new(ArenaExtent::new(Arc::clone(extent))));
    let extents = tier.extents().iter().map(register).collect::<Result<_, _>>()?;
    Ok(Host { tier, extents })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cache_core::form::Form;

    #[test]
    fn index_and_tier_never_exceed_the_budget() {
        let shape = BlockShape { layers: 2, kv_heads: 1, head_dim: 16, block_tokens: 16, form: Form::Raw16 };
        for host_bytes in (0..200).map(|step| step * 33_333) {
            let split = split(&shape, 7, host_bytes);
            if split.tier_bytes > 0 {
                assert_eq!(split.index_bytes + split.tier_bytes, host_bytes);
                let slots = (split.tier_bytes / shape.slot_bytes()) as u32;
                assert!(
                    Budgets { device_slots: 7, host_slots: slots }.metadata_bytes()
                        <= split.index_bytes + Budgets::BYTES_PER_ENTRY
                );
            }
        }
    }
}
