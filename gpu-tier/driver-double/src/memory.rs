//! Device memory and pinned host memory: what is where, and every address check.
//!
//! # Safety
//! | Bytes | Kept by | Touched by |
//! |---|---|---|
//! | a device block | `Memory::device`; its pages stay reserved for ever, access ends with the free | jobs, under the read lock |
//! | pinned memory that the driver allocated | `Memory::pinned`, until `cuMemFreeHost` | the caller; jobs, under the read lock |
//! | registered memory | the caller, until `cuMemHostUnregister` | anybody; jobs, under the read lock |
//!
//! Frees take the write lock, so no job is inside a block when it goes. A job checks its addresses again when it runs: memory
//! that went before its work was done is an illegal address (700), not a crash.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};

use crate::status::{Code, answer};
use crate::{context, control};

/// Set in every device address, so that a host that dereferences one faults (the address is not canonical).
const DEVICE_TAG: u64 = 1 << 60;
/// Set in the device's address of mapped host memory, so that a kernel given a plain host pointer fails.
const MAPPED_TAG: u64 = 1 << 61;
/// Alignment that the driver promises; blocks end right before a guard page as far as it allows.
const ALIGNMENT: usize = 256;
const PAGE: usize = 4096;
/// What fresh device memory holds: a NaN in every float type.
const FRESH: u8 = 0xFB;
/// `CU_MEMHOSTALLOC_DEVICEMAP` and `CU_MEMHOSTREGISTER_DEVICEMAP`.
const DEVICE_MAP: u32 = 2;
/// `CU_MEMHOSTREGISTER_READ_ONLY`.
const READ_ONLY: u32 = 8;

/// Device memory until [`control`] says otherwise.
pub(crate) const DEFAULT_CAPACITY: usize = 1 << 30;

static MEMORY: RwLock<Memory> = RwLock::new(Memory {
    device: BTreeMap::new(),
    pinned: BTreeMap::new(),
    live_bytes: 0,
    peak_bytes: 0,
    capacity: DEFAULT_CAPACITY,
    misalign: false,
});

pub(crate) struct Memory {
    /// By untagged address.
    device: BTreeMap<usize, Block>,
    pinned: BTreeMap<usize, Pinned>,
    live_bytes: usize,
    peak_bytes: usize,
    capacity: usize,
    /// Blocks get no more alignment than promised.
    misalign: bool,
}

/// A device allocation and the pages it lies in.
struct Block {
    bytes: usize,
    pages: usize,
    page_bytes: usize,
}

struct Pinned {
    bytes: usize,
    mapped: bool,
    /// Kernels may not write.
    read_only: bool,
    /// Allocated by the driver, not registered.
    owned: bool,
}

pub(crate) fn read() -> RwLockReadGuard<'static, Memory> {
    MEMORY.read().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn write() -> RwLockWriteGuard<'static, Memory> {
    MEMORY.write().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes in use and capacity.
pub(crate) fn use_and_capacity() -> (usize, usize) {
    let memory = read();
    (memory.live_bytes, memory.capacity.max(memory.live_bytes))
}

/// The entry of `map` whose range holds `[address, address + bytes)`.
fn holder(start: Option<(&usize, usize)>, address: usize, bytes: usize) -> bool {
    let end = address.checked_add(bytes);
    start.is_some_and(|(start, length)| end.is_some_and(|end| end <= start + length))
}

impl Memory {
    /// The bytes of a device address, all of them in one live block.
    pub(crate) fn device(&self, address: u64, bytes: usize) -> Option<*mut u8> {
        let untagged = usize::try_from(address & !DEVICE_TAG).ok()?;
        let below = self.device.range(..=untagged).next_back().map(|(start, block)| (start, block.bytes));
        (address & DEVICE_TAG != 0 && holder(below, untagged, bytes)).then_some(untagged as *mut u8)
    }

    /// The bytes behind an address that a kernel may use: a device block or mapped host memory.
    pub(crate) fn kernel(&self, address: u64, bytes: usize) -> Option<*mut u8> {
        if address & MAPPED_TAG == 0 {
            return self.device(address, bytes);
        }
        let untagged = usize::try_from(address & !MAPPED_TAG).ok()?;
        (self.pinned_in(untagged, bytes)?.mapped).then_some(untagged as *mut u8)
    }

    /// Whether a kernel may write to an address that it may read.
    fn is_writable(&self, address: u64) -> bool {
        let untagged = usize::try_from(address & !MAPPED_TAG).unwrap_or(0);
        address & MAPPED_TAG == 0 || self.pinned_in(untagged, 1).is_some_and(|pinned| !pinned.read_only)
    }

    fn pinned_in(&self, address: usize, bytes: usize) -> Option<&Pinned> {
        let (start, pinned) = self.pinned.range(..=address).next_back()?;
        holder(Some((start, pinned.bytes)), address, bytes).then_some(pinned)
    }

    /// Whether the host range is pinned as a whole.
    pub(crate) fn is_pinned(&self, address: usize, bytes: usize) -> bool {
        self.pinned_in(address, bytes).is_some()
    }

    /// Whether the host range is pinned, but not to be written by the device.
    pub(crate) fn is_pinned_read_only(&self, address: usize, bytes: usize) -> bool {
        self.pinned_in(address, bytes).is_some_and(|pinned| pinned.read_only)
    }

    /// Live device bytes, their high-water mark, live blocks, pinned host bytes, and those of them that are only read.
    pub(crate) fn usage(&self) -> [u64; 5] {
        let pinned: usize = self.pinned.values().map(|pinned| pinned.bytes).sum();
        let read_only: usize = self.pinned.values().filter(|pinned| pinned.read_only).map(|pinned| pinned.bytes).sum();
        [self.live_bytes, self.peak_bytes, self.device.len(), pinned, read_only].map(|number| number as u64)
    }

    pub(crate) fn set_misalign(&mut self, misalign: bool) {
        self.misalign = misalign;
    }

    pub(crate) fn set_capacity(&mut self, bytes: usize) {
        self.capacity = bytes;
        self.peak_bytes = self.live_bytes;
    }

    fn allocate(&mut self, bytes: usize) -> Result<u64, Code> {
        if bytes == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let used =
            self.live_bytes.checked_add(bytes).filter(|used| *used <= self.capacity).ok_or(Code::OUT_OF_MEMORY)?;
        let occupied = bytes.next_multiple_of(ALIGNMENT) + if self.misalign { ALIGNMENT } else { 0 };
        let usable = occupied.next_multiple_of(PAGE);
        // SAFETY: a fresh private mapping that nothing refers to yet.
        let map =
            unsafe { rustix::mm::mmap_anonymous(null_mut(), usable + 2 * PAGE, ProtFlags::empty(), MapFlags::PRIVATE) };
        let pages = map.map_err(|_| Code::OUT_OF_MEMORY)? as usize + PAGE;
        // SAFETY: the pages between the two guards of the mapping made above.
        unsafe { rustix::mm::mprotect(pages as *mut c_void, usable, MprotectFlags::READ | MprotectFlags::WRITE) }
            .map_err(|_| Code::OUT_OF_MEMORY)?;
        // SAFETY: those pages, writable since the line above.
        unsafe { (pages as *mut u8).write_bytes(FRESH, usable) };
        let start = pages + usable - occupied;
        self.device.insert(start, Block { bytes, pages, page_bytes: usable });
        self.live_bytes = used;
        self.peak_bytes = self.peak_bytes.max(used);
        Ok(start as u64 | DEVICE_TAG)
    }

    /// Ends access to a block. Its addresses are never handed out again, so a late use is seen.
    fn free(&mut self, address: u64) -> Result<(), Code> {
        let start = usize::try_from(address & !DEVICE_TAG).map_err(|_| Code::INVALID_VALUE)?;
        let block = self.device.remove(&start).filter(|_| address & DEVICE_TAG != 0).ok_or(Code::INVALID_VALUE)?;
        self.live_bytes -= block.bytes;
        let (pages, usable) = (block.pages as *mut c_void, block.page_bytes);
        // SAFETY: the pages of the removed block; the write lock keeps jobs out.
        let dropped = unsafe { rustix::mm::madvise(pages, usable, Advice::LinuxDontNeed) };
        // SAFETY: as above.
        let closed = unsafe { rustix::mm::mprotect(pages, usable, MprotectFlags::empty()) };
        dropped.and(closed).map_err(|_| Code::INVALID_VALUE)
    }

    fn pin(&mut self, address: usize, bytes: usize, flags: u32, owned: bool) -> Result<(), Code> {
        let end = address.checked_add(bytes).filter(|_| bytes > 0 && address > 0).ok_or(Code::INVALID_VALUE)?;
        let below = self.pinned.range(..end).next_back();
        if below.is_some_and(|(start, pinned)| start + pinned.bytes > address) {
            return Err(Code::ALREADY_REGISTERED);
        }
        self.pinned.insert(
            address,
            Pinned { bytes, mapped: flags & DEVICE_MAP != 0, read_only: !owned && flags & READ_ONLY != 0, owned },
        );
        Ok(())
    }

    fn unpin(&mut self, address: usize, owned: bool, otherwise: Code) -> Result<usize, Code> {
        match self.pinned.remove(&address) {
            Some(pinned) if pinned.owned == owned => Ok(pinned.bytes),
            Some(pinned) => {
                self.pinned.insert(address, pinned);
                Err(otherwise)
            }
            None => Err(otherwise),
        }
    }
}

/// Memory as a kernel on the ladder sees it, while the lock keeps every block where it is.
pub(crate) struct Seen(pub(crate) RwLockReadGuard<'static, Memory>);

impl cuda_ladder::Memory for Seen {
    fn bytes(&self, address: u64, bytes: usize) -> Option<&[u8]> {
        let place = self.0.kernel(address, bytes)?;
        // SAFETY: the range lies in a block or in pinned memory, which stays while the lock is held. Jobs of other streams and the
        // host may write it meanwhile, as on hardware; the ladder copies the bytes out at once and relies on nothing in them.
        Some(unsafe { std::slice::from_raw_parts(place, bytes) })
    }

    fn bytes_mut(&mut self, address: u64, bytes: usize) -> Option<&mut [u8]> {
        let place = self.0.kernel(address, bytes).filter(|_| self.0.is_writable(address))?;
        // SAFETY: as above; the slice is gone before the ladder asks for another one.
        Some(unsafe { std::slice::from_raw_parts_mut(place, bytes) })
    }
}

/// # Safety
/// `address` is writable.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> u32 {
    answer(context::enter().and_then(|()| {
        control::fault(control::Fault::Allocate)?;
        let block = write().allocate(bytes)?;
        // SAFETY: the caller passes a place for one address.
        unsafe { address.write(block) };
        Ok(())
    }))
}

/// Frees at once and waits for nobody, which the hardware would: a free before the work is done is a bug to be seen.
#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> u32 {
    answer(write().free(address).and_then(|()| context::enter()))
}

/// # Safety
/// `pointer` is writable.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostAlloc(pointer: *mut *mut c_void, bytes: usize, flags: u32) -> u32 {
    answer(context::enter().and_then(|()| {
        // SAFETY: a fresh private mapping that nothing refers to yet.
        let map = unsafe {
            rustix::mm::mmap_anonymous(null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
        };
        let map = map.map_err(|_| Code::OUT_OF_MEMORY)?;
        write().pin(map as usize, bytes, flags, true)?;
        // SAFETY: the caller passes a place for one pointer.
        unsafe { pointer.write(map) };
        Ok(())
    }))
}

/// # Safety
/// Nobody uses the memory any more.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemFreeHost(pointer: *mut c_void) -> u32 {
    let mut memory = write();
    answer(memory.unpin(pointer as usize, true, Code::INVALID_VALUE).and_then(|bytes| {
        // SAFETY: the mapping of that length made by `cuMemHostAlloc`; jobs are kept out by the write lock.
        unsafe { rustix::mm::munmap(pointer, bytes) }.map_err(|_| Code::INVALID_VALUE)?;
        context::enter()
    }))
}

/// Whether the process may write at an address. Where it may not, a device without access to the host's page tables has to be told
/// (`CU_MEMHOSTREGISTER_READ_ONLY` in cuda.h); this is such a device.
fn host_may_write(address: usize) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let holder = maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let bound = |text| usize::from_str_radix(text, 16).ok();
        (bound(start)?..bound(end)?).contains(&address).then_some(rest)
    });
    holder.is_none_or(|rest| rest.as_bytes().get(1) == Some(&b'w'))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostRegister_v2(pointer: *mut c_void, bytes: usize, flags: u32) -> u32 {
    answer(context::enter().and_then(|()| {
        let read_only = flags & READ_ONLY != 0;
        if control::refuses_registration() || read_only && !control::registers_read_only() {
            return Err(Code::NOT_SUPPORTED);
        }
        if !read_only && !host_may_write(pointer as usize) {
            return Err(Code::INVALID_VALUE);
        }
        write().pin(pointer as usize, bytes, flags, false)
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemHostUnregister(pointer: *mut c_void) -> u32 {
    let unpinned = write().unpin(pointer as usize, false, Code::NOT_REGISTERED);
    answer(unpinned.and_then(|_| context::enter()))
}

/// # Safety
/// `address` is writable.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemHostGetDevicePointer_v2(address: *mut u64, pointer: *mut c_void, _flags: u32) -> u32 {
    answer(context::enter().and_then(|()| {
        let mapped = read().pinned_in(pointer as usize, 1).is_some_and(|pinned| pinned.mapped);
        if !mapped {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: the caller passes a place for one address.
        unsafe { address.write(pointer as u64 | MAPPED_TAG) };
        Ok(())
    }))
}
