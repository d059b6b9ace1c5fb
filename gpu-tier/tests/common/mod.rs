//! What the device tests share: a host extent with two mappings, and numbers from a seed.

#![allow(dead_code, reason = "each test crate uses a part")]

use std::os::fd::OwnedFd;
use std::sync::Arc;

use gpu_tier::cpu::isa::Isa;
use gpu_tier::cpu::workers::Workers;
use gpu_tier::cpu::{CpuConfig, CpuDevice, Link};
use gpu_tier::device::{Device, DeviceBuffer, DeviceRange, HostExtent, Stream};
use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Opens a device with a given team.
pub fn open(isa: Isa, workers: usize, link: Link, budget_bytes: u64) -> CpuDevice {
    let workers = Arc::new(Workers::new(workers));
    CpuDevice::open(CpuConfig { budget_bytes, link, workers, isa }).unwrap()
}

/// A memfd mapped twice: read-write for the copy engine, and for the reader as asked.
pub struct Extent {
    service: *mut u8,
    reader: *const u8,
    bytes: usize,
    _file: OwnedFd,
}

// SAFETY: only the addresses of mappings that live as long as the object; the tests treat the bytes as racy data.
unsafe impl Send for Extent {}
// SAFETY: as above.
unsafe impl Sync for Extent {}

impl Extent {
    pub fn new(bytes: usize, reader_readable: bool) -> Extent {
        let file = rustix::fs::memfd_create("kvtier-test-extent", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, bytes as u64).unwrap();
        let reader_protection = if reader_readable { ProtFlags::READ } else { ProtFlags::empty() };
        let map = |protection| {
            // SAFETY: a new mapping at an address of the kernel's choice.
            unsafe { mmap(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED, &file, 0) }.unwrap()
        };
        let service = map(ProtFlags::READ | ProtFlags::WRITE).cast();
        Extent { service, reader: map(reader_protection).cast_const().cast(), bytes, _file: file }
    }

    /// Writes through the service mapping.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.bytes);
        // SAFETY: inside the mapping, as asserted.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.service.add(offset), bytes.len()) }
    }

    /// Reads through the service mapping.
    pub fn read(&self, offset: usize, bytes: usize) -> Vec<u8> {
        assert!(offset + bytes <= self.bytes);
        let mut out = vec![0; bytes];
        // SAFETY: inside the mapping, as asserted.
        unsafe { std::ptr::copy_nonoverlapping(self.service.add(offset), out.as_mut_ptr(), bytes) }
        out
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        // SAFETY: both mappings were made by `new` with this length; devices that know the extent hold an `Arc` of it.
        unsafe {
            munmap(self.service.cast(), self.bytes).unwrap();
            munmap(self.reader.cast_mut().cast(), self.bytes).unwrap();
        }
    }
}

// SAFETY: both mappings are page-aligned, `bytes` long and live until the object drops.
unsafe impl HostExtent for Extent {
    fn service_address(&self) -> *mut u8 {
        self.service
    }
    fn reader_address(&self) -> *const u8 {
        self.reader
    }
    fn bytes(&self) -> u64 {
        self.bytes as u64
    }
}

/// xorshift64*.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    /// Roughly normal, variance 1.
    pub fn normal(&mut self) -> f32 {
        let sum: f64 = (0..4).map(|_| (self.next() >> 11) as f64 / (1u64 << 53) as f64).sum();
        ((sum - 2.0) * 3f64.sqrt()) as f32
    }

    pub fn normals(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// The bytes of an f32 array.
pub fn bytes_of(floats: &[f32]) -> Vec<u8> {
    floats.iter().flat_map(|x| x.to_ne_bytes()).collect()
}

/// The f32 array in some bytes.
pub fn floats_of(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|x| f32::from_ne_bytes([x[0], x[1], x[2], x[3]])).collect()
}

/// Bytes in device memory.
pub fn put(device: &CpuDevice, bytes: &[u8]) -> DeviceBuffer {
    let buffer = device.allocate(bytes.len() as u64).unwrap();
    device.upload(Stream::Compute, bytes, buffer.range()).unwrap();
    buffer
}

/// Device memory as bytes.
pub fn get(device: &CpuDevice, range: DeviceRange) -> Vec<u8> {
    let mut bytes = vec![0; range.bytes as usize];
    device.download(Stream::Compute, range, &mut bytes).unwrap();
    bytes
}
