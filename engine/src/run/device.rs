//! Which device keeps blocks and attends over them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use gpu_tier::attention::{Attention, Products};
use gpu_tier::cpu::{CpuConfig, CpuDevice, Link};
use gpu_tier::cuda::{CudaConfig, CudaDevice, KernelSource};

use crate::error::EngineError;

/// Which device keeps blocks and attends over them. Dense math stays on the host with either: queries, keys and values go to the device layer by
/// layer, and what attention gives comes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceKind {
    /// The device without a GPU.
    #[default]
    Cpu,
    /// A CUDA device, counted as its driver does.
    Cuda {
        /// Which.
        ordinal: u32,
        /// How its attention multiplies.
        products: Products,
    },
}

/// Behind a device whose attention multiplies on matrix units.
const MATRIX: &str = "+mma";

impl FromStr for DeviceKind {
    type Err = String;

    fn from_str(text: &str) -> Result<DeviceKind, String> {
        let unknown = || {
            format!(
                "`{text}` is no device: cpu, cuda, or cuda:N for the driver's device N; +mma behind it for attention on matrix units"
            )
        };
        let (name, products) = match text.strip_suffix(MATRIX) {
            Some(name) => (name, Products::Matrix),
            None => (text, Products::Canonical),
        };
        match name.split_once(':') {
            None if text == "cpu" => Ok(DeviceKind::Cpu),
            None if name == "cuda" => Ok(DeviceKind::Cuda { ordinal: 0, products }),
            Some(("cuda", ordinal)) => {
                Ok(DeviceKind::Cuda { ordinal: ordinal.parse().map_err(|_| unknown())?, products })
            }
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceKind::Cpu => f.write_str("cpu"),
            DeviceKind::Cuda { ordinal, products: Products::Canonical } => write!(f, "cuda:{ordinal}"),
            DeviceKind::Cuda { ordinal, products: Products::Matrix } => write!(f, "cuda:{ordinal}{MATRIX}"),
        }
    }
}

impl DeviceKind {
    /// Opens the device. `wrap`: what stands in for the `cpu` device.
    ///
    /// Errors: [`EngineError::Request`] where this machine has no such device or not so much memory, or a link is to be modelled for one that has its own.
    pub(crate) fn open(
        self,
        cpu: CpuConfig,
        wrap: &dyn Fn(Arc<CpuDevice>) -> Arc<dyn Attention>,
    ) -> Result<Arc<dyn Attention>, EngineError> {
        let budget_bytes = cpu.budget_bytes;
        match self {
            DeviceKind::Cpu => match CpuDevice::open(cpu) {
                Ok(device) => Ok(wrap(Arc::new(device))),
                Err(error) => {
                    Err(EngineError::Request(format!("{error}; --device-mem is {budget_bytes} bytes, give less")))
                }
            },
            DeviceKind::Cuda { .. } if cpu.link != Link::InPlace => {
                Err(EngineError::Request("--link models a link of the cpu device; cuda has its own".to_owned()))
            }
            DeviceKind::Cuda { ordinal, products } => {
                let config = CudaConfig { ordinal, budget_bytes, kernels: KernelSource::Embedded };
                let device = CudaDevice::open_with(config, products);
                Ok(Arc::new(device.map_err(|error| EngineError::Request(error.to_string()))?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for text in ["cpu", "cuda:0", "cuda:7", "cuda:0+mma"] {
            assert_eq!(text.parse::<DeviceKind>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceKind::Cuda { ordinal: 0, products: Products::Canonical }));
        assert_eq!("cuda+mma".parse(), Ok(DeviceKind::Cuda { ordinal: 0, products: Products::Matrix }));
        for text in ["", "gpu", "cuda:", "cuda:x", "cpu:0", "CUDA", "cpu+mma", "+mma", "cuda+mma:1"] {
            assert!(text.parse::<DeviceKind>().unwrap_err().contains("cuda:N"), "{text}");
        }
    }
}
