//! `i8h` over [`Lanes`]: four rows at a time, one u32 of codes per lane; a scale per lane (keys) or per row (values).
//!
//! # Safety
//! `Encode` and `Decode` are made from slices whose lengths `i8h::check` compared with the grid; every access below is at
//! row < rows and lane < lanes of that grid, or at a scale of such a token.

use std::arch::x86_64::*;

use cache_core::codec::i8h::{CODE_MAX, ROWS};
use cache_core::codec::{Grid, StaysRaw};
use cache_core::payload::Side;

use super::ahead::Ahead;
use super::extremes::{lane_magnitudes, lane_magnitudes_32, row_magnitude};
use super::lanes::{Kernel, Lanes};

/// Encodes a grid.
pub(super) struct Encode<'a> {
    pub(super) side: Side,
    pub(super) grid: Grid,
    pub(super) values: &'a [u16],
    pub(super) scales: &'a mut [u8],
    pub(super) codes: &'a mut [u8],
}

impl Kernel for Encode<'_> {
    type Output = Result<(), StaysRaw>;
    #[inline(always)]
    unsafe fn call<V: Lanes>(mut self) -> Result<(), StaysRaw> {
        let Grid { rows, lanes } = self.grid;
        let mut ahead = Ahead::behind(self.values);
        // SAFETY: module header.
        unsafe {
            match self.side {
                Side::Key => {
                    let mut lane = 0;
                    while lane + 32 <= lanes {
                        self.keys_32::<V>(lane, &mut ahead)?;
                        lane += 32;
                    }
                    if lane + 16 <= lanes {
                        self.keys::<V, 16>(lane)?;
                        lane += 16;
                    }
                    if lane < lanes { self.keys::<V, 8>(lane) } else { Ok(()) }
                }
                Side::Value => (0..rows).step_by(8).try_for_each(|first| self.eight_rows::<V>(first, &mut ahead)),
            }
        }
    }
}

impl Encode<'_> {
    /// 32 tokens of keys.
    #[inline(always)]
    unsafe fn keys_32<V: Lanes>(&mut self, lane: usize, ahead: &mut Ahead) -> Result<(), StaysRaw> {
        let Grid { rows, lanes } = self.grid;
        // SAFETY: module header.
        unsafe {
            let (values, codes) = (self.values.as_ptr().add(lane), self.codes.as_mut_ptr().add(4 * lane));
            let scales = self.scales.as_mut_ptr().add(2 * lane);
            let mut factors = [[0.0; 16]; 2];
            for (half, most) in lane_magnitudes_32(values, rows, lanes).into_iter().enumerate() {
                let eights = [_mm256_castsi256_si128(most), _mm256_extracti128_si256::<1>(most)];
                for (eight, most) in eights.into_iter().enumerate() {
                    let number = 2 * half + eight;
                    let of_eight = scale_of(most, scales.add(16 * number))?;
                    for (part, factors) in factors.iter_mut().enumerate() {
                        factors[4 * number..4 * number + 4].copy_from_slice(&of_eight[4 * part..4 * part + 4]);
                    }
                }
            }
            let factors = factors.map(|part| V::floats(part.as_ptr()));
            for row in (0..rows).step_by(ROWS) {
                pack_32::<V>([factors; ROWS], values.add(row * lanes), lanes, codes.add(row * lanes), ahead);
            }
        }
        Ok(())
    }

    /// `N` tokens of keys.
    #[inline(always)]
    unsafe fn keys<V: Lanes, const N: usize>(&mut self, lane: usize) -> Result<(), StaysRaw> {
        let Grid { rows, lanes } = self.grid;
        // SAFETY: module header.
        unsafe {
            let (values, codes) = (self.values.as_ptr().add(lane), self.codes.as_mut_ptr().add(4 * lane));
            let scales = self.scales.as_mut_ptr().add(2 * lane);
            let most = lane_magnitudes::<N>(values, rows, lanes);
            let mut factors = [scale_of(_mm256_castsi256_si128(most), scales)?, [0.0; 8]];
            if N == 16 {
                factors[1] = scale_of(_mm256_extracti128_si256::<1>(most), scales.add(16))?;
            }
            let factors = V::floats(factors.as_ptr().cast());
            for row in (0..rows).step_by(ROWS) {
                pack::<V, N>([factors; ROWS], values.add(row * lanes), lanes, codes.add(row * lanes));
            }
        }
        Ok(())
    }

    /// Eight tokens of values.
    #[inline(always)]
    unsafe fn eight_rows<V: Lanes>(&mut self, first: usize, ahead: &mut Ahead) -> Result<(), StaysRaw> {
        let lanes = self.grid.lanes;
        // SAFETY: module header.
        unsafe {
            let mut most = [0u16; 8];
            for i in 0..8 {
                most[i] = row_magnitude(self.values.as_ptr().add((first + i) * lanes), lanes);
            }
            let scales = self.scales.as_mut_ptr().add(2 * first);
            let factor = scale_of(_mm_loadu_si128(most.as_ptr().cast()), scales)?;
            for half in [0, ROWS] {
                let mut factors = [V::splat(0.0); ROWS];
                for i in 0..ROWS {
                    factors[i] = V::splat(factor[half + i]);
                }
                let values = self.values.as_ptr().add((first + half) * lanes);
                let codes = self.codes.as_mut_ptr().add((first + half) * lanes);
                let mut lane = 0;
                while lane + 32 <= lanes {
                    pack_32::<V>(
                        factors.map(|factor| [factor; 2]),
                        values.add(lane),
                        lanes,
                        codes.add(4 * lane),
                        ahead,
                    );
                    lane += 32;
                }
                if lane + 16 <= lanes {
                    pack::<V, 16>(factors, values.add(lane), lanes, codes.add(4 * lane));
                    lane += 16;
                }
                if lane < lanes {
                    pack::<V, 8>(factors, values.add(lane), lanes, codes.add(4 * lane));
                }
            }
        }
        Ok(())
    }
}

/// Codes of 32 lanes of four rows, as [`pack`] makes them.
#[inline(always)]
unsafe fn pack_32<V: Lanes>(
    factors: [[V; 2]; ROWS],
    values: *const u16,
    lanes: usize,
    codes: *mut u8,
    ahead: &mut Ahead,
) {
    ahead.lines::<4>();
    // SAFETY: module header.
    unsafe {
        let mut rows = factors;
        for i in 0..ROWS {
            let [low, high] = V::split(values.add(i * lanes));
            rows[i] = [low.mul(factors[i][0]), high.mul(factors[i][1])];
        }
        V::store_bytes(rows, codes);
    }
}

/// Codes of `N` lanes of four rows. No clamp: `s` is at least `max |x| / 127` as rounded, so a product rounds to at most 127.
#[inline(always)]
unsafe fn pack<V: Lanes, const N: usize>(factors: [V; ROWS], values: *const u16, lanes: usize, codes: *mut u8) {
    // SAFETY: module header.
    unsafe {
        let mut words = V::zero();
        for i in 0..ROWS {
            words = V::load::<N>(values.add(i * lanes)).mul(factors[i]).pack_byte(words, 8 * i as i32);
        }
        V::store_words::<N>(words, codes);
    }
}

/// Writes the scales of eight tokens, given the bits of their largest magnitudes, and gives what their elements are
/// multiplied with.
///
/// # Safety
/// Eight f16 can be written; the processor has AVX2 and F16C.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn scale_of(most: __m128i, scales: *mut u8) -> Result<[f32; 8], StaysRaw> {
    let infinity = _mm_set1_epi16(0x7f80);
    // Magnitudes have no sign, so a signed comparison will do.
    if _mm_movemask_epi8(_mm_cmpgt_epi16(infinity, most)) != 0xffff {
        return Err(StaysRaw::NonFinite);
    }
    let most = _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(most)));
    let scale = _mm256_cvtps_ph::<_MM_FROUND_TO_POS_INF>(_mm256_div_ps(most, _mm256_set1_ps(CODE_MAX)));
    if _mm_movemask_epi8(_mm_cmpeq_epi16(scale, _mm_set1_epi16(0x7c00))) != 0 {
        return Err(StaysRaw::HeaderRange);
    }
    let s = _mm256_cvtph_ps(scale);
    let factor = _mm256_div_ps(_mm256_set1_ps(1.0), s);
    let factor = _mm256_and_ps(factor, _mm256_cmp_ps::<_CMP_NEQ_OQ>(s, _mm256_setzero_ps()));
    let mut out = [0.0; 8];
    // SAFETY: the caller's promise; an array of eight.
    unsafe {
        _mm_storeu_si128(scales.cast(), scale);
        _mm256_storeu_ps(out.as_mut_ptr(), factor);
    }
    Ok(out)
}

/// Decodes a grid whose scales were checked.
pub(super) struct Decode<'a> {
    pub(super) side: Side,
    pub(super) grid: Grid,
    pub(super) scales: &'a [u8],
    pub(super) codes: &'a [u8],
    pub(super) values: &'a mut [u16],
}

impl Kernel for Decode<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<V: Lanes>(mut self) {
        let Grid { rows, lanes } = self.grid;
        let mut ahead = Ahead::behind(self.codes);
        // SAFETY: module header.
        unsafe {
            match self.side {
                Side::Key => {
                    let mut lane = 0;
                    while lane + 16 <= lanes {
                        self.keys::<V, 16>(lane, &mut ahead);
                        lane += 16;
                    }
                    if lane < lanes {
                        self.keys::<V, 8>(lane, &mut ahead);
                    }
                }
                Side::Value => (0..rows).step_by(8).for_each(|first| self.eight_rows::<V>(first, &mut ahead)),
            }
        }
    }
}

impl Decode<'_> {
    #[inline(always)]
    unsafe fn keys<V: Lanes, const N: usize>(&mut self, lane: usize, ahead: &mut Ahead) {
        let Grid { rows, lanes } = self.grid;
        // SAFETY: module header.
        unsafe {
            let (codes, values) = (self.codes.as_ptr().add(4 * lane), self.values.as_mut_ptr().add(lane));
            let scales = self.scales.as_ptr().add(2 * lane);
            let mut all = [read_scales(scales), [0.0; 8]];
            if N == 16 {
                all[1] = read_scales(scales.add(16));
            }
            let scales = V::floats(all.as_ptr().cast());
            for row in (0..rows).step_by(ROWS) {
                ahead.lines::<1>();
                unpack::<V, N>([scales; ROWS], codes.add(row * lanes), values.add(row * lanes), lanes);
            }
        }
    }

    #[inline(always)]
    unsafe fn eight_rows<V: Lanes>(&mut self, first: usize, ahead: &mut Ahead) {
        let lanes = self.grid.lanes;
        // SAFETY: module header.
        unsafe {
            let all = read_scales(self.scales.as_ptr().add(2 * first));
            for half in [0, ROWS] {
                let mut scales = [V::splat(0.0); ROWS];
                for i in 0..ROWS {
                    scales[i] = V::splat(all[half + i]);
                }
                let codes = self.codes.as_ptr().add((first + half) * lanes);
                let values = self.values.as_mut_ptr().add((first + half) * lanes);
                let mut lane = 0;
                while lane + 16 <= lanes {
                    ahead.lines::<1>();
                    unpack::<V, 16>(scales, codes.add(4 * lane), values.add(lane), lanes);
                    lane += 16;
                }
                if lane < lanes {
                    unpack::<V, 8>(scales, codes.add(4 * lane), values.add(lane), lanes);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn unpack<V: Lanes, const N: usize>(scales: [V; ROWS], codes: *const u8, values: *mut u16, lanes: usize) {
    // SAFETY: module header.
    unsafe {
        let words = V::words::<N>(codes);
        for i in (0..ROWS).step_by(2) {
            let row = |i: usize| V::byte(words, 8 * i as i32).mul(scales[i]);
            V::store_two::<N>([row(i), row(i + 1)], [i, i + 1].map(|i| values.add(i * lanes)));
        }
    }
}

/// # Safety
/// Eight f16 can be read; the processor has AVX2 and F16C.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn read_scales(scales: *const u8) -> [f32; 8] {
    let mut out = [0.0; 8];
    // SAFETY: the caller's promise; an array of eight.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(scales.cast()))) };
    out
}
