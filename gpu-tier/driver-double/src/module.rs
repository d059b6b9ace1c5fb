//! Modules: PTX, which is executed on the ladder, or host functions under kernels' names.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, c_char, c_int};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cuda_ladder::{Entry, Module};

use crate::launch::HostFunction;
use crate::status::{Code, answer};
use crate::{card, context, report};

/// What an image must start with to consist of the host functions that are registered.
const MARKER: &str = "cuda-driver-double: host functions";

/// `CU_FUNC_ATTRIBUTE_*` numbers.
const MAX_THREADS_PER_BLOCK: c_int = 0;
const SHARED_SIZE_BYTES: c_int = 1;
const LOCAL_SIZE_BYTES: c_int = 3;
const PTX_VERSION: c_int = 5;
const MAX_DYNAMIC_SHARED_SIZE_BYTES: c_int = 8;
const PREFERRED_SHARED_MEMORY_CARVEOUT: c_int = 9;

/// A host function and the sizes of its parameters.
#[derive(Clone)]
pub(crate) struct HostKernel {
    pub(crate) run: HostFunction,
    pub(crate) parameter_bytes: Vec<usize>,
}

/// A kernel of a PTX module.
pub(crate) struct PtxKernel {
    pub(crate) module: Arc<Module>,
    pub(crate) name: String,
    /// What `cuFuncSetAttribute` allowed beyond the default.
    dynamic_shared: AtomicU32,
}

impl PtxKernel {
    pub(crate) fn entry(&self) -> &Entry {
        self.module.entry(&self.name).expect("the kernel was found when its handle was made")
    }

    /// The most dynamic shared memory that a launch may ask for.
    pub(crate) fn dynamic_shared_most(&self) -> u32 {
        let default = card::SHARED_BYTES.saturating_sub(self.entry().static_shared_bytes());
        self.dynamic_shared.load(Ordering::SeqCst).max(default)
    }
}

#[derive(Clone)]
pub(crate) enum Kernel {
    Host(HostKernel),
    Ptx(Arc<PtxKernel>),
}

impl Kernel {
    pub(crate) fn parameter_bytes(&self) -> Vec<usize> {
        match self {
            Kernel::Host(kernel) => kernel.parameter_bytes.clone(),
            Kernel::Ptx(kernel) => kernel.entry().parameters().iter().map(|value| value.bytes as usize).collect(),
        }
    }
}

/// A loaded module; without PTX its functions are the registered ones.
struct Loaded {
    ptx: Option<Arc<Module>>,
    /// Handles that were given out, by name.
    functions: BTreeMap<String, usize>,
}

#[derive(Default)]
struct Modules {
    kernels: BTreeMap<String, HostKernel>,
    loaded: BTreeMap<usize, Loaded>,
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

/// The kernel behind a handle.
pub(crate) fn find(function: usize) -> Result<Kernel, Code> {
    with(|modules| modules.functions.get(&function).cloned()).ok_or(Code::INVALID_HANDLE)
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
    let kernel = HostKernel { run, parameter_bytes: sizes.to_vec() };
    with(|modules| modules.kernels.insert(name.to_string_lossy().into_owned(), kernel));
}

/// Reads an image. PTX that the ladder cannot execute is refused like PTX that the driver cannot compile.
fn read(image: &CStr) -> Result<Option<Arc<Module>>, Code> {
    if image.to_bytes().starts_with(MARKER.as_bytes()) {
        return Ok(None);
    }
    let text = image.to_str().map_err(|_| Code::INVALID_IMAGE)?;
    if !text.contains(".version") {
        return Err(Code::INVALID_IMAGE);
    }
    let module = Module::parse(text).map_err(|error| {
        report::say(error.to_string());
        Code::INVALID_PTX
    })?;
    card::accepts(module.version, &module.target)?;
    Ok(Some(Arc::new(module)))
}

/// # Safety
/// `module` is writable and `image` is a C string.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadData(module: *mut usize, image: *const c_char) -> u32 {
    answer(context::enter().and_then(|()| {
        // SAFETY: the caller passes a string that ends in a zero byte.
        let ptx = read(unsafe { CStr::from_ptr(image) })?;
        let id = NEXT.fetch_add(1, Ordering::SeqCst);
        with(|modules| modules.loaded.insert(id, Loaded { ptx, functions: BTreeMap::new() }));
        // SAFETY: the caller passes a place for one handle.
        unsafe { module.write(id) };
        Ok(())
    }))
}

/// The module's functions go with it. What has been launched still runs.
#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(module: usize) -> u32 {
    let removed = with(|modules| {
        let removed = modules.loaded.remove(&module);
        if let Some(loaded) = &removed {
            loaded.functions.values().for_each(|function| {
                modules.functions.remove(function);
            });
        }
        removed.is_some()
    });
    answer(if removed { context::healthy() } else { Err(Code::INVALID_HANDLE) })
}

fn function(modules: &mut Modules, module: usize, name: &str) -> Result<usize, Code> {
    let loaded = modules.loaded.get_mut(&module).ok_or(Code::INVALID_HANDLE)?;
    if let Some(known) = loaded.functions.get(name) {
        return Ok(*known);
    }
    let kernel = match &loaded.ptx {
        Some(ptx) => {
            ptx.entry(name).ok_or(Code::NOT_FOUND)?;
            let dynamic_shared = AtomicU32::new(0);
            Kernel::Ptx(Arc::new(PtxKernel { module: ptx.clone(), name: name.to_owned(), dynamic_shared }))
        }
        None => Kernel::Host(modules.kernels.get(name).cloned().ok_or(Code::NOT_FOUND)?),
    };
    let id = NEXT.fetch_add(1, Ordering::SeqCst);
    loaded.functions.insert(name.to_owned(), id);
    modules.functions.insert(id, kernel);
    Ok(id)
}

/// # Safety
/// `handle` is writable and `name` is a C string.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(handle: *mut usize, module: usize, name: *const c_char) -> u32 {
    answer(context::enter().and_then(|()| {
        // SAFETY: the caller passes a string that ends in a zero byte.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let id = with(|modules| function(modules, module, &name))?;
        // SAFETY: the caller passes a place for one handle.
        unsafe { handle.write(id) };
        Ok(())
    }))
}

/// Registers are ptxas's matter and are reported as 0.
///
/// # Safety
/// `value` is writable.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuFuncGetAttribute(value: *mut c_int, attribute: c_int, function: usize) -> u32 {
    answer(context::enter().and_then(|()| {
        let Kernel::Ptx(kernel) = find(function)? else {
            return Err(Code::NOT_SUPPORTED);
        };
        let entry = kernel.entry();
        let found = match attribute {
            MAX_THREADS_PER_BLOCK => entry.max_threads().unwrap_or(card::MAX_THREADS),
            SHARED_SIZE_BYTES => entry.static_shared_bytes(),
            LOCAL_SIZE_BYTES => entry.local_bytes(),
            PTX_VERSION => kernel.module.version.0 * 10 + kernel.module.version.1,
            MAX_DYNAMIC_SHARED_SIZE_BYTES => kernel.dynamic_shared_most(),
            _ => 0,
        };
        // SAFETY: the caller passes a place for one integer.
        unsafe { value.write(found as c_int) };
        Ok(())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(function: usize, attribute: c_int, value: c_int) -> u32 {
    answer(context::enter().and_then(|()| {
        let Kernel::Ptx(kernel) = find(function)? else {
            return Err(Code::NOT_SUPPORTED);
        };
        match (attribute, u32::try_from(value)) {
            (MAX_DYNAMIC_SHARED_SIZE_BYTES, Ok(bytes)) => {
                let room = card::shared_bytes_most().saturating_sub(kernel.entry().static_shared_bytes());
                if bytes > room {
                    return Err(Code::INVALID_VALUE);
                }
                kernel.dynamic_shared.store(bytes, Ordering::SeqCst);
                Ok(())
            }
            (PREFERRED_SHARED_MEMORY_CARVEOUT, _) if (-1..=100).contains(&value) => Ok(()),
            _ => Err(Code::INVALID_VALUE),
        }
    }))
}
