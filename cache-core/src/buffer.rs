//! Owned, page-aligned bytes that an operation holds until its completion is seen.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Alignment of slots, planes and direct I/O, in bytes.
pub const PAGE_BYTES: u64 = 4096;

/// `bytes` rounded up to whole pages.
pub fn round_to_pages(bytes: u64) -> u64 {
    bytes.next_multiple_of(PAGE_BYTES)
}

#[derive(Clone, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES as usize]);

/// Page-aligned bytes.
#[derive(Clone)]
pub struct Buffer {
    pages: Vec<Page>,
    bytes: usize,
}

impl Buffer {
    /// `bytes` zeroed bytes.
    pub fn zeroed(bytes: usize) -> Buffer {
        let mut pages = Vec::new();
        pages.resize_with(bytes.div_ceil(PAGE_BYTES as usize), Page::new_zeroed);
        Buffer { pages, bytes }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.pages.as_slice().as_bytes()[..self.bytes]
    }

    /// The bytes, writable.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.pages.as_mut_slice().as_mut_bytes()[..self.bytes]
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.bytes)
    }
}
