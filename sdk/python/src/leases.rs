//! `Leases` and `Lease`: blocks read where they lie in the daemon's memory.
#![expect(unsafe_code, reason = "the buffer protocol")]

use std::ffi::c_int;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use kvtier_sdk::plugin::{self, Leased, PluginError};
use pyo3::exceptions::{PyIndexError, PyNotImplementedError};
use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyList, PyRange, PyRangeMethods, PyTuple};
use pyo3::{Bound, PyAny, ffi};

use crate::buffer::{self, Memory};
use crate::dlpack;
use crate::error::{raise, usage};
use crate::slabs::{Slabs, blocks_of};

/// One block that is leased.
#[pyclass(frozen, module = "kvtier")]
pub(crate) struct Lease {
    /// `None` once it was given back. What looks at its memory keeps a share of its own.
    leased: Mutex<Option<Arc<Leased>>>,
    tier: &'static str,
}

impl Lease {
    fn leased(&self, py: Python<'_>) -> PyResult<Arc<Leased>> {
        let leased = self.leased.lock().unwrap_or_else(PoisonError::into_inner).clone();
        leased.ok_or_else(|| raise(py, &PluginError::Closed))
    }

    fn memory(py: Python<'_>, leased: &Leased) -> PyResult<Memory> {
        let (address, bytes) = leased.payload().map_err(|error| raise(py, &error))?;
        Ok(Memory { address: address.cast_mut(), bytes, is_writable: false })
    }

    fn give_back(&self) {
        drop(self.leased.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

#[pymethods]
impl Lease {
    /// Where the daemon found it: `host` or `disk`.
    #[getter]
    fn tier(&self) -> &'static str {
        self.tier
    }

    /// Bytes of the block: layers, one after the other.
    #[getter]
    fn nbytes(&self, py: Python<'_>) -> PyResult<u64> {
        let leased = self.leased(py)?;
        Ok(Lease::memory(py, &leased)?.bytes)
    }

    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.nbytes(py)? as usize)
    }

    /// True when all that was read of it so far is the block. To be asked after the last read.
    fn is_current(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.leased(py)?.is_current())
    }

    /// The bytes of one layer, read-only.
    fn layer<'py>(slf: &Bound<'py, Self>, layer: usize) -> PyResult<Bound<'py, PyAny>> {
        let leased = slf.get().leased(slf.py())?;
        if layer >= leased.layers() as usize {
            return Err(PyIndexError::new_err(format!("layer {layer} of {}", leased.layers())));
        }
        buffer::part(slf.as_any(), layer as u64 * leased.layer_bytes(), leased.layer_bytes())
    }

    /// Gives the lease back, as soon as nothing looks at its memory any more.
    fn release(&self) {
        self.give_back();
    }

    #[pyo3(signature = (*, stream = None, max_version = None, dl_device = None, copy = None))]
    fn __dlpack__<'py>(
        &self,
        py: Python<'py>,
        stream: Option<Bound<'py, PyAny>>,
        max_version: Option<(u32, u32)>,
        dl_device: Option<(i32, i32)>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        // Memory of the host has no streams.
        drop(stream);
        if dl_device.is_some_and(|device| device != CPU) || copy == Some(true) {
            return Err(PyNotImplementedError::new_err("a leased block is shown where it lies, and not copied"));
        }
        let leased = self.leased(py)?;
        dlpack::give(py, Lease::memory(py, &leased)?, Box::new(leased), max_version)
    }

    fn __dlpack_device__(&self) -> (i32, i32) {
        CPU
    }

    unsafe fn __getbuffer__(slf: Bound<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        let leased = slf.get().leased(slf.py())?;
        let memory = Lease::memory(slf.py(), &leased)?;
        // SAFETY: the interpreter's view; the memory is mapped as long as the leased block lives, which the view keeps.
        unsafe { buffer::fill(view, flags, slf.into_any(), memory, Box::new(leased)) }
    }

    unsafe fn __releasebuffer__(&self, view: *mut ffi::Py_buffer) {
        // SAFETY: the interpreter releases what `__getbuffer__` filled, once.
        unsafe { buffer::release(view) };
    }
}

/// `kDLCPU`, device 0.
const CPU: (i32, i32) = (1, 0);

/// The longest run that was there, leased until the `with` block ends.
#[pyclass(frozen, sequence, module = "kvtier")]
pub(crate) struct Leases {
    leases: Vec<Py<Lease>>,
    miss: Option<&'static str>,
}

impl Leases {
    pub(crate) fn new(py: Python<'_>, leases: plugin::Leases) -> PyResult<Leases> {
        let miss = leases.miss.map(|miss| miss.name());
        let one = |leased: Leased| {
            let tier = leased.tier().name();
            Py::new(py, Lease { leased: Mutex::new(Some(Arc::new(leased))), tier })
        };
        Ok(Leases { leases: leases.blocks.into_iter().map(one).collect::<PyResult<_>>()?, miss })
    }
}

#[pymethods]
impl Leases {
    /// Why the next block is not there; `None` when all are.
    #[getter]
    fn miss(&self) -> Option<&'static str> {
        self.miss
    }

    fn __len__(&self) -> usize {
        self.leases.len()
    }

    fn __getitem__(&self, py: Python<'_>, index: isize) -> PyResult<Py<Lease>> {
        at(&self.leases, index).map(|lease| lease.clone_ref(py))
    }

    fn __iter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyIterator>> {
        iterator(py, &self.leases)
    }

    /// Copies layers of the blocks into an engine's; how many of the blocks, from the first one on, are whole in these.
    #[pyo3(signature = (slabs, blocks, *, layers = None))]
    fn load(
        &self,
        py: Python<'_>,
        slabs: &Slabs,
        blocks: &Bound<'_, PyAny>,
        layers: Option<&Bound<'_, PyRange>>,
    ) -> PyResult<usize> {
        let leased = self.leases.iter().map(|lease| lease.get().leased(py)).collect::<PyResult<Vec<_>>>()?;
        let Some(first) = leased.first() else {
            return Ok(0);
        };
        let layers = layers.map_or(Ok(0..first.layers()), |layers| run_of(py, layers))?;
        let chunk = (first.layer_bytes() / slabs.slabs().block_bytes()) as usize;
        let blocks = blocks_of(py, blocks, leased.len(), chunk)?;
        if chunk == 0 {
            return Err(usage(py, "slabs whose blocks are longer than stored ones"));
        }
        let load = || -> Result<usize, PluginError> {
            for (whole, (leased, blocks)) in leased.iter().zip(blocks.chunks(chunk)).enumerate() {
                if !leased.load(slabs.slabs(), blocks, layers.clone())? {
                    return Ok(whole);
                }
            }
            Ok(leased.len())
        };
        py.detach(load).map_err(|error| raise(py, &error))
    }

    /// Gives all of them back.
    fn release(&self) {
        self.leases.iter().for_each(|lease| lease.get().give_back());
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_raised))]
    fn __exit__(&self, _raised: &Bound<'_, PyTuple>) {
        self.release();
    }
}

/// Layers that follow each other.
fn run_of(py: Python<'_>, layers: &Bound<'_, PyRange>) -> PyResult<Range<u32>> {
    let (start, stop, step) = (layers.start()?, layers.stop()?, layers.step()?);
    let layer = |number: isize| u32::try_from(number).ok();
    let run = layer(start).zip(layer(stop)).map(|(start, stop)| start..stop).filter(|_| step == 1);
    run.ok_or_else(|| usage(py, "layers that do not follow each other"))
}

/// An item, counted from the end where the index is negative.
pub(crate) fn at<T>(items: &[T], index: isize) -> PyResult<&T> {
    let index = if index < 0 { items.len().checked_add_signed(index) } else { Some(index as usize) };
    index.and_then(|index| items.get(index)).ok_or_else(|| PyIndexError::new_err("there are no more blocks"))
}

/// An iterator over objects of ours.
pub(crate) fn iterator<'py, T: pyo3::PyClass>(py: Python<'py>, items: &[Py<T>]) -> PyResult<Bound<'py, PyIterator>> {
    PyList::new(py, items.iter().map(|item| item.clone_ref(py)))?.try_iter()
}
