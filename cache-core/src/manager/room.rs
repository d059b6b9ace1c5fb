//! Making room in device memory, and filling it from the host: requests that may have to wait for copies.
//!
//! Victims, in this order: idle device copies, leaf first, least recently used first (with a host copy: dropped; without: demoted if the
//! host has or can make room, else dropped); then, for open blocks only, live device copies, deepest first, dropped if a host copy is
//! committed and demoted otherwise. The last copy of a live block is never dropped.
//!
//! Open blocks need entries as well as slots. There is one entry per slot, and a lost block that others stand on or read has an entry and
//! no slot; so entries can run out first. Then idle leaves go until enough entries **are** free: a host copy that is still being dropped
//! counts for nothing, since a lease may keep it.
//!
//! The host tier may be full although the shard counts a free slot there (slots that rest, or that leases outlive). A demotion that ends
//! so is tried again only after another host copy was dropped for it, and the request is refused when none may go.

use crate::key::CopyKey;
use crate::manager::action::{Action, Actions};
use crate::manager::entry::{CopyState, Entry, EntryId};
use crate::manager::event::{CopyEnd, Owner, Ticket};
use crate::manager::shard::{DEVICE, HOST, Shard};
use crate::miss::MissReason;
use crate::units::Tier;

/// Demotions of one request that may fail, for other reasons than a full host tier, before it is refused.
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
    /// Host drops that it waits for, each of which may free an entry.
    drops: u32,
    failures: u32,
    /// Demotions that found the host tier full and for which no host copy has been dropped yet.
    host_full: u32,
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
    fn new(ticket: Ticket, purpose: Purpose, wanted: u32) -> Room {
        Room { ticket, purpose, wanted, got: 0, outstanding: 0, drops: 0, failures: 0, host_full: 0 }
    }

    fn is_for_open_blocks(&self) -> bool {
        matches!(self.purpose, Purpose::Open { .. })
    }

    /// Device slots that are set aside for it.
    pub(crate) fn set_aside(&self) -> u32 {
        self.got
    }

    /// Its name, the demotions and the host drops that it waits for.
    pub(crate) fn waits_for(&self) -> (Ticket, [u32; 2]) {
        (self.ticket, [self.outstanding, self.drops])
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
        let room = Room::new(ticket, purpose, keys.len() as u32);
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
        self.fill(Room::new(ticket, Purpose::Promote, wanted), actions);
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
        self.fill_slots(&mut room, actions);
        let open = room.is_for_open_blocks();
        if !open {
            room.wanted = room.got + room.outstanding;
        }
        let slots = room.got + room.outstanding == room.wanted;
        if open && !(slots && self.fill_entries(&mut room, actions)) {
            self.aside -= room.got;
            self.refuse(&room, actions);
        } else if room.outstanding + room.drops > 0 {
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
        if room.outstanding > 0 {
            return true;
        }
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

    /// Lets the least recently used idle leaf go with all its copies; blocks in the host are the colder ones. O(idle copies), but needed
    /// only while lost blocks keep entries.
    fn free_entry(&mut self, ticket: Ticket, actions: &mut Actions) -> Freed {
        for side in [HOST, DEVICE] {
            for _ in 0..self.candidates.idle(side).len() {
                let Some(id) = self.candidates.idle(side).head() else {
                    break;
                };
                let Entry { children, copies: [device, host], .. } = self.slab[id];
                // In the second pass, a host copy is one that a lease keeps, or one that is being dropped.
                if children > 0 || (side == DEVICE && host != CopyState::None) {
                    self.candidates.rotate(&mut self.slab, side);
                    continue;
                }
                if device == CopyState::Resident {
                    self.evict_device(id, actions);
                }
                if host == CopyState::None {
                    return Freed::Now;
                }
                self.slab[id].awaited_by = Some(ticket);
                self.drop_host(id, actions);
                return Freed::Later;
            }
        }
        Freed::No
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

    fn free_one(&mut self, room: &mut Room, actions: &mut Actions) -> Freed {
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
            } else if entry.copies[HOST] == CopyState::None && self.make_host_room(room, actions) {
                self.demote(id, room.ticket, actions);
                return Freed::Later;
            } else if self.slab[id].copies[HOST] == CopyState::None && self.slab[id].children == 0 {
                self.evict_device(id, actions);
                return Freed::Now;
            } else {
                self.candidates.rotate(&mut self.slab, DEVICE);
            }
        }
        if room.is_for_open_blocks() { self.free_live(room, actions) } else { Freed::No }
    }

    fn free_live(&mut self, room: &mut Room, actions: &mut Actions) -> Freed {
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
            CopyState::None if self.make_host_room(room, actions) => {
                self.demote(id, room.ticket, actions);
                Freed::Later
            }
            _ => Freed::No,
        }
    }

    fn demote(&mut self, id: EntryId, ticket: Ticket, actions: &mut Actions) {
        self.slab[id].awaited_by = Some(ticket);
        self.set_copy(id, DEVICE, CopyState::Leaving);
        self.set_copy(id, HOST, CopyState::Arriving);
        actions.push(Action::Demote { entry: id, key: self.slab[id].key });
    }

    /// Makes sure that a host slot is free, or will be once the actions so far are performed. After a demotion of this request that
    /// found the host tier full, a free slot in the shard's count is no proof: a host copy has to go.
    fn make_host_room(&mut self, room: &mut Room, actions: &mut Actions) -> bool {
        if self.used[HOST] < self.budgets.host_slots && room.host_full == 0 {
            return true;
        }
        let dropped = self.drop_one_host(actions);
        room.host_full = room.host_full.saturating_sub(u32::from(dropped));
        dropped
    }

    /// Drops an idle host copy, leaf first, or else a redundant one. False when none may go.
    fn drop_one_host(&mut self, actions: &mut Actions) -> bool {
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
