//! The codec kernels, run on the host, against the scalar reference: every bit, whatever the order of threads. The long form is
//! `soak_cuda_shim.rs`.
#![cfg(target_arch = "x86_64")]

mod common;

use cache_core::codec::suite::parity;
use common::codec::Kernels;
use cuda_shim::Schedule;

/// Grids of a run: of each form more than 50,000 values, random and adversarial.
const ROUNDS: usize = 1_500;

#[test]
fn every_form_equals_the_reference() {
    assert_eq!(parity(&Kernels(Schedule::Forward), 0x5eed, ROUNDS), 3 * ROUNDS);
}

#[test]
fn the_order_of_threads_changes_nothing() {
    assert_eq!(parity(&Kernels(Schedule::Reverse), 0xfeed, ROUNDS / 4), 3 * ROUNDS / 4);
    assert_eq!(parity(&Kernels(Schedule::Random(7)), 0xbead, ROUNDS / 4), 3 * ROUNDS / 4);
}
