//! Whether the device still works, and telling the caller once why it does not.

use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::{DriverError, sys::CUresult};

use crate::error::DeviceError;

/// CUDA errors of enqueued work are sticky: every later call of the context fails with them. So the first driver error is
/// told once, by whichever call sees it, and everything after it is [`DeviceError::Lost`].
pub(super) struct Health(Mutex<State>);

enum State {
    Works,
    /// Failed where nobody could be told.
    Untold(DeviceError),
    Lost,
}

impl Health {
    pub(super) fn new() -> Health {
        Health(Mutex::new(State::Works))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails when the device has failed before.
    pub(super) fn check(&self) -> Result<(), DeviceError> {
        let mut state = self.state();
        match std::mem::replace(&mut *state, State::Lost) {
            State::Works => {
                *state = State::Works;
                Ok(())
            }
            State::Untold(error) => Err(error),
            State::Lost => Err(DeviceError::Lost),
        }
    }

    /// Passes a driver call's result on; its first error ends the device.
    pub(super) fn told<T>(&self, what: &'static str, result: Result<T, DriverError>) -> Result<T, DeviceError> {
        result.map_err(|error| {
            let mut state = self.state();
            match std::mem::replace(&mut *state, State::Lost) {
                State::Works => describe(what, error),
                State::Untold(first) => first,
                State::Lost => DeviceError::Lost,
            }
        })
    }

    /// Like [`Health::told`] where there is no caller to tell: the next one is.
    pub(super) fn untold(&self, what: &'static str, result: Result<(), DriverError>) {
        if let Err(error) = result {
            let mut state = self.state();
            if matches!(*state, State::Works) {
                *state = State::Untold(describe(what, error));
            }
        }
    }
}

/// The error without any effect on the device's health.
pub(super) fn describe(what: &'static str, error: DriverError) -> DeviceError {
    DeviceError::Driver { what, reason: error.to_string() }
}

/// Whether an error says only that there was not enough memory.
pub(super) fn is_out_of_memory(error: DriverError) -> bool {
    error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY
}
