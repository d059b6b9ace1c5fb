//! What a tier is to its users: a [`Store`], perhaps one that lends ([`Lend`]), perhaps one made of slots ([`Resident`]).
//!
//! Each trait has one contract suite in [`crate::contract`] (feature `testing`), which every tier calls.

use std::sync::Arc;

use crate::buffer::Buffer;
use crate::chain::Link;
use crate::form::Lineage;
use crate::header::CheckFailure;
use crate::key::CopyKey;
use crate::miss::MissReason;
use crate::units::{Generation, SlotIndex};

/// What a store is asked to do with a copy. A buffer holds the whole slot image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreOp {
    /// Fill the buffer with the copy.
    Read,
    /// Keep the buffer's content under the key.
    Write,
    /// Forget the copy.
    Delete,
}

/// Names one operation of one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OpId(pub u64);

/// How an operation ended.
#[derive(Debug)]
pub enum Outcome {
    /// It was done.
    Done,
    /// There is no such copy to read or delete.
    Miss(MissReason),
    /// It failed.
    Failed(StoreError),
}

/// The end of an operation. Gives the buffer back, always.
#[derive(Debug)]
pub struct Completion {
    /// Which operation.
    pub op: OpId,
    /// Its key.
    pub key: CopyKey,
    /// Its buffer.
    pub buffer: Buffer,
    /// How it ended.
    pub outcome: Outcome,
}

/// A submission that was not taken; the buffer comes back.
#[derive(Debug)]
pub struct Refused {
    /// Why.
    pub error: StoreError,
    /// The caller's buffer.
    pub buffer: Buffer,
}

/// What the caller should do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Try again later.
    Retry,
    /// Make room first.
    Full,
    /// The bytes are not what they should be.
    Corrupt,
    /// The store is gone.
    Closed,
    /// We did something wrong.
    Bug,
}

/// Errors of stores. Text reads after "failed to".
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreError {
    /// No free slot or no index entry.
    #[error("reserve a slot: all {slots} are taken")]
    Full {
        /// Slots of this size in the tier.
        slots: u64,
    },
    /// The copy is there already; a second writer skips.
    #[error("reserve a slot: the copy is there already")]
    Present,
    /// Another writer is at it.
    #[error("reserve a slot: another writer holds it")]
    PendingElsewhere,
    /// The bytes do not verify.
    #[error("verify the copy")]
    Check(#[source] CheckFailure),
    /// The buffer has another size than the slot.
    #[error("take a buffer of {found_bytes} bytes: a slot has {slot_bytes}")]
    Size {
        /// The slot's size.
        slot_bytes: u64,
        /// The buffer's.
        found_bytes: u64,
    },
    /// The copy is leased and cannot be removed.
    #[error("remove the copy: {leases} readers lease it")]
    Leased {
        /// How many.
        leases: u32,
    },
    /// A handle that was used before, or whose slot has changed hands.
    #[error("use slot {slot:?}: its generation has moved on")]
    Stale {
        /// The slot.
        slot: SlotIndex,
    },
    /// The medium failed.
    #[error("reach the medium: {reason}")]
    Medium {
        /// In its own words.
        reason: String,
    },
    /// Too many operations whose completions were not polled.
    #[error("start an operation: {operations} are under way or not polled yet")]
    Busy {
        /// The limit.
        operations: u64,
    },
    /// The store was closed.
    #[error("use a closed store")]
    Closed,
}

impl StoreError {
    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            StoreError::Full { .. } => ErrorKind::Full,
            StoreError::Present
            | StoreError::PendingElsewhere
            | StoreError::Leased { .. }
            | StoreError::Busy { .. } => ErrorKind::Retry,
            StoreError::Check(_) => ErrorKind::Corrupt,
            StoreError::Closed | StoreError::Medium { .. } => ErrorKind::Closed,
            StoreError::Size { .. } | StoreError::Stale { .. } => ErrorKind::Bug,
        }
    }
}

/// Slots of a tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Bytes of one slot.
    pub slot_bytes: u64,
    /// Slots in all.
    pub slots: u64,
    /// Slots that are not free (resting ones included).
    pub used_slots: u64,
    /// Bytes held in all, metadata included; never above the budget.
    pub held_bytes: u64,
    /// The hard limit.
    pub budget_bytes: u64,
}

/// Where copies can be put and fetched from. Sees keys and bytes; never tokens, models, or another tier.
pub trait Store: Send + Sync {
    /// Starts an operation; the operation owns `buffer` until its completion is polled, also when nobody waits any more.
    /// Refused at once: a buffer of the wrong size ([`StoreOp::Delete`] takes any), and [`StoreError::Busy`]. All else ends in a completion.
    fn submit(&self, op: StoreOp, key: CopyKey, buffer: Buffer) -> Result<OpId, Refused>;
    /// Moves finished operations to `out`.
    fn poll(&self, out: &mut Vec<Completion>);
    /// Sizes and use.
    fn capacity(&self) -> Capacity;
}

/// An address inside a tier's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotPlace {
    /// Which extent (0 in a tier of one piece).
    pub extent: u32,
    /// First byte of the slot image in it.
    pub offset: u64,
    /// Bytes of the slot image.
    pub bytes: u64,
}

/// What holds leases and reservations to account: the tier behind a [`Lease`] or [`Slot`].
pub trait SlotOwner: Send + Sync {
    /// Ends one lease. A stale one is counted and harmless.
    fn release(&self, slot: SlotIndex, generation: Generation);
    /// Makes a reserved slot visible under `key` after verifying its bytes.
    fn commit(&self, slot: SlotIndex, generation: Generation, sealed: &Sealed) -> Result<(), StoreError>;
    /// Frees a reserved slot.
    fn abandon(&self, slot: SlotIndex, generation: Generation);
}

/// What a writer states about the bytes it put into a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The copy's name.
    pub key: CopyKey,
    /// What it was encoded from.
    pub lineage: Lineage,
    /// Its place in the chain.
    pub link: Link,
}

/// RAII: the slot is no eviction candidate while this lives. The reader re-checks the generation after use ([`Lend::is_current`]).
pub struct Lease {
    place: SlotPlace,
    slot: SlotIndex,
    generation: Generation,
    owner: Arc<dyn SlotOwner>,
}

impl Lease {
    /// For tiers: a lease that is already counted in the slot table.
    pub fn new(place: SlotPlace, slot: SlotIndex, generation: Generation, owner: Arc<dyn SlotOwner>) -> Lease {
        Lease { place, slot, generation, owner }
    }

    /// Where the slot image is.
    pub fn place(&self) -> SlotPlace {
        self.place
    }

    /// The slot.
    pub fn slot(&self) -> SlotIndex {
        self.slot
    }

    /// The generation under which the lease was given.
    pub fn generation(&self) -> Generation {
        self.generation
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.owner.release(self.slot, self.generation);
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lease({:?}, {:?})", self.slot, self.generation)
    }
}

/// A reserved slot: invisible until [`Slot::commit`]; dropping it frees it.
pub struct Slot {
    place: SlotPlace,
    slot: SlotIndex,
    generation: Generation,
    owner: Option<Arc<dyn SlotOwner>>,
}

impl Slot {
    /// For tiers: a slot that is already reserved in the slot table.
    pub fn new(place: SlotPlace, slot: SlotIndex, generation: Generation, owner: Arc<dyn SlotOwner>) -> Slot {
        Slot { place, slot, generation, owner: Some(owner) }
    }

    /// Where the slot image is to be written.
    pub fn place(&self) -> SlotPlace {
        self.place
    }

    /// The slot.
    pub fn index(&self) -> SlotIndex {
        self.slot
    }

    /// The generation under which the slot was reserved.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Makes the slot visible, after the tier has verified its bytes. On failure the slot comes back, still reserved.
    pub fn commit(mut self, sealed: &Sealed) -> Result<(), (Slot, StoreError)> {
        let owner = self.owner.take().expect("a slot is committed once, by value");
        match owner.commit(self.slot, self.generation, sealed) {
            Ok(()) => Ok(()),
            Err(error) => {
                self.owner = Some(owner);
                Err((self, error))
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(owner) = self.owner.take() {
            owner.abandon(self.slot, self.generation);
        }
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slot({:?}, {:?})", self.slot, self.generation)
    }
}

/// Answer of a lookup.
#[derive(Debug)]
pub enum Lookup {
    /// There, and leased.
    Hit(Lease),
    /// Being written.
    Pending,
    /// Not there.
    Miss(MissReason),
}

/// A store that lends its copies in place: address range and generation; the reader re-checks the generation after use.
pub trait Lend: Store {
    /// Leases a copy.
    fn lookup(&self, key: &CopyKey) -> Lookup;
    /// True when the slot has not changed hands since the lease was given. Called after the copy or kernel has completed.
    fn is_current(&self, lease: &Lease) -> bool;
}

/// A store made of slots.
pub trait Resident: Lend {
    /// Reserves a slot for a copy whose key is known. Invisible until [`Slot::commit`]. Dropping the slot frees it.
    fn reserve(&self, key: CopyKey) -> Result<Slot, StoreError>;
    /// Removes a copy. Errors: [`StoreError::Leased`] while a lease stands; a copy that is not there is not an error.
    fn remove(&self, key: &CopyKey) -> Result<(), StoreError>;
    /// Removes a copy whatever leases stand: they are lost, and the slot rests before it is used again. A slot that nobody leases is free
    /// at once.
    fn revoke(&self, key: &CopyKey);
}
