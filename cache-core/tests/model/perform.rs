//! The slots' actions, performed on plain maps.

use cache_core::key::CopyKey;
use cache_core::manager::{Action, CopyEnd, EntryId, Event};
use cache_core::miss::MissReason;
use cache_core::units::Tier;

use super::{Bug, Checked, Copy, Model};
use crate::must;

impl Model {
    pub fn perform(&mut self, action: Action, answers: &mut Vec<Action>) -> Checked {
        let Some(action) = self.perform_on_disk(action)? else {
            return Ok(());
        };
        match action {
            Action::Drop { key, tier: Tier::Device, .. } => self.drop_device(key)?,
            Action::Drop { entry, key, .. } => self.drop_host(entry, key)?,
            Action::Discard { key, tier } => {
                let copies = if tier == Tier::Device { &mut self.device } else { &mut self.host };
                must!(copies.remove(&key).is_some(), "{key:?} is discarded from {tier:?} where it is not");
                if tier == Tier::Device {
                    self.stayed.remove(&key);
                    self.joined.remove(&key);
                } else {
                    self.leased.remove(&key);
                }
            }
            Action::Demote { entry, key } => {
                must!(
                    self.device.get(&key) == Some(&Copy::Committed),
                    "{key:?} is demoted from {:?}",
                    self.device.get(&key)
                );
                must!(!self.host.contains_key(&key), "{key:?} is demoted onto {:?}", self.host.get(&key));
                let child = self.children_in(&self.device, &key).next();
                must!(child.is_none(), "{key:?} is demoted before its child {child:?}");
                if self.host.len() as u32 >= self.budgets.host_slots {
                    must!(!self.leased.is_empty(), "{key:?} is demoted into a full host tier");
                    self.failed_now = true;
                    self.stayed.insert(key);
                    self.enqueue(Event::Demoted { entry, end: CopyEnd::Full })?;
                } else {
                    self.device.insert(key, Copy::Leaving);
                    self.host.insert(key, Copy::Arriving);
                    self.demotions.push((entry, key));
                }
            }
            Action::Promote { entry, key } => {
                let has_source = if self.promotes_from_disk() {
                    self.pins.contains(&key) && self.readers(&key) > 0
                } else {
                    self.host.get(&key) == Some(&Copy::Committed)
                };
                must!(has_source, "{key:?} is promoted from {:?}", self.host.get(&key));
                must!(!self.device.contains_key(&key), "{key:?} is promoted onto {:?}", self.device.get(&key));
                self.device.insert(key, Copy::Arriving);
                self.onboards.push((entry, key));
            }
            Action::Granted { ticket, slots } => {
                let (sequence, wanted, reopens) =
                    self.waiting.remove(&ticket).ok_or(format!("{ticket:?} is granted twice"))?;
                must!(slots == wanted as u32, "{slots} slots for {wanted}");
                self.opens(sequence, wanted, reopens);
                self.open_slots += slots;
                self.granted += 1;
            }
            Action::Refused { ticket, shortage } => {
                let (sequence, wanted, reopens) =
                    self.waiting.remove(&ticket).ok_or(format!("{ticket:?} is refused twice"))?;
                must!(shortage.wanted_slots == wanted as u32, "{shortage:?} for {wanted} slots");
                self.refused += 1;
                self.unwish(sequence, wanted, reopens);
                self.refusal_is_right(wanted as u32)?;
            }
            Action::PendingElsewhere { ticket } => {
                let (sequence, wanted, reopens) =
                    self.waiting.remove(&ticket).ok_or(format!("{ticket:?} is answered twice"))?;
                self.unwish(sequence, wanted, reopens);
            }
            Action::Promoted { ticket, .. } => must!(self.promoting.remove(&ticket), "{ticket:?} is answered twice"),
            other => answers.push(other),
        }
        Ok(())
    }

    fn drop_device(&mut self, key: CopyKey) -> Checked {
        let copy = self.device.remove(&key);
        self.stayed.remove(&key);
        must!(
            matches!(copy, Some(Copy::Committed | Copy::Leaving)),
            "{key:?} is dropped from device memory where it is {copy:?}"
        );
        let below = self.host.get(&key).copied();
        let spilled_idle = self.readers(&key) == 0 && below != Some(Copy::Arriving);
        let pinned = self.pins.contains(&key) && self.disk.contains(&key);
        must!(
            self.readers(&key) == 0 || below == Some(Copy::Committed) || pinned,
            "the last copy of live {key:?} is dropped, host has {below:?}"
        );
        must!(
            copy != Some(Copy::Leaving) || below == Some(Copy::Committed) || pinned || spilled_idle,
            "{key:?} is dropped before its lower write is committed"
        );
        // When a spill has failed, a live block that is also elsewhere makes room, whatever stands on it.
        let covered = self.failures && self.readers(&key) > 0 && (below == Some(Copy::Committed) || pinned);
        let child = self.children_in(&self.device, &key).next();
        must!(
            copy == Some(Copy::Leaving) || child.is_none() || covered,
            "{key:?} goes from device memory before its child {child:?}"
        );
        self.went(key, MissReason::Evicted);
        Ok(())
    }

    fn drop_host(&mut self, entry: EntryId, key: CopyKey) -> Checked {
        must!(
            self.host.get(&key) == Some(&Copy::Committed),
            "{key:?} is dropped from the host where it is {:?}",
            self.host.get(&key)
        );
        let pinned = self.pins.contains(&key) && self.disk.contains(&key);
        // A device copy that leaves is leaving to the disk: the host has this one.
        let spare = pinned || matches!(self.device.get(&key), Some(Copy::Committed | Copy::Leaving));
        must!(self.readers(&key) == 0 || spare, "the last copy of live {key:?} is dropped");
        // A child that a lease keeps was to go first.
        let child = self.children_in(&self.host, &key).find(|child| !self.leased.contains(child));
        must!(
            child.is_none() || (spare && self.readers(&key) > 0),
            "{key:?} goes from the host before its child {child:?}"
        );
        let refused = self.leased.contains(&key) && self.bug != Bug::LeasedEvicted;
        must!(refused || !self.leased.contains(&key), "leased {key:?} is evicted");
        if !refused {
            self.host.remove(&key);
            self.went(key, MissReason::Evicted);
        }
        self.enqueue(Event::Dropped { entry, refused })
    }
}
