//! What an acquire must answer.

use cache_core::chain::Link;
use cache_core::form::Provenance;
use cache_core::key::CopyKey;
use cache_core::manager::Below;
use cache_core::miss::MissReason;
use cache_core::units::Tier;

use super::{HOME, Model};

impl Model {
    /// The tiers of the hits, and what the reason of the miss after them may be.
    pub fn expected(&self, links: &[Link], below: &[Below]) -> (Vec<Tier>, Option<Vec<MissReason>>) {
        let mut tiers = Vec::new();
        let mut under = self.live_below();
        let mut new = 0;
        for (link, record) in links.iter().zip(below) {
            let key = CopyKey::exact(HOME, link.hash);
            if let Some(tier) = self.readable(&key) {
                tiers.push(tier);
                continue;
            }
            if let Err(reason) = record {
                return (tiers, Some(self.reasons(&key, *reason)));
            }
            let unknown = self.shard.view(&key).is_none();
            let sinks = self.readers(&key) == 0 && !self.device.contains_key(&key);
            if (sinks && under >= self.budgets.below_entries) || (unknown && new >= self.spare_entries()) {
                return (tiers, Some(vec![MissReason::Quota]));
            }
            under += u32::from(sinks);
            new += u32::from(unknown);
            tiers.push(Tier::Disk);
        }
        (tiers, None)
    }

    /// Entries that no open block will need.
    fn spare_entries(&self) -> u32 {
        let reopening = |id: &u64| self.waiting.values().any(|(waiting, _, reopens)| waiting == id && *reopens);
        let reopened = |(id, sequence): (&u64, &super::Sequence)| sequence.reopened.is_some() && !reopening(id);
        let held = self.sequences.iter().filter(|sequence| reopened(*sequence)).count() as u32;
        (self.budgets.entries() - self.shard.entries()).saturating_sub(self.open_slots - held)
    }

    fn reasons(&self, key: &CopyKey, below: MissReason) -> Vec<MissReason> {
        let tainted = CopyKey { provenance: Provenance(9), ..*key };
        if self.readable(&tainted).is_some() || self.pins.contains(&tainted) {
            return vec![MissReason::Provenance];
        }
        let mut reasons: Vec<MissReason> = self.gone.get(key).copied().into_iter().collect();
        if self.has_disk() {
            // Its last copy may have gone from a slot while the disk had a record, or the disk's record after that.
            reasons.extend([below, MissReason::Evicted]);
            if self.failures {
                reasons.extend([MissReason::TierOffline, MissReason::LeaseLost]);
            }
        } else if reasons.is_empty() || self.shard.forgotten_until().is_some() {
            reasons.push(MissReason::NeverStored);
        }
        reasons
    }
}
