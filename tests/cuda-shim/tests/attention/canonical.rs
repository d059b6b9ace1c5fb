//! Attention on device `cuda`: the kernels compiled for the host, through the launchers, cudarc and the driver double, against the
//! `cpu` device bit for bit and against f64.

use crate::device::{ENGINES, Engine};
use crate::exact;
use crate::scene::{ALL_CLOSED, Scene};
use crate::ways::check_queries;
use gpu_tier::attention::Element;
use gpu_tier::cuda::QueryElement;

/// The engines that run nvcc's PTX.
fn compiled() -> impl Iterator<Item = Engine> {
    ENGINES.into_iter().filter(|engine| *engine != Engine::Host)
}

fn check(engine: Engine, scene: Scene) {
    check_queries(engine, scene, QueryElement::F32);
}

#[test]
fn exact_blocks_give_the_bits_of_the_cpu_device() {
    for (group, head_dim, block_tokens, tokens, rows) in [
        (3, 64, 64, 300, 9),
        (1, 128, 16, 65, 3),
        (8, 96, 32, 64, 2),
        (4, 256, 64, 130, 5),
        (2, 16, 64, 1, 1),
        (5, 48, 128, 200, 33),
    ] {
        check(Engine::Host, exact(group, 2, head_dim, block_tokens, tokens, rows));
    }
}

#[test]
fn f32_blocks_give_the_bits_of_the_cpu_device() {
    for (head_dim, block_tokens) in [(64, 16), (128, 64), (256, 64)] {
        check(Engine::Host, Scene { element: Element::F32, ..exact(3, 2, head_dim, block_tokens, 150, 7) });
    }
}

#[test]
fn closed_blocks_give_the_bits_of_the_cpu_device() {
    for closed in ALL_CLOSED {
        for (group, head_dim, block_tokens) in [(3, 64, 64), (8, 128, 64), (2, 80, 128), (4, 256, 64)] {
            check(Engine::Host, Scene { closed: Some(closed), ..exact(group, 2, head_dim, block_tokens, 500, 11) });
        }
    }
}

#[test]
fn queries_of_16_bits_give_the_bits_of_the_same_numbers_in_f32() {
    for element in [QueryElement::Bf16, QueryElement::F16] {
        for (group, head_dim, tokens, rows) in [(3, 64, 130, 5), (8, 128, 70, 2), (1, 256, 65, 3), (6, 80, 1, 1)] {
            check_queries(Engine::Host, exact(group, 2, head_dim, 16, tokens, rows), element);
        }
        for closed in ALL_CLOSED {
            check_queries(Engine::Host, Scene { closed: Some(closed), ..exact(4, 2, 128, 64, 300, 3) }, element);
        }
        for engine in compiled() {
            check_queries(engine, exact(5, 1, 64, 64, 80, 2), element);
            check_queries(engine, exact(3, 1, 256, 16, 66, 1), element);
            for closed in ALL_CLOSED {
                check_queries(engine, Scene { closed: Some(closed), ..exact(4, 1, 128, 64, 193, 1) }, element);
            }
        }
    }
}

/// Heads of 128, the most common size, by their own kernel: every pair of forms on every architecture.
#[test]
fn compiled_kernels_for_closed_heads_of_128_give_the_bits_of_the_cpu_device() {
    for engine in compiled() {
        for closed in ALL_CLOSED {
            // One block that the row reads closed and one in its window; then two, one of which the last row alone reads closed.
            check(engine, Scene { closed: Some(closed), ..exact(4, 1, 128, 64, 193, 1) });
            check(engine, Scene { closed: Some(closed), ..exact(3, 1, 128, 64, 257, 3) });
        }
    }
}

#[test]
fn compiled_kernels_for_heads_of_256_give_the_bits_of_the_cpu_device() {
    for engine in compiled() {
        check(engine, exact(4, 1, 256, 64, 70, 1));
        for closed in ALL_CLOSED {
            check(engine, Scene { closed: Some(closed), ..exact(3, 1, 256, 64, 200, 2) });
        }
    }
}

#[test]
fn compiled_kernels_give_the_bits_of_the_cpu_device() {
    for engine in compiled() {
        check(engine, exact(3, 1, 64, 64, 200, 2));
        check(engine, Scene { element: Element::F32, ..exact(2, 1, 128, 16, 70, 3) });
        for closed in ALL_CLOSED {
            check(engine, Scene { closed: Some(closed), ..exact(5, 1, 64, 64, 330, 3) });
        }
    }
}
