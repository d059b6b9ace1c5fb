//! One step: the rows of several sequences through every layer.
//!
//! | file | part |
//! |---|---|
//! | `step` | the step: rows in, layers, logits out |
//! | `places` | where its blocks are, and whether they still were afterwards |
//! | `layers` | attention of each layer |

mod layers;
mod places;

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

use layers::LayerRun;
use places::{Places, lost_blocks};

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
