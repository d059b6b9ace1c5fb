//! The quantised kernels in AVX-512 with VNNI: a lane per output, `vpdpwssd` over pairs of columns.
//!
//! # Safety
//! Every function reads through raw pointers inside what its safe caller, [`multiply_panel`], has checked: a whole
//! number of records, and codes and metadata for each of their K-blocks and each row of the tile.

use std::arch::asm;
use std::arch::x86_64::*;

use super::activations::{BlockMeta, TILE, Tile};
use super::pack::{BLOCK, Format, LANES};

/// Pairs of columns in a K-block.
const PAIRS: usize = BLOCK / 2;
/// How far ahead of the codes in use to prefetch, when a panel is read for a single row.
const PREFETCH_BYTES: usize = 1024;

/// [`super::kernel_scalar::multiply_panel`], bit for bit. Panics when `records` and the tile differ in K-blocks.
///
/// # Safety
/// The processor has AVX-512 F, BW, VL and VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
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

/// The two vectors of scales of a record: scale and minimum, or the scales of both halves.
#[derive(Clone, Copy)]
struct Scales(__m512, __m512);

/// # Safety
/// `record` points at a whole record.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn load_scales<const F: u8>(record: *const u8) -> Scales {
    // SAFETY: each load is inside the record's scales (`Format::scale_bytes`).
    unsafe {
        let half = |at: usize| _mm512_cvtph_ps(_mm256_loadu_si256(record.add(at).cast()));
        match const { Format::from_u8(F) } {
            Format::Nibble | Format::Byte => Scales(half(0), _mm512_setzero_ps()),
            Format::NibbleMin => Scales(half(0), half(32)),
            Format::NibbleMinWide | Format::ByteHalves => {
                Scales(_mm512_loadu_ps(record.cast()), _mm512_loadu_ps(record.add(64).cast()))
            }
        }
    }
}

/// The codes of a record as sixteen vectors of 16-bit pairs.
///
/// # Safety
/// `record` points at a whole record.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn unpack<const F: u8>(record: *const u8) -> [__m512i; PAIRS] {
    let format = const { Format::from_u8(F) };
    let mut pairs = [_mm512_setzero_si512(); PAIRS];
    // SAFETY: the codes follow the scales, 4 or 8 groups of 64 bytes.
    let group = |at: usize| unsafe { _mm512_loadu_si512(record.add(format.scale_bytes() + at * 64).cast()) };
    if format.is_nibble() {
        let mask = _mm512_set1_epi32(0x000f_000f);
        for g in 0..PAIRS / 4 {
            let word = group(g);
            pairs[g * 4] = _mm512_and_si512(word, mask);
            pairs[g * 4 + 1] = _mm512_and_si512(_mm512_srli_epi32::<4>(word), mask);
            pairs[g * 4 + 2] = _mm512_and_si512(_mm512_srli_epi32::<8>(word), mask);
            pairs[g * 4 + 3] = _mm512_and_si512(_mm512_srli_epi32::<12>(word), mask);
        }
    } else {
        let mask = _mm512_set1_epi32(0x00ff_00ff);
        for g in 0..PAIRS / 2 {
            let word = group(g);
            pairs[g * 2] = _mm512_and_si512(word, mask);
            pairs[g * 2 + 1] = _mm512_srli_epi16::<8>(word);
        }
    }
    pairs
}

/// Where an integer sum starts so that it ends without the zero point: minus zero point times sum of codes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn start<const F: u8>(minus_sum: i32) -> __m512i {
    match const { Format::from_u8(F).zero_shift() } {
        Some(3) => _mm512_slli_epi32::<3>(_mm512_set1_epi32(minus_sum)),
        Some(_) => _mm512_slli_epi32::<7>(_mm512_set1_epi32(minus_sum)),
        None => _mm512_setzero_si512(),
    }
}

/// `sum + weights * x` over a pair of columns, the pair at byte `AT` of `x` going to every lane.
///
/// In assembly, since the compiler takes the intrinsic apart into a multiply-add and an addition, which keeps twice the
/// vector units busy.
///
/// # Safety
/// `x` points at `AT + 4` readable bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn dot<const AT: usize>(mut sum: __m512i, weights: __m512i, x: *const i16) -> __m512i {
    // SAFETY: the instruction reads four bytes, by the caller's promise, and changes `sum` alone.
    unsafe {
        asm!(
            "vpdpwssd {sum}, {weights}, dword ptr [{x} + {at}] {{1to16}}",
            sum = inout(zmm_reg) sum,
            weights = in(zmm_reg) weights,
            x = in(reg) x,
            at = const AT,
            options(pure, readonly, nostack, preserves_flags)
        );
    }
    sum
}

/// Adds one K-block, given its integer sums, to an accumulator.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
fn accumulate<const F: u8>(isum: [__m512i; 2], scales: Scales, meta: &BlockMeta, acc: __m512) -> __m512 {
    let format = const { Format::from_u8(F) };
    let scale = _mm512_set1_ps(meta.scale);
    if matches!(format, Format::ByteHalves) {
        let acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum[0]), _mm512_mul_ps(scales.0, scale), acc);
        return _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum[1]), _mm512_mul_ps(scales.1, scale), acc);
    }
    let isum = _mm512_add_epi32(isum[0], isum[1]);
    let acc = _mm512_fmadd_ps(_mm512_cvtepi32_ps(isum), _mm512_mul_ps(scales.0, scale), acc);
    if format.has_min() { _mm512_fmadd_ps(scales.1, _mm512_set1_ps(meta.scaled_sum), acc) } else { acc }
}

/// Adds one K-block to `R` rows of accumulators.
///
/// # Safety
/// `block` and rows `first..first + R` are inside the tile.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn rows<const F: u8, const R: usize>(
    weights: &[__m512i; PAIRS],
    scales: Scales,
    tile: Tile<'_>,
    block: usize,
    first: usize,
    out: &mut [[f32; LANES]; TILE],
) {
    let halves = const { matches!(Format::from_u8(F), Format::ByteHalves) };
    let at = block * tile.rows + first;
    // SAFETY: inside the tile by the caller's promise; `codes` is aligned to 64 bytes and `out` has TILE rows.
    unsafe {
        let x = tile.codes.as_ptr().add(at * BLOCK);
        let meta = tile.meta.as_ptr().add(at);
        let out = out.as_mut_ptr().add(first);
        let mut low = [_mm512_setzero_si512(); R];
        let mut high = [_mm512_setzero_si512(); R];
        for r in 0..R {
            let meta = &*meta.add(r);
            if halves {
                low[r] = start::<F>(meta.minus_half_sums[0]);
                high[r] = start::<F>(meta.minus_half_sums[1]);
            } else {
                low[r] = start::<F>(meta.minus_sum);
            }
        }
        macro_rules! pairs {
            ($sum:ident: $($p:literal)*) => {
                $(for r in 0..R {
                    $sum[r] = dot::<{ $p * 4 }>($sum[r], weights[$p], x.add(r * BLOCK));
                })*
            };
        }
        pairs!(low: 0 1 2 3 4 5 6 7);
        if halves {
            pairs!(high: 8 9 10 11 12 13 14 15);
        } else {
            pairs!(low: 8 9 10 11 12 13 14 15);
        }
        for r in 0..R {
            let acc = _mm512_loadu_ps((*out.add(r)).as_ptr());
            let acc = accumulate::<F>([low[r], high[r]], scales, &*meta.add(r), acc);
            _mm512_storeu_ps((*out.add(r)).as_mut_ptr(), acc);
        }
    }
}

/// One row: codes are unpacked as they are used and the accumulator stays in a register.
///
/// # Safety
/// `records` holds `tile.blocks` whole records and the tile one row of as many K-blocks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn single<const F: u8>(records: &[u8], tile: Tile<'_>, out: &mut [f32; LANES]) {
    let format = const { Format::from_u8(F) };
    let mut acc = _mm512_setzero_ps();
    for block in 0..tile.blocks {
        // SAFETY: `block` is inside both, by the caller's promise; a prefetch may point anywhere.
        unsafe {
            let record = records.as_ptr().add(block * format.record_bytes());
            for line in 0..format.record_bytes().div_ceil(64) {
                _mm_prefetch::<_MM_HINT_T0>(record.wrapping_add(PREFETCH_BYTES + line * 64).cast());
            }
            let x = tile.codes.as_ptr().add(block * BLOCK);
            let meta = &*tile.meta.as_ptr().add(block);
            let scales = load_scales::<F>(record);
            let codes = record.add(format.scale_bytes());
            let isum = if format.is_nibble() {
                nibbles(codes, x, start::<F>(meta.minus_sum))
            } else if matches!(format, Format::ByteHalves) {
                let first = bytes::<4>(codes, x, start::<F>(meta.minus_half_sums[0]));
                [first, bytes::<4>(codes.add(256), x.add(BLOCK / 2), start::<F>(meta.minus_half_sums[1]))]
            } else {
                [bytes::<8>(codes, x, start::<F>(meta.minus_sum)), _mm512_setzero_si512()]
            };
            acc = accumulate::<F>(isum, scales, meta, acc);
        }
    }
    // SAFETY: the array holds the sixteen floats that are written.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), acc) };
}

/// The integer sums of a K-block of nibbles, in two parts to be added. Nibbles that sit four bits up are summed sixteen
/// times too large, which fits (15 * 16 * 32767 * 16 < 2^31) and spares shifts.
///
/// # Safety
/// `codes` points at 4 groups of 64 bytes, `x` at 16 pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn nibbles(codes: *const u8, x: *const i16, start: __m512i) -> [__m512i; 2] {
    let mask = _mm512_set1_epi32(0x000f_000f);
    let mask_up = _mm512_set1_epi32(0x00f0_00f0);
    let (mut low, mut up) = (start, _mm512_setzero_si512());
    for g in 0..PAIRS / 4 {
        // SAFETY: `g` stays inside the groups and pairs promised.
        unsafe {
            let word = _mm512_loadu_si512(codes.add(g * 64).cast());
            let shifted = _mm512_srli_epi32::<8>(word);
            let x = x.add(g * 8);
            low = dot::<0>(low, _mm512_and_si512(word, mask), x);
            up = dot::<4>(up, _mm512_and_si512(word, mask_up), x);
            low = dot::<8>(low, _mm512_and_si512(shifted, mask), x);
            up = dot::<12>(up, _mm512_and_si512(shifted, mask_up), x);
        }
    }
    [low, _mm512_srai_epi32::<4>(up)]
}

/// The integer sum of `GROUPS` groups of byte codes.
///
/// # Safety
/// `codes` points at `GROUPS` groups of 64 bytes, `x` at twice as many pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn bytes<const GROUPS: usize>(codes: *const u8, x: *const i16, start: __m512i) -> __m512i {
    let mask = _mm512_set1_epi32(0x00ff_00ff);
    let (mut even, mut odd) = (start, _mm512_setzero_si512());
    for g in 0..GROUPS {
        // SAFETY: `g` stays inside the groups and pairs promised.
        unsafe {
            let word = _mm512_loadu_si512(codes.add(g * 64).cast());
            let x = x.add(g * 4);
            even = dot::<0>(even, _mm512_and_si512(word, mask), x);
            odd = dot::<4>(odd, _mm512_srli_epi16::<8>(word), x);
        }
    }
    _mm512_add_epi32(even, odd)
}
