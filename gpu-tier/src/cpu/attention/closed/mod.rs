//! Attention over closed blocks: codes are read as they lie. The definition is in [`crate::attention::closed`].

#[cfg(target_arch = "x86_64")]
pub(super) mod ints;
#[cfg(target_arch = "x86_64")]
pub(super) mod kernel;
pub(super) mod places;
pub(super) mod scalar;

use cache_core::codec::kc4vt4::HALF;

use super::unit::Unit;
use crate::attention::closed::{Closed, Codes};

/// Below this largest magnitude a vector quantises to zeros: its inverse would overflow, its products are nothing.
const LEAST_MAGNITUDE: f32 = 1e-30;
/// Largest quantised magnitude.
const QUANTISED_MAX: f32 = 32767.0;

/// What one quantised unit is worth, of the largest magnitude; for `Rows4` with the step's `1 / 7.5` in it.
const fn worth(codes: Codes) -> f32 {
    match codes {
        Codes::Int8 => 1.0 / QUANTISED_MAX,
        Codes::Rows4 => 1.0 / (QUANTISED_MAX * HALF),
    }
}

/// Where one span of a closed block is, of one KV head.
#[derive(Clone, Copy)]
pub(super) struct ClosedSpan {
    /// Keys: word of the span's first token, row group 0; row groups are `key_stride` words apart.
    pub(super) key_codes: *const u8,
    /// Values: words of the span's first group of tokens; groups are `head_dim` words apart.
    pub(super) value_codes: *const u8,
    /// `Rows4`: centres of the head's channels, half-ranges `2 head_dim` bytes later. `Int8`: scales of the span's tokens.
    pub(super) key_scales: *const u8,
    /// `Rows4`: centres of the span's tokens, half-ranges `2 key_stride` bytes later. `Int8`: their scales.
    pub(super) value_scales: *const u8,
}

/// All rows of a unit against one span of a closed block; every row sees all of its 64 tokens.
///
/// # Safety
/// As [`Unit`] (whose pieces are not used): `span` is valid for the layout stated at its fields, for `unit.head_dim`
/// channels and blocks of `unit.key_stride` tokens.
pub(super) struct ClosedUnit {
    pub(super) unit: Unit,
    pub(super) forms: Closed,
    pub(super) span: ClosedSpan,
    /// What the same worker reads next, if it is known.
    pub(super) next: Option<ClosedSpan>,
}
