//! The long form of `codec.rs`, run by `cargo xtask soak forms`: a million grids in every form, encoded and decoded by every instruction
//! set, and a million of bytes that no encoder wrote. Seeds differ from those of the short form.

mod foreign;

use std::time::Instant;

use cache_core::codec::suite::parity;
use gpu_tier::cpu::codec::Simd;
use gpu_tier::cpu::isa::Isa;

/// Grids per form and instruction set.
const CASES: usize = 1_000_000;

fn vector_sets() -> Vec<Isa> {
    Isa::available().into_iter().filter(|isa| *isa != Isa::Scalar).collect()
}

#[test]
#[ignore = "minutes: cargo xtask soak forms"]
fn every_set_equals_the_reference_on_a_million_grids_of_each_form() {
    for isa in vector_sets() {
        let begun = Instant::now();
        let cases = parity(&Simd::new(isa), 0xa11_f0e5, CASES);
        assert_eq!(cases, 3 * CASES);
        println!("  {}: {CASES} grids a form encoded and decoded, {} s", isa.name(), begun.elapsed().as_secs());
    }
}

#[test]
#[ignore = "minutes: cargo xtask soak forms"]
fn every_set_makes_the_same_of_a_million_grids_that_no_encoder_wrote() {
    for isa in vector_sets() {
        let begun = Instant::now();
        foreign::decode(&Simd::new(isa), 0xa11_f0e6, CASES);
        println!("  {}: {CASES} foreign grids a form decoded, {} s", isa.name(), begun.elapsed().as_secs());
    }
}
