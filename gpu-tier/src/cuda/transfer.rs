//! Copies between host extents and device memory: one kernel launch or one driver copy a piece, decided in [`choose`].

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaStream, DriverError, sys};

use super::address::DevicePtr;
use super::extent::HostPlace;
use super::kernels::gather::{Descriptor, Gather, targets_are_apart};
use super::staging::Staging;

/// Which way a copy goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Host to device.
    In,
    /// Device to host.
    Out,
}

/// One piece whose ranges have been checked.
#[derive(Clone, Copy)]
pub(super) struct Move {
    pub(super) host: HostPlace,
    pub(super) device: DevicePtr,
    pub(super) bytes: u64,
}

/// How a list of pieces is copied.
enum Way<'a> {
    /// One kernel reads or writes the mapped host memory.
    Launch(Gather<'a>, Vec<Descriptor>),
    /// The copy engine does each piece.
    EachPiece,
}

/// The one place that decides: the kernel where there is one, every extent is pinned (a kernel cannot reach pageable memory),
/// there is more than one piece, and the order of the pieces cannot matter; driver copies otherwise.
fn choose<'a>(gather: Option<Gather<'a>>, direction: Direction, moves: &[Move]) -> Way<'a> {
    let Some(gather) = gather.filter(|_| moves.len() > 1) else {
        return Way::EachPiece;
    };
    let mut list = Vec::with_capacity(moves.len());
    for piece in moves {
        let Some(host) = piece.host.mapped else {
            return Way::EachPiece;
        };
        let (source, target) = match direction {
            Direction::In => (host, piece.device),
            Direction::Out => (piece.device, host),
        };
        list.push(Descriptor { source, target, bytes: piece.bytes });
    }
    if targets_are_apart(&list) { Way::Launch(gather, list) } else { Way::EachPiece }
}

/// Enqueues the copies of `moves` on `stream`.
///
/// The caller vouches for the ranges: they stay valid until the stream has done the work.
pub(super) fn enqueue(
    stream: &Arc<CudaStream>,
    gather: Option<Gather<'_>>,
    staging: &Mutex<Staging>,
    direction: Direction,
    moves: &[Move],
) -> Result<(), DriverError> {
    match choose(gather, direction, moves) {
        Way::Launch(gather, list) => {
            let mut staging = staging.lock().unwrap_or_else(PoisonError::into_inner);
            gather.launch(stream, &mut staging, &list)
        }
        Way::EachPiece => moves.iter().try_for_each(|piece| copy_piece(stream, direction, piece)),
    }
}

/// One driver copy. From pageable memory the driver stages the bytes at once or reads them in stream order, as it likes: both
/// are right, because only copies out change host bytes in stream order, and one to pageable memory is waited for here. (The
/// driver may wait by itself; since CUDA 12 its documentation does not promise it.)
fn copy_piece(stream: &CudaStream, direction: Direction, piece: &Move) -> Result<(), DriverError> {
    let pageable = piece.host.mapped.is_none();
    let bytes = usize::try_from(piece.bytes).expect("inside a mapped extent");
    match direction {
        // SAFETY: the caller of `enqueue` vouches for both ranges. The host's stays mapped as long as the device has the
        // extent; the driver reads it through a raw pointer, since others may write it.
        Direction::In => unsafe {
            sys::cuMemcpyHtoDAsync_v2(piece.device.raw(), piece.host.address.cast(), bytes, stream.cu_stream())
        },
        // SAFETY: as above.
        Direction::Out => unsafe {
            sys::cuMemcpyDtoHAsync_v2(piece.host.address.cast(), piece.device.raw(), bytes, stream.cu_stream())
        },
    }
    .result()?;
    if pageable && direction == Direction::Out {
        stream.synchronize()?;
    }
    Ok(())
}
