//! `sx12` in AVX2 and AVX-512: 32 elements at a time. Escapes are rare and patched one by one.
//!
//! # Safety
//! The safe functions here are given slices whose lengths `sx12::check` compared: `n` elements (a multiple of 32) and
//! `n + n / 2` bytes of codes. Group `g` is elements `32 g..32 g + 32`, bytes `32 g..` of the first plane and `16 g..` of the
//! second. Escapes are read and written through slices.

use std::arch::x86_64::*;

use cache_core::codec::sx12::{ESCAPE, GROUP, Window, choose_top, exponent};
use cache_core::codec::{Damaged, StaysRaw};

use super::ahead::Ahead;

/// Puts escapes into the area in order.
struct Sink<'a> {
    area: &'a mut [u8],
    count: usize,
}

impl Sink<'_> {
    /// Takes the exponents of the elements whose bits are set.
    #[cold]
    fn take(&mut self, mut mask: u32, group: &[u16]) {
        while mask != 0 {
            let at = mask.trailing_zeros() as usize;
            if let Some(slot) = self.area.get_mut(self.count) {
                *slot = exponent(group[at]);
            }
            self.count += 1;
            mask &= mask - 1;
        }
    }

    fn window(self, top: u8) -> Result<Window, StaysRaw> {
        if self.count > self.area.len() {
            return Err(StaysRaw::Escapes);
        }
        Ok(Window { top, escapes: u8::try_from(self.count).map_err(|_| StaysRaw::Escapes)? })
    }
}

/// Gives escapes back in order.
struct Source<'a> {
    escapes: std::slice::Iter<'a, u8>,
    missing: bool,
}

impl Source<'_> {
    /// Puts exponents into the elements whose bits are set. Their other bits come from `bytes` once more: the sum of a low
    /// window and the escape code has reached the sign.
    #[cold]
    fn give(&mut self, mut mask: u32, bytes: &[u8], group: &mut [u16]) {
        while mask != 0 {
            let at = mask.trailing_zeros() as usize;
            let byte = u16::from(bytes[at]);
            match self.escapes.next() {
                Some(escape) => group[at] = (byte & 0x80) << 8 | u16::from(*escape) << 7 | byte & 0x7f,
                None => self.missing = true,
            }
            mask &= mask - 1;
        }
    }

    fn end(self) -> Result<(), Damaged> {
        if self.missing || self.escapes.len() > 0 { Err(Damaged::Escapes) } else { Ok(()) }
    }
}

/// `sx12::encode` for checked lengths.
#[target_feature(enable = "avx2")]
pub(super) fn encode_avx2(values: &[u16], codes: &mut [u8], area: &mut [u8]) -> Result<Window, StaysRaw> {
    let top = choose_top(values, largest_exponent(values), |low| count_below(values, low));
    let mut sink = Sink { area, count: 0 };
    let mut ahead = Ahead::behind(values);
    let (bytes, nibbles) = codes.split_at_mut(values.len());
    let tops = _mm256_set1_epi16(i16::from(top));
    let escape = _mm256_set1_epi16(i16::from(ESCAPE));
    for (g, group) in values.chunks_exact(GROUP).enumerate() {
        ahead.lines::<1>();
        // SAFETY: module header.
        unsafe {
            let low = _mm256_loadu_si256(group.as_ptr().cast());
            let high = _mm256_loadu_si256(group.as_ptr().add(16).cast());
            let plane = in_order(_mm256_packus_epi16(sign_and_mantissa(low), sign_and_mantissa(high)));
            _mm256_storeu_si256(bytes.as_mut_ptr().add(g * GROUP).cast(), plane);
            let (low, high) = (code_of(low, tops), code_of(high, tops));
            let pairs = _mm256_or_si256(low, _mm256_slli_epi16::<4>(high));
            let packed = in_order(_mm256_packus_epi16(pairs, pairs));
            _mm_storeu_si128(nibbles.as_mut_ptr().add(g * 16).cast(), _mm256_castsi256_si128(packed));
            let escapes = _mm256_packs_epi16(_mm256_cmpeq_epi16(low, escape), _mm256_cmpeq_epi16(high, escape));
            let mask = _mm256_movemask_epi8(in_order(escapes)) as u32;
            if mask != 0 {
                sink.take(mask, group);
            }
        }
    }
    sink.window(top)
}

/// `sx12::decode` for a checked window and checked lengths.
#[target_feature(enable = "avx2")]
pub(super) fn decode_avx2(window: Window, codes: &[u8], escapes: &[u8], values: &mut [u16]) -> Result<(), Damaged> {
    let mut source = Source { escapes: escapes.iter(), missing: false };
    let mut ahead = Ahead::behind(codes);
    let (bytes, nibbles) = codes.split_at(values.len());
    let tops = _mm256_set1_epi16(i16::from(window.top) << 7);
    for (g, group) in values.chunks_exact_mut(GROUP).enumerate() {
        // Four groups are three lines of codes.
        if g % 4 > 0 {
            ahead.lines::<1>();
        }
        // SAFETY: module header.
        unsafe {
            let pairs = _mm256_cvtepu8_epi16(_mm_loadu_si128(nibbles.as_ptr().add(g * 16).cast()));
            let low = _mm256_and_si256(pairs, _mm256_set1_epi16(15));
            let high = _mm256_srli_epi16::<4>(pairs);
            for (i, codes) in [low, high].into_iter().enumerate() {
                let byte = _mm256_cvtepu8_epi16(_mm_loadu_si128(bytes.as_ptr().add(g * GROUP + i * 16).cast()));
                let exponents = _mm256_sub_epi16(tops, _mm256_slli_epi16::<7>(codes));
                let sign = _mm256_and_si256(_mm256_slli_epi16::<8>(byte), _mm256_set1_epi16(i16::MIN));
                let mantissa = _mm256_and_si256(byte, _mm256_set1_epi16(0x7f));
                let value = _mm256_or_si256(_mm256_or_si256(exponents, mantissa), sign);
                _mm256_storeu_si256(group.as_mut_ptr().add(i * 16).cast(), value);
            }
            let escape = _mm256_set1_epi16(i16::from(ESCAPE));
            let escapes = _mm256_packs_epi16(_mm256_cmpeq_epi16(low, escape), _mm256_cmpeq_epi16(high, escape));
            let mask = _mm256_movemask_epi8(in_order(escapes)) as u32;
            if mask != 0 {
                source.give(mask, &bytes[g * GROUP..], group);
            }
        }
    }
    source.end()
}

/// `sx12::encode` for checked lengths.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
pub(super) fn encode_avx512(values: &[u16], codes: &mut [u8], area: &mut [u8]) -> Result<Window, StaysRaw> {
    let top = choose_top(values, largest_exponent(values), |low| count_below(values, low));
    let mut sink = Sink { area, count: 0 };
    let mut ahead = Ahead::behind(values);
    let (bytes, nibbles) = codes.split_at_mut(values.len());
    let tops = _mm512_set1_epi16(i16::from(top));
    let escape = _mm512_set1_epi16(i16::from(ESCAPE));
    for (g, group) in values.chunks_exact(GROUP).enumerate() {
        ahead.lines::<1>();
        // SAFETY: module header.
        unsafe {
            let x = _mm512_loadu_si512(group.as_ptr().cast());
            let sign = _mm512_and_si512(_mm512_srli_epi16::<8>(x), _mm512_set1_epi16(0x80));
            // sign | x & 0x7f
            let plane = _mm512_ternarylogic_epi32::<0b1111_1000>(sign, x, _mm512_set1_epi16(0x7f));
            _mm256_storeu_si256(bytes.as_mut_ptr().add(g * GROUP).cast(), _mm512_cvtepi16_epi8(plane));
            let exponents = _mm512_srli_epi16::<8>(_mm512_slli_epi16::<1>(x));
            let code = _mm512_min_epu16(_mm512_sub_epi16(tops, exponents), escape);
            let mask = _mm512_cmpeq_epi16_mask(code, escape);
            let code = _mm512_cvtepi16_epi8(code);
            let high = _mm_slli_epi16::<4>(_mm256_extracti128_si256::<1>(code));
            let pairs = _mm_or_si128(_mm256_castsi256_si128(code), high);
            _mm_storeu_si128(nibbles.as_mut_ptr().add(g * 16).cast(), pairs);
            if mask != 0 {
                sink.take(mask, group);
            }
        }
    }
    sink.window(top)
}

/// `sx12::decode` for a checked window and checked lengths.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512vl")]
pub(super) fn decode_avx512(window: Window, codes: &[u8], escapes: &[u8], values: &mut [u16]) -> Result<(), Damaged> {
    let mut source = Source { escapes: escapes.iter(), missing: false };
    let mut ahead = Ahead::behind(codes);
    let (bytes, nibbles) = codes.split_at(values.len());
    let tops = _mm512_set1_epi16(i16::from(window.top) << 7);
    let escape = _mm512_set1_epi16(i16::from(ESCAPE));
    for (g, group) in values.chunks_exact_mut(GROUP).enumerate() {
        // Four groups are three lines of codes.
        if g % 4 > 0 {
            ahead.lines::<1>();
        }
        // SAFETY: module header.
        unsafe {
            let pairs = _mm256_cvtepu8_epi16(_mm_loadu_si128(nibbles.as_ptr().add(g * 16).cast()));
            let low = _mm256_and_si256(pairs, _mm256_set1_epi16(15));
            let codes = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), _mm256_srli_epi16::<4>(pairs));
            let byte = _mm512_cvtepu8_epi16(_mm256_loadu_si256(bytes.as_ptr().add(g * GROUP).cast()));
            let exponents = _mm512_sub_epi16(tops, _mm512_slli_epi16::<7>(codes));
            // exponents | byte & 0x7f, then | byte << 8 & 0x8000
            let x = _mm512_ternarylogic_epi32::<0b1111_1000>(exponents, byte, _mm512_set1_epi16(0x7f));
            let sign = _mm512_slli_epi16::<8>(byte);
            let x = _mm512_ternarylogic_epi32::<0b1111_1000>(x, sign, _mm512_set1_epi16(i16::MIN));
            _mm512_storeu_si512(group.as_mut_ptr().cast(), x);
            let mask = _mm512_cmpeq_epi16_mask(codes, escape);
            if mask != 0 {
                source.give(mask, &bytes[g * GROUP..], group);
            }
        }
    }
    source.end()
}

/// The four quarters of what a pack instruction left, in the order of memory.
#[target_feature(enable = "avx2")]
fn in_order(packed: __m256i) -> __m256i {
    _mm256_permute4x64_epi64::<0b1101_1000>(packed)
}

#[target_feature(enable = "avx2")]
fn sign_and_mantissa(x: __m256i) -> __m256i {
    let sign = _mm256_and_si256(_mm256_srli_epi16::<8>(x), _mm256_set1_epi16(0x80));
    _mm256_or_si256(sign, _mm256_and_si256(x, _mm256_set1_epi16(0x7f)))
}

/// Codes in 16-bit lanes; what is above the window wraps around to a large number.
#[target_feature(enable = "avx2")]
fn code_of(x: __m256i, tops: __m256i) -> __m256i {
    let exponents = _mm256_srli_epi16::<8>(_mm256_slli_epi16::<1>(x));
    _mm256_min_epu16(_mm256_sub_epi16(tops, exponents), _mm256_set1_epi16(i16::from(ESCAPE)))
}

#[target_feature(enable = "avx2")]
fn largest_exponent(values: &[u16]) -> u8 {
    let mut most = _mm256_setzero_si256();
    for group in values.chunks_exact(GROUP) {
        // SAFETY: 32 elements.
        let (a, b) =
            unsafe { (_mm256_loadu_si256(group.as_ptr().cast()), _mm256_loadu_si256(group.as_ptr().add(16).cast())) };
        // Without its sign, a number orders as its bits.
        let magnitude = _mm256_set1_epi16(0x7fff);
        most = _mm256_max_epu16(most, _mm256_and_si256(a, magnitude));
        most = _mm256_max_epu16(most, _mm256_and_si256(b, magnitude));
    }
    let most = _mm_max_epu16(_mm256_castsi256_si128(most), _mm256_extracti128_si256::<1>(most));
    let least = _mm_minpos_epu16(_mm_xor_si128(most, _mm_set1_epi16(-1)));
    exponent(!(_mm_extract_epi16::<0>(least) as u16))
}

/// Number of elements whose exponent is below `low`.
#[target_feature(enable = "avx2")]
fn count_below(values: &[u16], low: u8) -> usize {
    let bound = _mm256_set1_epi16((u16::from(low) << 7) as i16);
    let mut count = 0;
    // Lanes count to at most 2 * 1024 before they are added up.
    for part in values.chunks(1024 * GROUP) {
        let mut lanes = _mm256_setzero_si256();
        for group in part.chunks_exact(GROUP) {
            // SAFETY: 32 elements.
            let (a, b) = unsafe {
                (_mm256_loadu_si256(group.as_ptr().cast()), _mm256_loadu_si256(group.as_ptr().add(16).cast()))
            };
            let magnitude = _mm256_set1_epi16(0x7fff);
            lanes = _mm256_sub_epi16(lanes, _mm256_cmpgt_epi16(bound, _mm256_and_si256(a, magnitude)));
            lanes = _mm256_sub_epi16(lanes, _mm256_cmpgt_epi16(bound, _mm256_and_si256(b, magnitude)));
        }
        let mut sums = [0i32; 8];
        let pairs = _mm256_madd_epi16(lanes, _mm256_set1_epi16(1));
        // SAFETY: an array of eight.
        unsafe { _mm256_storeu_si256(sums.as_mut_ptr().cast(), pairs) };
        count += sums.iter().sum::<i32>() as usize;
    }
    count
}
