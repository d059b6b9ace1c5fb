//! Memory of one tier: slots and the bytes in them, under the real slot table.

use cache_core::key::CopyKey;
use cache_core::slots::{Found, SlotTable};
use cache_core::store::StoreError;
use cache_core::units::{Generation, Now, SlotIndex};

/// What a slot contains: the bytes of one block, as far as the simulator needs to tell them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bytes {
    /// The digest of the key whose bytes these are; anything else is garbage.
    pub of: u64,
    /// When a client computed them.
    pub born: u64,
}

/// The bytes that a key stands for.
pub fn digest(key: &CopyKey) -> u64 {
    let word = |bytes: &[u8; 32]| u64::from_le_bytes(bytes[..8].try_into().expect("8 of 32 bytes"));
    word(key.hash.bytes()) ^ word(key.namespace.bytes()).rotate_left(9)
}

/// One reader's handle: slot and generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub slot: SlotIndex,
    pub generation: Generation,
}

pub struct Memory {
    pub table: SlotTable,
    bytes: Vec<Bytes>,
    garbage: u64,
}

impl Memory {
    pub fn new(slots: u32, rest_millis: u64) -> Memory {
        let table = SlotTable::new(slots, rest_millis);
        Memory { table, bytes: vec![Bytes { of: 0, born: 0 }; slots as usize], garbage: 0 }
    }

    /// Takes a slot, and overwrites what was in it.
    pub fn reserve(&mut self, key: Option<CopyKey>) -> Result<Place, StoreError> {
        let (slot, generation) = self.table.reserve(key)?;
        self.garbage += 1;
        self.bytes[slot.0 as usize] = Bytes { of: self.garbage, born: 0 };
        Ok(Place { slot, generation })
    }

    pub fn fill(&mut self, place: Place, bytes: Bytes) {
        self.bytes[place.slot.0 as usize] = bytes;
    }

    /// Verifies what is in the slot, unless a planted bug has it otherwise, and makes it visible; an error frees the slot.
    pub fn commit(&mut self, place: Place, key: CopyKey, verifies: bool) -> Result<Generation, StoreError> {
        let sound = !verifies || self.read(place.slot).of == digest(&key);
        let failure = cache_core::header::CheckFailure::Section { section: 0 };
        let checked = if sound { Ok(()) } else { Err(StoreError::Check(failure)) };
        let committed = checked.and_then(|()| self.table.commit(place.slot, place.generation, key));
        if committed.is_err() {
            self.abandon(place);
        }
        committed
    }

    pub fn abandon(&mut self, place: Place) {
        self.table.abandon(place.slot, place.generation);
    }

    pub fn read(&self, slot: SlotIndex) -> Bytes {
        self.bytes[slot.0 as usize]
    }

    pub fn lease(&mut self, key: &CopyKey) -> Option<Place> {
        match self.table.lease(key) {
            Found::Leased(slot, generation) => Some(Place { slot, generation }),
            Found::Pending | Found::Absent => None,
        }
    }

    pub fn release(&mut self, place: Place) {
        self.table.release(place.slot, place.generation);
    }

    pub fn is_current(&self, place: Place) -> bool {
        self.table.is_current(place.slot, place.generation)
    }

    /// Where a committed copy is.
    pub fn find(&self, key: &CopyKey) -> Option<Place> {
        let (slot, _) = self.table.committed(key)?;
        Some(Place { slot, generation: self.table.generation(slot) })
    }

    /// A bit of a slot flips.
    pub fn spoil(&mut self, slot: SlotIndex) {
        self.bytes[slot.0 as usize].of ^= 1;
    }

    pub fn advance(&mut self, now: u64) {
        self.table.advance(Now(now));
    }

    /// Keys of the committed copies. O(slots).
    pub fn committed(&self) -> Vec<CopyKey> {
        (0..self.table.len()).filter_map(|slot| self.table.holder(SlotIndex(slot))).map(|(key, _)| key).collect()
    }

    /// Leases that stand. O(slots).
    pub fn leases(&self) -> u32 {
        self.committed().iter().filter_map(|key| self.table.committed(key)).map(|(_, leases)| leases).sum()
    }
}
