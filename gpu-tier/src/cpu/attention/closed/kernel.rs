//! The closed kernels over lanes: query vectors and probabilities become 16-bit integers, scales folded in; codes stream by
//! as they lie and all query vectors of a tile take each word while it is in a register. Sums of integers are exact, so
//! their order is free.
//!
//! # Safety
//! All pointers come from a [`ClosedUnit`] (checked and pinned by `attend_mixed`) or from the worker's own scratch.

#![expect(clippy::needless_range_loop, reason = "register tiles are indexed in two arrays at once; plain loops unroll")]

use super::super::kernel::{fold, prefetch, softmax};
use super::super::lanes::{Kernel, Lanes};
use super::super::unit::{Parts, SPAN, Scratch, TILE};
use super::{ClosedSpan, ClosedUnit, LEAST_MAGNITUDE, QUANTISED_MAX, worth};
use crate::attention::closed::Codes;

/// Most query vectors at once where there are 16 registers.
const NARROW_TILE: usize = 4;

/// Attends one unit.
///
/// # Safety
/// As [`ClosedUnit`] states; the processor has the lanes' instruction set.
pub(in super::super) unsafe fn run_unit<V: Lanes>(closed: &ClosedUnit, scratch: &mut Scratch) {
    let space = Space::new(scratch.parts(closed.unit.head_dim), closed.unit.head_dim);
    // SAFETY: the caller's promise.
    unsafe {
        match (closed.forms.keys, closed.forms.values) {
            (Codes::Rows4, Codes::Rows4) => V::run(Tiles::<Nibbles, Nibbles>::new(closed, space)),
            (Codes::Rows4, Codes::Int8) => V::run(Tiles::<Nibbles, Bytes>::new(closed, space)),
            (Codes::Int8, Codes::Rows4) => V::run(Tiles::<Bytes, Nibbles>::new(closed, space)),
            (Codes::Int8, Codes::Int8) => V::run(Tiles::<Bytes, Bytes>::new(closed, space)),
        }
    }
}

/// How codes are packed.
trait Packed {
    const CODES: Codes;
    /// Pairs of rows in a word.
    const PAIRS: usize;
    /// The codes of pair `i`.
    unsafe fn take<V: Lanes>(words: V::Words, i: usize) -> V::Words;
    /// Writes the pairs of 16 weights.
    unsafe fn pairs<V: Lanes>(weights: V, to: *mut i32);
}

struct Nibbles;
struct Bytes;

impl Packed for Nibbles {
    const CODES: Codes = Codes::Rows4;
    const PAIRS: usize = 4;
    #[inline(always)]
    unsafe fn take<V: Lanes>(words: V::Words, i: usize) -> V::Words {
        // SAFETY: inside `Lanes::run`.
        unsafe { V::nibbles(words, i) }
    }
    #[inline(always)]
    unsafe fn pairs<V: Lanes>(weights: V, to: *mut i32) {
        // SAFETY: the caller's promise.
        unsafe { weights.pairs_of_eight(to) }
    }
}

impl Packed for Bytes {
    const CODES: Codes = Codes::Int8;
    const PAIRS: usize = 2;
    #[inline(always)]
    unsafe fn take<V: Lanes>(words: V::Words, i: usize) -> V::Words {
        // SAFETY: inside `Lanes::run`.
        unsafe { V::bytes(words, i) }
    }
    #[inline(always)]
    unsafe fn pairs<V: Lanes>(weights: V, to: *mut i32) {
        // SAFETY: the caller's promise.
        unsafe { weights.pairs_of_four(to) }
    }
}

/// The parts of the scratch, put to other uses: `64 head_dim` floats each, of which the first holds both arrays of
/// integers (`TILE (head_dim + 64) / 2`) and the second the scales (`2 head_dim + 128`).
#[derive(Clone, Copy)]
struct Space {
    /// Pairs of a vector's query, `[TILE][head_dim / 2]`.
    query_pairs: *mut i32,
    /// Pairs of its probabilities, `[TILE][32]`.
    weight_pairs: *mut i32,
    /// Keys: factor of each channel, then its lowest value (`Rows4`), or of each token (`Int8`).
    key_scales: *mut f32,
    /// Values: factor of each token, then its lowest value.
    value_scales: *mut f32,
    scores: *mut f32,
    sums: *mut f32,
}

impl Space {
    fn new(parts: Parts, head_dim: usize) -> Space {
        let Parts { keys, values, scores, sums } = parts;
        let query_pairs = keys.cast::<i32>();
        Space {
            query_pairs,
            weight_pairs: query_pairs.wrapping_add(TILE * head_dim / 2),
            key_scales: values,
            value_scales: values.wrapping_add(2 * head_dim.max(SPAN)),
            scores,
            sums,
        }
    }
}

/// All query vectors of a unit.
struct Tiles<'u, K, W> {
    closed: &'u ClosedUnit,
    space: Space,
    next: Option<ClosedSpan>,
    codes: std::marker::PhantomData<(K, W)>,
}

impl<'u, K, W> Tiles<'u, K, W> {
    fn new(closed: &'u ClosedUnit, space: Space) -> Self {
        Tiles { closed, space, next: closed.next, codes: std::marker::PhantomData }
    }
}

impl<K: Packed, W: Packed> Kernel for Tiles<'_, K, W> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<V: Lanes>(mut self) {
        let ClosedUnit { unit, span, .. } = self.closed;
        // SAFETY: module header.
        unsafe {
            if let Some(next) = self.next {
                for line in (0..4 * unit.head_dim).step_by(64) {
                    prefetch(next.key_scales.wrapping_add(line));
                }
                prefetch(next.value_scales);
                prefetch(next.value_scales.wrapping_add(64));
                prefetch(next.value_scales.wrapping_add(2 * unit.key_stride));
                prefetch(next.value_scales.wrapping_add(2 * unit.key_stride + 64));
            }
            if K::CODES == Codes::Rows4 {
                row_scales::<V>(span.key_scales, unit.head_dim, unit.head_dim, self.space.key_scales);
            } else {
                for t in (0..SPAN).step_by(16) {
                    V::halves(span.key_scales.add(2 * t)).store(self.space.key_scales.add(t));
                }
            }
            if W::CODES == Codes::Rows4 {
                row_scales::<V>(span.value_scales, unit.key_stride, SPAN, self.space.value_scales);
            } else {
                for t in (0..SPAN).step_by(16) {
                    V::halves(span.value_scales.add(2 * t)).store(self.space.value_scales.add(t));
                }
            }
            let vectors = unit.vectors();
            let mut i = vectors.start;
            while i < vectors.end {
                let left = vectors.end - i;
                i += if V::WIDE && left >= TILE {
                    V::run(Tile::<K, W, TILE> { tiles: &self, i })
                } else if left >= NARROW_TILE {
                    V::run(Tile::<K, W, NARROW_TILE> { tiles: &self, i })
                } else {
                    match left {
                        3 => V::run(Tile::<K, W, 3> { tiles: &self, i }),
                        2 => V::run(Tile::<K, W, 2> { tiles: &self, i }),
                        _ => V::run(Tile::<K, W, 1> { tiles: &self, i }),
                    }
                };
                // Once is enough.
                self.next = None;
            }
        }
    }
}

/// Half-ranges of `n` rows, then their lowest values. Half-ranges stand `stride` f16 after the centres.
#[inline(always)]
unsafe fn row_scales<V: Lanes>(from: *const u8, stride: usize, n: usize, to: *mut f32) {
    // SAFETY: module header.
    unsafe {
        for i in (0..n).step_by(16) {
            let centre = V::halves(from.add(2 * i));
            let half_range = V::halves(from.add(2 * (stride + i)));
            half_range.store(to.add(i));
            centre.sub(half_range).store(to.add(n + i));
        }
    }
}

/// `R` query vectors from `i` on. Gives `R`.
struct Tile<'t, K, W, const R: usize> {
    tiles: &'t Tiles<'t, K, W>,
    i: usize,
}

/// What an integer is worth and what comes on top, of each vector of a tile.
#[derive(Clone, Copy)]
struct Worth<const R: usize> {
    unit: [f32; R],
    base: [f32; R],
}

impl<K: Packed, W: Packed, const R: usize> Kernel for Tile<'_, K, W, R> {
    type Output = usize;
    #[inline(always)]
    unsafe fn call<V: Lanes>(self) -> usize {
        let Tile { tiles, i } = self;
        let (space, unit) = (tiles.space, &tiles.closed.unit);
        // SAFETY: module header.
        unsafe {
            let mut worth = Worth { unit: [0.0; R], base: [0.0; R] };
            for r in 0..R {
                let pairs = space.query_pairs.add(r * unit.head_dim / 2);
                let scales = (K::CODES == Codes::Rows4).then_some(space.key_scales.cast_const());
                (worth.unit[r], worth.base[r]) =
                    quantise::<V, K>(unit.query(i + r), unit.head_dim, scales, K::CODES == Codes::Rows4, pairs);
            }
            scores::<V, K, W, R>(tiles, &worth);
            let (mut m, mut l) = ([0.0f32; 16], [0.0f32; 16]);
            for r in 0..R {
                let probabilities = space.scores.add(r * SPAN);
                (m[r], l[r]) = softmax::<V>(probabilities, SPAN);
                let pairs = space.weight_pairs.add(r * SPAN / 2);
                let scales = Some(space.value_scales.cast_const());
                (worth.unit[r], worth.base[r]) =
                    quantise::<V, W>(probabilities, SPAN, scales, W::CODES == Codes::Rows4, pairs);
            }
            let sums: [*mut f32; R] = std::array::from_fn(|r| {
                if unit.fold { space.sums.add(r * unit.head_dim) } else { unit.target(i + r).add(2) }
            });
            values::<V, K, W, R>(tiles, &worth, &sums);
            if unit.fold {
                fold::<V, R>(unit, i, &m, &l, &sums);
            } else {
                for r in 0..R {
                    *unit.target(i + r) = m[r];
                    *unit.target(i + r).add(1) = l[r];
                }
            }
        }
        R
    }
}

/// Writes `n` weights (times their scales) as pairs of integers and gives the worth of one, and the sum of weights times the
/// lowest values, which stand `n` floats after the scales.
#[inline(always)]
unsafe fn quantise<V: Lanes, P: Packed>(
    weights: *const f32,
    n: usize,
    scales: Option<*const f32>,
    has_lowest: bool,
    pairs: *mut i32,
) -> (f32, f32) {
    // SAFETY: module header.
    unsafe {
        let (mut most, mut sum) = (V::splat(0.0), V::splat(0.0));
        for i in (0..n).step_by(16) {
            let weight = V::load(weights.add(i));
            let Some(scales) = scales else {
                most = weight.magnitude(most);
                continue;
            };
            most = weight.mul(V::load(scales.add(i))).magnitude(most);
            if has_lowest {
                sum = weight.fma(V::load(scales.add(n + i)), sum);
            }
        }
        let (most, base) = (most.max_lane(), if has_lowest { sum.sum_lanes() } else { 0.0 });
        let (unit, inverse) =
            if most < LEAST_MAGNITUDE { (0.0, 0.0) } else { (most * const { worth(P::CODES) }, QUANTISED_MAX / most) };
        let inverse = V::splat(inverse);
        for i in (0..n).step_by(16) {
            let weight = V::load(weights.add(i));
            let weight = scales.map_or(weight, |scales| weight.mul(V::load(scales.add(i))));
            P::pairs::<V>(weight.mul(inverse), pairs.add(i / 2));
        }
        (unit, base)
    }
}

/// Scaled scores of the tile's vectors against all 64 tokens.
#[inline(always)]
unsafe fn scores<V: Lanes, K: Packed, W: Packed, const R: usize>(tiles: &Tiles<'_, K, W>, worth: &Worth<R>) {
    // SAFETY: module header.
    unsafe {
        let mut token = 0;
        while token < SPAN {
            // As many accumulators as the registers hold.
            if V::WIDE && R <= 4 {
                some_scores::<V, K, W, R, 4>(tiles, worth, token);
                token += 64;
            } else if V::WIDE {
                some_scores::<V, K, W, R, 2>(tiles, worth, token);
                token += 32;
            } else {
                some_scores::<V, K, W, R, 1>(tiles, worth, token);
                token += 16;
            }
        }
    }
}

/// Scaled scores against `16 * C` tokens.
#[inline(always)]
unsafe fn some_scores<V: Lanes, K: Packed, W: Packed, const R: usize, const C: usize>(
    tiles: &Tiles<'_, K, W>,
    worth: &Worth<R>,
    token: usize,
) {
    let ClosedUnit { unit, span, .. } = tiles.closed;
    let space = tiles.space;
    // SAFETY: module header.
    unsafe {
        let pairs: [*const i32; R] = std::array::from_fn(|r| space.query_pairs.add(r * unit.head_dim / 2).cast_const());
        let next = tiles.next.map(|next| next.key_codes.wrapping_add(4 * token));
        let codes = span.key_codes.add(4 * token);
        let dots = dots::<V, K, R, C>(codes, unit.key_stride, unit.head_dim / K::CODES.rows(), &pairs, next);
        let scale = V::splat(unit.scale);
        for c in 0..C {
            let at = token + 16 * c;
            for r in 0..R {
                let (dot, of_one) = (V::floats(dots[r][c]), V::splat(worth.unit[r]));
                let score = if K::CODES == Codes::Rows4 {
                    dot.fma(of_one, V::splat(worth.base[r]))
                } else {
                    dot.mul(of_one).mul(V::load(space.key_scales.add(at)))
                };
                scale.mul(score).store(space.scores.add(r * SPAN + at));
            }
        }
    }
}

/// Sums of values weighted with the probabilities.
#[inline(always)]
unsafe fn values<V: Lanes, K: Packed, W: Packed, const R: usize>(
    tiles: &Tiles<'_, K, W>,
    worth: &Worth<R>,
    sums: &[*mut f32; R],
) {
    let head_dim = tiles.closed.unit.head_dim;
    let mut channel = 0;
    // SAFETY: module header.
    unsafe {
        while channel < head_dim {
            if V::WIDE && R <= 4 && channel + 64 <= head_dim {
                some_values::<V, K, W, R, 4>(tiles, worth, channel, sums);
                channel += 64;
            } else if V::WIDE && channel + 32 <= head_dim {
                some_values::<V, K, W, R, 2>(tiles, worth, channel, sums);
                channel += 32;
            } else {
                some_values::<V, K, W, R, 1>(tiles, worth, channel, sums);
                channel += 16;
            }
        }
    }
}

/// `16 * C` channels of the sums.
#[inline(always)]
unsafe fn some_values<V: Lanes, K: Packed, W: Packed, const R: usize, const C: usize>(
    tiles: &Tiles<'_, K, W>,
    worth: &Worth<R>,
    channel: usize,
    sums: &[*mut f32; R],
) {
    let ClosedUnit { unit, span, .. } = tiles.closed;
    // SAFETY: module header.
    unsafe {
        let pairs: [*const i32; R] = std::array::from_fn(|r| tiles.space.weight_pairs.add(r * SPAN / 2).cast_const());
        let next = tiles.next.map(|next| next.value_codes.wrapping_add(4 * channel));
        let codes = span.value_codes.add(4 * channel);
        let dots = dots::<V, W, R, C>(codes, unit.head_dim, SPAN / W::CODES.rows(), &pairs, next);
        for r in 0..R {
            for c in 0..C {
                let sum = V::floats(dots[r][c]).fma(V::splat(worth.unit[r]), V::splat(worth.base[r]));
                sum.store(sums[r].add(channel + 16 * c));
            }
        }
    }
}

/// Integer products of `R` vectors with `16 * C` lanes of `groups` row groups, which are `stride` words apart.
#[inline(always)]
unsafe fn dots<V: Lanes, P: Packed, const R: usize, const C: usize>(
    codes: *const u8,
    stride: usize,
    groups: usize,
    pairs: &[*const i32; R],
    next: Option<*const u8>,
) -> [[V::Words; C]; R] {
    // SAFETY: module header; prefetching any address is harmless.
    unsafe {
        let mut sums = [[V::no_words(); C]; R];
        for group in 0..groups {
            let at = 4 * group * stride;
            if let Some(next) = next {
                for c in 0..C {
                    prefetch(next.wrapping_add(at + 64 * c));
                }
            }
            let mut words = [V::no_words(); C];
            for c in 0..C {
                words[c] = V::words(codes.add(at + 64 * c));
            }
            for i in 0..P::PAIRS {
                let mut taken = [V::no_words(); C];
                for c in 0..C {
                    taken[c] = P::take::<V>(words[c], i);
                }
                for r in 0..R {
                    let pair = *pairs[r].add(group * P::PAIRS + i);
                    for c in 0..C {
                        sums[r][c] = V::dot(sums[r][c], taken[c], pair);
                    }
                }
            }
        }
        sums
    }
}
