//! The shard's books, checked against each other: every count is computed again from the entries.

use std::collections::HashMap;

use crate::manager::entry::{CopyState, EntryId};
use crate::manager::shard::{DEVICE, HOST, Shard};

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
            let copies = |state: CopyState| {
                self.slab.ids().filter(move |id| self.slab[*id].copies[tier] == state).count() as u32
            };
            same!("copies that stay", self.used[tier], copies(CopyState::Arriving) + copies(CopyState::Resident));
            same!("copies that leave", self.leaving[tier], copies(CopyState::Leaving));
            let live =
                self.slab.ids().filter(|id| self.slab[*id].live > 0 && self.slab[*id].copies[tier] != CopyState::None);
            same!("live copies", self.live_held[tier], live.count() as u32);
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
        if self.slab.free_entries() < self.open - self.open_held {
            return Err(format!(
                "{} entries are free for {} open blocks, {} of them held",
                self.slab.free_entries(),
                self.open,
                self.open_held
            ));
        }
        self.audit_waiting()?;
        self.audit_entries()
    }

    fn audit_waiting(&self) -> Result<(), String> {
        for (ticket, counted) in self.rooms.iter().map(|room| room.waits_for()) {
            let awaited = |state| {
                let entries = self.slab.ids().map(|id| &self.slab[id]);
                entries.filter(|entry| entry.awaited_by == Some(ticket) && entry.copies[HOST] == state).count() as u32
            };
            same!("awaited demotions and drops", counted, [CopyState::Arriving, CopyState::Leaving].map(awaited));
        }
        Ok(())
    }

    fn audit_entries(&self) -> Result<(), String> {
        let mut children: HashMap<EntryId, (u32, [u32; 2])> = HashMap::new();
        let mut idle = [0; 2];
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
            if entry.is_bare() && entry.live == 0 && entry.children == 0 {
                return Err(format!("{id:?} is kept for nobody"));
            }
            if entry.is_bare() != entry.loss.is_some() {
                return Err(format!("{id:?} has copies {:?} and was lost by {:?}", entry.copies, entry.loss));
            }
            idle[DEVICE] += u32::from(entry.live == 0 && entry.copies[DEVICE] == CopyState::Resident);
            let arriving = entry.copies[DEVICE] == CopyState::Arriving;
            idle[HOST] +=
                u32::from(entry.live == 0 && entry.copies[HOST] == CopyState::Resident && !arriving && !entry.parked);
        }
        for id in self.slab.ids() {
            let (all, staying) = children.get(&id).copied().unwrap_or_default();
            same!("children", self.slab[id].children, all);
            same!("children with copies", self.slab[id].children_in, staying);
        }
        for tier in [DEVICE, HOST] {
            same!("idle candidates", self.candidates.idle(tier).len(), idle[tier]);
        }
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

    /// Blocks that have a copy. O(entries).
    pub fn blocks(&self) -> u32 {
        self.slab.ids().filter(|id| !self.slab[*id].is_bare()).count() as u32
    }
}
