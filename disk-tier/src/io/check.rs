//! What every medium refuses before it touches a file.

use rustix::io::Errno;

use super::{ALIGN_BYTES, IoError, Kind, Memory, Operation};

/// Longest range of one operation: the kernel moves at most 2 GiB less a page in one call.
pub(super) const OPERATION_BYTES_MAX: u64 = 1 << 30;

pub(super) fn errno(errno: Errno) -> IoError {
    IoError::Errno(errno.raw_os_error())
}

/// An operation that is not aligned, moves nothing, or whose range does not lie in its memory is EINVAL. A sync has neither range nor
/// memory to look at.
pub(super) fn operation(op: &Operation) -> Result<(), IoError> {
    if op.kind == Kind::Sync {
        return Ok(());
    }
    let aligned = |value: u64| value.is_multiple_of(ALIGN_BYTES);
    let range = &op.range;
    let lent = match &op.memory {
        Memory::Owned(_) => true,
        Memory::Lent { region, offset, .. } => aligned(*offset) && aligned(region.address() as u64),
    };
    let fits = range.start < range.end
        && range.end - range.start <= OPERATION_BYTES_MAX
        && range.end <= op.memory.as_slice().len() as u64;
    let ends =
        op.offset.checked_add(range.end.saturating_sub(range.start)).is_some_and(|end| i64::try_from(end).is_ok());
    if aligned(op.offset) && aligned(range.start) && aligned(range.end) && lent && fits && ends {
        Ok(())
    } else {
        Err(errno(Errno::INVAL))
    }
}

/// A write past the end of its file is EFBIG: files never grow while running.
pub(super) fn write_end(op: &Operation, file_bytes: u64) -> Result<(), IoError> {
    let past_end = op.kind == Kind::Write && op.offset + (op.range.end - op.range.start) > file_bytes;
    if past_end { Err(errno(Errno::FBIG)) } else { Ok(()) }
}
