//! Finds out whether there is a driver, without ever panicking.

use std::panic::catch_unwind;

use cudarc::driver::{CudaContext, sys};

use crate::error::DeviceError;

/// The number of devices that the driver offers, at least 1. Errors: [`DeviceError::Unavailable`] without driver or device.
///
/// Loads libcuda, which stays loaded. cudarc panics when a driver lacks a symbol (a stub library, as build images carry);
/// that is caught here, so later calls know that the library is a driver.
pub fn probe() -> Result<u32, DeviceError> {
    let unavailable = |reason: String| DeviceError::Unavailable { kind: "cuda", reason };
    // SAFETY: only opens and closes libraries by the driver's names; their constructors run, as in any use of CUDA.
    if !unsafe { sys::is_culib_present() } {
        return Err(unavailable("no CUDA driver library (libcuda) is installed".to_owned()));
    }
    // The text of an error is fetched from the driver too, so it is made inside.
    let count = catch_unwind(|| CudaContext::device_count().map_err(|error| error.to_string()))
        .map_err(|_| unavailable("the libcuda that was found is not a working driver".to_owned()))?;
    match count.map(u32::try_from) {
        Ok(Ok(0) | Err(_)) => Err(unavailable("the CUDA driver offers no device".to_owned())),
        Ok(Ok(count)) => Ok(count),
        Err(reason) => Err(unavailable(reason)),
    }
}
