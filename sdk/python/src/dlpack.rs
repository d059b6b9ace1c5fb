//! DLPack: memory given to, and taken from, libraries of arrays, without any of them being imported.
//!
//! | capsule | name | struct |
//! |---|---|---|
//! | before version 1 | `dltensor` | [`ManagedTensor`] |
//! | version 1 | `dltensor_versioned` | [`VersionedTensor`], which can say that its memory is read-only |
//!
//! Who takes a capsule's tensor renames the capsule and calls the tensor's deleter in the end; a capsule that keeps its name
//! calls it itself. What we take we
//! leave in its capsule, and keep the capsule.
#![expect(unsafe_code, reason = "DLPack is made of pointers")]

use std::ffi::{CStr, c_void};

use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::PyCapsule;
use pyo3::{Bound, PyAny, ffi};

use crate::buffer::{Kept, Memory};

const PLAIN: &CStr = c"dltensor";
const VERSIONED: &CStr = c"dltensor_versioned";
/// `kDLCPU`; 3 and 13 are memory of a GPU's driver that the CPU can touch as well.
const CPU: i32 = 1;
const HOST_DEVICES: [i32; 3] = [CPU, 3, 13];
/// Unsigned integers.
const UNSIGNED: u8 = 1;
const READ_ONLY: u64 = 1;

#[repr(C)]
struct Device {
    kind: i32,
    number: i32,
}

#[repr(C)]
struct DataType {
    code: u8,
    bits: u8,
    lanes: u16,
}

#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device: Device,
    dimensions: i32,
    dtype: DataType,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

#[repr(C)]
struct ManagedTensor {
    tensor: Tensor,
    manager: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut ManagedTensor)>,
}

#[repr(C)]
struct VersionedTensor {
    major: u32,
    minor: u32,
    manager: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut VersionedTensor)>,
    flags: u64,
    tensor: Tensor,
}

/// What a tensor of ours keeps alive: its shape, and what its memory belongs to.
struct Manager {
    shape: [i64; 1],
    strides: [i64; 1],
    _kept: Kept,
}

fn tensor(memory: Memory, manager: &mut Manager) -> Tensor {
    Tensor {
        data: memory.address.cast(),
        device: Device { kind: CPU, number: 0 },
        dimensions: 1,
        dtype: DataType { code: UNSIGNED, bits: 8, lanes: 1 },
        shape: manager.shape.as_mut_ptr(),
        strides: manager.strides.as_mut_ptr(),
        byte_offset: 0,
    }
}

/// A capsule of bytes. `version` is the newest one that the taker knows.
///
/// The memory is readable for as long as `kept` lives.
pub(crate) fn give<'py>(
    py: Python<'py>,
    memory: Memory,
    kept: Kept,
    version: Option<(u32, u32)>,
) -> PyResult<Bound<'py, PyAny>> {
    let mut manager = Box::new(Manager { shape: [memory.bytes as i64], strides: [1], _kept: kept });
    let tensor = tensor(memory, &mut manager);
    let manager = Box::into_raw(manager).cast::<c_void>();
    if version.is_some_and(|(major, _)| major >= 1) {
        let flags = if memory.is_writable { 0 } else { READ_ONLY };
        let deleter = Some(delete_versioned as unsafe extern "C" fn(*mut VersionedTensor));
        let versioned = Box::new(VersionedTensor { major: 1, minor: 0, manager, deleter, flags, tensor });
        capsule(py, Box::into_raw(versioned).cast(), VERSIONED, end_versioned)
    } else {
        let deleter = Some(delete_plain as unsafe extern "C" fn(*mut ManagedTensor));
        capsule(py, Box::into_raw(Box::new(ManagedTensor { tensor, manager, deleter })).cast(), PLAIN, end_plain)
    }
}

fn capsule<'py>(
    py: Python<'py>,
    tensor: *mut c_void,
    name: &'static CStr,
    destructor: unsafe extern "C" fn(*mut ffi::PyObject),
) -> PyResult<Bound<'py, PyAny>> {
    // SAFETY: the name is static; the pointer is not null, and is that of a tensor which the destructor, or whoever takes it,
    // deletes once. Without memory for the
    // capsule the tensor leaks, which is the least of the process's worries then.
    unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyCapsule_New(tensor, name.as_ptr(), Some(destructor))) }
}

/// The deleter of a tensor of ours. Needs no interpreter.
unsafe extern "C" fn delete_plain(tensor: *mut ManagedTensor) {
    // SAFETY: `give` made both boxes, and a tensor is deleted once, by the protocol.
    unsafe {
        let tensor = Box::from_raw(tensor);
        drop(Box::from_raw(tensor.manager.cast::<Manager>()));
    }
}

/// As above.
unsafe extern "C" fn delete_versioned(tensor: *mut VersionedTensor) {
    // SAFETY: as in `delete_plain`.
    unsafe {
        let tensor = Box::from_raw(tensor);
        drop(Box::from_raw(tensor.manager.cast::<Manager>()));
    }
}

/// The end of a capsule that nobody took the tensor of.
unsafe extern "C" fn end_plain(capsule: *mut ffi::PyObject) {
    // SAFETY: the interpreter calls this once, with the capsule; a tensor that was taken has another name.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, PLAIN.as_ptr()) == 1 {
            delete_plain(ffi::PyCapsule_GetPointer(capsule, PLAIN.as_ptr()).cast());
        }
    }
}

/// As above.
unsafe extern "C" fn end_versioned(capsule: *mut ffi::PyObject) {
    // SAFETY: as in `end_plain`.
    unsafe {
        if ffi::PyCapsule_IsValid(capsule, VERSIONED.as_ptr()) == 1 {
            delete_versioned(ffi::PyCapsule_GetPointer(capsule, VERSIONED.as_ptr()).cast());
        }
    }
}

/// The memory of an array that speaks DLPack, and the capsule that keeps it. Errors: `TypeError` when it is none, `BufferError`
/// when it is on a device, or has gaps.
pub(crate) fn take<'py>(array: &Bound<'py, PyAny>) -> PyResult<(Memory, Bound<'py, PyAny>)> {
    let py = array.py();
    let method = array.getattr("__dlpack__").map_err(|_| {
        PyTypeError::new_err("a slab has the buffer protocol, or DLPack, or is (address, bytes, what keeps it)")
    })?;
    let versions = pyo3::types::PyDict::new(py);
    versions.set_item("max_version", (1, 0))?;
    let capsule = match method.call((), Some(&versions)) {
        // A library from before version 1.
        Err(error) if error.is_instance_of::<PyTypeError>(py) => method.call0()?,
        given => given?,
    };
    let pointer = |name: &'static CStr| -> Option<*mut c_void> {
        let capsule = capsule.cast::<PyCapsule>().ok()?;
        // SAFETY: a capsule, with the interpreter's lock; a name that is not its own is told by the first call.
        unsafe {
            (ffi::PyCapsule_IsValid(capsule.as_ptr(), name.as_ptr()) == 1)
                .then(|| ffi::PyCapsule_GetPointer(capsule.as_ptr(), name.as_ptr()))
        }
    };
    let memory = if let Some(pointer) = pointer(VERSIONED) {
        // SAFETY: a capsule of this name holds such a struct, which lives as long as the capsule.
        let versioned = unsafe { &*pointer.cast::<VersionedTensor>() };
        if versioned.major != 1 {
            return Err(PyBufferError::new_err(format!("DLPack {} is not known", versioned.major)));
        }
        memory_of(&versioned.tensor, versioned.flags & READ_ONLY == 0)?
    } else if let Some(pointer) = pointer(PLAIN) {
        // SAFETY: as above.
        memory_of(unsafe { &(*pointer.cast::<ManagedTensor>()).tensor }, true)?
    } else {
        return Err(PyBufferError::new_err("__dlpack__ gave something else than a tensor"));
    };
    Ok((memory, capsule))
}

fn memory_of(tensor: &Tensor, is_writable: bool) -> PyResult<Memory> {
    let refused =
        |what: &str| Err(PyBufferError::new_err(format!("a slab must be memory of the host in one piece: {what}")));
    if !HOST_DEVICES.contains(&tensor.device.kind) {
        return refused("this array is on a device");
    }
    let Ok(dimensions) = usize::try_from(tensor.dimensions) else { return refused("it has no dimensions") };
    let lengths = |pointer: *mut i64| match dimensions == 0 || pointer.is_null() {
        true => None,
        // SAFETY: the producer's promise: as many numbers as there are dimensions, for as long as the tensor lives.
        false => Some(unsafe { std::slice::from_raw_parts(pointer, dimensions) }),
    };
    let shape = lengths(tensor.shape).unwrap_or(&[]);
    // No strides are those of an array in one piece.
    if let Some(strides) = lengths(tensor.strides) {
        let mut expected = 1i64;
        for (length, stride) in shape.iter().zip(strides).rev() {
            if *length != 1 && *stride != expected {
                return refused("this array has gaps, or another order");
            }
            expected = expected.saturating_mul(*length);
        }
    }
    let elements = shape.iter().try_fold(1u64, |all, length| all.checked_mul(u64::try_from(*length).ok()?));
    let bits = u64::from(tensor.dtype.bits) * u64::from(tensor.dtype.lanes);
    let Some(bytes) = elements.and_then(|elements| elements.checked_mul(bits)).filter(|bits| bits % 8 == 0) else {
        return refused("it has no whole number of bytes");
    };
    let address = tensor.data.cast::<u8>().wrapping_add(tensor.byte_offset as usize);
    Ok(Memory { address, bytes: bytes / 8, is_writable })
}
