//! Activations as the kernels want them: 16-bit integers with a scale per 32 columns.
//!
//! Row r is split into K-blocks of 32 columns (the last padded with zeros). A block has `scale = amax / 32767` (`/ 127` in [`Width::Int8`],
//! whose codes are just smaller numbers to the same kernels), codes `round_ties_even(x / scale)` and the exact sum of its codes. All operations are exactly rounded, so the bits do not
//! depend on the instruction set. A block whose scale would be subnormal is all zero; one that holds an infinity or NaN
//! has scale NaN, so that its row of results is NaN.
//!
//! Memory is in tiles of [`TILE`] rows, each `[K-block][row][32]`, so that a kernel that walks a tile K-block by K-block
//! reads forward only.

use gpu_tier::cpu::isa::Isa;
use gpu_tier::cpu::workers::{Workers, split};

use super::buffer::{AlignedBytes, SharedMut};
use super::check_isa;
use super::pack::BLOCK;

/// Rows in a tile.
pub(super) const TILE: usize = 32;
/// How finely activations are quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// 16 bits: what is shipped.
    Int16,
    /// 8 bits, as other engines have them: for comparison.
    Int8,
}

impl Width {
    /// The largest code.
    fn code_max(self) -> f32 {
        match self {
            Width::Int16 => 32767.0,
            Width::Int8 => 127.0,
        }
    }
}

/// Fewer elements than this are quantised by the caller alone.
const PARALLEL_FROM: usize = 1 << 15;

/// What belongs to one row's K-block beside its codes.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct BlockMeta {
    pub(super) scale: f32,
    /// `scale * sum of codes`.
    pub(super) scaled_sum: f32,
    /// Minus the sum of all codes.
    pub(super) minus_sum: i32,
    /// Minus the sums of codes 0-15 and 16-31.
    pub(super) minus_half_sums: [i32; 2],
}

/// Rows of activations, quantised once and multiplied with any number of matrices. The buffer is reusable.
pub struct Activations {
    m: usize,
    k: usize,
    /// i16 codes, in native order.
    codes: AlignedBytes,
    meta: Vec<BlockMeta>,
    width: Width,
    keeps_f32: bool,
    /// `[m, k]`, when kept.
    floats: Vec<f32>,
}

/// One tile of quantised rows.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    pub(super) rows: usize,
    pub(super) blocks: usize,
    /// `[blocks][rows][32]`, aligned to 64 bytes.
    pub(super) codes: &'a [i16],
    /// `[blocks][rows]`.
    pub(super) meta: &'a [BlockMeta],
}

impl Default for Activations {
    fn default() -> Activations {
        Activations::new()
    }
}

impl Activations {
    /// An empty buffer that keeps the rows as 16-bit integers and as f32, for matrices of every type.
    pub fn new() -> Activations {
        Activations {
            m: 0,
            k: 0,
            codes: AlignedBytes::zeroed(0),
            meta: Vec::new(),
            width: Width::Int16,
            keeps_f32: true,
            floats: Vec::new(),
        }
    }

    /// An empty buffer for quantised matrices only: saves the f32 copy.
    pub fn integers_only() -> Activations {
        Activations { keeps_f32: false, ..Activations::new() }
    }

    /// The same buffer with another width.
    pub fn with_width(self, width: Width) -> Activations {
        Activations { width, ..self }
    }

    /// A new buffer holding the `m` rows of `x`; see [`Activations::set`].
    pub fn quantize(isa: Isa, workers: &Workers, x: &[f32], m: usize, k: usize) -> Activations {
        let mut activations = Activations::new();
        activations.set(isa, workers, x, m, k);
        activations
    }

    /// Number of rows.
    pub fn m(&self) -> usize {
        self.m
    }

    /// Columns of each row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Replaces the contents by the rows of `x`, `[m, k]` row-major.
    ///
    /// Panics when `x` is not `m * k` long or the processor lacks `isa`.
    pub fn set(&mut self, isa: Isa, workers: &Workers, x: &[f32], m: usize, k: usize) {
        check_isa(isa);
        assert_eq!(x.len(), m * k, "activations are [{m}, {k}]");
        let blocks = k.div_ceil(BLOCK);
        (self.m, self.k) = (m, k);
        self.codes.grow(m * blocks * BLOCK * 2);
        if self.meta.len() < m * blocks {
            self.meta.resize(m * blocks, BlockMeta::default());
        }
        let codes = SharedMut::new(self.codes.as_i16_mut());
        let meta = SharedMut::new(&mut self.meta);
        let code_max = self.width.code_max();
        let quantize_rows = |rows: std::ops::Range<usize>| {
            for row in rows {
                let tile = row / TILE;
                let in_tile = (m - tile * TILE).min(TILE);
                for (block, x) in x[row * k..][..k].chunks(BLOCK).enumerate() {
                    let at = tile * TILE * blocks + block * in_tile + row % TILE;
                    // SAFETY: `at` is a different place for each row and block, and each row is one worker's.
                    let (codes, meta) = unsafe { (codes.part(at * BLOCK..(at + 1) * BLOCK), meta.part(at..at + 1)) };
                    let codes = codes.first_chunk_mut().expect("a part of 32 codes");
                    meta[0] = quantize_block(isa, code_max, x, codes);
                }
            }
        };
        if x.len() < PARALLEL_FROM {
            quantize_rows(0..m);
        } else {
            workers.run(&|worker| quantize_rows(split(m, 1, worker, workers.count())));
        }
        self.floats.clear();
        if self.keeps_f32 {
            self.floats.extend_from_slice(x);
        }
    }

    /// The tile that starts at row `index * TILE`.
    pub(super) fn tile(&self, index: usize) -> Tile<'_> {
        let blocks = self.k.div_ceil(BLOCK);
        let first = index * TILE;
        let rows = (self.m - first).min(TILE);
        Tile {
            rows,
            blocks,
            codes: &self.codes.as_i16()[first * blocks * BLOCK..][..rows * blocks * BLOCK],
            meta: &self.meta[first * blocks..][..rows * blocks],
        }
    }

    /// The f32 rows of a tile, `[rows, k]`. Panics when they are not kept.
    pub(super) fn float_tile(&self, index: usize) -> &[f32] {
        assert!(self.keeps_f32, "float weights need activations that keep f32 rows");
        let first = index * TILE;
        &self.floats[first * self.k..(first + TILE).min(self.m) * self.k]
    }
}

/// Quantises up to 32 numbers; missing ones count as 0.
fn quantize_block(isa: Isa, code_max: f32, x: &[f32], codes: &mut [i16; BLOCK]) -> BlockMeta {
    #[cfg(target_arch = "x86_64")]
    if let (Isa::Avx2 | Isa::Avx512, Ok(x)) = (isa, <&[f32; BLOCK]>::try_from(x)) {
        // SAFETY: `check_isa` saw that the processor has AVX2.
        return unsafe { quantize_block_avx2(code_max, x, codes) };
    }
    let _ = isa;
    let largest = x.iter().map(|x| x.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
    codes.fill(0);
    let Some(scale) = scale_of(largest, code_max) else {
        return meta_of(scale_of_zero(largest), [0, 0]);
    };
    let mut sums = [0; 2];
    for (i, (code, x)) in codes.iter_mut().zip(x).enumerate() {
        let value = (x / scale).round_ties_even() as i32;
        *code = value as i16;
        sums[i / 16] += value;
    }
    meta_of(scale, sums)
}

/// The scale of a block from the bits of its largest magnitude; `None` where the codes are all 0.
fn scale_of(largest: u32, code_max: f32) -> Option<f32> {
    let scale = f32::from_bits(largest) / code_max;
    scale.is_normal().then_some(scale)
}

/// The scale of a block for which [`scale_of`] is `None`: NaN for an infinity or NaN, else 0.
fn scale_of_zero(largest: u32) -> f32 {
    if largest >= f32::INFINITY.to_bits() { f32::NAN } else { 0.0 }
}

fn meta_of(scale: f32, sums: [i32; 2]) -> BlockMeta {
    let sum = sums[0] + sums[1];
    BlockMeta { scale, scaled_sum: scale * sum as f32, minus_sum: -sum, minus_half_sums: sums.map(|sum| -sum) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn quantize_block_avx2(code_max: f32, x: &[f32; BLOCK], codes: &mut [i16; BLOCK]) -> BlockMeta {
    use std::arch::x86_64::*;
    // SAFETY: the array holds the 32 floats that are read.
    let x: [__m256; 4] = std::array::from_fn(|i| unsafe { _mm256_loadu_ps(x.as_ptr().add(i * 8)) });
    // Magnitudes order like their bits, NaN above infinity.
    let mask = _mm256_set1_epi32(0x7fff_ffff);
    let bits = x.map(|x| _mm256_and_si256(_mm256_castps_si256(x), mask));
    let largest = _mm256_max_epi32(_mm256_max_epi32(bits[0], bits[1]), _mm256_max_epi32(bits[2], bits[3]));
    let largest = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256::<1>(largest));
    let largest = _mm_max_epi32(largest, _mm_shuffle_epi32::<0b01_00_11_10>(largest));
    let largest = _mm_max_epi32(largest, _mm_shuffle_epi32::<0b10_11_00_01>(largest));
    let largest = _mm_cvtsi128_si32(largest) as u32;
    let Some(scale) = scale_of(largest, code_max) else {
        codes.fill(0);
        return meta_of(scale_of_zero(largest), [0, 0]);
    };
    let divisor = _mm256_set1_ps(scale);
    let q = x.map(|x| _mm256_cvtps_epi32(_mm256_div_ps(x, divisor)));
    let sums = [_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3])].map(|sum| {
        let sum = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
        let sum = _mm_add_epi32(sum, _mm_shuffle_epi32::<0b01_00_11_10>(sum));
        _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32::<0b10_11_00_01>(sum)))
    });
    for half in 0..2 {
        let packed = _mm256_packs_epi32(q[half * 2], q[half * 2 + 1]);
        let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(packed);
        // SAFETY: the array holds the 32 codes that are written.
        unsafe { _mm256_storeu_si256(codes.as_mut_ptr().add(half * 16).cast(), ordered) };
    }
    meta_of(scale, sums)
}
