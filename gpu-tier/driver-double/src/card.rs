//! The card and the driver that are imitated: what they accept, and what they say of themselves.

use std::ffi::c_int;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::control;
use crate::status::{Code, answer};

/// Compute capability times ten until [`cuda_double_set_capability`] says otherwise.
pub(crate) const DEFAULT_CAPABILITY: u32 = 80;
/// The driver's version, as `cuDriverGetVersion` writes it, until [`cuda_double_set_driver`] says otherwise: CUDA 13.0.
const DEFAULT_DRIVER: u32 = 13000;
/// Shared memory of a block without opt-in.
pub(crate) const SHARED_BYTES: u32 = 48 << 10;
pub(crate) const MAX_THREADS: u32 = 1024;

static CAPABILITY: AtomicU32 = AtomicU32::new(DEFAULT_CAPABILITY);
static DRIVER: AtomicU32 = AtomicU32::new(DEFAULT_DRIVER);

/// The newest PTX that the driver reads (PTX ISA, "Release Notes").
fn ptx_version() -> (u32, u32) {
    match DRIVER.load(Ordering::SeqCst) {
        13000.. => (9, 0),
        12080..13000 => (8, 7),
        _ => (8, 0),
    }
}

fn capability() -> u32 {
    CAPABILITY.load(Ordering::SeqCst)
}

/// The most shared memory of a block with opt-in, by capability (CUDA C Programming Guide, "Technical Specifications").
pub(crate) fn shared_bytes_most() -> u32 {
    match capability() {
        0..70 => SHARED_BYTES,
        70..75 => 96 << 10,
        75..80 => 64 << 10,
        80 | 87 => 163 << 10,
        81..90 | 120.. => 99 << 10,
        90..120 => 227 << 10,
    }
}

/// `cuDeviceGetAttribute`; what is not known is 0.
pub(crate) fn attribute(number: c_int) -> c_int {
    match number {
        // MAX_THREADS_PER_BLOCK
        1 => MAX_THREADS as c_int,
        // MAX_SHARED_MEMORY_PER_BLOCK
        8 => SHARED_BYTES as c_int,
        // WARP_SIZE
        10 => 32,
        // MULTIPROCESSOR_COUNT
        16 => 4,
        // CAN_MAP_HOST_MEMORY, UNIFIED_ADDRESSING
        19 | 41 => 1,
        // COMPUTE_CAPABILITY_MAJOR and MINOR
        75 => (capability() / 10) as c_int,
        76 => (capability() % 10) as c_int,
        // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        97 => shared_bytes_most() as c_int,
        // READ_ONLY_HOST_REGISTER_SUPPORTED
        113 => c_int::from(control::registers_read_only()),
        _ => 0,
    }
}

/// Whether a module's `.version` and `.target` can be run. A target with `a` runs on its own capability alone.
pub(crate) fn accepts(version: (u32, u32), target: &str) -> Result<(), Code> {
    if version > ptx_version() {
        return Err(Code::UNSUPPORTED_PTX_VERSION);
    }
    let number = target.strip_prefix("sm_").ok_or(Code::INVALID_PTX)?;
    let letter = number.find(|letter: char| letter.is_ascii_alphabetic()).unwrap_or(number.len());
    let wanted: u32 = number[..letter].parse().map_err(|_| Code::INVALID_PTX)?;
    let fits = match &number[letter..] {
        "" => wanted <= capability(),
        "f" => wanted <= capability() && wanted / 10 == capability() / 10,
        _ => wanted == capability(),
    };
    if fits { Ok(()) } else { Err(Code::NO_BINARY) }
}

/// Sets the compute capability times ten, such as 90; 0 is the default.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuda_double_set_capability(capability: u32) {
    CAPABILITY.store(if capability == 0 { DEFAULT_CAPABILITY } else { capability }, Ordering::SeqCst);
}

/// Sets the version of the driver that is imitated, 1000 times the major number plus 10 times the minor one; 0 is the default.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuda_double_set_driver(version: u32) {
    DRIVER.store(if version == 0 { DEFAULT_DRIVER } else { version }, Ordering::SeqCst);
}

/// # Safety
/// `version` is writable.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> u32 {
    // SAFETY: the caller passes a place for one integer.
    unsafe { version.write(DRIVER.load(Ordering::SeqCst) as c_int) };
    answer(Ok(()))
}
