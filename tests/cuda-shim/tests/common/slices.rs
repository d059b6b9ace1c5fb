//! The codec kernels as a [`Codec`], through the device's operations, one slice a call.

use cache_core::codec::{Codec, Damaged, Grid, Scalar, StaysRaw, sx12};
use cache_core::payload::Side;
use gpu_tier::attention::closed::Codes;
use gpu_tier::cuda::CudaDevice;
use gpu_tier::cuda::codec::{DONE, HEADER, NON_FINITE, Slice};
use gpu_tier::device::{Device, DeviceBuffer, DeviceRange, Stream};

/// A device with one piece of memory that every case uses anew.
pub struct OnDevice<'d> {
    device: &'d CudaDevice,
    memory: DeviceBuffer,
}

/// Most elements of a grid of the suite.
const ELEMENTS: u64 = 128 * 128;

impl OnDevice<'_> {
    pub fn new(device: &CudaDevice) -> OnDevice<'_> {
        OnDevice { device, memory: device.allocate(8 * ELEMENTS).unwrap() }
    }

    fn slice(&self, form: Codes, side: Side, grid: Grid, scales: usize, codes: usize) -> Slice {
        let at = |place: u64, bytes: usize| self.memory.range().slice(2 * ELEMENTS * place, bytes as u64);
        Slice {
            form,
            side,
            grid,
            values: at(0, 2 * grid.elements()),
            scales: at(1, scales),
            codes: at(2, codes),
            verdict: at(3, 4),
        }
    }

    fn put(&self, range: DeviceRange, bytes: &[u8]) {
        self.device.upload(Stream::Compute, bytes, range).unwrap();
    }

    fn get(&self, range: DeviceRange, bytes: &mut [u8]) {
        self.device.download(Stream::Compute, range, bytes).unwrap();
    }

    fn verdict(&self, slice: &Slice) -> u32 {
        let mut verdict = [0; 4];
        self.get(slice.verdict, &mut verdict);
        u32::from_ne_bytes(verdict)
    }

    fn encode(&self, slice: Slice, values: &[u16], scales: &mut [u8], codes: &mut [u8]) -> Result<(), StaysRaw> {
        self.put(slice.values, &values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>());
        self.device.encode_slices(Stream::Compute, &[slice]).unwrap();
        match self.verdict(&slice) {
            DONE => {}
            HEADER => return Err(StaysRaw::HeaderRange),
            NON_FINITE => return Err(StaysRaw::NonFinite),
            other => panic!("verdict {other}"),
        }
        self.get(slice.scales, scales);
        self.get(slice.codes, codes);
        Ok(())
    }

    fn decode(&self, slice: Slice, scales: &[u8], codes: &[u8], values: &mut [u16]) -> Result<(), Damaged> {
        self.put(slice.scales, scales);
        self.put(slice.codes, codes);
        self.device.decode_slices(Stream::Compute, &[slice]).unwrap();
        match self.verdict(&slice) {
            DONE => {}
            HEADER => return Err(Damaged::Header),
            other => panic!("verdict {other}"),
        }
        let mut bytes = vec![0; 2 * values.len()];
        self.get(slice.values, &mut bytes);
        values
            .iter_mut()
            .zip(bytes.chunks_exact(2))
            .for_each(|(x, bytes)| *x = u16::from_le_bytes([bytes[0], bytes[1]]));
        Ok(())
    }
}

impl Codec for OnDevice<'_> {
    /// The device encodes whole layers only: not through this trait.
    fn encode_sx12(&self, values: &[u16], codes: &mut [u8], escapes: &mut [u8]) -> Result<sx12::Window, StaysRaw> {
        Scalar.encode_sx12(values, codes, escapes)
    }

    fn decode_sx12(
        &self,
        window: sx12::Window,
        codes: &[u8],
        escapes: &[u8],
        values: &mut [u16],
    ) -> Result<(), Damaged> {
        Scalar.decode_sx12(window, codes, escapes, values)
    }

    fn encode_i8h(
        &self,
        side: Side,
        grid: Grid,
        values: &[u16],
        scales: &mut [u8],
        codes: &mut [u8],
    ) -> Result<(), StaysRaw> {
        self.encode(self.slice(Codes::Int8, side, grid, scales.len(), codes.len()), values, scales, codes)
    }

    fn decode_i8h(
        &self,
        side: Side,
        grid: Grid,
        scales: &[u8],
        codes: &[u8],
        values: &mut [u16],
    ) -> Result<(), Damaged> {
        self.decode(self.slice(Codes::Int8, side, grid, scales.len(), codes.len()), scales, codes, values)
    }

    fn encode_rows4(&self, grid: Grid, values: &[u16], header: &mut [u8], codes: &mut [u8]) -> Result<(), StaysRaw> {
        self.encode(self.slice(Codes::Rows4, Side::Value, grid, header.len(), codes.len()), values, header, codes)
    }

    fn decode_rows4(&self, grid: Grid, header: &[u8], codes: &[u8], values: &mut [u16]) -> Result<(), Damaged> {
        self.decode(self.slice(Codes::Rows4, Side::Value, grid, header.len(), codes.len()), header, codes, values)
    }
}
