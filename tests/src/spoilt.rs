//! A device whose closed blocks are a little wrong: mistakes that a codec or an attention kernel could make, for gates that must see them.

use cache_core::codec::{nearest, read_f16, write_f16};
use gpu_tier::DeviceError;
use gpu_tier::attention::closed::{Closed, Encode};
use gpu_tier::attention::{Attention, Geometry, SectionPlace};
use gpu_tier::cpu::CpuDevice;
use gpu_tier::device::{Device, Stream};

use crate::wrapped::{Change, download, in_device};

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

fn rewrite(
    device: &CpuDevice,
    stream: Stream,
    place: SectionPlace,
    change: &dyn Fn(&mut [u8]),
) -> Result<(), DeviceError> {
    let mut bytes = download(device, stream, in_device(place))?;
    change(&mut bytes);
    device.upload(stream, &bytes, in_device(place))
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

impl Change for Spoil {
    fn window(&self, window: u32) -> u32 {
        window + u32::from(*self == Spoil::WindowOffByOne)
    }

    fn encode(
        &self,
        device: &CpuDevice,
        stream: Stream,
        geometry: &Geometry,
        closed: Closed,
        jobs: &[Encode],
    ) -> Result<(), DeviceError> {
        device.encode(stream, geometry, closed, jobs)?;
        for job in jobs {
            match self {
                Spoil::ScaleOff => rewrite(device, stream, job.into.scale, &enlarge)?,
                Spoil::HeadsSwapped => {
                    rewrite(device, stream, job.into.codes, &|codes| swap_heads(codes, geometry.kv_heads as usize))?;
                }
                Spoil::WindowOffByOne => {}
            }
        }
        Ok(())
    }
}
