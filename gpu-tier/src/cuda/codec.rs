//! Codecs and sums as operations of the device, for whole lists of slices and layers.

use cache_core::codec::{Grid, i8h as i8h_form, sx12 as sx12_form};
use cache_core::payload::Side;

use super::address::DevicePtr;
use super::kernels::grid::Part;
use super::kernels::{gather, i8h, kc4vt4, sx12, xxh3};
use super::{CudaDevice, Shared};
use crate::attention::checks::{check_disjoint, shape};
use crate::attention::closed::Codes;
use crate::device::{DeviceRange, Stream};
use crate::error::DeviceError;

/// Verdict: done.
pub const DONE: u32 = 0;
/// Verdict of an encoder: a header does not fit f16. Of a decoder: a header is out of range.
pub const HEADER: u32 = 1;
/// Verdict of an encoder: a value is not finite.
pub const NON_FINITE: u32 = 2;
/// Verdict of an encoder: the escape area is full. Of a decoder: escapes do not add up.
pub const ESCAPES: u32 = 3;

/// One side of one KV head of a block, exact and in codes. Ranges start at multiples of 16 bytes and have exactly the length that
/// `docs/forms.md` states; `verdict` has 4 bytes, u32 in the machine's order. Slices may share a verdict: the largest stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// How it is coded.
    pub form: Codes,
    /// Keys or values.
    pub side: Side,
    /// Rows by lanes.
    pub grid: Grid,
    /// bf16 `[rows][lanes]`.
    pub values: DeviceRange,
    /// Headers or scales, f16.
    pub scales: DeviceRange,
    /// Codes.
    pub codes: DeviceRange,
    /// [`DONE`], [`HEADER`] or [`NON_FINITE`].
    pub verdict: DeviceRange,
}

/// One layer of a block, exact and as `sx12`: sections as `docs/forms.md` has them. `raw` and `codes` start at multiples of 16
/// bytes; `verdict` as for [`Slice`], [`DONE`], [`HEADER`] or [`ESCAPES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sx12Layer {
    /// KV heads.
    pub kv_heads: u32,
    /// Elements of one side of one head, a multiple of 32.
    pub elements: u32,
    /// bf16 `[kv_heads][keys | values]`.
    pub raw: DeviceRange,
    /// Windows, then the escape area.
    pub header: DeviceRange,
    /// Codes of each side.
    pub codes: DeviceRange,
    /// Outcome.
    pub verdict: DeviceRange,
}

/// A section to sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum {
    /// Its bytes, from a multiple of 16.
    pub data: DeviceRange,
    /// What the sum starts from.
    pub seed: u64,
    /// Eight bytes, at a multiple of 8: XXH3-64, u64 in the machine's order.
    pub sum: DeviceRange,
}

impl CudaDevice {
    /// Encodes slices from bf16. Errors: [`DeviceError::Shape`] for ranges of another length or alignment, and targets that overlap.
    pub fn encode_slices(&self, stream: Stream, slices: &[Slice]) -> Result<(), DeviceError> {
        self.shared.code_slices(stream, "encode slices", slices, |slice| [slice.scales, slice.codes].to_vec())
    }

    /// Decodes slices to bf16. Errors: as [`CudaDevice::encode_slices`].
    pub fn decode_slices(&self, stream: Stream, slices: &[Slice]) -> Result<(), DeviceError> {
        self.shared.code_slices(stream, "decode slices", slices, |slice| [slice.values].to_vec())
    }

    /// Encodes layers as `sx12`, every byte of both sections. Errors: as [`CudaDevice::encode_slices`].
    pub fn encode_sx12(&self, stream: Stream, layers: &[Sx12Layer]) -> Result<(), DeviceError> {
        self.shared.code_layers(stream, "encode sx12", layers, |layer| [layer.header, layer.codes].to_vec())
    }

    /// Decodes layers from `sx12`. Errors: as [`CudaDevice::encode_slices`].
    pub fn decode_sx12(&self, stream: Stream, layers: &[Sx12Layer]) -> Result<(), DeviceError> {
        self.shared.code_layers(stream, "decode sx12", layers, |layer| [layer.raw].to_vec())
    }

    /// Sums sections. Errors: [`DeviceError::Shape`] for a wrong alignment or length, and sums that overlap.
    pub fn sum(&self, stream: Stream, jobs: &[Sum]) -> Result<(), DeviceError> {
        const WHAT: &str = "sum";
        self.shared.enter()?;
        check_disjoint(WHAT, jobs.iter().map(|job| job.sum).collect())?;
        let memory = self.shared.memory();
        let mut work = Vec::with_capacity(jobs.len());
        for job in jobs {
            let sized = |range: DeviceRange, bytes: u64, alignment: u64| {
                let address = memory.resolve(range)?;
                sized(WHAT, (range, address), bytes, alignment)
            };
            let data = sized(job.data, job.data.bytes, 16)?;
            work.push(xxh3::Job { data, bytes: job.data.bytes, seed: job.seed, sum: sized(job.sum, 8, 8)? });
        }
        xxh3::launch(self.shared.launcher(WHAT, stream), &work)
    }
}

/// The address of a range, if it has the length and the alignment.
fn sized(
    what: &'static str,
    (range, address): (DeviceRange, DevicePtr),
    bytes: u64,
    alignment: u64,
) -> Result<DevicePtr, DeviceError> {
    if range.bytes != bytes || address.padding(alignment) > 0 {
        return Err(shape(what, format!("{range:?}, expected {bytes} bytes aligned to {alignment}")));
    }
    Ok(address)
}

impl Shared {
    fn code_slices(
        &self,
        stream: Stream,
        what: &'static str,
        slices: &[Slice],
        targets: impl Fn(&Slice) -> Vec<DeviceRange>,
    ) -> Result<(), DeviceError> {
        self.enter()?;
        check_disjoint(what, slices.iter().flat_map(&targets).collect())?;
        let memory = self.memory();
        let (mut parts, mut verdicts) = (Vec::with_capacity(slices.len()), Vec::with_capacity(slices.len()));
        for slice in slices {
            let take = |range: DeviceRange, bytes: usize, alignment| {
                sized(what, (range, memory.resolve(range)?), bytes as u64, alignment)
            };
            let elements = slice.grid.elements();
            let (scale_bytes, code_bytes) = match slice.form {
                Codes::Int8 => (2 * i8h_form::tokens(slice.side, slice.grid), elements),
                Codes::Rows4 => (4 * slice.grid.rows, elements / 2),
            };
            let part = Part {
                values: take(slice.values, 2 * elements, 16)?,
                scales: take(slice.scales, scale_bytes, 16)?,
                codes: take(slice.codes, code_bytes, 16)?,
                verdict: take(slice.verdict, 4, 4)?,
                grid: slice.grid,
                by_lane: slice.form == Codes::Int8 && slice.side == Side::Key,
            };
            verdicts.push(part.verdict);
            parts.push((slice.form, part));
        }
        let launcher = self.launcher(what, stream);
        gather::clear(launcher, &verdicts)?;
        let of = |codes| parts.iter().filter(|(form, _)| *form == codes).map(|(_, part)| *part).collect::<Vec<_>>();
        if what.starts_with("encode") {
            i8h::encode(launcher, &of(Codes::Int8), NON_FINITE, HEADER)?;
            kc4vt4::encode(launcher, &of(Codes::Rows4), NON_FINITE, HEADER)
        } else {
            i8h::decode(launcher, &of(Codes::Int8), HEADER)?;
            kc4vt4::decode(launcher, &of(Codes::Rows4), HEADER)
        }
    }

    fn code_layers(
        &self,
        stream: Stream,
        what: &'static str,
        layers: &[Sx12Layer],
        targets: impl Fn(&Sx12Layer) -> Vec<DeviceRange>,
    ) -> Result<(), DeviceError> {
        self.enter()?;
        check_disjoint(what, layers.iter().flat_map(&targets).collect())?;
        let memory = self.memory();
        let (mut parts, mut verdicts) = (Vec::new(), Vec::with_capacity(layers.len()));
        for layer in layers {
            let take =
                |range: DeviceRange, bytes, alignment| sized(what, (range, memory.resolve(range)?), bytes, alignment);
            if layer.elements == 0 || !layer.elements.is_multiple_of(sx12_form::GROUP as u32) {
                return Err(shape(what, format!("sides of {} elements", layer.elements)));
            }
            let (count, elements) = (2 * layer.kv_heads, u64::from(layer.elements));
            let area = u64::from(count) * sx12_form::allowance(elements);
            let raw = take(layer.raw, 2 * elements * u64::from(count), 16)?;
            let codes = take(layer.codes, elements / 2 * 3 * u64::from(count), 16)?;
            let windows = take(layer.header, 2 * u64::from(count) + area, 1)?;
            let verdict = take(layer.verdict, 4, 4)?;
            verdicts.push(verdict);
            parts.extend((0..count).map(|part| sx12::Part {
                values: raw.add(2 * elements * u64::from(part)),
                codes: codes.add(elements / 2 * 3 * u64::from(part)),
                windows,
                escapes: windows.add(2 * u64::from(count)),
                verdict,
                elements: layer.elements,
                part,
                parts: count,
                area: u32::try_from(area).expect("13 bytes in 4096 elements"),
            }));
        }
        let launcher = self.launcher(what, stream);
        gather::clear(launcher, &verdicts)?;
        if what.starts_with("encode") {
            sx12::encode(launcher, &parts, ESCAPES)
        } else {
            sx12::decode(launcher, &parts, ESCAPES, HEADER)
        }
    }
}
