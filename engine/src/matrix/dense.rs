//! Kernels for F32, F16 and BF16 weights: f32 activations, one fused multiply-add per column, in column order.
//!
//! A panel is `[cols][16]` in the stored type. `acc = 0`, then `acc = fma(weight, x, acc)` for each column: the same
//! order for every instruction set and number of rows.

use gpu_tier::cpu::isa::Isa;
use half::{bf16, f16};

use super::activations::TILE;
use super::buffer::AlignedBytes;
use super::pack::LANES;

/// How a dense weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Float {
    F32,
    F16,
    Bf16,
}

impl Float {
    pub(super) const fn bytes(self) -> usize {
        match self {
            Float::F32 => 4,
            Float::F16 | Float::Bf16 => 2,
        }
    }

    /// The inverse of `as u8`.
    const fn from_u8(value: u8) -> Float {
        match value {
            0 => Float::F32,
            1 => Float::F16,
            2 => Float::Bf16,
            _ => panic!("no such float"),
        }
    }

    /// The weight at the start of `bytes`.
    fn read(self, bytes: &[u8]) -> f32 {
        match self {
            Float::F32 => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            Float::F16 => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            Float::Bf16 => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        }
    }
}

/// Packs `rows` of `cols` weights, row-major, into panels; rows missing in the last panel are zero.
pub(super) fn pack(float: Float, rows: usize, cols: usize, bytes: &[u8]) -> AlignedBytes {
    let size = float.bytes();
    let panel_bytes = cols * LANES * size;
    let mut packed = AlignedBytes::zeroed(rows.div_ceil(LANES) * panel_bytes);
    for row in 0..rows {
        let panel = &mut packed.as_mut_slice()[row / LANES * panel_bytes..][..panel_bytes];
        let source = bytes[row * cols * size..][..cols * size].chunks_exact(size);
        for (column, weight) in panel.chunks_exact_mut(LANES * size).zip(source) {
            column[row % LANES * size..][..size].copy_from_slice(weight);
        }
    }
    packed
}

/// One panel times up to a tile of rows: `out[row][lane]`. `x`: `[rows, cols]`, `rows` at most [`TILE`].
///
/// Panics when `panel` and `x` differ in columns.
pub(super) fn multiply_panel(
    isa: Isa,
    float: Float,
    panel: &[u8],
    cols: usize,
    x: &[f32],
    out: &mut [[f32; LANES]; TILE],
) {
    let rows = x.len() / cols.max(1);
    assert_eq!(panel.len(), cols * LANES * float.bytes(), "a whole panel");
    assert!(x.len() == rows * cols && rows <= TILE, "at most a tile of whole rows");
    match isa {
        Isa::Scalar => scalar(float, panel, cols, x, out),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `check_isa` saw that the processor has these features; lengths were checked above.
        Isa::Avx2 | Isa::Avx512 => unsafe {
            match (isa, float) {
                (Isa::Avx512, Float::F32) => simd::avx512::<{ Float::F32 as u8 }>(panel, cols, x, rows, out),
                (Isa::Avx512, Float::F16) => simd::avx512::<{ Float::F16 as u8 }>(panel, cols, x, rows, out),
                (Isa::Avx512, Float::Bf16) => simd::avx512::<{ Float::Bf16 as u8 }>(panel, cols, x, rows, out),
                (_, Float::F32) => simd::avx2::<{ Float::F32 as u8 }>(panel, cols, x, rows, out),
                (_, Float::F16) => simd::avx2::<{ Float::F16 as u8 }>(panel, cols, x, rows, out),
                (_, Float::Bf16) => simd::avx2::<{ Float::Bf16 as u8 }>(panel, cols, x, rows, out),
            }
        },
        #[cfg(not(target_arch = "x86_64"))]
        _ => scalar(float, panel, cols, x, out),
    }
}

fn scalar(float: Float, panel: &[u8], cols: usize, x: &[f32], out: &mut [[f32; LANES]; TILE]) {
    for (x, out) in x.chunks_exact(cols.max(1)).zip(out.iter_mut()) {
        *out = [0.0; LANES];
        for (weights, x) in panel.chunks_exact(LANES * float.bytes()).zip(x) {
            for (acc, weight) in out.iter_mut().zip(weights.chunks_exact(float.bytes())) {
                *acc = float.read(weight).mul_add(*x, *acc);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod simd {
    use std::arch::x86_64::*;

    use super::{Float, LANES, TILE};

    /// # Safety
    /// The processor has AVX-512 F, BW and VL; `panel` has `cols` columns, `x` is `[rows, cols]`, `rows <= TILE`.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    pub(super) unsafe fn avx512<const F: u8>(
        panel: &[u8],
        cols: usize,
        x: &[f32],
        rows: usize,
        out: &mut [[f32; LANES]; TILE],
    ) {
        let mut row = 0;
        // SAFETY: the caller's promise, and `row + R <= rows` at each call.
        unsafe {
            while row + 8 <= rows {
                rows_avx512::<F, 8>(panel, cols, &x[row * cols..], &mut out[row..]);
                row += 8;
            }
            while row < rows {
                rows_avx512::<F, 1>(panel, cols, &x[row * cols..], &mut out[row..]);
                row += 1;
            }
        }
    }

    /// # Safety
    /// `panel` has `cols` columns, `x` at least `R` rows of as many, `out` at least `R` rows.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn rows_avx512<const F: u8, const R: usize>(panel: &[u8], cols: usize, x: &[f32], out: &mut [[f32; LANES]]) {
        let float = const { Float::from_u8(F) };
        let mut acc = [_mm512_setzero_ps(); R];
        for column in 0..cols {
            // SAFETY: `column < cols`, and the caller's promise.
            unsafe {
                let source = panel.as_ptr().add(column * LANES * float.bytes());
                let weights = match float {
                    Float::F32 => _mm512_loadu_ps(source.cast()),
                    Float::F16 => _mm512_cvtph_ps(_mm256_loadu_si256(source.cast())),
                    Float::Bf16 => {
                        let upper = _mm512_cvtepu16_epi32(_mm256_loadu_si256(source.cast()));
                        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(upper))
                    }
                };
                for (r, acc) in acc.iter_mut().enumerate() {
                    *acc = _mm512_fmadd_ps(weights, _mm512_set1_ps(*x.as_ptr().add(r * cols + column)), *acc);
                }
            }
        }
        for (acc, out) in acc.iter().zip(out) {
            // SAFETY: the array holds the sixteen floats that are written.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *acc) };
        }
    }

    /// # Safety
    /// The processor has AVX2, FMA and F16C; `panel` has `cols` columns, `x` is `[rows, cols]`, `rows <= TILE`.
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) unsafe fn avx2<const F: u8>(
        panel: &[u8],
        cols: usize,
        x: &[f32],
        rows: usize,
        out: &mut [[f32; LANES]; TILE],
    ) {
        let mut row = 0;
        // SAFETY: the caller's promise, and `row + R <= rows` at each call.
        unsafe {
            while row + 4 <= rows {
                rows_avx2::<F, 4>(panel, cols, &x[row * cols..], &mut out[row..]);
                row += 4;
            }
            while row < rows {
                rows_avx2::<F, 1>(panel, cols, &x[row * cols..], &mut out[row..]);
                row += 1;
            }
        }
    }

    /// # Safety
    /// `panel` has `cols` columns, `x` at least `R` rows of as many, `out` at least `R` rows.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn rows_avx2<const F: u8, const R: usize>(panel: &[u8], cols: usize, x: &[f32], out: &mut [[f32; LANES]]) {
        let float = const { Float::from_u8(F) };
        let mut acc = [[_mm256_setzero_ps(); 2]; R];
        for column in 0..cols {
            // SAFETY: `column < cols`, and the caller's promise.
            unsafe {
                let source = panel.as_ptr().add(column * LANES * float.bytes());
                let eight = |at: usize| match float {
                    Float::F32 => _mm256_loadu_ps(source.cast::<f32>().add(at)),
                    Float::F16 => _mm256_cvtph_ps(_mm_loadu_si128(source.cast::<u16>().add(at).cast())),
                    Float::Bf16 => {
                        let upper = _mm256_cvtepu16_epi32(_mm_loadu_si128(source.cast::<u16>().add(at).cast()));
                        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(upper))
                    }
                };
                let weights = [eight(0), eight(8)];
                for (r, acc) in acc.iter_mut().enumerate() {
                    let x = _mm256_set1_ps(*x.as_ptr().add(r * cols + column));
                    acc[0] = _mm256_fmadd_ps(weights[0], x, acc[0]);
                    acc[1] = _mm256_fmadd_ps(weights[1], x, acc[1]);
                }
            }
        }
        for (acc, out) in acc.iter().zip(out) {
            // SAFETY: the array holds the sixteen floats that are written.
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr(), acc[0]);
                _mm256_storeu_ps(out.as_mut_ptr().add(8), acc[1]);
            }
        }
    }
}
