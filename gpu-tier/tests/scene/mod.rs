//! One sequence through every operation of attention, in every way to split it, on any device: what comes out is a list of named
//! bytes, so that two devices can be compared bit for bit, and one with a reference in f64.

#![allow(dead_code, reason = "each test crate uses a part")]

use gpu_tier::DeviceError;
use gpu_tier::attention::closed::{AttendMixed, Closed, ClosedPlace, Codes, Encode};
use gpu_tier::attention::{
    Accumulator, Append, Attend, Attention, Element, Finish, Geometry, SPAN_TOKENS, SectionPlace,
};
use gpu_tier::device::{DeviceBuffer, DeviceRange, Stream};
use half::{bf16, f16};

/// The forms that attention reads, and the two ways to mix their sides.
pub const ALL_CLOSED: [Closed; 4] = [
    Closed::I8H,
    Closed::KC4VT4,
    Closed { keys: Codes::Rows4, values: Codes::Int8 },
    Closed { keys: Codes::Int8, values: Codes::Rows4 },
];

/// What is attended.
#[derive(Clone, Copy, Debug)]
pub struct Scene {
    pub group: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    pub block_tokens: u32,
    pub element: Element,
    /// Form of closed blocks; without one every block is exact.
    pub closed: Option<Closed>,
    pub tokens: usize,
    /// Rows at the end that are attended.
    pub rows: usize,
    pub seed: u64,
}

/// How the spans of a call are handed over.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub running: bool,
    pub shuffled: bool,
    pub spans_per_call: usize,
    /// Rows of a call.
    pub rows_per_call: usize,
    /// The exact sections of closed blocks are not there.
    pub closed_only: bool,
}

/// All spans at once, all rows at once.
pub const WHOLE: Plan =
    Plan { running: false, shuffled: false, spans_per_call: usize::MAX, rows_per_call: usize::MAX, closed_only: false };

/// Every way that gives the bits of [`WHOLE`].
pub const WAYS: [Plan; 5] = [
    WHOLE,
    Plan { shuffled: true, spans_per_call: 3, ..WHOLE },
    Plan { running: true, ..WHOLE },
    Plan { running: true, spans_per_call: 1, ..WHOLE },
    Plan { rows_per_call: 1, ..WHOLE },
];

pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        (1..items.len()).rev().for_each(|i| items.swap(i, self.below(i + 1)));
    }

    fn normals(&mut self, n: usize, scale: f32) -> Vec<f32> {
        let unit = |bits: u64| (bits >> 40) as f32 / (1 << 24) as f32 - 0.5;
        (0..n).map(|_| (0..4).map(|_| unit(self.next())).sum::<f32>() * 1.732 * scale).collect()
    }
}

/// Queries of the attended rows, keys and values of every token: f32 `[tokens][heads][head_dim]`.
pub struct Numbers {
    pub queries: Vec<f32>,
    pub keys: Vec<f32>,
    pub values: Vec<f32>,
}

impl Scene {
    pub fn geometry(&self) -> Geometry {
        let Scene { group, kv_heads, head_dim, block_tokens, element, .. } = *self;
        let scale = 1.0 / (head_dim as f32).sqrt();
        Geometry { heads: group * kv_heads, kv_heads, head_dim, block_tokens, element, scale }
    }

    pub fn numbers(&self) -> Numbers {
        let mut random = Random(self.seed | 1);
        let geometry = self.geometry();
        let kv = self.tokens * (geometry.kv_heads * geometry.head_dim) as usize;
        Numbers {
            queries: random.normals(self.rows * (geometry.heads * geometry.head_dim) as usize, 3.0),
            keys: random.normals(kv, 1.0),
            values: random.normals(kv, 1.0),
        }
    }

    /// Where in memory each block lies: never one behind the other from the first on.
    fn places(&self) -> Vec<u64> {
        let blocks = self.tokens.div_ceil(self.block_tokens as usize) as u64;
        let mut places: Vec<u64> = (0..blocks).collect();
        Random(self.seed ^ 0x91ace | 1).shuffle(&mut places);
        if places.is_sorted() {
            places.reverse();
        }
        places
    }

    fn first_row(&self) -> usize {
        self.tokens - self.rows
    }

    /// Whether a block is closed: block 0 never is, nor is what is not full.
    pub fn is_closed(&self, block: usize) -> bool {
        let full = (block + 1) * self.block_tokens as usize <= self.tokens;
        self.closed.is_some() && full && block >= 1
    }
}

impl Scene {
    /// Whether a plan without exact sections of closed blocks lacks this one's: every row must see all of such a block.
    fn is_absent(&self, block: usize) -> bool {
        self.is_closed(block) && (block + 1) * self.block_tokens as usize <= self.first_row() + 1
    }
}

/// How queries reach a device.
pub struct Queries<D> {
    pub encode: fn(&[f32]) -> Vec<u8>,
    pub attend: fn(&D, &Geometry, Option<Closed>, &AttendMixed<'_>) -> Result<(), DeviceError>,
}

/// As the trait takes them.
fn plain_queries<D: Attention>() -> Queries<D> {
    let attend = |device: &D, geometry: &Geometry, closed: Option<Closed>, job: &AttendMixed<'_>| match closed {
        Some(forms) => device.attend_mixed(Stream::Compute, geometry, forms, &[*job]),
        None => {
            let AttendMixed { queries, rows, first_position, exact: sections, spans, into, .. } = *job;
            let job = Attend { queries, rows, first_position, sections, spans, into };
            device.attend(Stream::Compute, geometry, &[job])
        }
    };
    Queries { encode: bytes_of, attend }
}

/// A scene on a device, its blocks written and closed.
pub struct Stage<'d, D> {
    device: &'d D,
    scene: Scene,
    numbers: Numbers,
    arena: DeviceBuffer,
    /// The place of each block in the arenas.
    places: Vec<u64>,
    exact: Vec<Option<SectionPlace>>,
    closed: Vec<Option<ClosedPlace>>,
    closed_arena: Option<DeviceBuffer>,
    verdicts: Option<DeviceBuffer>,
    queries: Queries<D>,
}

pub fn bytes_of(floats: &[f32]) -> Vec<u8> {
    floats.iter().flat_map(|x| x.to_ne_bytes()).collect()
}

pub fn floats_of(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|x| f32::from_ne_bytes([x[0], x[1], x[2], x[3]])).collect()
}

impl<'d, D: Attention> Stage<'d, D> {
    /// Appends the sequence in uneven chunks, its blocks at shuffled places, over memory full of NaN; encodes what is closed.
    pub fn new(device: &'d D, scene: Scene) -> Result<Stage<'d, D>, DeviceError> {
        let geometry = scene.geometry();
        let blocks = scene.tokens.div_ceil(scene.block_tokens as usize) as u64;
        let section = geometry.section_bytes();
        let arena = device.allocate(blocks * section)?;
        device.upload(Stream::Compute, &vec![0xff; (blocks * section) as usize], arena.range())?;
        let places = scene.places();
        let place = |at: &u64| Some(SectionPlace::Device(arena.range().slice(at * section, section)));
        let exact = places.iter().map(place).collect();
        let mut stage = Stage {
            device,
            scene,
            numbers: scene.numbers(),
            arena,
            places,
            exact,
            closed: Vec::new(),
            closed_arena: None,
            verdicts: None,
            queries: plain_queries(),
        };
        stage.append()?;
        if let Some(forms) = scene.closed {
            stage.close(forms)?;
        }
        Ok(stage)
    }

    /// The same with rounded queries.
    pub fn round_queries(mut self, round: fn(f32) -> f32) -> Self {
        self.numbers.queries.iter_mut().for_each(|x| *x = round(*x));
        self
    }

    /// The same with queries that reach the device in another way.
    pub fn with_queries(self, queries: Queries<D>) -> Self {
        Stage { queries, ..self }
    }

    fn put(&self, floats: &[f32]) -> Result<DeviceBuffer, DeviceError> {
        let buffer = self.device.allocate(floats.len() as u64 * 4)?;
        self.device.upload(Stream::Compute, &bytes_of(floats), buffer.range())?;
        Ok(buffer)
    }

    pub fn get(&self, range: DeviceRange) -> Result<Vec<u8>, DeviceError> {
        let mut bytes = vec![0; range.bytes as usize];
        self.device.download(Stream::Compute, range, &mut bytes)?;
        Ok(bytes)
    }

    fn append(&self) -> Result<(), DeviceError> {
        let geometry = self.scene.geometry();
        let row = (geometry.kv_heads * geometry.head_dim) as usize;
        let (keys, values) = (self.put(&self.numbers.keys)?, self.put(&self.numbers.values)?);
        let mut random = Random(self.scene.seed ^ 0xa99e);
        let mut done = 0;
        while done < self.scene.tokens {
            let rows = (1 + random.below(90)).min(self.scene.tokens - done);
            let part = |buffer: &DeviceBuffer| buffer.range().slice((done * row * 4) as u64, (rows * row * 4) as u64);
            let (keys, values) = (part(&keys), part(&values));
            let (count, first_position) = (rows as u32, done as u32);
            let job = Append { keys, values, rows: count, first_position, sections: &self.exact };
            self.device.append(Stream::Compute, &geometry, &[job])?;
            done += rows;
        }
        Ok(())
    }

    fn close(&mut self, forms: Closed) -> Result<(), DeviceError> {
        let geometry = self.scene.geometry();
        let sizes = sizes(&geometry, forms);
        let each: u64 = sizes.iter().sum();
        let blocks = self.exact.len() as u64;
        let arena = self.device.allocate(blocks * each)?;
        let verdicts = self.device.allocate(4 * blocks)?;
        self.device.upload(Stream::Compute, &vec![0xff; (4 * blocks) as usize], verdicts.range())?;
        self.closed = (0..blocks)
            .map(|block| {
                let mut at = self.places[block as usize] * each;
                let mut take = |bytes: u64| {
                    let range = arena.range().slice(at, bytes);
                    at += bytes;
                    SectionPlace::Device(range)
                };
                let [header, scale, codes] = sizes.map(&mut take);
                let header = (sizes[0] > 0).then_some(header);
                self.scene.is_closed(block as usize).then_some(ClosedPlace { header, scale, codes })
            })
            .collect();
        let jobs: Vec<Encode> = self
            .closed
            .iter()
            .enumerate()
            .filter_map(|(block, into)| {
                let verdict = verdicts.range().slice(4 * block as u64, 4);
                into.map(|into| Encode { exact: self.exact[block].unwrap(), into, verdict })
            })
            .collect();
        self.device.encode(Stream::Compute, &geometry, forms, &jobs)?;
        (self.closed_arena, self.verdicts) = (Some(arena), Some(verdicts));
        Ok(())
    }

    /// Output of the scene's rows.
    pub fn attend(&self, plan: &Plan) -> Result<Vec<f32>, DeviceError> {
        let mut out = Vec::new();
        let mut row = 0;
        while row < self.scene.rows {
            let rows = plan.rows_per_call.min(self.scene.rows - row);
            out.extend(self.attend_rows(row..row + rows, plan)?);
            row += rows;
        }
        Ok(out)
    }

    fn attend_rows(&self, rows: std::ops::Range<usize>, plan: &Plan) -> Result<Vec<f32>, DeviceError> {
        let (device, geometry) = (self.device, self.scene.geometry());
        let width = (geometry.heads * geometry.head_dim) as usize;
        let encoded = (self.queries.encode)(&self.numbers.queries[rows.start * width..rows.end * width]);
        let queries = device.allocate(encoded.len() as u64)?;
        device.upload(Stream::Compute, &encoded, queries.range())?;
        let output = device.allocate((4 * rows.len() * width) as u64)?;
        let (count, first_position) = (rows.len() as u32, (self.scene.first_row() + rows.start) as u32);
        let spans = (first_position + count).div_ceil(SPAN_TOKENS);
        let dimension = if plan.running { 1 } else { spans + 1 };
        let store = device.allocate(geometry.accumulator_bytes(count, dimension))?;
        device.upload(Stream::Compute, &vec![0xff; store.range().bytes as usize], store.range())?;
        let range = store.range();
        let into = if plan.running {
            Accumulator::Running { range }
        } else {
            Accumulator::Partials { range, spans: dimension }
        };
        let mut order: Vec<u32> = (0..spans).collect();
        if plan.shuffled {
            Random(self.scene.seed ^ 0x5_4aff).shuffle(&mut order);
        }
        let mut exact = self.exact.clone();
        if plan.closed_only {
            (0..exact.len()).filter(|block| self.scene.is_absent(*block)).for_each(|block| exact[block] = None);
        }
        for spans in order.chunks(plan.spans_per_call) {
            let (queries, rows) = (queries.range(), count);
            let (exact, closed) = (&exact[..], &self.closed[..]);
            let job = AttendMixed { queries, rows, first_position, exact, closed, window: 64, spans, into };
            (self.queries.attend)(device, &geometry, self.scene.closed, &job)?;
        }
        let job = Finish { from: into, rows: count, first_position, output: output.range() };
        device.finish(Stream::Compute, &geometry, &[job])?;
        Ok(floats_of(&self.get(output.range())?))
    }

    /// Everything that the device wrote before attending: exact sections, closed ones, verdicts.
    pub fn written(&self) -> Result<Vec<(&'static str, Vec<u8>)>, DeviceError> {
        let mut out = vec![("exact sections", self.get(self.arena.range())?)];
        if let (Some(arena), Some(verdicts)) = (&self.closed_arena, &self.verdicts) {
            let mut bytes = self.get(arena.range())?;
            let each = bytes.len() / self.closed.len();
            // Nobody has written what is not closed.
            let blank = self.places.iter().zip(&self.closed).filter(|(_, closed)| closed.is_none());
            blank.for_each(|(place, _)| bytes[*place as usize * each..][..each].fill(0));
            out.push(("closed sections", bytes));
            out.push(("verdicts", self.get(verdicts.range())?));
        }
        Ok(out)
    }

    /// Softmax attention in f64 over what each row reads, exact or decoded from `written`; the largest difference of `found`, relative
    /// to the largest value of its head, that is.
    pub fn distance(&self, found: &[f32], closed_only: bool) -> Result<f64, DeviceError> {
        let geometry = self.scene.geometry();
        let (dim, heads, group) = (geometry.head_dim as usize, geometry.heads as usize, self.scene.group as usize);
        let exact = self.kept(|x| match self.scene.element {
            Element::Bf16 => bf16::from_f32(x).to_f64(),
            Element::F32 => f64::from(x),
        });
        let closed = self.decoded()?;
        let mut worst = 0f64;
        for (row, found) in found.chunks_exact(heads * dim).enumerate() {
            let position = self.scene.first_row() + row;
            for (head, found) in found.chunks_exact(dim).enumerate() {
                let query = &self.numbers.queries[(row * heads + head) * dim..][..dim];
                let side = |t: usize| {
                    let block = t / self.scene.block_tokens as usize;
                    let end = (block + 1) * self.scene.block_tokens as usize;
                    let reads_closed = self.scene.is_closed(block)
                        && (end + 64 <= position || (closed_only && self.scene.is_absent(block)));
                    let from = if reads_closed { &closed } else { &exact };
                    let at = (t * geometry.kv_heads as usize + head / group) * dim;
                    (&from[0][at..at + dim], &from[1][at..at + dim])
                };
                let scores: Vec<f64> = (0..=position)
                    .map(|t| {
                        query.iter().zip(side(t).0).map(|(q, k)| f64::from(*q) * k).sum::<f64>()
                            * f64::from(geometry.scale)
                    })
                    .collect();
                let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
                let total: f64 = weights.iter().sum();
                let mut expected = vec![0f64; dim];
                for (t, weight) in weights.iter().enumerate() {
                    expected.iter_mut().zip(side(t).1).for_each(|(sum, v)| *sum += weight * v / total);
                }
                let size = expected.iter().fold(0f64, |most, x| most.max(x.abs()));
                for (a, b) in expected.iter().zip(found) {
                    worst = worst.max((a - f64::from(*b)).abs() / size);
                }
            }
        }
        Ok(worst)
    }

    fn kept(&self, round: impl Fn(f32) -> f64) -> [Vec<f64>; 2] {
        [&self.numbers.keys, &self.numbers.values].map(|all| all.iter().map(|x| round(*x)).collect())
    }

    /// Keys and values of closed blocks in f64, `[tokens][kv_heads][head_dim]`; 0 elsewhere.
    fn decoded(&self) -> Result<[Vec<f64>; 2], DeviceError> {
        let geometry = self.scene.geometry();
        let (dim, kv_heads, tokens) =
            (geometry.head_dim as usize, geometry.kv_heads as usize, geometry.block_tokens as usize);
        let mut out = [vec![0f64; self.numbers.keys.len()], vec![0f64; self.numbers.values.len()]];
        let Some(forms) = self.scene.closed else { return Ok(out) };
        let read = |place: Option<SectionPlace>| match place {
            Some(SectionPlace::Device(range)) => self.get(range),
            _ => Ok(Vec::new()),
        };
        for (block, place) in self.closed.iter().enumerate() {
            let Some(place) = place else { continue };
            let (header, scale, codes) = (read(place.header)?, read(Some(place.scale))?, read(Some(place.codes))?);
            for head in 0..kv_heads {
                let half = |bytes: &[u8], at: usize| f16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]).to_f64();
                let key_scales = if forms.keys == Codes::Int8 { tokens } else { 0 };
                let value_scales = if forms.values == Codes::Int8 { tokens } else { 2 * tokens };
                let scale = &scale[head * 2 * (key_scales + value_scales)..];
                let code_bytes = |codes: Codes| dim * tokens / if codes == Codes::Int8 { 1 } else { 2 };
                let codes = &codes[head * (code_bytes(forms.keys) + code_bytes(forms.values))..];
                for t in 0..tokens {
                    for d in 0..dim {
                        let at = ((block * tokens + t) * kv_heads + head) * dim + d;
                        out[0][at] = match forms.keys {
                            Codes::Int8 => int8(codes, tokens, d, t) * half(scale, t),
                            Codes::Rows4 => {
                                let (c, r) =
                                    (half(&header, head * 2 * dim + d), half(&header, head * 2 * dim + dim + d));
                                rows4(codes, tokens, d, t, c, r)
                            }
                        };
                        let (codes, scale) = (&codes[code_bytes(forms.keys)..], &scale[2 * key_scales..]);
                        out[1][at] = match forms.values {
                            Codes::Int8 => int8(codes, dim, t, d) * half(scale, t),
                            Codes::Rows4 => rows4(codes, dim, t, d, half(scale, t), half(scale, tokens + t)),
                        };
                    }
                }
            }
        }
        Ok(out)
    }
}

fn int8(codes: &[u8], lanes: usize, row: usize, lane: usize) -> f64 {
    f64::from(codes[(row / 4 * lanes + lane) * 4 + row % 4] as i8)
}

fn rows4(codes: &[u8], lanes: usize, row: usize, lane: usize, centre: f64, half_range: f64) -> f64 {
    let byte = codes[(row / 8 * lanes + lane) * 4 + row % 8 / 2];
    centre + half_range * (f64::from(byte >> (row % 2 * 4) & 15) / 7.5 - 1.0)
}

/// Bytes of a layer's sections of the header, scale and code planes.
fn sizes(geometry: &Geometry, forms: Closed) -> [u64; 3] {
    let (dim, tokens) = (u64::from(geometry.head_dim), u64::from(geometry.block_tokens));
    let eight = |codes: Codes| codes == Codes::Int8;
    let header = if eight(forms.keys) { 0 } else { 4 * dim };
    let scale = if eight(forms.keys) { 2 * tokens } else { 0 } + if eight(forms.values) { 2 } else { 4 } * tokens;
    let codes = |codes: Codes| dim * tokens / if eight(codes) { 1 } else { 2 };
    [header, scale, codes(forms.keys) + codes(forms.values)].map(|bytes| bytes * u64::from(geometry.kv_heads))
}
