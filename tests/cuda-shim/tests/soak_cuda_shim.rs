//! The long forms of `codec.rs` and `attention.rs`: a million values and more of each form, and scenes of any length, drawn anew from
//! another seed.
#![cfg(target_arch = "x86_64")]

mod common;
#[path = "common/device.rs"]
#[allow(dead_code, reason = "parts that other tests use")]
mod device;
#[path = "../../../gpu-tier/tests/cuda_double/double.rs"]
#[allow(dead_code, reason = "parts that other tests use")]
mod double;
#[path = "../../../gpu-tier/tests/scene/mod.rs"]
mod scene;
#[path = "common/ways.rs"]
mod ways;

use cache_core::codec::suite::parity;
use common::codec::Kernels;
use cuda_shim::Schedule;
use device::Engine;
use gpu_tier::attention::Element;
use scene::{ALL_CLOSED, Random, Scene};

#[test]
#[ignore = "minutes"]
fn a_million_values_of_every_form() {
    // A grid has 350 values on average.
    for (seed, schedule) in [(1, Schedule::Forward), (2, Schedule::Random(11))] {
        let cases = parity(&Kernels(schedule), 0xa11 + seed, 20_000);
        println!("{cases} grids under {schedule:?}");
    }
}

#[test]
#[ignore = "minutes"]
fn scenes_of_any_length_form_and_group() {
    let mut random = Random(0x50a4);
    for case in 0..60 {
        let closed = [None, Some(ALL_CLOSED[case / 2 % 4])][case % 2];
        let tokens = 1 + random.below(5000);
        let scene = Scene {
            group: 1 + random.below(8) as u32,
            kv_heads: 1 + random.below(2) as u32,
            head_dim: [64, 128, 256, 96][random.below(4)],
            block_tokens: if closed.is_some() { 64 << random.below(2) } else { 16 << random.below(4) },
            element: if closed.is_none() && random.below(3) == 0 { Element::F32 } else { Element::Bf16 },
            closed,
            tokens,
            rows: (1 + random.below(6)).min(tokens),
            seed: case as u64,
        };
        println!("{scene:?}");
        ways::check(Engine::Host, scene);
    }
}
