//! `kc4` and `vt4` over [`Lanes`]: eight rows at a time, one u32 of codes per lane.
//!
//! # Safety
//! `Encode` and `Decode` are made from slices whose lengths `kc4vt4::check` compared with the grid; every access below is at
//! row < rows and lane < lanes of that grid, or at a header of such a row.

use std::arch::x86_64::*;

use cache_core::codec::kc4vt4::{HALF, ROWS};
use cache_core::codec::{Grid, StaysRaw};

use super::extremes::row_extremes;
use super::lanes::{Kernel, Lanes};

/// Encodes a grid.
pub(super) struct Encode<'a> {
    pub(super) grid: Grid,
    pub(super) values: &'a [u16],
    pub(super) header: &'a mut [u8],
    pub(super) codes: &'a mut [u8],
}

/// Centre, half-range and factor of eight rows.
#[derive(Clone, Copy)]
struct Rows {
    centre: [f32; ROWS],
    half_range: [f32; ROWS],
    factor: [f32; ROWS],
}

impl Kernel for Encode<'_> {
    type Output = Result<(), StaysRaw>;
    #[inline(always)]
    unsafe fn call<V: Lanes>(self) -> Result<(), StaysRaw> {
        let Grid { rows, lanes } = self.grid;
        for first in (0..rows).step_by(ROWS) {
            // SAFETY: module header.
            unsafe {
                let values = self.values.as_ptr().add(first * lanes);
                let header = self.header.as_mut_ptr().add(2 * first);
                let constants = header_of(values, lanes, header, header.add(2 * rows))?;
                let codes = self.codes.as_mut_ptr().add(first * lanes / 2);
                let mut lane = 0;
                while lane + 16 <= lanes {
                    pack::<V, 16>(&constants, values.add(lane), lanes, codes.add(4 * lane));
                    lane += 16;
                }
                if lane < lanes {
                    pack::<V, 8>(&constants, values.add(lane), lanes, codes.add(4 * lane));
                }
            }
        }
        Ok(())
    }
}

/// Codes of `N` lanes of eight rows. No clamp: `|k - c| <= r` before rounding, so `(k - c) + r` is in `0..=2 r` and its
/// product with `7.5 / r` rounds to 0..=15.
#[inline(always)]
unsafe fn pack<V: Lanes, const N: usize>(rows: &Rows, values: *const u16, lanes: usize, codes: *mut u8) {
    // SAFETY: module header.
    unsafe {
        let mut words = V::zero();
        for i in 0..ROWS {
            let value = V::load::<N>(values.add(i * lanes));
            let above = value.sub(V::splat(rows.centre[i])).add(V::splat(rows.half_range[i]));
            words = above.mul(V::splat(rows.factor[i])).pack(words, 4 * i as i32);
        }
        V::store_words::<N>(words, codes);
    }
}

/// Writes the headers of eight rows and gives what their codes need. Errors: as the reference's, except that a row out of
/// range may hide a later one that is not finite.
///
/// # Safety
/// Eight rows of `lanes` values can be read and eight f16 written to each header; the processor has AVX2 and F16C.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn header_of(
    values: *const u16,
    lanes: usize,
    centres: *mut u8,
    half_ranges: *mut u8,
) -> Result<Rows, StaysRaw> {
    // SAFETY: the caller's promise; eight f16 of each header, arrays of eight.
    unsafe {
        let (min, max) = row_extremes(values, lanes).ok_or(StaysRaw::NonFinite)?;
        let middle = _mm256_mul_ps(_mm256_add_ps(min, max), _mm256_set1_ps(0.5));
        let centre = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_add_ps(middle, _mm256_setzero_ps()));
        let c = _mm256_cvtph_ps(centre);
        let reach = _mm256_max_ps(_mm256_sub_ps(max, c), _mm256_sub_ps(c, min));
        let half_range = _mm256_cvtps_ph::<_MM_FROUND_TO_POS_INF>(reach);
        let r = _mm256_cvtph_ps(half_range);
        let exponent = _mm_set1_epi16(0x7c00);
        let infinite = _mm_or_si128(
            _mm_cmpeq_epi16(_mm_and_si128(centre, exponent), exponent),
            _mm_cmpeq_epi16(_mm_and_si128(half_range, exponent), exponent),
        );
        if _mm_movemask_epi8(infinite) != 0 {
            return Err(StaysRaw::HeaderRange);
        }
        _mm_storeu_si128(centres.cast(), centre);
        _mm_storeu_si128(half_ranges.cast(), half_range);
        let factor = _mm256_div_ps(_mm256_set1_ps(HALF), r);
        let factor = _mm256_and_ps(factor, _mm256_cmp_ps::<_CMP_NEQ_OQ>(r, _mm256_setzero_ps()));
        let mut rows = Rows { centre: [0.0; ROWS], half_range: [0.0; ROWS], factor: [0.0; ROWS] };
        _mm256_storeu_ps(rows.centre.as_mut_ptr(), c);
        _mm256_storeu_ps(rows.half_range.as_mut_ptr(), r);
        _mm256_storeu_ps(rows.factor.as_mut_ptr(), factor);
        Ok(rows)
    }
}

/// Decodes a grid whose header was checked.
pub(super) struct Decode<'a> {
    pub(super) grid: Grid,
    pub(super) header: &'a [u8],
    pub(super) codes: &'a [u8],
    pub(super) values: &'a mut [u16],
}

impl Kernel for Decode<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<V: Lanes>(self) {
        let Grid { rows, lanes } = self.grid;
        for first in (0..rows).step_by(ROWS) {
            // SAFETY: module header.
            unsafe {
                let header = self.header.as_ptr().add(2 * first);
                let (low, step) = scales(header, header.add(2 * rows));
                let mut tables = [V::table(0.0, 0.0); ROWS];
                for i in 0..ROWS {
                    tables[i] = V::table(low[i], step[i]);
                }
                let codes = self.codes.as_ptr().add(first * lanes / 2);
                let values = self.values.as_mut_ptr().add(first * lanes);
                let mut lane = 0;
                while lane + 16 <= lanes {
                    unpack::<V, 16>(&tables, codes.add(4 * lane), values.add(lane), lanes);
                    lane += 16;
                }
                if lane < lanes {
                    unpack::<V, 8>(&tables, codes.add(4 * lane), values.add(lane), lanes);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn unpack<V: Lanes, const N: usize>(
    tables: &[V::Table; ROWS],
    codes: *const u8,
    values: *mut u16,
    lanes: usize,
) {
    // SAFETY: module header.
    unsafe {
        let words = V::words::<N>(codes);
        for i in 0..ROWS {
            V::nibbles::<N>(words, 4 * i as i32, tables[i], values.add(i * lanes));
        }
    }
}

/// Lowest value and step of eight rows, as `RowScale::new`.
///
/// # Safety
/// Eight f16 of each header can be read; the processor has AVX2 and F16C.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn scales(centres: *const u8, half_ranges: *const u8) -> ([f32; ROWS], [f32; ROWS]) {
    let (mut low, mut step) = ([0.0; ROWS], [0.0; ROWS]);
    // SAFETY: the caller's promise; arrays of eight.
    unsafe {
        let c = _mm256_cvtph_ps(_mm_loadu_si128(centres.cast()));
        let r = _mm256_cvtph_ps(_mm_loadu_si128(half_ranges.cast()));
        _mm256_storeu_ps(low.as_mut_ptr(), _mm256_sub_ps(c, r));
        _mm256_storeu_ps(step.as_mut_ptr(), _mm256_div_ps(r, _mm256_set1_ps(HALF)));
    }
    (low, step)
}
