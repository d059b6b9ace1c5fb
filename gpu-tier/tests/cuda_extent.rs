//! Host extents of the cuda device: memory that is only read, pinned or not, and memory that the driver will not pin.

#[path = "cuda_double/contract.rs"]
#[expect(dead_code, reason = "tests of the device use the rest")]
mod contract;
#[path = "cuda_double/double.rs"]
#[expect(dead_code, reason = "tests of the device use the rest")]
mod double;

use std::sync::Arc;

use contract::{Arena, fetch, finish, pattern, piece};
use double::Double;
use gpu_tier::DeviceError;
use gpu_tier::attention::closed::{Closed, ClosedPlace, Encode};
use gpu_tier::attention::{Attention, Element, Geometry, SectionPlace};
use gpu_tier::cuda::{CudaConfig, CudaDevice, KernelSource};
use gpu_tier::device::{Device, DeviceBuffer, ExtentId, HostRange, Stream};

const PAGE: u64 = 4096;

fn open() -> CudaDevice {
    CudaDevice::open(CudaConfig { ordinal: 0, budget_bytes: 16 << 20, kernels: KernelSource::Embedded }).unwrap()
}

/// Registers four pages that can only be read, copies them in in another order, and is refused when they are to be written. Returns whether they were
/// pinned, as how many bytes that the device may only read, and the copies and launches that it took.
fn lend(double: &Double) -> (bool, u64, u64, u64) {
    let device = open();
    let arena = Arena::new(4 * PAGE as usize);
    let data = pattern(1, 4 * PAGE as usize);
    arena.write(0, &data);
    arena.protect();
    let extent = device.register(arena.clone()).unwrap();
    let buffer = device.allocate(4 * PAGE).unwrap();
    let before = double.counters();
    let at = |from: u64, to: u64| piece(extent, from * PAGE, buffer.range().slice(to * PAGE, PAGE));
    device.copy_in(Stream::CopyIn, &[at(2, 0), at(3, 1), at(0, 2), at(1, 3)]).unwrap();
    finish(&device, Stream::CopyIn);
    let after = double.counters();
    let (first, last) = data.split_at(2 * PAGE as usize);
    assert_eq!(fetch(&device, Stream::CopyIn, buffer.range()), [last, first].concat());
    refuses_writes(&device, extent, double);
    assert_eq!(arena.read(0, data.len()), data);
    let pinned = device.is_pinned(extent).unwrap();
    drop((buffer, device));
    double.assert_nothing_left();
    (pinned, before.read_only_bytes, after.copies - before.copies, after.launches - before.launches)
}

/// Neither a copy nor a kernel writes there, and nothing is enqueued.
fn refuses_writes(device: &CudaDevice, extent: ExtentId, double: &Double) {
    let refused = Err(DeviceError::ReadOnly { extent });
    let geometry =
        Geometry { heads: 1, kv_heads: 1, head_dim: 16, block_tokens: 64, element: Element::Bf16, scale: 0.25 };
    let memory = device.allocate(8192).unwrap();
    let (before, copied) = (double.counters(), device.traffic().copied_out_bytes);
    assert_eq!(device.copy_out(Stream::CopyOut, &[piece(extent, 0, memory.range().slice(0, PAGE))]), refused);
    // Keys' scales of 16 rows, values' of 64, and codes of half a byte.
    let place = |offset, bytes| SectionPlace::Host(HostRange { extent, offset, bytes });
    let into = ClosedPlace { header: Some(place(0, 64)), scale: place(64, 256), codes: place(320, 1024) };
    let exact = SectionPlace::Device(memory.range().slice(0, geometry.section_bytes()));
    let job = Encode { exact, into, verdict: memory.range().slice(4096, 4) };
    assert_eq!(device.encode(Stream::Compute, &geometry, Closed::KC4VT4, &[job]), refused);
    assert_eq!((double.counters(), device.traffic().copied_out_bytes), (before, copied));
}

#[test]
fn memory_that_is_only_read_is_pinned_so() {
    let Some(double) = Double::take_hooks() else { return };
    double.set_jitter_us(100);
    // One launch reads all of it over the bus; its table lies in pinned memory as well.
    assert_eq!(lend(&double), (true, 4 * PAGE, 0, 1));
}

#[test]
fn memory_that_is_only_read_works_on_a_card_that_cannot_pin_it() {
    let Some(double) = Double::take_hooks() else { return };
    double.set_jitter_us(100);
    double.forbid_read_only_registration();
    assert_eq!(lend(&double), (false, 0, 4, 0));
}

#[test]
fn memory_that_is_only_read_works_where_the_driver_refuses_to_pin_it() {
    let Some(double) = Double::take_hooks() else { return };
    double.set_jitter_us(100);
    double.refuse_registration();
    assert_eq!(lend(&double), (false, 0, 4, 0));
}

/// Only what is lent is registered so: what can be written is pinned as ever, on either kind of card.
#[test]
fn memory_that_can_be_written_is_not_pinned_read_only() {
    let Some(double) = Double::take_hooks() else { return };
    for supported in [true, false] {
        if !supported {
            double.forbid_read_only_registration();
        }
        let device = open();
        let extent = device.register(Arena::new(PAGE as usize)).unwrap();
        assert_eq!((device.is_pinned(extent), double.counters().read_only_bytes), (Some(true), 0));
        drop(device);
        double.assert_nothing_left();
    }
}

/// A device whose driver pins nothing of ours, an arena with a pattern in its first half, and a buffer of that size.
fn unpinned(double: &Double, bytes: u64) -> (CudaDevice, Arc<Arena>, ExtentId, DeviceBuffer) {
    double.refuse_registration();
    let device = open();
    let arena = Arena::new(2 * bytes as usize);
    arena.write(0, &pattern(2, bytes as usize));
    let extent = device.register(arena.clone()).unwrap();
    assert_eq!(device.is_pinned(extent), Some(false));
    let buffer = device.allocate(bytes).unwrap();
    (device, arena, extent, buffer)
}

/// Neither its caller nor another stream waits for it: a copy out is held back, and then what would write its bytes to the host.
#[test]
fn copies_of_unpinned_memory_overlap() {
    let Some(double) = Double::take_hooks() else { return };
    let (device, arena, extent, buffer) = unpinned(&double, 4 * PAGE);
    let data = arena.read(0, 4 * PAGE as usize);
    let whole = buffer.range();
    device.copy_in(Stream::CopyIn, &[piece(extent, 0, whole)]).unwrap();
    finish(&device, Stream::CopyIn);
    for held in [double::COPY_OUT, double::HOST_FUNCTION] {
        arena.write(4 * PAGE as usize, &vec![0; 4 * PAGE as usize]);
        let gate = double.hold(held);
        device.copy_out(Stream::CopyOut, &[piece(extent, 4 * PAGE, whole)]).unwrap();
        let out = device.record(Stream::CopyOut).unwrap();
        if held == double::COPY_OUT {
            // A copy in of the same memory begins and ends meanwhile.
            device.copy_in(Stream::CopyIn, &[piece(extent, 0, whole)]).unwrap();
            finish(&device, Stream::CopyIn);
        }
        device.upload(Stream::Compute, &[1], device.allocate(1).unwrap().range()).unwrap();
        finish(&device, Stream::Compute);
        assert_eq!(device.is_done(out), Ok(false));
        assert_eq!(arena.read(4 * PAGE as usize, data.len()), vec![0; data.len()]);
        drop(gate);
        device.synchronize(out).unwrap();
        assert_eq!(arena.read(4 * PAGE as usize, data.len()), data);
    }
    drop((buffer, device));
    double.assert_nothing_left();
}

/// More than the slots hold, in pieces that end nowhere near theirs, both ways, under jitter.
#[test]
fn slots_for_unpinned_memory_are_bounded_and_reused_in_time() {
    let Some(double) = Double::take_hooks() else { return };
    let bytes = 6 << 20;
    let (device, arena, extent, buffer) = unpinned(&double, bytes);
    double.set_jitter_us(2000);
    let cuts = [0, 1, 700, 1 << 20, (1 << 20) + 3, 5 << 20, bytes];
    let pieces = |host: u64| -> Vec<_> {
        let of = |cut: &[u64]| piece(extent, host + cut[0], buffer.range().slice(cut[0], cut[1] - cut[0]));
        cuts.windows(2).map(of).collect()
    };
    device.copy_in(Stream::CopyIn, &pieces(0)).unwrap();
    device.wait(Stream::CopyOut, device.record(Stream::CopyIn).unwrap()).unwrap();
    device.copy_out(Stream::CopyOut, &pieces(bytes)).unwrap();
    assert_eq!(double.counters().pinned_bytes, 2 * (4 << 20), "four slots a stream");
    finish(&device, Stream::CopyOut);
    assert_eq!(arena.read(bytes as usize, bytes as usize), pattern(2, bytes as usize));
    drop((buffer, device));
    double.assert_nothing_left();
}

/// A context that fails calls no host function any more: what it was to copy stays as it was, and nothing is left.
#[test]
fn failed_copy_of_unpinned_memory_writes_nothing() {
    let Some(double) = Double::take_hooks() else { return };
    let (device, arena, extent, buffer) = unpinned(&double, PAGE);
    let gate = double.hold(double::COPY_OUT);
    double.fail(double::COPY, 1, double::ECC_UNCORRECTABLE);
    device.copy_out(Stream::CopyOut, &[piece(extent, PAGE, buffer.range())]).unwrap();
    let out = device.record(Stream::CopyOut).unwrap();
    drop(gate);
    assert!(matches!(device.synchronize(out), Err(DeviceError::Driver { .. })));
    assert_eq!(device.is_done(out), Err(DeviceError::Lost));
    drop((buffer, device));
    assert_eq!(arena.read(PAGE as usize, PAGE as usize), vec![0; PAGE as usize]);
    double.assert_nothing_left();
}
