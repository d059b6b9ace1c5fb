//! Bytes moved between memory that somebody else may be writing: the plugin's only unsafe code.
//!
//! | memory | mapped or owned by | who else may write while it is read or written here |
//! |---|---|---|
//! | lent extent | this process, read-only | the daemon, once the lease is lost: found by the generation afterwards |
//! | staging | this process | nobody honest: the daemon only reads, and the engine writes what it reserved |
//! | [`Region`] | the engine, who promised that it is there | the engine, against its promise: then the copy is torn, and on the way out its sum is that of the torn bytes |
//!
//! So none of it is ever a slice. Bytes go through [`copy`], which on x86-64 is one instruction that the compiler does not look
//! into: it may read memory that
//! changes under it, as an atomic load would, and nothing is assumed of what it moves. Elsewhere it is done byte by byte through
//! relaxed atomics.
//!
//! A [`Bytes`] is a range that was checked against the memory that it is in, and borrows that memory.
#![expect(unsafe_code, reason = "memory of engines, and memory that other processes write")]

use std::marker::PhantomData;
use std::ptr::NonNull;

use host_tier::{LentExtent, Staging};

/// A piece of an engine's memory.
#[derive(Debug)]
pub struct Region {
    address: NonNull<u8>,
    bytes: u64,
}

// SAFETY: by the contract of `Region::new` the memory is there for every thread; accesses are `copy`'s.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Memory of `bytes` bytes at `address`; `None` for address 0.
    ///
    /// # Safety
    /// The memory is readable for `bytes` bytes as long as the region lives, and writable if it is loaded into. While a call uses
    /// it nobody else writes what the
    /// call reads, nor reads or writes what it writes; who does so all the same gets torn bytes.
    pub unsafe fn new(address: *mut u8, bytes: u64) -> Option<Region> {
        Some(Region { address: NonNull::new(address)?, bytes })
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// A checked range of memory that may change while it is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes<'a> {
    address: *mut u8,
    bytes: usize,
    /// False where the mapping is read-only.
    is_writable: bool,
    memory: PhantomData<&'a ()>,
}

impl<'a> Bytes<'a> {
    fn new(address: *mut u8, memory_bytes: u64, offset: u64, bytes: u64, is_writable: bool) -> Bytes<'a> {
        let end = offset.checked_add(bytes).expect("the end fits u64");
        assert!(end <= memory_bytes, "{offset}+{bytes} leaves memory of {memory_bytes} bytes");
        // `wrapping_add` makes no claim; that the range is inside was checked.
        Bytes {
            address: address.wrapping_add(offset as usize),
            bytes: bytes as usize,
            is_writable,
            memory: PhantomData,
        }
    }

    /// Of an engine's memory. Panics when it leaves it.
    pub(super) fn of_region(region: &'a Region, offset: u64, bytes: u64) -> Bytes<'a> {
        Bytes::new(region.address.as_ptr(), region.bytes, offset, bytes, true)
    }

    /// Of memory that the daemon lends. Panics when it leaves it.
    pub(super) fn of_lent(extent: &'a LentExtent, offset: u64, bytes: u64) -> Bytes<'a> {
        Bytes::new(extent.address().cast_mut(), extent.bytes(), offset, bytes, false)
    }

    /// Of staging memory. Panics when it leaves it.
    pub(super) fn of_staging(staging: &'a Staging, offset: u64, bytes: u64) -> Bytes<'a> {
        Bytes::new(staging.address(), staging.bytes(), offset, bytes, true)
    }

    /// A part of it. Panics when it leaves it.
    pub(super) fn part(self, offset: u64, bytes: u64) -> Bytes<'a> {
        Bytes::new(self.address, self.bytes as u64, offset, bytes, self.is_writable)
    }

    /// Its first bytes, and those behind them. Panics when there are not so many.
    pub(super) fn split(self, bytes: u64) -> (Bytes<'a>, Bytes<'a>) {
        (self.part(0, bytes), self.part(bytes, self.bytes as u64 - bytes))
    }

    /// All of it, in pieces of at most `bytes` bytes.
    pub(super) fn pieces(self, bytes: usize) -> impl Iterator<Item = Bytes<'a>> {
        let length = self.bytes as u64;
        (0..length).step_by(bytes).map(move |at| self.part(at, (bytes as u64).min(length - at)))
    }

    pub(super) fn address(self) -> *mut u8 {
        self.address
    }

    pub(super) fn bytes(self) -> u64 {
        self.bytes as u64
    }

    /// Copies as many bytes in. Panics when lengths differ, and where nothing may be written.
    pub(super) fn copy_from(self, source: Bytes<'_>) {
        assert!(self.bytes == source.bytes && self.is_writable, "{} bytes into {}", source.bytes, self.bytes);
        // SAFETY: both ranges were checked against memory that their lifetimes keep, the target's may be written, and lengths are equal.
        unsafe { copy(self.address, source.address, self.bytes) };
    }

    /// Copies as many bytes in. Panics when lengths differ, and where nothing may be written.
    pub(super) fn write(self, source: &[u8]) {
        assert!(self.bytes == source.len() && self.is_writable, "{} bytes into {}", source.len(), self.bytes);
        // SAFETY: as in `copy_from`; the source is a slice.
        unsafe { copy(self.address, source.as_ptr(), self.bytes) };
    }

    /// Copies it out. Panics when lengths differ.
    pub(super) fn read(self, target: &mut [u8]) {
        assert_eq!(self.bytes, target.len());
        // SAFETY: as in `copy_from`; the target is a slice that is borrowed mutably.
        unsafe { copy(target.as_mut_ptr(), self.address, self.bytes) };
    }
}

/// Copies bytes of memory that may change meanwhile, upwards.
///
/// # Safety
/// The source is readable and the target writable for `bytes` bytes. Where they overlap the target is left with bytes that mean nothing.
#[cfg(target_arch = "x86_64")]
unsafe fn copy(target: *mut u8, source: *const u8, bytes: usize) {
    // SAFETY: the caller's promise. The direction flag is clear by the calling convention; the stack is not used and no flag changes.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") bytes => _,
            inout("rdi") target => _,
            inout("rsi") source => _,
            options(nostack, preserves_flags),
        );
    }
}

/// As above.
///
/// # Safety
/// As above.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn copy(target: *mut u8, source: *const u8, bytes: usize) {
    use std::sync::atomic::{AtomicU8, Ordering};
    for index in 0..bytes {
        // SAFETY: the caller's promise; bytes are aligned, and racing accesses of other processes are outside of the language.
        let (target, source) =
            unsafe { (AtomicU8::from_ptr(target.add(index)), AtomicU8::from_ptr(source.add(index).cast_mut())) };
        target.store(source.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(bytes: &mut [u8]) -> Region {
        // SAFETY: the tests use the region while the buffer lives, and touch the buffer only before and after.
        unsafe { Region::new(bytes.as_mut_ptr(), bytes.len() as u64) }.unwrap()
    }

    #[test]
    fn bytes_of_any_length_and_place_are_moved() {
        for (offset, bytes) in [(0, 0), (0, 1), (3, 7), (1, 4097), (0, 70_000)] {
            let mut source: Vec<u8> = (0..80_000u32).map(|at| (at * 31 % 251) as u8).collect();
            let expected = source[offset..offset + bytes].to_vec();
            let mut target = vec![0xee; bytes + 2];
            let (from, to) = (region(&mut source), region(&mut target));
            let range = Bytes::of_region(&from, offset as u64, bytes as u64);
            Bytes::of_region(&to, 1, bytes as u64).copy_from(range);
            let mut read = vec![0; bytes];
            range.part(0, bytes as u64).read(&mut read);
            let pieces = range.pieces(1000).flat_map(|piece| {
                let mut read = vec![0; piece.bytes() as usize];
                piece.read(&mut read);
                read
            });
            assert!(pieces.eq(expected.iter().copied()));
            assert!(target[1..=bytes] == expected && read == expected);
            assert_eq!((target[0], target[bytes + 1]), (0xee, 0xee), "nothing beside it");
        }
    }

    #[test]
    #[should_panic(expected = "leaves memory of 8 bytes")]
    fn a_range_outside_is_refused() {
        let mut memory = vec![0; 8];
        let region = region(&mut memory);
        Bytes::of_region(&region, 4, 5);
    }
}
