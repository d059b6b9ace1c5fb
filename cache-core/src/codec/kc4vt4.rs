//! `kc4` (keys per channel over the block) and `vt4` (values per token), scalar reference: 4 bits between a row's extremes.
//!
//! For each row, in f32, each operation rounded once:
//! ```text
//! c       = f16 nearest to (min + max) * 0.5 + 0.0
//! r       = least f16 that is not below max(max - c, c - min)
//! code    = clamp(rne(((k - c) + r) * (7.5 / r)), 0, 15);  0 when r = 0
//! value   = fma(code, r / 7.5, c - r)                      that is c + r (code / 7.5 - 1)
//! ```
//! The half-range is taken around the *rounded* centre, so no value of the row is clamped and `c - r ..= c + r` holds every
//! key: the header is the block's digest. `+ 0.0` gives a row of zeros one centre whatever their signs.
//!
//! Header: `[rows] f16` centres, then `[rows] f16` half-ranges. Codes: `[rows / 8][lanes]` u32, little-endian, nibble `i` of a
//! word (bits `4 i..4 i + 4`) is row `8 g + i`.

use super::{Damaged, Grid, StaysRaw, all_finite, headers_are_finite, nearest, raw16, read_f16, round_up, write_f16};

/// Rows of one u32 of codes.
pub const ROWS: usize = 8;
/// Largest code.
pub const CODE_MAX: u32 = 15;
/// Half of [`CODE_MAX`].
pub const HALF: f32 = 7.5;

/// What a decoder needs of a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RowScale {
    /// Value of code 0.
    pub low: f32,
    /// Difference between two codes.
    pub step: f32,
}

impl RowScale {
    /// From the header's centre and half-range.
    pub fn new(centre: f32, half_range: f32) -> RowScale {
        RowScale { low: centre - half_range, step: half_range / HALF }
    }

    /// What a code stands for.
    pub fn value(self, code: u32) -> f32 {
        (code as f32).mul_add(self.step, self.low)
    }
}

/// Centre and half-range of a row, as f16 bits. `min` and `max` are its extremes.
pub fn row_header(min: f32, max: f32) -> Result<(u16, u16), StaysRaw> {
    let centre = nearest((min + max) * 0.5 + 0.0).ok_or(StaysRaw::HeaderRange)?;
    let c = half::f16::from_bits(centre).to_f32();
    let (above, below) = (max - c, c - min);
    let half_range = round_up(if above > below { above } else { below }).ok_or(StaysRaw::HeaderRange)?;
    Ok((centre, half_range))
}

/// Code of one value.
pub fn code(value: f32, centre: f32, half_range: f32) -> u32 {
    if half_range == 0.0 {
        return 0;
    }
    let scaled = ((value - centre) + half_range) * (HALF / half_range);
    scaled.round_ties_even().clamp(0.0, CODE_MAX as f32) as u32
}

/// Encodes a grid. Panics when an output has another length than the grid's.
pub fn encode(grid: Grid, values: &[u16], header: &mut [u8], codes: &mut [u8]) -> Result<(), StaysRaw> {
    check(grid, values.len(), header.len(), codes.len());
    if !all_finite(values) {
        return Err(StaysRaw::NonFinite);
    }
    codes.fill(0);
    for (row, values) in values.chunks_exact(grid.lanes).enumerate() {
        let (mut min, mut max) = (f32::INFINITY, f32::NEG_INFINITY);
        for value in values.iter().map(|value| raw16::decode(*value)) {
            min = if value < min { value } else { min };
            max = if value > max { value } else { max };
        }
        let (centre, half_range) = row_header(min, max)?;
        write_f16(header, row, centre);
        write_f16(header, grid.rows + row, half_range);
        let (centre, half_range) = (read_f16(header, row), read_f16(header, grid.rows + row));
        let words = codes[row / ROWS * grid.lanes * 4..].chunks_exact_mut(4);
        for (value, word) in values.iter().zip(words) {
            // Nibble `i` of a little-endian word is half `i % 2` of byte `i / 2`.
            let code = code(raw16::decode(*value), centre, half_range) as u8;
            word[row % ROWS / 2] |= code << (row % 2 * 4);
        }
    }
    Ok(())
}

/// Decodes a grid to the nearest bf16. Panics when an argument has another length than the grid's.
pub fn decode(grid: Grid, header: &[u8], codes: &[u8], values: &mut [u16]) -> Result<(), Damaged> {
    check(grid, values.len(), header.len(), codes.len());
    check_header(header)?;
    for (row, values) in values.chunks_exact_mut(grid.lanes).enumerate() {
        let scale = RowScale::new(read_f16(header, row), read_f16(header, grid.rows + row));
        let words = codes[row / ROWS * grid.lanes * 4..].chunks_exact(4);
        for (value, word) in values.iter_mut().zip(words) {
            let code = word[row % ROWS / 2] >> (row % 2 * 4) & 15;
            *value = raw16::encode(scale.value(u32::from(code)));
        }
    }
    Ok(())
}

/// Refuses headers that no encoder writes.
pub fn check_header(header: &[u8]) -> Result<(), Damaged> {
    let (centres, half_ranges) = header.split_at(header.len() / 2);
    let sound = headers_are_finite(centres, false) && headers_are_finite(half_ranges, true);
    sound.then_some(()).ok_or(Damaged::Header)
}

/// Lengths of one side of a slice. Panics when one is wrong.
pub fn check(grid: Grid, values: usize, header: usize, codes: usize) {
    assert!(grid.rows.is_multiple_of(ROWS) && grid.lanes.is_multiple_of(8), "a grid of multiples of 8, not {grid:?}");
    assert_eq!(values, grid.elements(), "values of {grid:?}");
    assert_eq!(header, 4 * grid.rows, "header bytes of {grid:?}");
    assert_eq!(codes, grid.elements() / 2, "code bytes of {grid:?}");
}
