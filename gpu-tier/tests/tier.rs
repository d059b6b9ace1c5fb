//! The contract suites on the device tier over the `cpu` device, and what only a device tier does: open blocks.

mod tier_suites;

use std::sync::Arc;

use gpu_tier::cpu::isa::Isa;
use gpu_tier::cpu::workers::Workers;
use gpu_tier::cpu::{CpuConfig, CpuDevice, Link};
use gpu_tier::device::Device;

fn cpu(budget_bytes: u64) -> Arc<dyn Device> {
    let link = Link::Strict { bytes_per_second: None };
    let config = CpuConfig { budget_bytes, link, workers: Arc::new(Workers::new(1)), isa: Isa::detect() };
    Arc::new(CpuDevice::open(config).unwrap())
}

#[test]
fn store() {
    tier_suites::store(&cpu);
}

#[test]
fn lend() {
    tier_suites::lend(&cpu);
}

#[test]
fn resident() {
    tier_suites::resident(&cpu);
}

#[test]
fn model() {
    (1..=8).for_each(|seed| tier_suites::model(&cpu, seed, 3000));
}

#[test]
fn opaque_bytes() {
    tier_suites::opaque_bytes(&cpu, 3000);
}

#[test]
fn slots_come_from_the_devices_budget() {
    tier_suites::slots_come_from_the_devices_budget(&cpu);
}

#[test]
fn an_open_block_is_sealed_as_any_other() {
    tier_suites::an_open_block_is_sealed_as_any_other(&cpu);
}

#[test]
fn an_open_slot_is_zeroed() {
    tier_suites::an_open_slot_is_zeroed(&cpu);
}

#[test]
fn the_same_block_twice_is_kept_once() {
    tier_suites::the_same_block_twice_is_kept_once(&cpu);
}

#[test]
fn a_block_of_another_form_is_not_sealed() {
    tier_suites::a_block_of_another_form_is_not_sealed(&cpu);
}

#[test]
fn an_arriving_copy_is_verified_and_not_resealed() {
    tier_suites::an_arriving_copy_is_verified_and_not_resealed(&cpu);
}

#[test]
fn damage_in_device_memory_is_found_when_it_is_read() {
    tier_suites::damage_in_device_memory_is_found_when_it_is_read(&cpu);
}

#[test]
#[should_panic(expected = "was reserved for a key")]
fn a_known_key_is_not_an_open_block() {
    tier_suites::a_known_key_is_not_an_open_block(&cpu);
}
