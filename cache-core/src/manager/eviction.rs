//! Candidate lists: what may go, and in which order.
//!
//! | list | members | order |
//! |---|---|---|
//! | device idle, host idle | resident copies without a live reader | least recently used first |
//! | device live | resident copies that a live sequence reads | by depth, deepest first |
//! | host redundant | live host copies beside a resident device copy | oldest first |
//! | host backed | live host copies without a device copy, but with one on the disk | by depth, deepest first |
//!
//! A sequence is released deepest block first, and whoever uses a block uses its parents as well; so a child stands before its parent in
//! an idle list and its head is a leaf. Copies that arrive later can break that order; a head that still has children is then sent to
//! the end, at most once per arrival below it: amortised O(1).
//!
//! Live copies go deepest first, so that the front of a sequence stays in device memory. Each step reads all blocks of a sequence in
//! order; under such a cyclic scan LRU would evict each block just before it is read again.

use crate::manager::entry::{CopyState, EntryId, Listed, Neighbours, Slab};

/// A doubly linked list through [`crate::manager::entry::Entry::lists`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct List {
    head: Option<EntryId>,
    tail: Option<EntryId>,
    len: u32,
}

impl List {
    pub(crate) fn head(&self) -> Option<EntryId> {
        self.head
    }

    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    fn push(&mut self, slab: &mut Slab, side: usize, id: EntryId, listed: Listed) {
        slab[id].lists[side] = Neighbours { listed, before: self.tail, after: None };
        match self.tail {
            Some(tail) => slab[tail].lists[side].after = Some(id),
            None => self.head = Some(id),
        }
        self.tail = Some(id);
        self.len += 1;
    }

    fn unlink(&mut self, slab: &mut Slab, side: usize, id: EntryId) {
        let Neighbours { before, after, .. } = slab[id].lists[side];
        match before {
            Some(before) => slab[before].lists[side].after = after,
            None => self.head = after,
        }
        match after {
            Some(after) => slab[after].lists[side].before = before,
            None => self.tail = before,
        }
        slab[id].lists[side] = Neighbours { listed: Listed::No, before: None, after: None };
        self.len -= 1;
    }
}

/// Which depths have members: a bitmap with summary levels, so that the deepest is found in a few steps.
#[derive(Clone, Debug)]
struct Depths {
    levels: Vec<Vec<u64>>,
}

impl Depths {
    fn new(depths: usize) -> Depths {
        let mut levels = Vec::new();
        let mut words = depths.div_ceil(64).max(1);
        levels.push(vec![0; words]);
        while words > 1 {
            words = words.div_ceil(64);
            levels.push(vec![0; words]);
        }
        Depths { levels }
    }

    fn set(&mut self, depth: usize, full: bool) {
        let mut index = depth;
        let mut full = full;
        for level in &mut self.levels {
            let (word, bit) = (index / 64, 1u64 << (index % 64));
            if full {
                level[word] |= bit;
            } else {
                level[word] &= !bit;
            }
            full = level[word] != 0;
            index = word;
        }
    }

    fn deepest(&self) -> Option<usize> {
        let mut index = 0;
        for level in self.levels.iter().rev() {
            let word = level[index];
            if word == 0 {
                return None;
            }
            index = index * 64 + 63 - word.leading_zeros() as usize;
        }
        Some(index)
    }
}

/// A list per depth; what is deeper than there are lists stands in the last one.
#[derive(Clone, Debug)]
struct ByDepth {
    lists: Vec<List>,
    depths: Depths,
}

impl ByDepth {
    fn new(depths: u32) -> ByDepth {
        let buckets = depths.max(1) as usize;
        ByDepth { lists: vec![List::default(); buckets], depths: Depths::new(buckets) }
    }

    fn bucket(&self, depth: u32) -> usize {
        (depth as usize).min(self.lists.len() - 1)
    }

    fn deepest(&self) -> Option<EntryId> {
        self.lists[self.depths.deepest()?].head()
    }
}

/// The candidate lists of a shard.
#[derive(Clone, Debug)]
pub(crate) struct Candidates {
    idle: [List; 2],
    redundant: List,
    /// Device live and host backed.
    by_depth: [ByDepth; 2],
}

impl Candidates {
    /// Bytes per entry: a depth bucket on either side.
    pub(crate) const BYTES_PER_ENTRY: u64 = 2 * (size_of::<List>() as u64 + 1);

    pub(crate) fn new(depths: u32) -> Candidates {
        Candidates {
            idle: [List::default(); 2],
            redundant: List::default(),
            by_depth: [ByDepth::new(depths), ByDepth::new(depths)],
        }
    }

    pub(crate) fn idle(&self, side: usize) -> &List {
        &self.idle[side]
    }

    pub(crate) fn redundant(&self) -> Option<EntryId> {
        self.redundant.head()
    }

    /// The deepest live device copy. Its children, deeper still, are not live in device memory.
    pub(crate) fn deepest_live(&self) -> Option<EntryId> {
        self.by_depth[0].deepest()
    }

    /// Live device copies, deepest first.
    pub(crate) fn live_deepest_first<'a>(&'a self, slab: &'a Slab) -> impl Iterator<Item = EntryId> + 'a {
        let after = |id: &EntryId| slab[*id].lists[0].after;
        self.by_depth[0].lists.iter().rev().flat_map(move |list| std::iter::successors(list.head(), after))
    }

    /// The deepest live host copy that has only the disk's beside it.
    pub(crate) fn deepest_backed(&self) -> Option<EntryId> {
        self.by_depth[1].deepest()
    }

    /// How many there are of [`Candidates::deepest_backed`]. O(depths).
    pub(crate) fn backed(&self) -> u32 {
        self.by_depth[1].lists.iter().map(|list| list.len()).sum()
    }

    /// Sends the head of an idle list to its end.
    pub(crate) fn rotate(&mut self, slab: &mut Slab, side: usize) {
        if let Some(head) = self.idle[side].head() {
            self.idle[side].unlink(slab, side, head);
            self.idle[side].push(slab, side, head, Listed::Idle);
        }
    }

    /// Puts an entry into the lists where it belongs now. One that stays in its list keeps its place.
    pub(crate) fn refresh(&mut self, slab: &mut Slab, id: EntryId) {
        let entry = &slab[id];
        let [device, host] = entry.in_slots();
        let idle = entry.live == 0;
        let wanted = [
            match device {
                CopyState::Resident if idle => Listed::Idle,
                CopyState::Resident => Listed::Live,
                _ => Listed::No,
            },
            match (host, device) {
                _ if entry.parked => Listed::No,
                (CopyState::Resident, CopyState::None | CopyState::Resident) if idle => Listed::Idle,
                (CopyState::Resident, CopyState::Resident) => Listed::Redundant,
                (CopyState::Resident, CopyState::None) if entry.on_disk() => Listed::Backed,
                _ => Listed::No,
            },
        ];
        let depth = self.by_depth[0].bucket(entry.depth);
        for (side, wanted) in wanted.into_iter().enumerate() {
            let listed = slab[id].lists[side].listed;
            if listed == wanted {
                continue;
            }
            if let Some(list) = self.list(listed, side, depth) {
                list.unlink(slab, side, id);
            }
            if let Some(list) = self.list(wanted, side, depth) {
                list.push(slab, side, id, wanted);
            }
            let ByDepth { lists, depths } = &mut self.by_depth[side];
            depths.set(depth, lists[depth].len() > 0);
        }
    }

    fn list(&mut self, listed: Listed, side: usize, depth: usize) -> Option<&mut List> {
        match listed {
            Listed::No => None,
            Listed::Idle => Some(&mut self.idle[side]),
            Listed::Live | Listed::Backed => Some(&mut self.by_depth[side].lists[depth]),
            Listed::Redundant => Some(&mut self.redundant),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_is_found_over_summary_levels() {
        let mut depths = Depths::new(10_000);
        assert_eq!(depths.deepest(), None);
        for depth in [0, 63, 64, 4095, 4096, 9_999] {
            depths.set(depth, true);
            assert_eq!(depths.deepest(), Some(depth));
        }
        for (depth, next) in
            [(9_999, Some(4096)), (4096, Some(4095)), (4095, Some(64)), (64, Some(63)), (63, Some(0)), (0, None)]
        {
            depths.set(depth, false);
            assert_eq!(depths.deepest(), next);
        }
    }
}
