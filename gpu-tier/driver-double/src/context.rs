//! The one device, its primary context, and the sticky error that ends it.

use std::cell::Cell;
use std::ffi::{c_char, c_int};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::status::{Code, answer};
use crate::{card, memory, stream};

const NAME: &[u8] = b"driver double\0";
/// Context handles are this plus the generation, so that a handle from before a release is not valid after it.
const FIRST_HANDLE: usize = 0x1000;

static INITIALIZED: AtomicBool = AtomicBool::new(false);
static PRIMARY: Mutex<Primary> = Mutex::new(Primary { retains: 0, generation: 0 });
/// The code of the first failed job; every later call of the context returns it. 0: none.
static STICKY: AtomicU32 = AtomicU32::new(0);

struct Primary {
    retains: u32,
    generation: usize,
}

thread_local! {
    /// The calling thread's current context; 0: none.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

fn primary() -> std::sync::MutexGuard<'static, Primary> {
    PRIMARY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the context with the code of a failed job. The first one stays.
pub(crate) fn fail(code: Code) {
    // The first failure stays: it is the one that explains the rest.
    let _ = STICKY.compare_exchange(0, code.0, Ordering::SeqCst, Ordering::SeqCst);
}

/// Fails once a job of the context has failed.
pub(crate) fn healthy() -> Result<(), Code> {
    match STICKY.load(Ordering::SeqCst) {
        0 => Ok(()),
        code => Err(Code(code)),
    }
}

/// Fails unless the primary context is current on this thread and healthy: what nearly every call does first.
pub(crate) fn enter() -> Result<(), Code> {
    let primary = primary();
    if primary.retains == 0 || CURRENT.get() != FIRST_HANDLE + primary.generation {
        return Err(Code::INVALID_CONTEXT);
    }
    healthy()
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(flags: u32) -> u32 {
    if flags != 0 {
        return Code::INVALID_VALUE.0;
    }
    INITIALIZED.store(true, Ordering::SeqCst);
    0
}

fn device(ordinal: c_int) -> Result<(), Code> {
    if !INITIALIZED.load(Ordering::SeqCst) {
        return Err(Code::NOT_INITIALIZED);
    }
    if ordinal == 0 { Ok(()) } else { Err(Code::INVALID_DEVICE) }
}

/// # Safety
/// `count` is writable.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> u32 {
    // SAFETY: the caller passes a place for one integer.
    answer(device(0).map(|()| unsafe { count.write(1) }))
}

/// # Safety
/// `handle` is writable.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(handle: *mut c_int, ordinal: c_int) -> u32 {
    // SAFETY: the caller passes a place for one integer.
    answer(device(ordinal).map(|()| unsafe { handle.write(ordinal) }))
}

/// # Safety
/// `name` has room for `room` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, room: c_int, ordinal: c_int) -> u32 {
    answer(device(ordinal).and_then(|()| {
        if usize::try_from(room).is_ok_and(|room| room >= NAME.len()) {
            // SAFETY: the caller vouches for `room` bytes, which is enough.
            unsafe { name.cast::<u8>().copy_from_nonoverlapping(NAME.as_ptr(), NAME.len()) };
            Ok(())
        } else {
            Err(Code::INVALID_VALUE)
        }
    }))
}

/// # Safety
/// `value` is writable.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, ordinal: c_int) -> u32 {
    // SAFETY: the caller passes a place for one integer.
    answer(device(ordinal).map(|()| unsafe { value.write(card::attribute(attribute)) }))
}

/// # Safety
/// `handle` is writable.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(handle: *mut usize, ordinal: c_int) -> u32 {
    answer(device(ordinal).map(|()| {
        let mut primary = primary();
        if primary.retains == 0 {
            primary.generation += 1;
            STICKY.store(0, Ordering::SeqCst);
        }
        primary.retains += 1;
        // SAFETY: the caller passes a place for one handle.
        unsafe { handle.write(FIRST_HANDLE + primary.generation) };
    }))
}

/// The last release ends the context and its sticky error. What is still allocated stays counted: it was leaked.
#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(ordinal: c_int) -> u32 {
    answer(device(ordinal).and_then(|()| {
        let mut primary = primary();
        primary.retains = primary.retains.checked_sub(1).ok_or(Code::INVALID_CONTEXT)?;
        Ok(())
    }))
}

/// # Safety
/// `handle` is writable.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuCtxGetCurrent(handle: *mut usize) -> u32 {
    // SAFETY: the caller passes a place for one handle.
    unsafe { handle.write(CURRENT.get()) };
    0
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(handle: usize) -> u32 {
    let primary = primary();
    if handle != 0 && (primary.retains == 0 || handle != FIRST_HANDLE + primary.generation) {
        return Code::INVALID_CONTEXT.0;
    }
    CURRENT.set(handle);
    0
}

#[unsafe(no_mangle)]
extern "C" fn cuCtxSynchronize() -> u32 {
    answer(enter().and_then(|()| {
        stream::drain_all();
        healthy()
    }))
}

/// # Safety
/// Both places are writable.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> u32 {
    answer(enter().map(|()| {
        let (used, capacity) = memory::use_and_capacity();
        // SAFETY: the caller passes places for two integers.
        unsafe { (free.write(capacity - used), total.write(capacity)) };
    }))
}
