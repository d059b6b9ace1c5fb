//! The contract suites on the device tier over the `cuda` device and the driver double, as `tier.rs` has them over the `cpu` device:
//! every operation goes through streams, events and staging, and waits for its turn at random.

#[path = "cuda_double/double.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod double;
mod tier_suites;

use std::sync::Arc;

use double::Double;
use gpu_tier::cuda::{CudaConfig, CudaDevice, KernelSource};
use gpu_tier::device::Device;
use tier_suites::Opener;

fn cuda(budget_bytes: u64) -> Arc<dyn Device> {
    // The tier moves whole slots and launches nothing.
    let config = CudaConfig { ordinal: 0, budget_bytes, kernels: KernelSource::None };
    Arc::new(CudaDevice::open(config).unwrap())
}

/// Runs a suite with work that comes late by up to so many microseconds; nothing of it may be left on the device.
fn check(jitter_us: u64, suite: impl Fn(Opener<'_>)) {
    let double = Double::take();
    double.set_jitter_us(jitter_us);
    suite(&cuda);
    assert!(double.counters().peak_bytes > 0);
    double.assert_nothing_left();
}

#[test]
fn store() {
    check(100, tier_suites::store);
}

#[test]
fn lend() {
    check(100, tier_suites::lend);
}

#[test]
fn resident() {
    check(100, tier_suites::resident);
}

#[test]
fn model() {
    (1..=4).for_each(|seed| check(0, |on| tier_suites::model(on, seed, 3000)));
    check(50, |on| tier_suites::model(on, 5, 1000));
}

#[test]
fn opaque_bytes() {
    check(0, |on| tier_suites::opaque_bytes(on, 1000));
}

#[test]
fn slots_come_from_the_devices_budget() {
    check(100, tier_suites::slots_come_from_the_devices_budget);
}

#[test]
fn an_open_block_is_sealed_as_any_other() {
    check(100, tier_suites::an_open_block_is_sealed_as_any_other);
}

#[test]
fn an_open_slot_is_zeroed() {
    check(100, tier_suites::an_open_slot_is_zeroed);
}

#[test]
fn the_same_block_twice_is_kept_once() {
    check(100, tier_suites::the_same_block_twice_is_kept_once);
}

#[test]
fn a_block_of_another_form_is_not_sealed() {
    check(100, tier_suites::a_block_of_another_form_is_not_sealed);
}

#[test]
fn an_arriving_copy_is_verified_and_not_resealed() {
    check(100, tier_suites::an_arriving_copy_is_verified_and_not_resealed);
}

#[test]
fn damage_in_device_memory_is_found_when_it_is_read() {
    check(100, tier_suites::damage_in_device_memory_is_found_when_it_is_read);
}

/// A panic of the tier, as over the `cpu` device; the device goes with it in order.
#[test]
#[should_panic(expected = "was reserved for a key")]
fn a_known_key_is_not_an_open_block() {
    let _double = Double::take();
    tier_suites::a_known_key_is_not_an_open_block(&cuda);
}
