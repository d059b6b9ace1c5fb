//! The bytes behind a [`Memory`], as slices and as addresses for the kernel.
//!
//! | state of the memory | who may touch its bytes |
//! |---|---|
//! | with its owner (before submit, after `Done`) | the owner, through `as_slice` and `as_mut_slice` |
//! | in an operation that has not started | nobody |
//! | in an operation that the kernel has | the kernel; the medium keeps the `Memory` and makes no slice |
//!
//! A lent part is the borrower's alone: [`Region`](super::Region)'s contract, kept by whoever lends, and held up by `guard`.

use std::ops::Range;

use super::Memory;

impl Memory {
    /// The bytes. A lent part that does not lie in its region is empty.
    pub fn as_slice(&self) -> &[u8] {
        match self {
            Memory::Owned(buffer) => buffer.as_slice(),
            Memory::Lent { region, offset, bytes, .. } if inside(*offset, *bytes, region.bytes()) => {
                // SAFETY: the part lies in the region (just checked), whose memory is valid while `region` lives, and `self` holds it. Who
                // lent the part keeps others from writing it until `guard` goes (`Region`'s contract).
                unsafe { std::slice::from_raw_parts(region.address().add(*offset as usize), *bytes as usize) }
            }
            Memory::Lent { .. } => &[],
        }
    }

    /// The bytes, writable. A lent part that does not lie in its region is empty.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        match self {
            Memory::Owned(buffer) => buffer.as_mut_slice(),
            Memory::Lent { region, offset, bytes, .. } if inside(*offset, *bytes, region.bytes()) => {
                // SAFETY: as in `as_slice`; `&mut self` is the only handle of the borrower, and the lender keeps everyone else away.
                unsafe { std::slice::from_raw_parts_mut(region.address().add(*offset as usize), *bytes as usize) }
            }
            Memory::Lent { .. } => &mut [],
        }
    }

    /// First byte of `range`, for the kernel. `None` when the range does not lie in the memory.
    pub(crate) fn address(&mut self, range: &Range<u64>) -> Option<*mut u8> {
        let slice = self.as_mut_slice();
        let part = slice.get_mut(usize::try_from(range.start).ok()?..usize::try_from(range.end).ok()?)?;
        Some(part.as_mut_ptr())
    }
}

fn inside(offset: u64, bytes: u64, region_bytes: u64) -> bool {
    offset.checked_add(bytes).is_some_and(|end| end <= region_bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cache_core::buffer::Buffer;

    use super::super::Region;
    use super::*;

    struct Pages(*mut u8, Buffer);

    // SAFETY: the pointer is to the buffer's heap memory, which lives as long and is reached only through lent parts.
    unsafe impl Send for Pages {}
    // SAFETY: as above.
    unsafe impl Sync for Pages {}

    // SAFETY: the buffer is page-aligned, lives in the value and is not touched otherwise.
    unsafe impl Region for Pages {
        fn address(&self) -> *mut u8 {
            self.0
        }
        fn bytes(&self) -> u64 {
            self.1.as_slice().len() as u64
        }
    }

    #[test]
    fn a_part_outside_its_region_has_no_bytes() {
        let mut buffer = Buffer::zeroed(8192);
        let region: Arc<dyn Region> = Arc::new(Pages(buffer.as_mut_slice().as_mut_ptr(), buffer));
        let lent = |offset, bytes| Memory::Lent { region: Arc::clone(&region), offset, bytes, guard: Box::new(()) };
        assert_eq!(lent(4096, 4096).as_slice().len(), 4096);
        assert_eq!(lent(4096, 4096).as_mut_slice().len(), 4096);
        assert!(lent(4096, 8192).as_slice().is_empty());
        assert!(lent(u64::MAX, 2).as_mut_slice().is_empty());
        assert!(lent(0, 4096).address(&(0..4096)).is_some());
        assert!(lent(0, 4096).address(&(0..4097)).is_none());
    }
}
