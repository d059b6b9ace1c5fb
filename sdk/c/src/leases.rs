//! Blocks read where they lie in the daemon's memory.

use kvtier_sdk::plugin::{Leased, Leases};

use crate::client::give;
use crate::codes::kvtier_code;
use crate::guard::{Failure, guard};

/// Blocks that are leased: the longest run that was there.
pub struct kvtier_leases {
    blocks: Vec<Leased>,
}

impl kvtier_leases {
    pub(crate) fn new(leases: Leases) -> kvtier_leases {
        kvtier_leases { blocks: leases.blocks }
    }
}

/// # Safety
/// `leases` is null or was not released.
unsafe fn leased<'a>(leases: *const kvtier_leases, block: usize) -> Result<&'a Leased, Failure> {
    // SAFETY: the caller's promise.
    let leases = unsafe { leases.as_ref() };
    let leases = leases.ok_or_else(|| Failure::usage("failed to use what was given: the leases are null"))?;
    let none = || Failure::usage(format!("failed to use what was given: block {block} of {}", leases.blocks.len()));
    leases.blocks.get(block).ok_or_else(none)
}

/// Blocks that are leased; 0 for null.
///
/// # Safety
/// `leases` is null or was not released.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_leases_count(leases: *const kvtier_leases) -> usize {
    // SAFETY: the caller's promise.
    unsafe { leases.as_ref() }.map_or(0, |leases| leases.blocks.len())
}

/// Where a block lies: layers, one after the other. Readable until the leases are released, never writable; what is read is the
/// block only if `kvtier_lease_is_current` says so
/// afterwards.
///
/// # Safety
/// `leases` was not released; `address` and `bytes` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_lease_payload(
    leases: *const kvtier_leases,
    block: usize,
    address: *mut *const u8,
    bytes: *mut u64,
) -> kvtier_code {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe {
            let (first, length) = leased(leases, block)?.payload()?;
            give(address, first)?;
            give(bytes, length)
        }
    })
}

/// Copies bytes of a block, and tells whether they are the block's.
///
/// # Safety
/// `leases` was not released; `bytes` bytes may be written to `target`, and `is_current` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_lease_read(
    leases: *const kvtier_leases,
    block: usize,
    offset: u64,
    target: *mut u8,
    bytes: usize,
    is_current: *mut bool,
) -> kvtier_code {
    guard(|| {
        // SAFETY: the caller's promise.
        let leased = unsafe { leased(leases, block)? };
        let (_, length) = leased.payload()?;
        let is_inside = offset.checked_add(bytes as u64).is_some_and(|end| end <= length);
        if !is_inside || target.is_null() || is_current.is_null() {
            let reason =
                format!("failed to use what was given: {offset}+{bytes} of a block of {length} bytes, or null");
            return Err(Failure::usage(reason));
        }
        // SAFETY: the caller's promise.
        unsafe {
            // Memory that was never written is no slice for the language until it is.
            target.write_bytes(0, bytes);
            give(is_current, leased.read(offset, std::slice::from_raw_parts_mut(target, bytes))?)
        }
    })
}

/// True when all that was read of a block so far is the block. To be asked after the last read.
///
/// # Safety
/// `leases` is null or was not released.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_lease_is_current(leases: *const kvtier_leases, block: usize) -> bool {
    let mut is_current = false;
    guard(|| {
        // SAFETY: the caller's promise.
        is_current = unsafe { leased(leases, block)? }.is_current();
        Ok(())
    });
    is_current
}

/// Gives leases back, with the client's next call. Null is nothing.
///
/// # Safety
/// `leases` is null or was not released; neither it nor memory that it showed is used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_leases_release(leases: *mut kvtier_leases) {
    if !leases.is_null() {
        // SAFETY: the caller's promise: `kvtier_result_take_leases` gave the box.
        let leases = unsafe { Box::from_raw(leases) };
        guard(|| {
            drop(leases);
            Ok(())
        });
    }
}
