//! Attention on device `cuda`: the kernels compiled for the host, and as PTX, through the launchers, cudarc and the driver double.
#![cfg(target_arch = "x86_64")]

#[path = "../common/device.rs"]
#[allow(dead_code, reason = "parts that other tests use")]
mod device;
#[path = "../../../../gpu-tier/tests/cuda_double/double.rs"]
#[allow(dead_code, reason = "the hooks of the double that other tests use")]
mod double;
#[path = "../../../../gpu-tier/tests/scene/mod.rs"]
mod scene;
#[path = "../common/ways.rs"]
mod ways;

mod canonical;
mod matrix;
