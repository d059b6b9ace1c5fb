//! The model's disk: an index of records, some of them pinned, that may lose any other at any time.

use cache_core::chain::Link;
use cache_core::key::CopyKey;
use cache_core::manager::{Action, Below, CopyEnd, CopyState, EntryId, Event};
use cache_core::miss::MissReason;
use cache_core::units::Tier;

use super::{Checked, Copy, HOME, Model};
use crate::must;

impl Model {
    pub fn has_disk(&self) -> bool {
        self.budgets.below_entries > 0
    }

    /// Without host slots a promotion reads the record.
    pub fn promotes_from_disk(&self) -> bool {
        self.budgets.host_slots == 0
    }

    /// What the driver finds for links: the truth, or an offline disk.
    pub fn look_below(&mut self, links: &[Link]) -> Vec<Below> {
        let offline = self.failures && self.random.chance(5);
        let look = |link: &Link| match self.disk.contains(&CopyKey::exact(HOME, link.hash)) {
            _ if offline => Err(MissReason::TierOffline),
            true => Ok(()),
            false => Err(MissReason::NeverStored),
        };
        if self.has_disk() { links.iter().map(look).collect() } else { Vec::new() }
    }

    /// A live block for which no slot stands, or soon none will.
    pub fn is_below(&self, key: &CopyKey) -> bool {
        let below = match (self.device.get(key), self.host.get(key)) {
            (None, host) => host != Some(&Copy::Committed),
            (Some(Copy::Leaving), host) => return host.is_none(),
            _ => false,
        };
        self.readers(key) > 0 && below
    }

    pub fn live_below(&self) -> u32 {
        let known: std::collections::BTreeSet<&CopyKey> = self.readers.keys().chain(self.device.keys()).collect();
        known.into_iter().filter(|key| self.is_below(key)).count() as u32
    }

    /// The device copy leaves to the disk.
    pub fn is_spilling(&self, key: &CopyKey) -> bool {
        self.device.get(key) == Some(&Copy::Leaving) && self.host.get(key) != Some(&Copy::Arriving)
    }

    pub fn is_on_its_way(&self, key: &CopyKey) -> bool {
        self.stores.iter().any(|(stored, _)| stored == key)
    }

    pub fn pin(&mut self, entry: EntryId, key: CopyKey) -> Checked {
        must!(self.pins.insert(key), "{key:?} is pinned twice");
        must!(self.readers(&key) > 0, "{key:?} is pinned for nobody");
        if self.disk.contains(&key) {
            return Ok(());
        }
        must!(self.failures || self.readable(&key).is_some(), "live {key:?} cannot be pinned and has no other copy");
        self.loses_record(&key, MissReason::Evicted);
        self.enqueue(Event::Lost { entry, tier: Tier::Disk, reason: MissReason::Evicted })
    }

    pub fn unpin(&mut self, key: &CopyKey) -> Checked {
        must!(self.pins.remove(key), "{key:?} is unpinned and was not pinned");
        Ok(())
    }

    /// A record of a live block is about to be reported lost.
    pub fn loses_record(&mut self, key: &CopyKey, reason: MissReason) {
        let last = self.readers(key) > 0 && self.readable(key).is_none();
        self.misses += u64::from(last || reason == MissReason::FailedCheck);
        self.went(*key, reason);
    }

    /// A spill may join a write that is under way; no action tells so.
    pub fn see_joined_spills(&mut self, actions: &[Action]) -> Checked {
        let spills = |other: &CopyKey| {
            let spill = |action: &Action| matches!(action, Action::Store { key, spill: true, .. } if key == other);
            actions.iter().chain(&self.queue).any(spill)
        };
        for key in self.stores.iter().map(|(key, _)| *key).filter(|key| !spills(key)).collect::<Vec<_>>() {
            let copies = self.shard.view(&key).map(|(_, view)| view.copies);
            let leaves = matches!(copies, Some([CopyState::Leaving, CopyState::None | CopyState::Leaving, _]));
            if leaves && self.device.get(&key) == Some(&Copy::Committed) {
                must!(self.readers(&key) > 0, "{key:?} is spilled for nobody");
                self.device.insert(key, Copy::Leaving);
                self.joined.insert(key);
            }
        }
        Ok(())
    }

    pub fn store(&mut self, key: CopyKey, spill: bool) -> Checked {
        let source = self.device.get(&key);
        must!(self.has_disk(), "{key:?} is stored where there is no disk");
        must!(spill || self.unstored.remove(&key), "{key:?} is stored again");
        must!(!spill || self.readers(&key) > 0, "{key:?} is spilled for nobody");
        must!(source == Some(&Copy::Committed), "{key:?} is stored from device memory where it is {source:?}");
        if spill {
            self.device.insert(key, Copy::Leaving);
        }
        must!(!self.pins.contains(&key), "{key:?} is stored and known to be on the disk");
        if self.random.chance(if spill && !self.failures { 0 } else { 10 }) {
            return self.stored(key, spill, CopyEnd::Full);
        }
        self.stores.push((key, spill));
        Ok(())
    }

    /// Ends a write and tells the shard.
    pub fn stored(&mut self, key: CopyKey, spill: bool, end: CopyEnd) -> Checked {
        let known = self.shard.view(&key).is_some_and(|(_, view)| view.copies[2] == CopyState::Resident);
        let own = self.is_spilling(&key) && !self.joined.contains(&key);
        if !spill && own && matches!(end, CopyEnd::Full | CopyEnd::Failed) {
            return self.enqueue(Event::Stored { key, spill, end });
        }
        let joined = self.joined.remove(&key);
        match end {
            CopyEnd::Done => drop(self.disk.insert(key)),
            CopyEnd::Full | CopyEnd::Failed => {
                // A write-behind may be turned down at any time; a spill that had joined it goes on by itself.
                self.failed_now |= self.failures;
                let again = end == CopyEnd::Full && self.readers(&key) > 0 && joined;
                if self.is_spilling(&key) && !known {
                    self.device.insert(key, Copy::Committed);
                    self.stayed.extend((!again).then_some(key));
                }
            }
            CopyEnd::Damaged | CopyEnd::SourceLost => {
                self.failed_now = true;
                let there = matches!(self.device.get(&key), Some(Copy::Committed | Copy::Leaving));
                self.misses += u64::from(there);
            }
        }
        self.enqueue(Event::Stored { key, spill, end })
    }

    pub fn load(&mut self, entry: EntryId, key: CopyKey) -> Checked {
        must!(self.readers(&key) > 0, "{key:?} is loaded for nobody");
        must!(!self.device.contains_key(&key), "{key:?} is loaded beside a device copy");
        must!(!self.host.contains_key(&key), "{key:?} is loaded onto {:?}", self.host.get(&key));
        must!(self.pins.contains(&key), "{key:?} is loaded and not pinned");
        if self.host.len() as u32 >= self.budgets.host_slots {
            must!(!self.leased.is_empty(), "{key:?} is loaded into a full host tier");
            return self.enqueue(Event::Loaded { entry, end: CopyEnd::Full });
        }
        self.host.insert(key, Copy::Arriving);
        self.loads.push((entry, key));
        Ok(())
    }

    /// The disk makes room for itself: any record may go that is not pinned.
    pub fn reclaim(&mut self) {
        let loose: Vec<CopyKey> = self.disk.difference(&self.pins).copied().collect();
        if !loose.is_empty() {
            let key = loose[self.random.below(loose.len())];
            self.disk.remove(&key);
        }
    }

    /// The shard's view of a record.
    pub fn compare_record(&self, key: &CopyKey, state: CopyState) -> Checked {
        match state {
            CopyState::None => {}
            CopyState::Arriving => must!(self.is_on_its_way(key), "{key:?} is not on its way to the disk"),
            CopyState::Resident => {
                let there = self.readers(key) == 0 || self.disk.contains(key);
                must!(there, "live {key:?} is not on the disk, the shard says it is");
            }
            CopyState::Leaving => return Err(format!("{key:?} leaves the disk")),
        }
        Ok(())
    }

    pub fn compare_disk(&self) -> Checked {
        let wanted: std::collections::BTreeSet<CopyKey> = self.shard.pinned().into_iter().collect();
        must!(wanted == self.pins, "{:?} are pinned, the shard wants {wanted:?}", self.pins);
        let (found, counted) = (self.live_below(), self.shard.below());
        must!(found == counted, "{found} live blocks without a slot, the shard counts {counted}");
        if self.failures {
            return Ok(());
        }
        must!(found <= self.budgets.below_entries, "{found} live blocks below, {:?}", self.budgets);
        for key in self.readers.iter().filter(|(_, readers)| **readers > 0).map(|(key, _)| key) {
            let there = self.readable(key).is_some() || self.disk.contains(key);
            must!(there, "live {key:?} has no copy");
        }
        Ok(())
    }

    /// Actions that name the disk; others are given back.
    pub fn perform_on_disk(&mut self, action: Action) -> Result<Option<Action>, String> {
        match action {
            Action::Pin { entry, key } => self.pin(entry, key)?,
            Action::Unpin { key } => self.unpin(&key)?,
            Action::Store { key, spill, .. } => self.store(key, spill)?,
            Action::Load { entry, key } => self.load(entry, key)?,
            Action::Discard { key, tier: Tier::Disk } => {
                must!(!self.pins.contains(&key), "{key:?} is discarded while it is pinned");
                self.disk.remove(&key);
            }
            other => return Ok(Some(other)),
        }
        Ok(None)
    }
}
