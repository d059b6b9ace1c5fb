//! Attention over closed blocks: near an f64 reference, and the same bits whatever the instruction set, the team, the split
//! into rows and calls, the accumulator and the place of the blocks.

mod common;

use std::sync::Arc;

use cache_core::codec::image::{LayerMut, encode_layer};
use cache_core::codec::{Scalar, read_f16};
use cache_core::form::Form;
use cache_core::payload::{BlockShape, Plane, Side};
use common::{Extent, Random, bytes_of, floats_of, get, open, put};
use gpu_tier::DeviceError;
use gpu_tier::attention::closed::{AttendMixed, Closed, ClosedPlace, Encode, FITS};
use gpu_tier::attention::{
    Accumulator, Append, Attend, Attention, Element, Finish, Geometry, SPAN_TOKENS, SectionPlace,
};
use gpu_tier::cpu::isa::Isa;
use gpu_tier::cpu::{CpuDevice, Link};
use gpu_tier::device::{Device, DeviceBuffer, HostRange, Stream};

const WINDOW: u32 = 64;
/// How far an output may be from attention in f64, for values of deviation 1 (`docs/forms.md`).
const TOLERANCE: f64 = 3e-4;

fn geometry(group: u32, kv_heads: u32, head_dim: u32, block_tokens: u32) -> Geometry {
    let scale = 1.0 / (head_dim as f32).sqrt();
    Geometry { heads: group * kv_heads, kv_heads, head_dim, block_tokens, element: Element::Bf16, scale }
}

/// One layer of one sequence: queries, `raw16` sections, and the closed sections of each full block.
struct Layer {
    geometry: Geometry,
    form: Form,
    tokens: usize,
    queries: Vec<f32>,
    raw: Vec<Vec<u8>>,
    closed: Vec<[Vec<u8>; 3]>,
}

impl Layer {
    fn new(geometry: Geometry, form: Form, tokens: usize, seed: u64) -> Layer {
        let device = open(Isa::Scalar, 1, Link::InPlace, 64 << 20);
        let mut random = Random(seed);
        let width = (geometry.kv_heads * geometry.head_dim) as usize;
        // Channels of their own size and centre, as keys have.
        let centres: Vec<f32> = random.normals(width).iter().map(|x| 2.0 * x).collect();
        let mut keys = random.normals(tokens * width);
        keys.iter_mut()
            .enumerate()
            .for_each(|(i, key)| *key = *key * (0.5 + (i % 5) as f32) * 0.4 + centres[i % width]);
        let values = random.normals(tokens * width);
        let heads = (geometry.heads * geometry.head_dim) as usize;
        let queries = random.normals(tokens * heads).iter().map(|q| q * 1.5).collect();
        let (section, blocks) = (geometry.section_bytes(), tokens.div_ceil(geometry.block_tokens as usize));
        let arena = put(&device, &vec![0; blocks * section as usize]);
        let range = |block: usize| arena.range().slice(block as u64 * section, section);
        let sections: Vec<_> = (0..blocks).map(|block| Some(SectionPlace::Device(range(block)))).collect();
        let (keys, values) = (put(&device, &bytes_of(&keys)), put(&device, &bytes_of(&values)));
        let job = Append {
            keys: keys.range(),
            values: values.range(),
            rows: tokens as u32,
            first_position: 0,
            sections: &sections,
        };
        device.append(Stream::Compute, &geometry, &[job]).unwrap();
        let raw: Vec<Vec<u8>> = (0..blocks).map(|block| get(&device, range(block))).collect();
        let shape = shape(&geometry, form);
        let closed = raw[..tokens / geometry.block_tokens as usize].iter().map(|raw| {
            let mut planes = Plane::ALL.map(|plane| vec![0u8; shape.layer_bytes(plane, 0) as usize]);
            let [header, scale, codes] = &mut planes;
            encode_layer(&Scalar, &shape, 0, raw, LayerMut { header, scale, codes }).unwrap();
            planes
        });
        let closed = closed.collect();
        Layer { geometry, form, tokens, queries, raw, closed }
    }

    /// Whether the row at `position` reads the block of `token` closed.
    fn is_closed(&self, position: usize, token: usize) -> bool {
        let block_tokens = self.geometry.block_tokens as usize;
        let block = token / block_tokens;
        block >= 1 && (block + 1) * block_tokens + WINDOW as usize <= position
    }

    /// Key or value of a token and channel, as a row reads it, in f64.
    fn element(&self, side: Side, head: usize, token: usize, channel: usize, closed: bool) -> f64 {
        let Geometry { head_dim, block_tokens, .. } = self.geometry;
        let (head_dim, block_tokens) = (head_dim as usize, block_tokens as usize);
        let (block, t) = (token / block_tokens, token % block_tokens);
        let (row, lane, lanes) = match side {
            Side::Key => (channel, t, block_tokens),
            Side::Value => (t, channel, head_dim),
        };
        let shape = shape(&self.geometry, if closed { self.form } else { Form::Raw16 });
        let codes = shape.part(Plane::Code, 0, head as u32, side).start;
        if !closed {
            let at = codes + 2 * (row * lanes + lane);
            let bits = u16::from_le_bytes([self.raw[block][at], self.raw[block][at + 1]]);
            return f64::from(f32::from_bits(u32::from(bits) << 16));
        }
        let planes = &self.closed[block];
        let part = |plane: Plane| &planes[plane as usize][shape.part(plane, 0, head as u32, side)];
        if self.form.at(0, side) == Form::I8h {
            let code = planes[2][codes + (row / 4 * lanes + lane) * 4 + row % 4] as i8;
            return f64::from(code) * f64::from(read_f16(part(Plane::Scale), t));
        }
        let nibble = planes[2][codes + (row / 8 * lanes + lane) * 4 + row % 8 / 2] >> (row % 2 * 4) & 15;
        let header = if side == Side::Key { part(Plane::Header) } else { part(Plane::Scale) };
        let rows = header.len() / 4;
        let (c, r) = (f64::from(read_f16(header, row)), f64::from(read_f16(header, rows + row)));
        c + r * (f64::from(nibble) / 7.5 - 1.0)
    }

    /// Attention of one row and query head in f64.
    fn reference(&self, position: usize, head: usize) -> Vec<f64> {
        let Geometry { heads, kv_heads, head_dim, scale, .. } = self.geometry;
        let (kv_head, head_dim) = (head / (heads / kv_heads) as usize, head_dim as usize);
        let query = &self.queries[(position * heads as usize + head) * head_dim..][..head_dim];
        let element = |side, token, d| self.element(side, kv_head, token, d, self.is_closed(position, token));
        let score = |token| {
            let product = |(d, q): (usize, &f32)| f64::from(*q) * element(Side::Key, token, d);
            query.iter().enumerate().map(product).sum::<f64>() * f64::from(scale)
        };
        let scores: Vec<f64> = (0..=position).map(score).collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let weighted = |d| weights.iter().enumerate().map(move |(t, w)| w * element(Side::Value, t, d)).sum::<f64>();
        (0..head_dim).map(|d| weighted(d) / sum).collect()
    }
}

fn shape(geometry: &Geometry, form: Form) -> BlockShape {
    let Geometry { kv_heads, head_dim, block_tokens, .. } = *geometry;
    BlockShape { layers: 1, kv_heads, head_dim, block_tokens, form }
}

/// A layer's sections on a device.
struct Placed<'l> {
    layer: &'l Layer,
    device: CpuDevice,
    exact: Vec<Option<SectionPlace>>,
    closed: Vec<Option<ClosedPlace>>,
    _buffers: Vec<DeviceBuffer>,
}

#[derive(Clone, Copy)]
struct Plan {
    running: bool,
    reversed: bool,
    spans_per_call: usize,
    rows_per_call: usize,
}

const PLAIN: Plan = Plan { running: false, reversed: false, spans_per_call: usize::MAX, rows_per_call: usize::MAX };

impl<'l> Placed<'l> {
    fn new(layer: &'l Layer, isa: Isa, workers: usize) -> Placed<'l> {
        let device = open(isa, workers, Link::InPlace, 64 << 20);
        let mut buffers = Vec::new();
        let mut place = |bytes: &[u8]| {
            buffers.push(put(&device, bytes));
            SectionPlace::Device(buffers[buffers.len() - 1].range())
        };
        let exact = layer.raw.iter().map(|raw| Some(place(raw))).collect();
        let mut closed: Vec<_> = layer.closed.iter().map(|planes| Some(closed_place(planes, &mut place))).collect();
        closed.resize(layer.raw.len(), None);
        Placed { layer, device, exact, closed, _buffers: buffers }
    }

    fn attend(&self, rows: std::ops::Range<usize>, plan: Plan) -> Vec<f32> {
        let step = plan.rows_per_call.min(rows.len());
        let starts = rows.clone().step_by(step);
        starts.flat_map(|start| self.try_attend(start..(start + step).min(rows.end), plan).unwrap()).collect()
    }

    /// The row at `position` over exact blocks only, with `attend`.
    fn attend_exact(&self, position: usize) -> Vec<f32> {
        let (device, geometry) = (&self.device, &self.layer.geometry);
        let width = (geometry.heads * geometry.head_dim) as usize;
        let queries = put(device, &bytes_of(&self.layer.queries[position * width..][..width]));
        let output = device.allocate(queries.range().bytes).unwrap();
        let store = device.allocate(geometry.accumulator_bytes(1, 1)).unwrap();
        let into = Accumulator::Running { range: store.range() };
        let spans: Vec<u32> = (0..position as u32 / SPAN_TOKENS + 1).collect();
        let first_position = position as u32;
        let job =
            Attend { queries: queries.range(), rows: 1, first_position, sections: &self.exact, spans: &spans, into };
        device.attend(Stream::Compute, geometry, &[job]).unwrap();
        let job = Finish { from: into, rows: 1, first_position, output: output.range() };
        device.finish(Stream::Compute, geometry, &[job]).unwrap();
        floats_of(&get(device, output.range()))
    }

    fn try_attend(&self, rows: std::ops::Range<usize>, plan: Plan) -> Result<Vec<f32>, DeviceError> {
        let (device, geometry) = (&self.device, &self.layer.geometry);
        let width = (geometry.heads * geometry.head_dim) as usize;
        let queries = put(device, &bytes_of(&self.layer.queries[rows.start * width..rows.end * width]));
        let output = device.allocate(queries.range().bytes)?;
        let spans = (rows.end as u32).div_ceil(SPAN_TOKENS);
        let dimension = if plan.running { 1 } else { spans };
        let bytes = geometry.accumulator_bytes(rows.len() as u32, dimension);
        let store = put(device, &vec![0xff; bytes as usize]);
        let into = if plan.running {
            Accumulator::Running { range: store.range() }
        } else {
            Accumulator::Partials { range: store.range(), spans }
        };
        let mut order: Vec<u32> = (0..spans).collect();
        if plan.reversed {
            order.reverse();
        }
        let (count, first_position) = (rows.len() as u32, rows.start as u32);
        for spans in order.chunks(plan.spans_per_call.min(order.len())) {
            let job = AttendMixed {
                queries: queries.range(),
                rows: count,
                first_position,
                exact: &self.exact,
                closed: &self.closed,
                window: WINDOW,
                spans,
                into,
            };
            device.attend_mixed(Stream::Compute, geometry, Closed::of(self.layer.form, 0).unwrap(), &[job])?;
        }
        let job = Finish { from: into, rows: count, first_position, output: output.range() };
        device.finish(Stream::Compute, geometry, &[job])?;
        Ok(floats_of(&get(device, output.range())))
    }
}

fn closed_place(planes: &[Vec<u8>; 3], place: &mut impl FnMut(&[u8]) -> SectionPlace) -> ClosedPlace {
    let [header, scale, codes] = planes;
    let header = (!header.is_empty()).then(|| place(header));
    ClosedPlace { header, scale: place(scale), codes: place(codes) }
}

/// The two codes of keys by the two of values.
fn forms() -> [Form; 4] {
    ["i8h", "kc4vt4", "kc4vt4:k8=0", "kc4vt4:v8=0"].map(|name| name.parse().unwrap())
}

fn layers() -> Vec<Layer> {
    let shapes =
        [(3, 3, 64, 64, 700), (1, 2, 16, 64, 330), (4, 1, 80, 128, 600), (7, 1, 96, 64, 300), (2, 1, 256, 64, 260)];
    let mut layers = Vec::new();
    for form in forms() {
        for (i, (group, kv_heads, head_dim, block_tokens, tokens)) in shapes.into_iter().enumerate() {
            layers.push(Layer::new(geometry(group, kv_heads, head_dim, block_tokens), form, tokens, i as u64 + 1));
        }
    }
    layers
}

fn bits(floats: &[f32]) -> Vec<u32> {
    floats.iter().map(|x| x.to_bits()).collect()
}

/// Largest difference between a row's attention and the f64 reference, over some of its heads.
fn distance(placed: &Placed<'_>, position: usize, heads: impl IntoIterator<Item = u32>) -> f64 {
    let layer = placed.layer;
    let width = layer.geometry.head_dim as usize;
    let found = placed.attend(position..position + 1, PLAIN);
    let of = |head: u32| {
        let reference = layer.reference(position, head as usize);
        let found = &found[head as usize * width..][..width];
        found.iter().zip(&reference).map(|(found, expected)| (f64::from(*found) - expected).abs()).fold(0.0, f64::max)
    };
    heads.into_iter().map(of).fold(0.0, f64::max)
}

#[test]
fn near_the_f64_reference() {
    for layer in layers() {
        let placed = Placed::new(&layer, Isa::detect(), 2);
        let heads = [0, layer.geometry.heads - 1];
        let positions = [0, 63, 64, 191, 192, 255, 256, layer.tokens - 1];
        let worst = positions.map(|position| distance(&placed, position, heads)).into_iter().fold(0.0, f64::max);
        println!("{:?} {}: worst difference {worst:e}", layer.geometry, layer.form.name());
        assert!(worst < TOLERANCE, "{:?} {}: {worst}", layer.geometry, layer.form.name());
    }
}

/// Every form with 1 to 8 query heads a KV head, heads of 64 and of 128 channels, and lengths from 1 to 5,000.
#[test]
fn near_the_f64_reference_at_any_length_and_group() {
    let mut random = Random(5_000);
    for form in forms() {
        let mut worst = (0.0, String::new());
        for group in 1..=8 {
            for head_dim in [64, 128] {
                let tokens = 1 + random.below(5_000);
                let layer = Layer::new(geometry(group, 1, head_dim, 64), form, tokens, random.next());
                let placed = Placed::new(&layer, Isa::detect(), 2);
                // As many short lengths as long ones.
                let lengths = [tokens, 1 + random.below(tokens), 1 + random.below(tokens.min(300))];
                for length in lengths {
                    let found = distance(&placed, length - 1, [random.below(group as usize) as u32]);
                    let name = format!("{group} heads of {head_dim}, length {length}");
                    assert!(found < TOLERANCE, "{}, {name}: {found}", form.name());
                    if found > worst.0 {
                        worst = (found, name);
                    }
                }
            }
        }
        println!("{}: worst difference {:e} ({})", form.name(), worst.0, worst.1);
    }
}

#[test]
fn every_set_team_split_and_accumulator_gives_the_same_bits() {
    for layer in layers() {
        let rows = layer.tokens - 150..layer.tokens;
        let expected = bits(&Placed::new(&layer, Isa::Scalar, 1).attend(rows.clone(), PLAIN));
        let plans = [
            PLAIN,
            Plan { running: true, ..PLAIN },
            Plan { rows_per_call: 1, ..PLAIN },
            Plan { rows_per_call: 7, running: true, ..PLAIN },
            Plan { spans_per_call: 1, reversed: true, ..PLAIN },
            Plan { spans_per_call: 2, running: true, rows_per_call: 64, ..PLAIN },
        ];
        for isa in Isa::available() {
            for workers in [1, 3] {
                let placed = Placed::new(&layer, isa, workers);
                // The scalar twin is slow, and defines the expectation.
                let slow = isa == Isa::Scalar;
                for (i, plan) in plans.iter().enumerate().filter(|(i, _)| !slow || *i == workers) {
                    let found = bits(&placed.attend(rows.clone(), *plan));
                    let name = format!("{:?} {} {} plan {i}", layer.geometry, layer.form.name(), isa.name());
                    assert!(found == expected, "{name}");
                }
            }
        }
    }
}

#[test]
fn exact_rows_have_the_bits_of_exact_attention() {
    let layer = Layer::new(geometry(3, 1, 64, 64), Form::Kc4vt4, 300, 9);
    let mut placed = Placed::new(&layer, Isa::detect(), 1);
    // Up to position 191 nothing is closed yet.
    for position in [0, 127, 191] {
        assert_eq!(bits(&placed.attend(position..position + 1, PLAIN)), bits(&placed.attend_exact(position)));
    }
    // One position later block 1 is, where it has a closed place.
    assert!(layer.is_closed(192, 64) && !layer.is_closed(191, 64));
    let closed = placed.attend(192..193, PLAIN);
    assert!(closed.iter().all(|x| x.is_finite()) && bits(&closed) != bits(&placed.attend_exact(192)));
    placed.closed[1] = None;
    assert_eq!(bits(&placed.attend(192..193, PLAIN)), bits(&placed.attend_exact(192)));
    placed.exact[1] = None;
    assert!(matches!(placed.try_attend(192..193, PLAIN), Err(DeviceError::Shape { .. })));
}

#[test]
fn a_block_without_an_exact_place_is_read_closed() {
    let layer = Layer::new(geometry(3, 1, 64, 64), Form::I8h, 300, 10);
    let mut placed = Placed::new(&layer, Isa::detect(), 1);
    let exact = placed.attend(250..256, PLAIN);
    // Block 2 ends at 191: inside the window of these rows.
    placed.exact[2] = None;
    let closed = placed.attend(250..256, PLAIN);
    assert_ne!(bits(&exact), bits(&closed));
    let worst = exact.iter().zip(&closed).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 0.05, "{worst}");
    // A row inside the block cannot read it closed.
    assert!(matches!(placed.try_attend(150..151, PLAIN), Err(DeviceError::Shape { .. })));
}

#[test]
fn the_host_arena_is_read_in_place() {
    let layer = Layer::new(geometry(2, 2, 32, 64), Form::Kc4vt4, 400, 11);
    let mut placed = Placed::new(&layer, Isa::detect(), 2);
    let rows = 390..400;
    let expected = bits(&placed.attend(rows.clone(), PLAIN));
    let extent = Arc::new(Extent::new(1 << 20, true));
    let id = placed.device.register(extent.clone()).unwrap();
    let mut at = 0;
    for (planes, place) in layer.closed.iter().zip(&mut placed.closed) {
        *place = Some(closed_place(planes, &mut |bytes| {
            extent.write(at, bytes);
            let range = HostRange { extent: id, offset: at as u64, bytes: bytes.len() as u64 };
            at += bytes.len().next_multiple_of(64);
            SectionPlace::Host(range)
        }));
    }
    let before = placed.device.traffic().attended_host_bytes;
    assert_eq!(bits(&placed.attend(rows, PLAIN)), expected);
    // Blocks 1 to 4, whole.
    let block = shape(&layer.geometry, Form::Kc4vt4).payload_bytes();
    assert_eq!(placed.device.traffic().attended_host_bytes - before, 4 * block);
}

#[test]
fn damaged_jobs_are_refused() {
    let layer = Layer::new(geometry(1, 1, 16, 64), Form::Kc4vt4, 300, 12);
    let mut placed = Placed::new(&layer, Isa::detect(), 1);
    let place = placed.closed[1].unwrap();
    for wrong in [
        ClosedPlace { header: None, ..place },
        ClosedPlace { scale: place.codes, ..place },
        ClosedPlace { codes: place.scale, ..place },
    ] {
        placed.closed[1] = Some(wrong);
        assert!(matches!(placed.try_attend(299..300, PLAIN), Err(DeviceError::Shape { .. })), "{wrong:?}");
    }
    let small = Geometry { block_tokens: 16, ..layer.geometry };
    let found = placed.device.attend_mixed(Stream::Compute, &small, Closed::KC4VT4, &[]);
    assert!(matches!(found, Err(DeviceError::Shape { .. })));
}

/// What a step does: the device encodes the full blocks' sections, then rows read them closed.
#[test]
fn what_the_device_encoded_is_attended_with_the_same_bits() {
    for layer in layers() {
        let rows = layer.tokens - 20..layer.tokens;
        let expected = bits(&Placed::new(&layer, Isa::detect(), 2).attend(rows.clone(), PLAIN));
        let mut placed = Placed::new(&layer, Isa::detect(), 2);
        let verdicts = put(&placed.device, &vec![0xff; 4 * layer.closed.len()]);
        let mut jobs = Vec::new();
        for (block, planes) in layer.closed.iter().enumerate() {
            let blank = planes.each_ref().map(|plane| vec![0xff; plane.len()]);
            let mut place = |bytes: &[u8]| {
                placed._buffers.push(put(&placed.device, bytes));
                SectionPlace::Device(placed._buffers[placed._buffers.len() - 1].range())
            };
            let into = closed_place(&blank, &mut place);
            placed.closed[block] = Some(into);
            let verdict = verdicts.range().slice(4 * block as u64, 4);
            jobs.push(Encode { exact: placed.exact[block].unwrap(), into, verdict });
        }
        let closed = Closed::of(layer.form, 0).unwrap();
        placed.device.encode(Stream::Compute, &layer.geometry, closed, &jobs).unwrap();
        assert_eq!(get(&placed.device, verdicts.range()), FITS.to_ne_bytes().repeat(jobs.len()));
        assert_eq!(bits(&placed.attend(rows, PLAIN)), expected, "{:?} {}", layer.geometry, layer.form.name());
    }
}

/// The reference must catch what a codec fault looks like: heads swapped, scales off by one, the window off by one.
#[test]
fn the_reference_catches_planted_faults() {
    let layer = Layer::new(geometry(2, 2, 64, 64), Form::Kc4vt4, 400, 13);
    let distance = |planted: &Layer| {
        let found = Placed::new(planted, Isa::detect(), 1).attend(399..400, PLAIN);
        let reference = layer.reference(399, 0);
        found.iter().zip(&reference).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
    };
    assert!(distance(&layer) < TOLERANCE);
    let plant = |fault: fn(&mut [Vec<u8>; 3])| {
        let mut planted =
            Layer { queries: layer.queries.clone(), raw: layer.raw.clone(), closed: layer.closed.clone(), ..layer };
        planted.closed.iter_mut().for_each(fault);
        planted
    };
    let swapped = plant(|planes| planes[2].rotate_left(4096));
    let scaled = plant(|planes| planes[1].rotate_left(2));
    let shifted = plant(|planes| planes[2].rotate_left(4));
    for (name, planted) in [("heads", swapped), ("scales", scaled), ("tokens", shifted)] {
        let found = distance(&planted);
        assert!(found > 3e-3, "{name}: {found}");
    }
}
