//! Making room in device memory, and filling it from the host: requests that may have to wait for copies.
//!
//! Victims, in this order: idle device copies, leaf first, least recently used first (with a host copy: dropped; without: demoted if the
//! host has or can make room, else dropped); then, for open blocks only, live device copies, deepest first, dropped if a host copy is
//! committed and demoted otherwise. The last copy of a live block is never dropped.

use crate::key::CopyKey;
use crate::manager::action::{Action, Actions};
use crate::manager::entry::{CopyState, EntryId};
use crate::manager::event::{CopyEnd, Owner, Ticket};
use crate::manager::shard::{DEVICE, HOST, Shard};
use crate::miss::MissReason;
use crate::units::Tier;

/// Demotions of one request that may fail before it is refused.
const FAILURES_MAX: u32 = 4;

#[derive(Clone, Debug)]
enum Purpose {
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
    /// Demotions that it waits for, each of which will free a slot.
    outstanding: u32,
    failures: u32,
}

/// A request for promotion and the copies that it waits for.
#[derive(Clone, Debug)]
pub(crate) struct Promotion {
    ticket: Ticket,
    /// Still to be started, once there is room.
    candidates: Vec<EntryId>,
    waiting_for: Vec<EntryId>,
    arrived: u32,
    missed: u32,
}

impl Room {
    /// Device slots that are set aside for it.
    pub(crate) fn set_aside(&self) -> u32 {
        self.got
    }
}

enum Freed {
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
        let room = Room { ticket, purpose, wanted: keys.len() as u32, got: 0, outstanding: 0, failures: 0 };
        if room.wanted + self.open > self.budgets.device_slots {
            self.refuse(&room, actions);
            return;
        }
        self.fill(room, actions);
    }

    pub(crate) fn promote(&mut self, ticket: Ticket, entries: &[EntryId], actions: &mut Actions) {
        self.unpark();
        let copies = |id: &EntryId| self.slab[*id].copies;
        let promotable = |id: &&EntryId| copies(id) == [CopyState::None, CopyState::Resident];
        let spare = (self.device_free() + self.candidates.idle(DEVICE).len()) as usize;
        let candidates: Vec<EntryId> = entries.iter().filter(promotable).take(spare).copied().collect();
        let waiting_for = entries.iter().filter(|id| copies(id)[DEVICE] == CopyState::Arriving).copied().collect();
        let wanted = candidates.len() as u32;
        self.promotions.push(Promotion { ticket, candidates, waiting_for, arrived: 0, missed: 0 });
        self.fill(Room { ticket, purpose: Purpose::Promote, wanted, got: 0, outstanding: 0, failures: 0 }, actions);
    }

    /// A demotion for `ticket` has ended and its slot, unless the copy stayed, is free.
    pub(crate) fn demotion_ended(&mut self, ticket: Ticket, done: bool, actions: &mut Actions) {
        let Some(index) = self.rooms.iter().position(|room| room.ticket == ticket) else {
            return;
        };
        let mut room = self.rooms.remove(index);
        room.outstanding -= 1;
        room.failures += u32::from(!done);
        self.fill(room, actions);
    }

    pub(crate) fn onboarded(&mut self, id: EntryId, end: CopyEnd, actions: &mut Actions) {
        if self.slab.get(id).is_none_or(|entry| entry.copies[DEVICE] != CopyState::Arriving) {
            return;
        }
        let arrived = end == CopyEnd::Done;
        if arrived {
            self.counters.promoted_blocks += 1;
            self.slab[id].loss = None;
        }
        self.set_copy(id, DEVICE, if arrived { CopyState::Resident } else { CopyState::None });
        let reason = match end {
            CopyEnd::Damaged => Some(MissReason::FailedCheck),
            CopyEnd::SourceLost => Some(MissReason::LeaseLost),
            CopyEnd::Done | CopyEnd::Full | CopyEnd::Failed => None,
        };
        let mut waiters = 0;
        for promotion in &mut self.promotions {
            if let Some(index) = promotion.waiting_for.iter().position(|waited| *waited == id) {
                promotion.waiting_for.swap_remove(index);
                promotion.arrived += u32::from(arrived);
                promotion.missed += u32::from(!arrived);
                waiters += 1;
            }
        }
        if let Some(reason) = reason {
            // One miss is counted with the lost copy; every further waiter has its own.
            (1..waiters).for_each(|_| self.counters.miss(reason));
            self.lost(id, Tier::Host, reason, actions);
        }
        self.went_unnoticed(id, Tier::Host);
        self.answer_promotions(actions);
    }

    fn device_free(&self) -> u32 {
        self.budgets.device_slots - self.device_used()
    }

    fn fill(&mut self, mut room: Room, actions: &mut Actions) {
        let live_too = matches!(room.purpose, Purpose::Open { .. });
        while room.got + room.outstanding < room.wanted {
            if self.device_free() > 0 {
                self.aside += 1;
                room.got += 1;
                continue;
            }
            if room.failures > FAILURES_MAX {
                break;
            }
            match self.free_one(room.ticket, live_too, actions) {
                Freed::Now => {}
                Freed::Later => room.outstanding += 1,
                Freed::No => break,
            }
        }
        if room.got + room.outstanding < room.wanted {
            if live_too {
                self.aside -= room.got;
                self.refuse(&room, actions);
                return;
            }
            room.wanted = room.got + room.outstanding;
        }
        if room.outstanding > 0 {
            self.rooms.push(room);
        } else {
            self.grant(room, actions);
        }
    }

    fn grant(&mut self, room: Room, actions: &mut Actions) {
        self.aside -= room.got;
        match room.purpose {
            Purpose::Promote => self.start_promotions(room.ticket, room.got, actions),
            Purpose::Open { held, .. }
                if self.slab.free_entries() < (self.open - self.open_held) + (room.wanted - held) =>
            {
                self.refuse(&room, actions);
            }
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

    fn start_promotions(&mut self, ticket: Ticket, slots: u32, actions: &mut Actions) {
        let Some(index) = self.promotions.iter().position(|promotion| promotion.ticket == ticket) else {
            return;
        };
        let mut left = slots;
        for id in std::mem::take(&mut self.promotions[index].candidates) {
            let Some(copies) = self.slab.get(id).filter(|entry| entry.live > 0).map(|entry| entry.copies) else {
                continue;
            };
            if left > 0 && copies == [CopyState::None, CopyState::Resident] {
                left -= 1;
                self.set_copy(id, DEVICE, CopyState::Arriving);
                self.promotions[index].waiting_for.push(id);
                actions.push(Action::Promote { entry: id, key: self.slab[id].key });
            }
        }
        self.answer_promotions(actions);
    }

    fn answer_promotions(&mut self, actions: &mut Actions) {
        self.promotions.retain(|promotion| {
            let ended = promotion.candidates.is_empty() && promotion.waiting_for.is_empty();
            if ended {
                let Promotion { ticket, arrived, missed, .. } = *promotion;
                actions.push(Action::Promoted { ticket, arrived, missed });
            }
            !ended
        });
    }

    fn free_one(&mut self, ticket: Ticket, live_too: bool, actions: &mut Actions) -> Freed {
        for _ in 0..self.candidates.idle(DEVICE).len() {
            let Some(id) = self.candidates.idle(DEVICE).head() else {
                break;
            };
            let entry = &self.slab[id];
            if entry.children_in[DEVICE] > 0 {
                self.candidates.rotate(&mut self.slab, DEVICE);
            } else if entry.copies[HOST] == CopyState::Resident {
                self.evict_device(id, actions);
                return Freed::Now;
            } else if entry.copies[HOST] == CopyState::None && self.make_host_room(actions) {
                self.demote(id, ticket, actions);
                return Freed::Later;
            } else if self.slab[id].copies[HOST] == CopyState::None && self.slab[id].children == 0 {
                self.evict_device(id, actions);
                return Freed::Now;
            } else {
                self.candidates.rotate(&mut self.slab, DEVICE);
            }
        }
        if live_too { self.free_live(ticket, actions) } else { Freed::No }
    }

    fn free_live(&mut self, ticket: Ticket, actions: &mut Actions) -> Freed {
        let Some(id) = self.candidates.deepest_live() else {
            return Freed::No;
        };
        let entry = &self.slab[id];
        if entry.children_in[DEVICE] > 0 {
            // A child is on its way into device memory: soon it will be the deepest.
            return Freed::No;
        }
        let host = entry.copies[HOST];
        match host {
            CopyState::Resident => {
                self.evict_device(id, actions);
                Freed::Now
            }
            CopyState::None if self.make_host_room(actions) => {
                self.demote(id, ticket, actions);
                Freed::Later
            }
            _ => Freed::No,
        }
    }

    fn demote(&mut self, id: EntryId, ticket: Ticket, actions: &mut Actions) {
        self.slab[id].demoted_for = Some(ticket);
        self.set_copy(id, DEVICE, CopyState::Leaving);
        self.set_copy(id, HOST, CopyState::Arriving);
        actions.push(Action::Demote { entry: id, key: self.slab[id].key });
    }

    /// Makes sure that a host slot is free, or will be once the actions so far are performed.
    fn make_host_room(&mut self, actions: &mut Actions) -> bool {
        if self.used[HOST] < self.budgets.host_slots {
            return true;
        }
        for _ in 0..self.candidates.idle(HOST).len() {
            let Some(id) = self.candidates.idle(HOST).head() else {
                break;
            };
            let entry = &self.slab[id];
            let last_copy = entry.copies[DEVICE] == CopyState::None;
            if entry.children_in[HOST] > 0 || (last_copy && entry.children > 0) {
                self.candidates.rotate(&mut self.slab, HOST);
            } else {
                self.drop_host(id, actions);
                return true;
            }
        }
        // A live block that is in both tiers can spare its host copy: the device copy is then its last one.
        match self.candidates.redundant() {
            Some(id) => {
                self.drop_host(id, actions);
                true
            }
            None => false,
        }
    }

    fn drop_host(&mut self, id: EntryId, actions: &mut Actions) {
        self.set_copy(id, HOST, CopyState::Leaving);
        actions.push(Action::Drop { entry: id, key: self.slab[id].key, tier: Tier::Host });
    }

    /// Entries whose eviction met a lease become candidates again.
    fn unpark(&mut self) {
        for id in std::mem::take(&mut self.parked) {
            if self.slab.get(id).is_some_and(|entry| entry.parked) {
                self.slab[id].parked = false;
                self.candidates.refresh(&mut self.slab, id);
            }
        }
    }
}
