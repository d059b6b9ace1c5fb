//! What an engine sees of the cache: sequences of blocks, live as long as the sequence runs.
//!
//! The order of a step: [`KvCache::acquire`] the prefix that is there; [`KvCache::reserve`] open blocks for what this step computes;
//! take [`KvCache::places`] and compute; [`KvCache::check`] afterwards that what was read in place had not changed hands;
//! [`KvCache::commit`] each block that became full.
//!
//! A cache keeps blocks in one form. An engine that closes blocks into a lossy form has a second cache for those, and a sequence in each: blocks
//! that it does not read in one of the forms are **absent** there ([`KvCache::skip`], [`KvCache::release`]).

use cache_core::chain::Link;
use cache_core::form::{Accept, Provenance};
use cache_core::hash::{Namespace, TenantId};
use cache_core::manifest::Manifest;
use cache_core::miss::MissReason;
use cache_core::payload::{BlockShape, Section};
use cache_core::store::Lease;
use cache_core::units::{Generation, SlotIndex, Tier};
use gpu_tier::device::{DeviceRange, HostRange};

/// Names a running sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// What [`KvCache::acquire`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acquired {
    /// The tier of each block that is there, in order. All of them are live from now on.
    pub tiers: Vec<Tier>,
    /// Why the next block is not; `None` when all were there.
    pub miss: Option<MissReason>,
}

/// What one sequence wants to open in this step.
#[derive(Clone, Debug)]
pub struct Want {
    /// The sequence.
    pub sequence: SequenceId,
    /// A link per block to open after the sequence's last one; `None` where its tokens are not known yet (decode).
    pub blocks: Vec<Option<Link>>,
}

/// Answer to one [`Want`]: all of its blocks or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// All blocks are open, zeroed, in device memory.
    Granted,
    /// Another sequence computes the first of these blocks, or the lost block has come back: look again. Nothing is held.
    PendingElsewhere,
    /// There is no room, now that every copy that may go has gone. Nothing is held.
    NoRoom(NoRoom),
}

/// The figures behind a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// Slots asked for.
    pub wanted_slots: u32,
    /// Device slots in all.
    pub device_slots: u32,
    /// Device slots that live sequences hold.
    pub device_live_slots: u32,
    /// Host slots in all.
    pub host_slots: u32,
    /// Host slots that live sequences hold.
    pub host_live_slots: u32,
}

/// Which tenant of a device slot a place means: a slot that has changed hands since has another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The slot.
    pub slot: SlotIndex,
    /// Its generation when the place was given.
    pub generation: Generation,
}

/// Where a block's slot image is for the length of a step.
#[derive(Debug)]
pub enum BlockPlace {
    /// In device memory, until the next `reserve`, `reopen` or `prefetch` of any sequence; [`KvCache::check`] tells whether it still was.
    Device(DeviceRange, Stamp),
    /// In the host arena; the lease keeps it there.
    Host(HostRange, Lease),
    /// On the disk only, and kept there as long as the block is live: its sections are read one by one ([`KvCache::stage`]).
    Disk,
    /// No copy is left: the block must be computed again ([`KvCache::reopen`]).
    Lost(MissReason),
    /// The sequence does not hold the block here.
    Absent,
}

/// One section of a block that is on the disk only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StagedSection {
    /// The block, by its number in the sequence.
    pub block: u32,
    /// Which section.
    pub section: Section,
}

/// Sections on their way from the disk into host memory. Dropping it gives that memory back: not before kernels and copies that read it have
/// completed.
pub trait Stage: Send {
    /// True when [`Stage::wait`] will not wait.
    fn is_done(&self) -> bool;
    /// Waits for all of them. Per section, in the order asked for: its verified bytes, valid until the stage is dropped, or why they are not
    /// to be had. A read that fails is to be told with [`KvCache::lost`].
    fn wait(&mut self) -> Vec<Result<HostRange, MissReason>>;
}

/// Bytes that a [`KvCache::prefetch`] moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefetched {
    /// Host to device.
    pub to_device_bytes: u64,
    /// Disk to host.
    pub to_host_bytes: u64,
}

/// How a block became visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// This copy is the block.
    Inserted,
    /// An equal block was there first; the sequence reads that one and its own slot is free again.
    Present,
}

/// Counters since the cache was opened.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Blocks in device memory now (open ones included) and its slots.
    pub device_slots: (u32, u32),
    /// Blocks in the host arena now and its slots.
    pub host_slots: (u32, u32),
    /// Bytes of the host arena in use, metadata included, and its budget.
    pub host_bytes: (u64, u64),
    /// Block hits by tier: device, host, disk.
    pub hits: [u64; 3],
    /// Misses by reason, in the order of [`MissReason::ALL`].
    pub misses: [u64; 11],
    /// Blocks moved device -> host.
    pub demoted_blocks: u64,
    /// Blocks moved host -> device.
    pub promoted_blocks: u64,
    /// Copies dropped, by tier: device, host.
    pub evicted_blocks: [u64; 2],
    /// Distinct blocks in memory now.
    pub blocks: u64,
    /// Blocks written to the disk.
    pub stored_blocks: u64,
    /// Blocks brought from the disk into the host arena whole.
    pub loaded_blocks: u64,
    /// Published blocks that were not written to the disk: no room, refused, or gone before their turn.
    pub dropped_stores: u64,
}

/// Errors of the cache. Text reads after "failed to".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// A budget that cannot hold the least that is needed.
    #[error("fit {what} into {budget_bytes} bytes: at least {minimum_bytes} are needed")]
    Budget {
        /// Which budget.
        what: &'static str,
        /// What was given.
        budget_bytes: u64,
        /// What is needed.
        minimum_bytes: u64,
    },
    /// The device failed.
    #[error("use the device")]
    Device(#[from] gpu_tier::DeviceError),
    /// The device tier failed.
    #[error("use the device tier")]
    DeviceTier(#[source] cache_core::store::StoreError),
    /// The host arena failed.
    #[error("use the host arena: {0}")]
    Host(String),
    /// A sequence or block that is not there (our bug or the caller's).
    #[error("use {what}: there is no such thing")]
    Unknown {
        /// What was named.
        what: String,
    },
}

/// The cache as an engine uses it. `reserve`, `reopen` and `prefetch` may wait for copies and `commit` for the kernels that fill its block;
/// other calls are short, but wait for those.
pub trait KvCache: Send + Sync {
    /// Shape of every block.
    fn shape(&self) -> BlockShape;
    /// The namespace of a manifest for one tenant. A cache that shares blocks with other processes makes it known to them, so a namespace is asked for
    /// here before a sequence is opened in it.
    fn namespace(&self, manifest: &Manifest, tenant: TenantId) -> Namespace;
    /// Starts a sequence in a namespace. Its blocks are live until it is closed.
    fn open(&self, namespace: Namespace) -> SequenceId;
    /// States what blocks from number `from` on are computed after. A sequence's blocks are exact until it says otherwise; later statements
    /// must not reach further back than blocks that are there.
    fn taint(&self, sequence: SequenceId, from: u32, provenance: Provenance) -> Result<(), CacheError>;
    /// Ends a sequence: its open blocks are freed, its others become ordinary cache entries.
    fn close(&self, sequence: SequenceId);
    /// Longest prefix of `links` that is there for a sequence without taint, without touching anything. What a daemon has is named by the tier that it
    /// has it in.
    fn lookup(&self, namespace: Namespace, links: &[Link], accept: Accept) -> Acquired;
    /// Starts to bring the blocks of `links` that are there, and that some sequence will acquire soon, into memory that attention can read or that a copy
    /// into device memory can start from: the last of them first, as far as there is room that no live block needs. Does not wait. They are kept
    /// until the sequence that this answers with is closed; a daemon keeps nothing, but loads them, first to last. Counts neither hits nor misses.
    fn load_ahead(&self, namespace: Namespace, links: &[Link]) -> Result<SequenceId, CacheError>;
    /// Says that the engine computes the blocks of `links`, although they are there, since fetching them would take longer: a daemon counts and explains
    /// misses that nobody asks it for. Changes nothing.
    fn forgo(&self, namespace: Namespace, links: &[Link]);
    /// Appends to the sequence the blocks of `links` that are there, up to the first miss. `links` continue the sequence's blocks.
    /// Counts hits and the miss.
    fn acquire(&self, sequence: SequenceId, links: &[Link], accept: Accept) -> Result<Acquired, CacheError>;
    /// Appends a block that the sequence does not hold. `link` as far as its tokens are known.
    fn skip(&self, sequence: SequenceId, link: Option<Link>) -> Result<(), CacheError>;
    /// Gives up one block of the sequence, which goes on without it: an open one is freed, another becomes an ordinary cache entry.
    fn release(&self, sequence: SequenceId, block: u32) -> Result<(), CacheError>;
    /// Opens blocks for one step: per sequence all or none, in the order given.
    fn reserve(&self, wants: &[Want]) -> Result<Vec<Grant>, CacheError>;
    /// Opens again a block of the sequence whose copies are lost, so that it can be recomputed in place.
    fn reopen(&self, sequence: SequenceId, block: u32) -> Result<Grant, CacheError>;
    /// Gives up a block that [`KvCache::reopen`] opened before it could be filled: it is lost again, and its slot is free.
    fn abandon(&self, sequence: SequenceId, block: u32) -> Result<(), CacheError>;
    /// Where each block of the sequence is, block 0 first. Leases keep host places; device places stay until the
    /// next `reserve`, `reopen` or `prefetch`. Either way `check` after use decides.
    fn places(&self, sequence: SequenceId) -> Result<Vec<BlockPlace>, CacheError>;
    /// True when what was read from `place` was the block; called after the copy or kernel has completed. False counts a lost lease
    /// and drops that copy.
    fn check(&self, sequence: SequenceId, block: u32, place: &BlockPlace) -> bool;
    /// Seals open blocks that have become full (sums over their sections) and makes them visible: `first` and those behind it, as many as `links`; a daemon
    /// gets them together. `links` continue the sequence: the first one's depth is `first` and its parent the block before. Returns what became of each.
    /// Errors: [`CacheError::Unknown`] for another link; the blocks before it are visible all the same.
    fn commit(&self, sequence: SequenceId, first: u32, links: &[Link]) -> Result<Vec<Committed>, CacheError>;
    /// Takes blocks off the sequence's end so that it has `blocks` blocks: open ones are freed, others released.
    fn truncate(&self, sequence: SequenceId, blocks: u32) -> Result<(), CacheError>;
    /// Copies the sequence's blocks nearer to the device while there is room that no live block needs: from the disk into the host arena,
    /// and on into device memory unless `nearest` is [`Tier::Host`].
    fn prefetch(&self, sequence: SequenceId, nearest: Tier) -> Result<Prefetched, CacheError>;
    /// Starts to read sections of blocks whose place is [`BlockPlace::Disk`]. `None` when there is no memory for all of them just now: drop
    /// stages that are done with. At most [`KvCache::stage_capacity`] sections are staged at once.
    fn stage(&self, sequence: SequenceId, sections: &[StagedSection]) -> Result<Option<Box<dyn Stage>>, CacheError>;
    /// Sections that can be staged at once; 0 without a disk.
    fn stage_capacity(&self) -> u32;
    /// Tells that a staged read of a block failed: the record is lost, and so is the block unless another copy has turned up.
    fn lost(&self, sequence: SequenceId, block: u32, reason: MissReason) -> Result<(), CacheError>;
    /// Counters.
    fn stats(&self) -> CacheStats;
    /// Why this block is or is not here: one line per tier.
    fn explain(&self, namespace: Namespace, link: Link) -> String;
}
