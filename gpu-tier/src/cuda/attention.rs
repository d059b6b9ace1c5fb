//! Attention on the device: from jobs to the records of the launchers. Checks are those of the `cpu` device; what is read or
//! written by 16 bytes (all but verdicts) must start at a multiple of 16 besides, and nothing is attended in host memory.

mod encode;
mod spans;

use std::sync::RwLockReadGuard;
use std::sync::atomic::Ordering;

use super::address::DevicePtr;
use super::kernels::{append, attend, attend_mma, finish};
use super::memory::Memory;
use super::{CudaDevice, Shared};
use crate::attention::checks::{check_closed, check_disjoint, check_launch, check_section, missing, shape};
use crate::attention::closed::{AttendMixed, Closed, Encode};
use crate::attention::{
    Accumulator, Append, Attend, Attention, Element, Finish, Geometry, Products, SPAN_TOKENS, SectionPlace,
};
use crate::device::{DeviceRange, Stream};
use crate::error::DeviceError;

/// What kernels read and write at once, in bytes.
const VECTOR_BYTES: u64 = 16;

/// How the elements of queries are stored. All are widened to f32, exactly, before they meet a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum QueryElement {
    /// What [`Attention`] takes.
    #[default]
    F32,
    /// bf16.
    Bf16,
    /// IEEE half precision.
    F16,
}

impl QueryElement {
    /// Bytes of one value.
    pub fn bytes(self) -> u64 {
        match self {
            QueryElement::F32 => 4,
            QueryElement::Bf16 | QueryElement::F16 => 2,
        }
    }
}

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

    /// Address of an array of at least `bytes`.
    fn array(&self, range: DeviceRange, bytes: u64) -> Result<DevicePtr, DeviceError> {
        if range.bytes < bytes {
            return Err(shape(self.what, format!("{range:?} cannot hold {bytes} bytes")));
        }
        self.address(range, VECTOR_BYTES)
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
        formats: attend::Formats,
        jobs: &[AttendMixed<'_>],
    ) -> Result<(), DeviceError> {
        const WHAT: &str = "attend";
        let attend::Formats { queries, closed } = formats;
        check_launch(WHAT, stream, geometry)?;
        self.enter()?;
        if closed.is_some() {
            check_closed(WHAT, geometry)?;
        }
        if self.products == Products::Matrix {
            attend_mma::check(geometry).map_err(|problem| shape(WHAT, problem))?;
        }
        check_disjoint(WHAT, jobs.iter().map(|job| accumulator(job.into).0).collect())?;
        let resolver = self.resolver(WHAT);
        let (mut work, mut bytes) = (Vec::with_capacity(jobs.len()), 0);
        for job in jobs {
            let (range, dimension) = accumulator(job.into);
            spans::check(job, dimension)?;
            let store_spans = dimension.unwrap_or(1);
            let places =
                job.spans.iter().map(|span| spans::resolve(&resolver, geometry, closed, job, *span, &mut bytes));
            work.push(attend::Job {
                queries: resolver.array(job.queries, queries.bytes() * row_elements(geometry, job.rows))?,
                store: resolver.array(range, geometry.accumulator_bytes(job.rows, store_spans))?,
                store_spans,
                rows: job.rows,
                first_position: job.first_position,
                running: dimension.is_none(),
                spans: places.collect::<Result<_, _>>()?,
            });
        }
        let launcher = self.launcher(WHAT, stream);
        match self.products {
            Products::Canonical => attend::launch(launcher, geometry, formats, &work)?,
            Products::Matrix => attend_mma::launch(launcher, geometry, formats, &work)?,
        }
        self.attended.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }
}

/// Elements of queries, or of outputs.
fn row_elements(geometry: &Geometry, rows: u32) -> u64 {
    u64::from(rows) * u64::from(geometry.heads) * u64::from(geometry.head_dim)
}

/// Range of an accumulator, and its spans if it has more than a state.
fn accumulator(of: Accumulator) -> (DeviceRange, Option<u32>) {
    match of {
        Accumulator::Partials { range, spans } => (range, Some(spans)),
        Accumulator::Running { range } => (range, None),
    }
}

impl CudaDevice {
    /// Like [`Attention::attend_mixed`] ([`Attention::attend`] without `closed`), with queries `[rows][heads][head_dim]` of another
    /// element, as engines that compute on the device have them. The bits are those of the same numbers in f32.
    pub fn attend_queries(
        &self,
        stream: Stream,
        geometry: &Geometry,
        queries: QueryElement,
        closed: Option<Closed>,
        jobs: &[AttendMixed<'_>],
    ) -> Result<(), DeviceError> {
        self.shared.attend_forms(stream, geometry, attend::Formats { queries, closed }, jobs)
    }
}

impl Attention for CudaDevice {
    fn products(&self) -> Products {
        self.shared.products
    }

    fn append(&self, stream: Stream, geometry: &Geometry, jobs: &[Append<'_>]) -> Result<(), DeviceError> {
        const WHAT: &str = "append";
        check_launch(WHAT, stream, geometry)?;
        self.shared.enter()?;
        let resolver = self.shared.resolver(WHAT);
        let row = u64::from(geometry.kv_heads) * u64::from(geometry.head_dim);
        let (mut runs, mut written) = (Vec::new(), Vec::new());
        for job in jobs {
            let bytes = 4 * u64::from(job.rows) * row;
            let keys = resolver.array(job.keys, bytes)?;
            let values = resolver.array(job.values, bytes)?;
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
        self.attend_queries(stream, geometry, QueryElement::F32, None, &jobs)
    }

    fn attend_mixed(
        &self,
        stream: Stream,
        geometry: &Geometry,
        closed: Closed,
        jobs: &[AttendMixed<'_>],
    ) -> Result<(), DeviceError> {
        self.attend_queries(stream, geometry, QueryElement::F32, Some(closed), jobs)
    }

    fn encode(&self, stream: Stream, geometry: &Geometry, closed: Closed, jobs: &[Encode]) -> Result<(), DeviceError> {
        const WHAT: &str = "encode";
        check_launch(WHAT, stream, geometry)?;
        self.shared.enter()?;
        check_closed(WHAT, geometry)?;
        if geometry.element != Element::Bf16 {
            return Err(shape(WHAT, format!("sections of {:?}", geometry.element)));
        }
        let mut encoding = encode::Encoding::new(&self.shared, WHAT, geometry, closed);
        for (index, job) in jobs.iter().enumerate() {
            encoding.add(index, job)?;
        }
        let bytes = encoding.launch(stream)?;
        self.shared.copied_out.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
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
            let last_span = (u64::from(job.first_position) + u64::from(job.rows.max(1)) - 1) / u64::from(SPAN_TOKENS);
            if dimension.is_some_and(|dimension| last_span >= u64::from(dimension)) {
                return Err(shape(WHAT, format!("span {last_span} of a store of {dimension:?}")));
            }
            let store_spans = dimension.unwrap_or(1);
            work.push(finish::Job {
                store: resolver.array(range, geometry.accumulator_bytes(job.rows, store_spans))?,
                output: resolver.array(job.output, 4 * row_elements(geometry, job.rows))?,
                store_spans,
                rows: job.rows,
                first_position: job.first_position,
                running: dimension.is_none(),
            });
        }
        finish::launch(self.shared.launcher(WHAT, stream), geometry, &work)
    }
}
