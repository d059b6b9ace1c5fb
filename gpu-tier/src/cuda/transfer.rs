//! Copies between host extents and device memory: one kernel launch or one driver copy a piece, decided in [`choose`].

use std::sync::{Mutex, PoisonError};

use cudarc::driver::{CudaStream, DriverError, sys};

use super::address::DevicePtr;
use super::extent::HostPlace;
use super::kernels::gather::{Descriptor, Gather, targets_are_apart};
use super::lane::Lane;
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
/// there is more than one piece, and the order of the pieces cannot matter; driver copies otherwise (of pageable memory through `bounce`).
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

impl Move {
    /// Bytes, as the host counts.
    pub(super) fn length(&self) -> usize {
        usize::try_from(self.bytes).expect("inside a mapped extent")
    }

    /// The part that starts `offset` bytes in (at most all) and is at most `most` long.
    pub(super) fn part(&self, offset: u64, most: u64) -> Move {
        let HostPlace { address, mapped } = self.host;
        let distance = usize::try_from(offset).expect("inside a mapped extent");
        let host = HostPlace { address: address.wrapping_add(distance), mapped: mapped.map(|start| start.add(offset)) };
        Move { host, device: self.device.add(offset), bytes: (self.bytes - offset).min(most) }
    }
}

/// Enqueues the copies of `moves` on a lane's stream.
///
/// The caller vouches for the ranges: they stay valid until the stream has done the work.
pub(super) fn enqueue(
    lane: &Lane,
    gather: Option<Gather<'_>>,
    staging: &Mutex<Staging>,
    direction: Direction,
    moves: &[Move],
) -> Result<(), DriverError> {
    let stream = lane.stream();
    match choose(gather, direction, moves) {
        Way::Launch(gather, list) => {
            let mut staging = staging.lock().unwrap_or_else(PoisonError::into_inner);
            gather.launch(stream, &mut staging, &list)
        }
        Way::EachPiece => {
            let is_pinned = |piece: &Move| piece.host.mapped.is_some();
            moves.chunk_by(|one, next| is_pinned(one) == is_pinned(next)).try_for_each(|alike| {
                if is_pinned(&alike[0]) {
                    return alike.iter().try_for_each(|piece| copy_pinned(stream, direction, piece));
                }
                lane.bounce().copy(stream, direction, alike)
            })
        }
    }
}

/// One driver copy of pinned memory.
fn copy_pinned(stream: &CudaStream, direction: Direction, piece: &Move) -> Result<(), DriverError> {
    match direction {
        // SAFETY: the caller of `enqueue` vouches for both ranges. The host's stays mapped as long as the device has the
        // extent; the driver reads it through a raw pointer, since others may write it.
        Direction::In => unsafe {
            sys::cuMemcpyHtoDAsync_v2(piece.device.raw(), piece.host.address.cast(), piece.length(), stream.cu_stream())
        },
        // SAFETY: as above.
        Direction::Out => unsafe {
            sys::cuMemcpyDtoHAsync_v2(piece.host.address.cast(), piece.device.raw(), piece.length(), stream.cu_stream())
        },
    }
    .result()
}
