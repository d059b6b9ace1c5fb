//! Device memory under a budget.

use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream, DriverError, result};

use super::address::DevicePtr;
use super::health::{Health, describe, is_out_of_memory};
use crate::device::{BufferId, DeviceRange, MemoryUse};
use crate::error::DeviceError;

/// Unit of the budget and alignment of every allocation, in bytes.
const PAGE_BYTES: u64 = 4096;
/// Alignment that the driver promises (CUDA programming guide, "Size and Alignment Requirement": at least 256 bytes).
const DRIVER_ALIGNMENT: u64 = 256;

/// The operation, in errors.
const WHAT: &str = "allocate";

/// The table of allocations. Budget and use count the bytes asked of the driver: whole pages, and a page more where the driver's
/// alignment makes it necessary.
pub(super) struct Memory {
    budget: u64,
    used: u64,
    peak: u64,
    last_id: u64,
    live: HashMap<BufferId, Block>,
    retired: Vec<Retired>,
}

struct Block {
    /// Aligned.
    start: DevicePtr,
    /// As the driver gave it out.
    base: DevicePtr,
    /// As asked for: what ranges are checked against.
    bytes: u64,
    /// As asked of the driver: what the budget counts.
    charged: u64,
}

/// Dropped by its owner, waiting for the work that was enqueued before.
struct Retired {
    base: DevicePtr,
    charged: u64,
    after: Vec<CudaEvent>,
}

impl Memory {
    pub(super) fn new(budget: u64) -> Memory {
        Memory { budget, used: 0, peak: 0, last_id: 0, live: HashMap::new(), retired: Vec::new() }
    }

    pub(super) fn usage(&self) -> MemoryUse {
        MemoryUse { budget_bytes: self.budget, used_bytes: self.used, peak_bytes: self.peak }
    }

    /// The address of a range of a live allocation.
    pub(super) fn resolve(&self, range: DeviceRange) -> Result<DevicePtr, DeviceError> {
        let block = self.live.get(&range.buffer);
        let end = range.offset.checked_add(range.bytes);
        match block {
            Some(Block { start, bytes, .. }) if end.is_some_and(|end| end <= *bytes) => Ok(start.add(range.offset)),
            _ => Err(DeviceError::Range { range }),
        }
    }

    /// Allocates zeroed memory; `setup` is a stream with no other work, so waiting for it is waiting for the fill alone.
    /// Running out of the device's memory below the budget is an error of this call, and leaves the device usable.
    pub(super) fn allocate(
        &mut self,
        bytes: u64,
        setup: &CudaStream,
        health: &Health,
    ) -> Result<BufferId, DeviceError> {
        health.told(WHAT, self.reap(false))?;
        let full = DeviceError::Full { requested_bytes: bytes, used_bytes: self.used, budget_bytes: self.budget };
        let held = bytes.max(1).checked_next_multiple_of(PAGE_BYTES).ok_or(full)?;
        let (mut base, mut charged) = (self.take(bytes, held, health)?, held);
        if base.padding(PAGE_BYTES) > 0 {
            // The driver's alignment is less than ours: ask for room to align in.
            // SAFETY: allocated above, and no work refers to it.
            health.told(WHAT, unsafe { result::free_sync(base.raw()) })?;
            charged = held.saturating_add(PAGE_BYTES - DRIVER_ALIGNMENT);
            base = self.take(bytes, charged, health)?;
        }
        let start = base.add(base.padding(PAGE_BYTES));
        self.used += charged;
        self.peak = self.peak.max(self.used);
        self.last_id += 1;
        let id = BufferId(self.last_id);
        self.live.insert(id, Block { start, base, bytes, charged });
        let length = usize::try_from(held).expect("the driver has given out this many bytes");
        // SAFETY: fresh device memory of at least `length` bytes that nothing else uses before this returns.
        let filled = unsafe { result::memset_d8_async(start.raw(), 0, length, setup.cu_stream()) };
        health.told(WHAT, filled.and_then(|()| setup.synchronize()))?;
        Ok(id)
    }

    /// Asks the driver for `charged` bytes if the budget has them. Retired memory is waited for before either says no.
    fn take(&mut self, bytes: u64, charged: u64, health: &Health) -> Result<DevicePtr, DeviceError> {
        let fits = |memory: &Memory| memory.used.checked_add(charged).is_some_and(|used| used <= memory.budget);
        if !fits(self) {
            health.told(WHAT, self.reap(true))?;
        }
        if !fits(self) {
            let (used_bytes, budget_bytes) = (self.used, self.budget);
            return Err(DeviceError::Full { requested_bytes: bytes, used_bytes, budget_bytes });
        }
        let length = usize::try_from(charged).expect("the budget fits the address space");
        // SAFETY: the context is current on this thread (the device binds it before each operation).
        let mut allocated = unsafe { result::malloc_sync(length) };
        if allocated.is_err_and(is_out_of_memory) && !self.retired.is_empty() {
            health.told(WHAT, self.reap(true))?;
            // SAFETY: as above.
            allocated = unsafe { result::malloc_sync(length) };
        }
        match allocated {
            Err(error) if is_out_of_memory(error) => Err(describe(WHAT, error)),
            other => Ok(DevicePtr::new(health.told(WHAT, other)?)),
        }
    }

    /// Takes an allocation from its owner. Its memory goes once `after` are done; without events it goes at once.
    pub(super) fn retire(&mut self, id: BufferId, after: Vec<CudaEvent>) -> Result<(), DriverError> {
        if let Some(Block { base, charged, .. }) = self.live.remove(&id) {
            self.retired.push(Retired { base, charged, after });
        }
        self.reap(false)
    }

    /// Frees what was retired and is no longer in use, or waits until all of it can be.
    pub(super) fn reap(&mut self, wait: bool) -> Result<(), DriverError> {
        let mut index = 0;
        while let Some(retired) = self.retired.get(index) {
            let mut idle = true;
            for event in &retired.after {
                if wait {
                    event.synchronize()?;
                } else {
                    idle &= event.try_is_complete()?;
                }
            }
            if idle {
                let retired = self.retired.swap_remove(index);
                self.used -= retired.charged;
                // SAFETY: allocated by `take`; its owner has let go and all work enqueued until then is done.
                unsafe { result::free_sync(retired.base.raw()) }?;
            } else {
                index += 1;
            }
        }
        Ok(())
    }

    /// Frees everything after the context has been synchronised; errors are the context's, which ends with it.
    pub(super) fn clear(&mut self) {
        let live = self.live.drain().map(|(_, block)| block.base);
        for base in live.chain(self.retired.drain(..).map(|retired| retired.base)) {
            // SAFETY: allocated by `take`, freed once; no work is left (the caller has waited, or the context has failed and
            // does none).
            let _ = unsafe { result::free_sync(base.raw()) };
        }
        self.used = 0;
    }
}

/// Records an event on each stream: done when all work enqueued so far is.
pub(super) fn events_now(streams: &[&Arc<CudaStream>]) -> Result<Vec<CudaEvent>, DriverError> {
    streams.iter().map(|stream| stream.record_event(None)).collect()
}
