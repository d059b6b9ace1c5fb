//! What attention over closed blocks costs beside exact attention: one decoded token of one sequence, in one run.

use std::sync::Arc;
use std::time::Instant;

use cache_core::buffer::Buffer;
use cache_core::codec::image::{LayerMut, encode_layer};
use cache_core::form::Form;
use cache_core::payload::{BlockShape, Plane};

use super::Simd;
use super::bench::Sample;
use crate::attention::closed::{AttendMixed, Closed, ClosedPlace};
use crate::attention::{Accumulator, Attend, Attention, Element, Geometry, SPAN_TOKENS, SectionPlace};
use crate::cpu::isa::Isa;
use crate::cpu::workers::Workers;
use crate::cpu::{CpuConfig, CpuDevice, Link};
use crate::device::{Device, DeviceBuffer, Stream};
use crate::error::DeviceError;

/// Shape of the measurement.
#[derive(Clone, Copy, Debug)]
pub struct AttentionBench {
    /// Layers, each with keys and values of its own.
    pub layers: u32,
    /// Query heads of a KV head.
    pub group: u32,
    /// KV heads.
    pub kv_heads: u32,
    /// Positions, a multiple of the sample's block.
    pub tokens: u32,
    /// Exact window in positions.
    pub window: u32,
    /// Threads.
    pub threads: usize,
    /// Instruction set.
    pub isa: Isa,
}

/// Medians over rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionFigures {
    /// Seconds of one token, all layers, exact blocks only.
    pub exact_seconds: f64,
    /// The same with closed blocks wherever the rule allows.
    pub closed_seconds: f64,
    /// Median of exact over closed, of the same round.
    pub closed_versus_exact: f64,
    /// KV bytes that one token reads, exact.
    pub exact_bytes: u64,
    /// The same with closed blocks.
    pub closed_bytes: u64,
}

/// Measures decode attention over `form` beside exact attention, `rounds` times in turn.
///
/// Errors: not enough memory. Panics when attention does not read the form as it lies or the sample does not fit it.
pub fn measure_attention(
    bench: AttentionBench,
    sample: &Sample,
    form: Form,
    rounds: usize,
) -> Result<AttentionFigures, DeviceError> {
    let closed = (0..bench.layers)
        .map(|layer| Closed::of(form, layer).unwrap_or_else(|| panic!("attention does not read {form} as it lies")));
    let closed: Vec<Closed> = closed.collect();
    let rig = Rig::new(bench, sample, form)?;
    let spans: Vec<u32> = (0..bench.tokens / SPAN_TOKENS).collect();
    let mut seconds = Vec::with_capacity(rounds);
    let mut bytes = (0, 0);
    for round in 0..=rounds {
        let before = rig.device.traffic().attended_device_bytes;
        let exact = rig.exact(&spans)?;
        let between = rig.device.traffic().attended_device_bytes;
        let mixed = rig.closed(&closed, &spans)?;
        bytes = (between - before, rig.device.traffic().attended_device_bytes - between);
        // The first round warms caches, pages and the clock up.
        if round > 0 {
            seconds.push((exact, mixed));
        }
    }
    let median = |of: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = seconds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Ok(AttentionFigures {
        exact_seconds: median(|round| round.0),
        closed_seconds: median(|round| round.1),
        closed_versus_exact: median(|round| round.0 / round.1),
        exact_bytes: bytes.0,
        closed_bytes: bytes.1,
    })
}

/// A sequence in device memory, both exact and closed.
struct Rig {
    device: CpuDevice,
    bench: AttentionBench,
    geometry: Geometry,
    queries: DeviceBuffer,
    store: DeviceBuffer,
    exact: Vec<Vec<Option<SectionPlace>>>,
    closed: Vec<Vec<Option<ClosedPlace>>>,
    _arenas: [DeviceBuffer; 2],
}

impl Rig {
    fn new(bench: AttentionBench, sample: &Sample, form: Form) -> Result<Rig, DeviceError> {
        let AttentionBench { layers, group, kv_heads, tokens, threads, isa, .. } = bench;
        let (head_dim, block_tokens) = (sample.head_dim, sample.block_tokens);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let heads = group * kv_heads;
        let geometry = Geometry { heads, kv_heads, head_dim, block_tokens, element: Element::Bf16, scale };
        let raw = BlockShape { layers, kv_heads, head_dim, block_tokens, form: Form::Raw16 };
        let shape = raw.with_form(form);
        let blocks = u64::from(tokens / block_tokens);
        let queries = 4 * u64::from(heads * head_dim);
        let store = geometry.accumulator_bytes(1, tokens / SPAN_TOKENS);
        let bytes = blocks * (raw.slot_bytes() + shape.slot_bytes());
        let budget_bytes = bytes + queries + store + (16 << 20);
        let workers = Arc::new(Workers::new(threads));
        let device = CpuDevice::open(CpuConfig { budget_bytes, link: Link::InPlace, workers, isa })?;
        let [raw_arena, arena] =
            [device.allocate(blocks * raw.slot_bytes())?, device.allocate(blocks * shape.slot_bytes())?];
        let mut exact = vec![Vec::new(); layers as usize];
        let mut places = vec![Vec::new(); layers as usize];
        let codec = Simd::new(isa);
        let mut values = sample.values.iter().copied().cycle();
        // Page-aligned, as sections of elements must be.
        let mut section = Buffer::zeroed(raw.layer_bytes(Plane::Code, 0) as usize);
        for block in 0..blocks {
            for layer in 0..layers {
                for element in section.as_mut_slice().chunks_exact_mut(2) {
                    element.copy_from_slice(&values.next().expect("a sample repeats for ever").to_le_bytes());
                }
                let at = raw.code_section(layer);
                let range = raw_arena.range().slice(block * raw.slot_bytes() + at.offset, at.bytes);
                device.upload(Stream::Compute, section.as_slice(), range)?;
                exact[layer as usize].push(Some(SectionPlace::Device(range)));
                let mut planes = Plane::ALL.map(|plane| vec![0; shape.layer_bytes(plane, layer) as usize]);
                let [header, scale, codes] = &mut planes;
                let out = LayerMut { header, scale, codes };
                encode_layer(&codec, &shape, layer, section.as_slice(), out).expect("the sample fits the form");
                let place = |plane: Plane| {
                    let Some(at) = shape.section(plane, layer) else { return Ok(None) };
                    let range = arena.range().slice(block * shape.slot_bytes() + at.offset, at.bytes);
                    device.upload(Stream::Compute, &planes[plane as usize], range)?;
                    Ok::<_, DeviceError>(Some(SectionPlace::Device(range)))
                };
                let header = place(Plane::Header)?;
                let (Some(scale), Some(codes)) = (place(Plane::Scale)?, place(Plane::Code)?) else {
                    unreachable!("forms that attention reads have scales and codes")
                };
                places[layer as usize].push(Some(ClosedPlace { header, scale, codes }));
            }
        }
        let [queries, store] = [device.allocate(queries)?, device.allocate(store)?];
        let floats = (0..heads * head_dim).flat_map(|i| ((i % 7) as f32 * 0.3 - 1.0).to_ne_bytes());
        device.upload(Stream::Compute, &floats.collect::<Vec<u8>>(), queries.range())?;
        Ok(Rig { device, bench, geometry, queries, store, exact, closed: places, _arenas: [raw_arena, arena] })
    }

    fn into(&self) -> Accumulator {
        Accumulator::Partials { range: self.store.range(), spans: self.bench.tokens / SPAN_TOKENS }
    }

    fn exact(&self, spans: &[u32]) -> Result<f64, DeviceError> {
        let (queries, first_position, into) = (self.queries.range(), self.bench.tokens - 1, self.into());
        let start = Instant::now();
        for sections in &self.exact {
            let job = Attend { queries, rows: 1, first_position, sections, spans, into };
            self.device.attend(Stream::Compute, &self.geometry, &[job])?;
        }
        Ok(start.elapsed().as_secs_f64())
    }

    fn closed(&self, forms: &[Closed], spans: &[u32]) -> Result<f64, DeviceError> {
        let (queries, first_position, into) = (self.queries.range(), self.bench.tokens - 1, self.into());
        let window = self.bench.window;
        let start = Instant::now();
        for ((exact, closed), forms) in self.exact.iter().zip(&self.closed).zip(forms) {
            let job = AttendMixed { queries, rows: 1, first_position, exact, closed, window, spans, into };
            self.device.attend_mixed(Stream::Compute, &self.geometry, *forms, &[job])?;
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_attention_reads_fewer_bytes() {
        let bench = AttentionBench {
            layers: 2,
            group: 3,
            kv_heads: 1,
            tokens: 512,
            window: 64,
            threads: 1,
            isa: Isa::detect(),
        };
        for form in ["i8h", "kc4vt4", "kc4vt4:k8=1"].map(|name| name.parse().unwrap()) {
            let found = measure_attention(bench, &Sample::synthetic(64, 64, 3), form, 1).unwrap();
            assert_eq!(found.exact_bytes, 2 * 8 * 16384);
            // Block 0 and the last block are in the window of position 511, and so is the one before: it ends at 447.
            let shape = BlockShape { layers: 2, kv_heads: 1, head_dim: 64, block_tokens: 64, form };
            assert_eq!(found.closed_bytes, 2 * 3 * 16384 + 5 * shape.payload_bytes());
            assert!(found.exact_seconds > 0.0 && found.closed_seconds > 0.0 && found.closed_versus_exact > 0.0);
        }
    }
}
