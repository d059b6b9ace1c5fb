//! Memory of the `cpu` device: one reservation of address space, a hard budget, and a table that checks every range.
//!
//! # Safety
//! Every address handed out lies in the reservation, which is mapped readable and writable until [`Memory`] drops, so
//! a stale or racing access reads or writes wrong bytes but never leaves the mapping; nothing the allocator needs is
//! stored in it. The states of an allocation, all changed under one lock:
//!
//! | State | Who may touch its bytes |
//! |---|---|
//! | vacant (in `free`) | nobody; the kernel holds zero pages |
//! | live | operations that pinned it ([`Pinned`]) |
//! | dying | operations that pinned it before; new ones are refused, `free` waits for the last pin |
//!
//! Two operations that overlap in device memory are ordered by the caller, with events.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use crate::device::{BufferId, DeviceBuffer, DeviceRange, FreeBuffer, MemoryUse};
use crate::error::DeviceError;

/// Unit of the budget and of every allocation.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Allocations of at least this size are aligned to it and ask for huge pages.
const HUGE_BYTES: usize = 2 << 20;

/// The arena and its table of allocations.
pub(crate) struct Memory {
    base: *mut u8,
    reserved_bytes: usize,
    budget_bytes: u64,
    table: Mutex<Table>,
    /// Signalled when the last pin of a dying allocation goes.
    unpinned: Condvar,
}

// SAFETY: `base` is only the address of a mapping that lives as long as this object; who may touch which bytes is said
// in the module header, and all bookkeeping is under `table`'s lock.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

#[derive(Default)]
struct Table {
    entries: Vec<Entry>,
    /// Indices of entries that can be used again.
    vacant: Vec<u32>,
    /// Unused address space: offset to length, neighbours joined.
    free: BTreeMap<usize, usize>,
    used_bytes: u64,
    peak_bytes: u64,
}

struct Entry {
    /// Part of the [`BufferId`], so that an id is never used twice.
    generation: u32,
    live: bool,
    pins: u32,
    offset: usize,
    /// As asked for: what ranges are checked against.
    bytes: u64,
    /// In whole pages: what the budget counts.
    held_bytes: usize,
}

impl Memory {
    /// Reserves address space for a budget. Errors: [`DeviceError::Unavailable`] when the kernel refuses.
    pub(crate) fn reserve(budget_bytes: u64) -> Result<Memory, DeviceError> {
        let unavailable = |reason: String| DeviceError::Unavailable { kind: "cpu", reason };
        let budget = usize::try_from(budget_bytes)
            .ok()
            .filter(|bytes| *bytes < usize::MAX / 16)
            .ok_or_else(|| unavailable(format!("a budget of {budget_bytes} bytes exceeds the address space")))?;
        let mut failure = String::new();
        // Spare room makes fragmentation harmless: address space costs nothing, pages are taken when touched.
        for factor in [4, 2, 1] {
            let bytes = (budget * factor).next_multiple_of(HUGE_BYTES) + 16 * HUGE_BYTES;
            // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches no existing memory.
            let mapped = unsafe {
                mmap_anonymous(
                    std::ptr::null_mut(),
                    bytes,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::PRIVATE | MapFlags::NORESERVE,
                )
            };
            match mapped {
                Ok(base) => {
                    return Ok(Memory {
                        base: base.cast(),
                        reserved_bytes: bytes,
                        budget_bytes,
                        table: Mutex::new(Table { free: BTreeMap::from([(0, bytes)]), ..Table::default() }),
                        unpinned: Condvar::new(),
                    });
                }
                Err(error) => failure = format!("reserve {bytes} bytes of address space: {error}"),
            }
        }
        Err(unavailable(failure))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Each critical section leaves the table whole at every point where it could panic.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Budget, use and high-water mark.
    pub(crate) fn usage(&self) -> MemoryUse {
        let table = self.lock();
        MemoryUse { budget_bytes: self.budget_bytes, used_bytes: table.used_bytes, peak_bytes: table.peak_bytes }
    }

    /// Allocates zeroed bytes. Errors: [`DeviceError::Full`].
    pub(crate) fn allocate(self: &Arc<Self>, bytes: u64) -> Result<DeviceBuffer, DeviceError> {
        let mut table = self.lock();
        let full = |table: &Table| DeviceError::Full {
            requested_bytes: bytes,
            used_bytes: table.used_bytes,
            budget_bytes: self.budget_bytes,
        };
        let left = self.budget_bytes - table.used_bytes;
        let held = bytes.max(1).checked_next_multiple_of(PAGE_BYTES as u64).filter(|held| *held <= left);
        let Some(held) = held else { return Err(full(&table)) };
        let held_bytes = held as usize;
        let Some(offset) = table.take(self.base.addr(), held_bytes) else {
            return Err(full(&table));
        };
        table.used_bytes += held;
        table.peak_bytes = table.peak_bytes.max(table.used_bytes);
        let id = table.enter(offset, bytes, held_bytes);
        drop(table);
        if held_bytes >= HUGE_BYTES {
            // SAFETY: the range was just taken from the free list, so it is inside the mapping and nobody else's; the
            // advice changes no byte. Whole huge pages only, so that a neighbour's pages are left alone.
            let advised = unsafe {
                madvise(self.base.add(offset).cast(), held_bytes / HUGE_BYTES * HUGE_BYTES, Advice::LinuxHugepage)
            };
            // A kernel without huge pages serves small ones.
            let _ = advised;
        }
        Ok(DeviceBuffer::new(id, bytes, Arc::clone(self) as Arc<dyn FreeBuffer>))
    }

    /// Checks ranges and pins their allocations while `check` looks them up; what it returns may hold their addresses
    /// as long as the [`Pinned`] lives.
    pub(crate) fn pin<T>(
        self: &Arc<Self>,
        check: impl FnOnce(&mut Access<'_>) -> Result<T, DeviceError>,
    ) -> Result<(T, Pinned), DeviceError> {
        let mut table = self.lock();
        let mut access = Access { base: self.base, table: &mut table, pinned: Vec::new() };
        let outcome = check(&mut access);
        let pinned = access.pinned;
        drop(table);
        // Built before the outcome is looked at: on an error its drop takes the pins back.
        let pinned = Pinned { memory: Arc::clone(self), entries: pinned };
        Ok((outcome?, pinned))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `reserve` with this length, and buffers, pins and copy threads each hold an
        // `Arc` of this object, so nobody uses it any more.
        let unmapped = unsafe { munmap(self.base.cast(), self.reserved_bytes) };
        debug_assert!(unmapped.is_ok());
    }
}

impl FreeBuffer for Memory {
    fn free(&self, id: BufferId) {
        let (index, generation) = split_id(id);
        let mut table = self.lock();
        match table.entries.get_mut(index as usize) {
            Some(entry) if entry.live && entry.generation == generation => entry.live = false,
            _ => return,
        }
        while table.entries[index as usize].pins > 0 {
            table = self.unpinned.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        let Entry { offset, held_bytes, .. } = table.entries[index as usize];
        drop(table);
        // SAFETY: the allocation is dying and unpinned, so no operation uses its bytes, and it is not yet in the free
        // list, so no new owner does; the range lies inside the mapping.
        unsafe {
            let start = self.base.add(offset);
            if madvise(start.cast(), held_bytes, Advice::LinuxDontNeed).is_err() {
                // Locked pages cannot be given back; zero them as the next owner expects.
                start.write_bytes(0, held_bytes);
            }
        }
        let mut table = self.lock();
        table.give_back(offset, held_bytes);
        table.used_bytes -= held_bytes as u64;
        if generation < u32::MAX {
            table.vacant.push(index);
        }
    }
}

impl Table {
    /// Takes `bytes` of address space, first fit. `base` is the mapping's address: alignment is that of real addresses.
    fn take(&mut self, base: usize, bytes: usize) -> Option<usize> {
        let align = if bytes >= HUGE_BYTES { HUGE_BYTES } else { PAGE_BYTES };
        let (start, len, offset) = self.free.iter().find_map(|(&start, &len)| {
            let offset = (base + start).next_multiple_of(align) - base;
            (offset + bytes <= start + len).then_some((start, len, offset))
        })?;
        self.free.remove(&start);
        if offset > start {
            self.free.insert(start, offset - start);
        }
        let end = offset + bytes;
        if end < start + len {
            self.free.insert(end, start + len - end);
        }
        Some(offset)
    }

    /// Returns address space and joins it with its free neighbours.
    fn give_back(&mut self, offset: usize, bytes: usize) {
        let (mut start, mut end) = (offset, offset + bytes);
        if let Some(len) = self.free.remove(&end) {
            end += len;
        }
        if let Some((&before, &len)) = self.free.range(..offset).next_back()
            && before + len == offset
        {
            self.free.remove(&before);
            start = before;
        }
        self.free.insert(start, end - start);
    }

    /// Makes an entry and its id.
    fn enter(&mut self, offset: usize, bytes: u64, held_bytes: usize) -> BufferId {
        let entry = Entry { generation: 1, live: true, pins: 0, offset, bytes, held_bytes };
        let index = match self.vacant.pop() {
            Some(index) => {
                let slot = &mut self.entries[index as usize];
                *slot = Entry { generation: slot.generation + 1, ..entry };
                index
            }
            None => {
                self.entries.push(entry);
                u32::try_from(self.entries.len() - 1).expect("each entry holds a page, so there are fewer than 2^32")
            }
        };
        BufferId(u64::from(self.entries[index as usize].generation) << 32 | u64::from(index))
    }
}

fn split_id(id: BufferId) -> (u32, u32) {
    (id.0 as u32, (id.0 >> 32) as u32)
}

/// Looks up ranges and pins their allocations.
pub(crate) struct Access<'t> {
    base: *mut u8,
    table: &'t mut Table,
    pinned: Vec<u32>,
}

impl Access<'_> {
    /// Address of a range. Errors: [`DeviceError::Range`].
    pub(crate) fn address(&mut self, range: DeviceRange) -> Result<*mut u8, DeviceError> {
        let (index, generation) = split_id(range.buffer);
        let entry = self
            .table
            .entries
            .get_mut(index as usize)
            .filter(|entry| entry.live && entry.generation == generation)
            .filter(|entry| range.offset.checked_add(range.bytes).is_some_and(|end| end <= entry.bytes))
            .ok_or(DeviceError::Range { range })?;
        if self.pinned.last() != Some(&index) && !self.pinned.contains(&index) {
            entry.pins += 1;
            self.pinned.push(index);
        }
        // SAFETY: the entry's offset and length lie inside the mapping, and the range inside the entry.
        Ok(unsafe { self.base.add(entry.offset + range.offset as usize) })
    }
}

/// Keeps allocations from being freed while an operation uses them.
pub(crate) struct Pinned {
    memory: Arc<Memory>,
    entries: Vec<u32>,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let mut table = self.memory.lock();
        let mut wake = false;
        for index in &self.entries {
            let entry = &mut table.entries[*index as usize];
            entry.pins -= 1;
            wake |= entry.pins == 0 && !entry.live;
        }
        drop(table);
        if wake {
            self.memory.unpinned.notify_all();
        }
    }
}
