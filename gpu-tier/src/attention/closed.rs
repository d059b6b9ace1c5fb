//! Attention over closed blocks, codes as they lie, mixed with exact ones.
//!
//! **Which form a row reads.** A row at position `t` reads block `j` closed if and only if `j >= 1` and
//! `(j + 1) block_tokens + window <= t`, and exactly otherwise; a block that a job lists without an exact place is read closed
//! by every row, one without a closed place exactly. Block sizes are multiples of 64, so that a span lies in one block and is
//! read in one form.
//!
//! For each (row, head, span) of a closed block, with `q` the query vector, the partial is (f32, each operation rounded
//! once; `quantise` and `base` below)
//! ```text
//! keys Rows4:   (Q, u) = quantise(q_d r_d),     s_t = scale * fma(sum_d Q_d code_dt, u, base(q, low))
//! keys Int8:    (Q, u) = quantise(q_d),         s_t = scale * (((sum_d Q_d code_dt) * u) * scale_t)
//! m = max_t s_t,  p_t = exp(s_t - m),  l = sum_t p_t                      as for exact spans
//! values Rows4: (P, u) = quantise(p_t r_t),     o_d = fma(sum_t P_t code_td, u, base(p, low))
//! values Int8:  (P, u) = quantise(p_t scale_t), o_d = fma(sum_t P_t code_td, u, 0)
//!
//! quantise(w):  a = max |w|;  a < 1e-30: all 0, u = 0;  else W = rne(w * (32767 / a)), u = a * f32(1 / 32767) for Int8,
//!               a * f32(1 / (32767 * 7.5)) for Rows4
//! base(x, low): lane j of 16 sums x_i low_i by fma for i = j, j + 16, ... in order, then 16 -> 8 -> 4 -> 2 -> 1 by halves
//! ```
//! with `c` and `r` of the row's header and `low = c - r`. Sums of integers are exact, so their order is free and
//! every instruction set gives the same bits. 16 bits for queries and probabilities: their rounding is 2^-16 of the
//! largest weight, far below that of 4 and of 8 bits.

use cache_core::form::Form;
use cache_core::payload::Side;

use super::{Accumulator, Attend, Geometry, SectionPlace};
use crate::device::DeviceRange;

/// How the codes of keys, or of values, are packed (`docs/forms.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codes {
    /// `i8h`: 8 bits, an f16 scale per token.
    Int8,
    /// `kc4` / `vt4`: 4 bits, an f16 centre and half-range per row.
    Rows4,
}

impl Codes {
    /// The codes of a uniform form; `None` when attention does not read it as it lies.
    fn of(form: Form) -> Option<Codes> {
        match form {
            Form::I8h => Some(Codes::Int8),
            Form::Kc4vt4 => Some(Codes::Rows4),
            _ => None,
        }
    }

    /// Rows in a word of codes.
    pub fn rows(self) -> usize {
        match self {
            Codes::Int8 => 4,
            Codes::Rows4 => 8,
        }
    }

    /// Bits of a code.
    pub fn bits(self) -> u64 {
        32 / self.rows() as u64
    }
}

/// Forms of the keys and the values of a layer's closed blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Closed {
    /// Keys.
    pub keys: Codes,
    /// Values.
    pub values: Codes,
}

impl Closed {
    /// `i8h`.
    pub const I8H: Closed = Closed { keys: Codes::Int8, values: Codes::Int8 };
    /// `kc4vt4`.
    pub const KC4VT4: Closed = Closed { keys: Codes::Rows4, values: Codes::Rows4 };

    /// What a form has in one layer; `None` when attention does not read it as it lies.
    pub fn of(form: Form, layer: u32) -> Option<Closed> {
        let codes = |side| Codes::of(form.at(layer, side));
        Some(Closed { keys: codes(Side::Key)?, values: codes(Side::Value)? })
    }

    /// Bytes of one head's part of the header plane: the keys' rows.
    pub(crate) fn header_bytes(self, geometry: &Geometry) -> u64 {
        if self.keys == Codes::Rows4 { 4 * u64::from(geometry.head_dim) } else { 0 }
    }

    /// Bytes of the keys' part of one head in the scale plane.
    pub(crate) fn key_scale_bytes(self, geometry: &Geometry) -> u64 {
        if self.keys == Codes::Int8 { 2 * u64::from(geometry.block_tokens) } else { 0 }
    }

    /// Bytes of one head's part of the scale plane, keys then values.
    pub(crate) fn scale_bytes(self, geometry: &Geometry) -> u64 {
        let each = if self.values == Codes::Int8 { 2 } else { 4 };
        self.key_scale_bytes(geometry) + each * u64::from(geometry.block_tokens)
    }

    /// Bytes of the keys' codes of one head.
    pub(crate) fn key_code_bytes(self, geometry: &Geometry) -> u64 {
        u64::from(geometry.head_dim) * u64::from(geometry.block_tokens) * self.keys.bits() / 8
    }

    /// Bytes of one head's part of the code plane, keys then values.
    pub(crate) fn code_bytes(self, geometry: &Geometry) -> u64 {
        let values = u64::from(geometry.head_dim) * u64::from(geometry.block_tokens) * self.values.bits() / 8;
        self.key_code_bytes(geometry) + values
    }
}

/// One layer of a closed block: its section of each plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClosedPlace {
    /// Of the header plane; `None` if the layer has none.
    pub header: Option<SectionPlace>,
    /// Of the scale plane.
    pub scale: SectionPlace,
    /// Of the code plane.
    pub codes: SectionPlace,
}

/// Queries of one sequence at one layer, over exact and closed blocks.
#[derive(Clone, Copy, Debug)]
pub struct AttendMixed<'a> {
    /// f32 `[rows][heads][head_dim]`, after RoPE.
    pub queries: DeviceRange,
    /// Number of rows.
    pub rows: u32,
    /// Position of row 0; row r sees positions 0..=first_position + r.
    pub first_position: u32,
    /// This layer's exact section of each block, by block index.
    pub exact: &'a [Option<SectionPlace>],
    /// This layer's closed sections of each block, by block index; `None` for those that are read exactly.
    pub closed: &'a [Option<ClosedPlace>],
    /// Exact window: positions between the end of a closed block and the row that reads it.
    pub window: u32,
    /// Spans to attend in this call.
    pub spans: &'a [u32],
    /// Where the result goes.
    pub into: Accumulator,
}

impl<'a> AttendMixed<'a> {
    /// A job whose rows read every block exactly.
    pub(crate) fn exact_only(job: &Attend<'a>) -> AttendMixed<'a> {
        let Attend { queries, rows, first_position, sections, spans, into } = *job;
        AttendMixed { queries, rows, first_position, exact: sections, closed: &[], window: 0, spans, into }
    }
}

/// One layer of one block, to be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encode {
    /// Its `raw16` section, of a full block.
    pub exact: SectionPlace,
    /// Its sections in the closed form, in device memory; every byte of them is written. Device `cuda` also writes to host extents that
    /// its driver has pinned: such bytes count as copied out, and are there when the stream has done the work.
    pub into: ClosedPlace,
    /// Four bytes of device memory: [`FITS`] or [`STAYS_RAW`], u32 in the machine's byte order.
    pub verdict: DeviceRange,
}

/// Verdict of [`Encode`]: the closed sections are whole.
pub const FITS: u32 = 0;
/// Verdict of [`Encode`]: the form cannot hold the values ([`cache_core::codec::StaysRaw`]); the closed sections mean nothing,
/// nor does attention over them.
pub const STAYS_RAW: u32 = 1;
