//! Modules whose functions are host functions, registered under the kernel's name before the module is loaded.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, c_char, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::context;
use crate::control::{self, Counted, Fault};
use crate::memory::{Memory, read};
use crate::status::{Code, answer};
use crate::stream::{self, Kind};

/// What an image must start with: this double executes no code but the host's.
const MARKER: &str = "cuda-driver-double: host functions";

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
type HostFunction = unsafe extern "C" fn(*const Launch) -> u32;

#[derive(Clone)]
struct Kernel {
    run: HostFunction,
    parameter_bytes: Vec<usize>,
}

#[derive(Default)]
struct Modules {
    kernels: BTreeMap<String, Kernel>,
    loaded: Vec<usize>,
    functions: HashMap<usize, Kernel>,
}

static NEXT: AtomicUsize = AtomicUsize::new(1);
static MODULES: Mutex<Option<Modules>> = Mutex::new(None);

fn with<T>(look: impl FnOnce(&mut Modules) -> T) -> T {
    let mut modules: MutexGuard<'_, Option<Modules>> = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    look(modules.get_or_insert_default())
}

/// Modules that are loaded.
pub(crate) fn count() -> u64 {
    with(|modules| modules.loaded.len() as u64)
}

/// Forgets the registered host functions.
pub(crate) fn forget() {
    with(|modules| modules.kernels.clear());
}

/// Offers a host function under a kernel's name; `parameter_bytes` has the size of each of `parameters` parameters.
///
/// # Safety
/// `name` is a C string, `parameter_bytes` has `parameters` entries, `run` keeps to [`HostFunction`].
#[unsafe(no_mangle)]
unsafe extern "C" fn cuda_double_register(
    name: *const c_char,
    run: HostFunction,
    parameter_bytes: *const usize,
    parameters: usize,
) {
    // SAFETY: the caller vouches for both.
    let (name, sizes) = unsafe { (CStr::from_ptr(name), std::slice::from_raw_parts(parameter_bytes, parameters)) };
    let kernel = Kernel { run, parameter_bytes: sizes.to_vec() };
    with(|modules| modules.kernels.insert(name.to_string_lossy().into_owned(), kernel));
}

/// # Safety
/// `module` is writable and `image` is a C string.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadData(module: *mut usize, image: *const c_char) -> u32 {
    answer(context::enter().and_then(|()| {
        // SAFETY: the caller passes a string that ends in a zero byte.
        let image = unsafe { CStr::from_ptr(image) };
        if !image.to_bytes().starts_with(MARKER.as_bytes()) {
            return Err(Code::INVALID_IMAGE);
        }
        let id = NEXT.fetch_add(1, Ordering::SeqCst);
        with(|modules| modules.loaded.push(id));
        // SAFETY: the caller passes a place for one handle.
        unsafe { module.write(id) };
        Ok(())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: usize) -> u32 {
    let removed = with(|modules| {
        let before = modules.loaded.len();
        modules.loaded.retain(|loaded| *loaded != module);
        modules.loaded.len() < before
    });
    answer(if removed { context::healthy() } else { Err(Code::INVALID_HANDLE) })
}

/// # Safety
/// `function` is writable and `name` is a C string.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(function: *mut usize, module: usize, name: *const c_char) -> u32 {
    answer(context::enter().and_then(|()| {
        // SAFETY: the caller passes a string that ends in a zero byte.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let id = with(|modules| {
            if !modules.loaded.contains(&module) {
                return Err(Code::INVALID_HANDLE);
            }
            let kernel = modules.kernels.get(name.as_ref()).cloned().ok_or(Code::NOT_FOUND)?;
            let id = NEXT.fetch_add(1, Ordering::SeqCst);
            modules.functions.insert(id, kernel);
            Ok(id)
        })?;
        // SAFETY: the caller passes a place for one handle.
        unsafe { function.write(id) };
        Ok(())
    }))
}

unsafe extern "C" fn resolve(launch: *const Launch, address: u64, bytes: usize) -> *mut u8 {
    // SAFETY: `launch` is the argument that the host function got; it and its memory outlive the function's run.
    unsafe { &*(*launch).memory }.kernel(address, bytes).unwrap_or(std::ptr::null_mut())
}

/// Limits of the hardware on the shape of a launch: threads of a block, blocks in y and z, shared memory without opt-in.
fn within_limits(grid: [u32; 3], block: [u32; 3], shared_bytes: u32) -> bool {
    let threads: u64 = block.iter().map(|side| u64::from(*side)).product();
    let blocks: u64 = grid.iter().map(|side| u64::from(*side)).product();
    blocks > 0
        && (1..=1024).contains(&threads)
        && block[2] <= 64
        && grid[1..].iter().all(|side| *side <= 65535)
        && shared_bytes <= 48 << 10
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
        let kernel = with(|modules| modules.functions.get(&function).cloned()).ok_or(Code::INVALID_HANDLE)?;
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        if !within_limits(grid, block, shared_bytes) {
            return Err(Code::INVALID_VALUE);
        }
        let fault = control::fault(Fault::Launch);
        let mut values: Vec<Vec<u8>> = Vec::with_capacity(kernel.parameter_bytes.len());
        for (index, bytes) in kernel.parameter_bytes.iter().enumerate() {
            // SAFETY: the caller passes as many pointers as the kernel has parameters, each to a value of its size.
            values.push(unsafe { std::slice::from_raw_parts((*parameters.add(index)).cast::<u8>(), *bytes) }.to_vec());
        }
        stream.enqueue(Kind::Launch, move || {
            fault?;
            control::count(Counted::Launch);
            let memory = read();
            let parameters: Vec<*const c_void> = values.iter().map(|value| value.as_ptr().cast()).collect();
            let launch = Launch { grid, block, parameters: parameters.as_ptr(), memory: &raw const *memory, resolve };
            // SAFETY: whoever registered the function vouched for it; the launch lives until it returns.
            match unsafe { (kernel.run)(&raw const launch) } {
                0 => Ok(()),
                code => Err(Code(code)),
            }
        })
    }))
}
