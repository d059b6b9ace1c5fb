//! Memory shown to Python as bytes: the buffer protocol.
//!
//! A view keeps a value alive, by a pointer in its `internal` field, which [`release`] takes back: the lease or reservation
//! behind the memory stands for as long as
//! anything looks at it, whatever becomes of the object that showed it.
#![expect(unsafe_code, reason = "the buffer protocol is made of pointers")]

use std::any::Any;
use std::ffi::c_int;

use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;
use pyo3::{Bound, PyAny, ffi};

/// What a view keeps.
pub(crate) type Kept = Box<dyn Any + Send>;

/// A piece of memory.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) address: *mut u8,
    pub(crate) bytes: u64,
    pub(crate) is_writable: bool,
}

/// Fills a view of bytes.
///
/// # Safety
/// `view` is null or a view to be filled, as `bf_getbuffer` has it. `memory` is readable, and writable if it says so, for as long
/// as `kept` lives.
pub(crate) unsafe fn fill(
    view: *mut ffi::Py_buffer,
    flags: c_int,
    owner: Bound<'_, PyAny>,
    memory: Memory,
    kept: Kept,
) -> PyResult<()> {
    if view.is_null() {
        return Err(PyBufferError::new_err("no view is to be filled"));
    }
    let wants = |flag: c_int| flags & flag == flag;
    if wants(ffi::PyBUF_WRITABLE) && !memory.is_writable {
        return Err(PyBufferError::new_err("a block that is leased can only be read"));
    }
    // SAFETY: the caller's promise: the view is ours to fill, and nobody reads it before this returns. Its `obj` is an owned
    // reference; pointers into the view itself stay good, since whoever
    // asked keeps it where it is until it is released. The format is static.
    unsafe {
        (*view).obj = owner.into_ptr();
        (*view).buf = memory.address.cast();
        (*view).len = memory.bytes as isize;
        (*view).readonly = c_int::from(!memory.is_writable);
        (*view).itemsize = 1;
        (*view).format = if wants(ffi::PyBUF_FORMAT) { c"B".as_ptr().cast_mut() } else { std::ptr::null_mut() };
        (*view).ndim = 1;
        (*view).shape = if wants(ffi::PyBUF_ND) { &raw mut (*view).len } else { std::ptr::null_mut() };
        (*view).strides = if wants(ffi::PyBUF_STRIDES) { &raw mut (*view).itemsize } else { std::ptr::null_mut() };
        (*view).suboffsets = std::ptr::null_mut();
        (*view).internal = Box::into_raw(Box::new(kept)).cast();
    }
    Ok(())
}

/// Lets go of what a view kept.
///
/// # Safety
/// `view` was filled by [`fill`] and is released once.
pub(crate) unsafe fn release(view: *mut ffi::Py_buffer) {
    // SAFETY: `fill` put a box of this type there, and the interpreter releases a view once.
    unsafe {
        let kept = std::mem::replace(&mut (*view).internal, std::ptr::null_mut());
        if !kept.is_null() {
            drop(Box::from_raw(kept.cast::<Kept>()));
        }
    }
}

/// A part of an object's memory, as a `memoryview`.
pub(crate) fn part<'py>(owner: &Bound<'py, PyAny>, first: u64, bytes: u64) -> PyResult<Bound<'py, PyAny>> {
    let view = pyo3::types::PyMemoryView::from(owner)?;
    let slice = pyo3::types::PySlice::new(owner.py(), first as isize, (first + bytes) as isize, 1);
    view.get_item(slice)
}
