//! What every device checks of a launch before it resolves an address.

use std::fmt::Debug;

use super::{Geometry, SPAN_TOKENS};
use crate::device::{DeviceRange, Stream};
use crate::error::DeviceError;

/// Largest `head_dim`.
pub(crate) const HEAD_DIM_MAX: u32 = 256;
/// More heads than this are a damaged geometry.
const HEADS_MAX: u32 = 1 << 16;

pub(crate) fn shape(what: &'static str, problem: String) -> DeviceError {
    DeviceError::Shape { what, problem }
}

/// Checks what all kernels need. Errors: [`DeviceError::Shape`].
pub(crate) fn check_launch(what: &'static str, stream: Stream, geometry: &Geometry) -> Result<(), DeviceError> {
    let Geometry { heads, kv_heads, head_dim, block_tokens, .. } = *geometry;
    if stream != Stream::Compute {
        return Err(shape(what, format!("{stream:?} takes copies only")));
    }
    if kv_heads == 0 || heads == 0 || heads > HEADS_MAX || !heads.is_multiple_of(kv_heads) {
        return Err(shape(what, format!("{heads} query heads over {kv_heads} KV heads")));
    }
    if head_dim == 0 || !head_dim.is_multiple_of(16) || head_dim > HEAD_DIM_MAX {
        return Err(shape(what, format!("a head of {head_dim} channels")));
    }
    if !block_tokens.is_power_of_two() || !(16..=1 << 16).contains(&block_tokens) {
        return Err(shape(what, format!("blocks of {block_tokens} tokens")));
    }
    Ok(())
}

/// Checks what closed blocks need besides. Errors: [`DeviceError::Shape`].
pub(crate) fn check_closed(what: &'static str, geometry: &Geometry) -> Result<(), DeviceError> {
    if !geometry.block_tokens.is_multiple_of(SPAN_TOKENS) {
        return Err(shape(what, format!("closed blocks of {} tokens", geometry.block_tokens)));
    }
    Ok(())
}

/// Size and alignment of a section. Errors: shape.
pub(crate) fn check_section(
    what: &'static str,
    block: usize,
    (offset, bytes): (u64, u64),
    expected: u64,
    alignment: u64,
) -> Result<(), DeviceError> {
    if bytes != expected || !offset.is_multiple_of(alignment) {
        return Err(shape(what, format!("section {block} of {bytes} bytes at {offset}, expected {expected} aligned")));
    }
    Ok(())
}

/// Refuses a launch in which two workers would write the same bytes. Errors: shape.
pub(crate) fn check_disjoint(what: &'static str, targets: Vec<DeviceRange>) -> Result<(), DeviceError> {
    check_apart(what, targets, |range| (range.buffer, range.offset, range.bytes))
}

/// The same for any ranges: `place` is what a range lies in, its offset there and its bytes.
pub(crate) fn check_apart<Range: Debug, In: Ord>(
    what: &'static str,
    mut targets: Vec<Range>,
    place: impl Fn(&Range) -> (In, u64, u64),
) -> Result<(), DeviceError> {
    targets.sort_unstable_by_key(&place);
    let overlap = |pair: &&[Range]| {
        let ((first, offset, bytes), (second, start, length)) = (place(&pair[0]), place(&pair[1]));
        first == second && offset + bytes > start && length > 0
    };
    match targets.windows(2).find(overlap) {
        Some(pair) => Err(shape(what, format!("targets {:?} and {:?} overlap", pair[0], pair[1]))),
        None => Ok(()),
    }
}

pub(crate) fn missing(what: &'static str, block: usize) -> DeviceError {
    shape(what, format!("section {block} is not there"))
}
