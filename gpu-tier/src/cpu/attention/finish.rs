//! Merging partials in span order, over [`Lanes`].

#![expect(clippy::needless_range_loop, reason = "register tiles are indexed in two arrays at once; plain loops unroll")]

use super::lanes::{Kernel, Lanes};

/// Spans whose factors are computed at once.
const BATCH: usize = 64;

/// One row and head: merges `count` (at least 1) partials that are `stride` floats apart, and divides.
///
/// # Safety
/// Each partial holds `head_dim + 2` floats and the output `head_dim`, a multiple of 16.
pub(super) struct Finish {
    pub(super) partials: *const f32,
    pub(super) stride: usize,
    pub(super) count: usize,
    pub(super) head_dim: usize,
    pub(super) output: *mut f32,
}

impl Kernel for Finish {
    type Output = ();
    #[inline(always)]
    unsafe fn call<V: Lanes>(self) {
        let Finish { partials, stride, count, head_dim, output } = self;
        // SAFETY: as the struct states.
        unsafe {
            let (mut m, mut l) = (*partials, *partials.add(1));
            for d in (0..head_dim).step_by(16) {
                V::load(partials.add(2 + d)).store(output.add(d));
            }
            let mut first = 1;
            while first < count {
                let n = (count - first).min(BATCH);
                let batch = partials.add(first * stride);
                let mut a = [0.0f32; BATCH];
                let mut b = [0.0f32; BATCH];
                for i in 0..n {
                    let next = *batch.add(i * stride);
                    let new_m = if next > m { next } else { m };
                    a[i] = m - new_m;
                    b[i] = next - new_m;
                    m = new_m;
                }
                for i in (0..n).step_by(16) {
                    V::load(a.as_ptr().add(i)).exp().store(a.as_mut_ptr().add(i));
                    V::load(b.as_ptr().add(i)).exp().store(b.as_mut_ptr().add(i));
                }
                for i in 0..n {
                    l = l.mul_add(a[i], *batch.add(i * stride + 1) * b[i]);
                }
                let mut d = 0;
                while d + 64 <= head_dim {
                    merge::<V, 4>(batch.add(2 + d), stride, &a[..n], &b[..n], output.add(d));
                    d += 64;
                }
                while d < head_dim {
                    merge::<V, 1>(batch.add(2 + d), stride, &a[..n], &b[..n], output.add(d));
                    d += 16;
                }
                first += n;
            }
            for d in (0..head_dim).step_by(16) {
                V::load(output.add(d)).div(V::splat(l)).store(output.add(d));
            }
        }
    }
}

/// `16 * C` channels of the merge, kept in registers over a batch of spans.
#[inline(always)]
unsafe fn merge<V: Lanes, const C: usize>(from: *const f32, stride: usize, a: &[f32], b: &[f32], output: *mut f32) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut acc = [V::splat(0.0); C];
        for c in 0..C {
            acc[c] = V::load(output.add(c * 16));
        }
        for i in 0..a.len() {
            let (a, b) = (V::splat(a[i]), V::splat(b[i]));
            for c in 0..C {
                acc[c] = acc[c].fma(a, V::load(from.add(i * stride + c * 16)).mul(b));
            }
        }
        for c in 0..C {
            acc[c].store(output.add(c * 16));
        }
    }
}
