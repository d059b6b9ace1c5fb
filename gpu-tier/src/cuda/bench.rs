//! Times of the kernels on a card, beside what its memory allows: `kvtier bench cuda`.
//!
//! The floor of a kind of work is the longer of two times: the bytes that it must read and write, over the measured rate of the driver's own
//! copy, and its multiplications and additions, over the measured rate of the matrix units (`mma.sync`, bf16).

use std::ops::Range;
use std::time::Instant;

use cache_core::codec::{Grid, i8h, sx12};
use cache_core::payload::Side;
use cudarc::driver::{CudaEvent, DriverError, sys};

use super::codec::{Slice, Sum, Sx12Layer};
use super::kernels::rate;
use super::{CudaConfig, CudaDevice, KernelSource};
use crate::attention::closed::{AttendMixed, Closed, ClosedPlace, Codes, Encode};
use crate::attention::{Accumulator, Attend, Attention, Element, Geometry, SPAN_TOKENS, SectionPlace};
use crate::cpu::codec::bench::Sample;
use crate::device::{Device, DeviceBuffer, DeviceRange, Stream};
use crate::error::DeviceError;

/// Shape of a layer: grouped-query attention as models of 8 billion parameters have it.
const GEOMETRY: Geometry =
    Geometry { heads: 32, kv_heads: 8, head_dim: 128, block_tokens: 64, element: Element::Bf16, scale: 0.088_388_35 };
/// Slices of made-up numbers, repeated as often as it takes.
const SAMPLE_SLICES: usize = 16;
/// What a measurement takes of device memory, in sizes of the exact blocks: they, what is decoded, their closed form.
const SIZES: u64 = 3;
/// Beside the sizes: queries, partials, verdicts.
const REST_BYTES: u64 = 64 << 20;
/// Blocks of the matrix units' work on each multiprocessor, and positions for each of its rounds.
const RATE_BLOCKS: u32 = 2;
const RATE_TOKENS: u32 = 8;
/// Copies that keep the device busy, at most.
const COPIES_MAX: u32 = 1000;

/// As many positions as have their parts in the table of one launch.
pub const TOKENS_MAX: u32 = 65_536;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaBench {
    /// Which device, counted from 0 as the driver does.
    pub ordinal: u32,
    /// Positions, a multiple of 64, at most [`TOKENS_MAX`]: one layer of them is encoded, decoded, summed and attended. 4 KiB of exact blocks each.
    pub tokens: u32,
    /// Rounds; figures are medians over them.
    pub rounds: u32,
}

/// One kind of work.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// Its name, such as `i8h encode`.
    pub work: String,
    /// Bytes that it must read and write.
    pub bytes: u64,
    /// Multiplications and additions of attention; 0 for the rest.
    pub operations: u64,
    /// Median over rounds, from the launch's table to its last thread.
    pub seconds: f64,
    /// Least and largest.
    pub seconds_range: (f64, f64),
    /// What a copy would take to move as many bytes, or matrix units to do as many operations, whichever is longer.
    pub floor_seconds: f64,
}

/// What a card does.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The driver's name for it.
    pub device: String,
    /// Bytes that the driver's copy inside device memory reads and writes a second, median over rounds.
    pub copy_bytes_per_second: f64,
    /// Multiplications and additions of its matrix units a second, median over rounds.
    pub matrix_operations_per_second: f64,
    /// One entry a kind of work.
    pub figures: Vec<Figures>,
}

/// Measures. Errors: [`DeviceError::Unavailable`] without driver or device, and what the device says, such as that it has no room.
pub fn measure(bench: CudaBench) -> Result<Report, DeviceError> {
    let whole = bench.tokens.is_multiple_of(GEOMETRY.block_tokens) && (1..=TOKENS_MAX).contains(&bench.tokens);
    if !whole || bench.rounds == 0 {
        let problem = format!("{} positions in {} rounds", bench.tokens, bench.rounds);
        return Err(DeviceError::Shape { what: "bench", problem });
    }
    let blocks = u64::from(bench.tokens / GEOMETRY.block_tokens);
    let exact_bytes = blocks * GEOMETRY.section_bytes();
    let budget_bytes = SIZES * exact_bytes + REST_BYTES;
    let device =
        CudaDevice::open(CudaConfig { ordinal: bench.ordinal, budget_bytes, kernels: KernelSource::Embedded })?;
    let [exact, scratch] = [device.allocate(exact_bytes)?, device.allocate(exact_bytes)?];
    fill(&device, exact.range())?;
    let clock = Clock::new(&device)?;
    let mut rig = Rig {
        bench,
        blocks,
        device: &device,
        exact,
        scratch,
        clock,
        copy_rate: 0.0,
        matrix_rate: 0.0,
        figures: Vec::new(),
    };
    rig.measure_copy()?;
    rig.measure_matrix()?;
    rig.slices(Codes::Int8, "i8h")?;
    rig.slices(Codes::Rows4, "kc4vt4")?;
    rig.sx12()?;
    rig.sums()?;
    rig.attend("exact", None)?;
    rig.attend("i8h", Some(Closed::I8H))?;
    rig.attend("kc4vt4", Some(Closed::KC4VT4))?;
    let Rig { copy_rate, matrix_rate, figures, .. } = rig;
    Ok(Report {
        device: device.info().name.clone(),
        copy_bytes_per_second: copy_rate,
        matrix_operations_per_second: matrix_rate,
        figures,
    })
}

/// Fills exact blocks with made-up keys and values.
fn fill(device: &CudaDevice, target: DeviceRange) -> Result<(), DeviceError> {
    let sample = Sample::synthetic(GEOMETRY.head_dim, GEOMETRY.block_tokens, SAMPLE_SLICES);
    let bytes: Vec<u8> = sample.values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut at = 0;
    while at < target.bytes {
        let part = (bytes.len() as u64).min(target.bytes - at);
        let length = usize::try_from(part).expect("no longer than the sample");
        device.upload(Stream::Compute, &bytes[..length], target.slice(at, part))?;
        at += part;
    }
    Ok(())
}

/// Two events around the work of the compute stream.
struct Clock<'d> {
    device: &'d CudaDevice,
    events: [CudaEvent; 2],
}

impl Clock<'_> {
    fn new(device: &CudaDevice) -> Result<Clock<'_>, DeviceError> {
        device.shared.enter()?;
        let event = || device.shared.context.new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
        let events = event().and_then(|first| Ok([first, event()?]));
        Ok(Clock { device, events: device.shared.health.told("create an event", events)? })
    }

    /// Seconds that the device takes for what `work` enqueues behind `busy`.
    fn time(
        &self,
        busy: impl FnOnce() -> Result<(), DeviceError>,
        work: impl FnOnce() -> Result<(), DeviceError>,
    ) -> Result<f64, DeviceError> {
        let shared = &self.device.shared;
        let stream = shared.compute.stream();
        let told = |done: Result<(), DriverError>| shared.health.told("time a kernel", done);
        busy()?;
        told(self.events[0].record(stream))?;
        work()?;
        told(self.events[1].record(stream).and_then(|()| self.events[1].synchronize()))?;
        let milliseconds = self.events[0].elapsed_ms(&self.events[1]);
        Ok(f64::from(shared.health.told("time a kernel", milliseconds)?) / 1e3)
    }
}

/// Median, least and largest.
fn summary(mut seconds: Vec<f64>) -> (f64, (f64, f64)) {
    seconds.sort_by(f64::total_cmp);
    (seconds[seconds.len() / 2], (seconds[0], seconds[seconds.len() - 1]))
}

/// The exact blocks on a device, and what was measured so far.
struct Rig<'d> {
    bench: CudaBench,
    blocks: u64,
    device: &'d CudaDevice,
    exact: DeviceBuffer,
    /// As long: where blocks are copied and decoded to.
    scratch: DeviceBuffer,
    clock: Clock<'d>,
    /// Bytes a second; 0 until it is measured.
    copy_rate: f64,
    /// Operations a second.
    matrix_rate: f64,
    figures: Vec<Figures>,
}

impl Rig<'_> {
    fn copy(&self) -> Result<(), DeviceError> {
        self.device.copy_within(Stream::Compute, self.exact.range(), self.scratch.range())
    }

    /// Times of each round, after one that is not counted: it shows how long the host takes to enqueue the work. Copies keep the device
    /// busy for twice as long, so that it has everything before it begins and never waits for the host.
    fn rounds(&self, work: impl Fn() -> Result<(), DeviceError>) -> Result<(f64, (f64, f64)), DeviceError> {
        let begun = Instant::now();
        work()?;
        let host_seconds = begun.elapsed().as_secs_f64();
        let copies = 1 + (2.0 * host_seconds * self.copy_rate / self.copied_bytes()) as u32;
        self.device.synchronize(self.device.record(Stream::Compute)?)?;
        let busy = || (0..copies.min(COPIES_MAX)).try_for_each(|_| self.copy());
        let seconds = (0..self.bench.rounds).map(|_| self.clock.time(busy, &work)).collect::<Result<_, _>>()?;
        Ok(summary(seconds))
    }

    /// Bytes that a copy of the blocks reads and writes.
    fn copied_bytes(&self) -> f64 {
        2.0 * self.exact.range().bytes as f64
    }

    fn add(
        &mut self,
        work: String,
        (bytes, operations): (u64, u64),
        run: impl Fn() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        let (seconds, seconds_range) = self.rounds(run)?;
        let floor_seconds = (bytes as f64 / self.copy_rate).max(operations as f64 / self.matrix_rate);
        self.figures.push(Figures { work, bytes, operations, seconds, seconds_range, floor_seconds });
        Ok(())
    }

    fn measure_copy(&mut self) -> Result<(), DeviceError> {
        let (seconds, _) = self.rounds(|| self.copy())?;
        self.copy_rate = self.copied_bytes() / seconds;
        Ok(())
    }

    /// Multiplies ones. Errors also when the sums are wrong.
    fn measure_matrix(&mut self) -> Result<(), DeviceError> {
        const WHAT: &str = "measure matrix units";
        let shared = &self.device.shared;
        let units = shared.context.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
        let blocks = RATE_BLOCKS * u32::try_from(shared.health.told(WHAT, units)?).unwrap_or(1);
        let rounds = self.bench.tokens / RATE_TOKENS;
        let sums = self.device.allocate(u64::from(blocks * rate::THREADS) * 4)?;
        let run = || {
            let memory = shared.memory();
            rate::launch(shared.launcher(WHAT, Stream::Compute), blocks, rounds, memory.resolve(sums.range())?)
        };
        let (seconds, _) = self.rounds(run)?;
        let mut bytes = vec![0; usize::try_from(sums.range().bytes).expect("a number for each thread")];
        self.device.download(Stream::Compute, sums.range(), &mut bytes)?;
        let expected = (16.0 * rounds as f32).to_ne_bytes();
        if bytes.chunks_exact(4).any(|sum| sum != expected) {
            return Err(DeviceError::Shape { what: WHAT, problem: "their sums are wrong".to_owned() });
        }
        self.matrix_rate = (u64::from(blocks) * u64::from(rounds) * rate::OPERATIONS) as f64 / seconds;
        Ok(())
    }

    /// Grids of the sides of a block's layer, keys before values.
    fn sides() -> impl Iterator<Item = (Side, Grid)> {
        let side = |side| (side, Grid::new(side, GEOMETRY.head_dim, GEOMETRY.block_tokens));
        (0..GEOMETRY.kv_heads).flat_map(move |_| Side::ALL.map(side))
    }

    fn slices(&mut self, form: Codes, name: &str) -> Result<(), DeviceError> {
        let mut ends = [0u64; 3];
        let mut places: Vec<(Side, Grid, [Range<u64>; 3])> = Vec::new();
        for (side, grid) in (0..self.blocks).flat_map(|_| Rig::sides()) {
            let elements = grid.elements() as u64;
            let (scales, codes) = match form {
                Codes::Int8 => (2 * i8h::tokens(side, grid) as u64, elements),
                Codes::Rows4 => (4 * grid.rows as u64, elements / 2),
            };
            let mut take = |which: usize, bytes: u64| {
                let start = ends[which];
                ends[which] += bytes;
                start..ends[which]
            };
            places.push((side, grid, [take(0, 2 * elements), take(1, scales), take(2, codes)]));
        }
        let [scales, codes] = [self.device.allocate(ends[1])?, self.device.allocate(ends[2])?];
        let (values, verdict) = (self.exact.range(), self.device.allocate(4)?);
        let part = |of: DeviceRange, place: &Range<u64>| of.slice(place.start, place.end - place.start);
        let slices = |values: DeviceRange| -> Vec<Slice> {
            places
                .iter()
                .map(|(side, grid, [value, scale, code])| Slice {
                    form,
                    side: *side,
                    grid: *grid,
                    values: part(values, value),
                    scales: part(scales.range(), scale),
                    codes: part(codes.range(), code),
                    verdict: verdict.range(),
                })
                .collect()
        };
        let (device, bytes) = (self.device, ends.iter().sum());
        let encoded = slices(values);
        self.add(format!("{name} encode"), (bytes, 0), || device.encode_slices(Stream::Compute, &encoded))?;
        let decoded = slices(self.scratch.range());
        self.add(format!("{name} decode"), (bytes, 0), || device.decode_slices(Stream::Compute, &decoded))
    }

    fn sx12(&mut self) -> Result<(), DeviceError> {
        let elements = u64::from(GEOMETRY.head_dim * GEOMETRY.block_tokens);
        let parts = u64::from(2 * GEOMETRY.kv_heads);
        let (header_bytes, code_bytes) = (parts * sx12::header_bytes(elements), parts * elements / 2 * 3);
        let header = self.device.allocate(self.blocks * header_bytes)?;
        let codes = self.device.allocate(self.blocks * code_bytes)?;
        let verdict = self.device.allocate(4)?;
        let section = GEOMETRY.section_bytes();
        let layers = |raw: DeviceRange| -> Vec<Sx12Layer> {
            (0..self.blocks)
                .map(|block| Sx12Layer {
                    kv_heads: GEOMETRY.kv_heads,
                    elements: GEOMETRY.head_dim * GEOMETRY.block_tokens,
                    raw: raw.slice(block * section, section),
                    header: header.range().slice(block * header_bytes, header_bytes),
                    codes: codes.range().slice(block * code_bytes, code_bytes),
                    verdict: verdict.range(),
                })
                .collect()
        };
        let (device, bytes) = (self.device, self.blocks * (section + header_bytes + code_bytes));
        let encoded = layers(self.exact.range());
        let decoded = layers(self.scratch.range());
        self.add("sx12 encode".to_owned(), (bytes, 0), || device.encode_sx12(Stream::Compute, &encoded))?;
        self.add("sx12 decode".to_owned(), (bytes, 0), || device.decode_sx12(Stream::Compute, &decoded))
    }

    fn sums(&mut self) -> Result<(), DeviceError> {
        let section = GEOMETRY.section_bytes();
        let sums = self.device.allocate(8 * self.blocks)?;
        let job = |block| Sum {
            data: self.exact.range().slice(block * section, section),
            seed: block,
            sum: sums.range().slice(8 * block, 8),
        };
        let jobs: Vec<Sum> = (0..self.blocks).map(job).collect();
        let (device, bytes) = (self.device, self.blocks * (section + 8));
        self.add("xxh3".to_owned(), (bytes, 0), || device.sum(Stream::Compute, &jobs))
    }

    /// Decoding one token over all blocks, the last two exact.
    fn attend(&mut self, name: &str, closed: Option<Closed>) -> Result<(), DeviceError> {
        let section = GEOMETRY.section_bytes();
        let exact: Vec<Option<SectionPlace>> = (0..self.blocks)
            .map(|block| Some(SectionPlace::Device(self.exact.range().slice(block * section, section))))
            .collect();
        let (places, _closed_blocks) = match closed {
            Some(closed) => self.close(closed, &exact)?,
            None => (vec![None; exact.len()], None),
        };
        let (device, rows) = (self.device, u64::from(GEOMETRY.heads * GEOMETRY.head_dim) * 4);
        let spans = self.bench.tokens / SPAN_TOKENS;
        let queries = device.allocate(rows)?;
        let partials = u64::from(spans * GEOMETRY.heads) * GEOMETRY.partial_bytes();
        let store = device.allocate(GEOMETRY.accumulator_bytes(1, spans))?;
        let into = Accumulator::Partials { range: store.range(), spans };
        let list: Vec<u32> = (0..spans).collect();
        let (queries, first_position) = (queries.range(), self.bench.tokens - 1);
        let run = || match closed {
            Some(forms) => {
                let (exact, closed, spans) = (&exact[..], &places[..], &list[..]);
                let job = AttendMixed { queries, rows: 1, first_position, exact, closed, window: 64, spans, into };
                device.attend_mixed(Stream::Compute, &GEOMETRY, forms, &[job])
            }
            None => {
                let job = Attend { queries, rows: 1, first_position, sections: &exact, spans: &list, into };
                device.attend(Stream::Compute, &GEOMETRY, &[job])
            }
        };
        let before = device.traffic().attended_device_bytes;
        run()?;
        let kv_bytes = device.traffic().attended_device_bytes - before;
        let operations = 4 * u64::from(self.bench.tokens) * u64::from(GEOMETRY.heads * GEOMETRY.head_dim);
        // Each span reads the row's queries and writes partials of its own.
        let bytes = kv_bytes + u64::from(spans) * rows + partials;
        self.add(format!("attend {name}"), (bytes, operations), run)
    }

    /// Encodes all blocks but the first.
    fn close(
        &self,
        closed: Closed,
        exact: &[Option<SectionPlace>],
    ) -> Result<(Vec<Option<ClosedPlace>>, Option<DeviceBuffer>), DeviceError> {
        let heads = u64::from(GEOMETRY.kv_heads);
        let sizes = [closed.header_bytes(&GEOMETRY), closed.scale_bytes(&GEOMETRY), closed.code_bytes(&GEOMETRY)]
            .map(|bytes| heads * bytes);
        let each: u64 = sizes.iter().sum();
        let arena = self.device.allocate(self.blocks * each)?;
        let verdict = self.device.allocate(4 * self.blocks)?;
        let place = |block: u64| {
            let mut at = block * each;
            let mut take = |bytes: u64| {
                at += bytes;
                SectionPlace::Device(arena.range().slice(at - bytes, bytes))
            };
            let header = (sizes[0] > 0).then(|| take(sizes[0]));
            (block > 0).then(|| ClosedPlace { header, scale: take(sizes[1]), codes: take(sizes[2]) })
        };
        let places: Vec<_> = (0..self.blocks).map(place).collect();
        let jobs: Vec<Encode> = exact
            .iter()
            .zip(&places)
            .enumerate()
            .filter_map(|(block, (exact, into))| {
                let verdict = verdict.range().slice(4 * block as u64, 4);
                Some(Encode { exact: (*exact)?, into: (*into)?, verdict })
            })
            .collect();
        self.device.encode(Stream::Compute, &GEOMETRY, closed, &jobs)?;
        Ok((places, Some(arena)))
    }
}
