//! Paged attention over stored blocks: what a device is asked to do, and the definition that every kernel must match bit for bit.
//!
//! A **section** is one layer of one block's code plane, `[kv_heads][ K: [head_dim][block_tokens] | V: [block_tokens][head_dim] ]`:
//! keys channel-major (lanes are tokens, so a score needs no horizontal sum), values token-major (lanes are channels).
//!
//! A **span** is 64 consecutive positions, whatever the block size is. For each (row, head, span) the partial is
//! ```text
//! s_t = scale * (fma over d = 0..head_dim of q[d] * k[d][t], from 0)        for the tokens t of the span with t <= position
//! m   = max_t s_t
//! p_t = exp(s_t - m)                                                       (crate::cpu::math::exp)
//! l   = lane j of 16 sums p_t for t = j, j + 16, ... in order, then 16 -> 8 -> 4 -> 2 -> 1 by halves
//! o_d = fma over t in order of p_t * v[t][d], from 0
//! ```
//! and partials are merged in span order into (M, L, O), starting from span 0's partial as it is:
//! ```text
//! M' = max(M, m); a = exp(M - M'); b = exp(m - M'); L = fma(L, a, l * b); O_d = fma(O_d, a, o_d * b)
//! ```
//! The output is `O_d / L`. Merging in span order, not in order of arrival, is what makes the bits independent of paging.

pub(crate) mod checks;
pub mod closed;

use closed::{AttendMixed, Closed, Encode};

use crate::device::{Device, DeviceRange, HostRange, Stream};
use crate::error::DeviceError;

/// Positions in one span.
pub const SPAN_TOKENS: u32 = 64;

/// How a KV element is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// bf16, rounded to nearest even (`raw16`).
    Bf16,
    /// f32 (`raw32`, measurement only).
    F32,
}

impl Element {
    /// Bytes of one value.
    pub fn bytes(self) -> u64 {
        match self {
            Element::Bf16 => 2,
            Element::F32 => 4,
        }
    }
}

/// Shapes of one layer's attention. `heads` is a multiple of `kv_heads`; `block_tokens` is a power of two, at least 16;
/// `head_dim` is a multiple of 16, at most 256.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Geometry {
    /// Query heads.
    pub heads: u32,
    /// Key/value heads.
    pub kv_heads: u32,
    /// Channels of a head.
    pub head_dim: u32,
    /// Tokens of a block.
    pub block_tokens: u32,
    /// Stored element.
    pub element: Element,
    /// Factor on the scores, usually `head_dim^-1/2`.
    pub scale: f32,
}

impl Geometry {
    /// Bytes of one section: K and V of every KV head of one block and layer.
    pub fn section_bytes(&self) -> u64 {
        2 * u64::from(self.kv_heads) * u64::from(self.head_dim) * u64::from(self.block_tokens) * self.element.bytes()
    }

    /// Bytes of one (m, l, o): `head_dim + 2` f32.
    pub fn partial_bytes(&self) -> u64 {
        4 * (u64::from(self.head_dim) + 2)
    }

    /// Bytes of an [`Accumulator`] of `rows` rows, by `spans` spans for partials, 1 for a running state; a multiple of 32. m and l of the
    /// vectors (rows by query heads) of a KV head are counted in fours, so that a device can keep them apart in whole sectors.
    pub fn accumulator_bytes(&self, rows: u32, spans: u32) -> u64 {
        let vectors = u64::from(rows) * u64::from(self.heads / self.kv_heads);
        let outputs = vectors * 4 * u64::from(self.head_dim);
        u64::from(spans) * u64::from(self.kv_heads) * (outputs + 8 * vectors.next_multiple_of(4))
    }
}

/// Where a section is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SectionPlace {
    /// In device memory.
    Device(DeviceRange),
    /// In the host arena, attended in place (only where [`crate::device::DeviceInfo::in_place`]).
    Host(HostRange),
}

/// New keys and values of one sequence at one layer, to be written into its open blocks.
#[derive(Clone, Copy, Debug)]
pub struct Append<'a> {
    /// f32 `[rows][kv_heads][head_dim]`, after RoPE.
    pub keys: DeviceRange,
    /// f32 `[rows][kv_heads][head_dim]`.
    pub values: DeviceRange,
    /// Number of rows.
    pub rows: u32,
    /// Position of row 0.
    pub first_position: u32,
    /// This layer's section of each block, by block index; those of the blocks written must be in device memory.
    pub sections: &'a [Option<SectionPlace>],
}

/// Where attention leaves what it computed: [`Geometry::accumulator_bytes`]. How (m, l, o) lie in there is the device's own; the range
/// starts at a multiple of 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accumulator {
    /// A partial (m, l, o) per row, head and span; spans may come in any order, each once.
    Partials {
        /// The store.
        range: DeviceRange,
        /// How many there are; at least one more than the highest span index.
        spans: u32,
    },
    /// Running (M, L, O) per row and head; spans must come in increasing order, the first call has span 0.
    Running {
        /// The state.
        range: DeviceRange,
    },
}

/// Queries of one sequence at one layer.
#[derive(Clone, Copy, Debug)]
pub struct Attend<'a> {
    /// f32 `[rows][heads][head_dim]`, after RoPE.
    pub queries: DeviceRange,
    /// Number of rows.
    pub rows: u32,
    /// Position of row 0; row r sees positions 0..=first_position + r.
    pub first_position: u32,
    /// This layer's section of each block, by block index; `None` for one that is not here yet.
    pub sections: &'a [Option<SectionPlace>],
    /// Spans to attend in this call; all blocks of each must be present in `sections` (as far as any row sees them).
    pub spans: &'a [u32],
    /// Where the result goes.
    pub into: Accumulator,
}

/// Turns accumulated spans into the output of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Finish {
    /// What [`Attend`] filled.
    pub from: Accumulator,
    /// Number of rows.
    pub rows: u32,
    /// Position of row 0: row r merges spans 0..=(first_position + r) / 64.
    pub first_position: u32,
    /// f32 `[rows][heads][head_dim]`.
    pub output: DeviceRange,
}

/// In which order of operations a device multiplies in attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Products {
    /// In that of this module: the bits of the `cpu` device.
    #[default]
    Canonical,
    /// In one of matrix units: near those bits, and always the same over residency, chunking and batch. What is computed with it is
    /// never taken for canonical.
    Matrix,
}

impl Products {
    /// What a manifest's `numerics` ends with: nothing for the canonical order.
    pub fn numerics(self) -> &'static str {
        match self {
            Products::Canonical => "",
            Products::Matrix => " mma16",
        }
    }
}

/// The attention kernels of a device. Each call takes the jobs of several sequences, so that a step is one launch.
pub trait Attention: Device {
    /// How [`Attention::attend`] and [`Attention::attend_mixed`] multiply.
    fn products(&self) -> Products {
        Products::Canonical
    }
    /// Rounds new keys and values to the stored element and writes them into open blocks.
    fn append(&self, stream: Stream, geometry: &Geometry, jobs: &[Append<'_>]) -> Result<(), DeviceError>;
    /// Attends the listed spans. Errors: [`DeviceError::NotResident`] for a host section on a strict device.
    fn attend(&self, stream: Stream, geometry: &Geometry, jobs: &[Attend<'_>]) -> Result<(), DeviceError>;
    /// Attends the listed spans over exact and closed blocks, as [`closed`] defines. Errors: as [`Attention::attend`], and
    /// [`DeviceError::Shape`] for blocks that are no multiple of 64 tokens.
    fn attend_mixed(
        &self,
        stream: Stream,
        geometry: &Geometry,
        closed: Closed,
        jobs: &[AttendMixed<'_>],
    ) -> Result<(), DeviceError>;
    /// Encodes sections of exact blocks in the form that [`Attention::attend_mixed`] reads, bit for bit as
    /// [`cache_core::codec`] does. Whether values fit the form is no error: it is in each job's verdict, in device memory, so
    /// that nobody waits between the layers of a step. Errors: [`DeviceError::Shape`] for blocks that are no multiple of 64
    /// tokens, elements other than bf16, sections of another size and ranges that are named twice or overlap;
    /// [`DeviceError::NotResident`] for a host section on a strict device.
    fn encode(&self, stream: Stream, geometry: &Geometry, closed: Closed, jobs: &[Encode]) -> Result<(), DeviceError>;
    /// Merges partials in span order (or takes the running state) and divides.
    fn finish(&self, stream: Stream, geometry: &Geometry, jobs: &[Finish]) -> Result<(), DeviceError>;
}
