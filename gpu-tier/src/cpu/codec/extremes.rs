//! Extremes of runs of bf16, as integers.
//!
//! # Safety
//! Each function reads exactly the elements that its caller vouches for, in steps of 8: lanes are a multiple of 8.

use std::arch::x86_64::*;

/// Bits to integers in the order of the numbers, and back.
#[inline]
#[target_feature(enable = "avx2")]
fn ordered(x: __m256i) -> __m256i {
    _mm256_xor_si256(x, _mm256_and_si256(_mm256_srai_epi16::<15>(x), _mm256_set1_epi16(0x7fff)))
}

/// Least and largest element of each of eight rows; of zeros, the negative one is less. `None` when one is not finite.
///
/// # Safety
/// Eight rows of `lanes` elements can be read, a multiple of 8; the processor has AVX2.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn row_extremes(rows: *const u16, lanes: usize) -> Option<(__m256, __m256)> {
    let (mut least, mut most) = ([_mm_setzero_si128(); 8], [_mm_setzero_si128(); 8]);
    for i in 0..8 {
        // SAFETY: the caller's promise.
        (least[i], most[i]) = unsafe { row_candidates(rows.add(i * lanes), lanes) };
    }
    let min = halve(least, |a, b| _mm_min_epi16(a, b));
    let max = halve(most, |a, b| _mm_max_epi16(a, b));
    let infinite = _mm_or_si128(
        _mm_cmpgt_epi16(max, _mm_set1_epi16(0x7f7f)),
        _mm_cmpgt_epi16(_mm_set1_epi16(bits_of_negative_infinity() + 1), min),
    );
    (_mm_movemask_epi8(infinite) == 0).then(|| (floats_of(min), floats_of(max)))
}

/// Eight elements among which is the least of a row, and eight with the largest, in the order of the numbers.
///
/// # Safety
/// `lanes` elements can be read, a multiple of 8; the processor has AVX2.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn row_candidates(row: *const u16, lanes: usize) -> (__m128i, __m128i) {
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
        (min, max)
    }
}

/// Lane `i`: what `choose` leaves of all lanes of `rows[i]`. Each level interleaves the lanes of two rows.
#[inline]
#[target_feature(enable = "avx2")]
fn halve(rows: [__m128i; 8], choose: impl Fn(__m128i, __m128i) -> __m128i) -> __m128i {
    let pair = |a: __m128i, b: __m128i| choose(_mm_unpacklo_epi16(a, b), _mm_unpackhi_epi16(a, b));
    let [a, b, c, d, e, f, g, h] = rows;
    pair(pair(pair(a, e), pair(c, g)), pair(pair(b, f), pair(d, h)))
}

/// Ordered integers as the numbers that they stand for.
#[inline]
#[target_feature(enable = "avx2")]
fn floats_of(ordered: __m128i) -> __m256 {
    let bits = _mm_xor_si128(ordered, _mm_and_si128(_mm_srai_epi16::<15>(ordered), _mm_set1_epi16(0x7fff)));
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
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

/// Bits of the largest magnitude of each of 32 lanes over `rows` rows.
///
/// # Safety
/// `rows` rows, `lanes` elements apart, of 32 elements can be read; the processor has AVX2.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn lane_magnitudes_32(values: *const u16, rows: usize, lanes: usize) -> [__m256i; 2] {
    let mut most = [_mm256_setzero_si256(); 2];
    for row in 0..rows {
        for (half, most) in most.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            let x = unsafe { _mm256_loadu_si256(values.add(row * lanes + 16 * half).cast()) };
            *most = _mm256_max_epu16(*most, _mm256_and_si256(x, _mm256_set1_epi16(0x7fff)));
        }
    }
    most
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
