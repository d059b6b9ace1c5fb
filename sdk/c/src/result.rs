//! What became of a call.

use std::ffi::{CString, c_char};

use kvtier_sdk::plugin::{Found, Leases, Outcome, Reservations};

use crate::codes::{kvtier_code, kvtier_outcome, kvtier_tier, miss_of, outcome_of, tier_of};
use crate::guard::{Failure, text};
use crate::leases::kvtier_leases;
use crate::places::kvtier_places;
use crate::worker::SharedWorker;

/// What a call that was done gives.
pub(crate) enum Done {
    /// Only that it was done.
    Nothing,
    /// So many blocks.
    Count(u32),
    Found(Found),
    Leases(Leases),
    Places(Reservations, SharedWorker),
    Outcomes(Vec<Outcome>),
    Text(String),
}

/// What became of a call; freed with `kvtier_result_free`.
pub struct kvtier_result {
    op: u64,
    code: kvtier_code,
    message: CString,
    count: usize,
    tiers: Vec<kvtier_tier>,
    miss: u32,
    outcomes: Vec<kvtier_outcome>,
    text: CString,
    leases: Option<Box<kvtier_leases>>,
    places: Option<Box<kvtier_places>>,
}

impl kvtier_result {
    pub(crate) fn new(op: u64, done: Result<Done, Failure>) -> kvtier_result {
        let mut result = kvtier_result {
            op,
            code: kvtier_code::KVTIER_OK,
            message: CString::default(),
            count: 0,
            tiers: Vec::new(),
            miss: 0,
            outcomes: Vec::new(),
            text: CString::default(),
            leases: None,
            places: None,
        };
        match done {
            Ok(Done::Nothing) => {}
            Ok(Done::Count(count)) => result.count = count as usize,
            Ok(Done::Found(found)) => {
                result.tiers = found.tiers.into_iter().map(tier_of).collect();
                result.miss = miss_of(found.miss);
            }
            Ok(Done::Leases(leases)) => {
                result.tiers = leases.blocks.iter().map(|leased| tier_of(leased.tier())).collect();
                result.miss = miss_of(leases.miss);
                result.leases = Some(Box::new(kvtier_leases::new(leases)));
            }
            Ok(Done::Places(reservations, worker)) => {
                result.outcomes = reservations.states().map(crate::codes::state_of).collect();
                result.places = Some(Box::new(kvtier_places::new(reservations, worker)));
            }
            Ok(Done::Outcomes(outcomes)) => result.outcomes = outcomes.into_iter().map(outcome_of).collect(),
            Ok(Done::Text(json)) => result.text = text(&json),
            Err(failure) => (result.code, result.message) = (failure.code, text(&failure.message)),
        }
        result
    }

    #[cfg(test)]
    pub(crate) fn op(&self) -> u64 {
        self.op
    }

    #[cfg(test)]
    pub(crate) fn code(&self) -> kvtier_code {
        self.code
    }
}

/// Something of a result; a value of its own for null.
///
/// # Safety
/// `result` is null or a result that was not freed.
unsafe fn of<T>(result: *const kvtier_result, none: T, take: impl FnOnce(&kvtier_result) -> T) -> T {
    // SAFETY: the caller's promise.
    unsafe { result.as_ref() }.map_or(none, take)
}

/// The number that its submission gave; 0 for null.
///
/// # Safety
/// `result` is null or a result that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_result_op(result: *const kvtier_result) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { of(result, 0, |result| result.op) }
}

/// How the call ended.
///
/// # Safety
/// `result` is null or a result that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_result_code(result: *const kvtier_result) -> kvtier_code {
    // SAFETY: the caller's promise.
    unsafe { of(result, kvtier_code::KVTIER_USAGE, |result| result.code) }
}

/// Why it failed: one sentence in UTF-8, empty when it was done. Good until the result is freed.
///
/// # Safety
/// `result` is null or a result that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_result_message(result: *const kvtier_result) -> *const c_char {
    // SAFETY: the caller's promise.
    unsafe { of(result, c"".as_ptr(), |result| result.message.as_ptr()) }
}

/// Of a lookup, load or acquire: blocks of the longest run that was there. Of a prefetch: those that are in memory or on their way. Of a store,
/// reserve or commit: blocks that it was about.
///
/// # Safety
/// `result` is null or a result that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_result_count(result: *const kvtier_result) -> usize {
    // SAFETY: the caller's promise.
    unsafe { of(result, 0, |result| result.count.max(result.tiers.len()).max(result.outcomes.len())) }
}

/// Of a lookup, load or acquire: where a block of the run was found.
///
/// # Safety
/// `result` is null or a result that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_result_tier(result: *const kvtier_result, block: usize) -> kvtier_tier {
    let none = kvtier_tier::KVTIER_TIER_NONE;
    // SAFETY: the caller's promise.
    unsafe { of(result, none, |result| result.tiers.get(block).copied().unwrap_or(none)) }
}

/// Of a lookup, load or acquire: why the next block is not there, a miss reason of docs/protocol.md; 0 when all are.
///
/// # Safety
/// `result` is null or a result that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_result_miss(result: *const kvtier_result) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { of(result, 0, |result| result.miss) }
}

/// Of a store or commit: what became of a block. Of a reserve: how its place stood then.
///
/// # Safety
/// `result` is null or a result that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_result_outcome(result: *const kvtier_result, block: usize) -> kvtier_outcome {
    let none = kvtier_outcome::KVTIER_OUTCOME_NONE;
    // SAFETY: the caller's promise.
    unsafe { of(result, none, |result| result.outcomes.get(block).copied().unwrap_or(none)) }
}

/// Of stats: the daemon's statistics, of explain: what it tells of the request, as JSON in UTF-8; else empty. Good until the result is freed.
///
/// # Safety
/// `result` is null or a result that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_result_text(result: *const kvtier_result) -> *const c_char {
    // SAFETY: the caller's promise.
    unsafe { of(result, c"".as_ptr(), |result| result.text.as_ptr()) }
}

/// Of an acquire: its leases, once; null then and else. They are the caller's, who frees them with `kvtier_leases_release`.
///
/// # Safety
/// `result` is null or a result that was not freed, and nobody else uses it meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_result_take_leases(result: *mut kvtier_result) -> *mut kvtier_leases {
    // SAFETY: the caller's promise.
    let leases = unsafe { result.as_mut() }.and_then(|result| result.leases.take());
    leases.map_or(std::ptr::null_mut(), Box::into_raw)
}

/// Of a reserve: its places, once; null then and else. They are the caller's, who frees them with `kvtier_places_free`.
///
/// # Safety
/// `result` is null or a result that was not freed, and nobody else uses it meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_result_take_places(result: *mut kvtier_result) -> *mut kvtier_places {
    // SAFETY: the caller's promise.
    let places = unsafe { result.as_mut() }.and_then(|result| result.places.take());
    places.map_or(std::ptr::null_mut(), Box::into_raw)
}

/// Frees a result, with what was not taken of it. Null is nothing.
///
/// # Safety
/// `result` is null or a result that was not freed; it is not used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_result_free(result: *mut kvtier_result) {
    if !result.is_null() {
        // SAFETY: the caller's promise: `kvtier_poll` made the box.
        let result = unsafe { Box::from_raw(result) };
        crate::guard::guard(|| {
            drop(result);
            Ok(())
        });
    }
}
