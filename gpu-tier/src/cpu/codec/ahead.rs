//! Lines of memory that are asked for before they are needed.
//!
//! A grid is a few KiB, and the processor's own read-ahead begins anew in each page: where blocks are encoded or decoded one after the other, a kernel
//! that computes on one grid has the next one brought in meanwhile.

use std::arch::x86_64::*;

/// What lies behind a slice, a line at a time. Nothing is read of it, and nothing happens where there is nothing.
pub(super) struct Ahead(*const i8);

impl Ahead {
    /// Behind this slice.
    pub(super) fn behind<T>(slice: &[T]) -> Ahead {
        Ahead(slice.as_ptr_range().end.cast())
    }

    /// Asks for the next `N` lines.
    #[inline(always)]
    pub(super) fn lines<const N: usize>(&mut self) {
        for _ in 0..N {
            // SAFETY: a hint; every x86-64 has it, and any address will do.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.0) };
            self.0 = self.0.wrapping_byte_add(64);
        }
    }
}
