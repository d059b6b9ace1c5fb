//! The attention kernels of the `cpu` device: one definition, the same bits whatever the instruction set, the team, the
//! split into calls, the order of the spans, the block size and the place of the blocks.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Extent, Random, bytes_of, floats_of, open};
use gpu_tier::DeviceError;
use gpu_tier::attention::{
    Accumulator, Append, Attend, Attention, Element, Finish, Geometry, SPAN_TOKENS, SectionPlace,
};
use gpu_tier::cpu::isa::Isa;
use gpu_tier::cpu::{CpuDevice, Link};
use gpu_tier::device::{CopyPiece, Device, DeviceBuffer, DeviceRange, HostRange, Stream};

const BUDGET: u64 = 256 << 20;

fn geometry(group: u32, kv_heads: u32, head_dim: u32, block_tokens: u32, element: Element) -> Geometry {
    let scale = 1.0 / (head_dim as f32).sqrt();
    Geometry { heads: group * kv_heads, kv_heads, head_dim, block_tokens, element, scale }
}

/// Queries, keys and values of one sequence.
struct Sequence {
    tokens: usize,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Sequence {
    fn new(geometry: &Geometry, tokens: usize, seed: u64) -> Sequence {
        let mut random = Random(seed);
        let (head, kv_head) = (geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim);
        Sequence {
            tokens,
            queries: random.normals(tokens * head as usize).iter().map(|q| q * 3.0).collect(),
            keys: random.normals(tokens * kv_head as usize),
            values: random.normals(tokens * kv_head as usize),
        }
    }
}

/// Uploads floats into an allocation of their own.
fn put(device: &CpuDevice, floats: &[f32]) -> DeviceBuffer {
    let buffer = device.allocate(floats.len() as u64 * 4).unwrap();
    device.upload(Stream::Compute, &bytes_of(floats), buffer.range()).unwrap();
    buffer
}

fn get(device: &CpuDevice, range: DeviceRange) -> Vec<f32> {
    let mut bytes = vec![0; range.bytes as usize];
    device.download(Stream::Compute, range, &mut bytes).unwrap();
    floats_of(&bytes)
}

/// A sequence's blocks in device memory, unwritten slots full of NaN.
struct Cache<'d> {
    device: &'d CpuDevice,
    geometry: Geometry,
    sections: Vec<Option<SectionPlace>>,
    _buffer: DeviceBuffer,
}

impl<'d> Cache<'d> {
    /// Appends the sequence in chunks of `chunk` rows.
    fn filled(device: &'d CpuDevice, geometry: Geometry, sequence: &Sequence, chunk: usize) -> Cache<'d> {
        let blocks = sequence.tokens.div_ceil(geometry.block_tokens as usize);
        let bytes = geometry.section_bytes();
        let buffer = device.allocate(blocks as u64 * bytes).unwrap();
        let nan = vec![0xff; (blocks as u64 * bytes) as usize];
        device.upload(Stream::Compute, &nan, buffer.range()).unwrap();
        // Last block first, so that neighbours in the sequence are not neighbours in memory.
        let place = |i: u64| Some(SectionPlace::Device(buffer.range().slice((blocks as u64 - 1 - i) * bytes, bytes)));
        let sections: Vec<_> = (0..blocks as u64).map(place).collect();
        let row = (geometry.kv_heads * geometry.head_dim) as usize;
        for start in (0..sequence.tokens).step_by(chunk) {
            let rows = chunk.min(sequence.tokens - start);
            let part = start * row..(start + rows) * row;
            let (keys, values) = (put(device, &sequence.keys[part.clone()]), put(device, &sequence.values[part]));
            let job = Append {
                keys: keys.range(),
                values: values.range(),
                rows: rows as u32,
                first_position: start as u32,
                sections: &sections,
            };
            device.append(Stream::Compute, &geometry, &[job]).unwrap();
        }
        Cache { device, geometry, sections, _buffer: buffer }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = vec![0; self._buffer.range().bytes as usize];
        self.device.download(Stream::Compute, self._buffer.range(), &mut out).unwrap();
        out
    }

    /// Output of rows `rows`, attended by the plan.
    fn attend(&self, sequence: &Sequence, rows: std::ops::Range<usize>, plan: &Plan) -> Vec<f32> {
        self.try_attend(sequence, rows, plan).unwrap()
    }

    fn try_attend(
        &self,
        sequence: &Sequence,
        rows: std::ops::Range<usize>,
        plan: &Plan,
    ) -> Result<Vec<f32>, DeviceError> {
        let (device, geometry) = (self.device, &self.geometry);
        let row = (geometry.heads * geometry.head_dim) as usize;
        let queries = put(device, &sequence.queries[rows.start * row..rows.end * row]);
        let output = device.allocate(queries.range().bytes)?;
        let spans = (rows.end as u32).div_ceil(SPAN_TOKENS);
        let dimension = if plan.running { 1 } else { spans + plan.spare_spans };
        let store = device.allocate(geometry.accumulator_bytes(rows.len() as u32, dimension))?;
        // Whatever was there must not matter.
        device.upload(Stream::Compute, &vec![0xff; store.range().bytes as usize], store.range())?;
        let into = if plan.running {
            Accumulator::Running { range: store.range() }
        } else {
            Accumulator::Partials { range: store.range(), spans: dimension }
        };
        let (count, first_position) = (rows.len() as u32, rows.start as u32);
        let mut order: Vec<u32> = (0..spans).collect();
        if let Some(seed) = plan.shuffle {
            Random(seed).shuffle(&mut order);
        }
        for spans in order.chunks(plan.spans_per_call) {
            let job =
                Attend { queries: queries.range(), rows: count, first_position, sections: &self.sections, spans, into };
            device.attend(Stream::Compute, geometry, &[job])?;
        }
        let job = Finish { from: into, rows: count, first_position, output: output.range() };
        device.finish(Stream::Compute, geometry, &[job])?;
        Ok(get(device, output.range()))
    }
}

#[derive(Clone, Copy)]
struct Plan {
    running: bool,
    shuffle: Option<u64>,
    spans_per_call: usize,
    spare_spans: u32,
}

const RUNNING: Plan = Plan { running: true, shuffle: None, spans_per_call: usize::MAX, spare_spans: 0 };
const PARTIALS: Plan = Plan { running: false, ..RUNNING };

fn assert_same_bits(expected: &[f32], found: &[f32], what: &str) {
    assert_eq!(expected.len(), found.len());
    for (i, (a, b)) in expected.iter().zip(found).enumerate() {
        assert!(a.is_finite(), "{what}: value {i} is {a}");
        assert!(a.to_bits() == b.to_bits(), "{what}: value {i} is {b:e}, expected {a:e}");
    }
}

/// Softmax attention in f64 over keys and values rounded as stored.
fn reference(geometry: &Geometry, sequence: &Sequence, position: usize) -> Vec<f64> {
    let round = |x: f32| match geometry.element {
        Element::Bf16 => half::bf16::from_f32(x).to_f64(),
        Element::F32 => f64::from(x),
    };
    let (dim, kv_heads) = (geometry.head_dim as usize, geometry.kv_heads as usize);
    let group = geometry.heads as usize / kv_heads;
    let mut out = Vec::new();
    for head in 0..geometry.heads as usize {
        let query = &sequence.queries[(position * geometry.heads as usize + head) * dim..][..dim];
        let at = |t: usize| (t * kv_heads + head / group) * dim;
        let scores: Vec<f64> = (0..=position)
            .map(|t| {
                let keys = &sequence.keys[at(t)..][..dim];
                f64::from(geometry.scale) * query.iter().zip(keys).map(|(q, k)| f64::from(*q) * round(*k)).sum::<f64>()
            })
            .collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
        let total: f64 = weights.iter().sum();
        for d in 0..dim {
            out.push(
                weights.iter().enumerate().map(|(t, w)| w * round(sequence.values[at(t) + d])).sum::<f64>() / total,
            );
        }
    }
    out
}

#[test]
fn output_is_near_f64() {
    for element in [Element::Bf16, Element::F32] {
        for (group, dim, tokens) in [(3, 64, 300), (1, 128, 65), (8, 96, 64), (4, 256, 17)] {
            let geometry = geometry(group, 2, dim, 16, element);
            let sequence = Sequence::new(&geometry, tokens, 5);
            for isa in Isa::available() {
                let device = open(isa, 2, Link::InPlace, BUDGET);
                let cache = Cache::filled(&device, geometry, &sequence, 50);
                for position in [0, tokens / 2, tokens - 1] {
                    let found = cache.attend(&sequence, position..position + 1, &PARTIALS);
                    for (i, (a, b)) in reference(&geometry, &sequence, position).iter().zip(&found).enumerate() {
                        // A few ulp of dot products of `dim` terms, through an exponential of scores up to about 15.
                        let error = (a - f64::from(*b)).abs();
                        assert!(
                            error <= 1e-5 * (1.0 + a.abs()),
                            "{} {geometry:?} value {i}: {b} against {a}",
                            isa.name()
                        );
                    }
                }
            }
        }
    }
}

/// The heart of the contract: one scalar result, and every other way to it.
fn check_all_ways(geometry: Geometry, tokens: usize) {
    let sequence = Sequence::new(&geometry, tokens, tokens as u64 + u64::from(geometry.head_dim));
    // Scalar rows are slow: the last ones, and some around the middle of a span.
    let ranges = [tokens.saturating_sub(9)..tokens, tokens / 2..tokens / 2 + 1];
    let scalar = open(Isa::Scalar, 1, Link::InPlace, BUDGET);
    let expected = ranges.clone().map(|rows| {
        let cache = Cache::filled(&scalar, geometry, &sequence, tokens);
        cache.attend(&sequence, rows, &PARTIALS)
    });
    for isa in Isa::available() {
        for workers in [1, 3] {
            let device = open(isa, workers, Link::InPlace, BUDGET);
            let cache = Cache::filled(&device, geometry, &sequence, 37);
            for (rows, expected) in ranges.iter().zip(&expected) {
                let what = |way: &str| format!("{way}, {} x{workers}, {geometry:?}, {rows:?} of {tokens}", isa.name());
                let plans = [
                    ("partials", PARTIALS),
                    ("shuffled", Plan { shuffle: Some(9), spans_per_call: 3, spare_spans: 2, ..PARTIALS }),
                    ("running", RUNNING),
                    ("running, span by span", Plan { spans_per_call: 1, ..RUNNING }),
                ];
                for (way, plan) in plans {
                    assert_same_bits(expected, &cache.attend(&sequence, rows.clone(), &plan), &what(way));
                }
                // One row at a time, as decode does.
                let each: Vec<f32> =
                    rows.clone().flat_map(|row| cache.attend(&sequence, row..row + 1, &PARTIALS)).collect();
                assert_same_bits(expected, &each, &what("row by row"));
            }
            if isa == Isa::Scalar {
                break;
            }
            // All rows at once, as prefill does: the rows of interest are the same.
            let all = cache.attend(&sequence, 0..tokens, &RUNNING);
            let row = (geometry.heads * geometry.head_dim) as usize;
            for (rows, expected) in ranges.iter().zip(&expected) {
                let what = format!("prefill, {} x{workers}, {geometry:?}, {rows:?}", isa.name());
                assert_same_bits(expected, &all[rows.start * row..rows.end * row], &what);
            }
        }
    }
}

#[test]
fn same_bits_over_lengths() {
    for tokens in [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 700] {
        check_all_ways(geometry(3, 3, 64, 16, Element::Bf16), tokens);
    }
}

#[test]
fn same_bits_over_block_sizes() {
    for block_tokens in [16, 32, 64, 128, 256] {
        for element in [Element::Bf16, Element::F32] {
            check_all_ways(geometry(3, 2, 64, block_tokens, element), 333);
        }
    }
}

#[test]
fn same_bits_over_shapes() {
    for (group, head_dim) in
        [(1, 64), (4, 64), (8, 64), (5, 16), (7, 80), (3, 96), (4, 112), (2, 128), (1, 256), (13, 32)]
    {
        for element in [Element::Bf16, Element::F32] {
            check_all_ways(geometry(group, 2, head_dim, 32, element), 140);
        }
    }
}

#[test]
fn block_size_does_not_change_bits() {
    let device = open(Isa::detect(), 2, Link::InPlace, BUDGET);
    let first = geometry(3, 2, 64, 16, Element::Bf16);
    let sequence = Sequence::new(&first, 500, 3);
    let outputs: Vec<Vec<f32>> = [16, 32, 64, 128, 256]
        .map(|block_tokens| {
            let cache = Cache::filled(&device, Geometry { block_tokens, ..first }, &sequence, 500);
            cache.attend(&sequence, 400..500, &RUNNING)
        })
        .into();
    for output in &outputs[1..] {
        assert_same_bits(&outputs[0], output, "another block size");
    }
}

#[test]
fn append_writes_the_stated_layout_in_any_chunks() {
    let tokens = 75;
    for isa in Isa::available() {
        let device = open(isa, 2, Link::InPlace, BUDGET);
        let geometry = geometry(1, 2, 48, 32, Element::Bf16);
        let sequence = Sequence::new(&geometry, tokens, 11);
        let cache = Cache::filled(&device, geometry, &sequence, tokens);
        let bytes = cache.bytes();
        for chunk in [1, 7, 32] {
            assert!(bytes == Cache::filled(&device, geometry, &sequence, chunk).bytes(), "chunks of {chunk}");
        }
        let (block_tokens, dim) = (32, 48);
        let blocks = tokens.div_ceil(block_tokens);
        let half_at = |at: usize| u16::from_ne_bytes([bytes[2 * at], bytes[2 * at + 1]]);
        for token in 0..blocks * block_tokens {
            for head in 0..2 {
                for d in 0..dim {
                    let section = (blocks - 1 - token / block_tokens) * 2 * 2 * dim * block_tokens;
                    let head_at = section + head * 2 * dim * block_tokens;
                    let slot = token % block_tokens;
                    let key = half_at(head_at + d * block_tokens + slot);
                    let value = half_at(head_at + dim * block_tokens + slot * dim + d);
                    let at = (token * 2 + head) * dim + d;
                    let expected = |from: &[f32]| match from.get(at) {
                        Some(x) => half::bf16::from_f32(*x).to_bits(),
                        None => 0xffff,
                    };
                    assert_eq!(key, expected(&sequence.keys), "key {token}/{head}/{d}");
                    assert_eq!(value, expected(&sequence.values), "value {token}/{head}/{d}");
                }
            }
        }
    }
}

#[test]
fn several_sequences_in_one_call_keep_their_bits() {
    let geometry = geometry(3, 3, 64, 64, Element::Bf16);
    let device = open(Isa::detect(), 2, Link::InPlace, BUDGET);
    let lengths = [200usize, 1, 64, 129];
    let sequences: Vec<Sequence> = lengths.iter().map(|n| Sequence::new(&geometry, *n, *n as u64)).collect();
    let caches: Vec<Cache<'_>> = sequences.iter().map(|s| Cache::filled(&device, geometry, s, s.tokens)).collect();
    let row = (geometry.heads * geometry.head_dim) as usize;
    let queries: Vec<_> = sequences.iter().map(|s| put(&device, &s.queries[(s.tokens - 1) * row..])).collect();
    let stores: Vec<_> = lengths
        .iter()
        .map(|n| device.allocate(geometry.accumulator_bytes(1, n.div_ceil(64) as u32)).unwrap())
        .collect();
    let spans: Vec<Vec<u32>> = lengths.iter().map(|n| (0..n.div_ceil(64) as u32).collect()).collect();
    let into = |i: usize| Accumulator::Partials { range: stores[i].range(), spans: spans[i].len() as u32 };
    let jobs: Vec<Attend<'_>> = (0..lengths.len())
        .map(|i| Attend {
            queries: queries[i].range(),
            rows: 1,
            first_position: lengths[i] as u32 - 1,
            sections: &caches[i].sections,
            spans: &spans[i],
            into: into(i),
        })
        .collect();
    device.attend(Stream::Compute, &geometry, &jobs).unwrap();
    let outputs: Vec<_> = queries.iter().map(|q| device.allocate(q.range().bytes).unwrap()).collect();
    let finishes: Vec<Finish> = (0..lengths.len())
        .map(|i| Finish { from: into(i), rows: 1, first_position: lengths[i] as u32 - 1, output: outputs[i].range() })
        .collect();
    device.finish(Stream::Compute, &geometry, &finishes).unwrap();
    for (i, cache) in caches.iter().enumerate() {
        let alone = cache.attend(&sequences[i], lengths[i] - 1..lengths[i], &PARTIALS);
        assert_same_bits(&alone, &get(&device, outputs[i].range()), "beside others");
    }
}

#[test]
fn wrong_jobs_are_refused() {
    let geometry = geometry(2, 2, 32, 16, Element::Bf16);
    let device = open(Isa::detect(), 1, Link::InPlace, BUDGET);
    let sequence = Sequence::new(&geometry, 100, 1);
    let cache = Cache::filled(&device, geometry, &sequence, 100);
    let queries = put(&device, &sequence.queries);
    let store = device.allocate(geometry.accumulator_bytes(100, 2)).unwrap();
    let into = Accumulator::Partials { range: store.range(), spans: 2 };
    let job = Attend {
        queries: queries.range(),
        rows: 100,
        first_position: 0,
        sections: &cache.sections,
        spans: &[0, 1],
        into,
    };
    let attend = |stream, geometry: &Geometry, job: Attend<'_>| device.attend(stream, geometry, &[job]);
    let is_shape = |outcome| assert!(matches!(outcome, Err(DeviceError::Shape { .. })), "{outcome:?}");
    attend(Stream::Compute, &geometry, job).unwrap();
    is_shape(attend(Stream::CopyIn, &geometry, job));
    is_shape(attend(Stream::Compute, &Geometry { heads: 3, ..geometry }, job));
    is_shape(attend(Stream::Compute, &Geometry { head_dim: 24, ..geometry }, job));
    is_shape(attend(Stream::Compute, &Geometry { block_tokens: 48, ..geometry }, job));
    is_shape(attend(Stream::Compute, &Geometry { block_tokens: 32, ..geometry }, job));
    is_shape(attend(Stream::Compute, &geometry, Attend { rows: 101, ..job }));
    is_shape(attend(Stream::Compute, &geometry, Attend { spans: &[2], ..job }));
    // Two workers would write the same partial, block or output.
    is_shape(attend(Stream::Compute, &geometry, Attend { spans: &[1, 0, 1], ..job }));
    is_shape(device.attend(Stream::Compute, &geometry, &[job, job]));
    is_shape(attend(Stream::Compute, &geometry, Attend { sections: &cache.sections[..6], ..job }));
    let running = Accumulator::Running { range: store.range() };
    is_shape(attend(Stream::Compute, &geometry, Attend { into: running, spans: &[1, 0], ..job }));
    let small = Accumulator::Partials { range: store.range(), spans: 3 };
    is_shape(attend(Stream::Compute, &geometry, Attend { into: small, ..job }));
    let finish = Finish { from: into, rows: 100, first_position: 100, output: queries.range() };
    is_shape(device.finish(Stream::Compute, &geometry, &[finish]));
    let mut sections = cache.sections.clone();
    sections[6] = Some(SectionPlace::Host(HostRange { extent: register(&device, true).1, offset: 0, bytes: 1 }));
    is_shape(attend(Stream::Compute, &geometry, Attend { sections: &sections, ..job }));
    // Spans that do not reach the missing section are fine.
    attend(Stream::Compute, &geometry, Attend { sections: &sections, spans: &[0], ..job }).unwrap();
}

fn register(device: &CpuDevice, readable: bool) -> (Arc<Extent>, gpu_tier::device::ExtentId) {
    let extent = Arc::new(Extent::new(4 << 20, readable));
    let id = device.register(Arc::clone(&extent) as Arc<dyn gpu_tier::device::HostExtent>).unwrap();
    (extent, id)
}

/// Moves every other block of a cache to the host arena and fills its device copy with NaN.
fn spill(cache: &mut Cache<'_>, extent: gpu_tier::device::ExtentId) -> u64 {
    let bytes = cache.geometry.section_bytes();
    let mut moved = 0;
    for section in cache.sections.iter_mut().step_by(2) {
        let Some(SectionPlace::Device(device)) = *section else {
            continue;
        };
        let host = HostRange { extent, offset: moved * bytes, bytes };
        cache.device.copy_out(Stream::CopyOut, &[CopyPiece { host, device }]).unwrap();
        let done = cache.device.record(Stream::CopyOut).unwrap();
        cache.device.synchronize(done).unwrap();
        cache.device.upload(Stream::Compute, &vec![0xff; bytes as usize], device).unwrap();
        *section = Some(SectionPlace::Host(host));
        moved += 1;
    }
    moved
}

#[test]
fn host_blocks_in_place_give_the_same_bits() {
    let geometry = geometry(3, 2, 64, 16, Element::Bf16);
    let sequence = Sequence::new(&geometry, 300, 21);
    let device = open(Isa::detect(), 2, Link::InPlace, BUDGET);
    let mut cache = Cache::filled(&device, geometry, &sequence, 300);
    let expected = cache.attend(&sequence, 250..300, &RUNNING);
    let before = device.traffic();
    let (_extent, id) = register(&device, true);
    spill(&mut cache, id);
    assert_same_bits(&expected, &cache.attend(&sequence, 250..300, &RUNNING), "in place");
    assert_same_bits(&expected, &cache.attend(&sequence, 250..300, &PARTIALS), "in place");
    let after = device.traffic();
    // 300 tokens: 18 blocks of 16 and one of 12, even ones (the last too) on the host; keys are read by whole pieces.
    let per_token = 64 * 2 * 2;
    assert_eq!(after.attended_host_bytes - before.attended_host_bytes, 2 * (10 * 16 + 9 * 16 + 12) * per_token);
    assert_eq!(after.attended_device_bytes - before.attended_device_bytes, 2 * 9 * 32 * per_token);
}

#[test]
fn strict_device_pages_without_touching_the_readers_mapping() {
    let geometry = geometry(3, 2, 64, 64, Element::Bf16);
    let sequence = Sequence::new(&geometry, 400, 22);
    let device = open(Isa::detect(), 2, Link::Strict { bytes_per_second: None }, BUDGET);
    let mut cache = Cache::filled(&device, geometry, &sequence, 400);
    let expected = cache.attend(&sequence, 399..400, &PARTIALS);
    // The reader's mapping cannot be read at all: one load through it would end the test.
    let (_extent, id) = register(&device, false);
    let moved = spill(&mut cache, id);
    assert_eq!(cache.try_attend(&sequence, 399..400, &PARTIALS), Err(DeviceError::NotResident { section: 0 }));
    // One slot for all the blocks that are not here; a span at a time.
    let slot = device.allocate(geometry.section_bytes()).unwrap();
    let row = (geometry.heads * geometry.head_dim) as usize;
    let queries = put(&device, &sequence.queries[399 * row..]);
    let store = device.allocate(geometry.accumulator_bytes(1, 7)).unwrap();
    let into = Accumulator::Partials { range: store.range(), spans: 7 };
    for span in (0..7u32).rev() {
        let mut sections = cache.sections.clone();
        if let Some(SectionPlace::Host(host)) = sections[span as usize] {
            let used = device.record(Stream::Compute).unwrap();
            device.wait(Stream::CopyIn, used).unwrap();
            device.copy_in(Stream::CopyIn, &[CopyPiece { host, device: slot.range() }]).unwrap();
            let arrived = device.record(Stream::CopyIn).unwrap();
            device.wait(Stream::Compute, arrived).unwrap();
            sections[span as usize] = Some(SectionPlace::Device(slot.range()));
        }
        let job = Attend {
            queries: queries.range(),
            rows: 1,
            first_position: 399,
            sections: &sections,
            spans: &[span],
            into,
        };
        device.attend(Stream::Compute, &geometry, &[job]).unwrap();
    }
    let output = device.allocate(queries.range().bytes).unwrap();
    let finish = Finish { from: into, rows: 1, first_position: 399, output: output.range() };
    device.finish(Stream::Compute, &geometry, &[finish]).unwrap();
    assert_same_bits(&expected, &get(&device, output.range()), "paged");
    let traffic = device.traffic();
    assert_eq!(traffic.attended_host_bytes, 0);
    assert_eq!(traffic.copied_in_bytes, moved * geometry.section_bytes());
    assert_eq!(traffic.copied_out_bytes, moved * geometry.section_bytes());
}

#[test]
fn scribbling_over_host_blocks_is_never_a_fault() {
    let geometry = geometry(3, 2, 64, 16, Element::Bf16);
    let sequence = Sequence::new(&geometry, 300, 23);
    for isa in Isa::available() {
        let device = open(isa, 2, Link::InPlace, BUDGET);
        let mut cache = Cache::filled(&device, geometry, &sequence, 300);
        let expected = cache.attend(&sequence, 260..300, &RUNNING);
        let (extent, id) = register(&device, true);
        let moved = spill(&mut cache, id);
        let bytes = (moved * geometry.section_bytes()) as usize;
        let saved = extent.read(0, bytes);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut random = Random(1);
                while !stop.load(Ordering::Relaxed) {
                    extent.write(random.below(bytes - 8), &random.next().to_ne_bytes());
                }
            });
            for _ in 0..if isa == Isa::Scalar { 2 } else { 20 } {
                cache.attend(&sequence, 260..300, &RUNNING);
                cache.attend(&sequence, 299..300, &PARTIALS);
            }
            stop.store(true, Ordering::Relaxed);
        });
        // The device is as good as before.
        extent.write(0, &saved);
        assert_same_bits(&expected, &cache.attend(&sequence, 260..300, &RUNNING), "after the scribbler");
    }
}

#[test]
fn signed_zeros_and_ties_keep_their_bits() {
    // All scores are zeros of either sign and all values are -0: the output must be -0 or 0 alike everywhere.
    let geometry = geometry(3, 1, 32, 16, Element::Bf16);
    let mut sequence = Sequence::new(&geometry, 130, 4);
    for (i, key) in sequence.keys.iter_mut().enumerate() {
        *key = if i % 3 == 0 { -0.0 } else { 0.0 };
    }
    sequence.values.iter_mut().for_each(|value| *value = -0.0);
    let scalar = open(Isa::Scalar, 1, Link::InPlace, BUDGET);
    let expected = Cache::filled(&scalar, geometry, &sequence, 130).attend(&sequence, 100..130, &RUNNING);
    for isa in Isa::available() {
        let device = open(isa, 2, Link::InPlace, BUDGET);
        let cache = Cache::filled(&device, geometry, &sequence, 130);
        assert_same_bits(&expected, &cache.attend(&sequence, 100..130, &RUNNING), isa.name());
        assert_same_bits(&expected, &cache.attend(&sequence, 100..130, &PARTIALS), isa.name());
    }
}

#[test]
fn every_row_of_a_chunk_is_its_decode_row() {
    // All positions of rows in register tiles and of tiles across piece and span borders. One token's values are
    // infinite: rows that do not see it must not be touched by it, not even multiplied by zero.
    let (tokens, infinite) = (100, 83);
    for group in 1..=8 {
        let geometry = geometry(group, 1, 16, 16, Element::Bf16);
        let row = (geometry.heads * geometry.head_dim) as usize;
        let mut sequence = Sequence::new(&geometry, tokens, u64::from(group));
        sequence.values[infinite * 16..][..16].fill(f32::INFINITY);
        let scalar = open(Isa::Scalar, 1, Link::InPlace, BUDGET);
        let cache = Cache::filled(&scalar, geometry, &sequence, tokens);
        let expected: Vec<f32> = (0..tokens).flat_map(|row| cache.attend(&sequence, row..row + 1, &PARTIALS)).collect();
        for isa in Isa::available() {
            let device = open(isa, 1, Link::InPlace, BUDGET);
            let cache = Cache::filled(&device, geometry, &sequence, tokens);
            for start in [0, 1, 5, 60] {
                for plan in [RUNNING, PARTIALS] {
                    let found = cache.attend(&sequence, start..tokens, &plan);
                    let what = format!("{} from {start}, group {group}", isa.name());
                    let seen = (infinite - start) * row;
                    assert_same_bits(&expected[start * row..infinite * row], &found[..seen], &what);
                    assert!(found[seen..].iter().all(|x| *x == f32::INFINITY), "{what}: rows that see it");
                }
            }
        }
    }
}
