//! The `cuda` device: cudarc over the driver library, which is loaded at run time.
//!
//! Memory, streams, events and copies, and the kernels of `gpu-tier/kernels` ([`kernels`]; `attention` and `codec` say what they are
//! launched over). A binary with this device starts everywhere: without a driver [`CudaDevice::open`] returns
//! [`DeviceError::Unavailable`].
//!
//! # Safety
//! Driver calls take bare addresses. Who keeps them valid:
//!
//! | Address | Valid until | Keeper |
//! |---|---|---|
//! | device range | the work enqueued before its buffer was dropped is done | `memory`: an operation resolves and enqueues under its read lock, a drop records events on every stream under the write lock and the memory goes after them |
//! | host extent | the device is dropped | `extents` holds the `Arc` and unpins after the context is idle |
//! | staging chunk, slot for unpinned memory | the work that uses it is done | the chunk's event |
//! | caller's slice | the call returns | operations wait for the stream before they return |
//!
//! Lock order: `memory`, `extents`, `staging`, a lane's slots, its events, `health`. What needs a staging chunk or a slot waits for a stream while it
//! holds the locks before; work in a stream never needs one of these locks, so such a wait ends.

mod address;
mod attention;
pub mod bench;
mod bounce;
pub mod codec;
pub mod counts;
mod extent;
mod health;
mod kernels;
mod lane;
mod memory;
mod probe;
mod staging;
mod transfer;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use self::extent::Extents;
use self::health::Health;
use self::kernels::gather::Gather;
use self::kernels::image::LoadError;
use self::kernels::{Kernels, Launcher};
use self::lane::{Lane, Standing};
use self::memory::{Memory, events_now};
use self::staging::{CHUNK_BYTES, Staging};
use self::transfer::{Direction, Move};
use crate::attention::Products;
use crate::device::{
    BufferId, CopyPiece, Device, DeviceBuffer, DeviceInfo, DeviceRange, Event, ExtentId, FreeBuffer, HostExtent,
    MemoryUse, Stream, Traffic,
};
use crate::error::DeviceError;

pub use self::attention::QueryElement;
pub use self::kernels::image::KernelSource;
pub use self::probe::probe;

/// How to open a CUDA device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaConfig {
    /// Which device, counted from 0 as the driver does.
    pub ordinal: u32,
    /// Hard limit on device memory, in bytes. The context itself and loaded modules are not counted.
    pub budget_bytes: u64,
    /// Where the kernels come from. Without a gather kernel the driver's copies stand in.
    pub kernels: KernelSource,
}

/// A CUDA device. Buffers may outlive it: the context goes with the last of them.
pub struct CudaDevice {
    shared: Arc<Shared>,
}

struct Shared {
    info: DeviceInfo,
    context: Arc<CudaContext>,
    compute: Lane,
    copy_in: Lane,
    copy_out: Lane,
    /// For filling fresh memory; never has other work.
    setup: Arc<CudaStream>,
    kernels: Kernels,
    memory: RwLock<Memory>,
    extents: RwLock<Extents>,
    staging: Mutex<Staging>,
    health: Health,
    copied_in: AtomicU64,
    copied_out: AtomicU64,
    attended: AtomicU64,
    products: Products,
}

impl CudaDevice {
    /// Opens a device. Errors: [`DeviceError::Unavailable`] without driver, device or context; [`DeviceError::Driver`] when the
    /// driver refuses the kernels or a stream.
    pub fn open(config: CudaConfig) -> Result<CudaDevice, DeviceError> {
        CudaDevice::open_with(config, Products::Canonical)
    }

    /// Opens a device whose attention multiplies in a way of its own. On matrix units: heads of a multiple of 64 channels, exact blocks
    /// of bf16. Errors: as [`CudaDevice::open`].
    pub fn open_with(config: CudaConfig, products: Products) -> Result<CudaDevice, DeviceError> {
        let unavailable = |reason: String| DeviceError::Unavailable { kind: "cuda", reason };
        let count = probe()?;
        if config.ordinal >= count {
            return Err(unavailable(format!("there is no device {}, the driver offers {count}", config.ordinal)));
        }
        if matches!(&config.kernels, KernelSource::Image(image) if image.contains('\0')) {
            return Err(DeviceError::Shape {
                what: "open",
                problem: "the module image has a zero byte in its text".to_owned(),
            });
        }
        let ordinal = usize::try_from(config.ordinal).expect("an ordinal fits usize");
        let context = CudaContext::new(ordinal).map_err(|error| unavailable(error.to_string()))?;
        let health = Health::new();
        let name = health.told("name", context.name())?;
        let lane = || health.told("create a stream", Lane::new(&context));
        let modules = match kernels::load(&context, &config.kernels) {
            Ok(modules) => modules,
            Err(LoadError::Driver(error)) => return health.told("load kernels", Err(error)),
            Err(LoadError::Unavailable(reason)) => return Err(unavailable(reason)),
        };
        let shared = Shared {
            info: DeviceInfo { kind: "cuda", name, in_place: false, link_bytes_per_second: None },
            compute: lane()?,
            copy_in: lane()?,
            copy_out: lane()?,
            setup: health.told("create a stream", context.new_stream())?,
            kernels: health.told("load kernels", Kernels::of(&modules))?,
            memory: RwLock::new(Memory::new(config.budget_bytes)),
            extents: RwLock::default(),
            staging: Mutex::default(),
            health,
            copied_in: AtomicU64::new(0),
            copied_out: AtomicU64::new(0),
            attended: AtomicU64::new(0),
            products,
            context,
        };
        Ok(CudaDevice { shared: Arc::new(shared) })
    }

    /// Whether the driver has pinned an extent; `None` for one that is not registered. Copies of one that is not go through pinned slots, and
    /// kernels cannot reach it.
    pub fn is_pinned(&self, extent: ExtentId) -> Option<bool> {
        self.shared.extents().is_pinned(extent)
    }
}

impl Shared {
    fn memory(&self) -> RwLockReadGuard<'_, Memory> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory_mut(&self) -> RwLockWriteGuard<'_, Memory> {
        self.memory.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn extents(&self) -> RwLockReadGuard<'_, Extents> {
        self.extents.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn lane(&self, stream: Stream) -> &Lane {
        match stream {
            Stream::Compute => &self.compute,
            Stream::CopyIn => &self.copy_in,
            Stream::CopyOut => &self.copy_out,
        }
    }

    /// What every operation does first: the device works, and its context is current on this thread.
    fn enter(&self) -> Result<(), DeviceError> {
        self.health.check()?;
        self.health.told("bind the context", self.context.bind_to_thread())
    }

    /// What launches of an operation in a stream work with.
    fn launcher(&self, what: &'static str, stream: Stream) -> Launcher<'_> {
        Launcher {
            kernels: &self.kernels,
            stream: self.lane(stream).stream(),
            staging: &self.staging,
            health: &self.health,
            what,
        }
    }

    fn standing(&self, event: Event) -> Result<Standing, DeviceError> {
        let standing = self.health.told("query an event", self.lane(event.stream).standing(event.sequence))?;
        match standing {
            Standing::Unknown => {
                let problem = format!("event {} was never recorded in stream {:?}", event.sequence, event.stream);
                Err(DeviceError::Shape { what: "look up an event", problem })
            }
            known => Ok(known),
        }
    }

    /// Checks all pieces, then enqueues them; returns the bytes.
    fn transfer(&self, stream: Stream, direction: Direction, pieces: &[CopyPiece]) -> Result<u64, DeviceError> {
        self.enter()?;
        let what = match direction {
            Direction::In => "copy in",
            Direction::Out => "copy out",
        };
        let (memory, extents) = (self.memory(), self.extents());
        let (mut moves, mut total) = (Vec::with_capacity(pieces.len()), 0);
        for CopyPiece { host, device } in pieces.iter().copied() {
            if host.bytes != device.bytes {
                let problem = format!("{} host bytes against {} device bytes", host.bytes, device.bytes);
                return Err(DeviceError::Shape { what, problem });
            }
            let place = match direction {
                Direction::In => extents.resolve(host)?,
                Direction::Out => extents.resolve_target(host)?,
            };
            let piece = Move { host: place, device: memory.resolve(device)?, bytes: host.bytes };
            total += host.bytes;
            // The driver and the kernel need not know about empty pieces.
            moves.extend((host.bytes > 0).then_some(piece));
        }
        let lane = self.lane(stream);
        self.health.told(what, transfer::enqueue(lane, Gather::of(&self.kernels), &self.staging, direction, &moves))?;
        Ok(total)
    }

    /// Enqueues the copy of a range to a slice and waits for it.
    fn read(&self, stream: Stream, source: DeviceRange, target: &mut [u8]) -> Result<(), DeviceError> {
        const WHAT: &str = "download";
        self.enter()?;
        if target.len() as u64 > source.bytes {
            let problem = format!("{} bytes wanted of a range of {}", target.len(), source.bytes);
            return Err(DeviceError::Shape { what: WHAT, problem });
        }
        let stream = self.lane(stream).stream();
        let memory = self.memory();
        let place = memory.resolve(source)?;
        if target.is_empty() {
            return self.health.told(WHAT, stream.synchronize());
        }
        // SAFETY: the range is live and as long as `target` or longer; `target` is borrowed until the stream is done, below.
        let enqueued = unsafe { result::memcpy_dtoh_async(target, place.raw(), stream.cu_stream()) };
        drop(memory);
        self.health.told(WHAT, enqueued.and_then(|()| stream.synchronize()))
    }
}

impl Device for CudaDevice {
    fn info(&self) -> &DeviceInfo {
        &self.shared.info
    }

    fn memory(&self) -> MemoryUse {
        let shared = &*self.shared;
        let mut memory = shared.memory_mut();
        let freed = shared.context.bind_to_thread().and_then(|()| memory.reap(false));
        shared.health.untold("free", freed);
        memory.usage()
    }

    fn traffic(&self) -> Traffic {
        Traffic {
            copied_in_bytes: self.shared.copied_in.load(Ordering::Relaxed),
            copied_out_bytes: self.shared.copied_out.load(Ordering::Relaxed),
            attended_device_bytes: self.shared.attended.load(Ordering::Relaxed),
            ..Traffic::default()
        }
    }

    fn allocate(&self, bytes: u64) -> Result<DeviceBuffer, DeviceError> {
        let shared = &*self.shared;
        shared.enter()?;
        let id = shared.memory_mut().allocate(bytes, &shared.setup, &shared.health)?;
        Ok(DeviceBuffer::new(id, bytes, self.shared.clone()))
    }

    fn register(&self, extent: Arc<dyn HostExtent>) -> Result<ExtentId, DeviceError> {
        self.shared.enter()?;
        let mut extents = self.shared.extents.write().unwrap_or_else(PoisonError::into_inner);
        self.shared.health.told("register a host extent", extents.register(extent, &self.shared.context))
    }

    fn record(&self, stream: Stream) -> Result<Event, DeviceError> {
        self.shared.enter()?;
        let sequence = self.shared.health.told("record an event", self.shared.lane(stream).record())?;
        Ok(Event { stream, sequence })
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<(), DeviceError> {
        self.shared.enter()?;
        match self.shared.standing(event)? {
            Standing::Pending(event) => {
                self.shared.health.told("wait for an event", self.shared.lane(stream).stream().wait(&event))
            }
            _ => Ok(()),
        }
    }

    fn is_done(&self, event: Event) -> Result<bool, DeviceError> {
        self.shared.enter()?;
        Ok(matches!(self.shared.standing(event)?, Standing::Done))
    }

    fn synchronize(&self, event: Event) -> Result<(), DeviceError> {
        self.shared.enter()?;
        match self.shared.standing(event)? {
            Standing::Pending(event) => self.shared.health.told("synchronize", event.synchronize()),
            _ => Ok(()),
        }
    }

    fn copy_in(&self, stream: Stream, pieces: &[CopyPiece]) -> Result<(), DeviceError> {
        let bytes = self.shared.transfer(stream, Direction::In, pieces)?;
        self.shared.copied_in.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn copy_out(&self, stream: Stream, pieces: &[CopyPiece]) -> Result<(), DeviceError> {
        let bytes = self.shared.transfer(stream, Direction::Out, pieces)?;
        self.shared.copied_out.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn copy_within(&self, stream: Stream, source: DeviceRange, target: DeviceRange) -> Result<(), DeviceError> {
        const WHAT: &str = "copy within";
        self.shared.enter()?;
        let memory = self.shared.memory();
        let (from, to) = (memory.resolve(source)?, memory.resolve(target)?);
        let overlap = source.buffer == target.buffer && source.offset.abs_diff(target.offset) < source.bytes;
        if source.bytes != target.bytes || overlap {
            let problem = format!("{source:?} to {target:?}: lengths must be equal and the ranges apart");
            return Err(DeviceError::Shape { what: WHAT, problem });
        }
        if source.bytes == 0 {
            return Ok(());
        }
        let bytes = usize::try_from(source.bytes).expect("device memory fits the address space");
        let stream = self.shared.lane(stream).stream().cu_stream();
        // SAFETY: both ranges are live, of this length and apart; `memory` keeps them so until the work is enqueued.
        let copied = unsafe { sys::cuMemcpyDtoDAsync_v2(to.raw(), from.raw(), bytes, stream) }.result();
        self.shared.health.told(WHAT, copied)
    }

    fn upload(&self, stream: Stream, source: &[u8], target: DeviceRange) -> Result<(), DeviceError> {
        const WHAT: &str = "upload";
        self.shared.enter()?;
        let memory = self.shared.memory();
        let mut place = memory.resolve(target)?;
        if source.len() as u64 > target.bytes {
            let problem = format!("{} bytes into a range of {}", source.len(), target.bytes);
            return Err(DeviceError::Shape { what: WHAT, problem });
        }
        let stream = self.shared.lane(stream).stream();
        let mut staging = self.shared.staging.lock().unwrap_or_else(PoisonError::into_inner);
        for part in source.chunks(CHUNK_BYTES) {
            let copied = staging.with(stream, part, |staged| {
                // SAFETY: the target part is live (`memory` is held) and at least this long; the chunk is not written again
                // before the stream has done this copy.
                unsafe { sys::cuMemcpyHtoDAsync_v2(place.raw(), staged.memory.cast(), part.len(), stream.cu_stream()) }
                    .result()
            });
            self.shared.health.told(WHAT, copied)?;
            place = place.add(part.len() as u64);
        }
        Ok(())
    }

    fn download(&self, stream: Stream, source: DeviceRange, target: &mut [u8]) -> Result<(), DeviceError> {
        self.shared.read(stream, source, target)
    }

    fn inspect(&self, stream: Stream, source: DeviceRange, look: &mut dyn FnMut(&[u8])) -> Result<(), DeviceError> {
        // Before the staging copy is allocated: a range may claim any length.
        self.shared.memory().resolve(source)?;
        let mut copy = vec![0; usize::try_from(source.bytes).expect("device memory fits the address space")];
        self.shared.read(stream, source, &mut copy)?;
        look(&copy);
        Ok(())
    }
}

impl FreeBuffer for Shared {
    fn free(&self, id: BufferId) {
        let mut memory = self.memory_mut();
        let streams = [self.compute.stream(), self.copy_in.stream(), self.copy_out.stream()];
        let freed = self.context.bind_to_thread().and_then(|()| memory.retire(id, events_now(&streams)?));
        self.health.untold("free", freed);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The first call takes an error that some other drop has left behind; the second then binds.
        let _: Result<(), DriverError> = self.context.check_err();
        let _ = self.context.bind_to_thread();
        // On failure the context has ended all work by itself; either way nothing runs after this.
        let _ = self.context.synchronize();
        for lane in [&self.compute, &self.copy_in, &self.copy_out] {
            lane.bounce().clear();
        }
        self.staging.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        self.extents.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
        self.memory.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
