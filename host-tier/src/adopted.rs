//! An extent that outlived its arena: mapped read-only, its copies found by their headers.
//!
//! Its seal lets nobody write it any more. All the same nothing read from it is trusted: how many slots it has, and of which shape, comes from whoever
//! kept it; a header counts if its sum and its shape are right; an image is copied out and verified where it arrives.

use std::os::fd::OwnedFd;

use cache_core::header::SlotHeader;
use cache_core::payload::BlockShape;
use cache_core::units::{Generation, SlotIndex};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};

use crate::error::HostError;
use crate::lent::LentExtent;

/// A copy in an adopted extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdoptedCopy {
    /// Its slot, by its number in the extent.
    pub slot: u32,
    /// Under which it was found.
    pub generation: Generation,
    /// Whose copy it says it is.
    pub header: SlotHeader,
}

/// An extent of an arena that is gone.
#[derive(Debug)]
pub struct Adopted {
    lent: LentExtent,
    file: OwnedFd,
    shape: BlockShape,
    slots: u32,
}

impl Adopted {
    /// Maps one of `slots` slots of this shape. Errors: [`HostError::Untrusted`] when it is not sealed as an extent is, or has another length;
    /// [`HostError::Memory`] when the kernel refuses.
    pub fn open(file: OwnedFd, shape: BlockShape, slots: u32) -> Result<Adopted, HostError> {
        let lent = LentExtent::map(&file, slots, SlotIndex(0), shape.slot_bytes())?;
        let bytes = lent.bytes();
        let refused = |what| move |errno: rustix::io::Errno| HostError::Memory { what, bytes, source: errno.into() };
        let seals = fcntl_get_seals(&file).map_err(refused("look at the seals of an extent"))?;
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL) {
            return Err(HostError::Untrusted { what: "it is not sealed as an extent is" });
        }
        let found = fstat(&file).map_err(refused("look at an extent"))?.st_size;
        if u64::try_from(found) != Ok(bytes) {
            return Err(HostError::Untrusted { what: "it has another length than its slots" });
        }
        Ok(Adopted { lent, file, shape, slots })
    }

    /// The shape of its blocks.
    pub fn shape(&self) -> &BlockShape {
        &self.shape
    }

    /// Bytes of memory that it takes: pages that were never touched take none. Errors: the kernel's; its whole length is then the answer.
    pub fn held_bytes(&self) -> u64 {
        fstat(&self.file)
            .ok()
            .and_then(|found| u64::try_from(found.st_blocks).ok())
            .map_or(self.lent.bytes(), |n| n * 512)
    }

    /// Its copies, by their headers: sound ones of its shape. Their bytes were not looked at.
    pub fn copies(&self) -> impl Iterator<Item = AdoptedCopy> {
        let mut header = vec![0; self.shape.header_bytes() as usize];
        (0..self.slots).filter_map(move |slot| {
            let generation = self.lent.generation(slot);
            if generation.is_unstable() {
                return None;
            }
            self.lent.read(slot, 0, &mut header);
            let header = SlotHeader::decode(&header, self.shape.section_count()).ok()?;
            let is_right = header.expect_shape(&self.shape).is_ok() && header.key.form == self.shape.form_map();
            (is_right && self.lent.is_still(slot, generation)).then_some(AdoptedCopy { slot, generation, header })
        })
    }

    /// Copies bytes of a slot image out, unverified. `offset` and length are multiples of 8. Panics when they leave the slot.
    pub fn read(&self, slot: u32, offset: u64, target: &mut [u8]) {
        self.lent.read(slot, offset, target);
    }

    /// True when everything that was read from the slot belongs to the copy that was found there. Panics when there is no such slot.
    pub fn is_current(&self, slot: u32, generation: Generation) -> bool {
        self.lent.is_still(slot, generation)
    }
}
