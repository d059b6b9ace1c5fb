//! `Reservations` and `Place`: blocks written where the daemon takes them from.
//!
//! A place's memory is used again after its commit. So nothing may look at it any longer then: a commit with views left is
//! refused, and places that are given up
//! while something looks at them are kept until nothing does.
#![expect(unsafe_code, reason = "the buffer protocol")]

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvtier_sdk::plugin::{self, PlaceState};
use pyo3::exceptions::{PyBufferError, PyIndexError};
use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyTuple};
use pyo3::{Bound, PyAny, ffi};

use crate::buffer::{self, Memory};
use crate::error::{raise, usage};
use crate::leases::{at, iterator};

/// What places of one call share.
struct Shared {
    reservations: Mutex<plugin::Reservations>,
    /// Views of its memory.
    views: AtomicUsize,
    /// True once they are to be given up when the last view goes.
    is_given_up: AtomicBool,
    layers: u32,
    layer_bytes: u64,
}

impl Shared {
    fn reservations(&self) -> MutexGuard<'_, plugin::Reservations> {
        self.reservations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives up what is still reserved, now or with the last view.
    fn give_up(&self) {
        self.is_given_up.store(true, Ordering::SeqCst);
        if self.views.load(Ordering::SeqCst) == 0 {
            // Without a daemon they ended with the connection.
            let _ = self.reservations().abort();
        }
    }
}

/// A view's share.
struct Viewed(Arc<Shared>);

impl Drop for Viewed {
    fn drop(&mut self) {
        let was_last = self.0.views.fetch_sub(1, Ordering::SeqCst) == 1;
        if was_last && self.0.is_given_up.load(Ordering::SeqCst) {
            let _ = self.0.reservations().abort();
        }
    }
}

/// A place for one block.
#[pyclass(frozen, module = "kvtier")]
pub(crate) struct Place {
    shared: Arc<Shared>,
    index: usize,
}

#[pymethods]
impl Place {
    /// `reserved`, or what became of the block.
    #[getter]
    fn state(&self) -> &'static str {
        let reservations = self.shared.reservations();
        reservations.states().nth(self.index).map_or("unknown", PlaceState::name)
    }

    /// Bytes of the block; 0 unless it is reserved.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.shared.reservations().payload(self.index).map_or(0, |(_, bytes)| bytes)
    }

    fn __len__(&self) -> usize {
        self.nbytes() as usize
    }

    /// The bytes of one layer, to be written.
    fn layer<'py>(slf: &Bound<'py, Self>, layer: usize) -> PyResult<Bound<'py, PyAny>> {
        let shared = &slf.get().shared;
        if layer >= shared.layers as usize {
            return Err(PyIndexError::new_err(format!("layer {layer} of {}", shared.layers)));
        }
        buffer::part(slf.as_any(), layer as u64 * shared.layer_bytes, shared.layer_bytes)
    }

    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let shared = Arc::clone(&slf.get().shared);
        let payload = shared.reservations().payload(slf.get().index);
        let payload = payload.filter(|_| !shared.is_given_up.load(Ordering::SeqCst));
        let (address, bytes) =
            payload.ok_or_else(|| PyBufferError::new_err("this place is not reserved, or not any more"))?;
        shared.views.fetch_add(1, Ordering::SeqCst);
        let memory = Memory { address, bytes, is_writable: true };
        // SAFETY: the interpreter's view; staging memory is mapped as long as the reservations live, which the view keeps.
        unsafe { buffer::fill(view, flags, slf.into_any(), memory, Box::new(Viewed(shared))) }
    }

    unsafe fn __releasebuffer__(&self, view: *mut ffi::Py_buffer) {
        // SAFETY: the interpreter releases what `__getbuffer__` filled, once.
        unsafe { buffer::release(view) };
    }
}

/// Places for a run of blocks. What is reserved at the end of the `with` block is given up.
#[pyclass(frozen, sequence, module = "kvtier")]
pub(crate) struct Reservations {
    shared: Arc<Shared>,
    places: Vec<Py<Place>>,
}

impl Reservations {
    pub(crate) fn new(
        py: Python<'_>,
        reservations: plugin::Reservations,
        layers: u32,
        layer_bytes: u64,
    ) -> PyResult<Reservations> {
        let count = reservations.states().len();
        let shared = Arc::new(Shared {
            reservations: Mutex::new(reservations),
            views: AtomicUsize::new(0),
            is_given_up: AtomicBool::new(false),
            layers,
            layer_bytes,
        });
        let place = |index| Py::new(py, Place { shared: Arc::clone(&shared), index });
        let places = (0..count).map(place).collect::<PyResult<_>>()?;
        Ok(Reservations { shared, places })
    }
}

#[pymethods]
impl Reservations {
    fn __len__(&self) -> usize {
        self.places.len()
    }

    fn __getitem__(&self, py: Python<'_>, index: isize) -> PyResult<Py<Place>> {
        at(&self.places, index).map(|place| place.clone_ref(py))
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        iterator(py, &self.places)
    }

    /// Hands all places over that are reserved, each of them filled, and tells what became of each block. Errors: `BufferError`
    /// while something still looks at a place.
    fn commit(&self, py: Python<'_>) -> PyResult<Vec<&'static str>> {
        if self.shared.is_given_up.load(Ordering::SeqCst) {
            return Err(usage(py, "places that were given up"));
        }
        if self.shared.views.load(Ordering::SeqCst) > 0 {
            return Err(PyBufferError::new_err(
                "something still looks at a place (a memoryview, an array): its memory is used again after the commit",
            ));
        }
        let outcomes = py.detach(|| self.shared.reservations().commit()).map_err(|error| raise(py, &error))?;
        Ok(outcomes.into_iter().map(plugin::Outcome::name).collect())
    }

    /// Gives up all that is still reserved.
    fn abort(&self, py: Python<'_>) {
        py.detach(|| self.shared.give_up());
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_raised))]
    fn __exit__(&self, py: Python<'_>, _raised: &Bound<'_, PyTuple>) {
        self.abort(py);
    }
}
