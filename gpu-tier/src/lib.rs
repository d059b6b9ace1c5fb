//! Device memory and kernels of kvtier: the `cpu` device and the `cuda` device behind one trait.

pub mod attention;
pub mod cpu;
pub mod cuda;
pub mod device;
mod error;
pub mod tier;

pub use error::DeviceError;
