//! Staging: memory through which one client hands slot images over.
//!
//! Both sides map it for reading and writing. The service never trusts what is there: it copies an image out, and verifies its own copy. The memfd is
//! sealed against shrinking, so a client can spoil its own images and nothing else.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{SealFlags, fcntl_add_seals, ftruncate};

use crate::error::HostError;
use crate::extent::memfd;
use crate::lent;
use crate::mapping::{Access, Mapping};

/// A mapped piece of memory shared with one other process.
#[derive(Debug)]
pub struct Staging {
    file: OwnedFd,
    mapping: Mapping,
    bytes: u64,
}

impl Staging {
    /// Makes one of `bytes` bytes, whole pages; they are committed when they are touched.
    pub fn new(bytes: u64) -> Result<Staging, HostError> {
        let failed = |what| move |source: io::Error| HostError::Memory { what, bytes, source };
        let file = memfd(c"kvtier-staging").map_err(failed("create a memfd"))?;
        ftruncate(&file, bytes).map_err(io::Error::from).map_err(failed("size a memfd"))?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).map_err(io::Error::from).map_err(failed("seal a memfd"))?;
        Staging::over(file, bytes)
    }

    /// Maps one that another process has made. Errors: [`HostError::Untrusted`] when it could shrink or is shorter than `bytes`.
    pub fn map(file: OwnedFd, bytes: u64) -> Result<Staging, HostError> {
        lent::check(&file, bytes)?;
        Staging::over(file, bytes)
    }

    fn over(file: OwnedFd, bytes: u64) -> Result<Staging, HostError> {
        let mapping = Mapping::new(file.as_fd(), bytes, Access::ReadWrite).map_err(|source| HostError::Memory {
            what: "map a memfd",
            bytes,
            source,
        })?;
        Ok(Staging { file, mapping, bytes })
    }

    /// A descriptor for the other process.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.file.try_clone()
    }

    /// Length in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its first byte: page-aligned, readable and writable for [`Staging::bytes`] as long as this lives. The other process may write there at
    /// any time.
    pub fn address(&self) -> *mut u8 {
        self.mapping.address()
    }

    /// Commits a range of whole pages, and maps them here, so that whoever writes them does not wait for it. Changes no byte. Panics when it leaves the memory.
    /// Errors: the kernel's; those pages are then committed by whoever writes them first.
    pub fn touch(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.mapping.populate(offset, bytes)
    }

    /// Copies bytes in, 8 at a time: `offset` and length are multiples of 8. Panics when they leave the memory.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        self.mapping.store(offset, bytes);
    }

    /// Copies bytes out, 8 at a time: `offset` and length are multiples of 8. Panics when they leave the memory.
    pub fn read(&self, offset: u64, target: &mut [u8]) {
        self.mapping.load(offset, target);
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }
}
