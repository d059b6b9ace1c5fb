//! A small pinned buffer that data handed over as a slice goes through, so that the caller may reuse the slice at once. Copies of unpinned
//! memory have one each for their stream (`bounce`).
//!
//! Handing the slice itself to the driver would not do: whether it is staged or read later depends on whether the memory
//! happens to be pinned, and on the machine.

use std::ptr::NonNull;

use cudarc::driver::{CudaEvent, CudaStream, DriverError, result, sys};

use super::address::DevicePtr;

/// Bytes of a chunk: longer data is cut.
pub(super) const CHUNK_BYTES: usize = 1 << 20;
/// At most this many chunks; when all are in use, a caller waits for one.
const CHUNKS: usize = 4;

/// The chunks, allocated when first needed. Neither the host memory nor the tables' (at most 4 MiB of the device's) is counted against
/// the device budget.
#[derive(Default)]
pub(super) struct Staging {
    chunks: Vec<Chunk>,
    /// The chunk after the one used last: they are used in turn.
    next: usize,
}

struct Chunk {
    /// Pinned, [`CHUNK_BYTES`] long.
    memory: NonNull<u8>,
    /// The same for kernels.
    mapped: DevicePtr,
    /// Device memory of the same length, for tables; allocated when a table first goes through the chunk.
    table: Option<DevicePtr>,
    /// Recorded after the last work that reads the chunk.
    free_after: CudaEvent,
}

// SAFETY: the chunks' memory belongs to `Staging` alone; the host writes it only in `with`, through `&mut self`, and work in a stream (the
// device's, and host functions of `bounce`) uses it only until `free_after`.
unsafe impl Send for Staging {}
// SAFETY: as above; nothing is reachable through a shared reference.
unsafe impl Sync for Staging {}

/// Staged bytes.
pub(super) struct Staged {
    /// For copies.
    pub(super) memory: *const u8,
    /// For kernels.
    pub(super) mapped: DevicePtr,
}

impl Staging {
    /// Copies `data` (at most [`CHUNK_BYTES`]) into a chunk and lets `enqueue` enqueue work on `stream` that reads it.
    pub(super) fn with(
        &mut self,
        stream: &CudaStream,
        data: &[u8],
        enqueue: impl FnOnce(Staged) -> Result<(), DriverError>,
    ) -> Result<(), DriverError> {
        self.with_chunk(stream, data, |chunk| enqueue(Staged { memory: chunk.memory.as_ptr(), mapped: chunk.mapped }))
    }

    /// Copies `data` to device memory in the stream's order and lets `enqueue` enqueue work that reads it there: a table that every
    /// block of a kernel reads should not be fetched over the bus each time. Fails with `CUDA_ERROR_OUT_OF_MEMORY` before
    /// anything is enqueued when there is no room for it.
    pub(super) fn with_table(
        &mut self,
        stream: &CudaStream,
        data: &[u8],
        enqueue: impl FnOnce(DevicePtr) -> Result<(), DriverError>,
    ) -> Result<(), DriverError> {
        self.with_chunk(stream, data, |chunk| {
            let table = match chunk.table {
                Some(table) => table,
                // SAFETY: the stream's context is current (the device binds it before each operation).
                None => *chunk.table.insert(DevicePtr::new(unsafe { result::malloc_sync(CHUNK_BYTES) }?)),
            };
            // SAFETY: both are `CHUNK_BYTES` long; neither is written again before the stream has done what `enqueue` adds.
            unsafe {
                sys::cuMemcpyHtoDAsync_v2(table.raw(), chunk.memory.as_ptr().cast(), data.len(), stream.cu_stream())
            }
            .result()?;
            enqueue(table)
        })
    }

    /// Lets `enqueue` enqueue work on `stream` that writes and reads a chunk's [`CHUNK_BYTES`]; nothing else does until it is done.
    pub(super) fn lend(
        &mut self,
        stream: &CudaStream,
        enqueue: impl FnOnce(NonNull<u8>) -> Result<(), DriverError>,
    ) -> Result<(), DriverError> {
        self.with_free(stream, |chunk| enqueue(chunk.memory))
    }

    fn with_chunk(
        &mut self,
        stream: &CudaStream,
        data: &[u8],
        enqueue: impl FnOnce(&mut Chunk) -> Result<(), DriverError>,
    ) -> Result<(), DriverError> {
        assert!(data.len() <= CHUNK_BYTES, "{} bytes for a staging chunk of {CHUNK_BYTES}", data.len());
        self.with_free(stream, |chunk| {
            // SAFETY: the chunk is `CHUNK_BYTES` long, and the device has finished reading it; `data` is not in it, since slices
            // of chunks are never lent out.
            unsafe { chunk.memory.copy_from_nonoverlapping(NonNull::from(data).cast(), data.len()) };
            enqueue(chunk)
        })
    }

    /// The next chunk, once the work on it is done; `enqueue` adds more.
    fn with_free(
        &mut self,
        stream: &CudaStream,
        enqueue: impl FnOnce(&mut Chunk) -> Result<(), DriverError>,
    ) -> Result<(), DriverError> {
        if self.chunks.len() < CHUNKS && self.next == self.chunks.len() {
            self.chunks.push(Chunk::new(stream)?);
        }
        let chunk = &mut self.chunks[self.next];
        self.next = (self.next + 1) % CHUNKS;
        chunk.free_after.synchronize()?;
        let enqueued = enqueue(chunk);
        enqueued.and(chunk.free_after.record(stream))
    }

    /// Frees the chunks, after all work is done.
    pub(super) fn clear(&mut self) {
        for chunk in self.chunks.drain(..) {
            // SAFETY: allocated by `Chunk::new`; no work is left (the caller has waited, or the context has failed). An error
            // is the context's own, and it ends next.
            let _ = unsafe { result::free_host(chunk.memory.as_ptr().cast()) };
            if let Some(table) = chunk.table {
                // SAFETY: allocated by `with_table`; otherwise as above.
                let _ = unsafe { result::free_sync(table.raw()) };
            }
        }
    }
}

impl Chunk {
    fn new(stream: &CudaStream) -> Result<Chunk, DriverError> {
        let free_after = stream.context().new_event(None)?;
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: `new_event` has bound the context to this thread.
        let memory = unsafe { result::malloc_host(CHUNK_BYTES, flags) }?;
        let mut raw = 0;
        // SAFETY: allocated for device mapping just now.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&raw mut raw, memory, 0) }.result()?;
        let memory = NonNull::new(memory.cast()).expect("the driver gave out memory");
        Ok(Chunk { memory, mapped: DevicePtr::new(raw), table: None, free_after })
    }
}
