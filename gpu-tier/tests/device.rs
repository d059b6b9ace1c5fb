//! Memory, streams, events, copies and the modelled link of the `cpu` device.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Extent, Random, open};
use gpu_tier::DeviceError;
use gpu_tier::cpu::isa::Isa;
use gpu_tier::cpu::workers::Workers;
use gpu_tier::cpu::{CpuConfig, CpuDevice, Link};
use gpu_tier::device::{
    CopyPiece, Device, DeviceBuffer, DeviceRange, Event, ExtentId, HostExtent, HostRange, MemoryUse, Stream,
};

const STRICT: Link = Link::Strict { bytes_per_second: None };

fn device(link: Link, budget_bytes: u64) -> CpuDevice {
    open(Isa::Scalar, 1, link, budget_bytes)
}

fn register(device: &CpuDevice, bytes: usize) -> (Arc<Extent>, ExtentId) {
    let extent = Arc::new(Extent::new(bytes, false));
    let id = device.register(Arc::clone(&extent) as Arc<dyn HostExtent>).unwrap();
    (extent, id)
}

fn read(device: &CpuDevice, range: DeviceRange) -> Vec<u8> {
    let mut bytes = vec![0; range.bytes as usize];
    device.download(Stream::Compute, range, &mut bytes).unwrap();
    bytes
}

fn synchronize(device: &CpuDevice, stream: Stream) {
    device.synchronize(device.record(stream).unwrap()).unwrap();
}

#[test]
fn budget_is_exact_and_the_peak_stays() {
    let device = device(STRICT, 40_960);
    let first = device.allocate(1).unwrap();
    let second = device.allocate(4097).unwrap();
    assert_eq!(device.memory(), MemoryUse { budget_bytes: 40_960, used_bytes: 12_288, peak_bytes: 12_288 });
    let refused = device.allocate(28_673).map(|buffer| buffer.range());
    assert_eq!(refused, Err(DeviceError::Full { requested_bytes: 28_673, used_bytes: 12_288, budget_bytes: 40_960 }));
    let third = device.allocate(28_672).unwrap();
    assert!(matches!(device.allocate(1), Err(DeviceError::Full { .. })));
    drop((first, third));
    assert_eq!(device.memory(), MemoryUse { budget_bytes: 40_960, used_bytes: 8192, peak_bytes: 40_960 });
    assert!(matches!(device.allocate(u64::MAX), Err(DeviceError::Full { .. })));
    drop(second);
    assert_eq!(device.memory().used_bytes, 0);
}

#[test]
fn reused_memory_is_zeroed_and_allocations_do_not_overlap() {
    let budget = 24 << 20;
    let device = device(STRICT, budget);
    let mut random = Random(8);
    let mut held: Vec<(DeviceBuffer, u8)> = Vec::new();
    for round in 0..400u32 {
        if !held.is_empty() && random.below(3) == 0 {
            held.swap_remove(random.below(held.len()));
        }
        let bytes = if random.below(8) == 0 { 1 + random.below(5 << 20) } else { 1 + random.below(30_000) };
        match device.allocate(bytes as u64) {
            Ok(buffer) => {
                assert!(read(&device, buffer.range()).iter().all(|byte| *byte == 0), "round {round}");
                let mark = 1 + (round % 250) as u8;
                device.upload(Stream::Compute, &vec![mark; bytes], buffer.range()).unwrap();
                held.push((buffer, mark));
            }
            Err(DeviceError::Full { .. }) => {
                held.swap_remove(random.below(held.len()));
            }
            Err(error) => panic!("{error}"),
        }
        let counted: u64 = held.iter().map(|(buffer, _)| buffer.range().bytes.next_multiple_of(4096)).sum();
        assert_eq!(device.memory().used_bytes, counted);
        assert!(device.memory().peak_bytes <= budget);
        let (buffer, mark) = &held[random.below(held.len())];
        assert!(read(&device, buffer.range()).iter().all(|byte| byte == mark), "round {round}");
    }
    // Whatever the holes were, a whole budget can be had again.
    held.clear();
    device.allocate(budget).unwrap();
}

#[test]
fn freed_and_foreign_ranges_are_refused() {
    let device = device(STRICT, 1 << 20);
    let buffer = device.allocate(100).unwrap();
    let range = buffer.range();
    let beyond = DeviceRange { offset: 90, bytes: 11, ..range };
    let wrapping = DeviceRange { offset: u64::MAX, bytes: 2, ..range };
    for bad in [beyond, wrapping] {
        assert_eq!(device.upload(Stream::Compute, &[1], bad), Err(DeviceError::Range { range: bad }));
    }
    drop(buffer);
    let next = device.allocate(100).unwrap();
    assert_ne!(next.range().buffer, range.buffer, "an id is never used twice");
    let dead = Err(DeviceError::Range { range });
    for stream in [Stream::Compute, Stream::CopyIn, Stream::CopyOut] {
        assert_eq!(device.upload(stream, &[1], range), dead);
        assert_eq!(device.download(stream, range, &mut [0]), dead);
        assert_eq!(device.copy_within(stream, range, next.range()), dead);
        assert_eq!(device.inspect(stream, range, &mut |_| panic!("shown")), dead);
    }
    let (_extent, id) = register(&device, 4096);
    let piece = |extent, offset, bytes, device: DeviceRange| CopyPiece {
        host: HostRange { extent, offset, bytes },
        device: device.slice(0, bytes.min(100)),
    };
    let host = |extent, offset, bytes| Err(DeviceError::HostRange { extent, offset, bytes });
    assert_eq!(device.copy_in(Stream::CopyIn, &[piece(id, 4090, 7, next.range())]), host(id, 4090, 7));
    let unknown = ExtentId(9);
    assert_eq!(device.copy_out(Stream::CopyOut, &[piece(unknown, 0, 7, next.range())]), host(unknown, 0, 7));
    let uneven = device.copy_in(Stream::CopyIn, &[piece(id, 0, 101, next.range())]);
    assert!(matches!(uneven, Err(DeviceError::Shape { .. })));
    assert_eq!(device.traffic().copied_in_bytes + device.traffic().copied_out_bytes, 0);
}

#[test]
fn copies_gather_and_scatter_slices() {
    let device = device(STRICT, 1 << 20);
    let (extent, id) = register(&device, 8192);
    extent.write(100, b"right");
    extent.write(5000, b"left ");
    let buffer = device.allocate(10).unwrap();
    let piece = |offset, at| CopyPiece {
        host: HostRange { extent: id, offset, bytes: 5 },
        device: buffer.range().slice(at, 5),
    };
    device.copy_in(Stream::CopyIn, &[piece(5000, 0), piece(100, 5)]).unwrap();
    synchronize(&device, Stream::CopyIn);
    assert_eq!(read(&device, buffer.range()), b"left right");
    device.copy_out(Stream::CopyOut, &[piece(0, 5), piece(8187, 0)]).unwrap();
    synchronize(&device, Stream::CopyOut);
    assert_eq!((extent.read(0, 5).as_slice(), extent.read(8187, 5).as_slice()), (&b"right"[..], &b"left "[..]));
    let traffic = device.traffic();
    assert_eq!((traffic.copied_in_bytes, traffic.copied_out_bytes), (10, 10));
    device.inspect(Stream::Compute, buffer.range().slice(5, 5), &mut |bytes| assert_eq!(bytes, b"right")).unwrap();
}

#[test]
fn a_free_waits_for_enqueued_copies() {
    // The second copy waits 50 ms behind the first; its target must not be given away before it has landed.
    let device = device(Link::Strict { bytes_per_second: Some(20e6) }, 8 << 20);
    let (extent, id) = register(&device, 1 << 20);
    extent.write(0, &[7; 1 << 20]);
    let (first, second) = (device.allocate(1 << 20).unwrap(), device.allocate(4096).unwrap());
    for buffer in [&first, &second] {
        let host = HostRange { extent: id, offset: 0, bytes: buffer.range().bytes };
        let piece = CopyPiece { host, device: buffer.range() };
        device.copy_in(Stream::CopyIn, &[piece]).unwrap();
    }
    let event = device.record(Stream::CopyIn).unwrap();
    drop(second);
    assert_eq!(device.memory().used_bytes, 1 << 20);
    let next = device.allocate(4096).unwrap();
    device.synchronize(event).unwrap();
    assert!(read(&device, next.range()).iter().all(|byte| *byte == 0), "the copy wrote into a freed allocation");
    drop(first);
}

/// Ping-pong of two buffers over both copy streams, ordered by events alone.
#[test]
fn events_order_copies_across_streams() {
    let device = device(STRICT, 4 << 20);
    let (extent, id) = register(&device, 1 << 20);
    let bytes = 200_000;
    let buffer = device.allocate(bytes).unwrap();
    let host = |offset| HostRange { extent: id, offset, bytes };
    for round in 1..=60u8 {
        extent.write(0, &vec![round; bytes as usize]);
        device.copy_in(Stream::CopyIn, &[CopyPiece { host: host(0), device: buffer.range() }]).unwrap();
        let arrived = device.record(Stream::CopyIn).unwrap();
        device.wait(Stream::CopyOut, arrived).unwrap();
        device.copy_out(Stream::CopyOut, &[CopyPiece { host: host(300_000), device: buffer.range() }]).unwrap();
        let left = device.record(Stream::CopyOut).unwrap();
        // The next copy in must not overtake the copy out.
        device.wait(Stream::CopyIn, left).unwrap();
        device.upload(Stream::CopyIn, &vec![0xee; bytes as usize], buffer.range()).unwrap();
        let cleared = device.record(Stream::CopyIn).unwrap();
        device.wait(Stream::Compute, cleared).unwrap();
        assert!(read(&device, buffer.range()).iter().all(|byte| *byte == 0xee), "round {round}");
        device.synchronize(left).unwrap();
        assert!(extent.read(300_000, bytes as usize).iter().all(|byte| *byte == round), "round {round}");
    }
}

#[test]
fn compute_waits_for_a_slow_copy() {
    let device = device(Link::Strict { bytes_per_second: Some(50e6) }, 4 << 20);
    let (extent, id) = register(&device, 1 << 20);
    extent.write(0, &[9; 1 << 20]);
    let buffer = device.allocate(1 << 20).unwrap();
    let target = device.allocate(1 << 20).unwrap();
    let host = HostRange { extent: id, offset: 0, bytes: 1 << 20 };
    let start = Instant::now();
    device.copy_in(Stream::CopyIn, &[CopyPiece { host, device: buffer.range() }]).unwrap();
    let arrived = device.record(Stream::CopyIn).unwrap();
    device.wait(Stream::Compute, arrived).unwrap();
    device.copy_within(Stream::Compute, buffer.range(), target.range()).unwrap();
    assert!(device.is_done(arrived).unwrap());
    assert!(start.elapsed() >= Duration::from_secs_f64(f64::from(1 << 20) / 50e6));
    assert!(read(&device, target.range()).iter().all(|byte| *byte == 9));
}

#[test]
fn a_busy_link_takes_at_least_its_time_in_each_direction() {
    let rate = 200e6;
    let device = device(Link::Strict { bytes_per_second: Some(rate) }, 4 << 20);
    assert_eq!(device.info().link_bytes_per_second, Some(rate));
    assert!(!device.info().in_place);
    let (_extent, id) = register(&device, 1 << 20);
    let buffer = device.allocate(1 << 20).unwrap();
    let start = Instant::now();
    let bytes = 50_000;
    for i in 0..100u64 {
        let piece = CopyPiece {
            host: HostRange { extent: id, offset: 0, bytes },
            device: buffer.range().slice(i * 1000, bytes),
        };
        device.copy_in(Stream::CopyIn, &[piece]).unwrap();
        device.copy_out(Stream::CopyOut, &[piece]).unwrap();
    }
    let events = [Stream::CopyIn, Stream::CopyOut].map(|stream| device.record(stream).unwrap());
    for event in events {
        device.synchronize(event).unwrap();
        assert!(start.elapsed() >= Duration::from_secs_f64(100.0 * bytes as f64 / rate), "{event:?}");
    }
}

#[test]
fn events_that_were_never_recorded_are_refused() {
    let device = device(STRICT, 1 << 20);
    for stream in [Stream::Compute, Stream::CopyIn, Stream::CopyOut] {
        let event = device.record(stream).unwrap();
        assert!(event.sequence >= 1);
        device.synchronize(event).unwrap();
        assert!(device.is_done(event).unwrap());
        let future = Event { sequence: event.sequence + 10, ..event };
        assert!(matches!(device.is_done(future), Err(DeviceError::Shape { .. })));
        assert!(matches!(device.synchronize(future), Err(DeviceError::Shape { .. })));
        assert!(matches!(device.wait(Stream::CopyIn, future), Err(DeviceError::Shape { .. })));
    }
}

#[test]
fn full_queue_waits_and_a_closing_device_drains() {
    // More operations than a queue holds, at a rate that would take minutes; dropping the device does not.
    let device = device(Link::Strict { bytes_per_second: Some(1e6) }, 4 << 20);
    let (extent, id) = register(&device, 1 << 20);
    let buffer = device.allocate(1 << 20).unwrap();
    for i in 0..3000u32 {
        device.upload(Stream::CopyOut, &i.to_ne_bytes(), buffer.range()).unwrap();
    }
    synchronize(&device, Stream::CopyOut);
    assert_eq!(read(&device, buffer.range().slice(0, 4)), 2999u32.to_ne_bytes());
    let host = HostRange { extent: id, offset: 0, bytes: 1 << 20 };
    for _ in 0..300 {
        device.copy_out(Stream::CopyOut, &[CopyPiece { host, device: buffer.range() }]).unwrap();
    }
    drop(device);
    assert_eq!(extent.read(0, 4), 2999u32.to_ne_bytes());
    drop(buffer);
}

#[test]
fn copies_run_beside_a_scribbler() {
    let device = device(STRICT, 4 << 20);
    let (extent, id) = register(&device, 1 << 20);
    let buffer = device.allocate(1 << 20).unwrap();
    let host = HostRange { extent: id, offset: 0, bytes: 1 << 20 };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Random(2);
            while !stop.load(Ordering::Relaxed) {
                let byte = random.next() as u8 | 1;
                extent.write(random.below((1 << 20) - 64), &[byte; 64]);
            }
        });
        for _ in 0..50 {
            device.copy_in(Stream::CopyIn, &[CopyPiece { host, device: buffer.range() }]).unwrap();
            synchronize(&device, Stream::CopyIn);
        }
        stop.store(true, Ordering::Relaxed);
    });
    device.copy_in(Stream::CopyIn, &[CopyPiece { host, device: buffer.range() }]).unwrap();
    let mut bytes = vec![0; 1 << 20];
    device.download(Stream::CopyIn, buffer.range(), &mut bytes).unwrap();
    assert!(bytes == extent.read(0, 1 << 20));
}

#[test]
fn unusable_settings_are_refused() {
    let try_open = |link, budget_bytes| {
        let workers = Arc::new(Workers::new(1));
        CpuDevice::open(CpuConfig { budget_bytes, link, workers, isa: Isa::Scalar }).map(drop)
    };
    for rate in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let outcome = try_open(Link::Strict { bytes_per_second: Some(rate) }, 4096);
        assert!(matches!(outcome, Err(DeviceError::Unavailable { .. })), "{rate}");
    }
    assert!(matches!(try_open(Link::InPlace, u64::MAX), Err(DeviceError::Unavailable { .. })));
    try_open(Link::InPlace, 0).unwrap();
}
