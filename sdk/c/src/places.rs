//! Blocks written where the daemon takes them from.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvtier_sdk::plugin::Reservations;

use crate::client::give;
use crate::codes::{kvtier_code, kvtier_outcome, state_of};
use crate::guard::{Failure, guard};
use crate::worker::SharedWorker;

/// Places that are shared with a commit under way.
pub(crate) type SharedPlaces = Arc<Mutex<Reservations>>;

/// Places for a run of blocks.
pub struct kvtier_places {
    /// `None` only while it is dropped.
    shared: Option<SharedPlaces>,
    worker: SharedWorker,
}

impl kvtier_places {
    pub(crate) fn new(reservations: Reservations, worker: SharedWorker) -> kvtier_places {
        kvtier_places { shared: Some(Arc::new(Mutex::new(reservations))), worker }
    }

    pub(crate) fn shared(&self) -> SharedPlaces {
        Arc::clone(self.shared.as_ref().expect("it is there until this is dropped"))
    }
}

impl Drop for kvtier_places {
    fn drop(&mut self) {
        // Giving up speaks with the daemon.
        if let Some(shared) = self.shared.take() {
            self.worker.drop_there(Box::new(shared));
        }
    }
}

pub(crate) fn lock(places: &SharedPlaces) -> MutexGuard<'_, Reservations> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}

/// # Safety
/// `places` is null or was not freed.
pub(crate) unsafe fn places<'a>(places: *const kvtier_places) -> Result<&'a kvtier_places, Failure> {
    // SAFETY: the caller's promise.
    unsafe { places.as_ref() }.ok_or_else(|| Failure::usage("failed to use what was given: the places are null"))
}

/// How a place stands: `KVTIER_RESERVED`, or what became of its block. Waits for a commit that is being made.
///
/// # Safety
/// `places` is null or was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_place_state(places: *const kvtier_places, place: usize) -> kvtier_outcome {
    let mut found = kvtier_outcome::KVTIER_OUTCOME_NONE;
    guard(|| {
        // SAFETY: the caller's promise.
        let shared = unsafe { self::places(places)? }.shared();
        found = lock(&shared).states().nth(place).map_or(found, state_of);
        Ok(())
    });
    found
}

/// Where a block is to be written, all of it: layers, one after the other. Writable until its commit is submitted, or the places
/// are freed. `KVTIER_CLOSED` unless the place is
/// reserved.
///
/// # Safety
/// `places` was not freed; `address` and `bytes` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_place_payload(
    places: *const kvtier_places,
    place: usize,
    address: *mut *mut u8,
    bytes: *mut u64,
) -> kvtier_code {
    guard(|| {
        // SAFETY: the caller's promise.
        let shared = unsafe { self::places(places)? }.shared();
        let payload = lock(&shared).payload(place);
        let none =
            || Failure::new(kvtier_code::KVTIER_CLOSED, format!("failed to show place {place}: it is not reserved"));
        let (first, length) = payload.ok_or_else(none)?;
        // SAFETY: the caller's promise.
        unsafe {
            give(address, first)?;
            give(bytes, length)
        }
    })
}

/// Frees places, and gives up those that were not committed, soon. Null is nothing.
///
/// # Safety
/// `places` is null or was not freed; neither it nor memory that it showed is used any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvtier_places_free(places: *mut kvtier_places) {
    if !places.is_null() {
        // SAFETY: the caller's promise: `kvtier_result_take_places` gave the box.
        let places = unsafe { Box::from_raw(places) };
        guard(|| {
            drop(places);
            Ok(())
        });
    }
}
