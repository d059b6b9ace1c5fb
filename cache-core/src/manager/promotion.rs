//! Bringing blocks nearer: disk -> host, then host -> device, as far as there is room that no live block needs.
//!
//! A request loads in chain order, until no host slot is free and no idle host copy can go. A block whose load has ended asks for a device
//! slot at once, like any request for room, with idle copies as its only victims; the loads behind it go on meanwhile. Device slots go to
//! the first blocks of the chain: one that arrives early starts only if there is room for those before it as well. A request has one
//! request for room at a time, and holds no device slot for a block that is still being loaded.
//!
//! **Without host slots** blocks go from the disk into device slots at once: the promotion's source is then the record.
//!
//! A load that finds the host full after all (a lease) is no failure: the block stays on the disk, and is read there. A block that two
//! requests want is copied once, and a failure gives each of them its own miss.

use crate::manager::action::{Action, Actions};
use crate::manager::entry::{CopyState, EntryId};
use crate::manager::event::{CopyEnd, Ticket};
use crate::manager::room::{Purpose, Room};
use crate::manager::shard::{DEVICE, HOST, Shard};
use crate::miss::MissReason;
use crate::units::Tier;

/// A request for promotion and the copies that it waits for.
#[derive(Clone, Debug)]
pub(crate) struct Promotion {
    ticket: Ticket,
    /// Copies disk -> host.
    loading: Vec<EntryId>,
    /// Blocks that may go on to device memory, in chain order: in the host, or on their way there.
    ahead: Vec<EntryId>,
    /// Blocks for which device slots were asked for.
    candidates: Vec<EntryId>,
    /// Copies host -> device.
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
            loading,
            ahead: if nearest == Tier::Device { entries.to_vec() } else { Vec::new() },
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

    /// True while a copy is being promoted or loaded into this tier.
    pub(crate) fn is_coming_up(&self, id: EntryId, tier: Tier) -> bool {
        match tier {
            Tier::Device => self.slab.get(id).is_some_and(|entry| entry.copies[DEVICE] == CopyState::Arriving),
            Tier::Host => self.slab.get(id).is_some() && self.is_loading(id),
            Tier::Disk | Tier::Remote => false,
        }
    }

    /// How a copy upwards really ended: one that has come but must not stay has failed.
    fn judge(&mut self, id: EntryId, tier: Tier, end: CopyEnd, actions: &mut Actions) -> (CopyEnd, Option<MissReason>) {
        let condemned = self.slab[id].condemned.take();
        if condemned.is_some() && end == CopyEnd::Done {
            actions.push(Action::Discard { key: self.slab[id].key, tier });
            return (CopyEnd::Failed, condemned);
        }
        (end, condemned)
    }

    pub(crate) fn loaded(&mut self, id: EntryId, end: CopyEnd, actions: &mut Actions) {
        if self.slab.get(id).is_none_or(|entry| entry.copies[HOST] != CopyState::Arriving) {
            return;
        }
        let (end, condemned) = self.judge(id, Tier::Host, end, actions);
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
        self.went_condemned(id, Tier::Host, condemned);
        self.went_unnoticed(id, Tier::Disk);
        self.go_on(actions);
    }

    pub(crate) fn onboarded(&mut self, id: EntryId, end: CopyEnd, actions: &mut Actions) {
        if self.slab.get(id).is_none_or(|entry| entry.copies[DEVICE] != CopyState::Arriving) {
            return;
        }
        let source = if self.loads_directly() { Tier::Disk } else { Tier::Host };
        let (end, condemned) = self.judge(id, Tier::Device, end, actions);
        let arrived = end == CopyEnd::Done;
        if arrived {
            self.counters.promoted_blocks += 1;
            self.counters.loaded_blocks += u64::from(source == Tier::Disk);
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
            CopyEnd::Damaged => self.lost_under(id, source, MissReason::FailedCheck, waiters, actions),
            CopyEnd::SourceLost if source == Tier::Disk => {
                self.lost_under(id, source, MissReason::Evicted, waiters, actions);
            }
            CopyEnd::SourceLost => self.lost_under(id, source, MissReason::LeaseLost, waiters, actions),
            CopyEnd::Done | CopyEnd::Full | CopyEnd::Failed => {}
        }
        self.went_condemned(id, Tier::Device, condemned);
        self.went_unnoticed(id, source);
        self.answer_promotions(actions);
    }

    /// The last copy of a block went with one that had been condemned.
    fn went_condemned(&mut self, id: EntryId, tier: Tier, condemned: Option<MissReason>) {
        let is_last = self.slab.get(id).is_some_and(|entry| entry.is_bare() && entry.loss.is_none());
        if let Some(reason) = condemned.filter(|_| is_last) {
            self.counters.miss(reason);
            self.went(id, tier, reason);
        }
    }

    /// The source of a copy that several waited for is lost: one miss is counted with it, every further waiter has its own.
    fn lost_under(&mut self, id: EntryId, tier: Tier, reason: MissReason, waiters: u32, actions: &mut Actions) {
        (1..waiters).for_each(|_| self.counters.miss(reason));
        self.lost(id, tier, reason, actions);
    }

    /// Asks for device slots for what has come into the host, and answers requests of which all copies have ended.
    pub(crate) fn go_on(&mut self, actions: &mut Actions) {
        for index in 0..self.promotions.len() {
            if self.promotions[index].candidates.is_empty() {
                self.ask_for_slots(index, actions);
            }
        }
        self.answer_promotions(actions);
    }

    fn ask_for_slots(&mut self, index: usize, actions: &mut Actions) {
        let spare = (self.device_free() + self.candidates.idle(DEVICE).len()) as usize;
        let mut coming = 0;
        let direct = self.loads_directly();
        let promotion = &mut self.promotions[index];
        for id in std::mem::take(&mut promotion.ahead) {
            let Some(entry) = self.slab.get(id).filter(|entry| entry.live > 0) else {
                continue;
            };
            match entry.in_slots() {
                [CopyState::Arriving, _] => promotion.waiting_for.push(id),
                [CopyState::None, host] if host.stays() || (direct && entry.on_disk()) => {
                    let starts = host != CopyState::Arriving && coming < spare;
                    if starts { &mut promotion.candidates } else { &mut promotion.ahead }.push(id);
                    coming += 1;
                }
                _ => {}
            }
        }
        if promotion.loading.is_empty() {
            // No load will fail any more and leave its room to what is left.
            promotion.ahead.clear();
        }
        let (ticket, wanted) = (promotion.ticket, promotion.candidates.len() as u32);
        if wanted > 0 {
            self.fill(Room::new(ticket, Purpose::Promote, wanted), actions);
        }
    }

    /// Device slots are there for some of the request's candidates; the others stay where they are.
    pub(crate) fn start_promotions(&mut self, ticket: Ticket, slots: u32, actions: &mut Actions) {
        let Some(index) = self.promotions.iter().position(|promotion| promotion.ticket == ticket) else {
            return;
        };
        let mut left = slots;
        for id in std::mem::take(&mut self.promotions[index].candidates) {
            let Some(entry) = self.slab.get(id).filter(|entry| entry.live > 0) else {
                continue;
            };
            let has_source = entry.copies[HOST] == CopyState::Resident || (self.loads_directly() && entry.on_disk());
            match entry.copies[DEVICE] {
                // Another request has started it meanwhile.
                CopyState::Arriving => self.promotions[index].waiting_for.push(id),
                CopyState::None if has_source && left > 0 => {
                    left -= 1;
                    self.set_copy(id, DEVICE, CopyState::Arriving);
                    self.promotions[index].waiting_for.push(id);
                    actions.push(Action::Promote { entry: id, key: self.slab[id].key });
                }
                _ => {}
            }
        }
    }

    /// True where a promotion reads from the record.
    fn loads_directly(&self) -> bool {
        self.budgets.host_slots == 0
    }

    fn answer_promotions(&mut self, actions: &mut Actions) {
        self.promotions.retain(|promotion| {
            let under_way = [&promotion.loading, &promotion.candidates, &promotion.waiting_for];
            let ended = under_way.iter().all(|entries| entries.is_empty());
            if ended {
                let Promotion { ticket, arrived, loaded, missed, .. } = *promotion;
                actions.push(Action::Promoted { ticket, arrived, loaded, missed });
            }
            !ended
        });
    }
}
