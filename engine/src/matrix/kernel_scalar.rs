//! The scalar twin of the quantised kernels: the definition of their result.
//!
//! For one output and one row of activations, from `acc = 0`, for each K-block in order (each half of it for
//! `ByteHalves`): `isum` is the exact integer dot product of `code - zero` and the activation codes, then
//! `acc = fma(isum as f32, weight scale * activation scale, acc)`, then, where the format has minima,
//! `acc = fma(minimum, activation scale * sum of activation codes, acc)`.

use super::activations::{TILE, Tile};
use super::pack::{BLOCK, Format, LANES, take};

/// One panel times one tile: `out[row][lane]` for the tile's rows.
///
/// `records`: the panel, one record per K-block of the tile.
pub(super) fn multiply_panel(format: Format, records: &[u8], tile: Tile<'_>, out: &mut [[f32; LANES]; TILE]) {
    let zero = format.zero_shift().map_or(0, |shift| 1 << shift);
    out[..tile.rows].fill([0.0; LANES]);
    for (block, record) in records.chunks_exact(format.record_bytes()).enumerate() {
        for lane in 0..LANES {
            let weights = take(format, record, lane);
            for (row, out) in out[..tile.rows].iter_mut().enumerate() {
                let at = block * tile.rows + row;
                let meta = &tile.meta[at];
                let codes = &tile.codes[at * BLOCK..][..BLOCK];
                let mut isum = [0; 2];
                for (k, (weight, x)) in weights.codes.iter().zip(codes).enumerate() {
                    isum[k / 16] += (i32::from(*weight) - zero) * i32::from(*x);
                }
                let acc = &mut out[lane];
                if format == Format::ByteHalves {
                    for (isum, scale) in isum.iter().zip(weights.scale) {
                        *acc = (*isum as f32).mul_add(scale * meta.scale, *acc);
                    }
                } else {
                    *acc = ((isum[0] + isum[1]) as f32).mul_add(weights.scale[0] * meta.scale, *acc);
                }
                if format.has_min() {
                    *acc = weights.minimum.mul_add(meta.scaled_sum, *acc);
                }
            }
        }
    }
}
