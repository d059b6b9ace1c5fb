//! What a shard has seen and done.

use crate::miss::MissReason;
use crate::units::Tier;

/// Counters since the shard was made, and what it holds now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Block hits by tier: device, host, disk.
    pub hits: [u64; 3],
    /// Misses by reason, in the order of [`MissReason::ALL`].
    pub misses: [u64; 11],
    /// Blocks moved device -> host.
    pub demoted_blocks: u64,
    /// Blocks moved host -> device.
    pub promoted_blocks: u64,
    /// Blocks written to the disk.
    pub stored_blocks: u64,
    /// Those of them that a request for room waited for.
    pub spilled_blocks: u64,
    /// Blocks moved disk -> host.
    pub loaded_blocks: u64,
    /// Copies dropped to make room, by tier: device, host.
    pub evicted_blocks: [u64; 2],
    /// Copies lost (failed check, lease lost; on the disk whatever takes a live block's last copy), by tier: device, host, disk.
    pub lost_blocks: [u64; 3],
    /// Requests for room refused.
    pub refused: u64,
}

impl Counters {
    pub(crate) fn miss(&mut self, reason: MissReason) {
        let index = MissReason::ALL.iter().position(|other| *other == reason).expect("ALL names every reason");
        self.misses[index] += 1;
    }
}

/// Index of a tier of this process.
pub(crate) fn side(tier: Tier) -> usize {
    match tier {
        Tier::Device => 0,
        Tier::Host => 1,
        Tier::Disk => 2,
        Tier::Remote => unreachable!("this shard manages [device, host, disk] only"),
    }
}
