//! The quantised kernels in AVX2: two vectors of eight outputs, `vpmaddwd` over pairs of columns.
//!
//! # Safety
//! Every function reads through raw pointers inside what its safe caller, [`multiply_panel`], has checked: a whole
//! number of records, and codes and metadata for each of their K-blocks and each row of the tile.

use std::arch::x86_64::*;

use super::activations::{BlockMeta, TILE, Tile};
use super::pack::{BLOCK, Format, LANES};

/// Pairs of columns in a K-block.
const PAIRS: usize = BLOCK / 2;
/// How far ahead of the codes in use to prefetch, when a panel is read for a single row.
const PREFETCH_BYTES: usize = 1024;

/// Sixteen lanes.
type Ints = [__m256i; 2];
/// Sixteen lanes.
type Floats = [__m256; 2];

/// [`super::kernel_scalar::multiply_panel`], bit for bit. Panics when `records` and the tile differ in K-blocks.
///
/// # Safety
/// The processor has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn multiply_panel<const F: u8>(records: &[u8], tile: Tile<'_>, out: &mut [[f32; LANES]; TILE]) {
    let bytes = const { Format::from_u8(F).record_bytes() };
    assert_eq!(records.len(), tile.blocks * bytes, "one record per K-block");
    assert_eq!(tile.codes.len(), tile.blocks * tile.rows * BLOCK, "codes of every row");
    assert_eq!(tile.meta.len(), tile.blocks * tile.rows, "metadata of every row");
    assert!(tile.rows <= TILE, "at most a tile of rows");
    if tile.rows == 1 {
        // SAFETY: the lengths were checked above.
        unsafe { single::<F>(records, tile, &mut out[0]) };
        return;
    }
    out[..tile.rows].fill([0.0; LANES]);
    for (block, record) in records.chunks_exact(bytes).enumerate() {
        // SAFETY: the record is whole.
        let (scales, weights) = unsafe { (load_scales::<F>(record.as_ptr()), unpack::<F>(record.as_ptr())) };
        let mut row = 0;
        while row + 4 <= tile.rows {
            // SAFETY: rows `row..row + 4` of K-block `block` are inside the tile, whose lengths were checked.
            unsafe { rows::<F, 4>(&weights, scales, tile, block, row, out) };
            row += 4;
        }
        while row < tile.rows {
            // SAFETY: as above for one row.
            unsafe { rows::<F, 1>(&weights, scales, tile, block, row, out) };
            row += 1;
        }
    }
}

/// The two runs of scales of a record: scale and minimum, or the scales of both halves.
#[derive(Clone, Copy)]
struct Scales(Floats, Floats);

/// # Safety
/// `record` points at a whole record.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_scales<const F: u8>(record: *const u8) -> Scales {
    // SAFETY: each load is inside the record's scales (`Format::scale_bytes`).
    unsafe {
        let eight = |at: usize| _mm256_cvtph_ps(_mm_loadu_si128(record.add(at).cast()));
        let half = |at: usize| [eight(at), eight(at + 16)];
        let wide = |at: usize| load_floats(record.add(at).cast());
        match const { Format::from_u8(F) } {
            Format::Nibble | Format::Byte => Scales(half(0), [_mm256_setzero_ps(); 2]),
            Format::NibbleMin => Scales(half(0), half(32)),
            Format::NibbleMinWide | Format::ByteHalves => Scales(wide(0), wide(64)),
        }
    }
}

/// Sixteen words at `source`.
///
/// # Safety
/// `source` points at 64 bytes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load(source: *const u8) -> Ints {
    // SAFETY: by the caller's promise.
    unsafe { [_mm256_loadu_si256(source.cast()), _mm256_loadu_si256(source.add(32).cast())] }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn and(words: Ints, mask: __m256i) -> Ints {
    [_mm256_and_si256(words[0], mask), _mm256_and_si256(words[1], mask)]
}

/// Each 32-bit word shifted right.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn shift<const BITS: i32>(words: Ints) -> Ints {
    [_mm256_srli_epi32::<BITS>(words[0]), _mm256_srli_epi32::<BITS>(words[1])]
}

/// The upper byte of each 16-bit half of a word.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn upper_bytes(words: Ints) -> Ints {
    [_mm256_srli_epi16::<8>(words[0]), _mm256_srli_epi16::<8>(words[1])]
}

/// The codes of a record as sixteen pairs of columns.
///
/// # Safety
/// `record` points at a whole record.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack<const F: u8>(record: *const u8) -> [Ints; PAIRS] {
    let format = const { Format::from_u8(F) };
    let mut pairs = [[_mm256_setzero_si256(); 2]; PAIRS];
    // SAFETY: the codes follow the scales, 4 or 8 groups of 64 bytes.
    let group = |at: usize| unsafe { load(record.add(format.scale_bytes() + at * 64)) };
    if format.is_nibble() {
        let mask = _mm256_set1_epi32(0x000f_000f);
        for g in 0..PAIRS / 4 {
            let word = group(g);
            pairs[g * 4] = and(word, mask);
            pairs[g * 4 + 1] = and(shift::<4>(word), mask);
            pairs[g * 4 + 2] = and(shift::<8>(word), mask);
            pairs[g * 4 + 3] = and(shift::<12>(word), mask);
        }
    } else {
        let mask = _mm256_set1_epi32(0x00ff_00ff);
        for g in 0..PAIRS / 2 {
            let word = group(g);
            pairs[g * 2] = and(word, mask);
            pairs[g * 2 + 1] = upper_bytes(word);
        }
    }
    pairs
}

/// Where an integer sum starts so that it ends without the zero point: minus zero point times sum of codes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn start<const F: u8>(minus_sum: i32) -> Ints {
    match const { Format::from_u8(F).zero_shift() } {
        Some(3) => [_mm256_slli_epi32::<3>(_mm256_set1_epi32(minus_sum)); 2],
        Some(_) => [_mm256_slli_epi32::<7>(_mm256_set1_epi32(minus_sum)); 2],
        None => [_mm256_setzero_si256(); 2],
    }
}

/// `sum + weights * pair`, over both columns of the pair.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn dot(sum: Ints, weights: Ints, pair: __m256i) -> Ints {
    [
        _mm256_add_epi32(sum[0], _mm256_madd_epi16(weights[0], pair)),
        _mm256_add_epi32(sum[1], _mm256_madd_epi16(weights[1], pair)),
    ]
}

/// Adds one K-block, given its integer sums (the second is used by `ByteHalves` alone), to an accumulator.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn accumulate<const F: u8>(isum: [Ints; 2], scales: Scales, meta: &BlockMeta, mut acc: Floats) -> Floats {
    let format = const { Format::from_u8(F) };
    let scale = _mm256_set1_ps(meta.scale);
    for i in 0..2 {
        acc[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum[0][i]), _mm256_mul_ps(scales.0[i], scale), acc[i]);
        if matches!(format, Format::ByteHalves) {
            acc[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(isum[1][i]), _mm256_mul_ps(scales.1[i], scale), acc[i]);
        }
        if format.has_min() {
            acc[i] = _mm256_fmadd_ps(scales.1[i], _mm256_set1_ps(meta.scaled_sum), acc[i]);
        }
    }
    acc
}

/// # Safety
/// `source` points at 16 floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_floats(source: *const f32) -> Floats {
    // SAFETY: by the caller's promise.
    unsafe { [_mm256_loadu_ps(source), _mm256_loadu_ps(source.add(8))] }
}

/// # Safety
/// `target` points at 16 floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn store_floats(target: *mut f32, values: Floats) {
    // SAFETY: by the caller's promise.
    unsafe {
        _mm256_storeu_ps(target, values[0]);
        _mm256_storeu_ps(target.add(8), values[1]);
    }
}

/// Adds one K-block to `R` rows of accumulators.
///
/// # Safety
/// `block` and rows `first..first + R` are inside the tile.
#[expect(clippy::needless_range_loop, reason = "row and pair index registers, memory and offsets alike")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn rows<const F: u8, const R: usize>(
    weights: &[Ints; PAIRS],
    scales: Scales,
    tile: Tile<'_>,
    block: usize,
    first: usize,
    out: &mut [[f32; LANES]; TILE],
) {
    let halves = const { matches!(Format::from_u8(F), Format::ByteHalves) };
    let at = block * tile.rows + first;
    // SAFETY: inside the tile by the caller's promise; `out` has TILE rows.
    unsafe {
        let x = tile.codes.as_ptr().add(at * BLOCK).cast::<i32>();
        let meta = tile.meta.as_ptr().add(at);
        let out = out.as_mut_ptr().add(first);
        let mut low = [[_mm256_setzero_si256(); 2]; R];
        let mut high = low;
        for r in 0..R {
            let meta = &*meta.add(r);
            low[r] = start::<F>(if halves { meta.minus_half_sums[0] } else { meta.minus_sum });
        }
        for p in 0..PAIRS / 2 {
            for r in 0..R {
                low[r] = dot(low[r], weights[p], _mm256_set1_epi32(*x.add(r * PAIRS + p)));
            }
        }
        if halves {
            for r in 0..R {
                high[r] = start::<F>((*meta.add(r)).minus_half_sums[1]);
            }
        }
        for p in PAIRS / 2..PAIRS {
            for r in 0..R {
                let sum = if halves { &mut high[r] } else { &mut low[r] };
                *sum = dot(*sum, weights[p], _mm256_set1_epi32(*x.add(r * PAIRS + p)));
            }
        }
        for r in 0..R {
            let target = out.add(r).cast::<f32>();
            let acc = accumulate::<F>([low[r], high[r]], scales, &*meta.add(r), load_floats(target));
            store_floats(target, acc);
        }
    }
}

/// One row: codes are unpacked as they are used and the accumulator stays in registers.
///
/// # Safety
/// `records` holds `tile.blocks` whole records and the tile one row of as many K-blocks.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn single<const F: u8>(records: &[u8], tile: Tile<'_>, out: &mut [f32; LANES]) {
    let format = const { Format::from_u8(F) };
    let mut acc = [_mm256_setzero_ps(); 2];
    for block in 0..tile.blocks {
        // SAFETY: `block` is inside both, by the caller's promise; a prefetch may point anywhere.
        unsafe {
            let record = records.as_ptr().add(block * format.record_bytes());
            for line in 0..format.record_bytes().div_ceil(64) {
                _mm_prefetch::<_MM_HINT_T0>(record.wrapping_add(PREFETCH_BYTES + line * 64).cast());
            }
            let x = tile.codes.as_ptr().add(block * BLOCK).cast::<i32>();
            let meta = &*tile.meta.as_ptr().add(block);
            let scales = load_scales::<F>(record);
            let codes = record.add(format.scale_bytes());
            let none = [_mm256_setzero_si256(); 2];
            let isum = if format.is_nibble() {
                [nibbles(codes, x, start::<F>(meta.minus_sum)), none]
            } else if matches!(format, Format::ByteHalves) {
                let first = bytes::<4>(codes, x, start::<F>(meta.minus_half_sums[0]));
                [first, bytes::<4>(codes.add(256), x.add(8), start::<F>(meta.minus_half_sums[1]))]
            } else {
                [bytes::<8>(codes, x, start::<F>(meta.minus_sum)), none]
            };
            acc = accumulate::<F>(isum, scales, meta, acc);
        }
    }
    // SAFETY: the array holds the sixteen floats that are written.
    unsafe { store_floats(out.as_mut_ptr(), acc) };
}

/// The integer sum of a K-block of nibbles. Nibbles that sit four bits up are summed sixteen times too large, which fits
/// (15 * 16 * 32767 * 16 < 2^31) and spares shifts.
///
/// # Safety
/// `codes` points at 4 groups of 64 bytes, `x` at 16 pairs.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn nibbles(codes: *const u8, x: *const i32, start: Ints) -> Ints {
    let mask = _mm256_set1_epi32(0x000f_000f);
    let mask_up = _mm256_set1_epi32(0x00f0_00f0);
    let (mut low, mut up) = (start, [_mm256_setzero_si256(); 2]);
    for g in 0..PAIRS / 4 {
        // SAFETY: `g` stays inside the groups and pairs promised.
        unsafe {
            let word = load(codes.add(g * 64));
            let shifted = shift::<8>(word);
            let pair = |p: usize| _mm256_set1_epi32(*x.add(g * 4 + p));
            low = dot(low, and(word, mask), pair(0));
            up = dot(up, and(word, mask_up), pair(1));
            low = dot(low, and(shifted, mask), pair(2));
            up = dot(up, and(shifted, mask_up), pair(3));
        }
    }
    [_mm256_add_epi32(low[0], _mm256_srai_epi32::<4>(up[0])), _mm256_add_epi32(low[1], _mm256_srai_epi32::<4>(up[1]))]
}

/// The integer sum of `GROUPS` groups of byte codes.
///
/// # Safety
/// `codes` points at `GROUPS` groups of 64 bytes, `x` at twice as many pairs.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn bytes<const GROUPS: usize>(codes: *const u8, x: *const i32, start: Ints) -> Ints {
    let mask = _mm256_set1_epi32(0x00ff_00ff);
    let mut sum = start;
    for g in 0..GROUPS {
        // SAFETY: `g` stays inside the groups and pairs promised.
        unsafe {
            let word = load(codes.add(g * 64));
            let pair = |p: usize| _mm256_set1_epi32(*x.add(g * 2 + p));
            sum = dot(sum, and(word, mask), pair(0));
            sum = dot(sum, upper_bytes(word), pair(1));
        }
    }
    sum
}
