//! How the device budget is divided: one **step area** (queries, outputs, accumulators, paging slots) and block slots for the rest.
//!
//! ```text
//! step area = paging slots             one layer of 64 tokens (or of one block, if larger) each, in both forms where there are two
//!           | accumulators             running state for every row, or partials for every span of a decode step
//!           | q | k | v | out          f32, rows x (heads + 2 kv_heads + heads) x head_dim
//!           | verdicts                 u32 per layer and block that is closed while it is computed
//! ```
//! Where blocks are closed, exact slots hold what a step fills, its window and block 0, and a few more; closed slots have the rest.
//!
//! Each part begins at a multiple of 64 bytes: devices move 16 and more at a time.
//!
//! Bits do not depend on the division: a small budget only means smaller chunks and more copies.

use cache_core::payload::{BlockShape, Plane};
use cache_core::slots::SlotTable;
use gpu_tier::attention::{Accumulator, Geometry, SPAN_TOKENS};
use gpu_tier::device::DeviceRange;

use crate::error::EngineError;
use crate::run::closing::WINDOW;

/// What one row keeps in the area, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AreaPlan {
    /// Rows of the largest step.
    pub rows: u32,
    /// Bytes for accumulators.
    pub accumulator_bytes: u64,
    /// Paging slots.
    pub paging_slots: u32,
    /// Bytes of one paging slot.
    pub paging_slot_bytes: u64,
    /// Bytes of the whole area, in pages.
    pub area_bytes: u64,
    /// Bytes for verdicts.
    pub verdict_bytes: u64,
    /// Slots of lossless blocks.
    pub block_slots: u32,
    /// Slots of closed blocks; 0 where none are closed.
    pub closed_slots: u32,
}

/// What the division depends on.
#[derive(Clone, Copy, Debug)]
pub struct AreaInput {
    /// Shapes of attention.
    pub geometry: Geometry,
    /// Lossless blocks.
    pub shape: BlockShape,
    /// Closed blocks, where there are any.
    pub closed: Option<BlockShape>,
    /// Device budget in bytes.
    pub device_bytes: u64,
    /// Largest step that is wanted, in rows.
    pub chunk: u32,
    /// Longest context, in tokens.
    pub context: u32,
}

/// Where parts of the area begin.
const PART_ALIGN: u64 = 64;

/// Paging slots that are worth having: enough for copies to run ahead of attention.
const PAGING_SLOTS: u32 = 16;

impl AreaPlan {
    /// Divides the budget: the area takes at most a quarter of it if it can, with at least one row, two paging slots and as
    /// many blocks as a step fills.
    ///
    /// Errors: [`EngineError::Budget`] with the minimum.
    pub fn divide(input: &AreaInput) -> Result<AreaPlan, EngineError> {
        let mut rows = input.chunk.max(1);
        let mut paging_slots = PAGING_SLOTS;
        while rows > 1 || paging_slots > 2 {
            let plan = AreaPlan::with(input, rows, paging_slots, true);
            let blocks_needed = rows.div_ceil(input.geometry.block_tokens).max(input.lossless_needed(1));
            let holds_step = plan.block_slots >= blocks_needed && plan.closed_slots >= input.closed_needed(rows);
            if plan.area_bytes <= input.device_bytes / 4 && holds_step {
                return Ok(plan);
            }
            (rows, paging_slots) = (rows.div_ceil(2), (paging_slots / 2).max(2));
        }
        // As little as possible: partials only where a block still fits beside them.
        let least = AreaPlan::with(input, 1, 2, false);
        let plans = [AreaPlan::with(input, 1, 2, true), least];
        let fits = |plan: &AreaPlan| {
            plan.block_slots >= input.lossless_needed(1) && plan.closed_slots >= input.closed_needed(1)
        };
        plans.into_iter().find(fits).ok_or(EngineError::Budget {
            what: "--device-mem",
            given_bytes: input.device_bytes,
            minimum_bytes: least.area_bytes + input.least_slots_bytes(),
        })
    }

    fn with(input: &AreaInput, rows: u32, paging_slots: u32, may_keep_partials: bool) -> AreaPlan {
        let geometry = &input.geometry;
        let spans = input.context.div_ceil(SPAN_TOKENS);
        // Partials of one row over the whole context let a decode step use every thread; a small budget does without.
        let partials = geometry.accumulator_bytes(1, spans);
        // Rows of as many sequences: each state ends at a whole sector.
        let running = u64::from(rows) * geometry.accumulator_bytes(1, 1);
        let keeps_partials = may_keep_partials && partials <= input.device_bytes / 16;
        let accumulator_bytes = if keeps_partials { running.max(partials) } else { running };
        let group_bytes = geometry.section_bytes() + input.closed.map_or(0, |shape| layer_bytes(&shape));
        let paging_slot_bytes = group_bytes * u64::from(blocks_per_group(geometry));
        let verdict_bytes = input.closed.map_or(0, |shape| verdict_bytes(&shape, rows));
        let [heads, kv_heads] = part_bytes(geometry, rows);
        let paging_bytes = paging_slot_bytes * u64::from(paging_slots);
        let parts = [paging_bytes, accumulator_bytes, heads, kv_heads, kv_heads, heads, verdict_bytes];
        let area_bytes =
            cache_core::buffer::round_to_pages(parts.iter().map(|bytes| bytes.next_multiple_of(PART_ALIGN)).sum());
        let left = input.device_bytes.saturating_sub(area_bytes);
        let most = u64::from(input.context.div_ceil(geometry.block_tokens)).saturating_mul(4).max(8);
        let (block_slots, closed_slots) = match &input.closed {
            None => (slots_in(left, &input.shape, most), 0),
            Some(closed) => {
                // What a step fills, its window, block 0, and a share for sequences beside it.
                let fits = slots_in(left, &input.shape, most);
                let block_slots = (input.lossless_needed(rows) + fits / 32).min(fits);
                let rest = left.saturating_sub(slots_bytes(block_slots, &input.shape));
                (block_slots, slots_in(rest, closed, most))
            }
        };
        AreaPlan {
            rows,
            accumulator_bytes,
            paging_slots,
            paging_slot_bytes,
            area_bytes,
            verdict_bytes,
            block_slots,
            closed_slots,
        }
    }
}

impl AreaInput {
    /// Closed slots that a step of so many rows may open at once, beside one that it reads.
    fn closed_needed(&self, rows: u32) -> u32 {
        self.closed.map_or(0, |shape| blocks_closed_in_step(&shape, rows) + 1)
    }

    /// Lossless blocks that a step of so many rows keeps on the device: those that it fills; where blocks are closed, its window and block 0 too.
    fn lossless_needed(&self, rows: u32) -> u32 {
        if self.closed.is_some() { (rows - 1).div_ceil(self.geometry.block_tokens) + 3 } else { 1 }
    }

    /// Slots of the least step.
    fn least_slots_bytes(&self) -> u64 {
        let closed = self.closed.map_or(0, |shape| slots_bytes(self.closed_needed(1), &shape));
        slots_bytes(self.lossless_needed(1), &self.shape) + closed
    }
}

/// Bytes of so many slots and of the table that keeps them.
fn slots_bytes(slots: u32, shape: &BlockShape) -> u64 {
    u64::from(slots) * shape.slot_bytes() + SlotTable::bytes_for(slots)
}

/// Slots that fit into so many bytes with their table, at most `most`.
fn slots_in(bytes: u64, shape: &BlockShape, most: u64) -> u32 {
    let mut slots = (bytes / shape.slot_bytes()).min(most) as u32;
    while slots > 0 && slots_bytes(slots, shape) > bytes {
        slots -= 1;
    }
    slots
}

/// Bytes of the largest layer of a block, all planes.
fn layer_bytes(shape: &BlockShape) -> u64 {
    let of = |layer| Plane::ALL.into_iter().map(|plane| shape.layer_bytes(plane, layer)).sum();
    (0..shape.layers).map(of).max().unwrap_or(0)
}

/// Blocks that a step of so many rows may fill and read closed, whatever sequences its rows belong to.
pub fn blocks_closed_in_step(shape: &BlockShape, rows: u32) -> u32 {
    // One sequence closes at most one more than it has whole blocks in the rows, and none with fewer rows than a window.
    rows / shape.block_tokens + rows / WINDOW
}

fn verdict_bytes(shape: &BlockShape, rows: u32) -> u64 {
    4 * u64::from(shape.layers) * u64::from(blocks_closed_in_step(shape, rows).max(1))
}

/// Blocks that are paged together: as many as fill one span, at least one.
pub fn blocks_per_group(geometry: &Geometry) -> u32 {
    (SPAN_TOKENS / geometry.block_tokens).max(1)
}

/// Sections of one layer of the blocks that are paged together, in all planes: what a step must be able to stage at once to go on.
pub fn sections_per_group(shape: &BlockShape, geometry: &Geometry) -> u32 {
    let planes = Plane::ALL.into_iter().map(|plane| shape.plane_sections(plane).min(1)).sum::<u32>();
    planes * blocks_per_group(geometry)
}

/// Spans of a group.
pub fn spans_per_group(geometry: &Geometry) -> u32 {
    (geometry.block_tokens / SPAN_TOKENS).max(1)
}

/// Bytes of queries or outputs, and of keys or values, of so many rows.
fn part_bytes(geometry: &Geometry, rows: u32) -> [u64; 2] {
    let per_head = 4 * u64::from(geometry.head_dim) * u64::from(rows);
    [geometry.heads, geometry.kv_heads].map(|heads| per_head * u64::from(heads))
}

/// The parts of the area in one step of `rows` rows.
#[derive(Clone, Copy, Debug)]
pub struct StepArea {
    /// f32 `[rows][heads][head_dim]`.
    pub queries: DeviceRange,
    /// f32 `[rows][kv_heads][head_dim]`.
    pub keys: DeviceRange,
    /// f32 `[rows][kv_heads][head_dim]`.
    pub values: DeviceRange,
    /// f32 `[rows][heads][head_dim]`.
    pub output: DeviceRange,
    /// Accumulators.
    pub accumulators: DeviceRange,
    /// Paging slots.
    pub paging: DeviceRange,
    /// u32, layer by layer: one per block that the step closes.
    pub verdicts: DeviceRange,
}

impl StepArea {
    /// Lays out `rows` rows in `area`, which was allocated with `plan.area_bytes`.
    pub fn new(plan: &AreaPlan, geometry: &Geometry, area: DeviceRange, rows: u32) -> StepArea {
        let mut offset = 0;
        let mut take = |bytes: u64| {
            let part = area.slice(offset, bytes);
            offset += bytes.next_multiple_of(PART_ALIGN);
            part
        };
        let [heads, kv_heads] = part_bytes(geometry, rows);
        StepArea {
            paging: take(plan.paging_slot_bytes * u64::from(plan.paging_slots)),
            accumulators: take(plan.accumulator_bytes),
            queries: take(heads),
            keys: take(kv_heads),
            values: take(kv_heads),
            output: take(heads),
            verdicts: take(plan.verdict_bytes),
        }
    }

    /// Gives each (rows, spans) its accumulator: partials where they all fit, else running state.
    pub fn accumulators(&self, geometry: &Geometry, sequences: &[(u32, u32)]) -> Vec<Accumulator> {
        let bytes = |rows: &u32, spans: &u32| geometry.accumulator_bytes(*rows, *spans);
        let partials: u64 = sequences.iter().map(|(rows, spans)| bytes(rows, spans)).sum();
        let few_rows = sequences.iter().all(|(rows, _)| *rows <= 4);
        let mut offset = 0;
        sequences
            .iter()
            .map(|(rows, spans)| {
                let as_partials = few_rows && partials <= self.accumulators.bytes;
                let bytes = bytes(rows, if as_partials { spans } else { &1 });
                let range = self.accumulators.slice(offset, bytes);
                offset += bytes;
                if as_partials {
                    Accumulator::Partials { range, spans: *spans }
                } else {
                    Accumulator::Running { range }
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cache_core::form::Form;
    use gpu_tier::attention::Element;

    fn input(device_bytes: u64, block_tokens: u32) -> AreaInput {
        let geometry =
            Geometry { heads: 9, kv_heads: 3, head_dim: 64, block_tokens, element: Element::Bf16, scale: 0.125 };
        let shape = BlockShape { layers: 30, kv_heads: 3, head_dim: 64, block_tokens, form: Form::Raw16 };
        AreaInput { geometry, shape, closed: None, device_bytes, chunk: 512, context: 8192 }
    }

    fn closing(device_bytes: u64, block_tokens: u32) -> AreaInput {
        let input = input(device_bytes, block_tokens);
        AreaInput { closed: Some(input.shape.with_form(Form::Kc4vt4)), ..input }
    }

    #[test]
    fn every_budget_from_the_minimum_up_is_kept() {
        type Kind = fn(u64, u32) -> AreaInput;
        let kinds: [(Kind, &[u32]); 2] = [(input, &[16, 64, 256]), (closing, &[64, 128, 256])];
        for (input, block_tokens) in kinds.into_iter().flat_map(|(input, all)| all.iter().map(move |one| (input, *one)))
        {
            let EngineError::Budget { minimum_bytes, .. } = AreaPlan::divide(&input(1, block_tokens)).unwrap_err()
            else {
                panic!("a byte is no budget")
            };
            assert!(AreaPlan::divide(&input(minimum_bytes - 1, block_tokens)).is_err());
            for device_bytes in (0..40).map(|step| minimum_bytes + step * step * 100_003) {
                let input = input(device_bytes, block_tokens);
                let plan = AreaPlan::divide(&input).unwrap();
                let closed = input.closed.map_or(0, |shape| slots_bytes(plan.closed_slots, &shape));
                assert!(plan.area_bytes + slots_bytes(plan.block_slots, &input.shape) + closed <= device_bytes);
                assert!(plan.block_slots >= 1 && plan.paging_slots >= 2 && plan.rows >= 1);
                assert!(plan.closed_slots >= input.closed_needed(plan.rows));
            }
        }
    }

    /// The formula of `docs/forms.md`: exact slots of the step, the window and block 0 counted.
    #[test]
    fn closed_blocks_hold_three_times_the_tokens_of_8k_lossless_ones() {
        let lossless = input(1, 64).shape;
        let area = AreaPlan::divide(&closing(1 << 30, 64)).unwrap().area_bytes;
        let device_bytes = area + slots_bytes(8192 / 64, &lossless);
        let plan = AreaPlan::divide(&AreaInput { context: 1 << 20, ..closing(device_bytes, 64) }).unwrap();
        let tokens = 64 * (plan.closed_slots + 3);
        assert!(f64::from(tokens) >= 3.1 * 8192.0, "{plan:?}: {tokens} tokens");
    }

    #[test]
    fn a_paging_slot_holds_any_layer_of_a_map() {
        let slot = |form: &str| {
            let form = form.parse::<Form>().unwrap().in_model(30).unwrap();
            let input = input(1 << 30, 64);
            let closed = Some(input.shape.with_form(form));
            AreaPlan::divide(&AreaInput { closed, ..input }).unwrap().paging_slot_bytes
        };
        // Codes and scales of three heads: 8 bits and two f16 scales a token, or 4 bits, a centre and a half-range a channel and a token.
        let (raw, eight, four) = (49152, 3 * (8192 + 256), 3 * (4096 + 512));
        assert_eq!([slot("i8h"), slot("kc4vt4")], [raw + eight, raw + four]);
        assert_eq!(slot("kc4vt4:k8=29:v8=29"), raw + eight);
        assert_eq!(slot("kc4vt4:k8=7:v8=8"), raw + 3 * (4096 + 2048 + 128 + 256));
    }

    #[test]
    fn a_large_budget_keeps_the_chunk() {
        let plan = AreaPlan::divide(&input(1 << 30, 64)).unwrap();
        assert_eq!((plan.rows, plan.paging_slots), (512, PAGING_SLOTS));
    }
}
