//! A device that does something of its own where blocks are closed, and else is the `cpu` device.

use std::sync::Arc;

use gpu_tier::DeviceError;
use gpu_tier::attention::closed::{AttendMixed, Closed, Encode};
use gpu_tier::attention::{Append, Attend, Attention, Finish, Geometry, SectionPlace};
use gpu_tier::cpu::CpuDevice;
use gpu_tier::device::{
    CopyPiece, Device, DeviceBuffer, DeviceInfo, DeviceRange, Event, ExtentId, HostExtent, MemoryUse, Stream, Traffic,
};

/// What is done differently.
pub(crate) trait Change: Send + Sync {
    /// Stands in for the exact window of rows that read closed blocks.
    fn window(&self, window: u32) -> u32 {
        window
    }

    /// Stands in for the device's encoding.
    fn encode(
        &self,
        device: &CpuDevice,
        stream: Stream,
        geometry: &Geometry,
        closed: Closed,
        jobs: &[Encode],
    ) -> Result<(), DeviceError>;
}

/// The `cpu` device with a change.
pub(crate) struct Wrapped<C> {
    pub(crate) device: Arc<CpuDevice>,
    pub(crate) change: C,
}

/// Where a section of an engine without a cache lies.
pub(crate) fn in_device(place: SectionPlace) -> DeviceRange {
    let SectionPlace::Device(range) = place else { panic!("without a cache, sections lie in device memory") };
    range
}

/// The bytes of a section.
pub(crate) fn download(device: &CpuDevice, stream: Stream, range: DeviceRange) -> Result<Vec<u8>, DeviceError> {
    let mut bytes = vec![0; range.bytes as usize];
    device.download(stream, range, &mut bytes)?;
    Ok(bytes)
}

impl<C: Change> Attention for Wrapped<C> {
    fn append(&self, stream: Stream, geometry: &Geometry, jobs: &[Append<'_>]) -> Result<(), DeviceError> {
        self.device.append(stream, geometry, jobs)
    }

    fn attend(&self, stream: Stream, geometry: &Geometry, jobs: &[Attend<'_>]) -> Result<(), DeviceError> {
        self.device.attend(stream, geometry, jobs)
    }

    fn attend_mixed(
        &self,
        stream: Stream,
        geometry: &Geometry,
        closed: Closed,
        jobs: &[AttendMixed<'_>],
    ) -> Result<(), DeviceError> {
        let changed = |job: &AttendMixed<'_>| self.change.window(job.window);
        let jobs: Vec<_> = jobs.iter().map(|job| AttendMixed { window: changed(job), ..*job }).collect();
        self.device.attend_mixed(stream, geometry, closed, &jobs)
    }

    fn encode(&self, stream: Stream, geometry: &Geometry, closed: Closed, jobs: &[Encode]) -> Result<(), DeviceError> {
        self.change.encode(&self.device, stream, geometry, closed, jobs)
    }

    fn finish(&self, stream: Stream, geometry: &Geometry, jobs: &[Finish]) -> Result<(), DeviceError> {
        self.device.finish(stream, geometry, jobs)
    }
}

impl<C: Change> Device for Wrapped<C> {
    fn info(&self) -> &DeviceInfo {
        self.device.info()
    }
    fn memory(&self) -> MemoryUse {
        self.device.memory()
    }
    fn traffic(&self) -> Traffic {
        self.device.traffic()
    }
    fn allocate(&self, bytes: u64) -> Result<DeviceBuffer, DeviceError> {
        self.device.allocate(bytes)
    }
    fn register(&self, extent: Arc<dyn HostExtent>) -> Result<ExtentId, DeviceError> {
        self.device.register(extent)
    }
    fn record(&self, stream: Stream) -> Result<Event, DeviceError> {
        self.device.record(stream)
    }
    fn wait(&self, stream: Stream, event: Event) -> Result<(), DeviceError> {
        self.device.wait(stream, event)
    }
    fn is_done(&self, event: Event) -> Result<bool, DeviceError> {
        self.device.is_done(event)
    }
    fn synchronize(&self, event: Event) -> Result<(), DeviceError> {
        self.device.synchronize(event)
    }
    fn copy_in(&self, stream: Stream, pieces: &[CopyPiece]) -> Result<(), DeviceError> {
        self.device.copy_in(stream, pieces)
    }
    fn copy_out(&self, stream: Stream, pieces: &[CopyPiece]) -> Result<(), DeviceError> {
        self.device.copy_out(stream, pieces)
    }
    fn copy_within(&self, stream: Stream, source: DeviceRange, target: DeviceRange) -> Result<(), DeviceError> {
        self.device.copy_within(stream, source, target)
    }
    fn upload(&self, stream: Stream, source: &[u8], target: DeviceRange) -> Result<(), DeviceError> {
        self.device.upload(stream, source, target)
    }
    fn download(&self, stream: Stream, source: DeviceRange, target: &mut [u8]) -> Result<(), DeviceError> {
        self.device.download(stream, source, target)
    }
    fn inspect(&self, stream: Stream, source: DeviceRange, look: &mut dyn FnMut(&[u8])) -> Result<(), DeviceError> {
        self.device.inspect(stream, source, look)
    }
}
