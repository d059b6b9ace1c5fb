//! One piece of the arena: a sealed memfd and its two mappings.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use cache_core::units::Generation;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use crate::error::HostError;
use crate::mapping::{Access, Mapping};
use crate::sync::AtomicU64;

/// A memfd of fixed size. It starts with pages of generation words, one little-endian u64 a slot; slot images follow.
#[derive(Debug)]
pub struct Extent {
    file: OwnedFd,
    service: Mapping,
    reader: Mapping,
    bytes: u64,
    slots: u32,
}

impl Extent {
    /// Makes an extent of `bytes` bytes for `slots` slots, all generations 1 (nothing there). Pages are committed when touched.
    pub(crate) fn new(bytes: u64, slots: u32) -> Result<Extent, HostError> {
        let failed = |what| move |source: io::Error| HostError::Memory { what, bytes, source };
        let file = memfd(c"kvtier-extent").map_err(failed("create a memfd"))?;
        ftruncate(&file, bytes).map_err(io::Error::from).map_err(failed("size a memfd"))?;
        let service = Mapping::new(file.as_fd(), bytes, Access::ReadWrite).map_err(failed("map a memfd"))?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).map_err(io::Error::from).map_err(failed("seal a memfd"))?;
        let reader = Mapping::new(file.as_fd(), bytes, Access::ReadOnly).map_err(failed("map a sealed memfd"))?;
        let extent = Extent { file, service, reader, bytes, slots };
        for slot in 0..slots {
            crate::generation::withdraw(extent.word(slot), Generation(1));
        }
        Ok(extent)
    }

    /// Length in bytes, whole pages.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Slots in it.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// The copy engine's mapping, readable and writable, page-aligned; valid while the extent lives. Only the holder of a reservation,
    /// or a device working for it, writes through it, and only to its slot.
    pub fn service_address(&self) -> *mut u8 {
        self.service.address()
    }

    /// The mapping that attention uses in place: read-only, page-aligned, valid while the extent lives.
    pub fn reader_address(&self) -> *const u8 {
        self.reader.address()
    }

    /// Takes every access to the reader mapping away (PROT_NONE): proves that nothing reads the arena in place.
    pub fn protect_reader(&self) -> io::Result<()> {
        self.reader.protect()
    }

    /// A descriptor for another process: close-on-exec here, sealed, so it can be mapped read-only and nothing else.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.file.try_clone()
    }

    /// A slot's generation as a reader finds it, by the slot's number in this extent; odd when there is nothing to read.
    pub fn generation(&self, slot: u32) -> Generation {
        crate::generation::observe(self.word(slot))
    }

    /// A slot's generation word, by its number in this extent.
    pub(crate) fn word(&self, slot: u32) -> &AtomicU64 {
        assert!(slot < self.slots, "slot {slot} of an extent of {}", self.slots);
        self.service.atomic(8 * u64::from(slot))
    }

    /// The mapping through which the tier moves bytes.
    pub(crate) fn service(&self) -> &Mapping {
        &self.service
    }
}

/// A memfd that can be sealed; not executable where the kernel knows the flag (6.3 and later).
pub(crate) fn memfd(name: &CStr) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(rustix::io::Errno::INVAL) => Ok(memfd_create(name, flags)?),
        made => Ok(made?),
    }
}
