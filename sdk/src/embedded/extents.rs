//! Host extents as a device sees them: the crate's only unsafe code.
//!
//! The host tier vouches for the addresses: an [`Extent`] owns both of its mappings, page-aligned and `bytes()` long, from its making to
//! its drop, and the memfd under them is sealed against shrinking. [`ArenaExtent`] holds the extent in an `Arc`, and the device holds the
//! `ArenaExtent` in one, so neither mapping ends while the device can still use it. Bytes of a slot are written through the service
//! mapping only by the holder of its reservation (see `host_tier`), which here is the driver that enqueues the copy.
#![expect(unsafe_code, reason = "raw addresses of mapped memory are handed to a device")]

use std::sync::Arc;

use disk_tier::io::Region;
use gpu_tier::device::HostExtent;
use host_tier::{Extent, LentExtent, Staging};

/// Fault hook: fills a slot with ones, which read as NaN. The slot must have been revoked and must still rest, so that nobody holds its
/// reservation; readers race with this by design and find its generation moved.
#[cfg(feature = "testing")]
pub(crate) fn overwrite(extent: &Extent, place: cache_core::store::SlotPlace) {
    assert!(place.offset + place.bytes <= extent.bytes(), "a slot lies inside its extent");
    // SAFETY: inside the service mapping (checked above), which `extent` owns; no reference to these bytes exists, since readers of
    // a slot copy through raw pointers and verification holds the slot's reservation or a lease that is current.
    unsafe { std::ptr::write_bytes(extent.service_address().add(place.offset as usize), 0xff, place.bytes as usize) };
}

/// A host extent, kept alive for the device or the disk.
pub struct ArenaExtent {
    extent: Arc<Extent>,
}

impl ArenaExtent {
    /// Over this extent.
    pub fn new(extent: Arc<Extent>) -> ArenaExtent {
        ArenaExtent { extent }
    }
}

// SAFETY: both addresses are page-aligned starts of mappings of `bytes()` bytes that `self.extent` owns until it is dropped.
unsafe impl HostExtent for ArenaExtent {
    fn service_address(&self) -> *mut u8 {
        self.extent.service_address()
    }

    fn reader_address(&self) -> *const u8 {
        self.extent.reader_address()
    }

    fn bytes(&self) -> u64 {
        self.extent.bytes()
    }
}

// SAFETY: as above; the service mapping is readable and writable. Slots that the disk reads into or writes from are reserved, leased or set
// aside for it until its operation has ended: the guard of the operation's memory holds them.
unsafe impl Region for ArenaExtent {
    fn address(&self) -> *mut u8 {
        self.extent.service_address()
    }

    fn bytes(&self) -> u64 {
        self.extent.bytes()
    }
}

/// An extent of a daemon's arena, kept alive for the device. The device only reads it: whatever holds a place in it holds a lease, and no
/// copy out has one as its target.
pub(crate) struct LentMemory {
    extent: Arc<LentExtent>,
}

impl LentMemory {
    pub(crate) fn new(extent: Arc<LentExtent>) -> LentMemory {
        LentMemory { extent }
    }
}

// SAFETY: the address is the page-aligned start of a mapping of `bytes()` bytes that `self.extent` owns until it is dropped, of a memfd that cannot
// shrink. It is mapped read-only, and says so: a device refuses to write there.
unsafe impl HostExtent for LentMemory {
    fn service_address(&self) -> *mut u8 {
        self.extent.address().cast_mut()
    }

    fn reader_address(&self) -> *const u8 {
        self.extent.address()
    }

    fn bytes(&self) -> u64 {
        self.extent.bytes()
    }

    fn is_read_only(&self) -> bool {
        true
    }
}

/// Staging memory shared with a daemon, kept alive for the device.
pub(crate) struct StagingMemory {
    staging: Arc<Staging>,
}

impl StagingMemory {
    pub(crate) fn new(staging: Arc<Staging>) -> StagingMemory {
        StagingMemory { staging }
    }
}

// SAFETY: the address is the page-aligned start of a readable and writable mapping of `bytes()` bytes that `self.staging` owns until it is dropped, of a
// memfd that cannot shrink.
unsafe impl HostExtent for StagingMemory {
    fn service_address(&self) -> *mut u8 {
        self.staging.address()
    }

    fn reader_address(&self) -> *const u8 {
        self.staging.address()
    }

    fn bytes(&self) -> u64 {
        self.staging.bytes()
    }
}
