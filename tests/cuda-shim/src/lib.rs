//! kvtier's CUDA kernels compiled by the host's compiler and run on the CPU: `gpu-tier/kernels/*.cu` as they are, a block at a
//! time, each of its threads a fiber.
//!
//! What it is faithful to: the CUDA C++ source, with barriers, shuffles, shared memory that starts as 0xff, and asynchronous copies
//! that happen as late as CUDA allows. What it is not: nvcc's output (an interpreter of PTX runs that) or any timing.
//!
//! # Safety
//! Kernels take bare addresses. [`launch`] is unsafe: its caller vouches for every address in the arguments and in the tables they
//! point to, as on a device. A grid runs on the calling thread.
#![cfg(target_arch = "x86_64")]

use std::ffi::{CString, c_char, c_int, c_void};

unsafe extern "C" {
    fn shim_parameters(name: *const c_char, sizes: *mut usize) -> c_int;
    fn shim_launch(
        name: *const c_char,
        grid: *const u32,
        block: *const u32,
        parameters: *const *const c_void,
        schedule: u32,
        seed: u64,
        problem: *mut c_char,
        problem_bytes: usize,
    ) -> c_int;
}

/// In which order the threads of a block, and the blocks of a grid, take turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// By number.
    Forward,
    /// By number, last first.
    Reverse,
    /// Drawn anew at each turn, from a seed.
    Random(u64),
}

/// Why a grid did not finish.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// A kernel of that name is not in the build.
    #[error("launch {0}: there is no such kernel")]
    Unknown(String),
    /// The arguments are not the kernel's parameters.
    #[error("launch {name}: parameters of {expected:?} bytes, arguments of {found:?}")]
    Arguments {
        /// The kernel.
        name: String,
        /// Bytes of its parameters.
        expected: Vec<usize>,
        /// Bytes of the arguments.
        found: Vec<usize>,
    },
    /// A thread touched memory that is not there, barriers did not meet, or a rule of the host build was broken.
    #[error("run a kernel: {0}")]
    Failed(String),
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// An address.
    Address(u64),
    /// 32 bits.
    Word(u32),
    /// 32 bits.
    Float(f32),
}

impl Argument {
    fn bytes(&self) -> usize {
        if matches!(self, Argument::Address(_)) { 8 } else { 4 }
    }

    fn value(&self) -> *const c_void {
        match self {
            Argument::Address(value) => std::ptr::from_ref(value).cast(),
            Argument::Word(value) => std::ptr::from_ref(value).cast(),
            Argument::Float(value) => std::ptr::from_ref(value).cast(),
        }
    }
}

/// Threads or blocks in x, y and z.
pub type Extent = [u32; 3];

/// Runs a kernel over a grid. Errors: an unknown name, arguments of other sizes than the parameters, and what a thread did wrong.
///
/// # Safety
/// All that the kernel's own comment says of its arguments holds.
#[expect(unsafe_code, reason = "the host build is C++")]
pub unsafe fn launch(
    name: &str,
    grid: Extent,
    block: Extent,
    arguments: &[Argument],
    schedule: Schedule,
) -> Result<(), LaunchError> {
    let c_name = CString::new(name).map_err(|_| LaunchError::Unknown(name.to_owned()))?;
    let mut sizes = [0usize; 16];
    // SAFETY: a C string, and room for the 16 sizes that are written at most.
    let count = unsafe { shim_parameters(c_name.as_ptr(), sizes.as_mut_ptr()) };
    let Ok(count) = usize::try_from(count) else {
        return Err(LaunchError::Unknown(name.to_owned()));
    };
    let found: Vec<usize> = arguments.iter().map(Argument::bytes).collect();
    if sizes[..count] != found {
        return Err(LaunchError::Arguments { name: name.to_owned(), expected: sizes[..count].to_vec(), found });
    }
    let parameters: Vec<*const c_void> = arguments.iter().map(Argument::value).collect();
    let (schedule, seed) = match schedule {
        Schedule::Forward => (0, 0),
        Schedule::Reverse => (1, 0),
        Schedule::Random(seed) => (2, seed),
    };
    let mut problem = [0u8; 512];
    // SAFETY: pointers to arrays that live through the call, of the lengths that the shim reads (3, 3, one pointer a parameter) and
    // writes (512); the caller vouches for what the kernel makes of the arguments.
    let outcome = unsafe {
        shim_launch(
            c_name.as_ptr(),
            grid.as_ptr(),
            block.as_ptr(),
            parameters.as_ptr(),
            schedule,
            seed,
            problem.as_mut_ptr().cast(),
            problem.len(),
        )
    };
    if outcome == 0 {
        return Ok(());
    }
    let end = problem.iter().position(|byte| *byte == 0).unwrap_or(problem.len());
    Err(LaunchError::Failed(String::from_utf8_lossy(&problem[..end]).into_owned()))
}
