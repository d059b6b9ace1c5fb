//! The codec kernels through the device's operations, beside the scalar reference: slices one a call, `sx12` by layers.

use std::sync::atomic::{AtomicU64, Ordering};

use cache_core::codec::image::{LayerMut, encode_layer};
use cache_core::codec::suite::{KINDS, Random, compare, fill, parity};
use cache_core::codec::{Codec, Damaged, Grid, Scalar, StaysRaw, sx12};
use cache_core::form::Form;
use cache_core::payload::{BlockShape, Plane, Side};
use gpu_tier::attention::closed::Codes;
use gpu_tier::cuda::CudaDevice;
use gpu_tier::cuda::codec::{DONE, ESCAPES, HEADER, NON_FINITE, Slice, Sx12Layer};
use gpu_tier::device::{Device, DeviceBuffer, DeviceRange, Stream};

/// Values whose codes were compared, by form, and layers of `sx12` that fit or stay raw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    pub i8h: u64,
    pub kc4vt4: u64,
    pub sx12: u64,
    pub layers_fit: u64,
    pub layers_stay: u64,
}

/// Grids larger than those of the suite: threads that take several tiles, rows by more threads than a warp has.
const LARGE: [(u32, u32); 5] = [(256, 64), (264, 72), (512, 16), (16, 512), (128, 256)];
/// Grids of the suite between two looks at how many values they had.
const GRIDS: usize = 56;

/// Encodes and decodes at least `values` values of every form on the device, random and adversarial ones. Panics on the first bit that
/// is not the reference's.
pub fn check(device: &CudaDevice, seed: u64, values: u64) -> Compared {
    let slices = OnDevice::new(device);
    let mut random = Random(seed);
    for (head_dim, block_tokens) in LARGE {
        for (kind, side) in [(0, Side::Key), (0, Side::Value), (2, Side::Key), (10, Side::Value)] {
            let grid = Grid::new(side, head_dim, block_tokens);
            compare(&slices, &mut random, kind, side, grid, &format!("seed {seed:#x}, {grid:?}"));
        }
    }
    let mut out = Compared::default();
    let mut rounds = 0;
    while out.i8h.min(out.kc4vt4) < values {
        parity(&slices, random.bits(), GRIDS);
        [out.i8h, out.kc4vt4] = [Codes::Int8, Codes::Rows4].map(|form| slices.encoded(form));
        rounds += 1;
        assert!(rounds < 1 << 20, "the suite has grids");
    }
    // Shares of 13: as many, none at all, and more than a share where the layer still has room; then more than the area or a count holds.
    for (escapes, verdict) in [
        ([13, 13, 13, 13], DONE),
        ([0, 13, 0, 0], DONE),
        ([14, 13, 13, 12], DONE),
        ([0, 0, 1, 51], DONE),
        ([0, 20, 0, 0], DONE),
        ([14, 13, 13, 13], ESCAPES),
    ] {
        assert_eq!(layer(device, escaping(64, &escapes), &format!("{escapes:?}")).1, verdict, "{escapes:?}");
    }
    let many = [[0; 7], [255, 0, 0, 0, 0, 0, 0]].concat();
    assert_eq!(layer(device, escaping(128, &many), "255 in a side").1, DONE);
    let more = [[0; 7], [256, 0, 0, 0, 0, 0, 0]].concat();
    assert_eq!(layer(device, escaping(128, &more), "256 in a side").1, ESCAPES);
    let mut case = 0;
    while out.sx12 < values || case < 2 * KINDS {
        let (elements, verdict) = layer(device, made_up(seed, case), &format!("seed {seed:#x}, case {case}"));
        match verdict {
            DONE => (out.layers_fit, out.sx12) = (out.layers_fit + 1, out.sx12 + elements),
            ESCAPES => out.layers_stay += 1,
            other => panic!("verdict {other}"),
        }
        case += 1;
    }
    assert!(out.layers_fit >= 10 && out.layers_stay >= 4, "{out:?}");
    out
}

/// A device with one piece of memory that every case uses anew.
struct OnDevice<'d> {
    device: &'d CudaDevice,
    memory: DeviceBuffer,
    /// Values encoded, of grids that fit: `i8h`, `kc4vt4`.
    encoded: [AtomicU64; 2],
}

/// Most elements of a grid.
const ELEMENTS: u64 = 128 * 256;

impl OnDevice<'_> {
    fn new(device: &CudaDevice) -> OnDevice<'_> {
        OnDevice { device, memory: device.allocate(8 * ELEMENTS).unwrap(), encoded: Default::default() }
    }

    fn encoded(&self, form: Codes) -> u64 {
        self.encoded[usize::from(form == Codes::Rows4)].load(Ordering::Relaxed)
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
        self.encoded[usize::from(slice.form == Codes::Rows4)].fetch_add(values.len() as u64, Ordering::Relaxed);
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

pub fn put(device: &CudaDevice, bytes: &[u8]) -> DeviceBuffer {
    let buffer = device.allocate(bytes.len() as u64).unwrap();
    device.upload(Stream::Compute, bytes, buffer.range()).unwrap();
    buffer
}

pub fn get(device: &CudaDevice, range: DeviceRange) -> Vec<u8> {
    let mut bytes = vec![0; range.bytes as usize];
    device.download(Stream::Compute, range, &mut bytes).unwrap();
    bytes
}

fn shape(kv_heads: u32, head_dim: u32, block_tokens: u32) -> BlockShape {
    BlockShape { form: Form::Sx12, layers: 1, kv_heads, head_dim, block_tokens }
}

/// A layer of made-up values: sides of their own kind, mostly ones that fit.
fn made_up(seed: u64, case: usize) -> (BlockShape, Vec<u16>) {
    let mut random = Random(seed ^ (case as u64 * 77 + 5));
    let (head_dim, block_tokens) = ([32, 64, 96, 264][case % 4], [64, 32][case / 2 % 2]);
    let shape = shape(1 + case as u32 % 3, head_dim, block_tokens);
    let per_side = (head_dim * block_tokens) as usize;
    let mut raw = vec![0u16; 2 * shape.kv_heads as usize * per_side];
    for (i, values) in raw.chunks_exact_mut(per_side).enumerate() {
        let kind = if case < KINDS { case } else { [0, 12, 13, 3, 5][(case + i) % 5] };
        fill(&mut random, kind, Grid::new(Side::ALL[i % 2], head_dim, block_tokens), values);
    }
    (shape, raw)
}

/// A layer with this many escapes in each of its sides.
fn escaping(head_dim: u32, escapes: &[usize]) -> (BlockShape, Vec<u16>) {
    let per_side = (head_dim * 64) as usize;
    let side = |count: usize| {
        // Ones, and numbers too small for their window: every seventh element from the last one on.
        let small = move |from_end: usize| from_end.is_multiple_of(7) && from_end / 7 < count;
        (0..per_side).rev().map(move |from_end| if small(from_end) { 0x1000 } else { 0x3f80 })
    };
    (shape(escapes.len() as u32 / 2, head_dim, 64), escapes.iter().flat_map(|count| side(*count)).collect())
}

/// Encodes and decodes a layer; returns its elements and its verdict.
fn layer(device: &CudaDevice, (shape, raw): (BlockShape, Vec<u16>), name: &str) -> (u64, u32) {
    let (kv_heads, per_side) = (shape.kv_heads, shape.head_dim * shape.block_tokens);
    let raw: Vec<u8> = raw.iter().flat_map(|x| x.to_le_bytes()).collect();
    let [mut header, mut codes] =
        [Plane::Header, Plane::Code].map(|plane| vec![0u8; shape.layer_bytes(plane, 0) as usize]);
    let out = LayerMut { header: &mut header, scale: &mut [], codes: &mut codes };
    let expected = encode_layer(&Scalar, &shape, 0, &raw, out);
    let blank = |bytes: &[u8]| put(device, &vec![0xa5; bytes.len()]);
    let (raw_on, header_on, codes_on, verdict) = (put(device, &raw), blank(&header), blank(&codes), blank(&[0; 4]));
    let layer = Sx12Layer {
        kv_heads,
        elements: per_side,
        raw: raw_on.range(),
        header: header_on.range(),
        codes: codes_on.range(),
        verdict: verdict.range(),
    };
    device.encode_sx12(Stream::Compute, &[layer]).unwrap();
    let outcome = u32::from_ne_bytes(get(device, verdict.range()).try_into().unwrap());
    assert_eq!(outcome == DONE, expected.is_ok(), "{name}: {expected:?}");
    let elements = raw.len() as u64 / 2;
    if outcome != DONE {
        return (elements, outcome);
    }
    assert_eq!(get(device, header_on.range()), header, "{name}, header");
    assert_eq!(get(device, codes_on.range()), codes, "{name}, codes");
    device.upload(Stream::Compute, &vec![0xa5; raw.len()], raw_on.range()).unwrap();
    device.decode_sx12(Stream::Compute, &[layer]).unwrap();
    assert_eq!(get(device, verdict.range()), DONE.to_ne_bytes(), "{name}, decoding");
    assert_eq!(get(device, raw_on.range()), raw, "{name}, decoded");
    // A window that no encoder writes, and a count that does not add up.
    for (byte, value) in [(0, 13), (1, header[1].wrapping_add(1))] {
        let mut spoilt = header.clone();
        spoilt[byte] = value;
        device.upload(Stream::Compute, &spoilt, header_on.range()).unwrap();
        device.decode_sx12(Stream::Compute, &[layer]).unwrap();
        assert_ne!(get(device, verdict.range()), DONE.to_ne_bytes(), "{name}, byte {byte} spoilt");
    }
    (elements, outcome)
}
