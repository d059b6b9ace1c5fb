//! A device whose closed blocks are a little wrong: mistakes that a codec or an attention kernel could make, for gates that must see them.

use std::sync::Arc;

use cache_core::codec::{nearest, read_f16, write_f16};
use gpu_tier::DeviceError;
use gpu_tier::attention::closed::{AttendMixed, Closed, Encode};
use gpu_tier::attention::{Append, Attend, Attention, Finish, Geometry, SectionPlace};
use gpu_tier::cpu::CpuDevice;
use gpu_tier::device::{
    CopyPiece, Device, DeviceBuffer, DeviceInfo, DeviceRange, Event, ExtentId, HostExtent, MemoryUse, Stream, Traffic,
};

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoil {
    /// Scales are an eighth too large.
    ScaleOff,
    /// The codes of the first two KV heads have changed places.
    HeadsSwapped,
    /// A closed block is read one position too late.
    WindowOffByOne,
}

/// The `cpu` device with a mistake.
pub(crate) struct Spoilt {
    pub(crate) device: Arc<CpuDevice>,
    pub(crate) spoil: Spoil,
}

impl Spoilt {
    fn rewrite(&self, stream: Stream, place: SectionPlace, change: &dyn Fn(&mut [u8])) -> Result<(), DeviceError> {
        let SectionPlace::Device(range) = place else { panic!("blocks are encoded into device memory") };
        let mut bytes = vec![0; range.bytes as usize];
        self.device.download(stream, range, &mut bytes)?;
        change(&mut bytes);
        self.device.upload(stream, &bytes, range)
    }
}

fn enlarge(scales: &mut [u8]) {
    for index in 0..scales.len() / 2 {
        let bits = nearest(read_f16(scales, index) * 1.125).expect("a scale of a real block has room above it");
        write_f16(scales, index, bits);
    }
}

fn swap_heads(codes: &mut [u8], kv_heads: usize) {
    let (first, second) = codes.split_at_mut(codes.len() / kv_heads);
    let head = first.len();
    first.swap_with_slice(&mut second[..head]);
}

impl Attention for Spoilt {
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
        let late = u32::from(self.spoil == Spoil::WindowOffByOne);
        let jobs: Vec<_> = jobs.iter().map(|job| AttendMixed { window: job.window + late, ..*job }).collect();
        self.device.attend_mixed(stream, geometry, closed, &jobs)
    }

    fn encode(&self, stream: Stream, geometry: &Geometry, closed: Closed, jobs: &[Encode]) -> Result<(), DeviceError> {
        self.device.encode(stream, geometry, closed, jobs)?;
        for job in jobs {
            match self.spoil {
                Spoil::ScaleOff => self.rewrite(stream, job.into.scale, &enlarge)?,
                Spoil::HeadsSwapped => {
                    self.rewrite(stream, job.into.codes, &|codes| swap_heads(codes, geometry.kv_heads as usize))?;
                }
                Spoil::WindowOffByOne => {}
            }
        }
        Ok(())
    }

    fn finish(&self, stream: Stream, geometry: &Geometry, jobs: &[Finish]) -> Result<(), DeviceError> {
        self.device.finish(stream, geometry, jobs)
    }
}

impl Device for Spoilt {
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
