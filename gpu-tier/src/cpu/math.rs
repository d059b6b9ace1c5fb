//! Elementary functions whose bits do not depend on the instruction set.
//!
//! Each is built of exactly rounded operations (add, multiply, fused multiply-add, divide, square root, round to
//! nearest even) in one stated order, so that the scalar twin and the vector forms agree on every input; no C library
//! is asked. Where a result is NaN it is NaN everywhere; its payload is not part of the promise.

use super::isa::Isa;

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Inputs below give 0: the results would be subnormal. Just above ln(2^-126).
const EXP_LOWEST: f32 = -87.336_54;
/// Inputs above give infinity: ln of the largest f32, rounded down.
const EXP_HIGHEST: f32 = 88.722_83;
/// ln 2 in two parts (Cody and Waite): the first has 9 bits after the point, so its multiples are exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// exp(r) = 1 + r + r^2 * P(r) on |r| <= ln(2)/2, highest power first. Source: Moshier, Cephes, `expf`.
const EXP_POLY: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// Lanes of a fixed-order sum.
pub const SUM_LANES: usize = 16;

/// e to the power of `x`, within 2 units in the last place; 0 below about -87.34, infinity above about 88.72.
pub fn exp(x: f32) -> f32 {
    if x.is_nan() {
        return x;
    }
    if x < EXP_LOWEST {
        return 0.0;
    }
    if x > EXP_HIGHEST {
        return f32::INFINITY;
    }
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p = EXP_POLY[0];
    for c in &EXP_POLY[1..] {
        p = p.mul_add(r, *c);
    }
    let y = p.mul_add(r * r, r) + 1.0;
    // Times 2^n in the exponent field: y is in [0.7, 1.42) and, at n = -126, not below 1, so the field stays normal.
    f32::from_bits(y.to_bits().wrapping_add_signed((n as i32) << 23))
}

/// [`exp`] of eight numbers.
///
/// # Safety
/// The processor has AVX2 and FMA; a caller that is itself compiled for them calls this as a safe function.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma")]
pub fn exp_avx2(x: __m256) -> __m256 {
    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm256_mul_ps(
        x,
        _mm256_set1_ps(std::f32::consts::LOG2_E),
    ));
    let r = _mm256_fmadd_ps(n, _mm256_set1_ps(-LN2_HIGH), x);
    let r = _mm256_fmadd_ps(n, _mm256_set1_ps(-LN2_LOW), r);
    let mut p = _mm256_set1_ps(EXP_POLY[0]);
    for c in &EXP_POLY[1..] {
        p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(*c));
    }
    let y = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0));
    let shift = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n));
    let y = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(y), shift));
    let low = _mm256_cmp_ps::<_CMP_LT_OQ>(x, _mm256_set1_ps(EXP_LOWEST));
    let high = _mm256_cmp_ps::<_CMP_GT_OQ>(x, _mm256_set1_ps(EXP_HIGHEST));
    let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x);
    let y = _mm256_andnot_ps(low, y);
    let y = _mm256_blendv_ps(y, _mm256_set1_ps(f32::INFINITY), high);
    _mm256_blendv_ps(y, x, nan)
}

/// [`exp`] of sixteen numbers.
///
/// # Safety
/// The processor has AVX-512 F; a caller that is itself compiled for it calls this as a safe function.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
pub fn exp_avx512(x: __m512) -> __m512 {
    let n = _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm512_mul_ps(
        x,
        _mm512_set1_ps(std::f32::consts::LOG2_E),
    ));
    let r = _mm512_fmadd_ps(n, _mm512_set1_ps(-LN2_HIGH), x);
    let r = _mm512_fmadd_ps(n, _mm512_set1_ps(-LN2_LOW), r);
    let mut p = _mm512_set1_ps(EXP_POLY[0]);
    for c in &EXP_POLY[1..] {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*c));
    }
    let y = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0));
    let shift = _mm512_slli_epi32::<23>(_mm512_cvtps_epi32(n));
    let y = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(y), shift));
    let not_low = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, _mm512_set1_ps(EXP_LOWEST));
    let high = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(x, _mm512_set1_ps(EXP_HIGHEST));
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    let y = _mm512_maskz_mov_ps(not_low, y);
    let y = _mm512_mask_mov_ps(y, high, _mm512_set1_ps(f32::INFINITY));
    _mm512_mask_mov_ps(y, nan, x)
}

/// x / (1 + exp(-x)), the division exactly rounded.
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// The gated activation of a SwiGLU layer, in place: `gate[i] = silu(gate[i]) * up[i]`.
///
/// Panics when the lengths differ or the processor lacks `isa`.
pub fn silu_multiply(isa: Isa, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "one up value per gate value");
    assert!(isa <= Isa::detect(), "this processor has no {}", isa.name());
    let done = match isa {
        Isa::Scalar => 0,
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the assertion above saw that the processor has these features.
        Isa::Avx2 => unsafe { silu_multiply_avx2(gate, up) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512 => unsafe { silu_multiply_avx512(gate, up) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => 0,
    };
    for (gate, up) in gate[done..].iter_mut().zip(&up[done..]) {
        *gate = silu(*gate) * up;
    }
}

/// Does the whole vectors of [`silu_multiply`]; returns how many elements that was.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn silu_multiply_avx2(gate: &mut [f32], up: &[f32]) -> usize {
    let (gates, _) = gate.as_chunks_mut::<8>();
    let (ups, _) = up.as_chunks::<8>();
    let one = _mm256_set1_ps(1.0);
    for (gate, up) in gates.iter_mut().zip(ups) {
        // SAFETY: both arrays hold the eight floats that are read.
        let (x, u) = unsafe { (_mm256_loadu_ps(gate.as_ptr()), _mm256_loadu_ps(up.as_ptr())) };
        let e = exp_avx2(_mm256_xor_ps(x, _mm256_set1_ps(-0.0)));
        let y = _mm256_mul_ps(_mm256_div_ps(x, _mm256_add_ps(one, e)), u);
        // SAFETY: the array holds the eight floats that are written.
        unsafe { _mm256_storeu_ps(gate.as_mut_ptr(), y) };
    }
    gates.len() * 8
}

/// Does the whole vectors of [`silu_multiply`]; returns how many elements that was.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn silu_multiply_avx512(gate: &mut [f32], up: &[f32]) -> usize {
    let (gates, _) = gate.as_chunks_mut::<16>();
    let (ups, _) = up.as_chunks::<16>();
    let one = _mm512_set1_ps(1.0);
    let sign = _mm512_set1_epi32(i32::MIN);
    for (gate, up) in gates.iter_mut().zip(ups) {
        // SAFETY: both arrays hold the sixteen floats that are read.
        let (x, u) = unsafe { (_mm512_loadu_ps(gate.as_ptr()), _mm512_loadu_ps(up.as_ptr())) };
        let e = exp_avx512(_mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(x), sign)));
        let y = _mm512_mul_ps(_mm512_div_ps(x, _mm512_add_ps(one, e)), u);
        // SAFETY: the array holds the sixteen floats that are written.
        unsafe { _mm512_storeu_ps(gate.as_mut_ptr(), y) };
    }
    gates.len() * 16
}

/// Sum of squares in a fixed order: lane j adds elements j, j + 16, ... by fused multiply-add, then lanes j and
/// j + 8 are added, j and j + 4, j and j + 2, j and j + 1.
///
/// Panics when the processor lacks `isa`.
pub fn sum_squares(isa: Isa, x: &[f32]) -> f32 {
    assert!(isa <= Isa::detect(), "this processor has no {}", isa.name());
    let (whole, rest) = x.as_chunks::<SUM_LANES>();
    let mut lanes = match isa {
        Isa::Scalar => sum_squares_scalar(whole),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the assertion above saw that the processor has these features.
        Isa::Avx2 => unsafe { sum_squares_avx2(whole) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512 => unsafe { sum_squares_avx512(whole) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => sum_squares_scalar(whole),
    };
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = x.mul_add(*x, *lane);
    }
    sum_lanes(lanes)
}

/// Adds sixteen lanes by halving: j and j + 8, j and j + 4, j and j + 2, j and j + 1.
pub fn sum_lanes(mut lanes: [f32; SUM_LANES]) -> f32 {
    let mut half = SUM_LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

fn sum_squares_scalar(whole: &[[f32; SUM_LANES]]) -> [f32; SUM_LANES] {
    let mut lanes = [0.0; SUM_LANES];
    for chunk in whole {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = x.mul_add(*x, *lane);
        }
    }
    lanes
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn sum_squares_avx2(whole: &[[f32; SUM_LANES]]) -> [f32; SUM_LANES] {
    let (mut low, mut high) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for chunk in whole {
        // SAFETY: the array holds the sixteen floats that are read.
        let (a, b) = unsafe { (_mm256_loadu_ps(chunk.as_ptr()), _mm256_loadu_ps(chunk.as_ptr().add(8))) };
        low = _mm256_fmadd_ps(a, a, low);
        high = _mm256_fmadd_ps(b, b, high);
    }
    let mut lanes = [0.0; SUM_LANES];
    // SAFETY: the array holds the sixteen floats that are written.
    unsafe {
        _mm256_storeu_ps(lanes.as_mut_ptr(), low);
        _mm256_storeu_ps(lanes.as_mut_ptr().add(8), high);
    }
    lanes
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sum_squares_avx512(whole: &[[f32; SUM_LANES]]) -> [f32; SUM_LANES] {
    let mut sum = _mm512_setzero_ps();
    for chunk in whole {
        // SAFETY: the array holds the sixteen floats that are read.
        let x = unsafe { _mm512_loadu_ps(chunk.as_ptr()) };
        sum = _mm512_fmadd_ps(x, x, sum);
    }
    let mut lanes = [0.0; SUM_LANES];
    // SAFETY: the array holds the sixteen floats that are written.
    unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sum) };
    lanes
}

/// `out[i] = (x[i] * (1 / sqrt(sum_squares(x) / n + eps))) * weight[i]`, for one row of n elements.
///
/// Panics when the lengths differ or the processor lacks `isa`. Source: Zhang and Sennrich, Root Mean Square Layer Normalization, equation 4.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert_eq!(x.len(), weight.len(), "one weight per element");
    assert_eq!(x.len(), out.len(), "one result per element");
    let scale = 1.0 / (sum_squares(isa, x) / x.len() as f32 + eps).sqrt();
    // Two exactly rounded multiplications per element, whatever the compiler makes of the loop.
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

#[cfg(test)]
#[path = "math_tests.rs"]
mod tests;
