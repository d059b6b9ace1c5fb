//! Device addresses as a type of their own.

use cudarc::driver::sys::CUdeviceptr;

/// An address that only the device may use: in its memory, or in host memory mapped for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct DevicePtr(CUdeviceptr);

impl DevicePtr {
    /// Wraps an address that the driver gave out.
    pub(super) fn new(raw: CUdeviceptr) -> DevicePtr {
        DevicePtr(raw)
    }

    /// For driver calls and kernel parameters.
    pub(super) fn raw(self) -> CUdeviceptr {
        self.0
    }

    /// Bytes to the next multiple of `alignment`, a power of two.
    pub(super) fn padding(self, alignment: u64) -> u64 {
        self.0.wrapping_neg() & (alignment - 1)
    }

    /// The address `bytes` further on; the caller has checked that it is inside the same allocation.
    pub(super) fn add(self, bytes: u64) -> DevicePtr {
        DevicePtr(self.0 + bytes)
    }
}
