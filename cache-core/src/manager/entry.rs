//! Entries: what is known of each block, in a slab that is allocated up front.

use crate::chain::Link;
use crate::form::Provenance;
use crate::hash::{BlockHash, Namespace};
use crate::hasher::{self, DigestMap};
use crate::key::{CopyKey, GroupId};
use crate::manager::event::Ticket;
use crate::miss::MissReason;
use crate::units::Tier;

/// Index of an entry in its shard. Good as long as its holder keeps the entry live, or a copy of it is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId(pub(crate) u32);

/// State of a block's copy in one tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyState {
    /// No copy.
    None,
    /// Being written.
    Arriving,
    /// Committed. On the disk: it was there when it was last seen; while a sequence reads the block it is pinned, and so still is.
    Resident,
    /// Device: being demoted or spilled, still readable. Host: being dropped, no longer readable. Disk: never.
    Leaving,
}

impl CopyState {
    /// True for a copy that takes a slot and is not about to free it.
    pub(crate) fn stays(self) -> bool {
        matches!(self, CopyState::Arriving | CopyState::Resident)
    }
}

/// An intrusive list that an entry can stand in, one per tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listed {
    /// In none.
    No,
    /// Idle copies, least recently used first.
    Idle,
    /// Live device copies of one depth.
    Live,
    /// Live host copies beside a resident device copy.
    Redundant,
    /// Live host copies of one depth, without a device copy but with one on the disk.
    Backed,
}

/// Neighbours in a list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neighbours {
    pub(crate) listed: Listed,
    pub(crate) before: Option<EntryId>,
    pub(crate) after: Option<EntryId>,
}

/// What a device copy leaves to the disk for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spill {
    /// The request for room that waits for it.
    pub(crate) ticket: Ticket,
    /// It goes with a write-behind that was under way, which the disk may turn down as any other.
    pub(crate) joined: bool,
}

/// One block of one form and provenance.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: CopyKey,
    pub(crate) parent_hash: Option<BlockHash>,
    pub(crate) depth: u32,
    pub(crate) parent: Option<EntryId>,
    pub(crate) next_variant: Option<EntryId>,
    /// Sequences that read it.
    pub(crate) live: u32,
    /// Child entries, whatever copies they have.
    pub(crate) children: u32,
    /// Child entries with a copy that stays, per tier.
    pub(crate) children_in: [u32; 2],
    /// Device, host, disk.
    pub(crate) copies: [CopyState; 3],
    pub(crate) lists: [Neighbours; 2],
    /// The request for room that waits for this demotion, or for the drop of this host copy.
    pub(crate) awaited_by: Option<Ticket>,
    /// The device copy leaves to the disk: it goes when the write has ended.
    pub(crate) spill: Option<Spill>,
    /// Why it has no copy, while it has none. One on its way to the disk is none.
    pub(crate) loss: Option<MissReason>,
    /// A lease stood in the way of its eviction: no candidate until the next request for room.
    pub(crate) parked: bool,
    /// The copy that is on its way up into a slot must not stay there: why.
    pub(crate) condemned: Option<MissReason>,
}

impl Entry {
    /// The nearest slot with a copy that can be read.
    pub(crate) fn readable(&self) -> Option<Tier> {
        match self.copies {
            [CopyState::Resident | CopyState::Leaving, ..] => Some(Tier::Device),
            [_, CopyState::Resident, _] => Some(Tier::Host),
            _ => None,
        }
    }

    /// Device and host.
    pub(crate) fn in_slots(&self) -> [CopyState; 2] {
        [self.copies[0], self.copies[1]]
    }

    pub(crate) fn on_disk(&self) -> bool {
        self.copies[2] == CopyState::Resident
    }

    /// True without a copy, and without one on its way to a slot.
    pub(crate) fn is_bare(&self) -> bool {
        self.in_slots() == [CopyState::None; 2] && !self.on_disk()
    }

    /// True when nobody needs the entry. What the disk has is in the disk's own index.
    pub(crate) fn is_unused(&self) -> bool {
        self.in_slots() == [CopyState::None; 2] && self.live == 0 && self.children == 0
    }

    /// True when the disk keeps the record for a live sequence.
    pub(crate) fn is_pinned(&self) -> bool {
        self.live > 0 && self.on_disk()
    }

    /// True for a live block for which no slot stands, or soon none will: it takes one of the entries that there are beyond the slots.
    /// A block on its way from the disk into the host counts until it has arrived. One on its way out of device memory counts even if
    /// nobody reads it any more, since somebody may again.
    pub(crate) fn is_below(&self) -> bool {
        match self.in_slots() {
            [CopyState::None, host] => self.live > 0 && host != CopyState::Resident,
            [CopyState::Leaving, host] => matches!(host, CopyState::None | CopyState::Leaving),
            [CopyState::Arriving | CopyState::Resident, _] => false,
        }
    }
}

/// What a shard tells of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryView {
    /// Its key.
    pub key: CopyKey,
    /// Its place in the chain.
    pub link: Link,
    /// Sequences that read it.
    pub live: u32,
    /// Its copies: device, host, disk.
    pub copies: [CopyState; 3],
    /// Why it has no copy, while it has none. One on its way to the disk is none.
    pub loss: Option<MissReason>,
}

/// A map for at most `keys` keys, made for twice as many: it then clears its tombstones in place and never grows.
pub(crate) fn map_for<K, V>(keys: u32) -> DigestMap<K, V> {
    hasher::map(2 * keys as usize)
}

/// Bytes per key of [`map_for`]: at most 32/7 buckets (twice the keys, 7/8 full, rounded up to a power of two), each with a control byte.
pub(crate) const fn map_bytes_per_key(pair_bytes: usize) -> u64 {
    5 * (pair_bytes as u64 + 1)
}

/// What copies of one block share, whatever their form and provenance.
type BlockName = (Namespace, BlockHash, GroupId);

fn name(key: &CopyKey) -> BlockName {
    (key.namespace, key.hash, key.group)
}

/// The entries of a shard and the index over them.
#[derive(Clone, Debug)]
pub(crate) struct Slab {
    entries: Vec<Option<Entry>>,
    free: Vec<EntryId>,
    by_name: DigestMap<BlockName, EntryId>,
}

impl Slab {
    /// Bytes of an entry, its free-list place and its part of the index.
    pub(crate) const BYTES_PER_ENTRY: u64 = (size_of::<Option<Entry>>() + size_of::<EntryId>()) as u64
        + map_bytes_per_key(size_of::<(BlockName, EntryId)>());

    pub(crate) fn new(capacity: u32) -> Slab {
        Slab {
            entries: vec![None; capacity as usize],
            free: (0..capacity).rev().map(EntryId).collect(),
            by_name: map_for(capacity),
        }
    }

    pub(crate) fn capacity(&self) -> u32 {
        self.entries.len() as u32
    }

    pub(crate) fn free_entries(&self) -> u32 {
        self.free.len() as u32
    }

    pub(crate) fn used(&self) -> u32 {
        (self.entries.len() - self.free.len()) as u32
    }

    pub(crate) fn get(&self, id: EntryId) -> Option<&Entry> {
        self.entries.get(id.0 as usize)?.as_ref()
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = EntryId> + '_ {
        (0..self.entries.len() as u32).map(EntryId).filter(|id| self.get(*id).is_some())
    }

    /// The variants of a block, `key`'s among them: one entry per form and provenance.
    pub(crate) fn variants(&self, key: &CopyKey) -> impl Iterator<Item = EntryId> + '_ {
        let first = self.by_name.get(&name(key)).copied();
        std::iter::successors(first, |id| self[*id].next_variant)
    }

    pub(crate) fn find(&self, key: &CopyKey) -> Option<EntryId> {
        self.variants(key).find(|id| self[*id].key == *key)
    }

    /// Adds an entry without copies. The caller has made sure that one is free.
    ///
    /// A lossless copy of a block that comes after something lossy serves as a window: closed copies stand for the blocks before it, so it
    /// stands on none, and none is kept for its sake.
    pub(crate) fn insert(&mut self, key: CopyKey, link: Link) -> EntryId {
        let id = self.free.pop().expect("room is granted only while entries are free");
        let is_window = key.form.is_lossless() && key.provenance != Provenance::EXACT;
        let parent_key = link.parent.filter(|_| !is_window).map(|hash| CopyKey { hash, ..key });
        let parent = parent_key.and_then(|parent| self.find(&parent));
        if let Some(parent) = parent {
            self[parent].children += 1;
        }
        let nowhere = Neighbours { listed: Listed::No, before: None, after: None };
        self.entries[id.0 as usize] = Some(Entry {
            key,
            parent_hash: link.parent,
            depth: link.depth,
            parent,
            next_variant: self.by_name.insert(name(&key), id),
            live: 0,
            children: 0,
            children_in: [0; 2],
            copies: [CopyState::None; 3],
            lists: [nowhere; 2],
            awaited_by: None,
            spill: None,
            loss: None,
            parked: false,
            condemned: None,
        });
        id
    }

    /// Removes an entry without slots, readers or children; returns its parent.
    pub(crate) fn remove(&mut self, id: EntryId) -> Option<EntryId> {
        let entry = self.entries[id.0 as usize].take().expect("only a known entry is removed");
        debug_assert!(entry.is_unused());
        self.free.push(id);
        self.unlink_variant(&entry, id);
        if let Some(parent) = entry.parent {
            self[parent].children -= 1;
        }
        entry.parent
    }

    fn unlink_variant(&mut self, entry: &Entry, id: EntryId) {
        let block = name(&entry.key);
        let first = self.by_name[&block];
        if first != id {
            let mut before = first;
            while self[before].next_variant != Some(id) {
                before = self[before].next_variant.expect("a known entry stands among its variants");
            }
            self[before].next_variant = entry.next_variant;
        } else if let Some(next) = entry.next_variant {
            self.by_name.insert(block, next);
        } else {
            self.by_name.remove(&block);
        }
    }
}

impl std::ops::Index<EntryId> for Slab {
    type Output = Entry;

    fn index(&self, id: EntryId) -> &Entry {
        self.entries[id.0 as usize].as_ref().expect("an entry id is used only while its entry is held")
    }
}

impl std::ops::IndexMut<EntryId> for Slab {
    fn index_mut(&mut self, id: EntryId) -> &mut Entry {
        self.entries[id.0 as usize].as_mut().expect("an entry id is used only while its entry is held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_index_never_grows_under_churn() {
        let mut slab = Slab::new(50);
        let capacity = slab.by_name.capacity();
        let mut held = std::collections::VecDeque::new();
        for number in 0..100_000u32 {
            let mut hash = [0; 32];
            hash[..4].copy_from_slice(&number.wrapping_mul(0x9e37_79b9).to_le_bytes());
            let key = CopyKey::exact(Namespace([0; 32]), BlockHash(hash));
            held.push_back(slab.insert(key, Link { hash: key.hash, parent: None, depth: 0 }));
            if held.len() == 50 {
                let gone = held.pop_front().expect("50 are held");
                slab.remove(gone);
            }
        }
        // Tombstones lower what is left; a map that had grown would have more.
        assert!(slab.by_name.capacity() <= capacity);
        assert_eq!((slab.used(), slab.free_entries()), (49, 1));
    }
}
