//! The disk under the shard's slots: what is written there, what must be kept there, and what is lost there.
//!
//! | why | which blocks | who waits |
//! |---|---|---|
//! | write-behind | each block when it is published, unless the disk is known to have it; once, whatever becomes of the write | nobody |
//! | spill | a live block that must leave device memory while the host is full of live blocks | the request for room |
//!
//! A write outlives whatever it was for: when it ends, the entry may be gone, or be another one of the same block. So its end is told by
//! key, and a record that is there is a copy of the block, whoever wrote it. A spill joins a write-behind that is under way; if the disk turns
//! that one down, the block is written once more, for its own sake.
//!
//! **Pins.** A live block with a record is pinned, whatever other copies it has: they may be dropped at any time because of the record.
//! [`Action::Pin`] is given when a block with a record becomes live or a live block gets its record, [`Action::Unpin`] when it is no longer
//! live or the record is lost; there is at most one pin per key at a time.

use crate::key::CopyKey;
use crate::manager::action::{Action, Actions};
use crate::manager::entry::{CopyState, EntryId, Spill};
use crate::manager::event::{CopyEnd, Ticket};
use crate::manager::shard::{DEVICE, DISK, Shard};
use crate::miss::MissReason;
use crate::units::Tier;

impl Shard {
    pub(crate) fn set_disk(&mut self, id: EntryId, state: CopyState, actions: &mut Actions) {
        let (pinned, counted) = (self.slab[id].is_pinned(), self.counts(id));
        self.slab[id].copies[DISK] = state;
        self.recount(id, counted);
        self.candidates.refresh(&mut self.slab, id);
        self.pin_or_unpin(id, pinned, actions);
    }

    /// Tells the disk what to keep, after a change of an entry that was `pinned` before it.
    pub(crate) fn pin_or_unpin(&mut self, id: EntryId, pinned: bool, actions: &mut Actions) {
        let entry = &self.slab[id];
        match (pinned, entry.is_pinned()) {
            (false, true) => {
                self.pins += 1;
                actions.push(Action::Pin { entry: id, key: entry.key });
            }
            (true, false) => {
                self.pins -= 1;
                actions.push(Action::Unpin { key: entry.key });
            }
            _ => {}
        }
    }

    /// The disk has a record of this block.
    pub(crate) fn stands_on_disk(&mut self, id: EntryId, actions: &mut Actions) {
        self.slab[id].loss = None;
        self.ghosts.forget(&self.slab[id].key);
        self.set_disk(id, CopyState::Resident, actions);
    }

    pub(crate) fn store(&mut self, id: EntryId, spill: bool, actions: &mut Actions) {
        self.set_disk(id, CopyState::Arriving, actions);
        actions.push(Action::Store { entry: id, key: self.slab[id].key, spill });
    }

    /// Lets a device copy leave to the disk; `ticket` waits for it.
    pub(crate) fn spill(&mut self, id: EntryId, ticket: Ticket, actions: &mut Actions) {
        let joined = self.slab[id].copies[DISK] == CopyState::Arriving;
        self.slab[id].spill = Some(Spill { ticket, joined });
        self.set_copy(id, DEVICE, CopyState::Leaving);
        if !joined {
            self.store(id, true, actions);
        }
    }

    pub(crate) fn stored(&mut self, key: CopyKey, spill: bool, end: CopyEnd, actions: &mut Actions) {
        if end == CopyEnd::Done {
            self.counters.stored_blocks += 1;
            self.ghosts.forget(&key);
        }
        let Some(id) = self.slab.find(&key) else {
            return;
        };
        let turned_down = matches!(end, CopyEnd::Full | CopyEnd::Failed);
        if turned_down && !spill && self.slab[id].spill.is_some_and(|spill| !spill.joined) {
            // An earlier write of the block; the one that the copy leaves with is still under way.
            return;
        }
        match end {
            CopyEnd::Done if !self.slab[id].on_disk() => self.stands_on_disk(id, actions),
            CopyEnd::Done => {}
            _ if self.slab[id].copies[DISK] == CopyState::Arriving => self.set_disk(id, CopyState::None, actions),
            _ => {}
        }
        match end {
            CopyEnd::Done | CopyEnd::Full | CopyEnd::Failed => self.end_spill(id, end, actions),
            CopyEnd::Damaged => self.lost(id, Tier::Device, MissReason::FailedCheck, actions),
            CopyEnd::SourceLost => self.lost(id, Tier::Device, MissReason::LeaseLost, actions),
        }
    }

    /// The write that a device copy waited for has ended: the copy goes if there is a record, and stays otherwise.
    fn end_spill(&mut self, id: EntryId, end: CopyEnd, actions: &mut Actions) {
        let Some(Spill { ticket, joined }) = self.slab[id].spill.take() else {
            return;
        };
        if !self.slab[id].on_disk() {
            if joined && end == CopyEnd::Full && self.slab[id].live > 0 {
                self.slab[id].spill = Some(Spill { ticket, joined: false });
                self.store(id, true, actions);
                return;
            }
            self.stay_on_device(id, actions);
            // A write-behind that was turned down says nothing of what the disk does for a live block.
            self.spill_ended(ticket, (!joined).then_some(end), actions);
            return;
        }
        self.counters.spilled_blocks += 1;
        actions.push(Action::Drop { entry: id, key: self.slab[id].key, tier: Tier::Device });
        self.set_copy(id, DEVICE, CopyState::None);
        self.free_if_unused(id);
        self.spill_ended(ticket, None, actions);
    }

    /// A record is gone, or cannot be read. It is discarded only if it is wrong: all else the disk decides. Where another copy can be read
    /// that is no miss, unless the record was found to be wrong.
    pub(crate) fn lost_on_disk(&mut self, id: EntryId, reason: MissReason, actions: &mut Actions) {
        let key = self.slab[id].key;
        self.set_disk(id, CopyState::None, actions);
        let wrong = reason == MissReason::FailedCheck;
        if wrong {
            actions.push(Action::Discard { key, tier: Tier::Disk });
        }
        if wrong || (self.slab[id].live > 0 && self.slab[id].readable().is_none()) {
            self.counters.miss(reason);
            self.counters.lost_blocks[DISK] += 1;
        }
        self.went(id, Tier::Disk, reason);
    }
}
