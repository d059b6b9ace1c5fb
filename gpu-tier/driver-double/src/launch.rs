//! Launches: checked when they are made, run on their stream's thread.

use std::borrow::Cow;
use std::ffi::c_void;

use cuda_ladder::{Fault, Launch as PtxLaunch};

use crate::control::{self, Counted, Fault as Planned};
use crate::memory::{self, Memory, read};
use crate::module::{self, HostKernel, Kernel, PtxKernel};
use crate::status::{Code, answer};
use crate::stream::{self, Kind};
use crate::{card, context, report};

/// A launch as a host function sees it.
#[repr(C)]
pub(crate) struct Launch {
    grid: [u32; 3],
    block: [u32; 3],
    /// One pointer for each parameter, to the value it had when the kernel was launched.
    parameters: *const *const c_void,
    memory: *const Memory,
    /// `resolve(launch, address, bytes)`: the bytes of a device address or of mapped host memory; null when they are neither.
    resolve: unsafe extern "C" fn(*const Launch, u64, usize) -> *mut u8,
}

/// Runs the whole grid. Returns 0 or the code the launch fails with.
pub(crate) type HostFunction = unsafe extern "C" fn(*const Launch) -> u32;

unsafe extern "C" fn resolve(launch: *const Launch, address: u64, bytes: usize) -> *mut u8 {
    // SAFETY: `launch` is the argument that the host function got; it and its memory outlive the function's run.
    unsafe { &*(*launch).memory }.kernel(address, bytes).unwrap_or(std::ptr::null_mut())
}

/// Dimensions of a launch.
#[derive(Clone, Copy)]
struct Shape {
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
}

impl Shape {
    /// Limits of the hardware: threads of a block, blocks in y and z, shared memory that the kernel may have.
    fn is_within_limits(&self, kernel: &Kernel) -> bool {
        let Shape { grid, block, shared_bytes } = *self;
        let threads: u64 = block.iter().map(|side| u64::from(*side)).product();
        let (threads_most, shared_most) = match kernel {
            Kernel::Host(_) => (card::MAX_THREADS, card::SHARED_BYTES),
            Kernel::Ptx(kernel) => {
                (kernel.entry().max_threads().unwrap_or(card::MAX_THREADS), kernel.dynamic_shared_most())
            }
        };
        grid.iter().all(|side| *side > 0)
            && grid[0] <= i32::MAX as u32
            && (1..=u64::from(threads_most)).contains(&threads)
            && block[2] <= 64
            && grid[1..].iter().all(|side| *side <= 65535)
            && shared_bytes <= shared_most
    }
}

fn run_host(kernel: &HostKernel, shape: Shape, values: &[Vec<u8>]) -> Result<(), Code> {
    let memory = read();
    let parameters: Vec<*const c_void> = values.iter().map(|value| value.as_ptr().cast()).collect();
    let Shape { grid, block, .. } = shape;
    let launch = Launch { grid, block, parameters: parameters.as_ptr(), memory: &raw const *memory, resolve };
    // SAFETY: whoever registered the function vouched for it; the launch lives until it returns.
    match unsafe { (kernel.run)(&raw const launch) } {
        0 => Ok(()),
        code => Err(Code(code)),
    }
}

fn run_ptx(kernel: &PtxKernel, shape: Shape, values: &[Vec<u8>]) -> Result<(), Code> {
    let entry = kernel.entry();
    let values: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
    let params = entry.pack(&values).expect("the values were copied by the kernel's own sizes");
    let launch = PtxLaunch { shared_bytes: shape.shared_bytes, ..PtxLaunch::new(shape.grid, shape.block, &params) };
    let launch = report::conditions(launch);
    let mut memory = memory::Seen(read());
    match kernel.module.run(entry, &launch, &mut memory) {
        Ok(counts) => {
            report::add(&kernel.name, &counts);
            Ok(())
        }
        Err(fault) => Err(failed(&fault)),
    }
}

fn failed(fault: &Fault) -> Code {
    report::say(fault.to_string());
    Code(fault.kind.driver_code())
}

/// # Safety
/// `parameters` has a readable pointer for each parameter of the kernel.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchKernel(
    function: usize,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    shared_bytes: u32,
    stream: usize,
    parameters: *const *const c_void,
    _extra: *const *const c_void,
) -> u32 {
    answer(context::enter().and_then(|()| {
        let stream = stream::find(stream)?;
        let kernel = module::find(function)?;
        let shape = Shape { grid: [grid_x, grid_y, grid_z], block: [block_x, block_y, block_z], shared_bytes };
        if !shape.is_within_limits(&kernel) {
            return Err(Code::INVALID_VALUE);
        }
        let fault = control::fault(Planned::Launch);
        let mut values: Vec<Vec<u8>> = Vec::new();
        for (index, bytes) in kernel.parameter_bytes().into_iter().enumerate() {
            // SAFETY: the caller passes as many pointers as the kernel has parameters, each to a value of its size.
            values.push(unsafe { std::slice::from_raw_parts((*parameters.add(index)).cast::<u8>(), bytes) }.to_vec());
        }
        let name = match &kernel {
            Kernel::Host(_) => Cow::Borrowed("host kernel"),
            Kernel::Ptx(kernel) => Cow::Owned(kernel.name.clone()),
        };
        stream.enqueue_as(Kind::Launch, name, move || {
            fault?;
            control::count(Counted::Launch);
            match &kernel {
                Kernel::Host(kernel) => run_host(kernel, shape, &values),
                Kernel::Ptx(kernel) => run_ptx(kernel, shape, &values),
            }
        })
    }))
}
