//! The long forms of `operations.rs` and `attention`, run by `cargo xtask soak cuda`: a million values of each form on every engine, and
//! scenes of any length, drawn from another seed, on each engine in turn.
#![cfg(target_arch = "x86_64")]

#[path = "common/codes.rs"]
#[allow(dead_code, reason = "parts that other tests use")]
mod codes;
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

use std::time::Instant;

use device::{ENGINES, Engine, cuda};
use double::Double;
use gpu_tier::attention::Element;
use gpu_tier::cuda::QueryElement;
use scene::{ALL_CLOSED, Random, Scene};

const ELEMENTS: [QueryElement; 3] = [QueryElement::F32, QueryElement::Bf16, QueryElement::F16];

#[test]
#[ignore = "minutes: cargo xtask soak cuda"]
fn a_million_values_of_every_form_on_every_engine() {
    for engine in ENGINES {
        let begun = Instant::now();
        let double = Double::take();
        let device = cuda(&double, engine);
        let compared = codes::check(&device, 0xa11_c0de, 1_000_000);
        println!("  {engine:?}: {compared:?}, none differs, {} s", begun.elapsed().as_secs());
        drop(device);
        double.assert_nothing_left();
    }
}

/// What executes a case: eight cases, all pairs of forms among them, then the next engine.
fn engine_of(case: usize) -> Engine {
    ENGINES[case / 8 % ENGINES.len()]
}

#[test]
#[ignore = "minutes: cargo xtask soak cuda"]
fn scenes_of_any_length_on_matrix_instructions() {
    let mut random = Random(0x3a7e);
    let mut worst = 0f64;
    for case in 0..60 {
        let closed = [None, Some(ALL_CLOSED[case / 2 % 4])][case % 2];
        let engine = engine_of(case);
        let tokens = 1 + random.below(5000);
        let scene = Scene {
            group: 1 + random.below(16) as u32,
            kv_heads: 1 + random.below(2) as u32,
            head_dim: [64, 128, 192, 256][random.below(4)],
            block_tokens: if closed.is_some() { 64 << random.below(2) } else { 16 << random.below(4) },
            element: Element::Bf16,
            closed,
            tokens,
            rows: (1 + random.below(6)).min(tokens),
            seed: case as u64,
        };
        let element = ELEMENTS[random.below(3)];
        worst = worst.max(ways::check_matrix(engine, scene, element));
        println!("{worst:e} from f64 so far, {engine:?} {element:?} {scene:?}");
    }
}

#[test]
#[ignore = "minutes: cargo xtask soak cuda"]
fn scenes_of_any_length_form_and_group() {
    let mut random = Random(0x50a4);
    for case in 0..60 {
        let closed = [None, Some(ALL_CLOSED[case / 2 % 4])][case % 2];
        let engine = engine_of(case);
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
        let element = ELEMENTS[random.below(3)];
        println!("{engine:?} {element:?} {scene:?}");
        ways::check_queries(engine, scene, element);
    }
}
