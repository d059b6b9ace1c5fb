//! The state machine of one shard.

use std::collections::HashMap;

use crate::chain::Link;
use crate::form::Accept;
use crate::hash::Namespace;
use crate::key::{CopyKey, GroupId};
use crate::manager::action::{Action, Actions, Shortage};
use crate::manager::counters::{Counters, side};
use crate::manager::entry::{CopyState, EntryId, EntryView, Slab, map_bytes_per_key, map_for};
use crate::manager::event::{CopyEnd, Event, Owner};
use crate::manager::eviction::Candidates;
use crate::manager::ghost::{Ghost, GhostTable};
use crate::manager::room::{Promotion, Room};
use crate::miss::MissReason;
use crate::units::{Now, Tier};

pub(crate) const DEVICE: usize = 0;
pub(crate) const HOST: usize = 1;

/// Hard limits of a shard, in slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Device slots, open blocks included.
    pub device_slots: u32,
    /// Host slots.
    pub host_slots: u32,
}

impl Budgets {
    /// Metadata per entry in bytes: entry, index, candidate lists, open-block table and four ghost records.
    pub const BYTES_PER_ENTRY: u64 = Slab::BYTES_PER_ENTRY
        + Candidates::BYTES_PER_ENTRY
        + map_bytes_per_key(size_of::<(CopyKey, Owner)>())
        + GHOSTS_PER_ENTRY as u64 * GhostTable::BYTES_PER_RECORD
        + 2 * size_of::<EntryId>() as u64;

    /// Entries of the index: one per slot. A block that lost its copies while others stand on it, or read it, keeps its entry without
    /// a slot; when entries run out before slots, idle leaves make room for new blocks.
    pub fn entries(&self) -> u32 {
        self.device_slots + self.host_slots
    }

    /// Bytes of metadata that a shard with these budgets allocates when it is made.
    pub fn metadata_bytes(&self) -> u64 {
        SHARD_BYTES + u64::from(self.entries()) * Self::BYTES_PER_ENTRY
    }
}

const GHOSTS_PER_ENTRY: u32 = 4;

/// What a shard takes without entries: itself, the smallest maps, the summary levels of the depth bitmap.
const SHARD_BYTES: u64 = 4096;

/// One shard of the cache manager: plain state over [device, host]. See [`crate::manager`].
#[derive(Clone, Debug)]
pub struct Shard {
    pub(crate) budgets: Budgets,
    pub(crate) slab: Slab,
    pub(crate) candidates: Candidates,
    pub(crate) ghosts: GhostTable,
    pub(crate) counters: Counters,
    /// Copies that stay (arriving or resident), per tier.
    pub(crate) used: [u32; 2],
    /// Copies that are leaving, per tier.
    pub(crate) leaving: [u32; 2],
    /// Copies of live entries, per tier.
    pub(crate) live_held: [u32; 2],
    /// Device slots granted for open blocks, and how many of those have an entry already.
    pub(crate) open: u32,
    pub(crate) open_held: u32,
    /// Device slots set aside for requests that still wait for demotions.
    pub(crate) aside: u32,
    pub(crate) opened: HashMap<CopyKey, Owner>,
    pub(crate) rooms: Vec<Room>,
    pub(crate) promotions: Vec<Promotion>,
    pub(crate) parked: Vec<EntryId>,
    pub(crate) now: Now,
}

impl Shard {
    /// A shard without entries; everything that grows with the budgets is allocated here.
    pub fn new(budgets: Budgets) -> Shard {
        let entries = budgets.entries();
        Shard {
            budgets,
            slab: Slab::new(entries),
            candidates: Candidates::new(entries),
            ghosts: GhostTable::new(entries * GHOSTS_PER_ENTRY),
            counters: Counters::default(),
            used: [0; 2],
            leaving: [0; 2],
            live_held: [0; 2],
            open: 0,
            open_held: 0,
            aside: 0,
            opened: map_for(budgets.device_slots),
            rooms: Vec::new(),
            promotions: Vec::new(),
            parked: Vec::with_capacity(budgets.host_slots as usize),
            now: Now(0),
        }
    }

    /// Takes an event in and returns what is to be done about it, in order.
    pub fn on(&mut self, event: Event<'_>, now: Now) -> Actions {
        self.now = self.now.max(now);
        let mut actions = Actions::new();
        match event {
            Event::Acquire { namespace, links, accept } => self.acquire(namespace, links, accept, &mut actions),
            Event::Release { entries } => self.release(entries),
            Event::Room { ticket, owner, keys, held } => self.room(ticket, owner, keys, held, &mut actions),
            Event::Abandon { owner, keys, held } => self.abandon(owner, keys, held),
            Event::Commit { owner, opened_for, key, link, held } => {
                let again = opened_for.filter(|_| held).and_then(|key| self.slab.find(&key));
                let again = again.filter(|id| self.slab[*id].live > 0);
                self.close_open(owner, opened_for, again.is_some());
                match again {
                    Some(entry) if opened_for != Some(key) => {
                        actions.push(Action::Committed { entry, inserted: false });
                    }
                    _ => self.commit(key, link, again.is_some(), &mut actions),
                }
            }
            Event::Promote { ticket, entries } => self.promote(ticket, entries, &mut actions),
            Event::Demoted { entry, end } => self.demoted(entry, end, &mut actions),
            Event::Onboarded { entry, end } => self.onboarded(entry, end, &mut actions),
            Event::Dropped { entry, refused } => self.dropped(entry, refused, &mut actions),
            Event::Lost { entry, tier, reason } => self.lost(entry, tier, reason, &mut actions),
        }
        actions
    }

    /// The longest run of `links` that is there, and why the next is not. Changes nothing.
    pub fn peek(
        &self,
        namespace: Namespace,
        links: &[Link],
        accept: Accept,
    ) -> (Vec<(EntryId, Tier)>, Option<MissReason>) {
        let mut hits = Vec::with_capacity(links.len());
        for link in links {
            match self.find(namespace, link, accept) {
                Ok(hit) => hits.push(hit),
                Err(reason) => return (hits, Some(reason)),
            }
        }
        (hits, None)
    }

    /// What is known of a copy.
    pub fn view(&self, key: &CopyKey) -> Option<(EntryId, EntryView)> {
        let id = self.slab.find(key)?;
        self.entry(id).map(|view| (id, view))
    }

    /// What is known of an entry.
    pub fn entry(&self, id: EntryId) -> Option<EntryView> {
        let entry = self.slab.get(id)?;
        let link = Link { hash: entry.key.hash, parent: entry.parent_hash, depth: entry.depth };
        Some(EntryView { key: entry.key, link, live: entry.live, copies: entry.copies, loss: entry.loss })
    }

    /// What is known of a copy that is gone.
    pub fn ghost(&self, key: &CopyKey) -> Option<Ghost> {
        self.ghosts.find(key)
    }

    /// The latest departure that is no longer remembered.
    pub fn forgotten_until(&self) -> Option<Now> {
        self.ghosts.forgotten_until()
    }

    /// Who has a block open, if its key was known when it was opened.
    pub fn opened_by(&self, key: &CopyKey) -> Option<Owner> {
        self.opened.get(key).copied()
    }

    /// Counters since the shard was made.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The budgets.
    pub fn budgets(&self) -> Budgets {
        self.budgets
    }

    /// Device slots in use: copies, open blocks and slots set aside.
    pub fn device_used(&self) -> u32 {
        self.used[DEVICE] + self.leaving[DEVICE] + self.open + self.aside
    }

    /// Host slots in use. While a drop and the copy that takes its slot are both under way, the slot counts for the latter only.
    pub fn host_used(&self) -> u32 {
        self.used[HOST]
    }

    /// Entries in the index: blocks with a copy, and lost ones that somebody still reads.
    pub fn entries(&self) -> u32 {
        self.slab.used()
    }

    pub(crate) fn shortage(&self, wanted_slots: u32) -> Shortage {
        Shortage {
            wanted_slots,
            device_slots: self.budgets.device_slots,
            device_live_slots: self.open + self.aside + self.live_held[DEVICE],
            host_slots: self.budgets.host_slots,
            host_live_slots: self.live_held[HOST],
        }
    }

    fn find(&self, namespace: Namespace, link: &Link, accept: Accept) -> Result<(EntryId, Tier), MissReason> {
        let mut reason = None;
        for id in self.slab.variants(namespace, link.hash, GroupId(0)) {
            let entry = &self.slab[id];
            let admitted = accept.admits(entry.key.form, entry.key.provenance);
            match (entry.readable(), admitted) {
                (Some(tier), true) => return Ok((id, tier)),
                (Some(_), false) => reason = Some(MissReason::Provenance),
                (None, true) => reason = reason.or(entry.loss),
                (None, false) => {}
            }
        }
        let ghost = || self.ghosts.find(&CopyKey::exact(namespace, link.hash)).map(|ghost| ghost.reason);
        Err(reason.or_else(ghost).unwrap_or(MissReason::NeverStored))
    }

    fn acquire(&mut self, namespace: Namespace, links: &[Link], accept: Accept, actions: &mut Actions) {
        let (hits, miss) = self.peek(namespace, links, accept);
        for (id, tier) in &hits {
            self.set_live(*id, self.slab[*id].live + 1);
            self.counters.hits[side(*tier)] += 1;
        }
        // A block that another sequence computes right now is waited for, and looked up again: no miss.
        let waits =
            links.get(hits.len()).is_some_and(|link| self.opened.contains_key(&CopyKey::exact(namespace, link.hash)));
        if let Some(reason) = miss
            && !waits
        {
            self.counters.miss(reason);
        }
        actions.push(Action::Acquired { hits, miss });
    }

    fn release(&mut self, entries: &[EntryId]) {
        for id in entries.iter().rev() {
            self.set_live(*id, self.slab[*id].live - 1);
            self.free_if_unused(*id);
        }
    }

    fn close_open(&mut self, owner: Owner, opened_for: Option<CopyKey>, held: bool) {
        self.open -= 1;
        // A caller that counts its held blocks otherwise than at the request must not leave more of them than open ones.
        self.open_held = self.open_held.saturating_sub(u32::from(held)).min(self.open);
        if let Some(key) = opened_for.filter(|key| self.opened.get(key) == Some(&owner)) {
            self.opened.remove(&key);
        }
    }

    fn abandon(&mut self, owner: Owner, keys: &[Option<CopyKey>], held: u32) {
        for (index, key) in keys.iter().enumerate() {
            self.close_open(owner, *key, index < held as usize);
        }
    }

    fn commit(&mut self, key: CopyKey, link: Link, held: bool, actions: &mut Actions) {
        let known = self.slab.find(&key);
        let entry = known.unwrap_or_else(|| self.slab.insert(key, link));
        let copies = self.slab[entry].copies;
        let inserted = self.slab[entry].readable().is_none() && !copies.iter().any(|copy| copy.stays());
        if inserted {
            self.slab[entry].loss = None;
            self.ghosts.forget(&key);
            self.set_copy(entry, DEVICE, CopyState::Resident);
        }
        if !held {
            self.set_live(entry, self.slab[entry].live + 1);
        }
        actions.push(Action::Committed { entry, inserted });
    }

    fn dropped(&mut self, id: EntryId, refused: bool, actions: &mut Actions) {
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

    pub(crate) fn lost(&mut self, id: EntryId, tier: Tier, reason: MissReason, actions: &mut Actions) {
        let Some(key) =
            self.slab.get(id).filter(|entry| entry.copies[side(tier)] != CopyState::None).map(|entry| entry.key)
        else {
            return;
        };
        actions.push(Action::Discard { key, tier });
        self.counters.miss(reason);
        self.counters.lost_blocks[side(tier)] += 1;
        let leaves = side(tier) == HOST && self.slab[id].copies[HOST] == CopyState::Leaving;
        let awaited_by = if leaves { self.slab[id].awaited_by.take() } else { None };
        self.set_copy(id, side(tier), CopyState::None);
        self.went(id, tier, reason);
        if let Some(ticket) = awaited_by {
            self.drop_ended(ticket, actions);
        }
    }

    /// Drops a device copy to make room.
    pub(crate) fn evict_device(&mut self, id: EntryId, actions: &mut Actions) {
        self.counters.evicted_blocks[DEVICE] += 1;
        actions.push(Action::Drop { entry: id, key: self.slab[id].key, tier: Tier::Device });
        self.set_copy(id, DEVICE, CopyState::None);
        self.went(id, Tier::Device, MissReason::Evicted);
    }

    /// A copy has gone: if it was the last one, remember how, and free the entry if nobody needs it.
    fn went(&mut self, id: EntryId, tier: Tier, reason: MissReason) {
        if self.slab[id].is_bare() {
            self.slab[id].loss = Some(reason);
            self.ghosts.record(&self.slab[id].key, tier, reason, self.now);
            self.free_if_unused(id);
        }
    }

    /// The source of a copy was lost while it ran, and now the copy has failed as well.
    pub(crate) fn went_unnoticed(&mut self, id: EntryId, tier: Tier) {
        if self.slab.get(id).is_some_and(|entry| entry.is_bare() && entry.loss.is_none()) {
            self.went(id, tier, MissReason::LeaseLost);
        }
    }

    /// Frees an entry without copies, readers and children, and then its parents that only waited for it.
    pub(crate) fn free_if_unused(&mut self, id: EntryId) {
        let mut next = Some(id);
        while let Some(id) = next {
            let entry = &self.slab[id];
            if !entry.is_bare() || entry.live > 0 || entry.children > 0 {
                return;
            }
            next = self.slab.remove(id);
        }
    }

    pub(crate) fn set_copy(&mut self, id: EntryId, tier: usize, state: CopyState) {
        let entry = &mut self.slab[id];
        let before = std::mem::replace(&mut entry.copies[tier], state);
        let (live, parent) = (entry.live > 0, entry.parent);
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
        self.candidates.refresh(&mut self.slab, id);
    }

    fn set_live(&mut self, id: EntryId, live: u32) {
        let entry = &mut self.slab[id];
        let before = std::mem::replace(&mut entry.live, live);
        for tier in [DEVICE, HOST] {
            if entry.copies[tier] != CopyState::None {
                self.live_held[tier] = self.live_held[tier] + u32::from(live > 0) - u32::from(before > 0);
            }
        }
        self.candidates.refresh(&mut self.slab, id);
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
        let entry = &self.slab[id];
        if entry.copies[DEVICE] != CopyState::Leaving {
            self.went_unnoticed(id, Tier::Device);
        } else if entry.live == 0 && entry.children == 0 {
            self.evict_device(id, actions);
        } else {
            self.set_copy(id, DEVICE, CopyState::Resident);
        }
    }
}
