//! `i8h`, scalar reference: int8 per token and head with an f16 scale.
//!
//! For each token, over the channels of the head, in f32, each operation rounded once:
//! ```text
//! s     = least f16 that is not below max |x| / 127
//! code  = clamp(rne(x * (1 / s)), -127, 127);  0 when s = 0
//! value = code * s
//! ```
//! Scales: `[block_tokens] f16`. Codes: `[rows / 4][lanes]` u32, little-endian, byte `i` of a word is row `4 g + i`, two's
//! complement. Keys have a scale per lane, values one per row.

use super::{Damaged, Grid, StaysRaw, all_finite, headers_are_finite, raw16, read_f16, round_up, write_f16};
use crate::payload::Side;

/// Rows of one u32 of codes.
pub const ROWS: usize = 4;
/// Largest code.
pub const CODE_MAX: f32 = 127.0;

/// f16 bits of the scale for a token whose largest magnitude is `most`.
pub fn scale_bits(most: f32) -> Result<u16, StaysRaw> {
    round_up(most / CODE_MAX).ok_or(StaysRaw::HeaderRange)
}

/// What a value is multiplied with: `1 / s`, or 0.
pub fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// Code of one value.
pub fn code(value: f32, inverse: f32) -> i8 {
    (value * inverse).round_ties_even().clamp(-CODE_MAX, CODE_MAX) as i8
}

/// Number of tokens, and so of scales.
pub fn tokens(side: Side, grid: Grid) -> usize {
    match side {
        Side::Key => grid.lanes,
        Side::Value => grid.rows,
    }
}

/// Encodes a grid. Panics when an output has another length than the grid's.
pub fn encode(side: Side, grid: Grid, values: &[u16], scales: &mut [u8], codes: &mut [u8]) -> Result<(), StaysRaw> {
    check(side, grid, values.len(), scales.len(), codes.len());
    if !all_finite(values) {
        return Err(StaysRaw::NonFinite);
    }
    let token = |row: usize, lane: usize| if side == Side::Key { lane } else { row };
    let mut most = vec![0.0f32; tokens(side, grid)];
    for (index, value) in values.iter().enumerate() {
        let most = &mut most[token(index / grid.lanes, index % grid.lanes)];
        let magnitude = raw16::decode(*value).abs();
        *most = if magnitude > *most { magnitude } else { *most };
    }
    for (token, most) in most.iter_mut().enumerate() {
        write_f16(scales, token, scale_bits(*most)?);
        *most = inverse(read_f16(scales, token));
    }
    for (index, value) in values.iter().enumerate() {
        let (row, lane) = (index / grid.lanes, index % grid.lanes);
        let code = code(raw16::decode(*value), most[token(row, lane)]);
        codes[(row / ROWS * grid.lanes + lane) * 4 + row % ROWS] = code as u8;
    }
    Ok(())
}

/// Decodes a grid to the nearest bf16. Panics when an argument has another length than the grid's.
pub fn decode(side: Side, grid: Grid, scales: &[u8], codes: &[u8], values: &mut [u16]) -> Result<(), Damaged> {
    check(side, grid, values.len(), scales.len(), codes.len());
    check_scales(scales)?;
    for (index, value) in values.iter_mut().enumerate() {
        let (row, lane) = (index / grid.lanes, index % grid.lanes);
        let scale = read_f16(scales, if side == Side::Key { lane } else { row });
        let code = codes[(row / ROWS * grid.lanes + lane) * 4 + row % ROWS] as i8;
        *value = raw16::encode(f32::from(code) * scale);
    }
    Ok(())
}

/// Refuses scales that no encoder writes.
pub fn check_scales(scales: &[u8]) -> Result<(), Damaged> {
    headers_are_finite(scales, true).then_some(()).ok_or(Damaged::Header)
}

/// Lengths of one side of a slice. Panics when one is wrong.
pub fn check(side: Side, grid: Grid, values: usize, scales: usize, codes: usize) {
    assert!(grid.rows.is_multiple_of(8) && grid.lanes.is_multiple_of(8), "a grid of multiples of 8, not {grid:?}");
    assert_eq!(values, grid.elements(), "values of {grid:?}");
    assert_eq!(scales, 2 * tokens(side, grid), "scale bytes of {grid:?}");
    assert_eq!(codes, grid.elements(), "code bytes of {grid:?}");
}
