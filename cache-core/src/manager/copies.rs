//! A block's copies: how they come and go, and the books that are kept of them.

use crate::manager::action::{Action, Actions};
use crate::manager::counters::side;
use crate::manager::entry::{CopyState, EntryId};
use crate::manager::event::{CopyEnd, Ticket};
use crate::manager::shard::{DEVICE, HOST, Shard};
use crate::miss::MissReason;
use crate::units::Tier;

impl Shard {
    /// Changes a copy in a slot: device or host. For the disk see [`Shard::set_disk`].
    pub(crate) fn set_copy(&mut self, id: EntryId, tier: usize, state: CopyState) {
        let counted = self.counts(id);
        let entry = &mut self.slab[id];
        let below = entry.is_below();
        let before = std::mem::replace(&mut entry.copies[tier], state);
        let (live, parent) = (entry.live > 0, entry.parent);
        self.below = self.below + u32::from(entry.is_below()) - u32::from(below);
        self.used[tier] = self.used[tier] + u32::from(state.stays()) - u32::from(before.stays());
        self.leaving[tier] =
            self.leaving[tier] + u32::from(state == CopyState::Leaving) - u32::from(before == CopyState::Leaving);
        if live {
            self.live_held[tier] =
                self.live_held[tier] + u32::from(state != CopyState::None) - u32::from(before != CopyState::None);
        }
        if let Some(parent) = parent {
            let children = &mut self.slab[parent].children_in[tier];
            *children = *children + u32::from(state.stays()) - u32::from(before.stays());
        }
        self.recount(id, counted);
        self.candidates.refresh(&mut self.slab, id);
    }

    pub(crate) fn set_live(&mut self, id: EntryId, live: u32, actions: &mut Actions) {
        let entry = &mut self.slab[id];
        let (below, pinned) = (entry.is_below(), entry.is_pinned());
        let before = std::mem::replace(&mut entry.live, live);
        self.below = self.below + u32::from(entry.is_below()) - u32::from(below);
        for tier in [DEVICE, HOST] {
            if entry.copies[tier] != CopyState::None {
                self.live_held[tier] = self.live_held[tier] + u32::from(live > 0) - u32::from(before > 0);
            }
        }
        self.candidates.refresh(&mut self.slab, id);
        self.pin_or_unpin(id, pinned, actions);
    }

    pub(crate) fn dropped(&mut self, id: EntryId, refused: bool, actions: &mut Actions) {
        if self.slab.get(id).is_none_or(|entry| entry.copies[HOST] != CopyState::Leaving) {
            return;
        }
        let awaited_by = self.slab[id].awaited_by.take();
        if refused {
            self.slab[id].parked = true;
            self.parked.push(id);
            self.set_copy(id, HOST, CopyState::Resident);
        } else {
            self.set_copy(id, HOST, CopyState::None);
            self.counters.evicted_blocks[HOST] += 1;
            self.went(id, Tier::Host, MissReason::Evicted);
        }
        if let Some(ticket) = awaited_by {
            self.drop_ended(ticket, actions);
        }
    }

    /// A copy is gone or wrong. One that is on its way ends by its own event.
    pub(crate) fn lost(&mut self, id: EntryId, tier: Tier, reason: MissReason, actions: &mut Actions) {
        let there = |copy| matches!(copy, CopyState::Resident | CopyState::Leaving);
        if !self.slab.get(id).is_some_and(|entry| there(entry.copies[side(tier)])) {
            return;
        }
        let entry = &mut self.slab[id];
        let key = entry.key;
        let dropping = tier == Tier::Host && entry.copies[HOST] == CopyState::Leaving;
        let drop = if dropping { entry.awaited_by.take() } else { None };
        let spill = if tier == Tier::Device { entry.spill.take() } else { None };
        if tier == Tier::Disk {
            self.lost_on_disk(id, reason, actions);
        } else {
            actions.push(Action::Discard { key, tier });
            self.counters.miss(reason);
            self.counters.lost_blocks[side(tier)] += 1;
            self.set_copy(id, side(tier), CopyState::None);
            self.went(id, tier, reason);
        }
        if let Some(ticket) = drop {
            self.drop_ended(ticket, actions);
        }
        if let Some(spill) = spill {
            self.spill_ended(spill.ticket, Some(CopyEnd::SourceLost), actions);
        }
    }

    /// Drops a device copy to make room.
    pub(crate) fn evict_device(&mut self, id: EntryId, actions: &mut Actions) {
        self.counters.evicted_blocks[DEVICE] += 1;
        actions.push(Action::Drop { entry: id, key: self.slab[id].key, tier: Tier::Device });
        self.set_copy(id, DEVICE, CopyState::None);
        self.went(id, Tier::Device, MissReason::Evicted);
    }

    /// A copy has gone: if it was the last one, remember how, and free the entry if nobody needs it. What the disk still has is not gone.
    pub(crate) fn went(&mut self, id: EntryId, tier: Tier, reason: MissReason) {
        if self.slab[id].is_bare() {
            self.slab[id].loss = Some(reason);
            self.ghosts.record(&self.slab[id].key, tier, reason, self.now);
        }
        self.free_if_unused(id);
    }

    /// The source of a copy was lost while it ran, and now the copy has failed as well.
    pub(crate) fn went_unnoticed(&mut self, id: EntryId, tier: Tier) {
        let reason = if tier == Tier::Disk { MissReason::Evicted } else { MissReason::LeaseLost };
        match self.slab.get(id) {
            Some(entry) if entry.is_bare() && entry.loss.is_none() => self.went(id, tier, reason),
            Some(_) => self.free_if_unused(id),
            None => {}
        }
    }

    /// Frees an entry without slots, readers and children, and then its parents that only waited for it.
    pub(crate) fn free_if_unused(&mut self, id: EntryId) {
        let mut next = Some(id).filter(|id| self.slab.get(*id).is_some());
        while let Some(id) = next.filter(|id| self.slab[*id].is_unused()) {
            next = self.slab.remove(id);
        }
    }

    /// Starts a copy device -> host that `ticket` waits for.
    pub(crate) fn demote(&mut self, id: EntryId, ticket: Ticket, actions: &mut Actions) {
        self.slab[id].awaited_by = Some(ticket);
        self.set_copy(id, DEVICE, CopyState::Leaving);
        self.set_copy(id, HOST, CopyState::Arriving);
        actions.push(Action::Demote { entry: id, key: self.slab[id].key });
    }

    pub(crate) fn demoted(&mut self, id: EntryId, end: CopyEnd, actions: &mut Actions) {
        let Some(ticket) =
            self.slab.get(id).filter(|entry| entry.copies[HOST] == CopyState::Arriving).map(|entry| entry.awaited_by)
        else {
            return;
        };
        self.slab[id].awaited_by = None;
        match end {
            CopyEnd::Done => self.settle_demotion(id, actions),
            CopyEnd::Full | CopyEnd::Failed => self.undo_demotion(id, actions),
            CopyEnd::Damaged | CopyEnd::SourceLost => {
                let reason = if end == CopyEnd::Damaged { MissReason::FailedCheck } else { MissReason::LeaseLost };
                self.set_copy(id, HOST, CopyState::None);
                self.lost(id, Tier::Device, reason, actions);
                self.went_unnoticed(id, Tier::Device);
            }
        }
        if let Some(ticket) = ticket {
            self.demotion_ended(ticket, end, actions);
        }
    }

    /// The lower write is committed: now the upper copy goes.
    fn settle_demotion(&mut self, id: EntryId, actions: &mut Actions) {
        self.counters.demoted_blocks += 1;
        self.slab[id].loss = None;
        self.set_copy(id, HOST, CopyState::Resident);
        if self.slab[id].copies[DEVICE] == CopyState::Leaving {
            actions.push(Action::Drop { entry: id, key: self.slab[id].key, tier: Tier::Device });
            self.set_copy(id, DEVICE, CopyState::None);
        }
    }

    fn undo_demotion(&mut self, id: EntryId, actions: &mut Actions) {
        self.set_copy(id, HOST, CopyState::None);
        if self.slab[id].copies[DEVICE] == CopyState::Leaving {
            self.stay_on_device(id, actions);
        } else {
            self.went_unnoticed(id, Tier::Device);
        }
    }

    /// A device copy that was to leave could not: it stays for whoever needs it.
    pub(crate) fn stay_on_device(&mut self, id: EntryId, actions: &mut Actions) {
        let entry = &self.slab[id];
        if entry.live == 0 && entry.children == 0 {
            self.evict_device(id, actions);
        } else {
            self.set_copy(id, DEVICE, CopyState::Resident);
        }
    }
}
