//! Sixteen elements over AVX2 (two registers) or AVX-512 (one), so that each codec kernel is written once.
//!
//! Lane operations are `inline(always)` and compile to single instructions only inside [`Lanes::run`], whose body has the
//! instruction set enabled. `N` is 16, or 8 for the last lanes of a row: the upper half is then neither read nor written.
//!
//! # Safety
//! Every function here needs the processor to have the set. Keeper: `Simd::new` refuses an `Isa` that `Isa::detect` did not
//! see, and only `run` in `codec/mod.rs` picks an implementation, by that `Isa`. Pointers are the kernels' to vouch for.

use std::arch::x86_64::*;

/// A piece of work that is generic over the lanes.
pub(super) trait Kernel {
    type Output;
    /// # Safety
    /// Called from [`Lanes::run`] only; the kernel's own pointers are valid as it states.
    unsafe fn call<V: Lanes>(self) -> Self::Output;
}

/// Sixteen f32.
pub(super) trait Lanes: Copy {
    /// Sixteen u32 of packed codes.
    type Words: Copy;
    /// What decodes the nibbles of one row.
    type Table: Copy;

    /// Runs a kernel with the instruction set enabled.
    unsafe fn run<K: Kernel>(kernel: K) -> K::Output;
    /// Reads bf16 at any address.
    unsafe fn load<const N: usize>(from: *const u16) -> Self;
    /// Reads 32 bf16 at any address, of every eight the first four and the last four: what [`Lanes::store_bytes`] takes.
    unsafe fn split(from: *const u16) -> [Self; 2];
    unsafe fn splat(x: f32) -> Self;
    /// Reads 16 f32 at any address.
    unsafe fn floats(from: *const f32) -> Self;
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn sub(self, b: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    /// Finite values to bf16, ties to even.
    unsafe fn store<const N: usize>(self, to: *mut u16);
    /// Two rows as [`Lanes::store`] does one.
    #[inline(always)]
    unsafe fn store_two<const N: usize>(rows: [Self; 2], to: [*mut u16; 2]) {
        // SAFETY: the caller's promise, for each row.
        unsafe { rows.into_iter().zip(to).for_each(|(row, to)| row.store::<N>(to)) }
    }

    unsafe fn zero() -> Self::Words;
    unsafe fn words<const N: usize>(from: *const u8) -> Self::Words;
    unsafe fn store_words<const N: usize>(words: Self::Words, to: *mut u8);
    /// `words | (self rounded to an integer, ties to even) << shift`. The integer is not negative.
    unsafe fn pack(self, words: Self::Words, shift: i32) -> Self::Words;
    /// `words | (self rounded to an integer, ties to even, its low byte) << shift`.
    unsafe fn pack_byte(self, words: Self::Words, shift: i32) -> Self::Words;
    /// Four rows of 32, each as [`Lanes::split`] leaves them, rounded to integers, ties to even, which fit a signed byte: a word of four bytes for each lane.
    unsafe fn store_bytes(rows: [[Self; 2]; 4], to: *mut u8);
    /// The signed byte at `shift`.
    unsafe fn byte(words: Self::Words, shift: i32) -> Self;

    unsafe fn table(low: f32, step: f32) -> Self::Table;
    /// `fma(nibble at shift, step, low)`, stored as bf16.
    unsafe fn nibbles<const N: usize>(words: Self::Words, shift: i32, table: Self::Table, to: *mut u16);
}

#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256, __m256);

#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512);

/// Finite f32 rounded to bf16, each in the low half of a u32.
#[target_feature(enable = "avx2")]
fn bf16_of(x: __m256) -> __m256i {
    let x = _mm256_castps_si256(x);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(x), _mm256_set1_epi32(1));
    _mm256_srli_epi32::<16>(_mm256_add_epi32(_mm256_add_epi32(x, _mm256_set1_epi32(0x7fff)), odd))
}

/// As [`bf16_of`].
#[target_feature(enable = "avx512f")]
fn bf16_of_16(x: __m512) -> __m512i {
    _mm512_srli_epi32::<16>(rounded_16(x))
}

/// Finite f32 rounded to bf16, each in the high half of a u32; the low halves are what is left over.
#[target_feature(enable = "avx512f")]
fn rounded_16(x: __m512) -> __m512i {
    let x = _mm512_castps_si512(x);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(x), _mm512_set1_epi32(1));
    _mm512_add_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(0x7fff)), odd)
}

/// # Safety
/// `to` has room for eight u16.
#[target_feature(enable = "avx2")]
unsafe fn store_8(x: __m256i, to: *mut u16) {
    let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(x, x));
    // SAFETY: the caller's promise.
    unsafe { _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(packed)) }
}

/// # Safety
/// `to` has room for sixteen u16.
#[target_feature(enable = "avx2")]
unsafe fn store_16(low: __m256i, high: __m256i, to: *mut u16) {
    let packed = _mm256_permute4x64_epi64::<0b1101_1000>(_mm256_packus_epi32(low, high));
    // SAFETY: the caller's promise.
    unsafe { _mm256_storeu_si256(to.cast(), packed) }
}

/// # Safety
/// Eight u16 can be read.
#[target_feature(enable = "avx2")]
unsafe fn widen_8(from: *const u16) -> __m256 {
    // SAFETY: the caller's promise.
    let words = unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast())) };
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
}

// SAFETY (every block below): the processor has the set (module header) and the pointers are the caller's to vouch for.
impl Lanes for Avx2 {
    type Words = (__m256i, __m256i);
    /// Lowest value and step.
    type Table = (f32, f32);

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: the set is enabled here; the kernel's pointers are the caller's to vouch for.
        unsafe { kernel.call::<Avx2>() }
    }
    #[inline(always)]
    unsafe fn load<const N: usize>(from: *const u16) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx2(widen_8(from), if N == 16 { widen_8(from.add(8)) } else { _mm256_setzero_ps() }) }
    }
    #[inline(always)]
    unsafe fn split(from: *const u16) -> [Self; 2] {
        // SAFETY: as above the `impl`.
        unsafe {
            let zero = _mm256_setzero_si256();
            let halves = [from, from.add(16)].map(|from| _mm256_loadu_si256(from.cast()));
            let [a, b] = halves.map(|half| _mm256_castsi256_ps(_mm256_unpacklo_epi16(zero, half)));
            let [c, d] = halves.map(|half| _mm256_castsi256_ps(_mm256_unpackhi_epi16(zero, half)));
            [Avx2(a, b), Avx2(c, d)]
        }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx2(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn floats(from: *const f32) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx2(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
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
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx2(_mm256_mul_ps(self.0, b.0), _mm256_mul_ps(self.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn store<const N: usize>(self, to: *mut u16) {
        // SAFETY: as above the `impl`.
        unsafe {
            if N == 16 {
                store_16(bf16_of(self.0), bf16_of(self.1), to);
            } else {
                store_8(bf16_of(self.0), to);
            }
        }
    }
    #[inline(always)]
    unsafe fn zero() -> Self::Words {
        // SAFETY: as above the `impl`.
        unsafe { (_mm256_setzero_si256(), _mm256_setzero_si256()) }
    }
    #[inline(always)]
    unsafe fn words<const N: usize>(from: *const u8) -> Self::Words {
        // SAFETY: as above the `impl`.
        unsafe {
            let high = if N == 16 { _mm256_loadu_si256(from.add(32).cast()) } else { _mm256_setzero_si256() };
            (_mm256_loadu_si256(from.cast()), high)
        }
    }
    #[inline(always)]
    unsafe fn store_words<const N: usize>(words: Self::Words, to: *mut u8) {
        // SAFETY: as above the `impl`.
        unsafe {
            _mm256_storeu_si256(to.cast(), words.0);
            if N == 16 {
                _mm256_storeu_si256(to.add(32).cast(), words.1);
            }
        }
    }
    #[inline(always)]
    unsafe fn pack(self, words: Self::Words, shift: i32) -> Self::Words {
        // SAFETY: as above the `impl`.
        unsafe {
            let shift = _mm_cvtsi32_si128(shift);
            let low = _mm256_sll_epi32(_mm256_cvtps_epi32(self.0), shift);
            let high = _mm256_sll_epi32(_mm256_cvtps_epi32(self.1), shift);
            (_mm256_or_si256(words.0, low), _mm256_or_si256(words.1, high))
        }
    }
    #[inline(always)]
    unsafe fn pack_byte(self, words: Self::Words, shift: i32) -> Self::Words {
        // SAFETY: as above the `impl`.
        unsafe {
            // Up to the top and down again leaves the byte alone.
            let (up, down) = (_mm_cvtsi32_si128(24), _mm_cvtsi32_si128(24 - shift));
            let low = _mm256_srl_epi32(_mm256_sll_epi32(_mm256_cvtps_epi32(self.0), up), down);
            let high = _mm256_srl_epi32(_mm256_sll_epi32(_mm256_cvtps_epi32(self.1), up), down);
            (_mm256_or_si256(words.0, low), _mm256_or_si256(words.1, high))
        }
    }
    #[inline(always)]
    unsafe fn store_bytes(rows: [[Self; 2]; 4], to: *mut u8) {
        // SAFETY: as above the `impl`.
        unsafe {
            let first =
                rows.map(|[low, high]| _mm256_packs_epi32(_mm256_cvtps_epi32(low.0), _mm256_cvtps_epi32(high.0)));
            let second =
                rows.map(|[low, high]| _mm256_packs_epi32(_mm256_cvtps_epi32(low.1), _mm256_cvtps_epi32(high.1)));
            for (half, [a, b, c, d]) in [first, second].into_iter().enumerate() {
                let pair =
                    |a, b| _mm256_or_si256(_mm256_and_si256(a, _mm256_set1_epi16(0xff)), _mm256_slli_epi16::<8>(b));
                let (front, back) = (pair(a, b), pair(c, d));
                let (low, high) = (_mm256_unpacklo_epi16(front, back), _mm256_unpackhi_epi16(front, back));
                let to = to.add(64 * half);
                _mm256_storeu_si256(to.cast(), _mm256_permute2x128_si256::<0x20>(low, high));
                _mm256_storeu_si256(to.add(32).cast(), _mm256_permute2x128_si256::<0x31>(low, high));
            }
        }
    }
    #[inline(always)]
    unsafe fn byte(words: Self::Words, shift: i32) -> Self {
        // SAFETY: as above the `impl`.
        unsafe {
            let up = _mm_cvtsi32_si128(24 - shift);
            let low = _mm256_srai_epi32::<24>(_mm256_sll_epi32(words.0, up));
            let high = _mm256_srai_epi32::<24>(_mm256_sll_epi32(words.1, up));
            Avx2(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        }
    }
    #[inline(always)]
    unsafe fn table(low: f32, step: f32) -> Self::Table {
        (low, step)
    }
    #[inline(always)]
    unsafe fn nibbles<const N: usize>(words: Self::Words, shift: i32, table: Self::Table, to: *mut u16) {
        // SAFETY: as above the `impl`.
        unsafe {
            let (base, step) = (_mm256_set1_ps(table.0), _mm256_set1_ps(table.1));
            let (shift, mask) = (_mm_cvtsi32_si128(shift), _mm256_set1_epi32(15));
            let low = _mm256_and_si256(_mm256_srl_epi32(words.0, shift), mask);
            let high = _mm256_and_si256(_mm256_srl_epi32(words.1, shift), mask);
            let low = _mm256_fmadd_ps(_mm256_cvtepi32_ps(low), step, base);
            let high = _mm256_fmadd_ps(_mm256_cvtepi32_ps(high), step, base);
            Avx2(low, high).store::<N>(to);
        }
    }
}

// SAFETY (every block below): as for `Avx2`.
impl Lanes for Avx512 {
    type Words = __m512i;
    /// The bf16 of each of the 16 codes.
    type Table = __m512i;

    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl")]
    unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: the set is enabled here; the kernel's pointers are the caller's to vouch for.
        unsafe { kernel.call::<Avx512>() }
    }
    #[inline(always)]
    unsafe fn load<const N: usize>(from: *const u16) -> Self {
        // SAFETY: as above the `impl`.
        unsafe {
            let values = if N == 16 {
                _mm256_loadu_si256(from.cast())
            } else {
                _mm256_zextsi128_si256(_mm_loadu_si128(from.cast()))
            };
            Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(values))))
        }
    }
    #[inline(always)]
    unsafe fn split(from: *const u16) -> [Self; 2] {
        // SAFETY: as above the `impl`.
        unsafe {
            let (zero, x) = (_mm512_setzero_si512(), _mm512_loadu_si512(from.cast()));
            [_mm512_unpacklo_epi16(zero, x), _mm512_unpackhi_epi16(zero, x)]
                .map(|part| Avx512(_mm512_castsi512_ps(part)))
        }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx512(_mm512_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn floats(from: *const f32) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx512(_mm512_loadu_ps(from)) }
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
    unsafe fn mul(self, b: Self) -> Self {
        // SAFETY: as above the `impl`.
        unsafe { Avx512(_mm512_mul_ps(self.0, b.0)) }
    }
    #[inline(always)]
    unsafe fn store<const N: usize>(self, to: *mut u16) {
        // SAFETY: as above the `impl`.
        unsafe { store_words_16::<N>(bf16_of_16(self.0), to) }
    }
    /// One shuffle takes the high halves of both rows, where a row alone takes a shift and a narrowing.
    #[inline(always)]
    unsafe fn store_two<const N: usize>([a, b]: [Self; 2], to: [*mut u16; 2]) {
        // SAFETY: as above the `impl`.
        unsafe {
            let odd = _mm512_set_epi16(
                63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25, 23, 21, 19, 17, 15, 13,
                11, 9, 7, 5, 3, 1,
            );
            let both = _mm512_permutex2var_epi16(rounded_16(a.0), odd, rounded_16(b.0));
            let rows = [_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64::<1>(both)];
            for (row, to) in rows.into_iter().zip(to) {
                if N == 16 {
                    _mm256_storeu_si256(to.cast(), row);
                } else {
                    _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(row));
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn zero() -> Self::Words {
        // SAFETY: as above the `impl`.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    unsafe fn words<const N: usize>(from: *const u8) -> Self::Words {
        // SAFETY: as above the `impl`.
        unsafe {
            if N == 16 {
                _mm512_loadu_si512(from.cast())
            } else {
                _mm512_zextsi256_si512(_mm256_loadu_si256(from.cast()))
            }
        }
    }
    #[inline(always)]
    unsafe fn store_words<const N: usize>(words: Self::Words, to: *mut u8) {
        // SAFETY: as above the `impl`.
        unsafe {
            if N == 16 {
                _mm512_storeu_si512(to.cast(), words);
            } else {
                _mm256_storeu_si256(to.cast(), _mm512_castsi512_si256(words));
            }
        }
    }
    #[inline(always)]
    unsafe fn pack(self, words: Self::Words, shift: i32) -> Self::Words {
        // SAFETY: as above the `impl`.
        unsafe {
            let code = _mm512_sll_epi32(_mm512_cvtps_epi32(self.0), _mm_cvtsi32_si128(shift));
            _mm512_or_si512(words, code)
        }
    }
    #[inline(always)]
    unsafe fn pack_byte(self, words: Self::Words, shift: i32) -> Self::Words {
        // SAFETY: as above the `impl`.
        unsafe {
            let code = _mm512_sll_epi32(_mm512_cvtps_epi32(self.0), _mm_cvtsi32_si128(shift));
            // words | code & mask
            _mm512_ternarylogic_epi32::<0b1111_1000>(words, code, _mm512_set1_epi32(0xff << shift))
        }
    }
    #[inline(always)]
    unsafe fn store_bytes(rows: [[Self; 2]; 4], to: *mut u8) {
        // SAFETY: as above the `impl`.
        unsafe {
            let words =
                |[low, high]: [Self; 2]| _mm512_packs_epi32(_mm512_cvtps_epi32(low.0), _mm512_cvtps_epi32(high.0));
            let [a, b, c, d] = rows.map(words);
            // b << 8 | a & 0xff
            let pair =
                |a, b| _mm512_ternarylogic_epi32::<0b1111_1000>(_mm512_slli_epi16::<8>(b), a, _mm512_set1_epi16(0xff));
            let (front, back) = (pair(a, b), pair(c, d));
            let (low, high) = (_mm512_unpacklo_epi16(front, back), _mm512_unpackhi_epi16(front, back));
            let first = _mm512_permutex2var_epi64(low, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high);
            let second = _mm512_permutex2var_epi64(low, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), high);
            _mm512_storeu_si512(to.cast(), first);
            _mm512_storeu_si512(to.add(64).cast(), second);
        }
    }
    #[inline(always)]
    unsafe fn byte(words: Self::Words, shift: i32) -> Self {
        // SAFETY: as above the `impl`.
        unsafe {
            let top = _mm512_sll_epi32(words, _mm_cvtsi32_si128(24 - shift));
            Avx512(_mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(top)))
        }
    }
    #[inline(always)]
    unsafe fn table(low: f32, step: f32) -> Self::Table {
        // SAFETY: as above the `impl`.
        unsafe {
            let codes = _mm512_cvtepi32_ps(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
            bf16_of_16(_mm512_fmadd_ps(codes, _mm512_set1_ps(step), _mm512_set1_ps(low)))
        }
    }
    #[inline(always)]
    unsafe fn nibbles<const N: usize>(words: Self::Words, shift: i32, table: Self::Table, to: *mut u16) {
        // SAFETY: as above the `impl`.
        unsafe {
            // The look-up reads the low four bits only.
            let codes = _mm512_srl_epi32(words, _mm_cvtsi32_si128(shift));
            store_words_16::<N>(_mm512_permutexvar_epi32(codes, table), to);
        }
    }
}

/// # Safety
/// `to` has room for `N` u16.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store_words_16<const N: usize>(x: __m512i, to: *mut u16) {
    let packed = _mm512_cvtepi32_epi16(x);
    // SAFETY: the caller's promise.
    unsafe {
        if N == 16 {
            _mm256_storeu_si256(to.cast(), packed);
        } else {
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(packed));
        }
    }
}
