//! Copies of host memory that the driver has not pinned: through pinned slots of the stream's own, with host functions in the stream that copy
//! between extent and slot. So they go on beside their caller and beside other streams, and host bytes are read and written in the stream's
//! order, as those of pinned memory are. Within the stream, the processor's copy and the bus take turns.
//!
//! # Safety
//! | Bytes | Valid until | Keeper |
//! |---|---|---|
//! | slot | the work before the chunk's event is done, or `clear` | `ring`; a host function holds `open` while it copies, and `clear` closes first |
//! | extent | the device is dropped, after `clear` | `extents` |

use std::ffi::c_void;
use std::sync::{Arc, PoisonError, RwLock};

use cudarc::driver::{CudaStream, DriverError, sys};

use super::staging::{CHUNK_BYTES, Staging};
use super::transfer::{Direction, Move};

/// The slots of one stream, allocated when first needed.
pub(super) struct Bounce {
    ring: Staging,
    /// False once slots and extents may go: a host function that is late (its context has failed) then does nothing.
    open: Arc<RwLock<bool>>,
}

/// What a host function copies.
struct HostCopy {
    open: Arc<RwLock<bool>>,
    pieces: Vec<HostPiece>,
}

#[derive(Clone, Copy)]
struct HostPiece {
    source: *const u8,
    target: *mut u8,
    bytes: usize,
}

impl Default for Bounce {
    fn default() -> Bounce {
        Bounce { ring: Staging::default(), open: Arc::new(RwLock::new(true)) }
    }
}

/// A part of a copy that goes through one slot.
struct Batch {
    moves: Vec<Move>,
    bytes: usize,
}

/// Cuts a list of copies into what goes through a slot at once, in order.
fn batches(moves: &[Move]) -> Vec<Batch> {
    let mut all: Vec<Batch> = Vec::new();
    for whole in moves {
        let mut done = 0;
        while done < whole.bytes {
            let room = all.last().map_or(0, |batch| CHUNK_BYTES - batch.bytes);
            if room == 0 {
                all.push(Batch { moves: Vec::new(), bytes: 0 });
                continue;
            }
            let part = whole.part(done, room as u64);
            done += part.bytes;
            if let Some(batch) = all.last_mut() {
                batch.bytes += part.length();
                batch.moves.push(part);
            }
        }
    }
    all
}

impl Bounce {
    /// Enqueues copies of unpinned host memory. Waits only when all slots are in use, for the oldest.
    ///
    /// The caller vouches for the ranges: they stay valid until the stream has done the work.
    pub(super) fn copy(
        &mut self,
        stream: &CudaStream,
        direction: Direction,
        moves: &[Move],
    ) -> Result<(), DriverError> {
        batches(moves).iter().try_for_each(|batch| {
            let open = &self.open;
            self.ring.lend(stream, |slot| {
                let mut at = 0;
                let places = batch.moves.iter().map(|piece| {
                    at += piece.length();
                    // SAFETY: the parts of a batch fill at most a chunk.
                    (piece, unsafe { slot.as_ptr().add(at - piece.length()) })
                });
                let places: Vec<(&Move, *mut u8)> = places.collect();
                if direction == Direction::In {
                    let pieces = places.iter().map(|(piece, slot)| HostPiece {
                        source: piece.host.address,
                        target: *slot,
                        bytes: piece.length(),
                    });
                    enqueue(stream, HostCopy { open: open.clone(), pieces: pieces.collect() })?;
                    return places.iter().try_for_each(|(piece, slot)| {
                        // SAFETY: the slot is not written again before the stream has done this; the caller vouches for the target.
                        unsafe {
                            sys::cuMemcpyHtoDAsync_v2(
                                piece.device.raw(),
                                slot.cast(),
                                piece.length(),
                                stream.cu_stream(),
                            )
                        }
                        .result()
                    });
                }
                places.iter().try_for_each(|(piece, slot)| {
                    // SAFETY: as above, with source and target exchanged.
                    unsafe {
                        sys::cuMemcpyDtoHAsync_v2(slot.cast(), piece.device.raw(), piece.length(), stream.cu_stream())
                    }
                    .result()
                })?;
                let pieces = places.iter().map(|(piece, slot)| HostPiece {
                    source: *slot,
                    target: piece.host.address,
                    bytes: piece.length(),
                });
                enqueue(stream, HostCopy { open: open.clone(), pieces: pieces.collect() })
            })
        })
    }

    /// Frees the slots, after all work is done.
    pub(super) fn clear(&mut self) {
        *self.open.write().unwrap_or_else(PoisonError::into_inner) = false;
        self.ring.clear();
    }
}

/// Enqueues a host function. A context that fails first never calls it: its few words are leaked then.
fn enqueue(stream: &CudaStream, copy: HostCopy) -> Result<(), DriverError> {
    let copy = Box::into_raw(Box::new(copy));
    // SAFETY: `run` takes the box, once; no driver call is made in it.
    let enqueued = unsafe { sys::cuLaunchHostFunc(stream.cu_stream(), Some(run), copy.cast()) }.result();
    if enqueued.is_err() {
        // SAFETY: the driver has not taken it.
        drop(unsafe { Box::from_raw(copy) });
    }
    enqueued
}

/// The host function. On a thread of the driver's.
unsafe extern "C" fn run(copy: *mut c_void) {
    // SAFETY: made by `enqueue`, for this call.
    let copy = unsafe { Box::from_raw(copy.cast::<HostCopy>()) };
    let open = copy.open.read().unwrap_or_else(PoisonError::into_inner);
    if !*open {
        return;
    }
    for piece in &copy.pieces {
        // SAFETY: slot and extent are there (module header), and never the same memory. Others may write an extent's bytes meanwhile: nothing
        // is made of them here.
        unsafe { piece.target.copy_from_nonoverlapping(piece.source, piece.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::super::address::DevicePtr;
    use super::super::extent::HostPlace;
    use super::*;

    #[test]
    fn batches_hold_every_byte_in_order() {
        let chunk = CHUNK_BYTES as u64;
        let host = |at: u64| HostPlace { address: std::ptr::without_provenance_mut(at as usize), mapped: None };
        let sizes = [5, chunk - 6, 1, 1, 3 * chunk + 7, 0, 2];
        let mut at = 4096;
        let moves = sizes.map(|bytes| {
            at += bytes;
            Move { host: host(at - bytes), device: DevicePtr::new(at), bytes }
        });
        let batches = batches(&moves);
        assert_eq!(
            batches.iter().map(|batch| batch.bytes as u64).collect::<Vec<_>>(),
            [chunk, chunk, chunk, chunk, 10]
        );
        let mut next = 4096;
        for piece in batches.iter().flat_map(|batch| &batch.moves) {
            let offset = piece.host.address as u64 - next;
            assert_eq!((offset, piece.bytes > 0), (0, true));
            next += piece.bytes;
        }
        assert_eq!(next, at);
    }
}
