//! Host extents that the device may copy from and to.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED;
use cudarc::driver::{CudaContext, DriverError, sys};

use super::address::DevicePtr;
use crate::device::{ExtentId, HostExtent, HostRange};
use crate::error::DeviceError;

/// The registered extents. There is no way to unregister one: they live as long as the device.
#[derive(Default)]
pub(super) struct Extents(Vec<Extent>);

struct Extent {
    owner: Arc<dyn HostExtent>,
    /// The device's address of the first byte; `None` when the driver would not pin the memory.
    mapped: Option<DevicePtr>,
}

/// Where a host range is.
#[derive(Clone, Copy)]
pub(super) struct HostPlace {
    /// In the service mapping.
    pub(super) address: *mut u8,
    /// For kernels; `None` when the memory is pageable.
    pub(super) mapped: Option<DevicePtr>,
}

/// Whether the device can pin memory that the host may only read. A driver that does not know the question cannot.
fn can_pin_read_only(context: &CudaContext) -> bool {
    context.attribute(CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED).is_ok_and(|supported| supported != 0)
}

impl Extents {
    /// Pins an extent for this device, read-only where the extent is so and the device can do that. A driver may refuse (no such support,
    /// locked-memory limit, pinned by somebody else); the extent then works all the same, through pinned slots (`bounce`).
    pub(super) fn register(
        &mut self,
        owner: Arc<dyn HostExtent>,
        context: &CudaContext,
    ) -> Result<ExtentId, DriverError> {
        let id = ExtentId(u32::try_from(self.0.len()).expect("fewer than 2^32 extents"));
        let address = owner.service_address().cast::<c_void>();
        let bytes = usize::try_from(owner.bytes()).expect("an extent is mapped");
        let mut mapped = None;
        let pins = |flags: u32| {
            // SAFETY: the extent stays mapped as long as `owner` (its contract), which is kept until `clear` has unregistered it.
            unsafe { sys::cuMemHostRegister_v2(address, bytes, flags) }.result().is_ok()
        };
        let flags = sys::CU_MEMHOSTREGISTER_PORTABLE | sys::CU_MEMHOSTREGISTER_DEVICEMAP;
        // A device that uses the host's page tables takes read-only memory without the flag too; others refuse.
        let read_only = owner.is_read_only() && can_pin_read_only(context);
        if read_only && pins(flags | sys::CU_MEMHOSTREGISTER_READ_ONLY) || pins(flags) {
            let mut raw = 0;
            // SAFETY: registered for device mapping just now.
            let found = unsafe { sys::cuMemHostGetDevicePointer_v2(&raw mut raw, address, 0) }.result();
            if let Err(error) = found {
                // SAFETY: registered above, and no work refers to it.
                unsafe { sys::cuMemHostUnregister(address) }.result()?;
                return Err(error);
            }
            mapped = Some(DevicePtr::new(raw));
        }
        self.0.push(Extent { owner, mapped });
        Ok(id)
    }

    /// The place of a range that is to be written. Errors: also [`DeviceError::ReadOnly`].
    pub(super) fn resolve_target(&self, range: HostRange) -> Result<HostPlace, DeviceError> {
        let place = self.resolve(range)?;
        let index = usize::try_from(range.extent.0).expect("it was found");
        if self.0[index].owner.is_read_only() {
            return Err(DeviceError::ReadOnly { extent: range.extent });
        }
        Ok(place)
    }

    /// The place of a range of a registered extent.
    pub(super) fn resolve(&self, range: HostRange) -> Result<HostPlace, DeviceError> {
        let HostRange { extent, offset, bytes } = range;
        let outside = DeviceError::HostRange { extent, offset, bytes };
        let Some(found) = usize::try_from(extent.0).ok().and_then(|index| self.0.get(index)) else {
            return Err(outside);
        };
        if offset.checked_add(bytes).is_none_or(|end| end > found.owner.bytes()) {
            return Err(outside);
        }
        let distance = usize::try_from(offset).expect("inside a mapped extent");
        let address = found.owner.service_address().wrapping_add(distance);
        Ok(HostPlace { address, mapped: found.mapped.map(|start| start.add(offset)) })
    }

    /// Whether an extent is pinned; `None` when there is none of that name.
    pub(super) fn is_pinned(&self, extent: ExtentId) -> Option<bool> {
        let index = usize::try_from(extent.0).ok()?;
        self.0.get(index).map(|extent| extent.mapped.is_some())
    }

    /// Unpins and lets go of everything, after all work is done.
    pub(super) fn clear(&mut self) {
        for extent in self.0.drain(..).filter(|extent| extent.mapped.is_some()) {
            // SAFETY: registered by `register`; no work is left (the caller has waited, or the context has failed). An error is
            // the context's own, and it ends next.
            let _ = unsafe { sys::cuMemHostUnregister(extent.owner.service_address().cast()) };
        }
    }
}
