//! The disk beside the tiers of slots.
//!
//! | file | part |
//! |---|---|
//! | `port` | completions of the disk tier, sorted by who waits |
//! | `bounce` | host memory set aside for images on their way down and sections on their way to a kernel |
//! | `books` | what is under way for the shard: stores, loads, pins |
//! | `work` | the driver's part: performs the shard's actions on the disk |
//! | `stage` | sections of blocks that are on the disk only, for one step |
//!
//! **Write-behind.** A published block is queued and copied out as soon as bounce memory is free: from the host arena if a copy is there, else
//! from device memory. A device copy that must go first is copied out before it goes. The queue is bounded; what does not fit is not stored.
//!
//! **Without a disk the cache works.** A directory that another process holds, a store of another version or a disk that fails at the start
//! leave the cache without the tier, with the reason kept for whoever asks ([`DiskStatus`]).

mod books;
mod bounce;
mod port;
mod stage;
mod work;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cache_core::form::Form;
use cache_core::payload::BlockShape;
use cache_core::store::{Slot, SlotPlace};
use disk_tier::io::{IoChoice, Region};
use disk_tier::{Admission, ByteStage, DiskConfig, DiskError, DiskState, DiskTier, section_span};
use gpu_tier::cpu::codec::Simd;
use gpu_tier::device::HostRange;
use host_tier::Extent;

use crate::cache::CacheError;
use crate::embedded::Host;
use crate::embedded::extents::ArenaExtent;

pub(crate) use books::{Books, Waiting};
use bounce::{Pool, Span};
use port::Port;

/// The disk tier under a cache.
#[derive(Clone, Debug)]
pub struct DiskSettings {
    /// Which store.
    pub store: DiskStore,
    /// Live blocks that may be on the disk only, at most.
    pub live_blocks: u32,
    /// Pieces of bounce memory that sections of one step need at least.
    pub pieces_min: u32,
    /// Which published blocks are written behind.
    pub writes: Writes,
}

/// Which store a cache writes to.
#[derive(Clone, Debug)]
pub enum DiskStore {
    /// One of its own.
    Own(StoreSettings),
    /// That of another cache in this process, whose budget holds the blocks of both.
    Shared(SharedStore),
}

impl DiskStore {
    /// What this store adds to the bytes on the disk.
    pub(crate) fn budget_bytes(&self) -> u64 {
        match self {
            DiskStore::Own(settings) => settings.budget_bytes,
            DiskStore::Shared(_) => 0,
        }
    }
}

/// An open store, for a second cache: see [`crate::embedded::Embedded::share_store`].
#[derive(Clone)]
pub struct SharedStore(pub(crate) Arc<Port>);

impl std::fmt::Debug for SharedStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedStore")
    }
}

/// Which published blocks are written behind. A live block's way out of memory is open to all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writes {
    /// All.
    All,
    /// Those with nothing lossy before them: the others are stored in another form.
    Untainted,
}

/// Settings of a store.
#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// The store's directory; made when it is not there.
    pub directory: PathBuf,
    /// Hard limit in bytes of everything in it.
    pub budget_bytes: u64,
    /// Which blocks are written.
    pub admission: Admission,
    /// Most bytes written per second; `None` = no limit.
    pub write_limit_bytes_s: Option<u64>,
    /// Which way to the disk.
    pub io: IoChoice,
    /// How sections are encoded in the records that are written.
    pub stage: ByteStage,
}

/// What became of the disk tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskStatus {
    /// None was asked for.
    None,
    /// It could not be opened, and the cache works without it.
    Absent {
        /// Why, for people.
        reason: String,
    },
    /// It is there.
    Open(DiskState),
}

/// Extents that are registered with the kernel, in bytes at most: registration commits and pins their pages.
const REGISTERED_BYTES_MAX: u64 = 512 << 20;
/// An operation ends within twice the tier's deadline; this is for a tier that does not.
const PATIENCE: Duration = Duration::from_secs(30);

/// An open disk tier with its bounce memory.
pub(crate) struct Disk {
    shape: BlockShape,
    writes: Writes,
    port: Arc<Port>,
    /// Whole images.
    images: Arc<Pool>,
    /// Single sections.
    pieces: Arc<Pool>,
    /// The host extents, for operations that read and write slots.
    regions: Vec<Arc<dyn Region>>,
}

/// How a store is opened: in the settings' directory, or, in tests, over any medium.
pub(crate) type OpenTier<'a> = dyn Fn(&StoreSettings, DiskConfig) -> Result<DiskTier, DiskError> + 'a;

/// Host slots that are set aside as bounce memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Aside {
    pub(crate) images: u32,
    pub(crate) pieces: u32,
}

impl Aside {
    /// A share of the arena that grows with it: up to 8 images on their way down, and sections of at least `pieces_min` pieces.
    pub(crate) fn of(shape: &BlockShape, host_slots: u32, pieces_min: u32) -> Aside {
        let per_slot = pieces_per_slot(shape);
        let wanted = 64.max(pieces_min).div_ceil(per_slot);
        let least = pieces_min.max(1).div_ceil(per_slot);
        Aside { images: (host_slots / 16).clamp(1, 8), pieces: wanted.min(host_slots / 8).max(least) }
    }

    pub(crate) fn slots(&self) -> u32 {
        self.images + self.pieces
    }
}

/// Host memory that a disk takes beside its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reserved {
    pub(crate) aside: Aside,
    /// The tier's own, for staged records on their way.
    pub(crate) bounce_bytes: u64,
}

/// The tier's own memory for staged records on their way, a share of the host budget that grows with it: up to 4 records to read and 2 to
/// write, as long as the longest of such blocks, so that it is enough for every cache of the store.
pub(crate) fn bounce_bytes(shape: &BlockShape, host_bytes: u64) -> u64 {
    let record_bytes = shape.with_form(Form::Raw16).slot_bytes();
    (host_bytes / record_bytes / 32).clamp(1, 2) * 3 * record_bytes
}

/// The smallest usual record of such blocks in any form: a store's division follows from it, and is to be the same whichever form its
/// first cache keeps.
pub(crate) fn record_bytes(shape: &BlockShape) -> u64 {
    shape.slot_bytes().min(shape.with_form(Form::Kc4vt4).slot_bytes())
}

/// Bytes of the pages around any section of this shape.
fn piece_bytes(shape: &BlockShape) -> u64 {
    shape.sections().map(|section| section_span(section).bytes).max().expect("a block has sections")
}

fn pieces_per_slot(shape: &BlockShape) -> u32 {
    u32::try_from(shape.slot_bytes() / piece_bytes(shape)).unwrap_or(u32::MAX).max(1)
}

impl Disk {
    /// Opens the store. Errors: [`CacheError::Budget`] for a budget under the least. `Ok(Err(reason))`: the cache has to do without.
    pub(crate) fn open(
        shape: BlockShape,
        settings: &DiskSettings,
        host: &Host,
        Reserved { aside, bounce_bytes }: Reserved,
        open_tier: &OpenTier<'_>,
    ) -> Result<Result<Disk, String>, CacheError> {
        let Host { tier: host, extents } = host;
        let region = |extent: &Arc<Extent>| Arc::new(ArenaExtent::new(Arc::clone(extent))) as Arc<dyn Region>;
        let regions: Vec<Arc<dyn Region>> = host.extents().iter().map(region).collect();
        let mut registered = 0;
        let within = |region: &&Arc<dyn Region>| {
            registered += region.bytes();
            registered <= REGISTERED_BYTES_MAX
        };
        let open = |store: &StoreSettings| {
            let config = DiskConfig {
                admission: store.admission,
                write_limit_bytes_s: store.write_limit_bytes_s,
                io: store.io,
                stage: store.stage,
                codec: Arc::new(Simd::detect()),
                bounce_bytes,
                regions: regions.iter().take_while(within).cloned().collect(),
                record_bytes: record_bytes(&shape),
                ..DiskConfig::new(store.budget_bytes)
            };
            open_tier(store, config).map(|tier| Arc::new(Port::new(tier)))
        };
        let opened = match &settings.store {
            DiskStore::Own(store) => open(store),
            DiskStore::Shared(SharedStore(port)) => Ok(Arc::clone(port)),
        };
        let port = match opened {
            Ok(port) => port,
            Err(DiskError::Budget { found_bytes, minimum_bytes }) => {
                return Err(CacheError::Budget { what: "a disk tier", budget_bytes: found_bytes, minimum_bytes });
            }
            Err(error) => return Ok(Err(chain(&error))),
        };
        let slots = |count: u32| (0..count).map(|_| host.reserve_open()).collect::<Result<Vec<Slot>, _>>();
        let failed = |error| CacheError::Host(format!("set bounce memory aside: {error}"));
        let (images, pieces) = (slots(aside.images).map_err(failed)?, slots(aside.pieces).map_err(failed)?);
        let span = |place: SlotPlace, offset: u64, bytes: u64| Span {
            host: HostRange { extent: extents[place.extent as usize], offset: place.offset + offset, bytes },
            region: Arc::clone(&regions[place.extent as usize]),
        };
        let whole = images.iter().map(|slot| span(slot.place(), 0, slot.place().bytes)).collect();
        let bytes = piece_bytes(&shape);
        let cut = |slot: &Slot| {
            let place = slot.place();
            (0..pieces_per_slot(&shape)).map(move |index| (place, u64::from(index) * bytes))
        };
        let parts = pieces.iter().flat_map(cut).map(|(place, offset)| span(place, offset, bytes)).collect();
        Ok(Ok(Disk {
            shape,
            writes: settings.writes,
            port,
            images: Pool::new(whole, images),
            pieces: Pool::new(parts, pieces),
            regions,
        }))
    }

    pub(crate) fn tier(&self) -> &DiskTier {
        self.port.tier()
    }

    pub(crate) fn port(&self) -> Arc<Port> {
        Arc::clone(&self.port)
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
