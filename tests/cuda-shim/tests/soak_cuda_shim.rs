//! The long form of `codec.rs`: a million values and more of each form, drawn anew from another seed.
#![cfg(target_arch = "x86_64")]

mod common;

use cache_core::codec::suite::parity;
use common::codec::Kernels;
use cuda_shim::Schedule;

#[test]
#[ignore = "minutes"]
fn a_million_values_of_every_form() {
    // A grid has 350 values on average.
    for (seed, schedule) in [(1, Schedule::Forward), (2, Schedule::Random(11))] {
        let cases = parity(&Kernels(schedule), 0xa11 + seed, 20_000);
        println!("{cases} grids under {schedule:?}");
    }
}
