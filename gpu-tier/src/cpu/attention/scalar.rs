//! The scalar twin of the attention kernels: the definition in [`crate::attention`], one number at a time.

use super::unit::{PIECE_TOKENS, SPAN, Unit};
use crate::attention::Element;
use crate::cpu::math::{self, SUM_LANES};

/// Attends one unit.
///
/// # Safety
/// As [`Unit`] states.
pub(super) unsafe fn run_unit(unit: &Unit) {
    for i in unit.vectors() {
        // SAFETY: the unit's pointers are valid for its rows and visible tokens.
        unsafe { attend_vector(unit, i) };
    }
}

unsafe fn attend_vector(unit: &Unit, i: usize) {
    let (n, head_dim) = (unit.visible(i), unit.head_dim);
    let (query, target) = (unit.query(i), unit.target(i));
    let mut scores = [0.0f32; SPAN];
    let mut m = f32::NEG_INFINITY;
    for (t, score) in scores[..n].iter_mut().enumerate() {
        let mut dot = 0.0f32;
        for d in 0..head_dim {
            let at = d * unit.key_stride + t % PIECE_TOKENS;
            // SAFETY: `n` tokens are visible, so their pieces are present and `head_dim` channels deep.
            dot =
                unsafe { (*query.add(d)).mul_add(element(unit.element, unit.pieces[t / PIECE_TOKENS].keys, at), dot) };
        }
        *score = unit.scale * dot;
        m = if *score > m { *score } else { m };
    }
    // Of two zeros either may have won; the sum makes both the positive one.
    m += 0.0;
    let mut lanes = [0.0f32; SUM_LANES];
    for (t, score) in scores[..n].iter_mut().enumerate() {
        *score = math::exp(*score - m);
        lanes[t % SUM_LANES] += *score;
    }
    let l = math::sum_lanes(lanes);
    let (old_m, old_l) = if unit.fold {
        // SAFETY: a target holds `head_dim + 2` floats.
        unsafe { (*target, *target.add(1)) }
    } else {
        (m, l)
    };
    let new_m = if m > old_m { m } else { old_m };
    let (a, b) = (math::exp(old_m - new_m), math::exp(m - new_m));
    for d in 0..head_dim {
        let mut sum = 0.0f32;
        for (t, p) in scores[..n].iter().enumerate() {
            let at = t % PIECE_TOKENS * head_dim + d;
            // SAFETY: as above; a value row has `head_dim` channels.
            sum = unsafe { p.mul_add(element(unit.element, unit.pieces[t / PIECE_TOKENS].values, at), sum) };
        }
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

/// Element `at` of an array.
///
/// # Safety
/// The array is that long.
unsafe fn element(kind: Element, from: *const u8, at: usize) -> f32 {
    // SAFETY: the caller's promise; section addresses were checked to be aligned to the element.
    unsafe {
        match kind {
            Element::Bf16 => f32::from_bits(u32::from(*from.cast::<u16>().add(at)) << 16),
            Element::F32 => *from.cast::<f32>().add(at),
        }
    }
}

/// Merges `count` partials of one row and head in order and divides; `partials` are `stride` floats apart.
///
/// # Safety
/// Each partial holds `head_dim + 2` floats and the output `head_dim`; `count` is at least 1.
pub(super) unsafe fn finish(partials: *const f32, stride: usize, count: usize, head_dim: usize, output: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let (mut m, mut l) = (*partials, *partials.add(1));
        std::ptr::copy(partials.add(2), output, head_dim);
        for i in 1..count {
            let partial = partials.add(i * stride);
            let new_m = if *partial > m { *partial } else { m };
            let (a, b) = (math::exp(m - new_m), math::exp(*partial - new_m));
            m = new_m;
            l = l.mul_add(a, *partial.add(1) * b);
            for d in 0..head_dim {
                *output.add(d) = (*output.add(d)).mul_add(a, *partial.add(2 + d) * b);
            }
        }
        for d in 0..head_dim {
            *output.add(d) /= l;
        }
    }
}
