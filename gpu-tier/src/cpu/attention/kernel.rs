//! The attention kernels over [`Lanes`]: register tiles of query vectors by tokens, then of query vectors by channels.
//!
//! With few query vectors keys and values are widened in registers as they stream by (decode: bound by memory); with
//! many they are widened to f32 in the worker's scratch once and reused from the first-level cache (prefill: bound by
//! arithmetic). Both do the same operations in the same order for each result, so the bits are the same.
//!
//! # Safety
//! All pointers come from a [`Unit`] (checked and pinned by `attend`) or from the worker's own [`Scratch`]. Loads of
//! keys may touch the unwritten tokens of a visible piece: they are inside the section and their scores are masked.

#![expect(clippy::needless_range_loop, reason = "register tiles are indexed in two arrays at once; plain loops unroll")]

use super::lanes::{Kernel, Lanes};
use super::unit::{PIECE_TOKENS, PIECES, Parts, Piece, Pieces, SPAN, Scratch, TILE, Unit};
use crate::attention::Element;

/// How elements are read.
pub(super) trait Stored {
    const BYTES: usize;
    /// Sixteen elements from each address, lanes in an order that [`Stored::settle`] undoes.
    unsafe fn load<V: Lanes, const P: usize>(from: [*const u8; P]) -> [V; P];
    /// Lanes in the order of memory.
    unsafe fn settle<V: Lanes, const P: usize>(x: [V; P]) -> [V; P];
}

pub(super) struct Bf16;
pub(super) struct F32;

impl Stored for Bf16 {
    const BYTES: usize = 2;
    #[inline(always)]
    unsafe fn load<V: Lanes, const P: usize>(from: [*const u8; P]) -> [V; P] {
        // SAFETY: the caller's promise.
        unsafe { V::widen(from.map(|from| from.cast())) }
    }
    #[inline(always)]
    unsafe fn settle<V: Lanes, const P: usize>(x: [V; P]) -> [V; P] {
        // SAFETY: the caller's promise.
        unsafe { V::settle(x) }
    }
}

impl Stored for F32 {
    const BYTES: usize = 4;
    #[inline(always)]
    unsafe fn load<V: Lanes, const P: usize>(from: [*const u8; P]) -> [V; P] {
        // SAFETY: the caller's promise.
        unsafe {
            let mut out = [V::splat(0.0); P];
            for p in 0..P {
                out[p] = V::load(from[p].cast());
            }
            out
        }
    }
    #[inline(always)]
    unsafe fn settle<V: Lanes, const P: usize>(x: [V; P]) -> [V; P] {
        x
    }
}

/// Attends one unit.
///
/// # Safety
/// As [`Unit`] states; the processor has the lanes' instruction set.
pub(super) unsafe fn run_unit<V: Lanes>(unit: &Unit, scratch: &mut Scratch) {
    let parts = scratch.parts(unit.head_dim);
    // SAFETY: the caller's promise.
    unsafe {
        if unit.is_wide() {
            match unit.element {
                Element::Bf16 => V::run(Widen::<Bf16>::new(unit, parts)),
                Element::F32 => V::run(Widen::<F32>::new(unit, parts)),
            }
            let pieces = std::array::from_fn(|i| Piece {
                keys: parts.keys.add(i * PIECE_TOKENS).cast_const().cast(),
                values: parts.values.add(i * PIECE_TOKENS * unit.head_dim).cast_const().cast(),
            });
            V::run(Tiles::<F32>::new(unit, parts, pieces, SPAN, None));
        } else {
            let (pieces, key_stride, next) = (unit.pieces, unit.key_stride, unit.next);
            match unit.element {
                Element::Bf16 => V::run(Tiles::<Bf16>::new(unit, parts, pieces, key_stride, next)),
                Element::F32 => V::run(Tiles::<F32>::new(unit, parts, pieces, key_stride, next)),
            }
        }
    }
}

/// Writes the visible keys and values of a unit to scratch as f32.
struct Widen<'u, E> {
    unit: &'u Unit,
    parts: Parts,
    element: std::marker::PhantomData<E>,
}

impl<'u, E> Widen<'u, E> {
    fn new(unit: &'u Unit, parts: Parts) -> Self {
        Widen { unit, parts, element: std::marker::PhantomData }
    }
}

impl<E: Stored> Kernel for Widen<'_, E> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<V: Lanes>(self) {
        let Unit { head_dim, key_stride, .. } = *self.unit;
        let tokens = self.unit.visible(self.unit.vectors().end - 1);
        for (i, piece) in self.unit.pieces[..tokens.div_ceil(PIECE_TOKENS)].iter().enumerate() {
            let here = (tokens - i * PIECE_TOKENS).min(PIECE_TOKENS);
            // SAFETY: a visible piece holds `head_dim` channels of 16 keys and `here` written value rows; the scratch
            // has room for all 64 tokens.
            unsafe {
                for d in 0..head_dim {
                    let [keys] = E::settle(E::load::<V, 1>([piece.keys.add(d * key_stride * E::BYTES)]));
                    keys.store(self.parts.keys.add(d * SPAN + i * PIECE_TOKENS));
                }
                let values = self.parts.values.add(i * PIECE_TOKENS * head_dim);
                for at in (0..here * head_dim).step_by(16) {
                    let [row] = E::settle(E::load::<V, 1>([piece.values.add(at * E::BYTES)]));
                    row.store(values.add(at));
                }
            }
        }
    }
}

/// All query vectors of a unit against pieces stored as `E`.
struct Tiles<'u, E> {
    unit: &'u Unit,
    parts: Parts,
    pieces: Pieces,
    key_stride: usize,
    next: Option<Pieces>,
    element: std::marker::PhantomData<E>,
}

impl<'u, E> Tiles<'u, E> {
    fn new(unit: &'u Unit, parts: Parts, pieces: Pieces, key_stride: usize, next: Option<Pieces>) -> Self {
        let element = std::marker::PhantomData;
        Tiles { unit, parts, pieces, key_stride, next, element }
    }
}

impl<E: Stored> Kernel for Tiles<'_, E> {
    type Output = ();
    #[inline(always)]
    unsafe fn call<V: Lanes>(mut self) {
        let vectors = self.unit.vectors();
        let mut i = vectors.start;
        while i < vectors.end {
            // SAFETY: the caller's promise; the tile's query vectors are the unit's.
            i += unsafe {
                match vectors.end - i {
                    TILE.. => V::run(Tile::<E, TILE> { tiles: &self, i }),
                    4.. => V::run(Tile::<E, 4> { tiles: &self, i }),
                    3 => V::run(Tile::<E, 3> { tiles: &self, i }),
                    2 => V::run(Tile::<E, 2> { tiles: &self, i }),
                    _ => V::run(Tile::<E, 1> { tiles: &self, i }),
                }
            };
            // Once is enough.
            self.next = None;
        }
    }
}

/// `R` query vectors from `i` on. Gives `R`.
struct Tile<'t, E, const R: usize> {
    tiles: &'t Tiles<'t, E>,
    i: usize,
}

impl<E: Stored, const R: usize> Kernel for Tile<'_, E, R> {
    type Output = usize;
    #[inline(always)]
    unsafe fn call<V: Lanes>(self) -> usize {
        let Tile { tiles, i } = self;
        let unit = tiles.unit;
        let visible: [usize; R] = std::array::from_fn(|r| unit.visible(i + r));
        // SAFETY: module header. Later rows see more, so the first vector sees least and the last most.
        unsafe {
            scores::<V, E, R>(tiles, i, visible[R - 1]);
            let mut m = [0.0f32; 16];
            let mut l = [0.0f32; 16];
            for r in 0..R {
                (m[r], l[r]) = softmax::<V>(tiles.parts.scores.add(r * SPAN), visible[r]);
            }
            let sums: [*mut f32; R] = std::array::from_fn(|r| {
                if unit.fold { tiles.parts.sums.add(r * unit.head_dim) } else { unit.target(i + r).add(2) }
            });
            values::<V, E, R>(tiles, &visible, &sums);
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

/// Scaled scores of `R` query vectors against the pieces that hold the first `tokens` tokens.
#[inline(always)]
unsafe fn scores<V: Lanes, E: Stored, const R: usize>(tiles: &Tiles<'_, E>, i: usize, tokens: usize) {
    let queries: [*const f32; R] = std::array::from_fn(|r| tiles.unit.query(i + r));
    let used = tokens.div_ceil(PIECE_TOKENS);
    let next = tiles.next.as_ref();
    let mut piece = 0;
    // SAFETY: module header.
    unsafe {
        // As many accumulators as the registers hold: 24 of 32, or 12 halves of 16.
        if V::WIDE || R == 1 {
            while piece + 4 <= used {
                dots::<V, E, R, 4>(tiles, &queries, piece, next);
                piece += 4;
            }
        }
        if V::WIDE {
            while piece + 2 <= used {
                dots::<V, E, R, 2>(tiles, &queries, piece, next);
                piece += 2;
            }
        }
        while piece < used {
            dots::<V, E, R, 1>(tiles, &queries, piece, next);
            piece += 1;
        }
    }
}

/// Scaled scores of `R` query vectors against `P` pieces.
#[inline(always)]
unsafe fn dots<V: Lanes, E: Stored, const R: usize, const P: usize>(
    tiles: &Tiles<'_, E>,
    queries: &[*const f32; R],
    first: usize,
    next: Option<&Pieces>,
) {
    let stride = tiles.key_stride * E::BYTES;
    let keys: [*const u8; P] = std::array::from_fn(|p| tiles.pieces[first + p].keys);
    // SAFETY: module header; prefetching any address is harmless.
    unsafe {
        let mut sums = [[V::splat(0.0); P]; R];
        for d in 0..tiles.unit.head_dim {
            if let Some(next) = next {
                // The same channels and pieces of the next unit. Two pieces share a line, or, in the smallest blocks,
                // two channels of a piece.
                for p in 0..P {
                    let at = next[first + p].keys.wrapping_add(d * stride);
                    if stride > PIECE_TOKENS * E::BYTES || E::BYTES > 2 {
                        if ((first + p) * PIECE_TOKENS * E::BYTES).is_multiple_of(64) {
                            prefetch(at);
                        }
                    } else if d % 2 == 0 {
                        prefetch(at);
                    }
                }
            }
            let k = E::load::<V, P>(keys.map(|keys| keys.add(d * stride)));
            for r in 0..R {
                let q = V::splat(*queries[r].add(d));
                for p in 0..P {
                    sums[r][p] = q.fma(k[p], sums[r][p]);
                }
            }
        }
        let scale = V::splat(tiles.unit.scale);
        for r in 0..R {
            let sums = E::settle(sums[r]);
            for p in 0..P {
                let to = tiles.parts.scores.add(r * SPAN + (first + p) * PIECE_TOKENS);
                scale.mul(sums[p]).store(to);
            }
        }
    }
}

/// Turns the first `n` of 64 scores into probabilities (the others of their piece into 0) and gives (m, l).
#[inline(always)]
unsafe fn softmax<V: Lanes>(scores: *mut f32, n: usize) -> (f32, f32) {
    // SAFETY: 64 scores of our own scratch.
    unsafe {
        if n == SPAN {
            return softmax_of::<V, PIECES, false>(scores, n);
        }
        match n.div_ceil(PIECE_TOKENS) {
            1 => softmax_of::<V, 1, true>(scores, n),
            2 => softmax_of::<V, 2, true>(scores, n),
            3 => softmax_of::<V, 3, true>(scores, n),
            _ => softmax_of::<V, PIECES, true>(scores, n),
        }
    }
}

/// [`softmax`] over `P` pieces; without `MASKED` all of them are visible.
#[inline(always)]
unsafe fn softmax_of<V: Lanes, const P: usize, const MASKED: bool>(scores: *mut f32, n: usize) -> (f32, f32) {
    // SAFETY: 64 scores of our own scratch.
    unsafe {
        let s: [V; P] = std::array::from_fn(|p| V::load(scores.add(p * PIECE_TOKENS)));
        let mut most = V::splat(f32::NEG_INFINITY);
        for p in 0..P {
            let larger = s[p].max(most);
            most = if MASKED { larger.below(n - p * PIECE_TOKENS, most) } else { larger };
        }
        // Of two zeros either may have won; the sum makes both the positive one.
        let m = most.max_lane() + 0.0;
        let mut sum = V::splat(0.0);
        for p in 0..P {
            let weight = s[p].sub(V::splat(m)).exp();
            // Probabilities are never -0, so adding a masked 0 changes no bit.
            let weight = if MASKED { weight.below(n - p * PIECE_TOKENS, V::splat(0.0)) } else { weight };
            weight.store(scores.add(p * PIECE_TOKENS));
            sum = sum.add(weight);
        }
        (m, sum.sum_lanes())
    }
}

/// Sums of values weighted with the probabilities, each vector over its visible tokens only.
#[inline(always)]
unsafe fn values<V: Lanes, E: Stored, const R: usize>(
    tiles: &Tiles<'_, E>,
    visible: &[usize; R],
    sums: &[*mut f32; R],
) {
    let head_dim = tiles.unit.head_dim;
    let common = visible[0];
    let mut channel = 0;
    // SAFETY: module header.
    unsafe {
        if V::WIDE {
            while channel + 64 <= head_dim {
                weigh::<V, E, R, 4>(tiles, common, channel, sums);
                channel += 64;
            }
        }
        if V::WIDE {
            while channel + 32 <= head_dim {
                weigh::<V, E, R, 2>(tiles, common, channel, sums);
                channel += 32;
            }
        }
        while channel < head_dim {
            weigh::<V, E, R, 1>(tiles, common, channel, sums);
            channel += 16;
        }
        for r in 1..R {
            if visible[r] > common {
                weigh_rest::<V, E>(tiles, r, common..visible[r], sums[r]);
            }
        }
    }
}

/// `16 * C` channels of the sums of `R` vectors over the first `tokens` tokens, which all of them see.
#[inline(always)]
unsafe fn weigh<V: Lanes, E: Stored, const R: usize, const C: usize>(
    tiles: &Tiles<'_, E>,
    tokens: usize,
    channel: usize,
    sums: &[*mut f32; R],
) {
    let row_bytes = tiles.unit.head_dim * E::BYTES;
    // SAFETY: module header; prefetching any address is harmless.
    unsafe {
        let probabilities = tiles.parts.scores;
        let mut acc = [[V::splat(0.0); C]; R];
        for piece in 0..tokens.div_ceil(PIECE_TOKENS) {
            let here = (tokens - piece * PIECE_TOKENS).min(PIECE_TOKENS);
            let rows = tiles.pieces[piece].values.add(channel * E::BYTES);
            let starts_line = (channel * E::BYTES).is_multiple_of(64);
            let next = if starts_line { tiles.next.map(|next| next[piece].values) } else { None };
            for t in 0..here {
                let at = t * row_bytes;
                if let Some(next) = next {
                    for line in (0..C * 16 * E::BYTES).step_by(64) {
                        prefetch(next.wrapping_add(at + channel * E::BYTES + line));
                    }
                }
                let v = E::load::<V, C>(std::array::from_fn(|c| rows.add(at + c * 16 * E::BYTES)));
                for r in 0..R {
                    let p = V::splat(*probabilities.add(r * SPAN + piece * PIECE_TOKENS + t));
                    for c in 0..C {
                        acc[r][c] = p.fma(v[c], acc[r][c]);
                    }
                }
            }
        }
        for r in 0..R {
            let acc = E::settle(acc[r]);
            for c in 0..C {
                acc[c].store(sums[r].add(channel + c * 16));
            }
        }
    }
}

/// Adds the tokens that one vector (number `row` of the tile) sees beyond those of its tile: a few, on the diagonal.
#[inline(always)]
unsafe fn weigh_rest<V: Lanes, E: Stored>(
    tiles: &Tiles<'_, E>,
    row: usize,
    tokens: std::ops::Range<usize>,
    sums: *mut f32,
) {
    let head_dim = tiles.unit.head_dim;
    // SAFETY: module header.
    unsafe {
        for channel in (0..head_dim).step_by(16) {
            let mut acc = V::load(sums.add(channel));
            for t in tokens.clone() {
                let at = (t % PIECE_TOKENS * head_dim + channel) * E::BYTES;
                let v = E::load::<V, 1>([tiles.pieces[t / PIECE_TOKENS].values.add(at)]);
                let [v] = E::settle(v);
                acc = V::splat(*tiles.parts.scores.add(row * SPAN + t)).fma(v, acc);
            }
            acc.store(sums.add(channel));
        }
    }
}

/// Merges the partials of `R` query vectors into their running states.
#[inline(always)]
pub(super) unsafe fn fold<V: Lanes, const R: usize>(
    unit: &Unit,
    i: usize,
    m: &[f32; 16],
    l: &[f32; 16],
    sums: &[*mut f32; R],
) {
    // SAFETY: module header; a target holds `head_dim + 2` floats.
    unsafe {
        // The exponents of all vectors at once: lanes r are the old states' and lanes r + 8 the partials'.
        let mut factors = [0.0f32; 16];
        for r in 0..R {
            let target = unit.target(i + r);
            let new_m = if m[r] > *target { m[r] } else { *target };
            factors[r] = *target - new_m;
            factors[r + 8] = m[r] - new_m;
            *target = new_m;
        }
        V::load(factors.as_ptr()).exp().store(factors.as_mut_ptr());
        for r in 0..R {
            let target = unit.target(i + r);
            let (a, b) = (factors[r], factors[r + 8]);
            *target.add(1) = (*target.add(1)).mul_add(a, l[r] * b);
            let (a, b) = (V::splat(a), V::splat(b));
            for d in (0..unit.head_dim).step_by(16) {
                let o = target.add(2 + d);
                V::load(o).fma(a, V::load(sums[r].add(d)).mul(b)).store(o);
            }
        }
    }
}

#[inline(always)]
pub(super) fn prefetch(at: *const u8) {
    // SAFETY: a prefetch of any address is a hint and never faults.
    unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(at.cast()) }
}

const _: () = assert!(PIECES == 4 && TILE <= 8);
