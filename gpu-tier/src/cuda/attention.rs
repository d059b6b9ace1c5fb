//! Attention on the device: from jobs to the records of the launchers. Checks are those of the `cpu` device; what is read by 16
//! bytes (sections, queries, new rows) must start at a multiple of 16 besides, and nothing is attended in host memory.

mod spans;

use std::sync::RwLockReadGuard;
use std::sync::atomic::Ordering;

use cache_core::codec::Grid;
use cache_core::payload::Side;

use super::address::DevicePtr;
use super::kernels::grid::Part;
use super::kernels::{append, attend, finish, gather, i8h, kc4vt4};
use super::memory::Memory;
use super::{CudaDevice, Shared};
use crate::attention::checks::{check_closed, check_disjoint, check_launch, check_section, missing, shape};
use crate::attention::closed::{AttendMixed, Closed, Codes, Encode, STAYS_RAW};
use crate::attention::{Accumulator, Append, Attend, Attention, Element, Finish, Geometry, SPAN_TOKENS, SectionPlace};
use crate::device::{DeviceRange, Stream};
use crate::error::DeviceError;

/// What kernels read and write at once, in bytes.
const VECTOR_BYTES: u64 = 16;

/// Addresses of one launch's ranges. Nothing resolved goes away while it is held.
struct Resolver<'a> {
    memory: RwLockReadGuard<'a, Memory>,
    what: &'static str,
}

impl Resolver<'_> {
    /// Address of a range that starts at a multiple of `alignment`.
    fn address(&self, range: DeviceRange, alignment: u64) -> Result<DevicePtr, DeviceError> {
        let address = self.memory.resolve(range)?;
        if address.padding(alignment) > 0 {
            return Err(shape(self.what, format!("{range:?} is not aligned to {alignment} bytes")));
        }
        Ok(address)
    }

    /// Address of an f32 array of at least `floats` elements.
    fn array(&self, range: DeviceRange, floats: u64, alignment: u64) -> Result<DevicePtr, DeviceError> {
        if range.bytes < floats.saturating_mul(4) {
            return Err(shape(self.what, format!("{range:?} cannot hold {floats} f32")));
        }
        self.address(range, alignment)
    }

    /// Address of a section of given bytes. Errors: not resident, shape, range.
    fn section(&self, place: SectionPlace, index: usize, bytes: u64) -> Result<DevicePtr, DeviceError> {
        let range = in_device(place).ok_or(DeviceError::NotResident { section: index })?;
        check_section(self.what, index, (range.offset, range.bytes), bytes, VECTOR_BYTES)?;
        self.address(range, VECTOR_BYTES)
    }
}

fn in_device(place: SectionPlace) -> Option<DeviceRange> {
    match place {
        SectionPlace::Device(range) => Some(range),
        SectionPlace::Host(_) => None,
    }
}

impl Shared {
    fn resolver(&self, what: &'static str) -> Resolver<'_> {
        Resolver { memory: self.memory(), what }
    }

    fn attend_forms(
        &self,
        stream: Stream,
        geometry: &Geometry,
        closed: Option<Closed>,
        jobs: &[AttendMixed<'_>],
    ) -> Result<(), DeviceError> {
        const WHAT: &str = "attend";
        check_launch(WHAT, stream, geometry)?;
        self.enter()?;
        if closed.is_some() {
            check_closed(WHAT, geometry)?;
        }
        check_disjoint(WHAT, jobs.iter().map(|job| accumulator(job.into).0).collect())?;
        let resolver = self.resolver(WHAT);
        let (mut work, mut bytes) = (Vec::with_capacity(jobs.len()), 0);
        for job in jobs {
            let (range, dimension) = accumulator(job.into);
            spans::check(job, dimension)?;
            let vectors = u64::from(job.rows) * u64::from(geometry.heads);
            let partial = geometry.partial_bytes() / 4;
            let head = partial * u64::from(dimension.unwrap_or(1));
            let places =
                job.spans.iter().map(|span| spans::resolve(&resolver, geometry, closed, job, *span, &mut bytes));
            work.push(attend::Job {
                queries: resolver.array(job.queries, vectors * u64::from(geometry.head_dim), VECTOR_BYTES)?,
                targets: resolver.array(range, vectors.saturating_mul(head), 4)?,
                strides: [u64::from(geometry.heads) * head, head, if dimension.is_some() { partial } else { 0 }],
                rows: job.rows,
                first_position: job.first_position,
                running: dimension.is_none(),
                spans: places.collect::<Result<_, _>>()?,
            });
        }
        attend::launch(self.launcher(WHAT, stream), geometry, closed, &work)?;
        self.attended.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

/// Range of an accumulator, and its third dimension if it has one.
fn accumulator(of: Accumulator) -> (DeviceRange, Option<u32>) {
    match of {
        Accumulator::Partials { range, spans } => (range, Some(spans)),
        Accumulator::Running { range } => (range, None),
    }
}

impl Attention for CudaDevice {
    fn append(&self, stream: Stream, geometry: &Geometry, jobs: &[Append<'_>]) -> Result<(), DeviceError> {
        const WHAT: &str = "append";
        check_launch(WHAT, stream, geometry)?;
        self.shared.enter()?;
        let resolver = self.shared.resolver(WHAT);
        let row = u64::from(geometry.kv_heads) * u64::from(geometry.head_dim);
        let (mut runs, mut written) = (Vec::new(), Vec::new());
        for job in jobs {
            let floats = u64::from(job.rows) * row;
            let keys = resolver.array(job.keys, floats, VECTOR_BYTES)?;
            let values = resolver.array(job.values, floats, VECTOR_BYTES)?;
            let mut done = 0;
            while done < job.rows {
                let position = u64::from(job.first_position) + u64::from(done);
                let block = usize::try_from(position / u64::from(geometry.block_tokens)).expect("an index of a block");
                let slot = (position % u64::from(geometry.block_tokens)) as u32;
                let rows = (geometry.block_tokens - slot).min(job.rows - done);
                let section = match job.sections.get(block) {
                    Some(Some(SectionPlace::Device(range))) => *range,
                    Some(Some(SectionPlace::Host(_))) => {
                        return Err(shape(WHAT, format!("section {block} is in the host arena")));
                    }
                    _ => return Err(missing(WHAT, block)),
                };
                written.push(section);
                let section = resolver.section(SectionPlace::Device(section), block, geometry.section_bytes())?;
                let from = u64::from(done) * row * 4;
                runs.push(append::Run { keys: keys.add(from), values: values.add(from), section, rows, slot });
                done += rows;
            }
        }
        check_disjoint(WHAT, written)?;
        append::launch(self.shared.launcher(WHAT, stream), geometry, &runs)
    }

    fn attend(&self, stream: Stream, geometry: &Geometry, jobs: &[Attend<'_>]) -> Result<(), DeviceError> {
        let jobs: Vec<_> = jobs.iter().map(AttendMixed::exact_only).collect();
        self.shared.attend_forms(stream, geometry, None, &jobs)
    }

    fn attend_mixed(
        &self,
        stream: Stream,
        geometry: &Geometry,
        closed: Closed,
        jobs: &[AttendMixed<'_>],
    ) -> Result<(), DeviceError> {
        self.shared.attend_forms(stream, geometry, Some(closed), jobs)
    }

    fn encode(&self, stream: Stream, geometry: &Geometry, closed: Closed, jobs: &[Encode]) -> Result<(), DeviceError> {
        const WHAT: &str = "encode";
        check_launch(WHAT, stream, geometry)?;
        self.shared.enter()?;
        check_closed(WHAT, geometry)?;
        if geometry.element != Element::Bf16 {
            return Err(shape(WHAT, format!("sections of {:?}", geometry.element)));
        }
        let resolver = self.shared.resolver(WHAT);
        let (mut parts, mut verdicts, mut ranges) = (Vec::new(), Vec::new(), Vec::new());
        for (index, job) in jobs.iter().enumerate() {
            verdicts.push(encode_job(&resolver, geometry, closed, (index, job), &mut ranges, &mut parts)?);
        }
        // Sources too: nothing that a thread block reads may be written by another.
        check_disjoint(WHAT, ranges)?;
        let launcher = self.shared.launcher(WHAT, stream);
        gather::clear(launcher, &verdicts)?;
        let of = |codes| parts.iter().filter(|(form, _)| *form == codes).map(|(_, part)| *part).collect::<Vec<_>>();
        i8h::encode(launcher, &of(Codes::Int8), STAYS_RAW, STAYS_RAW)?;
        kc4vt4::encode(launcher, &of(Codes::Rows4), STAYS_RAW, STAYS_RAW)
    }

    fn finish(&self, stream: Stream, geometry: &Geometry, jobs: &[Finish]) -> Result<(), DeviceError> {
        const WHAT: &str = "finish";
        check_launch(WHAT, stream, geometry)?;
        self.shared.enter()?;
        check_disjoint(WHAT, jobs.iter().map(|job| job.output).collect())?;
        let resolver = self.shared.resolver(WHAT);
        let mut work = Vec::with_capacity(jobs.len());
        for job in jobs {
            let (range, dimension) = accumulator(job.from);
            let vectors = u64::from(job.rows) * u64::from(geometry.heads);
            let last_span = (u64::from(job.first_position) + u64::from(job.rows.max(1)) - 1) / u64::from(SPAN_TOKENS);
            if dimension.is_some_and(|dimension| last_span >= u64::from(dimension)) {
                return Err(shape(WHAT, format!("span {last_span} of a store of {dimension:?}")));
            }
            let partial = geometry.partial_bytes() / 4;
            let head = partial * u64::from(dimension.unwrap_or(1));
            work.push(finish::Job {
                from: resolver.array(range, vectors.saturating_mul(head), 4)?,
                output: resolver.array(job.output, vectors * u64::from(geometry.head_dim), 4)?,
                strides: [u64::from(geometry.heads) * head, head, partial],
                rows: job.rows,
                first_position: job.first_position,
                running: dimension.is_none(),
            });
        }
        finish::launch(self.shared.launcher(WHAT, stream), geometry, &work)
    }
}

/// The parts of one job of `encode`, and its verdict's address.
fn encode_job(
    resolver: &Resolver<'_>,
    geometry: &Geometry,
    closed: Closed,
    (index, job): (usize, &Encode),
    ranges: &mut Vec<DeviceRange>,
    parts: &mut Vec<(Codes, Part)>,
) -> Result<DevicePtr, DeviceError> {
    let heads = u64::from(geometry.kv_heads);
    let exact = resolver.section(job.exact, index, geometry.section_bytes())?;
    let target = |place: SectionPlace, bytes: u64| {
        in_device(place).ok_or_else(|| shape(resolver.what, format!("target {index} is in the host arena")))?;
        resolver.section(place, index, heads * bytes)
    };
    let header_bytes = closed.header_bytes(geometry);
    let header = match job.into.header {
        Some(header) if header_bytes > 0 => Some(target(header, header_bytes)?),
        None if header_bytes == 0 => None,
        header => return Err(shape(resolver.what, format!("header section {index}: {header:?}"))),
    };
    let scale = target(job.into.scale, closed.scale_bytes(geometry))?;
    let codes = target(job.into.codes, closed.code_bytes(geometry))?;
    check_section(resolver.what, index, (job.verdict.offset, job.verdict.bytes), 4, 4)?;
    let verdict = resolver.address(job.verdict, 4)?;
    let places = [Some(job.exact), job.into.header, Some(job.into.scale), Some(job.into.codes)];
    ranges.extend(places.into_iter().flatten().filter_map(in_device));
    ranges.push(job.verdict);
    let side_bytes = geometry.section_bytes() / heads / 2;
    for head in 0..heads {
        for side in Side::ALL {
            let is_value = side == Side::Value;
            let form = if is_value { closed.values } else { closed.keys };
            let scales = match header {
                Some(header) if !is_value => header.add(head * header_bytes),
                _ => scale.add(head * closed.scale_bytes(geometry)).add(
                    // Keys without a header have their scales first.
                    if is_value { closed.key_scale_bytes(geometry) } else { 0 },
                ),
            };
            let within = if is_value { closed.key_code_bytes(geometry) } else { 0 };
            parts.push((
                form,
                Part {
                    values: exact.add((2 * head + u64::from(is_value)) * side_bytes),
                    scales,
                    codes: codes.add(head * closed.code_bytes(geometry) + within),
                    verdict,
                    grid: Grid::new(side, geometry.head_dim, geometry.block_tokens),
                    by_lane: form == Codes::Int8 && !is_value,
                },
            ));
        }
    }
    Ok(verdict)
}
