//! Contract suites: one per store trait, called by every tier's tests.
//!
//! A tier brings a [`Rig`] (and a [`SlotRig`] when it is made of slots) and calls [`store::suite`], [`lend::suite`], [`resident::suite`]
//! and [`model::run`]. Every function panics with what was broken.

use crate::buffer::Buffer;
use crate::chain::Link;
use crate::form::{Form, Lineage, Opaque};
use crate::hash::{BlockHash, Namespace};
use crate::header::seal_image;
use crate::key::CopyKey;
use crate::miss::MissReason;
use crate::payload::BlockShape;
use crate::store::{Capacity, Lease, Lend, Outcome, Resident, Sealed, Slot, Store, StoreError, StoreOp};
use crate::units::Now;

pub mod lend;
pub mod model;
pub mod resident;
pub mod store;

/// A shape that is quick to fill: three sections, two pages.
pub const SHAPE: BlockShape = BlockShape { layers: 3, kv_heads: 1, head_dim: 16, block_tokens: 16, form: Form::Raw16 };

/// As [`SHAPE`], of bytes that belong to an engine: a layer has an odd number of them.
pub fn opaque_shape() -> BlockShape {
    let opaque = Opaque::new(1021, Opaque::digest("a layout of the contract")).expect("a length");
    SHAPE.with_form(opaque.into())
}

/// How long a slot taken from its readers must rest in the tiers under test, in milliseconds.
pub const REST_MILLIS: u64 = 2000;

/// A store under test.
pub trait Rig {
    /// The store.
    type Tier: Store;
    /// The store itself, for blocks of [`Rig::shape`].
    fn tier(&self) -> &Self::Tier;
    /// Shape of the blocks. At least two sections.
    fn shape(&self) -> BlockShape {
        SHAPE
    }
    /// The block of a number in that shape: see [`block`].
    fn block(&self, number: u32) -> (Sealed, Buffer) {
        block_in(&self.shape(), number, 0)
    }
    /// Waits until operations under way can be polled. Nothing where a submission finishes at once.
    fn settle(&self) {}
}

/// A tier of slots under test.
pub trait SlotRig: Rig<Tier: Resident> {
    /// Writes a whole slot image into a reserved slot, as a copy engine would.
    fn fill(&self, slot: &mut Slot, image: &[u8]);
    /// Reads a leased slot image where it lies.
    fn fetch(&self, lease: &Lease) -> Buffer;
    /// Moves the tier's time on.
    fn advance(&self, now: Now);
}

/// The block of a number: its key, its place in a chain, and its sealed slot image, all of which another number does not share.
pub fn block(number: u32) -> (Sealed, Buffer) {
    block_version(number, 0)
}

/// As [`block`], with other content for each version: what a stale or foreign reader must never take for version 0.
pub fn block_version(number: u32, version: u32) -> (Sealed, Buffer) {
    block_in(&SHAPE, number, version)
}

/// As [`block_version`], of any shape.
pub fn block_in(shape: &BlockShape, number: u32, version: u32) -> (Sealed, Buffer) {
    let mut hash = [0; 32];
    hash[..4].copy_from_slice(&number.to_le_bytes());
    let key = CopyKey { form: shape.form_map(), ..CopyKey::exact(Namespace([7; 32]), BlockHash(hash)) };
    let link = Link { hash: key.hash, parent: Some(BlockHash([9; 32])), depth: number + 1 };
    let sealed = Sealed { key, lineage: Lineage(shape.form_map()), link };
    let mut image = Buffer::zeroed(shape.slot_bytes() as usize);
    let mut random = Random::new(u64::from(number) << 32 | u64::from(version));
    for word in image.as_mut_slice().chunks_exact_mut(8) {
        word.copy_from_slice(&random.next().to_le_bytes());
    }
    seal_image(shape, key, sealed.lineage, link, image.as_mut_slice());
    (sealed, image)
}

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next 64 bits.
    #[expect(clippy::should_implement_trait, reason = "an endless sequence of numbers, not an iterator")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Runs one operation to its end; gives its buffer back with what came of it.
pub(crate) fn run<R: Rig>(rig: &R, op: StoreOp, key: CopyKey, buffer: Buffer) -> (Buffer, Outcome) {
    let bytes = buffer.as_slice().len();
    let op_id = match rig.tier().submit(op, key, buffer) {
        Ok(op_id) => op_id,
        Err(refused) => return (refused.buffer, Outcome::Failed(refused.error)),
    };
    rig.settle();
    let mut done = Vec::new();
    rig.tier().poll(&mut done);
    assert_eq!(done.len(), 1, "one operation ends once");
    let completion = done.remove(0);
    assert_eq!((completion.op, completion.key), (op_id, key), "the completion names its operation");
    assert_eq!(completion.buffer.as_slice().len(), bytes, "the buffer comes back whole");
    within_budget(rig);
    (completion.buffer, completion.outcome)
}

/// Writes a block as an operation.
pub(crate) fn write<R: Rig>(rig: &R, number: u32) -> Result<(), StoreError> {
    let (sealed, image) = rig.block(number);
    match run(rig, StoreOp::Write, sealed.key, image).1 {
        Outcome::Done => Ok(()),
        Outcome::Failed(error) => Err(error),
        Outcome::Miss(reason) => panic!("a write cannot miss: {reason:?}"),
    }
}

/// Reads a block as an operation.
pub(crate) fn read<R: Rig>(rig: &R, key: CopyKey) -> Result<Buffer, MissReason> {
    let buffer = Buffer::zeroed(rig.shape().slot_bytes() as usize);
    match run(rig, StoreOp::Read, key, buffer) {
        (buffer, Outcome::Done) => Ok(buffer),
        (_, Outcome::Miss(reason)) => Err(reason),
        (_, Outcome::Failed(error)) => panic!("read {key:?}: {error}"),
    }
}

/// Deletes a block as an operation; true when it was there.
pub(crate) fn delete<R: Rig>(rig: &R, key: CopyKey) -> Result<bool, StoreError> {
    match run(rig, StoreOp::Delete, key, Buffer::zeroed(0)).1 {
        Outcome::Done => Ok(true),
        Outcome::Miss(_) => Ok(false),
        Outcome::Failed(error) => Err(error),
    }
}

/// Reserves, fills and commits a block.
pub(crate) fn commit<R: SlotRig>(rig: &R, number: u32) -> Result<(), StoreError> {
    let (sealed, image) = rig.block(number);
    let mut slot = rig.tier().reserve(sealed.key)?;
    rig.fill(&mut slot, image.as_slice());
    within_budget(rig);
    slot.commit(&sealed).map_err(|(_, error)| error)
}

/// Leases a block that must be there.
pub(crate) fn hit<R: Rig<Tier: Lend>>(rig: &R, number: u32) -> Lease {
    match rig.tier().lookup(&rig.block(number).0.key) {
        crate::store::Lookup::Hit(lease) => lease,
        other => panic!("block {number} should be there: {other:?}"),
    }
}

/// True when a lookup misses.
pub(crate) fn misses<R: Rig<Tier: Lend>>(rig: &R, number: u32) -> bool {
    matches!(rig.tier().lookup(&rig.block(number).0.key), crate::store::Lookup::Miss(_))
}

/// The one accounting rule that holds at every moment.
pub(crate) fn within_budget<R: Rig>(rig: &R) {
    let capacity: Capacity = rig.tier().capacity();
    assert!(capacity.held_bytes <= capacity.budget_bytes, "over budget: {capacity:?}");
    assert!(capacity.used_slots <= capacity.slots, "more slots used than there are: {capacity:?}");
    assert_eq!(capacity.slot_bytes, rig.shape().slot_bytes());
}
