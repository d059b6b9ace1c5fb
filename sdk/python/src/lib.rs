//! kvtier for Python: the extension module `kvtier._kvtier`. What it offers is described in `docs/sdk-python.md` and `kvtier/_kvtier.pyi`.
//!
//! | file | part |
//! |---|---|
//! | `identity` | `Manifest`, `Opaque`, `Lossy`: what makes blocks compatible |
//! | `client` | `Client`, `Found` |
//! | `slabs` | `Slabs`: an engine's memory, by the buffer protocol, DLPack or address |
//! | `leases` | `Leases`, `Lease`: reading in place |
//! | `places` | `Reservations`, `Place`: writing in place |
//! | `buffer`, `dlpack` | memory shown to Python: the buffer protocol, DLPack |
//! | `error` | `Error` |
//! | `serve` | the daemon as a function |
//!
//! **The interpreter's lock** is let go of in every call that can wait or that moves blocks.

mod buffer;
mod client;
mod dlpack;
mod error;
mod identity;
mod leases;
mod places;
mod serve;
mod slabs;

use pyo3::prelude::*;

#[pymodule]
fn _kvtier(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("Error", error::class(module.py())?)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<identity::Manifest>()?;
    module.add_class::<identity::Opaque>()?;
    module.add_class::<identity::Lossy>()?;
    module.add_class::<client::Client>()?;
    module.add_class::<client::Found>()?;
    module.add_class::<slabs::Slabs>()?;
    module.add_class::<leases::Leases>()?;
    module.add_class::<leases::Lease>()?;
    module.add_class::<places::Reservations>()?;
    module.add_class::<places::Place>()?;
    module.add_function(wrap_pyfunction!(serve::run_command, module)?)?;
    Ok(())
}
