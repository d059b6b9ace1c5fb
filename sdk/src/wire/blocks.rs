//! Bodies about blocks: which ones, where they are, and how new ones come in.

use cache_core::chain::Link;
use cache_core::form::{FormMapId, Lineage, Provenance};
use cache_core::hash::{BlockHash, Namespace};
use cache_core::key::{CopyKey, GroupId};
use cache_core::miss::MissReason;
use cache_core::units::{Generation, SlotIndex};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, TryFromBytes, Unaligned};

use super::body::{Batch, Body, Input, Zero, body};
use super::codes::{AcceptId, CommitCode, ReserveCode, TierCode};
use super::error::WireError;
use super::session::ClassId;

/// Names a lease; good for the connection that it was given to, and never given again by one daemon.
#[derive(
    FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
#[repr(transparent)]
pub struct LeaseId(pub U64);

/// Names a reservation; good for the connection that it was given to, and never given again by one daemon. 0 is none.
#[derive(
    FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
#[repr(transparent)]
pub struct ReservationId(pub U64);

body! {
    /// What the keys of one request have in common.
    #[derive(Copy)]
    pub struct KeyParts {
        /// Where the hashes count.
        pub namespace: Namespace,
        /// What the blocks were computed after: of copies that are looked for, what the reader would have computed them after.
        pub provenance: Provenance,
        /// The slots.
        pub class: ClassId,
        /// The layer group.
        pub group: GroupId,
        /// The form map that the reader would write itself.
        pub form: FormMapId,
    }
}

impl KeyParts {
    /// The key of one block.
    pub fn key(&self, hash: BlockHash) -> CopyKey {
        CopyKey { namespace: self.namespace, hash, group: self.group, form: self.form, provenance: self.provenance }
    }
}

/// Consecutive blocks of one chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run<'a> {
    first_depth: u32,
    parent: Option<BlockHash>,
    hashes: Batch<'a, BlockHash>,
}

impl<'a> Run<'a> {
    /// The blocks `hashes`; `first_depth` blocks stand before the first one, and `parent` right before it.
    ///
    /// Errors: [`WireError::TooMany`], and [`WireError::Contradiction`] when only one of depth and parent says that it is block 0 or when the
    /// depths do not fit 32 bits.
    pub fn new(first_depth: u32, parent: Option<BlockHash>, hashes: &'a [BlockHash]) -> Result<Run<'a>, WireError> {
        Run::checked(first_depth, parent, Batch::new(hashes)?)
    }

    fn checked(
        first_depth: u32,
        parent: Option<BlockHash>,
        hashes: Batch<'a, BlockHash>,
    ) -> Result<Run<'a>, WireError> {
        if parent.is_some() != (first_depth > 0) {
            return Err(WireError::Contradiction { contradiction: "block 0, and no other, has no parent" });
        }
        if first_depth.checked_add(hashes.len() as u32).is_none() {
            return Err(WireError::Contradiction { contradiction: "the last block is deeper than 32 bits can tell" });
        }
        Ok(Run { first_depth, parent, hashes })
    }

    /// The blocks.
    pub fn hashes(&self) -> &'a [BlockHash] {
        self.hashes.items()
    }

    /// The blocks with their places in the chain.
    pub fn links(&self) -> impl ExactSizeIterator<Item = Link> + use<'a> {
        let (first_depth, first_parent, hashes) = (self.first_depth, self.parent, self.hashes.items());
        hashes.iter().enumerate().map(move |(index, hash)| Link {
            hash: *hash,
            parent: if index == 0 { first_parent } else { Some(hashes[index - 1]) },
            depth: first_depth + index as u32,
        })
    }
}

/// Depth of the first block 4, its parent 32 (zero for block 0), count 4, then the hashes.
impl<'a> Body<'a> for Run<'a> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.first_depth.encode(out);
        self.parent.unwrap_or(BlockHash([0; 32])).encode(out);
        self.hashes.encode(out);
    }

    fn read(input: &mut Input<'a>) -> Result<Run<'a>, WireError> {
        let first_depth = u32::read(input.at("Run.first_depth"))?;
        let parent = BlockHash::read(input.at("Run.parent"))?;
        let parent = (first_depth > 0 || parent != BlockHash([0; 32])).then_some(parent);
        let hashes = Batch::read(input.at("Run.hashes"))?;
        Run::checked(first_depth, parent, hashes)
    }
}

body! {
    /// Asks for the longest run of copies that are there, and touches nothing.
    #[derive(Copy)]
    pub struct Lookup<'a> {
        /// What the keys have in common.
        pub parts: KeyParts,
        /// What will do.
        pub accept: AcceptId,
        /// The blocks, each the child of the one before.
        pub hashes: Batch<'a, BlockHash>,
    }
}

body! {
    /// Reply to [`Lookup`]: cut at the first miss.
    pub struct LookupReply<'a> {
        /// Why the next block is not there; `None` when all were.
        pub miss: Option<MissReason>,
        /// Where each block is that is there.
        pub tiers: Batch<'a, TierCode>,
    }
}

body! {
    /// Leases the longest run of copies that are there, in the host arena: what lies farther away is fetched, within the deadline.
    #[derive(Copy)]
    pub struct Acquire<'a> {
        /// What the keys have in common.
        pub parts: KeyParts,
        /// What will do.
        pub accept: AcceptId,
        /// The blocks.
        pub run: Run<'a>,
    }
}

body! {
    /// The client computes these blocks, since fetching them would take longer: they are misses of its own making.
    #[derive(Copy)]
    pub struct Forgo<'a> {
        /// What the keys have in common.
        pub parts: KeyParts,
        /// The blocks.
        pub run: Run<'a>,
    }
}

/// A leased copy.
#[derive(TryFromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Hit {
    /// To be released.
    pub lease: LeaseId,
    /// First byte of the slot image in its extent.
    pub offset: U64,
    /// What the slot's generation word says as long as the copy is there.
    pub generation: U64,
    /// What the copy was computed after.
    pub provenance: U64,
    /// Its slot, by its number in the class.
    pub slot: U32,
    /// Its extent.
    pub extent: U32,
    /// Its form map.
    pub form: U32,
    /// Where it was found.
    pub tier: TierCode,
    /// Zero.
    pub reserved: Zero<3>,
}

body! {
    /// Reply to [`Acquire`]: cut at the first miss.
    pub struct AcquireReply<'a> {
        /// Why the next block is not there; `None` when all were.
        pub miss: Option<MissReason>,
        /// The blocks that are there.
        pub hits: Batch<'a, Hit>,
    }
}

body! {
    /// Ends leases.
    #[derive(Copy)]
    pub struct Release<'a> {
        /// Which.
        pub leases: Batch<'a, LeaseId>,
    }
}

body! {
    /// Reply to [`Release`].
    #[derive(Copy)]
    pub struct ReleaseReply {
        /// Leases that ended.
        pub released: u32,
        /// Leases that the connection does not hold: released before, or never given to it.
        pub unknown: u32,
    }
}

body! {
    /// Asks for places in the staging memory for blocks that the client is about to write.
    #[derive(Copy)]
    pub struct Reserve<'a> {
        /// What the keys have in common.
        pub parts: KeyParts,
        /// What the copies are encoded from.
        pub lineage: Lineage,
        /// The blocks.
        pub run: Run<'a>,
    }
}

/// The answer for one block.
#[derive(TryFromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Reserved {
    /// To be committed or aborted; 0 unless the answer is [`ReserveCode::Reserved`].
    pub reservation: ReservationId,
    /// Where in the staging memory the slot image goes; 0 unless the answer is [`ReserveCode::Reserved`].
    pub staging_offset: U64,
    /// The answer.
    pub answer: ReserveCode,
    /// Zero.
    pub reserved: Zero<7>,
}

body! {
    /// Reply to [`Reserve`].
    pub struct ReserveReply<'a> {
        /// One answer per block, in order.
        pub answers: Batch<'a, Reserved>,
    }
}

body! {
    /// Says that the slot images are written: the daemon copies them out and verifies its own copies.
    #[derive(Copy)]
    pub struct Commit<'a> {
        /// Which. They are used up, whatever the answers.
        pub reservations: Batch<'a, ReservationId>,
    }
}

body! {
    /// Reply to [`Commit`].
    pub struct CommitReply<'a> {
        /// One answer per reservation, in order.
        pub answers: Batch<'a, CommitCode>,
    }
}

body! {
    /// Gives reservations back unwritten.
    #[derive(Copy)]
    pub struct Abort<'a> {
        /// Which.
        pub reservations: Batch<'a, ReservationId>,
    }
}

body! {
    /// Reply to [`Abort`].
    #[derive(Copy)]
    pub struct AbortReply {
        /// Reservations that ended.
        pub aborted: u32,
        /// Reservations that the connection does not hold.
        pub unknown: u32,
    }
}

body! {
    /// Waits until a copy that another client writes is committed or given up, or the deadline.
    #[derive(Copy)]
    pub struct Await {
        /// All of its key but the hash.
        pub parts: KeyParts,
        /// Which block.
        pub hash: BlockHash,
    }
}

body! {
    /// Reply to [`Await`].
    #[derive(Copy)]
    pub struct AwaitReply {
        /// `None` when the copy is there.
        pub miss: Option<MissReason>,
    }
}

body! {
    /// Reply to [`Prefetch`](super::Request::Prefetch), at once.
    #[derive(Copy)]
    pub struct PrefetchReply {
        /// Blocks that are in the host arena or on their way there.
        pub accepted: u32,
    }
}

body! {
    /// Keeps the longest run of copies that are there from being evicted, for a while.
    #[derive(Copy)]
    pub struct Pin<'a> {
        /// What the keys have in common.
        pub parts: KeyParts,
        /// What will do.
        pub accept: AcceptId,
        /// For how long. A pin outlives its connection.
        pub ttl_ms: u64,
        /// The blocks.
        pub run: Run<'a>,
    }
}

body! {
    /// Reply to [`Pin`].
    #[derive(Copy)]
    pub struct PinReply {
        /// Blocks that are pinned now.
        pub pinned: u32,
    }
}

body! {
    /// Reply to [`Unpin`](super::Request::Unpin).
    #[derive(Copy)]
    pub struct UnpinReply {
        /// Pins that ended.
        pub unpinned: u32,
    }
}

body! {
    /// Says that a leased copy was not what it should be: the daemon drops it, or verifies it first.
    #[derive(Copy)]
    pub struct Report {
        /// The slots.
        pub class: ClassId,
        /// Which slot.
        pub slot: SlotIndex,
        /// Under which generation it was read.
        pub generation: Generation,
        /// What was wrong.
        pub reason: MissReason,
    }
}
