//! What the tests of the host build share: aligned memory, and the kernels behind the traits of the reference.

#![allow(dead_code, reason = "each test crate uses a part")]

pub mod codec;

use cuda_shim::{Argument, Schedule, launch};

/// Bytes at a multiple of 256, as device memory is.
pub struct Bytes {
    memory: Vec<Line>,
    len: usize,
}

#[derive(Clone, Copy)]
#[repr(align(256))]
struct Line([u8; 256]);

impl Bytes {
    pub fn filled(len: usize, byte: u8) -> Bytes {
        Bytes { memory: vec![Line([byte; 256]); len.div_ceil(256).max(1)], len }
    }

    pub fn of(bytes: &[u8]) -> Bytes {
        let mut out = Bytes::filled(bytes.len(), 0);
        out.as_mut().copy_from_slice(bytes);
        out
    }

    pub fn of_floats(floats: &[f32]) -> Bytes {
        Bytes::of(&floats.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())
    }

    pub fn of_words(words: &[u16]) -> Bytes {
        Bytes::of(&words.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())
    }

    pub fn address(&self) -> u64 {
        self.memory.as_ptr() as u64
    }

    pub fn as_ref(&self) -> &[u8] {
        // SAFETY: `len` bytes of the lines, which are plain bytes.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().cast(), self.len) }
    }

    pub fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_mut_ptr().cast(), self.len) }
    }

    pub fn floats(&self) -> Vec<f32> {
        self.as_ref().chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect()
    }

    pub fn words(&self) -> Vec<u16> {
        self.as_ref().chunks_exact(2).map(|x| u16::from_le_bytes([x[0], x[1]])).collect()
    }
}

/// A table of records, each a list of words.
pub fn table(words: &[u64]) -> Bytes {
    Bytes::of(&words.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())
}

/// Runs a kernel, which must finish.
pub fn run(name: &str, grid: [u32; 3], threads: u32, arguments: &[Argument], schedule: Schedule) {
    // SAFETY: each caller lays out the kernel's tables as its file states, over memory that lives through the call.
    unsafe { launch(name, grid, [threads, 1, 1], arguments, schedule) }.unwrap();
}
