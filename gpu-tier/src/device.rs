//! The asynchronous device: memory under a hard budget, streams, events and copies.
//!
//! The trait is shaped by CUDA: work is enqueued on a stream and ordered by events, addresses are opaque ranges, the host
//! never dereferences device memory. The `cpu` device may finish an operation before the call returns; callers must not count on it.

use std::sync::Arc;

use crate::error::DeviceError;

/// What a device is and how the engine may use it.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceInfo {
    /// Kind as it stands in a manifest's `numerics`: `cpu` or `cuda`.
    pub kind: &'static str,
    /// Human-readable name, such as the processor's and its instruction set.
    pub name: String,
    /// True when attention may read blocks where they lie in the host arena.
    pub in_place: bool,
    /// Modelled or measured host link in bytes per second; `None` when nothing limits it.
    pub link_bytes_per_second: Option<f64>,
}

/// Device memory counted against the budget, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Hard limit.
    pub budget_bytes: u64,
    /// Allocated now.
    pub used_bytes: u64,
    /// High-water mark since the device was opened.
    pub peak_bytes: u64,
}

/// Bytes moved and read since the device was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Host arena to device.
    pub copied_in_bytes: u64,
    /// Device to host arena.
    pub copied_out_bytes: u64,
    /// KV bytes that attention read from device memory.
    pub attended_device_bytes: u64,
    /// KV bytes that attention read in place from the host arena (0 in strict mode).
    pub attended_host_bytes: u64,
}

/// Names one allocation of one device; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub u64);

/// A checked address: part of one allocation. Holding it keeps nothing alive; a range of a freed buffer is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceRange {
    /// The allocation.
    pub buffer: BufferId,
    /// First byte inside it.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl DeviceRange {
    /// The part of this range that starts `offset` bytes in and is `bytes` long. Panics when it would leave the range (our bug).
    pub fn slice(self, offset: u64, bytes: u64) -> DeviceRange {
        let end = offset.checked_add(bytes).expect("slice end fits u64");
        assert!(end <= self.bytes, "slice {offset}+{bytes} leaves a range of {} bytes", self.bytes);
        DeviceRange { buffer: self.buffer, offset: self.offset + offset, bytes }
    }
}

/// An owned allocation; dropping it gives the bytes back to the budget once the work enqueued on it has finished.
pub struct DeviceBuffer {
    id: BufferId,
    bytes: u64,
    owner: Arc<dyn FreeBuffer>,
}

/// The device side of a [`DeviceBuffer`]: called once, when it is dropped.
pub trait FreeBuffer: Send + Sync {
    /// Frees the allocation after all work enqueued so far.
    fn free(&self, id: BufferId);
}

impl DeviceBuffer {
    /// For device implementations: wraps an allocation that `owner` will free.
    pub fn new(id: BufferId, bytes: u64, owner: Arc<dyn FreeBuffer>) -> DeviceBuffer {
        DeviceBuffer { id, bytes, owner }
    }

    /// The whole allocation as a range.
    pub fn range(&self) -> DeviceRange {
        DeviceRange { buffer: self.id, offset: 0, bytes: self.bytes }
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        self.owner.free(self.id);
    }
}

/// An in-order queue of work. Fixed roles instead of handles: each has one thread or one CUDA stream of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Kernels.
    Compute,
    /// Host arena to device.
    CopyIn,
    /// Device to host arena.
    CopyOut,
}

/// A point in a stream: done when all work enqueued before it is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    /// The stream it stands in.
    pub stream: Stream,
    /// Its number in that stream, counted from 1.
    pub sequence: u64,
}

/// Names a host extent registered with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExtentId(pub u32);

/// A part of a registered host extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HostRange {
    /// The extent.
    pub extent: ExtentId,
    /// First byte inside it.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// Host memory that a device may be told to copy from, copy to, or attend in place.
///
/// # Safety
/// Both addresses are page-aligned and stay mapped for `bytes()` bytes as long as the object lives. Other threads and processes may
/// write the bytes at any time: a device reads them through raw pointers only and never trusts one as a length or an index.
#[expect(unsafe_code, reason = "the contract is about raw addresses; implementors vouch for a mapping's lifetime")]
pub unsafe trait HostExtent: Send + Sync {
    /// The copy engine's mapping, readable, and writable unless [`HostExtent::is_read_only`].
    fn service_address(&self) -> *mut u8;
    /// The reader's mapping that attention uses in place. It may be protected (PROT_NONE) when the device is strict.
    fn reader_address(&self) -> *const u8;
    /// Length in bytes.
    fn bytes(&self) -> u64;
    /// Whether the copy engine's mapping can only be read, as of memory that another process lends. Such an extent is never a target.
    fn is_read_only(&self) -> bool {
        false
    }
}

/// One piece of a copy between the host arena and the device; both sides have the same length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyPiece {
    /// Host side.
    pub host: HostRange,
    /// Device side.
    pub device: DeviceRange,
}

/// Memory, streams, events and copies. Kernels are in [`crate::attention::Attention`].
///
/// Errors: every operation checks its ranges against live allocations ([`DeviceError::Range`]) when it is enqueued.
/// Data handed over as a slice is staged before the call returns.
/// A failure of work already enqueued is told once, by whichever later call sees it first; everything after that is
/// [`DeviceError::Lost`].
pub trait Device: Send + Sync {
    /// What this device is.
    fn info(&self) -> &DeviceInfo;
    /// Budget, use and high-water mark.
    fn memory(&self) -> MemoryUse;
    /// Bytes moved and read so far.
    fn traffic(&self) -> Traffic;
    /// Allocates `bytes` zeroed bytes, aligned to 4 KiB. Errors: [`DeviceError::Full`] when the budget would be exceeded.
    fn allocate(&self, bytes: u64) -> Result<DeviceBuffer, DeviceError>;
    /// Makes a host extent known (and, on a device with its own bus, pins it).
    fn register(&self, extent: Arc<dyn HostExtent>) -> Result<ExtentId, DeviceError>;
    /// Marks a point in a stream.
    fn record(&self, stream: Stream) -> Result<Event, DeviceError>;
    /// Makes work enqueued later on `stream` start after `event`.
    fn wait(&self, stream: Stream, event: Event) -> Result<(), DeviceError>;
    /// True when all work before `event` has finished. Errors: what that work failed with, once; [`DeviceError::Lost`] afterwards.
    fn is_done(&self, event: Event) -> Result<bool, DeviceError>;
    /// Blocks the calling thread until `event` is done.
    fn synchronize(&self, event: Event) -> Result<(), DeviceError>;
    /// Gathers slices of the host arena into device ranges, in order.
    fn copy_in(&self, stream: Stream, pieces: &[CopyPiece]) -> Result<(), DeviceError>;
    /// Scatters device ranges into the host arena, in order. Errors: [`DeviceError::ReadOnly`] for an extent that is only read.
    fn copy_out(&self, stream: Stream, pieces: &[CopyPiece]) -> Result<(), DeviceError>;
    /// Copies device memory to device memory, both ranges of one length and apart (overlapping ones may be refused).
    fn copy_within(&self, stream: Stream, source: DeviceRange, target: DeviceRange) -> Result<(), DeviceError>;
    /// Writes host bytes to the start of a device range.
    fn upload(&self, stream: Stream, source: &[u8], target: DeviceRange) -> Result<(), DeviceError>;
    /// Waits for the stream and reads device bytes; `target` is at most as long as the range.
    fn download(&self, stream: Stream, source: DeviceRange, target: &mut [u8]) -> Result<(), DeviceError>;
    /// Waits for the stream and shows device bytes to `look`: in place where device memory is host memory, else through a staging copy.
    fn inspect(&self, stream: Stream, source: DeviceRange, look: &mut dyn FnMut(&[u8])) -> Result<(), DeviceError>;
}
