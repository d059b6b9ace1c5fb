//! Shared memory, mapped: the crate's only unsafe code.
//!
//! A [`Mapping`] is one `mmap` of a whole memfd. An extent has two: the *service mapping* (read and write, made before the seal) and the
//! *reader mapping* (read only). The memfd is sealed against shrinking and growing before either is handed out, so an access inside
//! `bytes` never leaves the file: no SIGBUS. Other processes map it read-only; the seal against future writes lets them do no more.
//!
//! Who may touch which bytes of the service mapping:
//!
//! | bytes | state | written by | read by |
//! |---|---|---|---|
//! | generation words | always | the tier, under its table lock, atomically | anyone, atomically |
//! | slot image | free, resting | nobody | readers whose lease is lost; they throw away what they read |
//! | slot image | writing | the holder of the reservation (the [`Slot`](cache_core::store::Slot) or a copy engine working for it) | as above |
//! | slot image | writing, in `commit` | nobody: `commit` takes the reservation by value | the tier, through [`Mapping::look`] |
//! | slot image | committed | nobody | anyone |
//!
//! A reader whose lease was lost races with the next tenant's writer by design (it may be another process, which no lock here reaches).
//! So slot bytes are moved through relaxed atomics of 8 bytes ([`Mapping::load`], [`Mapping::store`]): a torn or mixed copy is possible and
//! found by the generation and the sums, undefined behaviour is not. The one `&[u8]` is the one that [`Mapping::look`] lends to verify a
//! slot in `commit`: by the table above nobody writes these bytes then, and racing readers only read.
//!
//! [`Mapping::pass`], through which staged images arrive, does the same with instructions of its own on x86-64: each byte of the source, which
//! another process may be writing, is loaded once into a register, and what was loaded goes to the slot and to private memory. To the compiler an
//! assembly block is opaque: it reads and writes memory that may change under it, as an atomic would, and nothing is assumed of what
//! it loads. The bytes that are verified are the private ones, so a source that changes meanwhile changes neither copy.
//!
//! A copy engine (a device's) gets raw addresses and is bound by the same table through the contract of its own trait.
#![expect(unsafe_code, reason = "mapped memory that other processes read")]

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap, mprotect, munmap};

/// What a mapping may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// The service mapping.
    ReadWrite,
    /// The reader mapping.
    ReadOnly,
    /// A reader mapping of another process's memory: its words are looked at, and its pages are never protected.
    Lent,
}

/// A shared mapping of a whole file; unmapped when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    address: NonNull<u8>,
    bytes: usize,
    access: Access,
}

// SAFETY: the mapping belongs to the process, not to a thread; every access through `&Mapping` is atomic, or follows the table above.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `bytes` bytes of `file`, a positive number of whole pages that the file has.
    pub(crate) fn new(file: BorrowedFd<'_>, bytes: u64, access: Access) -> io::Result<Mapping> {
        let bytes = usize::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let protection = match access {
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
            Access::ReadOnly | Access::Lent => ProtFlags::READ,
        };
        // SAFETY: no address is asked for, so no existing mapping is replaced.
        let address = unsafe { mmap(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED, file, 0)? };
        let address = NonNull::new(address.cast()).expect("the kernel maps nothing at address 0 unasked");
        Ok(Mapping { address, bytes, access })
    }

    /// First byte. Valid for `bytes` bytes as long as the mapping lives.
    pub(crate) fn address(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    /// Takes every access away: from now on a touch of this mapping is a SIGSEGV.
    pub(crate) fn protect(&self) -> io::Result<()> {
        assert_eq!(self.access, Access::ReadOnly, "the service mapping is never protected: safe code reads it");
        // SAFETY: the range is exactly this mapping; safe code never touches a read-only mapping (see `atomic`).
        unsafe { mprotect(self.address.as_ptr().cast(), self.bytes, MprotectFlags::empty())? };
        Ok(())
    }

    /// Has the kernel commit a range of whole pages of a writable mapping, so that whoever writes them does not wait for it. Changes no byte: pages that are
    /// there stay as they are, whoever writes them meanwhile. Errors: the kernel's; `InvalidInput` before Linux 5.14, which does not know how.
    pub(crate) fn populate(&self, offset: u64, bytes: u64) -> io::Result<()> {
        assert_eq!(self.access, Access::ReadWrite, "what is only read is not committed");
        self.check(offset, bytes);
        // SAFETY: inside the mapping (just checked), and this advice changes neither bytes nor protection.
        unsafe {
            let first = self.address.as_ptr().add(offset as usize).cast();
            Ok(madvise(first, bytes as usize, Advice::LinuxPopulateWrite)?)
        }
    }

    /// The 8 bytes at `offset`, shared; of a lent mapping they may only be loaded. Panics when they are misaligned or outside the mapping.
    pub(crate) fn atomic(&self, offset: u64) -> &AtomicU64 {
        assert_ne!(self.access, Access::ReadOnly, "a mapping that may be protected is not touched by address");
        self.check(offset, 8);
        assert_eq!(offset % 8, 0, "a word is aligned");
        // SAFETY: inside the mapping and aligned (just checked; the mapping starts on a page); lives as long as `self`. All accesses that
        // can race with this one are atomic, or a copy engine's, by the table above.
        unsafe { AtomicU64::from_ptr(self.address.as_ptr().add(offset as usize).cast()) }
    }

    /// Copies out, 8 bytes at a time. `offset` and length are multiples of 8. The copy may be torn.
    pub(crate) fn load(&self, offset: u64, target: &mut [u8]) {
        let words = self.loadable(offset, target.len());
        for (chunk, word) in target.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes());
        }
    }

    /// Copies in, 8 bytes at a time. `offset` and length are multiples of 8. The caller holds the reservation.
    pub(crate) fn store(&self, offset: u64, source: &[u8]) {
        let words = self.storable(offset, source.len());
        for (chunk, word) in source.chunks_exact(8).zip(words) {
            word.store(u64::from_ne_bytes(chunk.try_into().expect("chunks of 8 bytes")), Ordering::Relaxed);
        }
    }

    /// Copies bytes from another mapping, which another process may be writing, to this one and to `seen`: both get the same bytes, which may be
    /// torn. Offsets and `seen`'s length are multiples of 64, as is its address. The caller holds the reservation, and calls
    /// [`settle`] before anybody is to find the bytes, and after the slot was taken from its readers, before the first of them is written.
    pub(crate) fn pass(&self, offset: u64, source: &Mapping, from: u64, seen: &mut [u8]) {
        let bytes = seen.len();
        assert!((offset | from | bytes as u64).is_multiple_of(LINE), "lines are passed: {offset}, {from}+{bytes}");
        let (target, source) = (self.storable(offset, bytes), source.loadable(from, bytes));
        pass(target, source, seen);
    }

    /// Shows the bytes of a slot in `commit`. The caller has the reservation by value and its writes happened before.
    pub(crate) fn look<R>(&self, offset: u64, bytes: u64, look: impl FnOnce(&[u8]) -> R) -> R {
        self.check(offset, bytes);
        assert_eq!(self.access, Access::ReadWrite, "only the service mapping is touched by address");
        // SAFETY: inside the mapping; nobody writes the bytes while the caller is in `commit` (the table above; kept by `tier.rs`, whose
        // slot table hands a slot to one reservation at a time), and the slice ends with `look`.
        look(unsafe { std::slice::from_raw_parts(self.address.as_ptr().add(offset as usize), bytes as usize) })
    }

    /// Words to be stored to.
    fn storable(&self, offset: u64, bytes: usize) -> &[AtomicU64] {
        assert_eq!(self.access, Access::ReadWrite, "only the service mapping is written");
        self.loadable(offset, bytes)
    }

    /// Words to be loaded; stored to only as [`Mapping::storable`].
    fn loadable(&self, offset: u64, bytes: usize) -> &[AtomicU64] {
        assert!(offset.is_multiple_of(8) && bytes.is_multiple_of(8), "copies are whole words: {offset}+{bytes}");
        assert_ne!(self.access, Access::ReadOnly, "a mapping that may be protected is not touched by address");
        self.check(offset, bytes as u64);
        // SAFETY: as in `atomic`, for each word; AtomicU64 has the size and, on 64-bit targets, the alignment of u64.
        unsafe { std::slice::from_raw_parts(self.address.as_ptr().add(offset as usize).cast::<AtomicU64>(), bytes / 8) }
    }

    fn check(&self, offset: u64, bytes: u64) {
        let end = offset.checked_add(bytes).expect("the end fits u64");
        assert!(end <= self.bytes as u64, "{offset}+{bytes} leaves a mapping of {} bytes", self.bytes);
    }
}

/// Bytes that [`Mapping::pass`] moves at once.
const LINE: u64 = 64;

/// Stores go past the caches: a slot is not read again soon, and memory that is written whole need not be read before.
#[cfg(target_arch = "x86_64")]
fn pass(target: &[AtomicU64], source: &[AtomicU64], seen: &mut [u8]) {
    assert!(seen.as_ptr().addr().is_multiple_of(16) && target.as_ptr().addr().is_multiple_of(16));
    assert!(target.len() * 8 == seen.len() && source.len() * 8 == seen.len());
    if seen.is_empty() {
        return;
    }
    // SAFETY: all three are valid for `seen.len()` bytes, a positive multiple of 64 (asserted by the caller), and do not overlap: `seen` is
    // borrowed mutably, and source and target are two mappings, or two places that one caller names. Source and target are words that are shared,
    // and so may be read and written while others do (see the module); the target may be written (`storable`). Aligned stores are
    // aligned (asserted above). SSE2 is a part of x86-64. Flags are clobbered, the stack is not used.
    unsafe {
        std::arch::asm!(
            "2:",
            "movdqu {a}, [{source}]",
            "movdqu {b}, [{source} + 16]",
            "movdqu {c}, [{source} + 32]",
            "movdqu {d}, [{source} + 48]",
            "movdqa [{seen}], {a}",
            "movdqa [{seen} + 16], {b}",
            "movdqa [{seen} + 32], {c}",
            "movdqa [{seen} + 48], {d}",
            "movntdq [{target}], {a}",
            "movntdq [{target} + 16], {b}",
            "movntdq [{target} + 32], {c}",
            "movntdq [{target} + 48], {d}",
            "add {source}, 64",
            "add {seen}, 64",
            "add {target}, 64",
            "sub {left}, 64",
            "jnz 2b",
            source = inout(reg) source.as_ptr() => _,
            seen = inout(reg) seen.as_mut_ptr() => _,
            target = inout(reg) target.as_ptr() => _,
            left = inout(reg) seen.len() => _,
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            options(nostack),
        );
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn pass(target: &[AtomicU64], source: &[AtomicU64], seen: &mut [u8]) {
    for ((target, source), seen) in target.iter().zip(source).zip(seen.chunks_exact_mut(8)) {
        let word = source.load(Ordering::Relaxed);
        target.store(word, Ordering::Relaxed);
        seen.copy_from_slice(&word.to_ne_bytes());
    }
}

/// Orders what [`Mapping::pass`] stores with all other stores of this thread, before and after: stores that go past the caches obey no fence of the
/// language's.
pub(crate) fn settle() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a fence touches nothing. SSE is a part of x86-64.
    unsafe {
        std::arch::asm!("sfence", options(nostack, preserves_flags));
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly this mapping, and references into it borrow `self`. Raw addresses handed out are valid only while
        // the extent lives, by the contract of whoever takes them.
        let unmapped = unsafe { munmap(self.address.as_ptr().cast(), self.bytes) };
        debug_assert!(unmapped.is_ok(), "unmapping what was mapped: {unmapped:?}");
    }
}
