//! The closed kernels over lanes: query vectors and probabilities become 16-bit integers, scales folded in; codes stream by
//! as they lie and all query vectors of a tile take each word while it is in a register. Sums of integers are exact, so
//! their order is free.
//!
//! # Safety
//! All pointers come from a [`ClosedUnit`] (checked and pinned by `attend_mixed`) or from the worker's own scratch.

#![expect(clippy::needless_range_loop, reason = "register tiles are indexed in two arrays at once; plain loops unroll")]

use super::super::kernel::{fold, prefetch};
use super::super::lanes::{Kernel, Lanes};
use super::super::unit::{Parts, SPAN, Scratch, TILE, Unit};
use super::{ClosedSpan, ClosedUnit, LEAST_MAGNITUDE, QUANTISED_MAX};
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
            let worth = quantise_queries::<V, K, R>(&space, unit, i);
            scores::<V, K, W, R>(tiles, &worth);
            let (m, l, worth) = weigh::<V, W, R>(&space);
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

/// Writes the queries of `R` vectors from `i` on (times the channels' half-ranges) as pairs of integers. Like [`weigh`] it does
/// a step for all vectors before the next step, so that none waits for another's horizontal sums.
#[inline(always)]
unsafe fn quantise_queries<V: Lanes, K: Packed, const R: usize>(space: &Space, unit: &Unit, i: usize) -> Worth<R> {
    let (head_dim, rows4) = (unit.head_dim, K::CODES == Codes::Rows4);
    let queries: [*const f32; R] = std::array::from_fn(|r| unit.query(i + r));
    // SAFETY: module header.
    unsafe {
        let (mut most, mut base) = ([V::splat(0.0); R], [V::splat(0.0); R]);
        for d in (0..head_dim).step_by(16) {
            for r in 0..R {
                let query = V::load(queries[r].add(d));
                if rows4 {
                    most[r] = query.mul(V::load(space.key_scales.add(d))).magnitude(most[r]);
                    base[r] = query.fma(V::load(space.key_scales.add(head_dim + d)), base[r]);
                } else {
                    most[r] = query.magnitude(most[r]);
                }
            }
        }
        let (worth, inverse) = Worth::of::<V, K>(most, rows4.then_some(base));
        for d in (0..head_dim).step_by(16) {
            for r in 0..R {
                let query = V::load(queries[r].add(d));
                let weight = if rows4 { query.mul(V::load(space.key_scales.add(d))) } else { query };
                K::pairs::<V>(weight.mul(V::splat(inverse[r])), space.query_pairs.add((r * head_dim + d) / 2));
            }
        }
        worth
    }
}

/// Turns the scores of `R` vectors into probabilities, and these (times the tokens' factors) into pairs of integers. Gives m
/// and l of each. What is left where the scores were means nothing.
#[inline(always)]
unsafe fn weigh<V: Lanes, W: Packed, const R: usize>(space: &Space) -> ([f32; 16], [f32; 16], Worth<R>) {
    let (mut m, mut l) = ([0.0f32; 16], [0.0f32; 16]);
    let rows4 = W::CODES == Codes::Rows4;
    // SAFETY: module header.
    unsafe {
        for r in 0..R {
            let mut most = V::splat(f32::NEG_INFINITY);
            for t in (0..SPAN).step_by(16) {
                most = V::load(space.scores.add(r * SPAN + t)).max(most);
            }
            // Of two zeros either may have won; the sum makes both the positive one.
            m[r] = most.max_lane() + 0.0;
        }
        let (mut most, mut base) = ([V::splat(0.0); R], [V::splat(0.0); R]);
        let mut sums = [V::splat(0.0); R];
        for r in 0..R {
            for t in (0..SPAN).step_by(16) {
                let at = space.scores.add(r * SPAN + t);
                let probability = V::load(at).sub(V::splat(m[r])).exp();
                sums[r] = sums[r].add(probability);
                let weight = probability.mul(V::load(space.value_scales.add(t)));
                weight.store(at);
                most[r] = weight.magnitude(most[r]);
                if rows4 {
                    base[r] = probability.fma(V::load(space.value_scales.add(SPAN + t)), base[r]);
                }
            }
        }
        let (worth, inverse) = Worth::of::<V, W>(most, rows4.then_some(base));
        for r in 0..R {
            l[r] = sums[r].sum_lanes();
            for t in (0..SPAN).step_by(16) {
                let weight = V::load(space.scores.add(r * SPAN + t)).mul(V::splat(inverse[r]));
                W::pairs::<V>(weight, space.weight_pairs.add((r * SPAN + t) / 2));
            }
        }
        (m, l, worth)
    }
}

impl<const R: usize> Worth<R> {
    /// From the lanes' largest magnitudes and sums over lowest values; and what a weight is multiplied with.
    #[inline(always)]
    unsafe fn of<V: Lanes, P: Packed>(most: [V; R], base: Option<[V; R]>) -> (Worth<R>, [f32; R]) {
        let (mut worth, mut inverse) = (Worth { unit: [0.0; R], base: [0.0; R] }, [0.0; R]);
        for r in 0..R {
            // SAFETY: inside `Lanes::run`.
            let most = unsafe { most[r].max_lane() };
            if most >= LEAST_MAGNITUDE {
                (worth.unit[r], inverse[r]) = (most * const { super::worth(P::CODES) }, QUANTISED_MAX / most);
            }
            if let Some(base) = base {
                // SAFETY: as above.
                worth.base[r] = unsafe { base[r].sum_lanes() };
            }
        }
        (worth, inverse)
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
