//! Extremes of runs of bf16, as integers.
//!
//! # Safety
//! Each function reads exactly the elements that its caller vouches for, in steps of 8: lanes are a multiple of 8.

use std::arch::x86_64::*;

/// Bits of the least and the largest element; of zeros, the negative one is less.
pub(super) struct Extremes {
    pub(super) min: u16,
    pub(super) max: u16,
}

/// Bits to integers in the order of the numbers, and back.
#[inline]
#[target_feature(enable = "avx2")]
fn ordered(x: __m256i) -> __m256i {
    _mm256_xor_si256(x, _mm256_and_si256(_mm256_srai_epi16::<15>(x), _mm256_set1_epi16(0x7fff)))
}

fn bits(ordered: i16) -> u16 {
    (ordered ^ (ordered >> 15 & 0x7fff)) as u16
}

/// Extremes of a row of `lanes` elements; `None` when one is not finite.
///
/// # Safety
/// `lanes` elements can be read, a multiple of 8; the processor has AVX2.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn row_extremes(row: *const u16, lanes: usize) -> Option<Extremes> {
    // SAFETY: the caller's promise.
    unsafe {
        let first = _mm_loadu_si128(row.cast());
        let first = ordered(_mm256_set_m128i(first, first));
        let (mut min, mut max) = (first, first);
        let mut lane = 0;
        while lane + 16 <= lanes {
            let x = ordered(_mm256_loadu_si256(row.add(lane).cast()));
            min = _mm256_min_epi16(min, x);
            max = _mm256_max_epi16(max, x);
            lane += 16;
        }
        if lane < lanes {
            let last = _mm_loadu_si128(row.add(lane).cast());
            let x = ordered(_mm256_set_m128i(last, last));
            min = _mm256_min_epi16(min, x);
            max = _mm256_max_epi16(max, x);
        }
        let min = _mm_min_epi16(_mm256_castsi256_si128(min), _mm256_extracti128_si256::<1>(min));
        let max = _mm_max_epi16(_mm256_castsi256_si128(max), _mm256_extracti128_si256::<1>(max));
        // Horizontal minima of unsigned words.
        let min = _mm_minpos_epu16(_mm_xor_si128(min, _mm_set1_epi16(i16::MIN)));
        let max = _mm_minpos_epu16(_mm_xor_si128(max, _mm_set1_epi16(i16::MAX)));
        let min = _mm_extract_epi16::<0>(min) as u16 as i16 ^ i16::MIN;
        let max = _mm_extract_epi16::<0>(max) as u16 as i16 ^ i16::MAX;
        (max < 0x7f80 && min > bits_of_negative_infinity()).then(|| Extremes { min: bits(min), max: bits(max) })
    }
}

/// What negative infinity is in the order of the numbers.
const fn bits_of_negative_infinity() -> i16 {
    (0xff80u16 ^ 0x7fff) as i16
}

/// Bits of the largest magnitude of a row.
///
/// # Safety
/// `lanes` elements can be read, a multiple of 8; the processor has AVX2.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn row_magnitude(row: *const u16, lanes: usize) -> u16 {
    // SAFETY: the caller's promise.
    unsafe {
        let magnitude = _mm256_set1_epi16(0x7fff);
        let mut most = _mm256_setzero_si256();
        let mut lane = 0;
        while lane + 16 <= lanes {
            let x = _mm256_and_si256(_mm256_loadu_si256(row.add(lane).cast()), magnitude);
            most = _mm256_max_epu16(most, x);
            lane += 16;
        }
        let mut most = _mm_max_epu16(_mm256_castsi256_si128(most), _mm256_extracti128_si256::<1>(most));
        if lane < lanes {
            let x = _mm_and_si128(_mm_loadu_si128(row.add(lane).cast()), _mm256_castsi256_si128(magnitude));
            most = _mm_max_epu16(most, x);
        }
        let least = _mm_minpos_epu16(_mm_xor_si128(most, _mm_set1_epi16(-1)));
        !(_mm_extract_epi16::<0>(least) as u16)
    }
}

/// Bits of the largest magnitude of each of 16 lanes (`N` of them; the others are 0) over `rows` rows.
///
/// # Safety
/// `rows` rows, `lanes` elements apart, of `N` elements can be read, 16 or 8; the processor has AVX2.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn lane_magnitudes<const N: usize>(values: *const u16, rows: usize, lanes: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe {
        let mut most = _mm256_setzero_si256();
        for row in 0..rows {
            let at = values.add(row * lanes);
            let x = if N == 16 {
                _mm256_loadu_si256(at.cast())
            } else {
                _mm256_zextsi128_si256(_mm_loadu_si128(at.cast()))
            };
            most = _mm256_max_epu16(most, _mm256_and_si256(x, _mm256_set1_epi16(0x7fff)));
        }
        most
    }
}
