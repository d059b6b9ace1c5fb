//! The arena of another process, as its readers see it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use cache_core::buffer::round_to_pages;
use cache_core::units::{Generation, SlotIndex};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};

use crate::error::HostError;
use crate::generation;
use crate::mapping::{Access, Mapping};

/// An [`crate::Extent`] of another process, mapped read-only. It stays readable when that process dies.
#[derive(Debug)]
pub struct LentExtent {
    mapping: Mapping,
    bytes: u64,
    first_slot: SlotIndex,
    slots: u32,
    slot_bytes: u64,
}

impl LentExtent {
    /// Maps an extent of `slots` slots of `slot_bytes` bytes, which its arena counts from `first_slot` on. Errors: [`HostError::Untrusted`] when the memory could shrink under its reader or is
    /// too short for its slots, [`HostError::Memory`] when the kernel refuses.
    pub fn map(file: &OwnedFd, slots: u32, first_slot: SlotIndex, slot_bytes: u64) -> Result<LentExtent, HostError> {
        let bytes =
            extent_bytes(slots, slot_bytes).ok_or(HostError::Untrusted { what: "so many slots fit no memory" })?;
        check(file, bytes)?;
        let mapping = Mapping::new(file.as_fd(), bytes, Access::Lent).map_err(|source| HostError::Memory {
            what: "map an extent of another process",
            bytes,
            source,
        })?;
        Ok(LentExtent { mapping, bytes, first_slot, slots, slot_bytes })
    }

    /// Its first byte: page-aligned, readable for [`LentExtent::bytes`] as long as this lives.
    pub fn address(&self) -> *const u8 {
        self.mapping.address()
    }

    /// Length in bytes, whole pages.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number in this extent of a slot of the arena; `None` when it is in another one.
    pub fn local(&self, slot: SlotIndex) -> Option<u32> {
        slot.0.checked_sub(self.first_slot.0).filter(|local| *local < self.slots)
    }

    /// First byte of a slot's image; `None` when there is no such slot.
    pub fn slot_offset(&self, slot: u32) -> Option<u64> {
        (slot < self.slots).then(|| round_to_pages(8 * u64::from(self.slots)) + u64::from(slot) * self.slot_bytes)
    }

    /// The generation of a slot before reading it; odd when there is nothing to read. Panics when there is no such slot.
    pub fn generation(&self, slot: u32) -> Generation {
        generation::observe(self.mapping.atomic(self.word(slot)))
    }

    /// True when everything that was read from the slot since `generation` was observed belongs to it. Panics when there is no such slot.
    pub fn is_still(&self, slot: u32, generation: Generation) -> bool {
        generation::still(self.mapping.atomic(self.word(slot)), generation)
    }

    /// Copies bytes out of a slot's image, 8 at a time: `offset` and length are multiples of 8. They mean something only if
    /// [`LentExtent::is_still`] says so afterwards. Panics when they leave the slot.
    pub fn read(&self, slot: u32, offset: u64, target: &mut [u8]) {
        let start = self.slot_offset(slot).expect("the caller knows the slots");
        assert!(offset + target.len() as u64 <= self.slot_bytes, "{offset}+{} leaves the slot", target.len());
        self.mapping.load(start + offset, target);
    }

    fn word(&self, slot: u32) -> u64 {
        assert!(slot < self.slots, "slot {slot} of an extent of {}", self.slots);
        8 * u64::from(slot)
    }
}

/// Length of an extent: `None` past 2^63 bytes.
fn extent_bytes(slots: u32, slot_bytes: u64) -> Option<u64> {
    let images = u64::from(slots).checked_mul(slot_bytes)?;
    round_to_pages(8 * u64::from(slots)).checked_add(images).filter(|bytes| *bytes < 1 << 63 && *bytes > 0)
}

/// Memory of another process is mapped only if it cannot become shorter than what is mapped.
pub(crate) fn check(file: &OwnedFd, bytes: u64) -> Result<(), HostError> {
    let memory =
        |what| move |source: rustix::io::Errno| HostError::Memory { what, bytes, source: io::Error::from(source) };
    let seals = fcntl_get_seals(file).map_err(memory("look at the seals of another process's memory"))?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err(HostError::Untrusted { what: "it could shrink" });
    }
    let found = fstat(file).map_err(memory("look at another process's memory"))?.st_size;
    if u64::try_from(found).is_ok_and(|found| found >= bytes) {
        Ok(())
    } else {
        Err(HostError::Untrusted { what: "it is shorter than its slots" })
    }
}
