//! The scalar twin of the closed kernels: the definition in [`crate::attention::closed`], one number at a time.

use half::f16;

use super::super::unit::{HEAD_DIM_MAX, SPAN};
use super::{ClosedUnit, LEAST_MAGNITUDE, QUANTISED_MAX, worth};
use crate::attention::closed::Codes;
use crate::cpu::math::{self, SUM_LANES};

/// Attends one unit.
///
/// # Safety
/// As [`ClosedUnit`] states.
pub(in super::super) unsafe fn run_unit(closed: &ClosedUnit) {
    for i in closed.unit.vectors() {
        // SAFETY: the unit's pointers are valid for its rows and all tokens of the span.
        unsafe { attend_vector(closed, i) };
    }
}

/// Integers of at most 15 bits and what one of them is worth.
struct Quantised<const N: usize> {
    integers: [i32; N],
    unit: f32,
}

fn quantise<const N: usize>(codes: Codes, weights: &[f32; N], n: usize) -> Quantised<N> {
    let mut most = 0.0f32;
    for weight in &weights[..n] {
        most = if weight.abs() > most { weight.abs() } else { most };
    }
    let mut integers = [0; N];
    if most < LEAST_MAGNITUDE {
        return Quantised { integers, unit: 0.0 };
    }
    let inverse = QUANTISED_MAX / most;
    for (integer, weight) in integers.iter_mut().zip(&weights[..n]) {
        *integer = (weight * inverse).round_ties_even() as i32;
    }
    Quantised { integers, unit: most * worth(codes) }
}

/// Products added up in 16 lanes, then by halves.
fn lane_sum(a: &[f32], b: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0f32; SUM_LANES];
    for (i, a) in a.iter().enumerate() {
        lanes[i % SUM_LANES] = a.mul_add(b(i), lanes[i % SUM_LANES]);
    }
    math::sum_lanes(lanes)
}

unsafe fn attend_vector(closed: &ClosedUnit, i: usize) {
    let ClosedUnit { unit, forms, span, .. } = closed;
    let (head_dim, tokens) = (unit.head_dim, unit.key_stride);
    let (query, target) = (unit.query(i), unit.target(i));
    let header = |from: *const u8, index: usize| {
        // SAFETY: as `ClosedUnit` states; so are the blocks below.
        unsafe { f16::from_le_bytes(*from.wrapping_add(2 * index).cast::<[u8; 2]>()).to_f32() }
    };
    let key_range = |d: usize| header(span.key_scales, head_dim + d);
    let key_low = |d: usize| header(span.key_scales, d) - key_range(d);
    let value_range = |t: usize| header(span.value_scales, tokens + t);
    let value_low = |t: usize| header(span.value_scales, t) - value_range(t);

    let mut weights = [0.0f32; HEAD_DIM_MAX];
    for (d, weight) in weights[..head_dim].iter_mut().enumerate() {
        // SAFETY: as above.
        let q = unsafe { *query.add(d) };
        *weight = if forms.keys == Codes::Rows4 { q * key_range(d) } else { q };
    }
    let base = match forms.keys {
        // SAFETY: as above.
        Codes::Rows4 => lane_sum(unsafe { std::slice::from_raw_parts(query, head_dim) }, key_low),
        Codes::Int8 => 0.0,
    };
    let queries = quantise(forms.keys, &weights, head_dim);
    let mut scores = [0.0f32; SPAN];
    let mut m = f32::NEG_INFINITY;
    for (t, score) in scores.iter_mut().enumerate() {
        let mut dot = 0i32;
        for d in 0..head_dim {
            // SAFETY: as above.
            dot += queries.integers[d] * unsafe { code(forms.keys, span.key_codes, tokens, d, t) };
        }
        *score = unit.scale
            * match forms.keys {
                Codes::Rows4 => (dot as f32).mul_add(queries.unit, base),
                Codes::Int8 => dot as f32 * queries.unit * header(span.key_scales, t),
            };
        m = if *score > m { *score } else { m };
    }
    m += 0.0;
    let mut lanes = [0.0f32; SUM_LANES];
    for (t, score) in scores.iter_mut().enumerate() {
        *score = math::exp(*score - m);
        lanes[t % SUM_LANES] += *score;
    }
    let l = math::sum_lanes(lanes);

    let mut weights = [0.0f32; SPAN];
    for (t, weight) in weights.iter_mut().enumerate() {
        let scale = if forms.values == Codes::Rows4 { value_range(t) } else { header(span.value_scales, t) };
        *weight = scores[t] * scale;
    }
    let base = if forms.values == Codes::Rows4 { lane_sum(&scores, value_low) } else { 0.0 };
    let weights = quantise(forms.values, &weights, SPAN);
    let (old_m, old_l) = if unit.fold {
        // SAFETY: a target holds `head_dim + 2` floats.
        unsafe { (*target, *target.add(1)) }
    } else {
        (m, l)
    };
    let new_m = if m > old_m { m } else { old_m };
    let (a, b) = (math::exp(old_m - new_m), math::exp(m - new_m));
    for d in 0..head_dim {
        let mut dot = 0i32;
        for t in 0..SPAN {
            // SAFETY: as above.
            dot += weights.integers[t] * unsafe { code(forms.values, span.value_codes, head_dim, t, d) };
        }
        let sum = (dot as f32).mul_add(weights.unit, base);
        // SAFETY: as above.
        unsafe {
            let o = target.add(2 + d);
            *o = if unit.fold { (*o).mul_add(a, sum * b) } else { sum };
        }
    }
    // SAFETY: as above.
    unsafe {
        *target = new_m;
        *target.add(1) = if unit.fold { old_l.mul_add(a, l * b) } else { l };
    }
}

/// The code of a row and lane; row groups are `lanes` words apart.
///
/// # Safety
/// The array has that row and lane.
unsafe fn code(codes: Codes, from: *const u8, lanes: usize, row: usize, lane: usize) -> i32 {
    let rows = codes.rows();
    let at = (row / rows * lanes + lane) * 4;
    // SAFETY: the caller's promise.
    let word = unsafe { u32::from_le_bytes(*from.add(at).cast::<[u8; 4]>()) };
    match codes {
        Codes::Rows4 => (word >> (4 * (row % rows)) & 15) as i32,
        Codes::Int8 => i32::from((word >> (8 * (row % rows))) as u8 as i8),
    }
}
