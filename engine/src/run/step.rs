//! One step: the rows of several sequences through every layer.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use cache_core::miss::MissReason;
use gpu_tier::DeviceError;
use gpu_tier::attention::closed::{AttendMixed, Encode, FITS};
use gpu_tier::attention::{Accumulator, Append, Attention, Finish, Geometry, SPAN_TOKENS};
use gpu_tier::cpu::math;
use gpu_tier::device::{DeviceBuffer, Stream};
use kvtier_sdk::cache::{BlockPlace, CacheError, KvCache};
use zerocopy::IntoBytes;

use crate::error::EngineError;
use crate::matrix::{Activations, Width};
use crate::model::Model;
use crate::model::weights::{Compute, Layer};
use crate::run::area::{AreaPlan, StepArea};
use crate::run::closing::{Closing, WINDOW};
use crate::run::paging::{self, LoadedBytes, Pager, Paging, PagingEnd, View};
use crate::run::tables::{Caches, Tables};

/// Rows of the head computed at once: bounds the memory of `[rows, vocabulary]` logits.
const HEAD_ROWS: usize = 16;

/// Which rows' logits are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Logits {
    /// None.
    None,
    /// Of the last row.
    Last,
    /// Of every row.
    All,
}

/// Consecutive positions of one sequence to compute in a step. Their blocks are open on the device, and so are the closed ones of blocks that
/// they fill and read closed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment<'a> {
    pub(crate) tables: &'a Tables,
    pub(crate) tokens: &'a [u32],
    pub(crate) first_position: u32,
    pub(crate) logits: Logits,
}

impl Segment<'_> {
    fn positions(&self) -> Range<u32> {
        self.first_position..self.first_position + self.tokens.len() as u32
    }

    /// Blocks that the step closes while it computes them.
    fn closes(&self) -> Range<u32> {
        self.tables.closed.as_ref().map_or(0..0, |table| table.due(&self.positions()))
    }
}

/// How a step ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum StepEnd {
    /// Everything was computed; logits were handed out. What travelled for each segment.
    Done(Vec<LoadedBytes>),
    /// Blocks were lost, so the results were thrown away.
    Lost(Vec<LostBlock>),
    /// Blocks, by segment, do not fit the closed form, so the results were thrown away.
    StaysRaw(Vec<(usize, u32)>),
}

/// A block that a step needed and that has no copy left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LostBlock {
    /// Index of the segment.
    pub(crate) segment: usize,
    /// The block.
    pub(crate) block: u32,
    /// Why.
    pub(crate) reason: MissReason,
}

/// Why a step stopped between its layers.
enum StepStop {
    Failed(EngineError),
    Lost(LostBlock),
}

impl From<EngineError> for StepStop {
    fn from(error: EngineError) -> StepStop {
        StepStop::Failed(error)
    }
}

impl From<DeviceError> for StepStop {
    fn from(error: DeviceError) -> StepStop {
        StepStop::Failed(error.into())
    }
}

/// What a step computes with.
pub(crate) struct Stepper {
    pub(crate) model: Arc<Model>,
    pub(crate) compute: Compute,
    pub(crate) device: Arc<dyn Attention>,
    pub(crate) caches: Caches,
    pub(crate) geometry: Geometry,
    pub(crate) plan: AreaPlan,
    pub(crate) area: DeviceBuffer,
    activations: Activations,
    buffers: Buffers,
}

/// Host-side activations, `[rows, ...]`, grown to the largest step.
#[derive(Default)]
struct Buffers {
    hidden: Vec<f32>,
    normed: Vec<f32>,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    attended: Vec<f32>,
    projected: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    logits: Vec<f32>,
    angles: Vec<(f32, f32)>,
}

impl Stepper {
    pub(crate) fn new(
        model: Arc<Model>,
        compute: Compute,
        device: Arc<dyn Attention>,
        caches: Caches,
        geometry: Geometry,
        plan: AreaPlan,
        area: DeviceBuffer,
    ) -> Stepper {
        let activations = if model.needs_f32() { Activations::new() } else { Activations::integers_only() };
        let activations = activations.with_width(model.path.width().unwrap_or(Width::Int16));
        let buffers = Buffers::default();
        Stepper { model, compute, device, caches, geometry, plan, area, activations, buffers }
    }

    /// Runs all segments through the model. `deliver(segment, row, logits)` gets the wanted rows once it is certain that no block
    /// changed under the computation.
    pub(crate) fn run(
        &mut self,
        segments: &[Segment<'_>],
        deliver: &mut dyn FnMut(usize, u32, &[f32]),
    ) -> Result<StepEnd, EngineError> {
        let rows: usize = segments.iter().map(|segment| segment.tokens.len()).sum();
        let places = segments.iter().map(|segment| Places::of(&self.caches, segment)).collect::<Result<Vec<_>, _>>()?;
        let lost = lost_blocks(&places);
        if !lost.is_empty() {
            return Ok(StepEnd::Lost(lost));
        }
        self.embed(segments);
        let area = StepArea::new(&self.plan, &self.geometry, self.area.range(), rows as u32);
        let (device, caches) = (Arc::clone(&self.device), self.caches.clone());
        let mut run = LayerRun::new(&*device, &caches, self, segments, &places, area);
        for layer in 0..self.model.config.layers {
            match self.layer(layer, rows, &mut run) {
                Ok(()) => {}
                Err(StepStop::Failed(error)) => return Err(error),
                Err(StepStop::Lost(lost)) => return Ok(StepEnd::Lost(vec![lost])),
            }
        }
        let loaded = run.pagers.iter().map(Pager::loaded).collect();
        let stays_raw = run.stays_raw(self.model.config.layers)?;
        drop(run);
        let moved = self.moved_blocks(segments, &places);
        if !moved.is_empty() {
            return Ok(StepEnd::Lost(moved));
        }
        if !stays_raw.is_empty() {
            return Ok(StepEnd::StaysRaw(stays_raw));
        }
        self.deliver_logits(segments, deliver);
        Ok(StepEnd::Done(loaded))
    }

    fn embed(&mut self, segments: &[Segment<'_>]) {
        let width = self.model.config.width as usize;
        let rope = &self.model.config.rope;
        let buffers = &mut self.buffers;
        buffers.hidden.clear();
        buffers.angles.clear();
        for segment in segments {
            for (index, token) in segment.tokens.iter().enumerate() {
                let start = buffers.hidden.len();
                buffers.hidden.resize(start + width, 0.0);
                self.model.embeddings.row(*token as usize, &mut buffers.hidden[start..]);
                rope.angles(segment.first_position + index as u32, &mut buffers.angles);
            }
        }
    }

    fn layer(&mut self, index: u32, rows: usize, run: &mut LayerRun<'_>) -> Result<(), StepStop> {
        let model = Arc::clone(&self.model);
        let layer = &model.layers[index as usize];
        self.project_attention(layer, rows);
        run.attend(index, &self.buffers)?;
        self.buffers.attended.resize(rows * model.config.query_width(), 0.0);
        let attended = self.buffers.attended.as_mut_bytes();
        run.device.download(Stream::Compute, run.area.output, attended).map_err(EngineError::from)?;
        self.project_output(layer, rows);
        self.feed_forward(layer, rows);
        Ok(())
    }

    /// Norm, query, key and value projections, rotation.
    fn project_attention(&mut self, layer: &Layer, rows: usize) {
        let config = &self.model.config;
        let buffers = &mut self.buffers;
        norm_rows(&self.compute, &buffers.hidden, &layer.attention_norm, config.norm_epsilon, &mut buffers.normed);
        buffers.queries.resize(rows * config.query_width(), 0.0);
        buffers.keys.resize(rows * config.kv_width(), 0.0);
        buffers.values.resize(rows * config.kv_width(), 0.0);
        self.compute.project(
            &buffers.normed,
            rows,
            &mut self.activations,
            &mut [
                (&layer.query, &mut buffers.queries),
                (&layer.key, &mut buffers.keys),
                (&layer.value, &mut buffers.values),
            ],
        );
        let pairs = config.rope.dimensions() as usize / 2;
        let head_dim = config.head_dim as usize;
        for (heads, width) in [(&mut buffers.queries, config.query_width()), (&mut buffers.keys, config.kv_width())] {
            for (row, angles) in heads.chunks_exact_mut(width).zip(buffers.angles.chunks_exact(pairs)) {
                row.chunks_exact_mut(head_dim).for_each(|head| config.rope.rotate(head, angles));
            }
        }
    }

    fn project_output(&mut self, layer: &Layer, rows: usize) {
        let buffers = &mut self.buffers;
        buffers.projected.resize(rows * self.model.config.width as usize, 0.0);
        let targets = &mut [(&layer.output, buffers.projected.as_mut_slice())];
        self.compute.project(&buffers.attended, rows, &mut self.activations, targets);
        add(&mut buffers.hidden, &buffers.projected);
    }

    fn feed_forward(&mut self, layer: &Layer, rows: usize) {
        let config = &self.model.config;
        let buffers = &mut self.buffers;
        norm_rows(&self.compute, &buffers.hidden, &layer.feed_forward_norm, config.norm_epsilon, &mut buffers.normed);
        let width = config.feed_forward as usize;
        buffers.gate.resize(rows * width, 0.0);
        buffers.up.resize(rows * width, 0.0);
        self.compute.project(
            &buffers.normed,
            rows,
            &mut self.activations,
            &mut [(&layer.gate, &mut buffers.gate), (&layer.up, &mut buffers.up)],
        );
        gate_rows(&self.compute, width, &mut buffers.gate, &buffers.up);
        let targets = &mut [(&layer.down, buffers.projected.as_mut_slice())];
        self.compute.project(&buffers.gate, rows, &mut self.activations, targets);
        add(&mut buffers.hidden, &buffers.projected);
    }

    /// Blocks whose slot changed hands while the step read them.
    fn moved_blocks(&self, segments: &[Segment<'_>], places: &[Places]) -> Vec<LostBlock> {
        let mut moved = Vec::new();
        for (index, (segment, places)) in segments.iter().zip(places).enumerate() {
            for block in 0..places.lossless.len() {
                if !places.are_current(&self.caches, segment.tables, block) {
                    moved.push(LostBlock { segment: index, block: block as u32, reason: MissReason::LeaseLost });
                }
            }
        }
        moved
    }

    fn deliver_logits(&mut self, segments: &[Segment<'_>], deliver: &mut dyn FnMut(usize, u32, &[f32])) {
        let config = &self.model.config;
        let (width, vocabulary) = (config.width as usize, config.vocabulary as usize);
        let mut wanted = Vec::new();
        let mut first = 0;
        for (index, segment) in segments.iter().enumerate() {
            let rows = segment.tokens.len();
            let from = match segment.logits {
                Logits::None => rows,
                Logits::Last => rows - 1,
                Logits::All => 0,
            };
            wanted.extend((from..rows).map(|row| (index, row as u32, first + row)));
            first += rows;
        }
        for batch in wanted.chunks(HEAD_ROWS) {
            let buffers = &mut self.buffers;
            let hidden: Vec<f32> =
                batch.iter().flat_map(|(_, _, row)| &buffers.hidden[row * width..(row + 1) * width]).copied().collect();
            norm_rows(&self.compute, &hidden, &self.model.output_norm, config.norm_epsilon, &mut buffers.normed);
            buffers.logits.resize(batch.len() * vocabulary, 0.0);
            let targets = &mut [(&self.model.head, buffers.logits.as_mut_slice())];
            self.compute.project(&buffers.normed, batch.len(), &mut self.activations, targets);
            for ((segment, row, _), logits) in batch.iter().zip(buffers.logits.chunks_exact(vocabulary)) {
                deliver(*segment, *row, logits);
            }
        }
    }
}

/// Where a sequence's blocks are for one step, in each form, as far as any of its rows sees them.
struct Places {
    lossless: Vec<BlockPlace>,
    reads_lossless: Vec<bool>,
    /// Where blocks are closed.
    closed: Vec<BlockPlace>,
    reads_closed: Vec<bool>,
}

impl Places {
    fn of(caches: &Caches, segment: &Segment<'_>) -> Result<Places, CacheError> {
        let positions = segment.positions();
        // Later blocks, which a repair goes past, are nothing to the step.
        let blocks = positions.end.div_ceil(caches.block_tokens) as usize;
        let mut lossless = caches.lossless.places(segment.tables.lossless)?;
        lossless.truncate(blocks);
        let (Some(table), Some(cache)) = (&segment.tables.closed, &caches.closed) else {
            let reads_lossless = vec![true; lossless.len()];
            return Ok(Places { lossless, reads_lossless, closed: Vec::new(), reads_closed: Vec::new() });
        };
        let mut closed = cache.cache.places(table.id)?;
        closed.truncate(blocks);
        let is_there = |places: &[BlockPlace], block: usize| {
            places.get(block).is_some_and(|place| !matches!(place, BlockPlace::Absent))
        };
        let window = table.window_start(positions.start) as usize;
        let closes = table.window_start(positions.end - 1) as usize;
        let reads_lossless =
            |block: usize| is_there(&lossless, block) && (block == 0 || block >= window || !is_there(&closed, block));
        let reads_closed = |block: usize| is_there(&closed, block) && (block < closes || !is_there(&lossless, block));
        let reads_lossless: Vec<bool> = (0..lossless.len()).map(reads_lossless).collect();
        let reads_closed = (0..closed.len()).map(reads_closed).collect();
        Ok(Places { reads_lossless, reads_closed, lossless, closed })
    }

    /// The places of a block that the step reads, lossless or closed.
    fn read(&self, block: usize) -> impl Iterator<Item = (bool, &BlockPlace)> {
        let of = |places: &'_ [BlockPlace], reads: &[bool]| {
            reads.get(block).is_some_and(|reads| *reads) && places.len() > block
        };
        let lossless = of(&self.lossless, &self.reads_lossless).then(|| (false, &self.lossless[block]));
        let closed = of(&self.closed, &self.reads_closed).then(|| (true, &self.closed[block]));
        lossless.into_iter().chain(closed)
    }

    /// True when what was read of a block was the block.
    fn are_current(&self, caches: &Caches, tables: &Tables, block: usize) -> bool {
        self.read(block).all(|(is_closed, place)| match (&tables.closed, &caches.closed) {
            (Some(table), Some(closed)) if is_closed => closed.cache.check(table.id, block as u32, place),
            _ => caches.lossless.check(tables.lossless, block as u32, place),
        })
    }
}

/// What stays the same over the layers of one step.
struct LayerRun<'a> {
    device: &'a dyn Attention,
    geometry: Geometry,
    closing: Option<Closing>,
    area: StepArea,
    jobs: Vec<Job>,
    pagers: Vec<Pager<'a>>,
    /// Blocks that the step closes, with the segment that they belong to.
    closes: Vec<(usize, u32)>,
}

/// One segment's rows in the step area.
struct Job {
    first_row: u64,
    rows: u32,
    first_position: u32,
    into: Accumulator,
}

impl<'a> LayerRun<'a> {
    fn new(
        device: &'a dyn Attention,
        caches: &'a Caches,
        stepper: &Stepper,
        segments: &[Segment<'_>],
        places: &'a [Places],
        area: StepArea,
    ) -> LayerRun<'a> {
        let geometry = stepper.geometry;
        let plan = &stepper.plan;
        let tokens = |segment: &Segment<'_>| segment.positions().end;
        let sizes: Vec<(u32, u32)> = segments
            .iter()
            .map(|segment| (segment.tokens.len() as u32, tokens(segment).div_ceil(SPAN_TOKENS)))
            .collect();
        let mut first_row = 0;
        let jobs = segments.iter().zip(area.accumulators(&geometry, &sizes)).map(|(segment, into)| {
            let rows = segment.tokens.len() as u32;
            let job = Job { first_row, rows, first_position: segment.first_position, into };
            first_row += u64::from(rows);
            job
        });
        let jobs = jobs.collect();
        let slots_each = u64::from(plan.paging_slots / segments.len() as u32) * plan.paging_slot_bytes;
        let closing = caches.closed.as_ref().map(|closed| closed.closing);
        let layers = stepper.model.config.layers;
        let with = Paging { device, geometry, closing, layers, slot_bytes: plan.paging_slot_bytes };
        let share = |cache: &dyn KvCache| cache.stage_capacity() / segments.len() as u32;
        let pagers = segments.iter().zip(places).enumerate().map(|(index, (segment, places))| {
            let slots = area.paging.slice(index as u64 * slots_each, slots_each);
            let mut views = vec![View {
                cache: &*caches.lossless,
                sequence: segment.tables.lossless,
                shape: caches.lossless.shape(),
                places: &places.lossless,
                reads: places.reads_lossless.clone(),
                staged_max: share(&*caches.lossless),
                staged: 0,
            }];
            if let (Some(table), Some(closed)) = (&segment.tables.closed, &caches.closed) {
                views.push(View {
                    cache: &*closed.cache,
                    sequence: table.id,
                    shape: closed.cache.shape(),
                    places: &places.closed,
                    reads: places.reads_closed.clone(),
                    staged_max: share(&*closed.cache),
                    staged: 0,
                });
            }
            Pager::new(with, views, slots, tokens(segment))
        });
        let pagers = pagers.collect();
        let closes = segments.iter().enumerate();
        let closes = closes.flat_map(|(index, segment)| segment.closes().map(move |block| (index, block))).collect();
        LayerRun { device, geometry, closing, area, jobs, pagers, closes }
    }

    /// Writes the new keys and values of `layer` into their blocks and attends; the result is in the area's output.
    fn attend(&mut self, layer: u32, buffers: &Buffers) -> Result<(), StepStop> {
        self.device.upload(Stream::Compute, buffers.queries.as_bytes(), self.area.queries)?;
        self.device.upload(Stream::Compute, buffers.keys.as_bytes(), self.area.keys)?;
        self.device.upload(Stream::Compute, buffers.values.as_bytes(), self.area.values)?;
        self.pagers.iter_mut().for_each(|pager| pager.begin_layer(layer));
        let kv_row = 4 * u64::from(self.geometry.kv_heads) * u64::from(self.geometry.head_dim);
        let appends: Vec<Append<'_>> = self
            .jobs
            .iter()
            .zip(&self.pagers)
            .map(|(job, pager)| Append {
                keys: self.area.keys.slice(job.first_row * kv_row, u64::from(job.rows) * kv_row),
                values: self.area.values.slice(job.first_row * kv_row, u64::from(job.rows) * kv_row),
                rows: job.rows,
                first_position: job.first_position,
                sections: pager.sections(),
            })
            .collect();
        self.device.append(Stream::Compute, &self.geometry, &appends)?;
        self.close(layer)?;
        self.attend_resident(layer)?;
        for index in 0..self.jobs.len() {
            if !self.pagers[index].is_resident() {
                let attend = self.attend_job(index);
                self.pagers[index].attend(layer, &attend).map_err(|end| match end {
                    PagingEnd::Failed(error) => StepStop::Failed(error),
                    PagingEnd::Lost { block, reason } => StepStop::Lost(LostBlock { segment: index, block, reason }),
                })?;
            }
        }
        let query_row = self.query_row();
        let finishes: Vec<Finish> = self
            .jobs
            .iter()
            .map(|job| Finish {
                from: job.into,
                rows: job.rows,
                first_position: job.first_position,
                output: self.area.output.slice(job.first_row * query_row, u64::from(job.rows) * query_row),
            })
            .collect();
        Ok(self.device.finish(Stream::Compute, &self.geometry, &finishes)?)
    }

    /// Encodes this layer of the blocks that the step fills and reads closed.
    fn close(&self, layer: u32) -> Result<(), EngineError> {
        let Some(closing) = self.closing.filter(|_| !self.closes.is_empty()) else {
            return Ok(());
        };
        let first = u64::from(layer) * self.closes.len() as u64;
        let encode = |(index, (segment, block)): (usize, &(usize, u32))| {
            let (pager, block) = (&self.pagers[*segment], *block as usize);
            Encode {
                exact: pager.sections()[block].expect("what a step fills is on the device"),
                into: pager.closed()[block].expect("its closed block is open on the device"),
                verdict: self.area.verdicts.slice(4 * (first + index as u64), 4),
            }
        };
        let jobs: Vec<Encode> = self.closes.iter().enumerate().map(encode).collect();
        Ok(self.device.encode(Stream::Compute, &self.geometry, closing.codes(layer), &jobs)?)
    }

    /// Blocks that the step was to close and that do not fit the form.
    fn stays_raw(&self, layers: u32) -> Result<Vec<(usize, u32)>, EngineError> {
        let mut verdicts = vec![FITS; layers as usize * self.closes.len()];
        if verdicts.is_empty() {
            return Ok(Vec::new());
        }
        let bytes = self.area.verdicts.slice(0, 4 * verdicts.len() as u64);
        self.device.download(Stream::Compute, bytes, verdicts.as_mut_bytes())?;
        let fits = |index: usize| verdicts[index..].iter().step_by(self.closes.len()).all(|verdict| *verdict == FITS);
        let closes = self.closes.iter().enumerate();
        Ok(closes.filter(|(index, _)| !fits(*index)).map(|(_, block)| *block).collect())
    }

    /// All sequences of which nothing must travel, in one launch.
    fn attend_resident(&self, layer: u32) -> Result<(), EngineError> {
        let resident: Vec<usize> = (0..self.jobs.len()).filter(|index| self.pagers[*index].is_resident()).collect();
        let spans: Vec<Vec<u32>> = resident.iter().map(|index| self.pagers[*index].all_spans()).collect();
        let mut jobs = Vec::with_capacity(resident.len());
        for (index, spans) in resident.iter().zip(&spans) {
            let pager = &self.pagers[*index];
            jobs.push(AttendMixed {
                exact: pager.sections(),
                closed: pager.closed(),
                spans,
                ..self.attend_job(*index)
            });
        }
        let codes = self.closing.map(|closing| closing.codes(layer));
        Ok(paging::attend(self.device, &self.geometry, codes, &jobs)?)
    }

    /// A segment's rows, over no blocks yet.
    fn attend_job(&self, index: usize) -> AttendMixed<'static> {
        let job = &self.jobs[index];
        let query_row = self.query_row();
        AttendMixed {
            queries: self.area.queries.slice(job.first_row * query_row, u64::from(job.rows) * query_row),
            rows: job.rows,
            first_position: job.first_position,
            exact: &[],
            closed: &[],
            window: WINDOW,
            spans: &[],
            into: job.into,
        }
    }

    fn query_row(&self) -> u64 {
        4 * u64::from(self.geometry.heads) * u64::from(self.geometry.head_dim)
    }
}

/// Blocks that the step reads and that have no copy left.
fn lost_blocks(places: &[Places]) -> Vec<LostBlock> {
    let mut lost = Vec::new();
    for (segment, places) in places.iter().enumerate() {
        for block in 0..places.lossless.len() {
            let reason = places.read(block).find_map(|(_, place)| match place {
                BlockPlace::Lost(reason) => Some(*reason),
                _ => None,
            });
            lost.extend(reason.map(|reason| LostBlock { segment, block: block as u32, reason }));
        }
    }
    lost
}

/// RMS norm of every row of `x` (`[rows, weight.len()]`).
fn norm_rows(compute: &Compute, x: &[f32], weight: &[f32], epsilon: f32, out: &mut Vec<f32>) {
    out.resize(x.len(), 0.0);
    for_rows(compute, weight.len(), out, &|first, out| {
        let x = &x[first..first + out.len()];
        for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
            math::rms_norm(compute.isa, x, weight, epsilon, out);
        }
    });
}

/// `gate = silu(gate) * up`.
fn gate_rows(compute: &Compute, width: usize, gate: &mut [f32], up: &[f32]) {
    for_rows(compute, width, gate, &|first, gate| {
        math::silu_multiply(compute.isa, gate, &up[first..first + gate.len()])
    });
}

/// Hands whole rows of `out` to the workers; `work(index of the first element, part)`. A few rows stay on the caller.
fn for_rows(compute: &Compute, width: usize, out: &mut [f32], work: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    let rows = out.len() / width;
    let workers = compute.workers.count();
    if rows < 4 || workers == 1 {
        return work(0, out);
    }
    let part = rows.div_ceil(workers) * width;
    let parts: Vec<Mutex<&mut [f32]>> = out.chunks_mut(part).map(Mutex::new).collect();
    compute.workers.run(&|worker| {
        if let Some(slot) = parts.get(worker) {
            let mut rows = slot.lock().expect("each part is one worker's");
            work(worker * part, &mut rows);
        }
    });
}

/// Residual connection.
fn add(hidden: &mut [f32], update: &[f32]) {
    hidden.iter_mut().zip(update).for_each(|(hidden, update)| *hidden += update);
}
