//! Requests for device slots, which may have to wait for copies: demotions, spills, and drops of host copies. Who goes: see
//! `victim`.
//!
//! Open blocks need entries as well as slots. There is one entry per slot, and as many more as live blocks may be on the disk alone; a lost
//! block that others stand on or read has an entry and no slot, and so has an idle one on the disk alone that others stand on; so entries can
//! run out first. Then idle leaves go until enough entries **are** free: a host copy that is still being dropped counts for nothing, since
//! a lease may keep it.

use crate::key::CopyKey;
use crate::manager::action::{Action, Actions};
use crate::manager::event::{CopyEnd, Owner, Ticket};
use crate::manager::shard::Shard;

/// Demotions of one request that may fail, for other reasons than a full host tier, before it is refused.
const FAILURES_MAX: u32 = 4;

#[derive(Clone, Debug)]
pub(crate) enum Purpose {
    Open { owner: Owner, keys: Vec<Option<CopyKey>>, held: u32 },
    Promote,
}

/// A request for device slots.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    ticket: Ticket,
    purpose: Purpose,
    wanted: u32,
    /// Slots set aside for it.
    got: u32,
    /// Demotions and spills that it waits for, each of which will free a slot.
    outstanding: u32,
    /// Host drops that it waits for, each of which may free an entry.
    drops: u32,
    failures: u32,
    /// The disk had no room for a spill, or failed at it: no more are tried.
    unspilled: bool,
    /// Demotions that found the host tier full and for which no host copy has been dropped yet.
    host_full: u32,
}

impl Room {
    pub(crate) fn new(ticket: Ticket, purpose: Purpose, wanted: u32) -> Room {
        Room { ticket, purpose, wanted, got: 0, outstanding: 0, drops: 0, failures: 0, unspilled: false, host_full: 0 }
    }

    pub(crate) fn ticket(&self) -> Ticket {
        self.ticket
    }

    pub(crate) fn is_for_open_blocks(&self) -> bool {
        matches!(self.purpose, Purpose::Open { .. })
    }

    pub(crate) fn may_spill(&self) -> bool {
        !self.unspilled
    }

    pub(crate) fn host_full(&self) -> u32 {
        self.host_full
    }

    /// A host copy goes for its sake.
    pub(crate) fn host_dropped(&mut self) {
        self.host_full = self.host_full.saturating_sub(1);
    }

    /// Device slots that are set aside for it.
    pub(crate) fn set_aside(&self) -> u32 {
        self.got
    }

    /// Its name, the demotions and spills, and the host drops that it waits for.
    pub(crate) fn waits_for(&self) -> (Ticket, [u32; 2]) {
        (self.ticket, [self.outstanding, self.drops])
    }
}

/// Whether a victim has made room.
pub(crate) enum Freed {
    Now,
    Later,
    No,
}

impl Shard {
    pub(crate) fn room(
        &mut self,
        ticket: Ticket,
        owner: Owner,
        keys: &[Option<CopyKey>],
        held: u32,
        actions: &mut Actions,
    ) {
        self.unpark();
        // A repair (`held`) never waits for another's open block: both would stand still, and computing it twice does no harm.
        let opened = keys.first().copied().flatten().and_then(|key| self.opened.get(&key));
        let elsewhere = held == 0 && opened.is_some_and(|other| *other != owner);
        if elsewhere {
            actions.push(Action::PendingElsewhere { ticket });
            return;
        }
        let purpose = Purpose::Open { owner, keys: keys.to_vec(), held };
        let room = Room::new(ticket, purpose, keys.len() as u32);
        if room.wanted + self.open > self.budgets.device_slots {
            self.refuse(&room, actions);
            return;
        }
        self.fill(room, actions);
    }

    /// A demotion for `ticket` has ended and its slot, unless the copy stayed, is free.
    pub(crate) fn demotion_ended(&mut self, ticket: Ticket, end: CopyEnd, actions: &mut Actions) {
        let Some(mut room) = self.waiting(ticket) else {
            return;
        };
        room.outstanding -= 1;
        match end {
            CopyEnd::Done => {}
            CopyEnd::Full => room.host_full += 1,
            CopyEnd::Damaged | CopyEnd::SourceLost | CopyEnd::Failed => room.failures += 1,
        }
        self.fill(room, actions);
        self.go_on(actions);
    }

    /// A spill for `ticket` has ended, well or with a failure, and its slot, unless the copy stayed, is free.
    pub(crate) fn spill_ended(&mut self, ticket: Ticket, failure: Option<CopyEnd>, actions: &mut Actions) {
        let Some(mut room) = self.waiting(ticket) else {
            return;
        };
        room.outstanding -= 1;
        match failure {
            None | Some(CopyEnd::Done) => {}
            Some(CopyEnd::Full | CopyEnd::Failed) => room.unspilled = true,
            Some(CopyEnd::Damaged | CopyEnd::SourceLost) => room.failures += 1,
        }
        self.fill(room, actions);
    }

    /// A host drop for `ticket` has ended and its entry, unless something keeps it, is free.
    pub(crate) fn drop_ended(&mut self, ticket: Ticket, actions: &mut Actions) {
        let Some(mut room) = self.waiting(ticket) else {
            return;
        };
        room.drops -= 1;
        self.fill(room, actions);
    }

    /// Takes a request out of those that wait. None if it was refused in the meantime.
    fn waiting(&mut self, ticket: Ticket) -> Option<Room> {
        let index = self.rooms.iter().position(|room| room.ticket == ticket)?;
        Some(self.rooms.remove(index))
    }

    pub(crate) fn device_free(&self) -> u32 {
        self.budgets.device_slots - self.device_used()
    }

    /// Goes on with a request: grants it, refuses it, or lets it wait for what it has started.
    pub(crate) fn fill(&mut self, mut room: Room, actions: &mut Actions) {
        self.fill_slots(&mut room, actions);
        let open = room.is_for_open_blocks();
        if !open {
            room.wanted = room.got + room.outstanding;
        }
        if room.outstanding > 0 {
            // Even if no more can go now: what has arrived below may make room there for the next.
            self.rooms.push(room);
        } else if open && !(room.got == room.wanted && self.fill_entries(&mut room, actions)) {
            self.aside -= room.got;
            self.refuse(&room, actions);
        } else if room.drops > 0 {
            self.rooms.push(room);
        } else {
            self.grant(room, actions);
        }
    }

    fn fill_slots(&mut self, room: &mut Room, actions: &mut Actions) {
        while room.got + room.outstanding < room.wanted {
            if self.device_free() > 0 {
                self.aside += 1;
                room.got += 1;
                continue;
            }
            if room.failures > FAILURES_MAX {
                return;
            }
            match self.free_one(room, actions) {
                Freed::Now => {}
                Freed::Later => room.outstanding += 1,
                Freed::No => return,
            }
        }
    }

    /// Sees to it that each open block can get an entry, as soon as the slots are there. False when there are too few entries and none
    /// will come. An entry that becomes free can free its parents' as well, so it is worth waiting for one even if more are wanted.
    fn fill_entries(&mut self, room: &mut Room, actions: &mut Actions) -> bool {
        let Purpose::Open { held, .. } = room.purpose else {
            return true;
        };
        let needed = (self.open - self.open_held) + (room.wanted - held);
        while self.slab.free_entries() + room.drops < needed {
            match self.free_entry(room.ticket, actions) {
                Freed::Now => {}
                Freed::Later => room.drops += 1,
                Freed::No => return room.drops > 0,
            }
        }
        true
    }

    fn grant(&mut self, room: Room, actions: &mut Actions) {
        self.aside -= room.got;
        match room.purpose {
            Purpose::Promote => self.start_promotions(room.ticket, room.got, actions),
            Purpose::Open { owner, keys, held } => {
                self.open += room.wanted;
                self.open_held += held;
                for key in keys.into_iter().flatten() {
                    self.opened.entry(key).or_insert(owner);
                }
                actions.push(Action::Granted { ticket: room.ticket, slots: room.wanted });
            }
        }
    }

    fn refuse(&mut self, room: &Room, actions: &mut Actions) {
        self.counters.refused += 1;
        actions.push(Action::Refused { ticket: room.ticket, shortage: self.shortage(room.wanted) });
    }
}
