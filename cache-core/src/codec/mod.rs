//! The stored forms of keys and values, one number at a time: the reference that every device matches bit for bit.
//! `docs/forms.md` gives every byte and each form's error ceiling.
//!
//! A **slice** is one (layer, KV head) of a block; its keys and its values are encoded each on their own, from `raw16`. Both
//! are a [`Grid`] of rows by lanes, row-major: keys `[head_dim][block_tokens]`, values `[block_tokens][head_dim]`. Codes are
//! packed across rows into one little-endian u32 per lane (8 rows of 4 bits, 4 rows of 8 bits), so that kernels work on
//! whole lanes and the integer dot products of attention read codes as they lie.
//!
//! Encoders use only exactly rounded f32 operations, in the order stated at each; headers are rounded to f16 first and codes
//! follow from the rounded header. A block that a form cannot hold is not an error: it [stays `raw16`](StaysRaw).

mod half_float;
pub mod i8h;
pub mod image;
pub mod kc4vt4;
pub mod raw16;
#[cfg(feature = "testing")]
pub mod suite;
pub mod sx12;

use crate::payload::Side;

pub use half_float::{headers_are_finite, nearest, read_f16, round_up, write_f16};

/// Why a block cannot be stored in a form and keeps its lossless copy: an outcome, not a failure. What the encoder left in
/// its outputs means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StaysRaw {
    /// A NaN or an infinity.
    #[error("encode the block: a value is not finite")]
    NonFinite,
    /// A centre, half-range or scale beyond the largest f16.
    #[error("encode the block: a header does not fit f16")]
    HeaderRange,
    /// More exponents outside the windows than the escape area holds.
    #[error("encode the block: the escape area is full")]
    Escapes,
}

/// Bytes that no encoder wrote: their sum would have been wrong, had it been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Damaged {
    /// A header that is not finite or negative where it cannot be.
    #[error("decode the block: a header is out of range")]
    Header,
    /// Escape counts and escape codes disagree.
    #[error("decode the block: escapes do not add up")]
    Escapes,
}

/// Rows by lanes of the keys or the values of a slice, row-major.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Grid {
    /// Channels of keys, tokens of values. A multiple of 8.
    pub rows: usize,
    /// Tokens of keys, channels of values. A multiple of 8.
    pub lanes: usize,
}

impl Grid {
    /// The grid of one side of a slice. Panics unless both numbers are positive multiples of 8.
    pub fn new(side: Side, head_dim: u32, block_tokens: u32) -> Grid {
        let whole = |n: u32| n > 0 && n.is_multiple_of(8);
        assert!(whole(head_dim) && whole(block_tokens), "{head_dim} channels by {block_tokens} tokens");
        let (channels, tokens) = (head_dim as usize, block_tokens as usize);
        match side {
            Side::Key => Grid { rows: channels, lanes: tokens },
            Side::Value => Grid { rows: tokens, lanes: channels },
        }
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.rows * self.lanes
    }
}

/// Encoders and decoders of one side of a slice: the reference here, SIMD twins on devices.
///
/// `values` are bf16 bits, `grid.elements()` of them (for `sx12` any positive multiple of 32). Outputs have exactly the
/// length that `docs/forms.md` states; each call panics on another length.
pub trait Codec {
    /// `sx12`: codes `[n] u8 | [n / 2] u8`, and as many bytes of `escapes` (the free rest of the layer's area) as the
    /// window says.
    fn encode_sx12(&self, values: &[u16], codes: &mut [u8], escapes: &mut [u8]) -> Result<sx12::Window, StaysRaw>;
    /// Undoes [`Codec::encode_sx12`]; `escapes` holds exactly the window's.
    fn decode_sx12(
        &self,
        window: sx12::Window,
        codes: &[u8],
        escapes: &[u8],
        values: &mut [u16],
    ) -> Result<(), Damaged>;

    /// `i8h`: one f16 scale per token, codes `[rows / 4][lanes] u32`.
    fn encode_i8h(
        &self,
        side: Side,
        grid: Grid,
        values: &[u16],
        scales: &mut [u8],
        codes: &mut [u8],
    ) -> Result<(), StaysRaw>;
    /// bf16 nearest to what [`Codec::encode_i8h`] stored.
    fn decode_i8h(
        &self,
        side: Side,
        grid: Grid,
        scales: &[u8],
        codes: &[u8],
        values: &mut [u16],
    ) -> Result<(), Damaged>;

    /// `kc4` of keys and `vt4` of values: per row an f16 centre and half-range (`[rows] f16 | [rows] f16`), codes
    /// `[rows / 8][lanes] u32`.
    fn encode_rows4(&self, grid: Grid, values: &[u16], header: &mut [u8], codes: &mut [u8]) -> Result<(), StaysRaw>;
    /// bf16 nearest to what [`Codec::encode_rows4`] stored.
    fn decode_rows4(&self, grid: Grid, header: &[u8], codes: &[u8], values: &mut [u16]) -> Result<(), Damaged>;
}

/// The reference.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scalar;

impl Codec for Scalar {
    fn encode_sx12(&self, values: &[u16], codes: &mut [u8], escapes: &mut [u8]) -> Result<sx12::Window, StaysRaw> {
        sx12::encode(values, codes, escapes)
    }

    fn decode_sx12(
        &self,
        window: sx12::Window,
        codes: &[u8],
        escapes: &[u8],
        values: &mut [u16],
    ) -> Result<(), Damaged> {
        sx12::decode(window, codes, escapes, values)
    }

    fn encode_i8h(
        &self,
        side: Side,
        grid: Grid,
        values: &[u16],
        scales: &mut [u8],
        codes: &mut [u8],
    ) -> Result<(), StaysRaw> {
        i8h::encode(side, grid, values, scales, codes)
    }

    fn decode_i8h(
        &self,
        side: Side,
        grid: Grid,
        scales: &[u8],
        codes: &[u8],
        values: &mut [u16],
    ) -> Result<(), Damaged> {
        i8h::decode(side, grid, scales, codes, values)
    }

    fn encode_rows4(&self, grid: Grid, values: &[u16], header: &mut [u8], codes: &mut [u8]) -> Result<(), StaysRaw> {
        kc4vt4::encode(grid, values, header, codes)
    }

    fn decode_rows4(&self, grid: Grid, header: &[u8], codes: &[u8], values: &mut [u16]) -> Result<(), Damaged> {
        kc4vt4::decode(grid, header, codes, values)
    }
}

/// Exponent bits of a bf16: all ones in a NaN and in an infinity.
const EXPONENT: u16 = 0x7f80;

/// True when no bf16 is a NaN or an infinity.
fn all_finite(values: &[u16]) -> bool {
    values.iter().all(|value| value & EXPONENT != EXPONENT)
}
