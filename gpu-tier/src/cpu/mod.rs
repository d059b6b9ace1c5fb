//! The `cpu` device: always there, the embedded default.

mod attention;
pub mod bandwidth;
pub mod codec;
mod device;
pub mod isa;
mod link;
pub mod math;
mod memory;
mod streams;
pub mod workers;

pub use device::{CpuConfig, CpuDevice, Link};
