//! The shard's books, checked against each other: every count is computed again from the entries.

use std::collections::HashMap;

use crate::key::CopyKey;
use crate::manager::entry::{CopyState, Entry, EntryId};
use crate::manager::shard::{DEVICE, DISK, HOST, Shard};

macro_rules! same {
    ($what:literal, $counted:expr, $found:expr) => {
        let (counted, found) = ($counted, $found);
        if counted != found {
            return Err(format!("{}: counted {counted:?}, found {found:?}", $what));
        }
    };
}

impl Shard {
    /// Checks all counts, lists and limits. O(entries); for tests and diagnosis. Errors: the first contradiction, in words.
    pub fn audit(&self) -> Result<(), String> {
        for tier in [DEVICE, HOST] {
            let copies = |state: CopyState| self.count(|entry| entry.copies[tier] == state);
            same!("copies that stay", self.used[tier], copies(CopyState::Arriving) + copies(CopyState::Resident));
            same!("copies that leave", self.leaving[tier], copies(CopyState::Leaving));
            let live = self.count(|entry| entry.live > 0 && entry.copies[tier] != CopyState::None);
            same!("live copies", self.live_held[tier], live);
        }
        if self.device_used() > self.budgets.device_slots || self.used[HOST] > self.budgets.host_slots {
            return Err(format!(
                "{} device and {} host slots used of {:?}",
                self.device_used(),
                self.used[HOST],
                self.budgets
            ));
        }
        same!("slots set aside", self.aside, self.rooms.iter().map(|room| room.set_aside()).sum::<u32>());
        same!("live blocks below", self.below, self.count(Entry::is_below));
        same!("pins", self.pins, self.count(Entry::is_pinned));
        if self.slab.free_entries() < self.open - self.open_held {
            return Err(format!(
                "{} entries are free for {} open blocks, {} of them held",
                self.slab.free_entries(),
                self.open,
                self.open_held
            ));
        }
        self.audit_waiting()?;
        self.audit_census()?;
        self.audit_entries()
    }

    fn count(&self, is: impl Fn(&Entry) -> bool) -> u32 {
        self.slab.ids().filter(|id| is(&self.slab[*id])).count() as u32
    }

    fn audit_waiting(&self) -> Result<(), String> {
        for (ticket, counted) in self.rooms.iter().map(|room| room.waits_for()) {
            let awaited = |state| self.count(|entry| entry.awaited_by == Some(ticket) && entry.copies[HOST] == state);
            let spills = self.count(|entry| entry.spill.is_some_and(|spill| spill.ticket == ticket));
            let found = [awaited(CopyState::Arriving) + spills, awaited(CopyState::Leaving)];
            same!("awaited copies and drops", counted, found);
        }
        for id in self.promotions.iter().flat_map(|promotion| promotion.loading()) {
            let host = self.slab.get(*id).map(|entry| entry.copies[HOST]);
            same!("copy that is loaded", Some(CopyState::Arriving), host);
        }
        Ok(())
    }

    fn audit_entries(&self) -> Result<(), String> {
        let mut children: HashMap<EntryId, (u32, [u32; 2])> = HashMap::new();
        let (mut idle, mut backed) = ([0; 2], 0);
        for id in self.slab.ids() {
            let entry = &self.slab[id];
            if let Some(parent) = entry.parent {
                let counts = children.entry(parent).or_default();
                counts.0 += 1;
                for tier in [DEVICE, HOST] {
                    counts.1[tier] += u32::from(entry.copies[tier].stays());
                }
            }
            same!("index", self.slab.find(&entry.key), Some(id));
            audit_entry(id, entry)?;
            idle[DEVICE] += u32::from(entry.live == 0 && entry.copies[DEVICE] == CopyState::Resident);
            let arriving = entry.copies[DEVICE] == CopyState::Arriving;
            let leaving = entry.copies[DEVICE] == CopyState::Leaving;
            let in_host = entry.copies[HOST] == CopyState::Resident && !entry.parked;
            idle[HOST] += u32::from(entry.live == 0 && in_host && !arriving && !leaving);
            backed += u32::from(entry.is_pinned() && in_host && entry.copies[DEVICE] == CopyState::None);
        }
        for id in self.slab.ids() {
            let (all, staying) = children.get(&id).copied().unwrap_or_default();
            same!("children", self.slab[id].children, all);
            same!("children with copies", self.slab[id].children_in, staying);
        }
        for tier in [DEVICE, HOST] {
            same!("idle candidates", self.candidates.idle(tier).len(), idle[tier]);
        }
        same!("live host copies with a record", self.candidates.backed(), backed);
        Ok(())
    }

    /// Device slots granted for open blocks.
    pub fn open_slots(&self) -> u32 {
        self.open
    }

    /// Readers of each live entry. O(entries).
    pub fn live_entries(&self) -> HashMap<EntryId, u32> {
        self.slab.ids().map(|id| (id, self.slab[id].live)).filter(|(_, live)| *live > 0).collect()
    }

    /// The records that the disk must keep now, each pinned once. O(entries).
    pub fn pinned(&self) -> Vec<CopyKey> {
        self.slab.ids().map(|id| &self.slab[id]).filter(|entry| entry.is_pinned()).map(|entry| entry.key).collect()
    }

    /// Blocks that have a copy. O(entries).
    pub fn blocks(&self) -> u32 {
        self.count(|entry| !entry.is_bare())
    }
}

fn audit_entry(id: EntryId, entry: &Entry) -> Result<(), String> {
    if entry.is_unused() {
        return Err(format!("{id:?} is kept for nobody"));
    }
    if entry.is_bare() != entry.loss.is_some() {
        return Err(format!("{id:?} has copies {:?} and was lost by {:?}", entry.copies, entry.loss));
    }
    if entry.spill.is_some() && entry.copies[DEVICE] != CopyState::Leaving {
        return Err(format!("{id:?} is spilled with copies {:?}", entry.copies));
    }
    if entry.condemned.is_some() && !entry.in_slots().contains(&CopyState::Arriving) {
        return Err(format!("{id:?} has copies {:?}, none on its way up that could be condemned", entry.copies));
    }
    if entry.copies[DISK] == CopyState::Leaving {
        return Err(format!("{id:?} has a record that leaves"));
    }
    Ok(())
}
