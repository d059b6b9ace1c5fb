//! What a launch did: instructions, traffic, conflicts.

use std::ops::AddAssign;

/// Kinds of instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Kind {
    /// Integer and bit arithmetic.
    Integer,
    /// f32 arithmetic.
    Float32,
    /// f64 arithmetic.
    Float64,
    /// f16 and bf16 arithmetic.
    Float16,
    /// `.approx` functions: what the special function units do.
    Special,
    /// `cvt`.
    Convert,
    /// Comparisons, selections and predicate logic.
    Compare,
    /// `mov`, packing, `prmt`, `cvta`.
    Move,
    /// Loads and stores of global memory, atomics included.
    Global,
    /// Loads and stores of shared memory, `ldmatrix` included.
    Shared,
    /// Loads and stores of local memory.
    Local,
    /// Loads of parameters and constants.
    Constant,
    /// `cp.async` and its groups.
    AsyncCopy,
    /// `mma.sync`.
    Matrix,
    /// Shuffles, votes and other exchange inside a warp.
    Warp,
    /// Barriers and fences.
    Sync,
    /// Branches and exits.
    Control,
}

/// Number of [`Kind`]s.
pub const KINDS: usize = Kind::Control as usize + 1;

/// What a launch did. A warp request is one instruction of one warp, whatever lanes take part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Instructions of warps, by [`Kind`].
    pub warp_instructions: [u64; KINDS],
    /// Instructions of threads, by [`Kind`].
    pub thread_instructions: [u64; KINDS],
    /// Bytes loaded from global memory, by the width of a thread's access: 1, 2, 4, 8, 16, 32 bytes.
    pub global_load_bytes: [u64; 6],
    /// Bytes stored to global memory, as above.
    pub global_store_bytes: [u64; 6],
    /// Warp requests to global memory.
    pub global_requests: u64,
    /// Sectors of 32 bytes that those requests touch.
    pub global_sectors: u64,
    /// The least sectors that the bytes of each request could have been in.
    pub global_sectors_least: u64,
    /// Bytes of global accesses of 16 bytes a thread or more in requests that touch no sector in vain.
    pub global_coalesced16_bytes: u64,
    /// Global atomics and reductions of threads.
    pub global_atomics: u64,
    /// Warp requests to shared memory.
    pub shared_requests: u64,
    /// Bytes of them.
    pub shared_bytes: u64,
    /// Passes over the banks beyond the least that the requests need.
    pub shared_conflicts: u64,
    /// Bytes of local memory loaded and stored.
    pub local_bytes: u64,
    /// `bar.sync` and its kin, per block and release.
    pub barriers: u64,
    /// Multiply-adds of matrix instructions.
    pub matrix_multiply_adds: u64,
    /// Blocks that ran.
    pub blocks: u64,
}

impl Counts {
    /// Global bytes loaded and stored.
    pub fn global_bytes(&self) -> u64 {
        self.global_load_bytes.iter().chain(&self.global_store_bytes).sum()
    }

    /// Share of the global bytes that were moved in accesses of 16 bytes a thread or more with no sector touched in vain; 1 without
    /// any.
    pub fn coalesced16_share(&self) -> f64 {
        let all = self.global_bytes();
        if all == 0 { 1.0 } else { self.global_coalesced16_bytes as f64 / all as f64 }
    }

    /// Instructions of all threads.
    pub fn thread_total(&self) -> u64 {
        self.thread_instructions.iter().sum()
    }

    /// Instructions of all warps.
    pub fn warp_total(&self) -> u64 {
        self.warp_instructions.iter().sum()
    }

    /// Instructions of threads of one kind.
    pub fn threads(&self, kind: Kind) -> u64 {
        self.thread_instructions[kind as usize]
    }
}

impl AddAssign<&Counts> for Counts {
    fn add_assign(&mut self, other: &Counts) {
        let add = |to: &mut [u64], from: &[u64]| to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        add(&mut self.warp_instructions, &other.warp_instructions);
        add(&mut self.thread_instructions, &other.thread_instructions);
        add(&mut self.global_load_bytes, &other.global_load_bytes);
        add(&mut self.global_store_bytes, &other.global_store_bytes);
        self.global_requests += other.global_requests;
        self.global_sectors += other.global_sectors;
        self.global_sectors_least += other.global_sectors_least;
        self.global_coalesced16_bytes += other.global_coalesced16_bytes;
        self.global_atomics += other.global_atomics;
        self.shared_requests += other.shared_requests;
        self.shared_bytes += other.shared_bytes;
        self.shared_conflicts += other.shared_conflicts;
        self.local_bytes += other.local_bytes;
        self.barriers += other.barriers;
        self.matrix_multiply_adds += other.matrix_multiply_adds;
        self.blocks += other.blocks;
    }
}
