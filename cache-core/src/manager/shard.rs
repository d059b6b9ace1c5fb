//! The state machine of one shard.

use crate::chain::Link;
use crate::hash::Namespace;
use crate::hasher::DigestMap;
use crate::key::CopyKey;
use crate::manager::action::{Action, Actions, Shortage};
use crate::manager::census::CensusByNamespace;
use crate::manager::counters::Counters;
use crate::manager::entry::{CopyState, EntryId, EntryView, Slab, map_bytes_per_key, map_for};
use crate::manager::event::{Event, Owner};
use crate::manager::eviction::Candidates;
use crate::manager::ghost::{Ghost, GhostTable};
use crate::manager::promotion::Promotion;
use crate::manager::room::Room;
use crate::units::{Now, Tier};

pub(crate) const DEVICE: usize = 0;
pub(crate) const HOST: usize = 1;
pub(crate) const DISK: usize = 2;

/// Hard limits of a shard, in slots and entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgets {
    /// Device slots, open blocks included.
    pub device_slots: u32,
    /// Host slots.
    pub host_slots: u32,
    /// Live blocks that may be on the disk alone, each with an entry of the index and no slot. 0 = there is no disk.
    pub below_entries: u32,
}

impl Budgets {
    /// Metadata per entry in bytes: entry, index, candidate lists, open-block table and four ghost records.
    pub const BYTES_PER_ENTRY: u64 = Slab::BYTES_PER_ENTRY
        + Candidates::BYTES_PER_ENTRY
        + map_bytes_per_key(size_of::<(CopyKey, Owner)>())
        + GHOSTS_PER_ENTRY as u64 * GhostTable::BYTES_PER_RECORD
        + 2 * size_of::<EntryId>() as u64;

    /// Entries of the index: one per slot, and those below. A block that lost its copies while others stand on it, or read it, keeps its entry without
    /// a slot; when entries run out before slots, idle leaves make room for new blocks.
    pub fn entries(&self) -> u32 {
        self.device_slots + self.host_slots + self.below_entries
    }

    /// Bytes of metadata that a shard with these budgets allocates when it is made.
    pub fn metadata_bytes(&self) -> u64 {
        SHARD_BYTES + u64::from(self.entries()) * Self::BYTES_PER_ENTRY
    }
}

const GHOSTS_PER_ENTRY: u32 = 4;

/// What a shard takes without entries: itself, the smallest maps, the summary levels of the depth bitmap.
const SHARD_BYTES: u64 = 4096;

/// One shard of the cache manager: plain state over [device, host, disk]. See [`crate::manager`].
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
    /// Live blocks for which no slot stands, or soon none will.
    pub(crate) below: u32,
    /// Records that the disk was asked to keep.
    pub(crate) pins: u32,
    /// Device slots granted for open blocks, and how many of those have an entry already.
    pub(crate) open: u32,
    pub(crate) open_held: u32,
    /// Device slots set aside for requests that still wait for demotions.
    pub(crate) aside: u32,
    pub(crate) opened: DigestMap<CopyKey, Owner>,
    pub(crate) rooms: Vec<Room>,
    pub(crate) promotions: Vec<Promotion>,
    pub(crate) parked: Vec<EntryId>,
    /// Readers of its first place are other processes: see [`Shard::lending`].
    pub(crate) lends: bool,
    /// Kept by a lending shard alone.
    pub(crate) census: Option<CensusByNamespace>,
    pub(crate) now: Now,
}

impl Shard {
    /// A shard without entries; everything that grows with the budgets is allocated here.
    pub fn new(budgets: Budgets) -> Shard {
        let entries = budgets.entries();
        Shard {
            budgets,
            lends: false,
            census: None,
            slab: Slab::new(entries),
            candidates: Candidates::new(entries),
            ghosts: GhostTable::new(entries * GHOSTS_PER_ENTRY),
            counters: Counters::default(),
            used: [0; 2],
            leaving: [0; 2],
            live_held: [0; 2],
            below: 0,
            pins: 0,
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

    /// A shard whose first place is memory that other processes read, as a daemon's host arena: a live copy there never leaves to the disk, since
    /// its readers have its address. It has no slots below that place ([`Budgets::host_slots`] = 0): what the disk has is promoted into it.
    pub fn lending(budgets: Budgets) -> Shard {
        debug_assert_eq!(budgets.host_slots, 0, "a lending shard has one place of slots");
        Shard { lends: true, census: Some(map_for(budgets.device_slots)), ..Shard::new(budgets) }
    }

    /// Changes how many slots of the first place may be used. Panics when that is fewer than are used, or more than the shard was made for.
    pub fn set_device_slots(&mut self, slots: u32) {
        let made_for = self.slab.capacity() - self.budgets.host_slots - self.budgets.below_entries;
        assert!(slots >= self.device_used() && slots <= made_for, "{slots} of {made_for} slots");
        self.budgets.device_slots = slots;
    }

    /// Takes an event in and returns what is to be done about it, in order.
    pub fn on(&mut self, event: Event<'_>, now: Now) -> Actions {
        self.now = self.now.max(now);
        let mut actions = Actions::new();
        match event {
            Event::Acquire { keys, links, below, accept } => {
                self.acquire(keys, links, below, accept, &mut actions);
            }
            Event::Release { entries } => self.release(entries, &mut actions),
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
            Event::Promote { ticket, entries } => self.promote(ticket, entries, Tier::Device, &mut actions),
            Event::Load { ticket, entries } => self.promote(ticket, entries, Tier::Host, &mut actions),
            Event::Demoted { entry, end } => self.demoted(entry, end, &mut actions),
            Event::Onboarded { entry, end } => self.onboarded(entry, end, &mut actions),
            Event::Stored { key, spill, end } => self.stored(key, spill, end, &mut actions),
            Event::Loaded { entry, end } => self.loaded(entry, end, &mut actions),
            Event::Dropped { entry, refused } => self.dropped(entry, refused, &mut actions),
            Event::Lost { entry, tier, reason } if self.is_coming_up(entry, tier) => {
                self.slab[entry].condemned = Some(reason);
            }
            Event::Lost { entry, tier, reason } => self.lost(entry, tier, reason, &mut actions),
        }
        actions
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

    /// The key of an entry.
    pub fn key(&self, id: EntryId) -> Option<&CopyKey> {
        self.slab.get(id).map(|entry| &entry.key)
    }

    /// The entries of a namespace. O(entries).
    pub fn entries_of(&self, namespace: &Namespace) -> Vec<(EntryId, EntryView)> {
        let known = |id: EntryId| self.entry(id).map(|view| (id, view));
        self.slab.ids().filter_map(known).filter(|(_, view)| view.key.namespace == *namespace).collect()
    }

    /// Copies in the first place, arriving ones included.
    pub fn resident(&self) -> u32 {
        self.used[DEVICE]
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

    /// True while a block of a namespace is open. O(open blocks).
    pub fn has_open(&self, namespace: &Namespace) -> bool {
        self.opened.keys().any(|key| key.namespace == *namespace)
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

    /// Live blocks for which no slot stands, or soon none will: on the disk alone, on their way there or back, or lost.
    pub fn below(&self) -> u32 {
        self.below
    }

    pub(crate) fn has_disk(&self) -> bool {
        self.budgets.below_entries > 0
    }

    /// True while one more live block may be without a slot.
    pub(crate) fn has_room_below(&self) -> bool {
        self.below < self.budgets.below_entries
    }

    pub(crate) fn shortage(&self, wanted_slots: u32) -> Shortage {
        Shortage {
            wanted_slots,
            device_slots: self.budgets.device_slots,
            device_live_slots: self.open + self.aside + self.live_held[DEVICE],
            host_slots: self.budgets.host_slots,
            host_live_slots: self.live_held[HOST],
            below_entries: self.budgets.below_entries,
            below_live: self.below,
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
        let [device, host] = self.slab[entry].in_slots();
        // A copy that is just being loaded is not there yet; this one is.
        let stays = device.stays() || (host.stays() && !self.is_loading(entry));
        let inserted = self.slab[entry].readable().is_none() && !stays;
        if inserted {
            self.slab[entry].loss = None;
            self.ghosts.forget(&key);
            self.set_copy(entry, DEVICE, CopyState::Resident);
            if self.slab[entry].on_disk() && self.slab[entry].live == 0 {
                // Nothing has kept that record since it was last seen.
                self.set_disk(entry, CopyState::None, actions);
            }
        }
        if !held {
            self.set_live(entry, self.slab[entry].live + 1, actions);
        }
        actions.push(Action::Committed { entry, inserted });
        if inserted && self.has_disk() && self.slab[entry].copies[DISK] == CopyState::None {
            self.store(entry, false, actions);
        }
    }
}
