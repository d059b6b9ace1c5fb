//! Sixteen f32 lanes over AVX2 (two registers) or AVX-512 (one), so that each kernel is written once.
//!
//! Lane operations are `inline(always)` and compile to single instructions only inside [`Lanes::run`], whose body has
//! the instruction set enabled.
//!
//! # Safety
//! Every function here needs the processor to have the set. Keeper: `CpuDevice::open` refuses an `Isa` that
//! `Isa::detect` did not see, and only `run_unit` and `merge` in `attention/mod.rs` pick an
//! implementation, by the device's `Isa`.

#![expect(clippy::needless_range_loop, reason = "register tiles are indexed in two arrays at once; plain loops unroll")]

use std::arch::x86_64::*;

use super::closed::ints::Ints;
use crate::cpu::math;

/// A piece of work that is generic over the lanes.
pub(super) trait Kernel {
    type Output;
    /// # Safety
    /// Called from [`Lanes::run`] only; the kernel's own pointers are valid as it states.
    unsafe fn call<V: Lanes>(self) -> Self::Output;
}

/// Sixteen f32.
pub(super) trait Lanes: Ints {
    /// Whether there are 32 registers of 16 lanes (else 8).
    const WIDE: bool;
    /// Runs a kernel with the instruction set enabled.
    unsafe fn run<K: Kernel>(kernel: K) -> K::Output;
    unsafe fn splat(x: f32) -> Self;
    /// Reads 16 f32 at any address.
    unsafe fn load(from: *const f32) -> Self;
    /// Reads 16 bf16 from each of `P` addresses and widens them, lanes in an order of its own (the cheapest): the same
    /// for each call with this `P`.
    unsafe fn widen<const P: usize>(from: [*const u16; P]) -> [Self; P];
    /// Brings lanes from the order of [`Lanes::widen`] to that of memory.
    unsafe fn settle<const P: usize>(x: [Self; P]) -> [Self; P];
    unsafe fn store(self, to: *mut f32);
    /// `self * b + c`, rounded once.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn sub(self, b: Self) -> Self;
    unsafe fn div(self, b: Self) -> Self;
    /// `self > b ? self : b`: a NaN in `self` is passed over.
    unsafe fn max(self, b: Self) -> Self;
    /// Lanes below `n` from `self`, the others from `b`.
    unsafe fn below(self, n: usize, b: Self) -> Self;
    /// [`math::exp`].
    unsafe fn exp(self) -> Self;
    /// Largest lane; no lane is NaN.
    unsafe fn max_lane(self) -> f32;
    /// Lanes j and j + 8, then j and j + 4, j and j + 2, j and j + 1 added.
    unsafe fn sum_lanes(self) -> f32;
}

/// The upper half of each 32-bit lane: an odd bf16 element as f32.
const UPPER_HALF: i32 = 0xffff_0000_u32 as i32;

#[derive(Clone, Copy)]
pub(super) struct Avx2(pub(super) __m256, pub(super) __m256);

#[derive(Clone, Copy)]
pub(super) struct Avx512(pub(super) __m512);

#[target_feature(enable = "avx2,fma")]
fn max_of_eight(x: __m256) -> f32 {
    let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)))
}

#[target_feature(enable = "avx2,fma")]
fn sum_of_eight(x: __m256) -> f32 {
    let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)))
}

// SAFETY (every block below): the processor has the set (module header) and the pointers are the caller's to vouch for.
impl Lanes for Avx2 {
    const WIDE: bool = false;

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: the set is enabled here; the kernel's pointers are the caller's to vouch for.
        unsafe { kernel.call::<Avx2>() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx2(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx2(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }
    /// Even elements in the first register, odd ones in the second.
    #[inline(always)]
    unsafe fn widen<const P: usize>(from: [*const u16; P]) -> [Self; P] {
        // SAFETY: as above the `impl`.
        unsafe {
            let mut out = [Self::splat(0.0); P];
            for p in 0..P {
                let x = _mm256_loadu_si256(from[p].cast());
                let even = _mm256_slli_epi32::<16>(x);
                let odd = _mm256_and_si256(x, _mm256_set1_epi32(UPPER_HALF));
                out[p] = Avx2(_mm256_castsi256_ps(even), _mm256_castsi256_ps(odd));
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn settle<const P: usize>(mut x: [Self; P]) -> [Self; P] {
        // SAFETY: as above the `impl`.
        unsafe {
            for p in 0..P {
                let low = _mm256_unpacklo_ps(x[p].0, x[p].1);
                let high = _mm256_unpackhi_ps(x[p].0, x[p].1);
                x[p] = Avx2(_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high));
            }
            x
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above the `impl`.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx2(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1)) }
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx2(_mm256_mul_ps(self.0, b.0), _mm256_mul_ps(self.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx2(_mm256_add_ps(self.0, b.0), _mm256_add_ps(self.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx2(_mm256_sub_ps(self.0, b.0), _mm256_sub_ps(self.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx2(_mm256_div_ps(self.0, b.0), _mm256_div_ps(self.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx2(_mm256_max_ps(self.0, b.0), _mm256_max_ps(self.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn below(self, n: usize, b: Self) -> Self {
        // SAFETY: as above the `impl`.
        unsafe {
            let n = _mm256_set1_epi32(n.min(16) as i32);
            let low = _mm256_cmpgt_epi32(n, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
            let high = _mm256_cmpgt_epi32(n, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15));
            Avx2(
                _mm256_blendv_ps(b.0, self.0, _mm256_castsi256_ps(low)),
                _mm256_blendv_ps(b.1, self.1, _mm256_castsi256_ps(high)),
            )
        }
    }
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx2(math::exp_avx2(self.0), math::exp_avx2(self.1)) }
    }
    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        // SAFETY: as above the `impl`.
        unsafe { max_of_eight(_mm256_max_ps(self.0, self.1)) }
    }
    #[inline(always)]
    unsafe fn sum_lanes(self) -> f32 {
        // SAFETY: as above the `impl`.
        unsafe { sum_of_eight(_mm256_add_ps(self.0, self.1)) }
    }
}

// SAFETY (every block below): as for `Avx2`.
impl Lanes for Avx512 {
    const WIDE: bool = true;

    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: the set is enabled here; the kernel's pointers are the caller's to vouch for.
        unsafe { kernel.call::<Avx512>() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx512(_mm512_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx512(_mm512_loadu_ps(from)) }
    }
    /// Two addresses share a load: even elements in the first register, odd ones in the second.
    #[inline(always)]
    unsafe fn widen<const P: usize>(from: [*const u16; P]) -> [Self; P] {
        // SAFETY: as above the `impl`.
        unsafe {
            let mut out = [Self::splat(0.0); P];
            for p in (0..P / 2).map(|pair| pair * 2) {
                let low = _mm256_loadu_si256(from[p].cast());
                let high = _mm256_loadu_si256(from[p + 1].cast());
                let x = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
                out[p] = Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(x)));
                let odd = _mm512_and_si512(x, _mm512_set1_epi32(UPPER_HALF));
                out[p + 1] = Avx512(_mm512_castsi512_ps(odd));
            }
            if P % 2 == 1 {
                let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from[P - 1].cast()));
                out[P - 1] = Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)));
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn settle<const P: usize>(mut x: [Self; P]) -> [Self; P] {
        // SAFETY: as above the `impl`.
        unsafe {
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
            for p in (0..P / 2).map(|pair| pair * 2) {
                let (even, odd) = (x[p].0, x[p + 1].0);
                x[p] = Avx512(_mm512_permutex2var_ps(even, low, odd));
                x[p + 1] = Avx512(_mm512_permutex2var_ps(even, high, odd));
            }
            x
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as above the `impl`.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx512(_mm512_fmadd_ps(self.0, b.0, c.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx512(_mm512_mul_ps(self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx512(_mm512_add_ps(self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx512(_mm512_sub_ps(self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn div(self, b: Self) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx512(_mm512_div_ps(self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx512(_mm512_max_ps(self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn below(self, n: usize, b: Self) -> Self {
        // SAFETY: as above the `impl`.
        unsafe {
            let mask = ((1u32 << n.min(16)) - 1) as u16;
            Avx512(_mm512_mask_mov_ps(b.0, mask, self.0))
        }
    }
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx512(math::exp_avx512(self.0)) }
    }
    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        // SAFETY: as above the `impl`.
        unsafe {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0)));
            max_of_eight(_mm256_max_ps(_mm512_castps512_ps256(self.0), high))
        }
    }
    #[inline(always)]
    unsafe fn sum_lanes(self) -> f32 {
        // SAFETY: as above the `impl`.
        unsafe {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self.0)));
            sum_of_eight(_mm256_add_ps(_mm512_castps512_ps256(self.0), high))
        }
    }
}
