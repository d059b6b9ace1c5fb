//! The cuda device, driven through cudarc and the driver double.

#[path = "cuda_double/contract.rs"]
mod contract;
#[path = "cuda_double/double.rs"]
#[expect(dead_code, reason = "tests of compiled kernels use the rest")]
mod double;

use std::sync::Arc;

use contract::{Arena, BUDGET, fetch, finish, pattern, piece, settled};
use cudarc::driver::sys::{CUevent_flags, CUresult};
use cudarc::driver::{CudaContext, DriverError, result};
use double::{
    ALLOCATION, COPY, COPY_IN, COPY_OUT, Double, ECC_UNCORRECTABLE, FILL, KERNEL, LAUNCH, LAUNCH_FAILED, Launch,
    OUT_OF_MEMORY,
};
use gpu_tier::DeviceError;
use gpu_tier::cpu::isa::Isa;
use gpu_tier::cpu::workers::Workers;
use gpu_tier::cpu::{CpuConfig, CpuDevice, Link};
use gpu_tier::cuda::{CudaConfig, CudaDevice, KernelSource};
use gpu_tier::device::{CopyPiece, Device, HostExtent, Stream};

const PAGE: usize = 4096;

fn open(kernels: Option<&str>) -> CudaDevice {
    let kernels = kernels.map_or(KernelSource::None, |image| KernelSource::Image(image.to_owned()));
    let config = CudaConfig { ordinal: 0, budget_bytes: BUDGET, kernels };
    CudaDevice::open(config).unwrap()
}

/// `kvtier_gather` (src/cuda/gather.rs) on the host. It copies the last record first: records may run in any order.
unsafe extern "C" fn gather(launch: *const Launch) -> u32 {
    // SAFETY: the double passes a launch that is valid during the call, with the two parameters registered below; what it
    // resolves is valid for the length asked for.
    unsafe {
        let launch = &*launch;
        let table = (*launch.parameters).cast::<u64>().read();
        let count = (*launch.parameters.add(1)).cast::<u32>().read();
        let resolve = |address: u64, bytes: u64| (launch.resolve)(launch, address, bytes as usize);
        let records = resolve(table, u64::from(count) * 24).cast::<[u64; 3]>();
        if records.is_null() || launch.grid != [count, 1, 1] || launch.block != [256, 1, 1] {
            return LAUNCH_FAILED;
        }
        for index in (0..count as usize).rev() {
            let [source, target, bytes] = records.add(index).read();
            let (from, to) = (resolve(source, bytes), resolve(target, bytes));
            if from.is_null() || to.is_null() {
                return 700;
            }
            to.copy_from_nonoverlapping(from, bytes as usize);
        }
    }
    0
}

fn register_gather(double: &Double) {
    double.register("kvtier_gather", gather, &[8, 4]);
}

#[test]
fn contract_holds_on_pinned_extents() {
    let double = Double::take();
    double.set_jitter_us(100);
    contract::check(&open(None), 0);
    double.assert_nothing_left();
}

#[test]
fn contract_holds_on_pageable_extents() {
    let Some(double) = Double::take_hooks() else { return };
    double.refuse_registration();
    double.set_jitter_us(100);
    contract::check(&open(None), 0);
    double.assert_nothing_left();
}

#[test]
fn contract_holds_with_the_gather_kernel() {
    let Some(double) = Double::take_hooks() else { return };
    register_gather(&double);
    double.set_jitter_us(100);
    contract::check(&open(Some(double::IMAGE)), 0);
    double.assert_nothing_left();
}

#[test]
fn contract_holds_on_a_driver_that_aligns_to_256_bytes() {
    let Some(double) = Double::take_hooks() else { return };
    double.misalign();
    contract::check(&open(None), PAGE as u64 - 256);
    double.assert_nothing_left();
}

#[test]
fn contract_holds_on_the_cpu_device() {
    for link in [Link::InPlace, Link::Strict { bytes_per_second: None }] {
        let workers = Arc::new(Workers::new(2));
        let config = CpuConfig { budget_bytes: BUDGET, link, workers, isa: Isa::detect() };
        contract::check(&CpuDevice::open(config).unwrap(), 0);
    }
}

#[test]
fn device_without_kernels_copies_by_pieces() {
    let Some(double) = Double::take_hooks() else { return };
    // The module loads, but nobody has offered a gather kernel.
    let device = open(Some(double::IMAGE));
    let (copies, launches) = gather_seven(&device, &double);
    assert_eq!((copies, launches), (7, 0));
    let name = device.info().name.clone();
    assert_eq!((device.info().kind, name.as_str(), device.info().in_place), ("cuda", "driver double", false));
    drop(device);
    let config =
        CudaConfig { ordinal: 0, budget_bytes: BUDGET, kernels: KernelSource::Image("not a module".to_owned()) };
    let refused = CudaDevice::open(config.clone()).map(|_| ()).unwrap_err();
    assert!(
        matches!(&refused, DeviceError::Driver { what: "load kernels", reason } if reason.contains("image")),
        "{refused}"
    );
    let refused = CudaDevice::open(CudaConfig { ordinal: 1, ..config }).map(|_| ()).unwrap_err();
    assert!(
        matches!(&refused, DeviceError::Unavailable { kind: "cuda", reason } if reason.contains("device 1")),
        "{refused}"
    );
    double.assert_nothing_left();
}

#[test]
fn gather_launch_equals_copies_by_pieces() {
    let Some(double) = Double::take_hooks() else { return };
    register_gather(&double);
    let device = open(Some(double::IMAGE));
    let (copies, launches) = gather_seven(&device, &double);
    assert_eq!((copies, launches), (0, 1));
    drop(device);
    double.assert_nothing_left();
}

/// Gathers seven pieces of odd lengths and places, compares them with the host's bytes, and returns how many driver copies and
/// launches that took.
fn gather_seven(device: &CudaDevice, double: &Double) -> (u64, u64) {
    let arena = Arena::new(4 * PAGE);
    let extent = device.register(arena.clone()).unwrap();
    assert_eq!(device.is_pinned(extent), Some(true));
    let buffer = device.allocate(2 * PAGE as u64).unwrap();
    arena.write(0, &pattern(3, 4 * PAGE));
    let places: [(u64, u64, u64); 7] = [
        (0, 4000, 1),
        (9000, 0, 513),
        (1, 600, 64),
        (16383, 8191, 1),
        (4096, 4001, 4096),
        (777, 700, 3),
        (5000, 1000, 2500),
    ];
    let pieces: Vec<CopyPiece> = places
        .iter()
        .map(|(host, offset, bytes)| piece(extent, *host, buffer.range().slice(*offset, *bytes)))
        .collect();
    let before = double.counters();
    device.copy_in(Stream::CopyIn, &pieces).unwrap();
    finish(device, Stream::CopyIn);
    let after = double.counters();
    let mut expected = vec![0; 2 * PAGE];
    for (host, offset, bytes) in places.map(|place| (place.0 as usize, place.1 as usize, place.2 as usize)) {
        expected[offset..offset + bytes].copy_from_slice(&arena.read(host, bytes));
    }
    assert_eq!(fetch(device, Stream::CopyIn, buffer.range()), expected);
    (after.copies - before.copies, after.launches - before.launches)
}

/// Copies new bytes in on one stream and out on another, whose copies are held back until the second is enqueued. Returns what
/// came out, and the bytes that were there before and that were copied in.
fn in_and_out(double: &Double, waits: bool) -> [Vec<u8>; 3] {
    let device = open(None);
    let arena = Arena::new(2 * PAGE);
    let extent = device.register(arena.clone()).unwrap();
    assert_eq!(device.is_pinned(extent), Some(true), "a pageable copy out would wait for the gate");
    let buffer = device.allocate(PAGE as u64).unwrap();
    let (old, new) = (pattern(1, PAGE), pattern(2, PAGE));
    device.upload(Stream::CopyIn, &old, buffer.range()).unwrap();
    finish(&device, Stream::CopyIn);
    arena.write(0, &new);
    let gate = double.hold(COPY_IN);
    device.copy_in(Stream::CopyIn, &[piece(extent, 0, buffer.range())]).unwrap();
    let arrived = device.record(Stream::CopyIn).unwrap();
    assert_eq!(device.is_done(arrived), Ok(false), "a pinned copy is asynchronous");
    if waits {
        device.wait(Stream::CopyOut, arrived).unwrap();
    }
    device.copy_out(Stream::CopyOut, &[piece(extent, PAGE as u64, buffer.range())]).unwrap();
    if !waits {
        // Nothing orders the copies, so the one out need not wait for the one in: it finishes first here.
        finish(&device, Stream::CopyOut);
    }
    drop(gate);
    finish(&device, Stream::CopyOut);
    device.synchronize(arrived).unwrap();
    [arena.read(PAGE, PAGE), old, new]
}

#[test]
fn planted_missing_wait_is_seen_as_stale_bytes() {
    let Some(double) = Double::take_hooks() else { return };
    let [out, _, new] = in_and_out(&double, true);
    assert_eq!(out, new, "ordered by an event");
    let [out, old, _] = in_and_out(&double, false);
    assert_eq!(out, old, "the rig sees a missing wait");
    double.assert_nothing_left();
}

#[test]
fn slice_may_be_reused_as_soon_as_upload_returns() {
    let Some(double) = Double::take_hooks() else { return };
    let device = open(None);
    let arena = Arena::new(PAGE);
    device.register(arena.clone()).unwrap();
    let buffer = device.allocate(4 * PAGE as u64).unwrap();
    let gate = double.hold(COPY_IN);
    for part in 0..4 {
        arena.write(0, &pattern(part, PAGE));
        // Pinned memory: the driver itself would read it only when the copy runs.
        // SAFETY: the arena's bytes, which nobody writes while the slice is in use.
        let slice = unsafe { std::slice::from_raw_parts(arena.reader_address(), PAGE) };
        device.upload(Stream::CopyIn, slice, buffer.range().slice(part * PAGE as u64, PAGE as u64)).unwrap();
    }
    arena.write(0, &[0; PAGE]);
    drop(gate);
    let expected: Vec<u8> = (0..4).flat_map(|part| pattern(part, PAGE)).collect();
    assert_eq!(fetch(&device, Stream::CopyIn, buffer.range()), expected);
    drop((buffer, device));
    double.assert_nothing_left();
}

#[test]
fn upload_longer_than_all_staging_memory() {
    let double = Double::take();
    let device =
        CudaDevice::open(CudaConfig { ordinal: 0, budget_bytes: 16 << 20, kernels: KernelSource::None }).unwrap();
    let buffer = device.allocate(7 << 20).unwrap();
    let data = pattern(4, (6 << 20) + 12345);
    // Slow copies: a chunk that is reused too early is seen.
    double.set_jitter_us(5000);
    device.upload(Stream::Compute, &data, buffer.range()).unwrap();
    assert_eq!(fetch(&device, Stream::Compute, buffer.range().slice(0, data.len() as u64)), data);
    assert!(!double.has_counts() || double.counters().pinned_bytes <= 4 << 20, "staging memory is bounded");
    drop((buffer, device));
    double.assert_nothing_left();
}

#[test]
fn dropped_buffer_lives_until_its_work_is_done() {
    let Some(double) = Double::take_hooks() else { return };
    let device = open(None);
    let arena = Arena::new(PAGE);
    let extent = device.register(arena.clone()).unwrap();
    let buffer = device.allocate(PAGE as u64).unwrap();
    let range = buffer.range();
    let gate = double.hold(COPY_IN);
    device.copy_in(Stream::CopyIn, &[piece(extent, 0, range)]).unwrap();
    drop(buffer);
    assert_eq!(double.counters().live_blocks, 1, "the copy is still to come");
    assert_eq!(device.memory().used_bytes, PAGE as u64);
    assert_eq!(device.copy_in(Stream::CopyIn, &[piece(extent, 0, range)]), Err(DeviceError::Range { range }));
    drop(gate);
    assert_eq!(settled(&device).used_bytes, 0);
    assert_eq!(double.counters().live_blocks, 0);
    drop(device);
    double.assert_nothing_left();
}

#[test]
fn planted_early_free_is_an_illegal_address() {
    let Some(double) = Double::take_hooks() else { return };
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let gate = double.hold(FILL);
    // SAFETY: the double checks every address; nothing here is dereferenced by the host.
    unsafe {
        let block = result::malloc_sync(PAGE).unwrap();
        result::memset_d8_async(block, 1, PAGE, stream.cu_stream()).unwrap();
        result::free_sync(block).unwrap();
    }
    drop(gate);
    assert_eq!(stream.synchronize(), Err(DriverError(CUresult::CUDA_ERROR_ILLEGAL_ADDRESS)));
    // A context ends with its sticky error; the next one works.
    drop((stream, context));
    open(None);
    double.assert_nothing_left();
}

#[test]
fn buffer_outlives_its_device() {
    let Some(double) = Double::take_hooks() else { return };
    let device = open(None);
    let buffer = device.allocate(PAGE as u64).unwrap();
    drop(device);
    assert_eq!(double.counters().live_blocks, 1);
    std::thread::spawn(move || drop(buffer)).join().unwrap();
    double.assert_nothing_left();
}

#[test]
fn failed_copy_is_told_once_and_then_the_device_is_lost() {
    let Some(double) = Double::take_hooks() else { return };
    // Once through `synchronize`, once through `is_done`; the copy waits at the gate until the event is recorded, so that it is
    // one of these that tells.
    for polls in [false, true] {
        let device = open(None);
        let arena = Arena::new(PAGE);
        let extent = device.register(arena.clone()).unwrap();
        let buffer = device.allocate(PAGE as u64).unwrap();
        let gate = double.hold(COPY_OUT);
        double.fail(COPY, 3, ECC_UNCORRECTABLE);
        for _ in 0..3 {
            device.copy_out(Stream::CopyOut, &[piece(extent, 0, buffer.range())]).unwrap();
        }
        let event = device.record(Stream::CopyOut).unwrap();
        drop(gate);
        let told = loop {
            match if polls { device.is_done(event) } else { device.synchronize(event).map(|()| true) } {
                Ok(false) => std::thread::yield_now(),
                Ok(true) => panic!("the third copy was to fail"),
                Err(error) => break error,
            }
        };
        assert!(matches!(&told, DeviceError::Driver { reason, .. } if reason.contains("ECC")), "{told:?}");
        assert_eq!(device.is_done(event), Err(DeviceError::Lost));
        assert_eq!(device.synchronize(event), Err(DeviceError::Lost));
        assert_eq!(device.upload(Stream::Compute, &[1], buffer.range()), Err(DeviceError::Lost));
        assert_eq!(device.allocate(1).map(|_| ()).unwrap_err(), DeviceError::Lost);
        drop((buffer, device));
        double.assert_nothing_left();
    }
}

#[test]
fn failure_seen_only_by_a_drop_is_told_to_the_next_caller() {
    let Some(double) = Double::take_hooks() else { return };
    register_gather(&double);
    let device = open(Some(double::IMAGE));
    let arena = Arena::new(PAGE);
    let extent = device.register(arena.clone()).unwrap();
    let [buffer, other] = [device.allocate(PAGE as u64).unwrap(), device.allocate(PAGE as u64).unwrap()];
    double.fail(LAUNCH, 1, LAUNCH_FAILED);
    let pieces = [piece(extent, 0, buffer.range().slice(0, 8)), piece(extent, 8, buffer.range().slice(8, 8))];
    // The launch fails only after the call that enqueues it has returned.
    let gate = double.hold(KERNEL);
    device.copy_in(Stream::CopyIn, &pieces).unwrap();
    drop(gate);
    while CudaContext::new(0).unwrap().synchronize().is_ok() {
        std::thread::yield_now();
    }
    drop(other);
    let told = device.record(Stream::CopyIn).unwrap_err();
    assert!(
        matches!(&told, DeviceError::Driver { what: "free", reason } if reason.contains("launch failure")),
        "{told:?}"
    );
    assert_eq!(device.record(Stream::CopyIn), Err(DeviceError::Lost));
    drop((buffer, device));
    double.assert_nothing_left();
}

#[test]
fn running_out_of_device_memory_leaves_the_device_usable() {
    let Some(double) = Double::take_hooks() else { return };
    double.set_capacity(3 * PAGE);
    let device = open(None);
    let first = device.allocate(2 * PAGE as u64).unwrap();
    let out = |error: DeviceError| matches!(&error, DeviceError::Driver { what: "allocate", reason } if reason.contains("memory"));
    assert!(out(device.allocate(2 * PAGE as u64).map(|_| ()).unwrap_err()));
    assert_eq!(device.memory().used_bytes, 2 * PAGE as u64, "what was refused is not counted");
    // A dropped buffer whose work is still going on is waited for before the driver's refusal is passed on.
    double.set_jitter_us(2000);
    device.upload(Stream::Compute, &pattern(1, PAGE), first.range()).unwrap();
    drop(first);
    let second = device.allocate(2 * PAGE as u64).unwrap();
    double.fail(ALLOCATION, 1, OUT_OF_MEMORY);
    assert!(out(device.allocate(1).map(|_| ()).unwrap_err()));
    let third = device.allocate(1).unwrap();
    double.fail(ALLOCATION, 1, ECC_UNCORRECTABLE);
    drop(third);
    assert!(matches!(device.allocate(1), Err(DeviceError::Driver { .. })));
    assert!(matches!(device.allocate(1), Err(DeviceError::Lost)), "any other refusal ends the device");
    assert_eq!(double.counters().peak_bytes, 2 * PAGE as u64 + 4096);
    drop((second, device));
    double.assert_nothing_left();
}

#[test]
fn events_tell_time_only_when_asked_to() {
    let double = Double::take();
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let timed = || stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).unwrap();
    let (start, end, plain) = (timed(), timed(), stream.record_event(None).unwrap());
    assert!(start.elapsed_ms(&end).unwrap() >= 0.0);
    assert_eq!(start.elapsed_ms(&plain), Err(DriverError(CUresult::CUDA_ERROR_INVALID_HANDLE)));
    drop((start, end, plain, stream, context));
    double.assert_nothing_left();
}
