//! Host memory that is set aside for the disk: images on their way down, sections on their way to a kernel.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cache_core::store::Slot;
use disk_tier::io::{Memory, Region};
use gpu_tier::device::HostRange;

/// One piece of bounce memory, as the device and as the disk know it.
#[derive(Clone)]
pub(crate) struct Span {
    pub(crate) host: HostRange,
    pub(crate) region: Arc<dyn Region>,
}

/// Pieces of equal size, cut from host slots that belong to no block.
pub(crate) struct Pool {
    spans: Vec<Span>,
    free: Mutex<Vec<usize>>,
    /// Keeps the memory from being given to blocks.
    _slots: Vec<Slot>,
}

impl Pool {
    pub(crate) fn new(spans: Vec<Span>, slots: Vec<Slot>) -> Arc<Pool> {
        let free = Mutex::new((0..spans.len()).rev().collect());
        Arc::new(Pool { spans, free, _slots: slots })
    }

    /// Pieces in all.
    pub(crate) fn pieces(&self) -> usize {
        self.spans.len()
    }

    /// A piece, if one is free.
    pub(crate) fn take(self: &Arc<Pool>) -> Option<Bounce> {
        let index = self.free().pop()?;
        Some(Bounce { pool: Arc::clone(self), index })
    }

    /// So many pieces, or none.
    pub(crate) fn take_all(self: &Arc<Pool>, count: usize) -> Option<Vec<Bounce>> {
        let mut free = self.free();
        let rest = free.len().checked_sub(count)?;
        let taken = free.split_off(rest);
        Some(taken.into_iter().map(|index| Bounce { pool: Arc::clone(self), index }).collect())
    }

    fn free(&self) -> MutexGuard<'_, Vec<usize>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A piece in use; free again when dropped. While an operation of the disk holds it, it travels with the operation's memory.
pub(crate) struct Bounce {
    pool: Arc<Pool>,
    index: usize,
}

impl Bounce {
    fn span(&self) -> &Span {
        &self.pool.spans[self.index]
    }

    /// Where the device finds it.
    pub(crate) fn host(&self) -> HostRange {
        self.span().host
    }

    /// Its first `bytes` bytes as memory of an operation, which gives the piece back when it is dropped.
    pub(crate) fn memory(self, bytes: u64) -> Memory {
        let Span { host, region } = self.span().clone();
        assert!(bytes <= host.bytes, "{bytes} bytes in a piece of {}", host.bytes);
        Memory::Lent { region, offset: host.offset, bytes, guard: Box::new(self) }
    }
}

impl Drop for Bounce {
    fn drop(&mut self) {
        self.pool.free().push(self.index);
    }
}
