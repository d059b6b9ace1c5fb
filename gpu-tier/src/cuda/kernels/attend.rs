//! Launcher of `kernels/attend.cu`: `kvtier_attend_vV_cC(jobs, spans, count, shapes)`.

use super::super::address::DevicePtr;
use super::super::attention::QueryElement;
use super::super::staging::CHUNK_BYTES;
use super::table::Table;
use super::{Launcher, Parameter};
use crate::attention::Geometry;
use crate::attention::closed::{Closed, Codes};
use crate::error::DeviceError;

/// By query vectors of a tile (4, 8), then by 64 channels of a head (1, 2, 4).
pub(super) const NAMES: [[&str; 3]; 2] = [
    ["kvtier_attend_v4_c1", "kvtier_attend_v4_c2", "kvtier_attend_v4_c4"],
    ["kvtier_attend_v8_c1", "kvtier_attend_v8_c2", "kvtier_attend_v8_c4"],
];

const THREADS: u32 = 64;
/// Bytes of a job's record and of a span's.
const JOB_BYTES: u64 = 64;
const SPAN_BYTES: u64 = 64;

/// Where one span of a job is, KV head 0; 0 where nobody reads.
#[derive(Clone, Copy, Debug, Default)]
pub(in super::super) struct SpanPlace {
    /// The exact section of the block of each 16 tokens.
    pub(in super::super) exact: [Option<DevicePtr>; 4],
    pub(in super::super) header: Option<DevicePtr>,
    pub(in super::super) scale: Option<DevicePtr>,
    pub(in super::super) codes: Option<DevicePtr>,
    pub(in super::super) index: u32,
    /// First position that reads the closed sections.
    pub(in super::super) closed_from: u32,
}

/// One sequence.
pub(in super::super) struct Job {
    /// `[rows][heads][head_dim]`, at a multiple of 16 bytes.
    pub(in super::super) queries: DevicePtr,
    /// Where (m, l, o) go; `Store` in `kernels/attention.cuh` lays them out.
    pub(in super::super) store: DevicePtr,
    /// Spans of the store; 1 for a running state.
    pub(in super::super) store_spans: u32,
    pub(in super::super) rows: u32,
    pub(in super::super) first_position: u32,
    /// One state a vector.
    pub(in super::super) running: bool,
    /// In increasing order for a running state.
    pub(in super::super) spans: Vec<SpanPlace>,
}

/// What a launch reads.
#[derive(Clone, Copy)]
pub(in super::super) struct Formats {
    pub(in super::super) queries: QueryElement,
    pub(in super::super) closed: Option<Closed>,
}

/// A kernel, and the query vectors of its tiles.
pub(super) type Kernel = (&'static str, u32);

/// The kernel for heads of a size, and jobs of at most so many query vectors.
fn kernel(head_dim: u32, vectors: u32) -> Kernel {
    let (names, tile) = if vectors <= 4 { (&NAMES[0], 4) } else { (&NAMES[1], 8) };
    (names[chunks(head_dim)], tile)
}

/// Index of a kernel by the 64 channels of its heads: 1, 2, 4 of them.
pub(super) fn chunks(head_dim: u32) -> usize {
    match head_dim {
        ..=64 => 0,
        65..=128 => 1,
        _ => 2,
    }
}

/// Attends all spans of all jobs.
pub(in super::super) fn launch(
    launcher: Launcher<'_>,
    geometry: &Geometry,
    formats: Formats,
    jobs: &[Job],
) -> Result<(), DeviceError> {
    launch_kernel(launcher, kernel(geometry.head_dim, most_vectors(geometry, jobs)), geometry, formats, jobs)
}

fn vectors(geometry: &Geometry, job: &Job) -> u32 {
    job.rows * (geometry.heads / geometry.kv_heads)
}

/// Query vectors of a KV head in the job that has most.
pub(super) fn most_vectors(geometry: &Geometry, jobs: &[Job]) -> u32 {
    jobs.iter().map(|job| vectors(geometry, job)).max().unwrap_or(0)
}

/// Attends all spans of all jobs with one kernel, in as few launches as the tables allow.
pub(super) fn launch_kernel(
    launcher: Launcher<'_>,
    (name, tile): Kernel,
    geometry: &Geometry,
    formats: Formats,
    jobs: &[Job],
) -> Result<(), DeviceError> {
    let mut batch = Batch::default();
    for job in jobs.iter().filter(|job| job.rows > 0) {
        let tiles = vectors(geometry, job).div_ceil(tile);
        let mut spans = job.spans.as_slice();
        while !spans.is_empty() {
            // A job whose spans do not fit goes on in the next launch: after this one, in the same stream.
            let room = batch.room();
            if room == 0 {
                batch.send(launcher, name, geometry, formats)?;
                continue;
            }
            let (now, later) = spans.split_at(room.min(spans.len()));
            batch.add(job, now, geometry.kv_heads * tiles);
            spans = later;
        }
    }
    batch.send(launcher, name, geometry, formats)
}

/// What fits one table: the jobs, their spans.
#[derive(Default)]
struct Batch {
    jobs: Table,
    spans: Table,
    count: u32,
    units: u32,
}

impl Batch {
    /// Spans that a further job may have.
    fn room(&self) -> usize {
        let used = self.jobs.len() + JOB_BYTES + self.spans.len();
        ((CHUNK_BYTES as u64).saturating_sub(used) / SPAN_BYTES) as usize
    }

    fn add(&mut self, job: &Job, spans: &[SpanPlace], units_per_span: u32) {
        let record = &mut self.jobs;
        record.address(job.queries).address(job.store).long(self.spans.len());
        let count = u32::try_from(spans.len()).expect("spans of a table");
        record.word(job.store_spans).word(self.units).word(job.rows).word(count);
        // Then padding.
        record.word(job.first_position).word(u32::from(job.running)).longs([0; 2]);
        self.count += 1;
        self.units += units_per_span * if job.running { 1 } else { count };
        for span in spans {
            let address = |place: Option<DevicePtr>| place.map_or(0, DevicePtr::raw);
            self.spans.longs(span.exact.map(address));
            self.spans.long(address(span.header)).long(address(span.scale)).long(address(span.codes));
            self.spans.word(span.index).word(span.closed_from);
        }
    }

    /// Launches what there is, and starts anew.
    fn send(
        &mut self,
        launcher: Launcher<'_>,
        name: &'static str,
        geometry: &Geometry,
        Formats { queries, closed }: Formats,
    ) -> Result<(), DeviceError> {
        let Batch { jobs, spans, count, units } = std::mem::take(self);
        let mut table = jobs;
        let first_span = table.len();
        table.extend(&spans);
        let bits = |codes: Option<Codes>| codes.map_or(0, |codes| codes.bits() as u8);
        let element_bytes = u8::try_from(geometry.element.bytes()).expect("2 or 4");
        let queries = match queries {
            QueryElement::F32 => 0,
            QueryElement::Bf16 => 1,
            QueryElement::F16 => 2,
        };
        let formats = [element_bytes, bits(closed.map(|of| of.keys)), bits(closed.map(|of| of.values)), queries];
        let Geometry { heads, kv_heads, head_dim, block_tokens, scale, .. } = *geometry;
        let shapes = [heads, kv_heads, head_dim, block_tokens, u32::from_le_bytes(formats), scale.to_bits()];
        let mut parameters = vec![Parameter::Within(first_span), Parameter::Word(count)];
        parameters.extend(shapes.map(Parameter::Word));
        launcher.launch(name, (units, 1), THREADS, table.bytes(), &parameters)
    }
}
