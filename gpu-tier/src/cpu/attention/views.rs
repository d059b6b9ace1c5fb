//! From jobs to addresses: every range of a launch is checked here, before any work starts.

use super::super::device::CpuDevice;
use super::super::memory::Access;
use super::append::Run;
use super::closed::places::{self, Task};
use super::closed::{ClosedSpan, ClosedUnit};
use super::spans::Span;
use super::unit::{PIECE_TOKENS, PIECES, SPAN, Unit, shifted};
pub(super) use crate::attention::checks::{check_closed, check_disjoint, check_launch, check_section, missing, shape};
use crate::attention::closed::{AttendMixed, Closed};
use crate::attention::{Accumulator, Append, Finish, Geometry, SectionPlace};
use crate::device::DeviceRange;
use crate::error::DeviceError;

/// Rows that a unit of a running accumulator takes: at least this many query vectors, so that widening the span costs
/// a few per cent of using it.
const RUNNING_VECTORS: usize = 96;
/// Address of an f32 array of at least `floats` elements. Errors: shape or range.
fn array(
    access: &mut Access<'_>,
    what: &'static str,
    range: DeviceRange,
    floats: u64,
) -> Result<*mut f32, DeviceError> {
    if range.bytes < floats.saturating_mul(4) || !range.offset.is_multiple_of(4) {
        return Err(shape(what, format!("{range:?} cannot hold {floats} f32")));
    }
    Ok(access.address(range)?.cast())
}

/// Element strides inside a section.
pub(super) struct Layout {
    /// Bytes of one KV head: its keys, then its values.
    pub(super) head_bytes: usize,
    /// Bytes of the keys of one head.
    pub(super) key_bytes: usize,
    pub(super) element_bytes: usize,
}

impl Layout {
    pub(super) fn of(geometry: &Geometry) -> Layout {
        let head_bytes = (geometry.section_bytes() / u64::from(geometry.kv_heads)) as usize;
        Layout { head_bytes, key_bytes: head_bytes / 2, element_bytes: geometry.element.bytes() as usize }
    }
}

/// Splits appends into runs of one block and head.
pub(super) fn append_runs(
    access: &mut Access<'_>,
    geometry: &Geometry,
    jobs: &[Append<'_>],
) -> Result<Runs, DeviceError> {
    let layout = Layout::of(geometry);
    let (kv_heads, head_dim) = (geometry.kv_heads as usize, geometry.head_dim as usize);
    let block_tokens = geometry.block_tokens as usize;
    let mut runs = Vec::new();
    let mut written = Vec::new();
    for job in jobs {
        let row = kv_heads * head_dim;
        let floats = u64::from(job.rows) * row as u64;
        let keys = array(access, "append", job.keys, floats)?;
        let values = array(access, "append", job.values, floats)?;
        let mut done = 0;
        while done < job.rows as usize {
            let position = job.first_position as usize + done;
            let (block, slot) = (position / block_tokens, position % block_tokens);
            let rows = (block_tokens - slot).min(job.rows as usize - done);
            let section = match job.sections.get(block) {
                Some(Some(SectionPlace::Device(range))) => *range,
                Some(Some(SectionPlace::Host(_))) => {
                    return Err(shape("append", format!("section {block} is in the host arena")));
                }
                _ => return Err(missing("append", block)),
            };
            let at = (section.offset, section.bytes);
            check_section("append", block, at, geometry.section_bytes(), geometry.element.bytes())?;
            written.push(section);
            let section = access.address(section)?;
            for head in 0..kv_heads {
                let stored_keys = section.wrapping_add(head * layout.head_bytes);
                let source = done * row + head * head_dim;
                runs.push(Run {
                    element: geometry.element,
                    head_dim,
                    block_tokens,
                    rows,
                    slot,
                    row,
                    keys: keys.wrapping_add(source),
                    values: values.wrapping_add(source),
                    stored_keys,
                    stored_values: stored_keys.wrapping_add(layout.key_bytes),
                });
            }
            done += rows;
        }
    }
    check_disjoint("append", written)?;
    Ok(Runs(runs))
}

/// All runs of one launch.
pub(super) struct Runs(Vec<Run>);

// SAFETY: the addresses are pinned by the launch and valid on every thread.
unsafe impl Sync for Runs {}

impl Runs {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn as_slice(&self) -> &[Run] {
        &self.0
    }
}

/// A launch of `attend`.
pub(super) struct Work {
    pub(super) geometry: Geometry,
    /// Forms of closed blocks, if rows may read some.
    pub(super) closed: Option<Closed>,
    jobs: Vec<Job>,
    /// Number of units up to and including each job.
    ends: Vec<usize>,
    /// KV bytes that will be read from device memory.
    pub(super) device_bytes: u64,
    /// KV bytes that will be read in place.
    pub(super) host_bytes: u64,
}

// SAFETY: the addresses are pinned by the launch and valid on every thread.
unsafe impl Sync for Work {}

/// One sequence of a launch.
struct Job {
    queries: *const f32,
    targets: *mut f32,
    rows: usize,
    first_position: i64,
    target_row: usize,
    target_head: usize,
    /// f32 between two spans' targets; `None` for a running state.
    target_span: Option<usize>,
    /// Rows of a unit.
    tile_rows: usize,
    spans: Vec<Span>,
}

/// Checks a launch of `attend` or `attend_mixed` and resolves all its addresses.
pub(super) fn attend_work(
    device: &CpuDevice,
    access: &mut Access<'_>,
    geometry: &Geometry,
    closed: Option<Closed>,
    jobs: &[AttendMixed<'_>],
) -> Result<Work, DeviceError> {
    if closed.is_some() {
        check_closed("attend", geometry)?;
    }
    let mut work = Work {
        geometry: *geometry,
        closed,
        jobs: Vec::with_capacity(jobs.len()),
        ends: Vec::new(),
        device_bytes: 0,
        host_bytes: 0,
    };
    let (heads, group) = (geometry.heads as usize, (geometry.heads / geometry.kv_heads) as usize);
    let partial = geometry.head_dim as usize + 2;
    let into = |job: &AttendMixed<'_>| match job.into {
        Accumulator::Partials { range, .. } | Accumulator::Running { range } => range,
    };
    check_disjoint("attend", jobs.iter().map(into).collect())?;
    let mut units = 0;
    for job in jobs {
        let rows = job.rows as usize;
        let vectors = u64::from(job.rows) * heads as u64;
        let queries = array(access, "attend", job.queries, vectors * u64::from(geometry.head_dim))?;
        let (range, dimension) = match job.into {
            Accumulator::Partials { range, spans } => (range, Some(spans)),
            Accumulator::Running { range } => (range, None),
        };
        let per_vector = partial as u64 * u64::from(dimension.unwrap_or(1));
        let targets = array(access, "attend", range, vectors.saturating_mul(per_vector))?;
        let mut before = None;
        let mut spans = Vec::with_capacity(job.spans.len());
        for &span in job.spans {
            if dimension.is_some_and(|dimension| span >= dimension) {
                return Err(shape("attend", format!("span {span} in a store of {dimension:?}")));
            }
            if dimension.is_none() && before.is_some_and(|before| span <= before) {
                return Err(shape("attend", format!("span {span} after {before:?} into a running state")));
            }
            before = before.max(Some(span));
            spans.push(Span::resolve(device, access, &mut work, job, span)?);
        }
        let mut once: Vec<u32> = job.spans.to_vec();
        once.sort_unstable();
        if let Some(pair) = once.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(shape("attend", format!("span {} twice", pair[0])));
        }
        let target_head = partial * dimension.unwrap_or(1) as usize;
        let tile_rows = if dimension.is_some() { rows } else { RUNNING_VECTORS.div_ceil(group) };
        let tiles = if rows == 0 || spans.is_empty() {
            0
        } else if dimension.is_some() {
            spans.len()
        } else {
            rows.div_ceil(tile_rows)
        };
        units += tiles * geometry.kv_heads as usize;
        work.ends.push(units);
        work.jobs.push(Job {
            queries,
            targets,
            rows,
            first_position: i64::from(job.first_position),
            target_row: heads * target_head,
            target_head,
            target_span: dimension.map(|_| partial),
            tile_rows,
            spans,
        });
    }
    Ok(work)
}

impl Work {
    /// Units of the launch.
    pub(super) fn units(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Makes unit `i` and runs it: one span into a partial, or all spans in order into a running state. `more`: the
    /// same worker goes on with unit `i + 1`.
    pub(super) fn run(&self, i: usize, more: bool, mut run: impl FnMut(Task<'_>)) {
        let job = self.ends.partition_point(|end| *end <= i);
        let start = if job == 0 { 0 } else { self.ends[job - 1] };
        let (unit, of_job, job) = (i - start, self.ends[job] - start, &self.jobs[job]);
        let kv_heads = self.geometry.kv_heads as usize;
        let kv_head = unit % kv_heads;
        if job.target_span.is_some() {
            // KV heads innermost: they are neighbours in a section.
            let next = (more && unit + 1 < of_job).then(|| {
                let (span, kv_head) = ((unit + 1) / kv_heads, (unit + 1) % kv_heads);
                (&job.spans[span], kv_head)
            });
            self.run_span(job, &job.spans[unit / kv_heads], kv_head, 0..job.rows, next, &mut run);
        } else {
            // The last rows see most: they come first, so that no worker starts a long unit at the end.
            let tile = of_job / kv_heads - 1 - unit / kv_heads;
            let rows = tile * job.tile_rows..((tile + 1) * job.tile_rows).min(job.rows);
            for (at, span) in job.spans.iter().enumerate() {
                let next = job.spans.get(at + 1).map(|next| (next, kv_head));
                self.run_span(job, span, kv_head, rows.clone(), next, &mut run);
            }
        }
    }

    fn run_span(
        &self,
        job: &Job,
        span: &Span,
        kv_head: usize,
        rows: std::ops::Range<usize>,
        next: Option<(&Span, usize)>,
        run: &mut impl FnMut(Task<'_>),
    ) {
        let Geometry { heads, kv_heads, head_dim, block_tokens, element, scale } = self.geometry;
        let (head_dim, group) = (head_dim as usize, (heads / kv_heads) as usize);
        let layout = Layout::of(&self.geometry);
        let first_visible = job.first_position + 1 - i64::from(span.index) * SPAN as i64;
        let first_row = rows.start.max(usize::try_from(1 - first_visible).unwrap_or(0));
        let closed_row = span.closed_from.saturating_sub(job.first_position);
        let closed_row = usize::try_from(closed_row).unwrap_or(0).clamp(rows.start, rows.end);
        let span_offset = job.target_span.map_or(0, |stride| span.index as usize * stride);
        let unit = |first_row, end_row| Unit {
            element,
            head_dim,
            key_stride: block_tokens as usize,
            scale,
            pieces: shifted(&span.pieces, kv_head * layout.head_bytes),
            next: next.map(|(next, kv_head)| shifted(&next.pieces, kv_head * layout.head_bytes)),
            queries: job.queries.wrapping_add(kv_head * group * head_dim),
            query_row: heads as usize * head_dim,
            targets: job.targets.wrapping_add(kv_head * group * job.target_head + span_offset),
            target_row: job.target_row,
            target_head: job.target_head,
            first_row,
            end_row,
            group,
            first_visible,
            fold: job.target_span.is_none() && span.index > 0,
        };
        if first_row < closed_row {
            run(Task::Exact(&unit(first_row, closed_row)));
        }
        if let (Some(closed), Some(forms)) = (span.closed, self.closed)
            && closed_row < rows.end
        {
            let shifted = |span: &ClosedSpan, kv_head| places::shifted(&self.geometry, forms, span, kv_head);
            run(Task::Closed(&ClosedUnit {
                unit: unit(closed_row, rows.end),
                forms,
                span: shifted(&closed, kv_head),
                next: next.and_then(|(next, kv_head)| Some(shifted(next.closed.as_ref()?, kv_head))),
            }));
        }
    }
}

/// One sequence of `finish`.
pub(super) struct FinishJob {
    pub(super) from: *const f32,
    /// f32 between two spans' partials.
    pub(super) stride: usize,
    pub(super) from_row: usize,
    pub(super) from_head: usize,
    pub(super) rows: usize,
    pub(super) output: *mut f32,
    /// Position of row 0; `None` for a running state, which is already merged.
    first_position: Option<usize>,
}

impl FinishJob {
    /// Partials of a row.
    pub(super) fn count(&self, row: usize) -> usize {
        self.first_position.map_or(1, |first| (first + row) / SPAN + 1)
    }
}

/// All sequences of a launch of `finish`.
pub(super) struct FinishWork(Vec<FinishJob>);

// SAFETY: the addresses are pinned by the launch and valid on every thread.
unsafe impl Sync for FinishWork {}

impl FinishWork {
    pub(super) fn as_slice(&self) -> &[FinishJob] {
        &self.0
    }

    pub(super) fn iter(&self) -> std::slice::Iter<'_, FinishJob> {
        self.0.iter()
    }
}

/// Checks a launch of `finish` and resolves its addresses.
pub(super) fn finish_work(
    access: &mut Access<'_>,
    geometry: &Geometry,
    jobs: &[Finish],
) -> Result<FinishWork, DeviceError> {
    let partial = geometry.head_dim as usize + 2;
    check_disjoint("finish", jobs.iter().map(|job| job.output).collect())?;
    let mut work = Vec::with_capacity(jobs.len());
    for job in jobs {
        let vectors = u64::from(job.rows) * u64::from(geometry.heads);
        let (range, dimension) = match job.from {
            Accumulator::Partials { range, spans } => (range, Some(spans)),
            Accumulator::Running { range } => (range, None),
        };
        let last_span = (u64::from(job.first_position) + u64::from(job.rows.max(1)) - 1) / SPAN as u64;
        if dimension.is_some_and(|dimension| last_span >= u64::from(dimension)) {
            return Err(shape("finish", format!("span {last_span} of a store of {dimension:?}")));
        }
        let per_vector = partial as u64 * u64::from(dimension.unwrap_or(1));
        let from_head = partial * dimension.unwrap_or(1) as usize;
        work.push(FinishJob {
            from: array(access, "finish", range, vectors.saturating_mul(per_vector))?,
            stride: partial,
            from_row: geometry.heads as usize * from_head,
            from_head,
            rows: job.rows as usize,
            output: array(access, "finish", job.output, vectors * u64::from(geometry.head_dim))?,
            first_position: dimension.map(|_| job.first_position as usize),
        });
    }
    Ok(FinishWork(work))
}

const _: () = assert!(PIECES * PIECE_TOKENS == SPAN);
