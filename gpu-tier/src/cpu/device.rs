//! [`CpuDevice`]: the `Device` trait over host memory.
//!
//! The compute stream runs inline on the caller (with the workers), one operation at a time; each copy stream has its
//! own thread. Working space of the kernels (a few hundred KiB a worker, like a GPU's shared memory) is not device memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Instant;

use super::attention::Scratch;
use super::isa::Isa;
use super::link::Direction;
use super::memory::Memory;
use super::streams::{Copies, Move, Operation};
use super::workers::Workers;
use crate::device::{
    CopyPiece, Device, DeviceBuffer, DeviceInfo, DeviceRange, Event, ExtentId, HostExtent, HostRange, MemoryUse,
    Stream, Traffic,
};
use crate::error::DeviceError;

/// What lies between the host arena and the device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Link {
    /// Nothing: attention reads the host arena where it is.
    InPlace,
    /// A copy engine: attention reads device memory only.
    Strict {
        /// Rate of each direction; `None` copies as fast as memory allows.
        bytes_per_second: Option<f64>,
    },
}

/// How to open a [`CpuDevice`].
#[derive(Clone)]
pub struct CpuConfig {
    /// Hard limit of device memory, in bytes.
    pub budget_bytes: u64,
    /// Between host arena and device.
    pub link: Link,
    /// The threads that compute.
    pub workers: Arc<Workers>,
    /// Instruction set of the kernels.
    pub isa: Isa,
}

/// The processor as a device.
pub struct CpuDevice {
    info: DeviceInfo,
    pub(crate) isa: Isa,
    pub(crate) workers: Arc<Workers>,
    /// One for each worker.
    pub(crate) scratch: Vec<Mutex<Scratch>>,
    pub(crate) memory: Arc<Memory>,
    pub(crate) counters: Counters,
    copies: Arc<Copies>,
    compute: Mutex<Compute>,
    threads: Vec<JoinHandle<()>>,
    // Lock order: `compute`, then the table in `memory`, then `extents`; a queue's lock is never held with another.
    extents: RwLock<Vec<Arc<dyn HostExtent>>>,
}

/// State of the compute stream; its lock is held while an operation runs.
pub(crate) struct Compute {
    /// Operations and recorded events so far, the opening included.
    sequence: u64,
    /// Copy events that the next operation starts after.
    waits: Vec<Event>,
    /// A copy that an operation waited for has failed.
    lost: bool,
}

#[derive(Default)]
pub(crate) struct Counters {
    copied_in_bytes: AtomicU64,
    copied_out_bytes: AtomicU64,
    pub(crate) attended_device_bytes: AtomicU64,
    pub(crate) attended_host_bytes: AtomicU64,
}

impl CpuDevice {
    /// Opens the device: reserves address space and starts the copy threads.
    ///
    /// Errors: [`DeviceError::Unavailable`] when the processor lacks `isa`, the rate is not a positive number, or the
    /// system refuses address space or a thread.
    pub fn open(config: CpuConfig) -> Result<CpuDevice, DeviceError> {
        let CpuConfig { budget_bytes, link, workers, isa } = config;
        let unavailable = |reason: String| DeviceError::Unavailable { kind: "cpu", reason };
        if isa > Isa::detect() {
            return Err(unavailable(format!("this processor has no {}", isa.name())));
        }
        let (in_place, rate) = match link {
            Link::InPlace => (true, None),
            Link::Strict { bytes_per_second } => (false, bytes_per_second),
        };
        if let Some(rate) = rate.filter(|rate| !(rate.is_finite() && *rate >= 1.0)) {
            return Err(unavailable(format!("a link of {rate} bytes per second carries nothing")));
        }
        let mut device = CpuDevice {
            info: DeviceInfo {
                kind: "cpu",
                name: format!("cpu {} x{}", isa.name(), workers.count()),
                in_place,
                link_bytes_per_second: rate,
            },
            isa,
            scratch: (0..workers.count()).map(|_| Mutex::new(Scratch::default())).collect(),
            workers,
            memory: Arc::new(Memory::reserve(budget_bytes)?),
            counters: Counters::default(),
            copies: Arc::new(Copies::new(rate)),
            compute: Mutex::new(Compute { sequence: 1, waits: Vec::new(), lost: false }),
            threads: Vec::new(),
            extents: RwLock::new(Vec::new()),
        };
        for (stream, name) in [(Stream::CopyIn, "kvtier-copy-in"), (Stream::CopyOut, "kvtier-copy-out")] {
            let copies = Arc::clone(&device.copies);
            let thread = std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || copies.serve(stream))
                .map_err(|error| unavailable(format!("start thread {name}: {error}")))?;
            device.threads.push(thread);
        }
        Ok(device)
    }

    /// Instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Takes the compute stream for one operation, after the copies it waits for.
    pub(crate) fn start_compute(&self) -> Result<MutexGuard<'_, Compute>, DeviceError> {
        // A kernel that panics leaves wrong bytes in its targets, not a broken state here.
        let mut compute = self.compute.lock().unwrap_or_else(PoisonError::into_inner);
        if compute.lost {
            return Err(DeviceError::Lost);
        }
        while let Some(event) = compute.waits.pop() {
            if let Err(error) = self.copies.wait(event) {
                // Work that counted on those copies must not run without them.
                compute.lost = true;
                return Err(error);
            }
        }
        compute.sequence += 1;
        Ok(compute)
    }

    /// Runs an operation inline on the compute stream or queues it on a copy stream.
    fn submit(&self, stream: Stream, operation: Operation) -> Result<(), DeviceError> {
        match stream {
            Stream::Compute => {
                let _running = self.start_compute()?;
                self.copies.perform(operation, Instant::now())
            }
            _ => self.copies.enqueue(stream, operation),
        }
    }

    /// Waits for all work of a stream.
    fn drain(&self, stream: Stream) -> Result<(), DeviceError> {
        match stream {
            Stream::Compute => self.start_compute().map(drop),
            _ => self.copies.wait(self.copies.record(stream)?),
        }
    }

    /// Address of a host range, in the copy engine's mapping or in the reader's.
    pub(crate) fn host_address(&self, range: HostRange, reader: bool) -> Result<*mut u8, DeviceError> {
        let HostRange { extent, offset, bytes } = range;
        let extents = self.extents.read().unwrap_or_else(PoisonError::into_inner);
        let found = extents
            .get(extent.0 as usize)
            .filter(|found| offset.checked_add(bytes).is_some_and(|end| end <= found.bytes()))
            .ok_or(DeviceError::HostRange { extent, offset, bytes })?;
        let base = if reader { found.reader_address().cast_mut() } else { found.service_address() };
        // SAFETY: both mappings are `bytes()` long by the trait's contract, and the offset lies within. The device
        // keeps the extent until it is dropped, after its threads.
        Ok(unsafe { base.add(offset as usize) })
    }

    /// Whether a registered extent is only read.
    fn is_read_only(&self, extent: ExtentId) -> bool {
        let extents = self.extents.read().unwrap_or_else(PoisonError::into_inner);
        extents.get(extent.0 as usize).is_some_and(|found| found.is_read_only())
    }

    /// A copy between host arena and device.
    fn transfer(&self, stream: Stream, direction: Direction, pieces: &[CopyPiece]) -> Result<(), DeviceError> {
        let (moves, pinned) = self.memory.pin(|access| {
            pieces
                .iter()
                .map(|CopyPiece { host, device }| {
                    if host.bytes != device.bytes {
                        let problem = format!("{} host bytes against {} device bytes", host.bytes, device.bytes);
                        return Err(DeviceError::Shape { what: "copy", problem });
                    }
                    let host_address = self.host_address(*host, false)?;
                    if matches!(direction, Direction::Out) && self.is_read_only(host.extent) {
                        return Err(DeviceError::ReadOnly { extent: host.extent });
                    }
                    let address = access.address(*device)?;
                    let bytes = host.bytes as usize;
                    Ok(match direction {
                        Direction::In => Move { source: host_address, target: address, bytes },
                        Direction::Out => Move { source: address, target: host_address, bytes },
                    })
                })
                .collect::<Result<Vec<_>, _>>()
        })?;
        let bytes = moves.iter().map(|piece| piece.bytes as u64).sum();
        self.submit(stream, Operation::Copy { moves, direction: Some(direction), ready: Instant::now(), pinned })?;
        let counter = match direction {
            Direction::In => &self.counters.copied_in_bytes,
            Direction::Out => &self.counters.copied_out_bytes,
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for CpuDevice {
    fn drop(&mut self) {
        self.copies.close();
        for thread in self.threads.drain(..) {
            // A thread that panicked has marked its stream as lost; there is nobody left to tell.
            let _ = thread.join();
        }
    }
}

impl Device for CpuDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn memory(&self) -> MemoryUse {
        self.memory.usage()
    }

    fn traffic(&self) -> Traffic {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            copied_in_bytes: get(&self.counters.copied_in_bytes),
            copied_out_bytes: get(&self.counters.copied_out_bytes),
            attended_device_bytes: get(&self.counters.attended_device_bytes),
            attended_host_bytes: get(&self.counters.attended_host_bytes),
        }
    }

    fn allocate(&self, bytes: u64) -> Result<DeviceBuffer, DeviceError> {
        self.memory.allocate(bytes)
    }

    fn register(&self, extent: Arc<dyn HostExtent>) -> Result<ExtentId, DeviceError> {
        let mut extents = self.extents.write().unwrap_or_else(PoisonError::into_inner);
        let id = u32::try_from(extents.len())
            .map_err(|_| DeviceError::Shape { what: "register", problem: "more than 2^32 extents".to_owned() })?;
        extents.push(extent);
        Ok(ExtentId(id))
    }

    fn record(&self, stream: Stream) -> Result<Event, DeviceError> {
        match stream {
            Stream::Compute => Ok(Event { stream, sequence: self.start_compute()?.sequence }),
            _ => self.copies.record(stream),
        }
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<(), DeviceError> {
        if self.is_done(event)? || event.stream == stream {
            return Ok(());
        }
        match stream {
            Stream::Compute => {
                self.compute.lock().unwrap_or_else(PoisonError::into_inner).waits.push(event);
                Ok(())
            }
            _ => self.copies.enqueue(stream, Operation::Wait(event)),
        }
    }

    fn is_done(&self, event: Event) -> Result<bool, DeviceError> {
        if event.stream != Stream::Compute {
            return self.copies.is_done(event);
        }
        // Taking the lock waits for an operation in progress on another thread; what was recorded is done.
        let reached = self.compute.lock().unwrap_or_else(PoisonError::into_inner).sequence;
        if event.sequence > reached {
            let problem = format!("{event:?} was never recorded: the stream is at {reached}");
            return Err(DeviceError::Shape { what: "event", problem });
        }
        Ok(true)
    }

    fn synchronize(&self, event: Event) -> Result<(), DeviceError> {
        match event.stream {
            Stream::Compute => self.is_done(event).map(drop),
            _ => self.copies.wait(event),
        }
    }

    fn copy_in(&self, stream: Stream, pieces: &[CopyPiece]) -> Result<(), DeviceError> {
        self.transfer(stream, Direction::In, pieces)
    }

    fn copy_out(&self, stream: Stream, pieces: &[CopyPiece]) -> Result<(), DeviceError> {
        self.transfer(stream, Direction::Out, pieces)
    }

    fn copy_within(&self, stream: Stream, source: DeviceRange, target: DeviceRange) -> Result<(), DeviceError> {
        if source.bytes != target.bytes {
            let problem = format!("{} source bytes against {} target bytes", source.bytes, target.bytes);
            return Err(DeviceError::Shape { what: "copy", problem });
        }
        let (moves, pinned) = self.memory.pin(|access| {
            let bytes = source.bytes as usize;
            Ok(vec![Move { source: access.address(source)?, target: access.address(target)?, bytes }])
        })?;
        self.submit(stream, Operation::Copy { moves, direction: None, ready: Instant::now(), pinned })
    }

    fn upload(&self, stream: Stream, source: &[u8], target: DeviceRange) -> Result<(), DeviceError> {
        if source.len() as u64 > target.bytes {
            let problem = format!("{} bytes into a range of {}", source.len(), target.bytes);
            return Err(DeviceError::Shape { what: "upload", problem });
        }
        let (target, pinned) = self.memory.pin(|access| access.address(target))?;
        if stream == Stream::Compute {
            let _running = self.start_compute()?;
            // SAFETY: the range was checked to hold the source's bytes and is pinned by `pinned`; a slice of the
            // caller's cannot lie in device memory unless `inspect` lends it, hence `copy`.
            unsafe { std::ptr::copy(source.as_ptr(), target, source.len()) };
            drop(pinned);
            return Ok(());
        }
        self.copies.enqueue(stream, Operation::Write { staged: source.to_vec(), target, pinned })
    }

    fn download(&self, stream: Stream, source: DeviceRange, target: &mut [u8]) -> Result<(), DeviceError> {
        if target.len() as u64 > source.bytes {
            let problem = format!("{} bytes from a range of {}", target.len(), source.bytes);
            return Err(DeviceError::Shape { what: "download", problem });
        }
        let (source, pinned) = self.memory.pin(|access| access.address(source))?;
        self.drain(stream)?;
        // SAFETY: the range was checked to hold the target's length and is pinned by `pinned`.
        unsafe { std::ptr::copy(source, target.as_mut_ptr(), target.len()) };
        drop(pinned);
        Ok(())
    }

    fn inspect(&self, stream: Stream, source: DeviceRange, look: &mut dyn FnMut(&[u8])) -> Result<(), DeviceError> {
        let (address, pinned) = self.memory.pin(|access| access.address(source))?;
        self.drain(stream)?;
        // SAFETY: the range is live and pinned by `pinned` for as long as the slice is; device memory is always
        // initialised (zeroed by the kernel). Work that writes it meanwhile would break the caller's own ordering.
        look(unsafe { std::slice::from_raw_parts(address, source.bytes as usize) });
        drop(pinned);
        Ok(())
    }
}
