//! The reference product: f32 activations, dequantised weights, plain Rust.

use gpu_tier::cpu::workers::{Workers, split};

use super::buffer::SharedMut;
use super::{MatrixError, check_shape};
use crate::gguf::TensorType;
use crate::gguf::dequant::dequantize_row;

/// Partial sums of a dot product: column c goes to sum c mod 8.
const SUMS: usize = 8;
/// Weight rows that are dequantised together, so that a row of activations is read once for all of them.
const ROWS_AT_ONCE: usize = 16;

/// Weights `[rows = outputs, cols = K]` kept as stored and dequantised as they are used: slow, and the yardstick of
/// [`super::Matrix`]. `B` owns or borrows the bytes.
pub struct ReferenceMatrix<B> {
    kind: TensorType,
    rows: usize,
    cols: usize,
    bytes: B,
}

impl<B: AsRef<[u8]> + Sync> ReferenceMatrix<B> {
    /// Wraps `rows` rows of `cols` weights stored as GGUF blocks of `kind`.
    ///
    /// Errors: as [`super::Matrix::from_rows`].
    pub fn new(kind: TensorType, rows: usize, cols: usize, bytes: B) -> Result<ReferenceMatrix<B>, MatrixError> {
        check_shape(kind, rows, cols, bytes.as_ref())?;
        Ok(ReferenceMatrix { kind, rows, cols, bytes })
    }

    /// Number of outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (K).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// `out = x * self^T`, `x`: `[m, cols]`, `out`: `[m, rows]`, both row-major.
    ///
    /// Each result is eight sums over interleaved columns, added in order: the same for every `m` and team.
    /// Panics when the lengths do not fit.
    pub fn multiply(&self, workers: &Workers, x: &[f32], m: usize, out: &mut [f32]) {
        assert_eq!(x.len(), m * self.cols, "activations are [{m}, {}]", self.cols);
        assert_eq!(out.len(), m * self.rows, "results are [{m}, {}]", self.rows);
        let out = SharedMut::new(out);
        let row_bytes = self.bytes.as_ref().len() / self.rows.max(1);
        workers.run(&|worker| {
            let own = split(self.rows, ROWS_AT_ONCE, worker, workers.count());
            let mut weights = vec![0.0; ROWS_AT_ONCE * self.cols];
            for first in own.clone().step_by(ROWS_AT_ONCE) {
                let count = ROWS_AT_ONCE.min(own.end - first);
                for (row, weights) in (first..first + count).zip(weights.chunks_exact_mut(self.cols)) {
                    dequantize_row(self.kind, &self.bytes.as_ref()[row * row_bytes..][..row_bytes], weights);
                }
                for (index, x) in x.chunks_exact(self.cols).enumerate() {
                    let at = index * self.rows + first;
                    // SAFETY: each weight row is one worker's, so these places are too.
                    let results = unsafe { out.part(at..at + count) };
                    for (result, weights) in results.iter_mut().zip(weights.chunks_exact(self.cols)) {
                        *result = dot(weights, x);
                    }
                }
            }
        });
    }
}

/// Eight interleaved sums, then their sum in order.
fn dot(weights: &[f32], x: &[f32]) -> f32 {
    let (weight_chunks, weight_rest) = weights.as_chunks::<SUMS>();
    let (x_chunks, x_rest) = x.as_chunks::<SUMS>();
    let mut sums = [0.0; SUMS];
    for (weights, x) in weight_chunks.iter().zip(x_chunks) {
        for i in 0..SUMS {
            sums[i] += weights[i] * x[i];
        }
    }
    for (i, (weight, x)) in weight_rest.iter().zip(x_rest).enumerate() {
        sums[i] += weight * x;
    }
    sums.iter().sum()
}
