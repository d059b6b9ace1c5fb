//! `Client`: one connection to one daemon, for blocks of one shape.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cache_core::hash::BlockHash;
use kvtier_sdk::client::ClientSettings;
use kvtier_sdk::plugin::{self, Before, Plugin, PluginError, SharedPlugin};
use kvtier_sdk::socket;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::{raise, usage};
use crate::identity::{Manifest, Stored};
use crate::leases::Leases;
use crate::places::Reservations;
use crate::slabs::{Slabs, blocks_of};

/// What was found, or loaded, of a run of blocks.
#[pyclass(frozen, module = "kvtier")]
pub(crate) struct Found {
    tiers: Vec<&'static str>,
    miss: Option<&'static str>,
}

impl From<plugin::Found> for Found {
    fn from(found: plugin::Found) -> Found {
        Found { tiers: found.tiers.iter().map(|tier| tier.name()).collect(), miss: found.miss.map(|miss| miss.name()) }
    }
}

#[pymethods]
impl Found {
    /// Where each block of the longest run is.
    #[getter]
    fn tiers(&self) -> Vec<&'static str> {
        self.tiers.clone()
    }

    /// Why the next one is not there; `None` when all are.
    #[getter]
    fn miss(&self) -> Option<&'static str> {
        self.miss
    }

    fn __len__(&self) -> usize {
        self.tiers.len()
    }

    fn __repr__(&self) -> String {
        let miss = self.miss.map_or("None".to_owned(), |miss| format!("{miss:?}"));
        format!("Found(tiers={:?}, miss={miss})", self.tiers)
    }
}

/// A client of one daemon.
#[pyclass(frozen, module = "kvtier")]
pub(crate) struct Client {
    /// `None` once it was closed.
    plugin: Mutex<Option<SharedPlugin>>,
    namespace: [u8; 32],
    layers: u32,
    layer_bytes: u64,
    slot_bytes: u64,
}

impl Client {
    /// The engine's blocks in a stored one.
    fn chunk(&self, slabs: &Slabs) -> usize {
        (self.layer_bytes / slabs.slabs().block_bytes()) as usize
    }

    /// Does something with the plugin, without the interpreter's lock.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        call: impl Send + FnOnce(&SharedPlugin) -> Result<T, PluginError>,
    ) -> PyResult<T> {
        let done = py.detach(|| {
            let plugin = self.plugin.lock().unwrap_or_else(PoisonError::into_inner).clone();
            call(&plugin.ok_or(PluginError::Closed)?)
        });
        done.map_err(|error| raise(py, &error))
    }
}

#[pymethods]
impl Client {
    #[new]
    #[pyo3(signature = (socket = None, *, manifest, form, salt = None, name = "python", deadline_ms = 2000))]
    fn new(
        py: Python<'_>,
        socket: Option<PathBuf>,
        manifest: &Manifest,
        form: Stored<'_>,
        salt: Option<String>,
        name: &str,
        deadline_ms: u64,
    ) -> PyResult<Client> {
        if deadline_ms == 0 {
            return Err(usage(py, "a deadline of 0 milliseconds"));
        }
        let identity = manifest.identity(&form, salt);
        let settings = ClientSettings {
            socket: socket.unwrap_or_else(socket::path_here),
            name: name.to_owned(),
            deadline: Duration::from_millis(deadline_ms),
        };
        let plugin = py.detach(|| Plugin::open(settings, &identity)).map_err(|error| raise(py, &error))?;
        let shape = plugin.shape();
        Ok(Client {
            namespace: plugin.namespace().0,
            layers: shape.layers,
            layer_bytes: plugin.layer_bytes(),
            slot_bytes: shape.slot_bytes(),
            plugin: Mutex::new(Some(SharedPlugin::new(plugin))),
        })
    }

    /// True while there is a connection.
    #[getter]
    fn connected(&self, py: Python<'_>) -> bool {
        self.with(py, |plugin| Ok(plugin.is_connected())).unwrap_or(false)
    }

    /// The digest of everything that makes blocks compatible.
    #[getter]
    fn namespace<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.namespace)
    }

    /// Bytes that one block takes in the daemon's memory.
    #[getter]
    fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    /// Where the blocks of the longest run are. Touches nothing.
    #[pyo3(signature = (hashes, *, parent = None, depth = 0))]
    fn lookup(&self, py: Python<'_>, hashes: &Bound<'_, PyAny>, parent: Option<&[u8]>, depth: u32) -> PyResult<Found> {
        let (hashes, before) = run(hashes, parent, depth)?;
        self.with(py, |plugin| plugin.lookup(&hashes, before)).map(Found::from)
    }

    /// Has the daemon bring them into its memory, without waiting; so many are there or on their way.
    #[pyo3(signature = (hashes, *, parent = None, depth = 0))]
    fn prefetch(&self, py: Python<'_>, hashes: &Bound<'_, PyAny>, parent: Option<&[u8]>, depth: u32) -> PyResult<u32> {
        let (hashes, before) = run(hashes, parent, depth)?;
        self.with(py, |plugin| plugin.prefetch(&hashes, before))
    }

    /// Copies the longest run into an engine's blocks.
    #[pyo3(signature = (hashes, slabs, blocks, *, parent = None, depth = 0))]
    fn load(
        &self,
        py: Python<'_>,
        hashes: &Bound<'_, PyAny>,
        slabs: &Slabs,
        blocks: &Bound<'_, PyAny>,
        parent: Option<&[u8]>,
        depth: u32,
    ) -> PyResult<Found> {
        let (hashes, before) = run(hashes, parent, depth)?;
        let blocks = blocks_of(py, blocks, hashes.len(), self.chunk(slabs))?;
        self.with(py, |plugin| plugin.load(&hashes, before, slabs.slabs(), &blocks)).map(Found::from)
    }

    /// Copies an engine's blocks to the daemon, and tells what became of each.
    #[pyo3(signature = (hashes, slabs, blocks, *, parent = None, depth = 0))]
    fn store(
        &self,
        py: Python<'_>,
        hashes: &Bound<'_, PyAny>,
        slabs: &Slabs,
        blocks: &Bound<'_, PyAny>,
        parent: Option<&[u8]>,
        depth: u32,
    ) -> PyResult<Vec<&'static str>> {
        let (hashes, before) = run(hashes, parent, depth)?;
        let blocks = blocks_of(py, blocks, hashes.len(), self.chunk(slabs))?;
        let outcomes = self.with(py, |plugin| plugin.store(&hashes, before, slabs.slabs(), &blocks))?;
        Ok(outcomes.into_iter().map(plugin::Outcome::name).collect())
    }

    /// Gets ready to store, so that the first stores need not.
    fn prepare(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |plugin| plugin.prepare())
    }

    /// Leases the longest run, to be read in place.
    #[pyo3(signature = (hashes, *, parent = None, depth = 0))]
    fn acquire(
        &self,
        py: Python<'_>,
        hashes: &Bound<'_, PyAny>,
        parent: Option<&[u8]>,
        depth: u32,
    ) -> PyResult<Leases> {
        let (hashes, before) = run(hashes, parent, depth)?;
        Leases::new(py, self.with(py, |plugin| plugin.acquire(&hashes, before))?)
    }

    /// Reserves places for blocks, to be written in place.
    #[pyo3(signature = (hashes, *, parent = None, depth = 0))]
    fn reserve(
        &self,
        py: Python<'_>,
        hashes: &Bound<'_, PyAny>,
        parent: Option<&[u8]>,
        depth: u32,
    ) -> PyResult<Reservations> {
        let (hashes, before) = run(hashes, parent, depth)?;
        let reservations = self.with(py, |plugin| plugin.reserve(&hashes, before))?;
        Reservations::new(py, reservations, self.layers, self.layer_bytes)
    }

    /// The daemon's statistics.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        parsed(py, &self.with(py, |plugin| plugin.stats())?)
    }

    /// Why the blocks of a tagged request were there or not.
    fn explain<'py>(&self, py: Python<'py>, request: &str) -> PyResult<Bound<'py, PyAny>> {
        parsed(py, &self.with(py, |plugin| plugin.explain(request))?)
    }

    /// Says which request of the engine's the calls that follow belong to; empty for none.
    fn tag(&self, py: Python<'_>, request: &str) -> PyResult<()> {
        self.with(py, |plugin| plugin.tag(request))
    }

    /// Gives back now what was released; otherwise the next call does.
    fn give_back(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, |plugin| plugin.give_back())
    }

    /// Ends the connection, as soon as no lease and no place is left. Every call after that raises `Error` with the code `closed`.
    fn close(&self, py: Python<'_>) {
        py.detach(|| drop(self.plugin.lock().unwrap_or_else(PoisonError::into_inner).take()));
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_raised))]
    fn __exit__(&self, py: Python<'_>, _raised: &Bound<'_, pyo3::types::PyTuple>) {
        self.close(py);
    }
}

/// Hashes, and what stands before them.
fn run(hashes: &Bound<'_, PyAny>, parent: Option<&[u8]>, depth: u32) -> PyResult<(Vec<BlockHash>, Before)> {
    let py = hashes.py();
    let hash = |bytes: &[u8]| {
        let bytes: Result<[u8; 32], _> = bytes.try_into();
        bytes.map(BlockHash).map_err(|_| usage(py, "a hash has 32 bytes"))
    };
    let parent = parent.map(hash).transpose()?;
    let one = |item: PyResult<Bound<'_, PyAny>>| hash(item?.cast::<PyBytes>()?.as_bytes());
    Ok((hashes.try_iter()?.map(one).collect::<PyResult<_>>()?, Before { parent, depth }))
}

/// JSON as Python has it.
fn parsed<'py>(py: Python<'py>, json: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("json")?.call_method1("loads", (json,))
}
