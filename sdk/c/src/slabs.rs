//! Where an engine keeps keys and values.

use std::ffi::c_void;
use std::sync::Arc;

use kvtier_sdk::plugin::{Region, Slabs};

use crate::client::give;
use crate::codes::kvtier_code;
use crate::guard::{Failure, guard};

/// In the place of an engine's block in a load: this part of the stored block goes nowhere.
pub const KVTIER_SKIP: u32 = 0xffff_ffff;

const _: () = assert!(KVTIER_SKIP == kvtier_sdk::plugin::SKIP);

/// An engine's memory: one slab a layer. Engine block `b` of a layer is the bytes `[b * stride, b * stride + block_bytes)` of its slab.
pub struct kvtier_slabs(pub(crate) Arc<Slabs>);

/// Describes an engine's memory: `layers` slabs, each at its address and of its length. A stored block's layer is `layer_bytes /
/// block_bytes` engine blocks, one after the
/// other. `stride` 0 is `block_bytes`.
///
/// # Safety
/// `addresses` and `bytes` have `layers` entries; the memory is readable, and writable if `is_writable`, until every call that
/// uses the slabs has ended, and nobody else writes what a call reads,
/// or touches what it writes, meanwhile. `out` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_slabs_new(
    addresses: *const *mut c_void,
    bytes: *const u64,
    layers: usize,
    block_bytes: u64,
    stride: u64,
    is_writable: bool,
    out: *mut *mut kvtier_slabs,
) -> kvtier_code {
    guard(|| {
        // SAFETY: the caller's promise.
        unsafe { give(out, std::ptr::null_mut())? };
        if addresses.is_null() || bytes.is_null() || layers > 1_024 {
            return Err(Failure::usage("failed to use what was given: slabs are null, or more than 1,024"));
        }
        // SAFETY: the caller's promise, for the entries and for the memory behind them.
        let region = |at: usize| unsafe { Region::new((*addresses.add(at)).cast::<u8>(), *bytes.add(at)) };
        let regions: Option<Vec<Region>> = (0..layers).map(region).collect();
        let regions = regions.ok_or_else(|| Failure::usage("failed to use what was given: a slab at address 0"))?;
        let stride = if stride == 0 { block_bytes } else { stride };
        let slabs = kvtier_slabs(Arc::new(Slabs::new(regions, block_bytes, stride, is_writable)?));
        // SAFETY: the caller's promise.
        unsafe { give(out, Box::into_raw(Box::new(slabs))) }
    })
}

/// Frees the description. Calls that were submitted with it go on using the memory until they have ended. Null is nothing.
///
/// # Safety
/// `slabs` is null or was not freed; it is not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_slabs_free(slabs: *mut kvtier_slabs) {
    if !slabs.is_null() {
        // SAFETY: the caller's promise: `kvtier_slabs_new` made the box.
        drop(unsafe { Box::from_raw(slabs) });
    }
}
