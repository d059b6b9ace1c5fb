//! The engine on device `cuda`: its compiled kernels, executed by the driver double, under cudarc as it is.
//!
//! The model is the default one cut down to two layers: the double executes every instruction of every thread.

#[path = "../../gpu-tier/tests/cuda_double/double.rs"]
#[allow(dead_code, reason = "the hooks of the double that other tests use")]
mod double;

use std::sync::{Arc, OnceLock};

use double::Double;
use gpu_tier::attention::{Accumulator, Attend, Attention, Element, Geometry, Products, SectionPlace};
use gpu_tier::cuda::{CudaConfig, CudaDevice, KernelSource};
use gpu_tier::device::{CopyPiece, Device, DeviceRange, HostRange, Stream};
use host_tier::{HostConfig, HostTier};
use kvtier_engine::run::device::DeviceKind;
use kvtier_engine::run::engine::{Engine, EngineOptions};
use kvtier_engine::run::{Form, Isa};
use kvtier_sdk::cache::KvCache;
use kvtier_sdk::contract::{
    self,
    rig::{Rig, SHAPE, host_bytes},
};
use kvtier_sdk::embedded::ArenaExtent;
use kvtier_tests::{Fixture, ask, ask_together, options, plain, shallow};

const CUDA: DeviceKind = DeviceKind::Cuda { ordinal: 0, products: Products::Canonical };
const CUDA_MATRIX: DeviceKind = DeviceKind::Cuda { ordinal: 0, products: Products::Matrix };

fn model() -> &'static Fixture {
    static MODEL: OnceLock<Fixture> = OnceLock::new();
    MODEL.get_or_init(|| shallow(2))
}

/// On the device, with blocks of 16 tokens: several in a short prompt.
fn on_cuda(options: EngineOptions) -> EngineOptions {
    EngineOptions { device: CUDA, device_bytes: 8 << 20, host_bytes: 8 << 20, context_tokens: 512, ..options }
}

fn short(options: EngineOptions) -> EngineOptions {
    EngineOptions { block_tokens: 16, chunk: 32, ..options }
}

fn engine(options: EngineOptions) -> Engine {
    model().engine(options)
}

#[test]
fn logits_are_those_of_the_cpu_device_whatever_the_chunk_and_the_batch() {
    let double = Double::take();
    let (prompt, other) = (model().prompt(0, 75), model().prompt(500, 40));
    let expected = ask(&mut engine(short(plain())), &prompt, 3).logits_digest;
    for chunk in [32, 7] {
        let answer = ask(&mut engine(EngineOptions { chunk, ..short(on_cuda(plain())) }), &prompt, 3);
        assert_eq!(answer.logits_digest, expected, "chunks of {chunk}");
    }
    let answers = ask_together(&mut engine(short(on_cuda(plain()))), &[&other, &prompt], 3);
    assert_eq!(answers[1].logits_digest, expected, "beside another sequence");
    double.assert_nothing_left();
}

/// More blocks than the device holds: they go to the host arena, each copied out once, and come back through paging slots.
#[test]
fn logits_do_not_depend_on_where_blocks_lay() {
    let double = Double::take();
    let prompt = model().prompt(0, 75);
    let expected = ask(&mut engine(short(plain())), &prompt, 3).logits_digest;
    let mut small = EngineOptions { chunk: 8, ..short(on_cuda(options())) };
    small.device_bytes = minimum(&small);
    let mut engine = engine(small);
    let slot_bytes = engine.cache().shape().slot_bytes();
    let first = ask(&mut engine, &prompt, 3);
    assert_eq!(first.logits_digest, expected);
    let (stats, traffic) = (engine.cache_stats(), engine.traffic());
    assert!(stats.demoted_blocks > 0, "{stats:?}");
    assert_eq!(traffic.copied_out_bytes, stats.demoted_blocks * slot_bytes, "stored bytes only, and once");
    let again = ask(&mut engine, &prompt, 3);
    assert_eq!((again.logits_digest, again.prefill_tokens), (expected, 75 - 64));
    assert_eq!(again.cached_tokens.device + again.cached_tokens.host, 64);
    drop(engine);
    double.assert_nothing_left();
}

/// The least device budget that is accepted.
fn minimum(options: &EngineOptions) -> u64 {
    let mut bytes = 4096;
    while let Err(kvtier_engine::EngineError::Budget { minimum_bytes, .. }) =
        Engine::open(model().model.clone(), model().weights, EngineOptions { device_bytes: bytes, ..options.clone() })
    {
        bytes = minimum_bytes;
    }
    bytes
}

#[test]
fn closed_blocks_give_the_logits_of_the_cpu_device() {
    let double = Double::take();
    let prompt = model().prompt(0, 200);
    for form in [Form::Kc4vt4, Form::I8h] {
        let closed = EngineOptions { form, chunk: 64, ..plain() };
        let expected = ask(&mut engine(closed.clone()), &prompt, 2).logits_digest;
        let answer = ask(&mut engine(on_cuda(closed)), &prompt, 2);
        assert_eq!(answer.logits_digest, expected, "{form}");
    }
    double.assert_nothing_left();
}

/// The PTX of each architecture, and a form in which nothing is rounded.
#[test]
fn logits_are_those_of_the_cpu_device_on_every_architecture() {
    let double = Double::take();
    let prompt = model().prompt(0, 40);
    for form in [Form::Raw16, Form::Raw32] {
        let options = EngineOptions { form, ..short(plain()) };
        let expected = ask(&mut engine(options.clone()), &prompt, 2).logits_digest;
        for capability in [80, 90, 100] {
            double.set_capability(capability);
            let answer = ask(&mut engine(on_cuda(options.clone())), &prompt, 2);
            assert_eq!(answer.logits_digest, expected, "{form}, capability {capability}");
        }
    }
    double.assert_nothing_left();
}

/// Onboarding goes on beside attention: blocks of one group are copied in, each copy late by some time, while another group that is there is attended.
#[test]
fn an_engine_attends_while_blocks_are_copied_in() {
    let Some(double) = Double::take_hooks() else { return };
    let prompt = model().prompt(0, 200);
    let expected = ask(&mut engine(EngineOptions { chunk: 64, ..short(plain()) }), &prompt, 2).logits_digest;
    let mut small = EngineOptions { chunk: 64, ..short(on_cuda(options())) };
    small.device_bytes = minimum(&small);
    let mut engine = engine(small);
    double.set_jitter_us(1000);
    double.log();
    assert_eq!(ask(&mut engine, &prompt, 2).logits_digest, expected);
    let beside = double.side_by_side("kvtier_gather", "kvtier_attend");
    println!("{beside} copies beside attention");
    assert!(beside > 0, "every copy had the device to itself");
    drop(engine);
    double.assert_nothing_left();
}

/// Attention on matrix units has bits of its own: near the canonical ones, equal to themselves over residency, chunks and batch, and in a namespace apart.
#[test]
fn attention_on_matrix_units_is_a_setting_with_bits_of_its_own() {
    let double = Double::take();
    let (prompt, other) = (model().prompt(0, 75), model().prompt(500, 40));
    let on_matrix = |options: EngineOptions| EngineOptions { device: CUDA_MATRIX, ..short(on_cuda(options)) };
    let canonical = ask(&mut engine(short(plain())), &prompt, 3);
    let expected = ask(&mut engine(on_matrix(plain())), &prompt, 3);
    assert_ne!(expected.logits_digest, canonical.logits_digest);
    let [cpu, cuda, matrix] =
        [plain(), on_cuda(plain()), on_matrix(plain())].map(|options| engine(short(options)).namespace(None));
    assert!(cpu != matrix && cuda != matrix, "what it computes is never taken for canonical");
    assert_eq!(expected.tokens, canonical.tokens);
    let chunks = ask(&mut engine(EngineOptions { chunk: 7, ..on_matrix(plain()) }), &prompt, 3);
    assert_eq!(chunks.logits_digest, expected.logits_digest, "chunks of 7");
    let answers = ask_together(&mut engine(on_matrix(plain())), &[&other, &prompt], 3);
    assert_eq!(answers[1].logits_digest, expected.logits_digest, "beside another sequence");
    let mut small = EngineOptions { chunk: 8, ..on_matrix(options()) };
    small.device_bytes = minimum(&small);
    let mut small = engine(small);
    for _ in 0..2 {
        assert_eq!(ask(&mut small, &prompt, 3).logits_digest, expected.logits_digest, "wherever blocks lay");
    }
    drop(small);
    double.assert_nothing_left();
}

/// The manager and the SDK over the device: what every cache must do.
#[test]
fn a_cache_over_the_device_keeps_the_contract() {
    let double = Double::take();
    contract::run(&|device_slots| {
        let budget_bytes = u64::from(device_slots + 4) * SHAPE.slot_bytes();
        let device =
            CudaDevice::open(CudaConfig { ordinal: 0, budget_bytes, kernels: KernelSource::Embedded }).unwrap();
        Rig::on(Arc::new(device), SHAPE, device_slots, host_bytes(device_slots, 32))
    });
    double.assert_nothing_left();
}

/// Offloading and onboarding go on beside kernels: while copies are held back, attention over what is there ends, and only what waits for a copy
/// waits.
#[test]
fn attention_does_not_wait_for_copies_that_it_does_not_need() {
    let Some(double) = Double::take_hooks() else { return };
    double.set_jitter_us(500);
    let config = CudaConfig { ordinal: 0, budget_bytes: 1 << 20, kernels: KernelSource::Embedded };
    let device = CudaDevice::open(config).unwrap();
    let arena = HostTier::open(HostConfig::new(1 << 20, SHAPE)).unwrap();
    let extent = device.register(Arc::new(ArenaExtent::new(Arc::clone(&arena.extents()[0])))).unwrap();
    let geometry =
        Geometry { heads: 2, kv_heads: 1, head_dim: 16, block_tokens: 64, element: Element::Bf16, scale: 0.25 };
    let memory = device.allocate(64 << 10).unwrap();
    let (here, coming) = (memory.range().slice(0, 4096), memory.range().slice(4096, 4096));
    assert_eq!(geometry.section_bytes(), 4096);
    let attend = |section: DeviceRange, state: DeviceRange| {
        let job = Attend {
            queries: memory.range().slice(8192, 2 * 16 * 4),
            rows: 1,
            first_position: 63,
            sections: &[Some(SectionPlace::Device(section))],
            spans: &[0],
            into: Accumulator::Running { range: state },
        };
        device.attend(Stream::Compute, &geometry, &[job]).unwrap();
        device.record(Stream::Compute).unwrap()
    };
    let state = |number: u64| memory.range().slice(12_288 + 4096 * number, geometry.accumulator_bytes(1, 1));
    // Kernels' tables are copied in too, so what is held back is a copy out that the copy in waits for.
    let gate = double.hold(double::COPY_OUT);
    let host = HostRange { extent, offset: 0, bytes: 4096 };
    device.copy_out(Stream::CopyOut, &[CopyPiece { host, device: here }]).unwrap();
    device.wait(Stream::CopyIn, device.record(Stream::CopyOut).unwrap()).unwrap();
    device.copy_in(Stream::CopyIn, &[CopyPiece { host, device: coming }]).unwrap();
    let copied = device.record(Stream::CopyIn).unwrap();
    device.synchronize(attend(here, state(0))).unwrap();
    assert!(!device.is_done(copied).unwrap(), "attention over the block that is there has ended before the copy");
    device.wait(Stream::Compute, copied).unwrap();
    let attended = attend(coming, state(1));
    assert!(!device.is_done(attended).unwrap(), "attention over the block that comes waits for it");
    drop(gate);
    device.synchronize(attended).unwrap();
    assert!(device.is_done(copied).unwrap());
    let traffic = device.traffic();
    assert_eq!((traffic.copied_out_bytes, traffic.copied_in_bytes), (4096, 4096));
    // The log sees no overlap where the host waits in between.
    double.log();
    for _ in 0..4 {
        device.copy_in(Stream::CopyIn, &[CopyPiece { host, device: coming }]).unwrap();
        device.synchronize(device.record(Stream::CopyIn).unwrap()).unwrap();
        device.synchronize(attend(here, state(0))).unwrap();
    }
    assert_eq!(double.side_by_side("copy in", "kvtier_attend"), 0);
    drop(memory);
    drop(device);
    double.assert_nothing_left();
}

#[test]
fn a_link_is_not_modelled_for_a_device_that_has_one() {
    let options = EngineOptions { link: kvtier_tests::STRICT, isa: Isa::detect(), ..on_cuda(plain()) };
    let error = Engine::open(model().model.clone(), model().weights, options).err().expect("it is refused");
    assert!(error.to_string().contains("--link"), "{error}");
}
