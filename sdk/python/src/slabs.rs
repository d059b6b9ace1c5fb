//! `Slabs`: where an engine keeps keys and values.
#![expect(unsafe_code, reason = "memory of other objects")]

use kvtier_sdk::plugin::{self, Region, SKIP};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::buffer::Memory;
use crate::dlpack;
use crate::error::{raise, usage};

/// An engine's memory: one slab a layer.
#[pyclass(frozen, module = "kvtier")]
pub(crate) struct Slabs {
    slabs: plugin::Slabs,
    /// What the memory belongs to: held, never asked. Dropped after `slabs`.
    _kept: Vec<Keeper>,
}

/// What keeps a slab's memory where it is.
enum Keeper {
    Buffer { _buffer: PyUntypedBuffer },
    Object { _object: Py<PyAny> },
}

#[pymethods]
impl Slabs {
    #[new]
    #[pyo3(signature = (layers, *, block_bytes, stride = None, writable = true))]
    fn new(
        py: Python<'_>,
        layers: &Bound<'_, PyAny>,
        block_bytes: u64,
        stride: Option<u64>,
        writable: bool,
    ) -> PyResult<Slabs> {
        let (mut regions, mut kept) = (Vec::new(), Vec::new());
        for layer in layers.try_iter()? {
            let (memory, keeper) = memory_of(&layer?)?;
            if writable && !memory.is_writable {
                return Err(usage(
                    py,
                    "a slab that can only be read, in slabs that are to be written (writable=False: only stored from)",
                ));
            }
            // SAFETY: the keeper keeps the memory readable, and writable if it says so, and goes with these slabs. That nobody
            // else uses blocks while a call moves them is the engine's promise
            // (`docs/sdk-python.md`); who breaks it gets torn bytes.
            let region = unsafe { Region::new(memory.address, memory.bytes) };
            regions.push(region.ok_or_else(|| usage(py, "a slab at address 0"))?);
            kept.push(keeper);
        }
        let slabs = plugin::Slabs::new(regions, block_bytes, stride.unwrap_or(block_bytes), writable);
        Ok(Slabs { slabs: slabs.map_err(|error| raise(py, &error))?, _kept: kept })
    }

    /// Blocks that every layer has.
    #[getter]
    fn blocks(&self) -> u32 {
        self.slabs.blocks()
    }

    /// Layers.
    #[getter]
    fn layers(&self) -> u32 {
        self.slabs.layers()
    }

    /// Bytes of a block of one layer.
    #[getter]
    fn block_bytes(&self) -> u64 {
        self.slabs.block_bytes()
    }

    fn __repr__(&self) -> String {
        format!("Slabs({} layers, {} blocks of {} bytes)", self.layers(), self.blocks(), self.block_bytes())
    }
}

impl Slabs {
    pub(crate) fn slabs(&self) -> &plugin::Slabs {
        &self.slabs
    }
}

/// The engine's blocks for so many stored ones of `chunk` each, one after the other; -1 stands for none.
pub(crate) fn blocks_of(py: Python<'_>, blocks: &Bound<'_, PyAny>, stored: usize, chunk: usize) -> PyResult<Vec<u32>> {
    let mut all = Vec::with_capacity(stored * chunk);
    let mut count = 0;
    for one in blocks.try_iter()? {
        let before = all.len();
        for block in one?.try_iter()? {
            let block: i64 = block?.extract()?;
            let number =
                if block == -1 { Some(SKIP) } else { u32::try_from(block).ok().filter(|number| *number != SKIP) };
            all.push(number.ok_or_else(|| usage(py, &format!("block {block}")))?);
        }
        if all.len() - before != chunk {
            return Err(usage(py, &format!("{} blocks for a stored one of {chunk}", all.len() - before)));
        }
        count += 1;
    }
    if count != stored {
        return Err(usage(py, &format!("blocks for {count} of {stored} stored ones")));
    }
    Ok(all)
}

fn memory_of(layer: &Bound<'_, PyAny>) -> PyResult<(Memory, Keeper)> {
    if let Ok(tuple) = layer.cast::<PyTuple>() {
        let (address, bytes, object): (usize, u64, Py<PyAny>) = tuple.extract()?;
        let memory = Memory { address: std::ptr::with_exposed_provenance_mut(address), bytes, is_writable: true };
        return Ok((memory, Keeper::Object { _object: object }));
    }
    match PyUntypedBuffer::get(layer) {
        Ok(buffer) if buffer.is_c_contiguous() => {
            let memory = Memory {
                address: buffer.buf_ptr().cast(),
                bytes: buffer.len_bytes() as u64,
                is_writable: !buffer.readonly(),
            };
            Ok((memory, Keeper::Buffer { _buffer: buffer }))
        }
        Ok(_) => Err(usage(layer.py(), "a slab must be memory in one piece: this buffer has gaps, or another order")),
        Err(_) => {
            let (memory, capsule) = dlpack::take(layer)?;
            Ok((memory, Keeper::Object { _object: capsule.unbind() }))
        }
    }
}
