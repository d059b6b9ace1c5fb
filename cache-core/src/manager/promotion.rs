//! Bringing blocks nearer: disk -> host, then host -> device, as far as there is room that no live block needs.
//!
//! A request loads first, in chain order, until no host slot is free and no idle host copy can go; when its loads have ended it asks for
//! device slots like any request for room, with idle copies as its only victims. A load that finds the host full after all (a lease) is no
//! failure: the block stays on the disk, and is read there. A block that two requests want is copied once, and a failure gives each of
//! them its own miss.

use crate::manager::action::{Action, Actions};
use crate::manager::entry::{CopyState, EntryId};
use crate::manager::event::{CopyEnd, Ticket};
use crate::manager::room::{Purpose, Room};
use crate::manager::shard::{DEVICE, HOST, Shard};
use crate::miss::MissReason;
use crate::units::Tier;

const IN_HOST: [CopyState; 2] = [CopyState::None, CopyState::Resident];

/// A request for promotion and the copies that it waits for.
#[derive(Clone, Debug)]
pub(crate) struct Promotion {
    ticket: Ticket,
    nearest: Tier,
    /// What was asked for, until its loads have ended.
    asked: Option<Vec<EntryId>>,
    loading: Vec<EntryId>,
    /// Still to be started, once there is room in device memory.
    candidates: Vec<EntryId>,
    waiting_for: Vec<EntryId>,
    arrived: u32,
    loaded: u32,
    missed: u32,
}

impl Promotion {
    /// Copies disk -> host that it waits for.
    pub(crate) fn loading(&self) -> &[EntryId] {
        &self.loading
    }
}

impl Shard {
    pub(crate) fn promote(&mut self, ticket: Ticket, entries: &[EntryId], nearest: Tier, actions: &mut Actions) {
        self.unpark();
        let loading = self.start_loads(entries, actions);
        self.promotions.push(Promotion {
            ticket,
            nearest,
            asked: Some(entries.to_vec()),
            loading,
            candidates: Vec::new(),
            waiting_for: Vec::new(),
            arrived: 0,
            loaded: 0,
            missed: 0,
        });
        self.go_on(actions);
    }

    fn start_loads(&mut self, entries: &[EntryId], actions: &mut Actions) -> Vec<EntryId> {
        let mut loading = Vec::new();
        let mut full = false;
        for id in entries {
            let entry = &self.slab[*id];
            match entry.in_slots() {
                [CopyState::None, CopyState::Arriving] if self.is_loading(*id) => {
                    loading.push(*id);
                }
                [CopyState::None, CopyState::None] if entry.on_disk() && !full => {
                    full = self.used[HOST] >= self.budgets.host_slots && !self.drop_idle_host(actions);
                    if !full {
                        self.set_copy(*id, HOST, CopyState::Arriving);
                        actions.push(Action::Load { entry: *id, key: self.slab[*id].key });
                        loading.push(*id);
                    }
                }
                _ => {}
            }
        }
        loading
    }

    /// True while a copy disk -> host is under way.
    pub(crate) fn is_loading(&self, id: EntryId) -> bool {
        let arriving = self.slab[id].copies[HOST] == CopyState::Arriving;
        arriving && self.promotions.iter().any(|promotion| promotion.loading.contains(&id))
    }

    pub(crate) fn loaded(&mut self, id: EntryId, end: CopyEnd, actions: &mut Actions) {
        if self.slab.get(id).is_none_or(|entry| entry.copies[HOST] != CopyState::Arriving) {
            return;
        }
        let arrived = end == CopyEnd::Done;
        self.counters.loaded_blocks += u64::from(arrived);
        self.set_copy(id, HOST, if arrived { CopyState::Resident } else { CopyState::None });
        let missed = !matches!(end, CopyEnd::Done | CopyEnd::Full);
        let mut waiters = 0;
        for promotion in &mut self.promotions {
            if let Some(index) = promotion.loading.iter().position(|waited| *waited == id) {
                promotion.loading.swap_remove(index);
                promotion.loaded += u32::from(arrived);
                promotion.missed += u32::from(missed);
                waiters += 1;
            }
        }
        match end {
            CopyEnd::Damaged => self.lost_under(id, Tier::Disk, MissReason::FailedCheck, waiters, actions),
            CopyEnd::SourceLost => self.lost_under(id, Tier::Disk, MissReason::Evicted, waiters, actions),
            CopyEnd::Done | CopyEnd::Full | CopyEnd::Failed => {}
        }
        self.went_unnoticed(id, Tier::Disk);
        self.go_on(actions);
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
        let mut waiters = 0;
        for promotion in &mut self.promotions {
            if let Some(index) = promotion.waiting_for.iter().position(|waited| *waited == id) {
                promotion.waiting_for.swap_remove(index);
                promotion.arrived += u32::from(arrived);
                promotion.missed += u32::from(!arrived);
                waiters += 1;
            }
        }
        match end {
            CopyEnd::Damaged => self.lost_under(id, Tier::Host, MissReason::FailedCheck, waiters, actions),
            CopyEnd::SourceLost => self.lost_under(id, Tier::Host, MissReason::LeaseLost, waiters, actions),
            CopyEnd::Done | CopyEnd::Full | CopyEnd::Failed => {}
        }
        self.went_unnoticed(id, Tier::Host);
        self.answer_promotions(actions);
    }

    /// The source of a copy that several waited for is lost: one miss is counted with it, every further waiter has its own.
    fn lost_under(&mut self, id: EntryId, tier: Tier, reason: MissReason, waiters: u32, actions: &mut Actions) {
        (1..waiters).for_each(|_| self.counters.miss(reason));
        self.lost(id, tier, reason, actions);
    }

    /// Asks for device slots for each request whose loads have ended.
    fn go_on(&mut self, actions: &mut Actions) {
        let ready = |promotion: &Promotion| promotion.asked.is_some() && promotion.loading.is_empty();
        while let Some(index) = self.promotions.iter().position(ready) {
            let asked = self.promotions[index].asked.take().expect("it was just found");
            let is_in = |id: &EntryId, copies: fn([CopyState; 2]) -> bool| {
                self.slab.get(*id).is_some_and(|entry| entry.live > 0 && copies(entry.in_slots()))
            };
            let spare = match self.promotions[index].nearest {
                Tier::Device => (self.device_free() + self.candidates.idle(DEVICE).len()) as usize,
                _ => 0,
            };
            let candidates: Vec<EntryId> =
                asked.iter().filter(|id| is_in(id, |copies| copies == IN_HOST)).take(spare).copied().collect();
            let waiting_for =
                asked.iter().filter(|id| is_in(id, |copies| copies[DEVICE] == CopyState::Arriving)).copied().collect();
            let promotion = &mut self.promotions[index];
            let room = Room::new(promotion.ticket, Purpose::Promote, candidates.len() as u32);
            promotion.candidates = candidates;
            promotion.waiting_for = waiting_for;
            self.fill(room, actions);
        }
    }

    /// Device slots are there for some of the request's candidates; the others stay where they are.
    pub(crate) fn start_promotions(&mut self, ticket: Ticket, slots: u32, actions: &mut Actions) {
        let Some(index) = self.promotions.iter().position(|promotion| promotion.ticket == ticket) else {
            return;
        };
        let mut left = slots;
        for id in std::mem::take(&mut self.promotions[index].candidates) {
            let Some(copies) = self.slab.get(id).filter(|entry| entry.live > 0).map(|entry| entry.in_slots()) else {
                continue;
            };
            if left > 0 && copies == IN_HOST {
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
            let under_way = [&promotion.loading, &promotion.candidates, &promotion.waiting_for];
            let ended = promotion.asked.is_none() && under_way.iter().all(|entries| entries.is_empty());
            if ended {
                let Promotion { ticket, arrived, loaded, missed, .. } = *promotion;
                actions.push(Action::Promoted { ticket, arrived, loaded, missed });
            }
            !ended
        });
    }
}
