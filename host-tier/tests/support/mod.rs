//! A client of an extent: what another process does with a duplicate of its descriptor.

use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use cache_core::store::SlotPlace;
use cache_core::units::Generation;
use host_tier::Extent;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A read-only mapping of one extent.
pub struct Client {
    address: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to the process and is only read, atomically.
unsafe impl Send for Client {}
// SAFETY: as above.
unsafe impl Sync for Client {}

impl Client {
    /// Maps a duplicate of the extent's descriptor and closes it again.
    pub fn map(extent: &Extent) -> Client {
        let file = extent.duplicate().unwrap();
        let bytes = extent.bytes() as usize;
        // SAFETY: no address is asked for, so no existing mapping is replaced; the file is sealed against shrinking.
        let address = unsafe { mmap(std::ptr::null_mut(), bytes, ProtFlags::READ, MapFlags::SHARED, file.as_fd(), 0) };
        Client { address: NonNull::new(address.unwrap().cast()).unwrap(), bytes }
    }

    fn word(&self, offset: u64) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.bytes as u64);
        // SAFETY: inside the mapping and aligned; relaxed and acquire loads of 8 bytes work on read-only memory on 64-bit targets.
        unsafe { AtomicU64::from_ptr(self.address.as_ptr().add(offset as usize).cast()) }
    }

    /// Copies part of a slot image, perhaps torn.
    pub fn load(&self, place: SlotPlace, offset: u64, target: &mut [u8]) {
        assert!(offset + target.len() as u64 <= place.bytes);
        for (index, chunk) in target.chunks_exact_mut(8).enumerate() {
            let word = self.word(place.offset + offset + 8 * index as u64);
            chunk.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
    }

    /// The reader's second look at a generation word.
    pub fn still(&self, word_offset: u64, generation: Generation) -> bool {
        fence(Ordering::Acquire);
        self.word(word_offset).load(Ordering::Relaxed) == generation.0
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // SAFETY: the range is exactly this mapping and nothing refers to it any more.
        unsafe { munmap(self.address.as_ptr().cast(), self.bytes).unwrap() };
    }
}
