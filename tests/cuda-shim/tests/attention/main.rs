//! Attention on device `cuda`: the kernels compiled for the host, and as PTX, through the launchers, cudarc and the driver double.
#![cfg(target_arch = "x86_64")]

#[path = "../common/device.rs"]
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

use gpu_tier::attention::Element;
use scene::Scene;

/// A scene of exact blocks of bf16.
fn exact(group: u32, kv_heads: u32, head_dim: u32, block_tokens: u32, tokens: usize, rows: usize) -> Scene {
    let seed = tokens as u64 * 31 + u64::from(head_dim + group);
    Scene { group, kv_heads, head_dim, block_tokens, element: Element::Bf16, closed: None, tokens, rows, seed }
}
