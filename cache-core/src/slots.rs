//! The slot table of one tier: which slot holds what, in which generation, leased how often. Plain state, no memory of its own.
//!
//! ```text
//! Free --reserve--> Writing --commit--> Committed --remove (no lease)--> Free
//!                      |                    |
//!                      +--abandon--> Free   +--revoke--> Resting --advance--> Free
//! ```
//! The generation is odd from `reserve` to `commit` and from `revoke` or `remove` onwards, even while committed. It grows by at
//! least two from one tenant of the slot to the next, so a reader that saw an even generation and sees the same one after its copy has
//! read one tenant's bytes only.

use std::collections::VecDeque;

use crate::hasher::{self, DigestMap};
use crate::key::CopyKey;
use crate::store::StoreError;
use crate::units::{Generation, Now, SlotIndex};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Writing {
        key: Option<CopyKey>,
    },
    /// `leased_at`: when the youngest lease was given; `reader_until`: until then a reader that vanished may still be at it, so the slot rests when it
    /// is removed before.
    Committed {
        key: CopyKey,
        leases: u32,
        leased_at: Now,
        reader_until: Now,
    },
    Resting,
}

#[derive(Clone, Debug)]
struct Entry {
    generation: Generation,
    state: State,
}

/// What a key stands for right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Committed; the lease count went up by one.
    Leased(SlotIndex, Generation),
    /// Being written.
    Pending,
    /// Unknown here.
    Absent,
}

/// The slot table of one tier. All its memory is allocated when it is made.
#[derive(Clone, Debug)]
pub struct SlotTable {
    entries: Vec<Entry>,
    free: Vec<SlotIndex>,
    by_key: DigestMap<CopyKey, SlotIndex>,
    resting: VecDeque<(Now, SlotIndex)>,
    rest_millis: u64,
    now: Now,
    stale_releases: u64,
}

impl SlotTable {
    /// Metadata of a table of `slots` slots in bytes: entries, free list, rest queue, and the hash map's buckets (a power of two, 7/8
    /// full at most, one control byte each and a group of 16 more).
    pub fn bytes_for(slots: u32) -> u64 {
        let per_slot = size_of::<Entry>() + size_of::<SlotIndex>() + size_of::<(Now, SlotIndex)>();
        let buckets = (Self::map_capacity(slots) as u64 * 8).div_ceil(7).next_power_of_two().max(16);
        u64::from(slots) * per_slot as u64 + buckets * (size_of::<(CopyKey, SlotIndex)>() as u64 + 1) + 16
    }

    /// Twice the keys: the map then clears its tombstones in place and never grows.
    fn map_capacity(slots: u32) -> usize {
        2 * slots as usize
    }

    /// A table of `slots` free slots. A revoked slot rests `rest_millis` before it is used again.
    pub fn new(slots: u32, rest_millis: u64) -> SlotTable {
        let free = (0..slots).rev().map(SlotIndex).collect();
        SlotTable {
            entries: vec![Entry { generation: Generation(1), state: State::Free }; slots as usize],
            free,
            by_key: hasher::map(Self::map_capacity(slots)),
            resting: VecDeque::with_capacity(slots as usize),
            rest_millis,
            now: Now(0),
            stale_releases: 0,
        }
    }

    /// Slots in all.
    pub fn len(&self) -> u32 {
        self.entries.len() as u32
    }

    /// True for a table without slots.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Slots that rest.
    pub fn resting(&self) -> u32 {
        self.resting.len() as u32
    }

    /// Slots that are neither free nor due from their rest.
    pub fn used(&self) -> u32 {
        self.len() - self.free.len() as u32
    }

    /// Releases of leases that were no longer current: counted, harmless.
    pub fn stale_releases(&self) -> u64 {
        self.stale_releases
    }

    /// Moves time on and frees slots that have rested long enough.
    pub fn advance(&mut self, now: Now) {
        self.now = self.now.max(now);
        while let Some((due, slot)) = self.resting.front().copied() {
            if due > self.now {
                break;
            }
            self.resting.pop_front();
            self.entry(slot).state = State::Free;
            self.free.push(slot);
        }
    }

    /// Takes a free slot for `key`, or for a key that is not known yet (an open block).
    pub fn reserve(&mut self, key: Option<CopyKey>) -> Result<(SlotIndex, Generation), StoreError> {
        if let Some(held) = key.and_then(|key| self.by_key.get(&key).copied()) {
            return Err(match self.entry(held).state {
                State::Committed { .. } => StoreError::Present,
                _ => StoreError::PendingElsewhere,
            });
        }
        let slot = self.free.pop().ok_or(StoreError::Full { slots: u64::from(self.len()) })?;
        let entry = self.entry(slot);
        let generation = Generation(entry.generation.0 + 2 - (1 - entry.generation.0 % 2));
        *entry = Entry { generation, state: State::Writing { key } };
        if let Some(key) = key {
            self.by_key.insert(key, slot);
        }
        Ok((slot, generation))
    }

    /// The key of a reserved slot; `None` for an open block. Errors: [`StoreError::Stale`] when `generation` is not the reservation's.
    pub fn reserved(&self, slot: SlotIndex, generation: Generation) -> Result<Option<CopyKey>, StoreError> {
        match self.current(slot, generation)? {
            State::Writing { key } => Ok(key),
            _ => Err(StoreError::Stale { slot }),
        }
    }

    /// Makes a slot visible under `key`; returns its even generation. Errors: [`StoreError::Stale`] when `generation` is not the
    /// reservation's, [`StoreError::Present`] when another slot was committed under this key meanwhile.
    pub fn commit(&mut self, slot: SlotIndex, generation: Generation, key: CopyKey) -> Result<Generation, StoreError> {
        let State::Writing { key: reserved } = self.current(slot, generation)? else {
            return Err(StoreError::Stale { slot });
        };
        if reserved.is_some_and(|reserved| reserved != key) {
            return Err(StoreError::Stale { slot });
        }
        if reserved.is_none() {
            if self.by_key.contains_key(&key) {
                return Err(StoreError::Present);
            }
            self.by_key.insert(key, slot);
        }
        let generation = Generation(generation.0 + 1);
        *self.entry(slot) =
            Entry { generation, state: State::Committed { key, leases: 0, leased_at: self.now, reader_until: Now(0) } };
        Ok(generation)
    }

    /// Gives a reserved slot back unused.
    pub fn abandon(&mut self, slot: SlotIndex, generation: Generation) {
        if let Ok(State::Writing { key }) = self.current(slot, generation) {
            if let Some(key) = key {
                self.by_key.remove(&key);
            }
            self.entry(slot).state = State::Free;
            self.free.push(slot);
        }
    }

    /// Finds a key and leases it.
    pub fn lease(&mut self, key: &CopyKey) -> Found {
        let Some(slot) = self.by_key.get(key).copied() else {
            return Found::Absent;
        };
        let now = self.now;
        let entry = self.entry(slot);
        match &mut entry.state {
            State::Committed { leases, leased_at, .. } => {
                *leases += 1;
                *leased_at = now;
                Found::Leased(slot, entry.generation)
            }
            _ => Found::Pending,
        }
    }

    /// Ends a lease. One that is stale is counted and has no effect.
    pub fn release(&mut self, slot: SlotIndex, generation: Generation) {
        match self.entries.get_mut(slot.0 as usize) {
            Some(Entry { generation: held, state: State::Committed { leases, .. } })
                if *held == generation && *leases > 0 =>
            {
                *leases -= 1
            }
            _ => self.stale_releases += 1,
        }
    }

    /// Notes that a reader vanished and may still be reading, for as long as a revoked slot rests: the copy stays, but its slot rests if it is removed
    /// meanwhile.
    pub fn rest_after_removal(&mut self, slot: SlotIndex, generation: Generation) {
        if let Some(Entry { generation: held, state: State::Committed { reader_until, .. } }) =
            self.entries.get_mut(slot.0 as usize)
            && *held == generation
        {
            *reader_until = self.now.after_millis(self.rest_millis);
        }
    }

    /// Leased copies whose every lease is older than `ttl_millis`.
    pub fn overdue(&self, ttl_millis: u64) -> Vec<CopyKey> {
        let overdue = |entry: &Entry| match entry.state {
            State::Committed { key, leases, leased_at, .. }
                if leases > 0 && leased_at.after_millis(ttl_millis) <= self.now =>
            {
                Some(key)
            }
            _ => None,
        };
        self.entries.iter().filter_map(overdue).collect()
    }

    /// True when the slot still holds the tenant it had at `generation`.
    pub fn is_current(&self, slot: SlotIndex, generation: Generation) -> bool {
        self.entries.get(slot.0 as usize).is_some_and(|entry| entry.generation == generation)
    }

    /// The slot's generation now.
    pub fn generation(&self, slot: SlotIndex) -> Generation {
        self.entries[slot.0 as usize].generation
    }

    /// Whose committed copy a slot holds, and its generation.
    pub fn holder(&self, slot: SlotIndex) -> Option<(CopyKey, Generation)> {
        match self.entries.get(slot.0 as usize)? {
            Entry { generation, state: State::Committed { key, .. } } => Some((*key, *generation)),
            _ => None,
        }
    }

    /// True when a slot is reserved for the key or holds it.
    pub fn holds(&self, key: &CopyKey) -> bool {
        self.by_key.contains_key(key)
    }

    /// Slot and lease count of a committed copy.
    pub fn committed(&self, key: &CopyKey) -> Option<(SlotIndex, u32)> {
        let slot = *self.by_key.get(key)?;
        match self.entries[slot.0 as usize].state {
            State::Committed { leases, .. } => Some((slot, leases)),
            _ => None,
        }
    }

    /// Frees the slot of an unleased copy; returns it if there was one. Errors: [`StoreError::Leased`].
    pub fn remove(&mut self, key: &CopyKey) -> Result<Option<SlotIndex>, StoreError> {
        match self.committed(key) {
            None => Ok(None),
            Some((_, leases)) if leases > 0 => Err(StoreError::Leased { leases }),
            Some(_) => Ok(self.revoke(key)),
        }
    }

    /// Removes a copy under its readers: their leases are lost and the slot rests. Without readers there is nobody to rest for.
    pub fn revoke(&mut self, key: &CopyKey) -> Option<SlotIndex> {
        let slot = *self.by_key.get(key)?;
        let entry = &mut self.entries[slot.0 as usize];
        let State::Committed { leases, reader_until, .. } = entry.state else {
            return None;
        };
        let has_readers = leases > 0 || reader_until > self.now;
        let state = if has_readers { State::Resting } else { State::Free };
        *entry = Entry { generation: Generation(entry.generation.0 + 1), state };
        self.by_key.remove(key);
        if has_readers {
            self.resting.push_back((self.now.after_millis(self.rest_millis), slot));
        } else {
            self.free.push(slot);
        }
        Some(slot)
    }

    fn entry(&mut self, slot: SlotIndex) -> &mut Entry {
        &mut self.entries[slot.0 as usize]
    }

    fn current(&self, slot: SlotIndex, generation: Generation) -> Result<State, StoreError> {
        match self.entries.get(slot.0 as usize) {
            Some(entry) if entry.generation == generation => Ok(entry.state),
            _ => Err(StoreError::Stale { slot }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::{BlockHash, Namespace};

    fn key(number: u8) -> CopyKey {
        CopyKey::exact(Namespace([0; 32]), BlockHash([number; 32]))
    }

    fn stored(table: &mut SlotTable, number: u8) -> (SlotIndex, Generation) {
        let (slot, generation) = table.reserve(Some(key(number))).unwrap();
        (slot, table.commit(slot, generation, key(number)).unwrap())
    }

    #[test]
    fn uncommitted_is_invisible_and_a_second_writer_skips() {
        let mut table = SlotTable::new(2, 2000);
        let (slot, generation) = table.reserve(Some(key(1))).unwrap();
        assert!(generation.is_unstable());
        assert_eq!(table.lease(&key(1)), Found::Pending);
        assert_eq!(table.reserve(Some(key(1))), Err(StoreError::PendingElsewhere));
        assert!(!table.commit(slot, generation, key(1)).unwrap().is_unstable());
        assert_eq!(table.reserve(Some(key(1))), Err(StoreError::Present));
    }

    #[test]
    fn a_lease_blocks_removal_and_ends_once() {
        let mut table = SlotTable::new(1, 2000);
        let (slot, generation) = stored(&mut table, 1);
        assert_eq!(table.lease(&key(1)), Found::Leased(slot, generation));
        assert_eq!(table.remove(&key(1)), Err(StoreError::Leased { leases: 1 }));
        table.release(slot, generation);
        table.release(slot, generation);
        assert_eq!(table.stale_releases(), 1);
        assert_eq!(table.remove(&key(1)), Ok(Some(slot)));
        assert!(!table.is_current(slot, generation));
    }

    #[test]
    fn a_revoked_slot_rests_and_its_readers_notice() {
        let mut table = SlotTable::new(1, 2000);
        let (slot, generation) = stored(&mut table, 1);
        table.lease(&key(1));
        assert_eq!(table.revoke(&key(1)), Some(slot));
        assert!(!table.is_current(slot, generation));
        assert_eq!(table.reserve(Some(key(2))), Err(StoreError::Full { slots: 1 }));
        table.advance(Now::default().after_millis(1999));
        assert!(table.reserve(Some(key(2))).is_err());
        table.advance(Now::default().after_millis(2000));
        let (again, later) = table.reserve(Some(key(2))).unwrap();
        assert_eq!(again, slot);
        assert!(later > generation && later.is_unstable());
        table.release(slot, generation);
        assert_eq!(table.stale_releases(), 1);
    }

    #[test]
    fn generations_never_repeat_across_tenants() {
        let mut table = SlotTable::new(1, 0);
        let mut last = Generation(0);
        for round in 0..50u8 {
            let (slot, generation) = stored(&mut table, round);
            assert!(generation.0 >= last.0 + 2 && !generation.is_unstable());
            last = generation;
            if round % 2 == 0 {
                table.remove(&key(round)).unwrap();
            } else {
                table.revoke(&key(round));
                table.advance(Now(u64::from(round)));
            }
            assert!(table.generation(slot).is_unstable());
        }
    }

    #[test]
    fn a_vanished_readers_slot_rests_after_removal() {
        let mut table = SlotTable::new(1, 2000);
        let (slot, generation) = stored(&mut table, 1);
        assert_eq!(table.lease(&key(1)), Found::Leased(slot, generation));
        table.rest_after_removal(slot, generation);
        table.release(slot, generation);
        assert!(table.is_current(slot, generation), "the copy itself stays");
        assert_eq!(table.remove(&key(1)), Ok(Some(slot)));
        assert!(table.generation(slot).is_unstable());
        assert!(table.reserve(Some(key(2))).is_err(), "it rests");
        table.advance(Now(0).after_millis(2000));
        let (slot, generation) = table.reserve(Some(key(2))).unwrap();
        // Long after the reader has vanished nobody is at it any more.
        let generation = table.commit(slot, generation, key(2)).unwrap();
        table.rest_after_removal(slot, generation);
        table.advance(Now(0).after_millis(4000));
        assert_eq!(table.remove(&key(2)), Ok(Some(slot)));
        assert!(table.reserve(Some(key(3))).is_ok(), "it does not rest");
    }

    #[test]
    fn overdue_counts_from_the_youngest_lease() {
        let mut table = SlotTable::new(2, 2000);
        let (slot, generation) = stored(&mut table, 1);
        assert_eq!(table.overdue(100), [], "nobody leases it");
        table.lease(&key(1));
        table.advance(Now(0).after_millis(60));
        table.lease(&key(1));
        table.advance(Now(0).after_millis(159));
        assert_eq!(table.overdue(100), []);
        table.advance(Now(0).after_millis(160));
        assert_eq!(table.overdue(100), [key(1)]);
        table.release(slot, generation);
        table.release(slot, generation);
        assert_eq!(table.overdue(100), []);
    }

    #[test]
    fn the_map_never_grows_under_churn() {
        const SLOTS: u32 = 112;
        let mut table = SlotTable::new(SLOTS, 0);
        let capacity = table.by_key.capacity();
        for round in 0..200_000u32 {
            let mut hash = [0; 32];
            hash[..4].copy_from_slice(&round.to_le_bytes());
            let key = CopyKey::exact(Namespace([0; 32]), BlockHash(hash));
            if let Err(StoreError::Full { .. }) = table.reserve(Some(key)) {
                let slot = SlotIndex(round % SLOTS);
                table.abandon(slot, table.generation(slot));
            }
            assert!(table.by_key.capacity() <= capacity, "round {round}");
        }
    }

    #[test]
    fn an_open_slot_takes_its_key_at_commit() {
        let mut table = SlotTable::new(2, 0);
        let (a, a_generation) = table.reserve(None).unwrap();
        let (b, b_generation) = table.reserve(None).unwrap();
        table.commit(a, a_generation, key(1)).unwrap();
        assert_eq!(table.commit(b, b_generation, key(1)), Err(StoreError::Present));
        table.abandon(b, b_generation);
        assert_eq!(table.used(), 1);
    }
}
