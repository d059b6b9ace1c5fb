//! What every device must do, whatever it is: one body for the cpu device and for CUDA over the driver double.

use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gpu_tier::DeviceError;
use gpu_tier::device::{
    BufferId, CopyPiece, Device, DeviceRange, Event, ExtentId, HostExtent, HostRange, MemoryUse, Stream,
};
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};

/// The budget that [`check`] wants its device to be opened with.
pub const BUDGET: u64 = 64 << 10;
const PAGE: u64 = 4096;

/// A mapped piece of host memory.
pub struct Arena {
    start: NonNull<u8>,
    bytes: usize,
    read_only: AtomicBool,
}

// SAFETY: a plain mapping that lives as long as the object.
unsafe impl Send for Arena {}
// SAFETY: as above; its bytes are only reached through raw pointers.
unsafe impl Sync for Arena {}

// SAFETY: the mapping is made in `new`, is page-aligned as every mapping, and ends in `drop`.
unsafe impl HostExtent for Arena {
    fn service_address(&self) -> *mut u8 {
        self.start.as_ptr()
    }
    fn reader_address(&self) -> *const u8 {
        self.start.as_ptr()
    }
    fn bytes(&self) -> u64 {
        self.bytes as u64
    }
    fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::SeqCst)
    }
}

impl Arena {
    pub fn new(bytes: usize) -> Arc<Arena> {
        // SAFETY: a fresh mapping that nothing refers to yet.
        let map =
            unsafe { mmap_anonymous(null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED) }.unwrap();
        Arc::new(Arena { start: NonNull::new(map.cast()).unwrap(), bytes, read_only: AtomicBool::new(false) })
    }

    /// From here on it can only be read, as memory that another process lends.
    pub fn protect(&self) {
        // SAFETY: the mapping made in `new`; who writes after this is told by a fault.
        unsafe { mprotect(self.start.as_ptr().cast(), self.bytes, MprotectFlags::READ) }.unwrap();
        self.read_only.store(true, Ordering::SeqCst);
    }

    /// Writes bytes that no work is copying.
    pub fn write(&self, offset: usize, data: &[u8]) {
        assert!(offset + data.len() <= self.bytes);
        // SAFETY: inside the mapping, checked above.
        unsafe { self.start.as_ptr().add(offset).copy_from_nonoverlapping(data.as_ptr(), data.len()) };
    }

    /// Reads bytes that no work is writing.
    pub fn read(&self, offset: usize, bytes: usize) -> Vec<u8> {
        assert!(offset + bytes <= self.bytes);
        let mut data = vec![0; bytes];
        // SAFETY: inside the mapping, checked above.
        unsafe { data.as_mut_ptr().copy_from_nonoverlapping(self.start.as_ptr().add(offset), bytes) };
        data
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`; the devices that knew the arena have let go of it.
        unsafe { munmap(self.start.as_ptr().cast(), self.bytes) }.unwrap();
    }
}

/// Bytes that differ from place to place and from seed to seed, without a period: the top byte of a Weyl sequence.
pub fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let at = |index: u64| (index + 1 + (seed << 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (0..bytes as u64).map(|index| (at(index) >> 56) as u8).collect()
}

/// A piece of a copy.
pub fn piece(extent: ExtentId, offset: u64, device: DeviceRange) -> CopyPiece {
    CopyPiece { host: HostRange { extent, offset, bytes: device.bytes }, device }
}

/// Marks the end of a stream's work and waits for it.
pub fn finish(device: &dyn Device, stream: Stream) {
    device.synchronize(device.record(stream).unwrap()).unwrap();
}

/// Memory use once all enqueued work is done.
pub fn settled(device: &dyn Device) -> MemoryUse {
    for stream in [Stream::Compute, Stream::CopyIn, Stream::CopyOut] {
        finish(device, stream);
    }
    device.memory()
}

/// The bytes of a range, through the stream.
pub fn fetch(device: &dyn Device, stream: Stream, range: DeviceRange) -> Vec<u8> {
    let mut data = vec![0; usize::try_from(range.bytes).unwrap()];
    device.download(stream, range, &mut data).unwrap();
    data
}

/// Runs the whole contract on a fresh device with a budget of [`BUDGET`] and `page_overhead` bytes counted beyond whole pages
/// for each allocation.
pub fn check(device: &dyn Device, page_overhead: u64) {
    budget_is_hard_and_exact(device, page_overhead);
    bytes_survive_upload_and_download(device);
    ranges_are_checked(device);
    copies_are_ordered_across_streams(device);
    pieces_are_copied_in_order(device);
    read_only_extents_are_never_written(device);
    any_thread_may_use_it(device);
}

fn budget_is_hard_and_exact(device: &dyn Device, overhead: u64) {
    assert_eq!(device.memory().used_bytes, 0);
    assert_eq!(device.memory().budget_bytes, BUDGET);
    let first = device.allocate(3 * PAGE).unwrap();
    assert_eq!(fetch(device, Stream::Compute, first.range()), vec![0; 3 * PAGE as usize], "fresh memory is zero");
    let second = device.allocate(PAGE + 1).unwrap();
    let used = 5 * PAGE + 2 * overhead;
    assert_eq!(device.memory().used_bytes, used);
    let refused = device.allocate(BUDGET - used + 1).map(|_| ()).unwrap_err();
    let full = DeviceError::Full { requested_bytes: BUDGET - used + 1, used_bytes: used, budget_bytes: BUDGET };
    assert_eq!(refused, full);
    device.upload(Stream::CopyIn, &pattern(1, 4096), first.range()).unwrap();
    drop(first);
    let used = used - 3 * PAGE - overhead;
    assert_eq!(settled(device).used_bytes, used);
    let rest = (BUDGET - used - overhead) / PAGE * PAGE;
    device.upload(Stream::CopyIn, &pattern(1, 4096), device.allocate(rest).unwrap().range()).unwrap();
    // That buffer is gone again, maybe before its upload: there is room for whoever asks, and nothing of it is left.
    let third = device.allocate(rest).unwrap();
    assert_eq!(fetch(device, Stream::CopyOut, third.range()), vec![0; rest as usize], "reused memory is zero");
    drop((second, third));
    let after = settled(device);
    assert_eq!((after.used_bytes, after.peak_bytes), (0, used + rest + overhead));
}

fn bytes_survive_upload_and_download(device: &dyn Device) {
    let buffer = device.allocate(2 * PAGE).unwrap();
    let other = device.allocate(2 * PAGE).unwrap();
    let data = pattern(2, 5000);
    device.upload(Stream::Compute, &data, buffer.range().slice(100, 6000)).unwrap();
    device.copy_within(Stream::Compute, buffer.range().slice(100, 5000), other.range().slice(3, 5000)).unwrap();
    let mut seen = Vec::new();
    device.inspect(Stream::Compute, other.range(), &mut |bytes| seen = bytes.to_vec()).unwrap();
    assert_eq!(seen[..3], [0; 3]);
    assert_eq!(seen[3..5003], data);
    assert_eq!(seen[5003..], [0; 8192 - 5003]);
    device.upload(Stream::Compute, &[], buffer.range()).unwrap();
    let mut part = [0; 10];
    device.download(Stream::Compute, buffer.range().slice(100, 4000), &mut part).unwrap();
    assert_eq!(part, data[..10]);
}

fn ranges_are_checked(device: &dyn Device) {
    let arena = Arena::new(PAGE as usize);
    let extent = device.register(arena.clone()).unwrap();
    let buffer = device.allocate(PAGE).unwrap();
    let whole = buffer.range();
    let beyond = DeviceRange { offset: 1, ..whole };
    let unknown = DeviceRange { buffer: BufferId(u64::MAX), ..whole };
    for bad in [beyond, unknown, DeviceRange { offset: u64::MAX, ..whole }] {
        let range = DeviceError::Range { range: bad };
        assert_eq!(device.copy_in(Stream::CopyIn, &[piece(extent, 0, bad)]), Err(range.clone()));
        assert_eq!(device.copy_out(Stream::CopyOut, &[piece(extent, 0, bad)]), Err(range.clone()));
        assert_eq!(device.copy_within(Stream::Compute, bad, whole), Err(range.clone()));
        assert_eq!(device.upload(Stream::Compute, &[1], bad), Err(range.clone()));
        assert_eq!(device.download(Stream::Compute, bad, &mut [0]), Err(range.clone()));
        assert_eq!(device.inspect(Stream::Compute, bad, &mut |_| panic!("nothing to see")), Err(range));
    }
    let outside = device.copy_in(Stream::CopyIn, &[piece(extent, 1, whole)]).unwrap_err();
    assert_eq!(outside, DeviceError::HostRange { extent, offset: 1, bytes: PAGE });
    let nowhere = ExtentId(u32::MAX);
    let outside = device.copy_out(Stream::CopyOut, &[piece(nowhere, 0, whole)]).unwrap_err();
    assert_eq!(outside, DeviceError::HostRange { extent: nowhere, offset: 0, bytes: PAGE });
    let short = CopyPiece { host: HostRange { extent, offset: 0, bytes: 8 }, device: whole };
    assert!(matches!(device.copy_in(Stream::CopyIn, &[short]), Err(DeviceError::Shape { .. })));
    assert!(matches!(device.upload(Stream::Compute, &[0; 9], whole.slice(0, 8)), Err(DeviceError::Shape { .. })));
    assert!(matches!(device.download(Stream::Compute, whole.slice(0, 8), &mut [0; 9]), Err(DeviceError::Shape { .. })));
    assert!(matches!(
        device.is_done(Event { stream: Stream::CopyIn, sequence: u64::MAX }),
        Err(DeviceError::Shape { .. })
    ));
    drop(buffer);
    assert_eq!(device.upload(Stream::Compute, &[1], whole), Err(DeviceError::Range { range: whole }));
    assert_eq!(settled(device).used_bytes, 0);
}

fn copies_are_ordered_across_streams(device: &dyn Device) {
    let arena = Arena::new(4 * PAGE as usize);
    let extent = device.register(arena.clone()).unwrap();
    let [front, back] = [device.allocate(PAGE).unwrap(), device.allocate(PAGE).unwrap()];
    let before = device.traffic();
    for round in 0..10 {
        let data = pattern(round, PAGE as usize);
        arena.write(0, &data);
        // In through one stream, within through another, out through the third: each step needs the one before.
        device.copy_in(Stream::CopyIn, &[piece(extent, 0, front.range())]).unwrap();
        let arrived = device.record(Stream::CopyIn).unwrap();
        device.wait(Stream::Compute, arrived).unwrap();
        device.copy_within(Stream::Compute, front.range(), back.range()).unwrap();
        let moved = device.record(Stream::Compute).unwrap();
        device.wait(Stream::CopyOut, moved).unwrap();
        device.copy_out(Stream::CopyOut, &[piece(extent, 2 * PAGE, back.range())]).unwrap();
        let left = device.record(Stream::CopyOut).unwrap();
        device.synchronize(left).unwrap();
        assert!([arrived, moved, left].iter().all(|event| device.is_done(*event).unwrap()), "round {round}");
        assert_eq!(arena.read(2 * PAGE as usize, PAGE as usize), data, "round {round}");
    }
    let after = device.traffic();
    assert_eq!(after.copied_in_bytes - before.copied_in_bytes, 10 * PAGE);
    assert_eq!(after.copied_out_bytes - before.copied_out_bytes, 10 * PAGE);
}

fn pieces_are_copied_in_order(device: &dyn Device) {
    let arena = Arena::new(2 * PAGE as usize);
    let extent = device.register(arena.clone()).unwrap();
    let buffer = device.allocate(PAGE).unwrap();
    arena.write(0, &pattern(5, 2 * PAGE as usize));
    // The second piece overwrites a part of the first; the third is empty.
    let whole = buffer.range();
    let pieces =
        [piece(extent, 0, whole), piece(extent, PAGE, whole.slice(1000, 500)), piece(extent, 0, whole.slice(9, 0))];
    device.copy_in(Stream::CopyIn, &pieces).unwrap();
    let mut expected = arena.read(0, PAGE as usize);
    expected[1000..1500].copy_from_slice(&arena.read(PAGE as usize, 500));
    assert_eq!(fetch(device, Stream::CopyIn, whole), expected);
    // Scattered into overlapping host ranges: the later piece wins here too.
    let pieces = [piece(extent, PAGE, whole.slice(0, 600)), piece(extent, PAGE + 300, whole.slice(2000, 600))];
    device.copy_out(Stream::CopyIn, &pieces).unwrap();
    finish(device, Stream::CopyIn);
    assert_eq!(arena.read(PAGE as usize, 300), expected[..300]);
    assert_eq!(arena.read(PAGE as usize + 300, 600), expected[2000..2600]);
}

fn read_only_extents_are_never_written(device: &dyn Device) {
    let arena = Arena::new(2 * PAGE as usize);
    let data = pattern(6, 2 * PAGE as usize);
    arena.write(0, &data);
    arena.protect();
    let extent = device.register(arena.clone()).unwrap();
    let buffer = device.allocate(2 * PAGE).unwrap();
    let whole = buffer.range();
    // Apart and in another order: on one kind of device a launch, on another copies.
    let pieces = [piece(extent, PAGE, whole.slice(0, PAGE)), piece(extent, 0, whole.slice(PAGE, PAGE))];
    device.copy_in(Stream::CopyIn, &pieces).unwrap();
    let swapped = [&data[PAGE as usize..], &data[..PAGE as usize]].concat();
    assert_eq!(fetch(device, Stream::CopyIn, whole), swapped);
    let before = device.traffic().copied_out_bytes;
    for pieces in [&pieces[..], &pieces[..1]] {
        assert_eq!(device.copy_out(Stream::CopyOut, pieces), Err(DeviceError::ReadOnly { extent }));
    }
    finish(device, Stream::CopyOut);
    assert_eq!(arena.read(0, 2 * PAGE as usize), data);
    assert_eq!(device.traffic().copied_out_bytes, before);
}

fn any_thread_may_use_it(device: &dyn Device) {
    let data = pattern(7, PAGE as usize);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let buffer = device.allocate(PAGE).unwrap();
                device.upload(Stream::Compute, &data, buffer.range()).unwrap();
                assert_eq!(fetch(device, Stream::Compute, buffer.range()), data);
                // The buffer is freed on a thread that ends with it.
                std::thread::scope(|inner| inner.spawn(move || drop(buffer)).join().unwrap());
            });
        }
    });
    assert_eq!(settled(device).used_bytes, 0);
}
