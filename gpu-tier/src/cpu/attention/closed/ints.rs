//! What the closed kernels need of lanes beyond [`Lanes`](super::super::lanes::Lanes): packed codes, pairs of 16-bit
//! integers and their dot products.
//!
//! # Safety
//! As for `lanes.rs`: called inside `Lanes::run` only, whose body has the instruction set enabled; pointers are the kernels'
//! to vouch for.

use std::arch::x86_64::*;

use super::super::lanes::{Avx2, Avx512};

/// Sixteen lanes of integers.
pub(in super::super) trait Ints: Copy {
    /// Sixteen i32, or the u32 words of packed codes.
    type Words: Copy;
    /// Reads 16 f16 as f32.
    unsafe fn halves(from: *const u8) -> Self;
    /// Per lane, the larger of a magnitude seen so far and this one's.
    unsafe fn magnitude(self, most: Self) -> Self;
    /// Rounds to integers of 16 bits, ties to even, and writes 8 pairs: lanes (i, i + 4) of each eight, as i | (i + 4) << 16.
    unsafe fn pairs_of_eight(self, to: *mut i32);
    /// The same with lanes (i, i + 2) of each four.
    unsafe fn pairs_of_four(self, to: *mut i32);
    unsafe fn no_words() -> Self::Words;
    unsafe fn words(from: *const u8) -> Self::Words;
    /// Codes of rows `i` and `i + 4` of the word as two 16-bit integers.
    unsafe fn nibbles(words: Self::Words, i: usize) -> Self::Words;
    /// Codes of rows `i` and `i + 2` of the word as two 16-bit integers.
    unsafe fn bytes(words: Self::Words, i: usize) -> Self::Words;
    /// `sums + low * low + high * high` of the 16-bit halves, `pair` the same for all lanes.
    unsafe fn dot(sums: Self::Words, codes: Self::Words, pair: i32) -> Self::Words;
    /// Nearest f32, ties to even.
    unsafe fn floats(words: Self::Words) -> Self;
}

/// Four 16-bit words, the low halves of integers `first` and `first + apart`, and of the two after them.
const fn two_pairs(first: i64, apart: i64) -> i64 {
    let (low, high) = (2 * first, 2 * (first + apart));
    low | (high << 16) | ((low + 2) << 32) | ((high + 2) << 48)
}

/// Words of the pairs (i, i + 4) of each eight.
const EIGHT: [i64; 4] = [two_pairs(0, 4), two_pairs(2, 4), two_pairs(8, 4), two_pairs(10, 4)];
/// Words of the pairs (i, i + 2) of each four.
const FOUR: [i64; 4] = [two_pairs(0, 2), two_pairs(4, 2), two_pairs(8, 2), two_pairs(12, 2)];

/// Lanes (i, i + 4) of 8 integers as pairs.
#[target_feature(enable = "avx2")]
fn pairs_of_eight(x: __m256i) -> __m128i {
    _mm_blend_epi16::<0xaa>(_mm256_castsi256_si128(x), _mm_slli_epi32::<16>(_mm256_extracti128_si256::<1>(x)))
}

/// Lanes (i, i + 2) of each 4 of 8 integers as pairs.
#[target_feature(enable = "avx2")]
fn pairs_of_four(x: __m256i) -> __m128i {
    let upper = _mm256_slli_epi32::<16>(_mm256_shuffle_epi32::<0b1110>(x));
    let pairs = _mm256_blend_epi16::<0xaa>(x, upper);
    _mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b1000>(pairs))
}

// SAFETY (every block below): the processor has the set (module header) and the pointers are the caller's to vouch for.
impl Ints for Avx2 {
    type Words = (__m256i, __m256i);
    #[inline(always)]
    unsafe fn halves(from: *const u8) -> Self {
        // SAFETY: as above the `impl`.
        unsafe {
            let low = _mm256_cvtph_ps(_mm_loadu_si128(from.cast()));
            Avx2(low, _mm256_cvtph_ps(_mm_loadu_si128(from.add(16).cast())))
        }
    }
    #[inline(always)]
    unsafe fn magnitude(self, most: Self) -> Self {
        // SAFETY: as above the `impl`.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            let low = _mm256_max_ps(_mm256_andnot_ps(sign, self.0), most.0);
            Avx2(low, _mm256_max_ps(_mm256_andnot_ps(sign, self.1), most.1))
        }
    }
    #[inline(always)]
    unsafe fn pairs_of_eight(self, to: *mut i32) {
        // SAFETY: as above the `impl`.
        unsafe {
            _mm_storeu_si128(to.cast(), pairs_of_eight(_mm256_cvtps_epi32(self.0)));
            _mm_storeu_si128(to.add(4).cast(), pairs_of_eight(_mm256_cvtps_epi32(self.1)));
        }
    }
    #[inline(always)]
    unsafe fn pairs_of_four(self, to: *mut i32) {
        // SAFETY: as above the `impl`.
        unsafe {
            _mm_storeu_si128(to.cast(), pairs_of_four(_mm256_cvtps_epi32(self.0)));
            _mm_storeu_si128(to.add(4).cast(), pairs_of_four(_mm256_cvtps_epi32(self.1)));
        }
    }
    #[inline(always)]
    unsafe fn no_words() -> Self::Words {
        // SAFETY: as above the `impl`.
        unsafe { (_mm256_setzero_si256(), _mm256_setzero_si256()) }
    }
    #[inline(always)]
    unsafe fn words(from: *const u8) -> Self::Words {
        // SAFETY: as above the `impl`.
        unsafe { (_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())) }
    }
    #[inline(always)]
    unsafe fn nibbles(words: Self::Words, i: usize) -> Self::Words {
        // SAFETY: as above the `impl`.
        unsafe {
            let (shift, mask) = (_mm_cvtsi32_si128(4 * i as i32), _mm256_set1_epi32(0x000f_000f));
            let (low, high) = (_mm256_srl_epi16(words.0, shift), _mm256_srl_epi16(words.1, shift));
            // The last nibble is alone after the shift.
            if i == 3 { (low, high) } else { (_mm256_and_si256(low, mask), _mm256_and_si256(high, mask)) }
        }
    }
    #[inline(always)]
    unsafe fn bytes(words: Self::Words, i: usize) -> Self::Words {
        // SAFETY: as above the `impl`.
        unsafe {
            let up = _mm_cvtsi32_si128(if i == 0 { 8 } else { 0 });
            let low = _mm256_srai_epi16::<8>(_mm256_sll_epi16(words.0, up));
            (low, _mm256_srai_epi16::<8>(_mm256_sll_epi16(words.1, up)))
        }
    }
    #[inline(always)]
    unsafe fn dot(sums: Self::Words, codes: Self::Words, pair: i32) -> Self::Words {
        // SAFETY: as above the `impl`.
        unsafe {
            let pair = _mm256_set1_epi32(pair);
            let low = _mm256_add_epi32(sums.0, _mm256_madd_epi16(codes.0, pair));
            (low, _mm256_add_epi32(sums.1, _mm256_madd_epi16(codes.1, pair)))
        }
    }
    #[inline(always)]
    unsafe fn floats(words: Self::Words) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx2(_mm256_cvtepi32_ps(words.0), _mm256_cvtepi32_ps(words.1)) }
    }
}

// SAFETY (every block below): as for `Avx2`.
impl Ints for Avx512 {
    type Words = __m512i;
    #[inline(always)]
    unsafe fn halves(from: *const u8) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx512(_mm512_cvtph_ps(_mm256_loadu_si256(from.cast()))) }
    }
    #[inline(always)]
    unsafe fn magnitude(self, most: Self) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx512(_mm512_max_ps(_mm512_abs_ps(self.0), most.0)) }
    }
    #[inline(always)]
    unsafe fn pairs_of_eight(self, to: *mut i32) {
        // SAFETY: as above the `impl`.
        unsafe {
            let order = _mm512_setr_epi64(EIGHT[0], EIGHT[1], EIGHT[2], EIGHT[3], 0, 0, 0, 0);
            let pairs = _mm512_permutexvar_epi16(order, _mm512_cvtps_epi32(self.0));
            _mm256_storeu_si256(to.cast(), _mm512_castsi512_si256(pairs));
        }
    }
    #[inline(always)]
    unsafe fn pairs_of_four(self, to: *mut i32) {
        // SAFETY: as above the `impl`.
        unsafe {
            let order = _mm512_setr_epi64(FOUR[0], FOUR[1], FOUR[2], FOUR[3], 0, 0, 0, 0);
            let pairs = _mm512_permutexvar_epi16(order, _mm512_cvtps_epi32(self.0));
            _mm256_storeu_si256(to.cast(), _mm512_castsi512_si256(pairs));
        }
    }
    #[inline(always)]
    unsafe fn no_words() -> Self::Words {
        // SAFETY: as above the `impl`.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn words(from: *const u8) -> Self::Words {
        // SAFETY: as above the `impl`.
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn nibbles(words: Self::Words, i: usize) -> Self::Words {
        // SAFETY: as above the `impl`.
        unsafe {
            let shifted = _mm512_srl_epi16(words, _mm_cvtsi32_si128(4 * i as i32));
            // The last nibble is alone after the shift.
            if i == 3 { shifted } else { _mm512_and_si512(shifted, _mm512_set1_epi32(0x000f_000f)) }
        }
    }
    #[inline(always)]
    unsafe fn bytes(words: Self::Words, i: usize) -> Self::Words {
        // SAFETY: as above the `impl`.
        unsafe {
            let up = _mm_cvtsi32_si128(if i == 0 { 8 } else { 0 });
            _mm512_srai_epi16::<8>(_mm512_sll_epi16(words, up))
        }
    }
    #[inline(always)]
    unsafe fn dot(sums: Self::Words, codes: Self::Words, pair: i32) -> Self::Words {
        // SAFETY: as above the `impl`.
        unsafe { _mm512_dpwssd_epi32(sums, codes, _mm512_set1_epi32(pair)) }
    }
    #[inline(always)]
    unsafe fn floats(words: Self::Words) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx512(_mm512_cvtepi32_ps(words)) }
    }
}
