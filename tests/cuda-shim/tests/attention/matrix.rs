//! Attention on matrix instructions: near f64, and the same bits however the work is split. What it executes for a byte stands in
//! `gpu-tier/kernels/traffic.tsv`, beside the plain kernels.

use crate::device::{ENGINES, Engine, cuda, cuda_matrix};
use crate::double::Double;
use crate::exact;
use crate::scene::{ALL_CLOSED, Scene, Stage, WHOLE};
use crate::ways::check_matrix;
use gpu_tier::DeviceError;
use gpu_tier::attention::{Attention, Element, Products};
use gpu_tier::cuda::QueryElement;

const ELEMENTS: [QueryElement; 3] = [QueryElement::F32, QueryElement::Bf16, QueryElement::F16];

#[test]
fn exact_blocks_are_near_f64() {
    for (case, (group, head_dim, block_tokens, tokens, rows)) in [
        (3, 64, 64, 300, 9),
        (1, 128, 16, 65, 3),
        (8, 192, 32, 64, 2),
        (4, 256, 64, 130, 5),
        (16, 128, 64, 1, 1),
        (5, 64, 128, 200, 33),
        (12, 64, 16, 79, 1),
    ]
    .into_iter()
    .enumerate()
    {
        check_matrix(Engine::Host, exact(group, 2, head_dim, block_tokens, tokens, rows), ELEMENTS[case % 3]);
    }
}

#[test]
fn closed_blocks_are_near_f64() {
    for (case, closed) in ALL_CLOSED.into_iter().enumerate() {
        for (group, head_dim, block_tokens) in [(3, 64, 64), (16, 128, 64), (2, 192, 128)] {
            let scene = Scene { closed: Some(closed), ..exact(group, 1, head_dim, block_tokens, 300, 5) };
            check_matrix(Engine::Host, scene, ELEMENTS[case % 3]);
        }
    }
}

#[test]
fn compiled_kernels_are_near_f64() {
    for (index, engine) in ENGINES.into_iter().filter(|engine| *engine != Engine::Host).enumerate() {
        check_matrix(engine, exact(3, 1, 64, 64, 200, 2), ELEMENTS[index]);
        check_matrix(engine, exact(10, 1, 128, 16, 70, 1), ELEMENTS[index]);
        check_matrix(engine, exact(2, 1, 256, 64, 70, 2), ELEMENTS[index]);
        for (case, closed) in ALL_CLOSED.into_iter().enumerate() {
            // Each with another element of queries; one pair an architecture with two rows.
            let rows = if case == index { 2 } else { 1 };
            let of = |group, head_dim| Scene { closed: Some(closed), ..exact(group, 1, head_dim, 64, 200, rows) };
            check_matrix(engine, of(5, 64), ELEMENTS[(index + case) % 3]);
            check_matrix(engine, of(16, 128), ELEMENTS[(index + case + 1) % 3]);
            check_matrix(engine, of(2, 256), ELEMENTS[(index + case + 2) % 3]);
        }
    }
}

#[test]
fn what_matrix_instructions_compute_is_named_apart() {
    let double = Double::take();
    let (plain, matrix) = (cuda(&double, Engine::Host), cuda_matrix(&double, Engine::Host));
    assert_eq!((plain.products(), matrix.products()), (Products::Canonical, Products::Matrix));
    assert_ne!(plain.products().numerics(), matrix.products().numerics());
    // Heads that no kernel is for, and exact blocks of f32, are refused.
    for wrong in [exact(2, 1, 96, 64, 70, 1), Scene { element: Element::F32, ..exact(2, 1, 64, 64, 70, 1) }] {
        let refused = Stage::new(&matrix, wrong).unwrap().attend(&WHOLE).unwrap_err();
        assert!(matches!(refused, DeviceError::Shape { what: "attend", .. }), "{refused}");
    }
    drop((plain, matrix));
    double.assert_nothing_left();
}
