//! Weight matrices and their products with rows of activations.
//!
//! [`Matrix`] is the shipped path: weights repacked at load (module `pack`), activations quantised to 16-bit integers
//! (module `activations`), or f32 for float weights (module `dense`). Every result is reduced along K in one fixed order
//! per output row, and the scalar, AVX2 and AVX-512 kernels give the same bits; a row has the same bits alone and among
//! others, on any number of workers. [`ReferenceMatrix`] is the yardstick of its accuracy.

mod activations;
mod buffer;
mod dense;
mod embedding;
#[cfg(target_arch = "x86_64")]
mod kernel_avx2;
#[cfg(target_arch = "x86_64")]
mod kernel_avx512;
mod kernel_scalar;
mod pack;
mod reference;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use gpu_tier::cpu::isa::Isa;
use gpu_tier::cpu::workers::{Workers, split};

use self::activations::{TILE, Tile};
use self::buffer::{AlignedBytes, SharedMut};
use self::dense::Float;
use self::pack::{BLOCK, Format, LANES};
use crate::gguf::TensorType;

pub use self::activations::{Activations, Width};
pub use self::embedding::EmbeddingTable;
pub use self::reference::ReferenceMatrix;

/// Pieces of work per worker: enough that one that is held up does not hold up the others, few enough that a piece is
/// worth its start.
const PIECES_PER_WORKER: usize = 12;

/// Why a tensor cannot be a matrix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MatrixError {
    /// A row is not a whole number of blocks of its type.
    #[error("read {kind} matrix: rows of {cols} columns, expected a multiple of {multiple}")]
    Columns {
        /// The stored type.
        kind: TensorType,
        /// Columns found.
        cols: usize,
        /// What they must be a multiple of.
        multiple: usize,
    },
    /// The bytes are not what the shape needs.
    #[error("read {kind} matrix of {rows} rows and {cols} columns: {found} bytes, expected {expected}")]
    Bytes {
        /// The stored type.
        kind: TensorType,
        /// Rows named.
        rows: usize,
        /// Columns named.
        cols: usize,
        /// Bytes found.
        found: usize,
        /// Bytes the shape needs; `usize::MAX` when that does not fit.
        expected: usize,
    },
}

/// Weights `[rows = outputs, cols = K]`, packed for the kernels.
pub struct Matrix {
    rows: usize,
    cols: usize,
    weights: Weights,
    packed: AlignedBytes,
}

/// How `Matrix::packed` is to be read.
#[derive(Clone, Copy)]
enum Weights {
    Quantised(Format),
    Dense(Float),
}

impl Matrix {
    /// Packs `rows` rows of `cols` weights, stored one after another as GGUF blocks of `kind`.
    ///
    /// Errors: `Columns` when a row is not whole blocks, `Bytes` when `bytes` has another length.
    pub fn from_rows(kind: TensorType, rows: usize, cols: usize, bytes: &[u8]) -> Result<Matrix, MatrixError> {
        check_shape(kind, rows, cols, bytes)?;
        let (weights, packed) = match (Format::of(kind), kind) {
            (Some(format), _) => (Weights::Quantised(format), pack::pack(kind, format, rows, cols, bytes)),
            (None, TensorType::F16) => (Weights::Dense(Float::F16), dense::pack(Float::F16, rows, cols, bytes)),
            (None, TensorType::Bf16) => (Weights::Dense(Float::Bf16), dense::pack(Float::Bf16, rows, cols, bytes)),
            (None, _) => (Weights::Dense(Float::F32), dense::pack(Float::F32, rows, cols, bytes)),
        };
        Ok(Matrix { rows, cols, weights, packed })
    }

    /// Number of outputs.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (K).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Resident bytes of the packed weights.
    pub fn bytes(&self) -> usize {
        self.packed.as_slice().len()
    }

    /// Whether the product needs the activations' f32 rows (float weights): not [`Activations::integers_only`].
    pub fn needs_f32(&self) -> bool {
        matches!(self.weights, Weights::Dense(_))
    }

    /// `out = x * self^T`: `out` is `[m, rows]`, row-major, for the m rows of `x`.
    ///
    /// Panics when the columns of `x` or the length of `out` do not fit, when the weights are floats and `x` was made
    /// without f32 rows, or when the processor lacks `isa`.
    pub fn multiply(&self, isa: Isa, workers: &Workers, x: &Activations, out: &mut [f32]) {
        multiply_many(isa, workers, x, &mut [(self, out)]);
    }

    fn panels(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// The bytes of one panel.
    fn panel(&self, index: usize) -> &[u8] {
        let bytes = match self.weights {
            Weights::Quantised(format) => self.cols / BLOCK * format.record_bytes(),
            Weights::Dense(float) => self.cols * LANES * float.bytes(),
        };
        &self.packed.as_slice()[index * bytes..][..bytes]
    }
}

/// Panics when the processor lacks `isa`: what the kernels' safety rests on.
fn check_isa(isa: Isa) {
    assert!(isa <= Isa::detect(), "this processor has no {}", isa.name());
}

/// Checks that `bytes` are `rows` whole rows of `cols` elements.
fn check_shape(kind: TensorType, rows: usize, cols: usize, bytes: &[u8]) -> Result<(), MatrixError> {
    let multiple = kind.block_elements();
    if cols == 0 || !cols.is_multiple_of(multiple) {
        return Err(MatrixError::Columns { kind, cols, multiple });
    }
    let expected = kind.row_bytes(cols).and_then(|row| row.checked_mul(rows)).unwrap_or(usize::MAX);
    if bytes.len() != expected {
        return Err(MatrixError::Bytes { kind, rows, cols, found: bytes.len(), expected });
    }
    Ok(())
}

/// Several products with the same activations (query, key and value; gate and up) in one parallel region.
///
/// Each entry is a matrix and its `out`, `[m, rows]` row-major. Panics as [`Matrix::multiply`] does.
pub fn multiply_many(isa: Isa, workers: &Workers, x: &Activations, products: &mut [(&Matrix, &mut [f32])]) {
    check_isa(isa);
    let products: Vec<(&Matrix, SharedMut<'_, f32>)> = products
        .iter_mut()
        .map(|(matrix, out)| {
            assert_eq!(matrix.cols, x.k(), "columns of the matrix and of the activations");
            assert_eq!(out.len(), x.m() * matrix.rows, "results are [{}, {}]", x.m(), matrix.rows);
            (*matrix, SharedMut::new(out))
        })
        .collect();
    let tiles = x.m().div_ceil(TILE);
    let panels: usize = products.iter().map(|(matrix, _)| matrix.panels()).sum();
    let piece = (panels * tiles).div_ceil(workers.count() * PIECES_PER_WORKER).max(1);
    let pieces: usize = products.iter().map(|(matrix, _)| matrix.panels().div_ceil(piece) * tiles).sum();
    // Each worker has a run of consecutive pieces, so that it reads weights in sequence and finds what it wrote last time
    // in its own cache; when done it helps with the others' runs. Who does a piece does not change its bits.
    let runs: Vec<Run> =
        (0..workers.count()).map(|worker| Run::new(split(pieces, 1, worker, workers.count()))).collect();
    workers.run(&|worker| {
        let mut scratch = [[0.0; LANES]; TILE];
        let (before, own_and_after) = runs.split_at(worker);
        for run in own_and_after.iter().chain(before) {
            while let Some(mut index) = run.take() {
                for (matrix, out) in &products {
                    let per_tile = matrix.panels().div_ceil(piece);
                    if index < per_tile * tiles {
                        let (tile, first) = (index / per_tile, index % per_tile * piece);
                        for panel in first..(first + piece).min(matrix.panels()) {
                            multiply_panel(isa, matrix, panel, x, tile, &mut scratch);
                            scatter(matrix, panel, x, tile, &scratch, out);
                        }
                        break;
                    }
                    index -= per_tile * tiles;
                }
            }
        }
    });
}

/// Pieces of work handed out in order, each once. A cache line of its own, since every worker writes to its own run.
#[repr(align(64))]
struct Run {
    next: AtomicUsize,
    end: usize,
}

impl Run {
    fn new(pieces: Range<usize>) -> Run {
        Run { next: AtomicUsize::new(pieces.start), end: pieces.end }
    }

    fn take(&self) -> Option<usize> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        (index < self.end).then_some(index)
    }
}

/// Panel `panel` of `matrix` times tile `tile` of `x`, into the first rows of `scratch`.
fn multiply_panel(
    isa: Isa,
    matrix: &Matrix,
    panel: usize,
    x: &Activations,
    tile: usize,
    scratch: &mut [[f32; LANES]; TILE],
) {
    let weights = matrix.panel(panel);
    match matrix.weights {
        Weights::Dense(float) => {
            dense::multiply_panel(isa, float, weights, matrix.cols, x.float_tile(tile), scratch);
        }
        Weights::Quantised(format) => multiply_quantised(isa, format, weights, x.tile(tile), scratch),
    }
}

/// Calls the kernel of a format on an instruction set.
fn multiply_quantised(isa: Isa, format: Format, panel: &[u8], tile: Tile<'_>, out: &mut [[f32; LANES]; TILE]) {
    #[cfg(target_arch = "x86_64")]
    macro_rules! by_format {
        ($kernel:path) => {
            // SAFETY: `check_isa` saw that the processor has the kernel's features.
            unsafe {
                use $kernel as kernel;
                match format {
                    Format::Nibble => kernel::<{ Format::Nibble as u8 }>(panel, tile, out),
                    Format::NibbleMin => kernel::<{ Format::NibbleMin as u8 }>(panel, tile, out),
                    Format::NibbleMinWide => kernel::<{ Format::NibbleMinWide as u8 }>(panel, tile, out),
                    Format::Byte => kernel::<{ Format::Byte as u8 }>(panel, tile, out),
                    Format::ByteHalves => kernel::<{ Format::ByteHalves as u8 }>(panel, tile, out),
                }
            }
        };
    }
    match isa {
        Isa::Scalar => kernel_scalar::multiply_panel(format, panel, tile, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => by_format!(kernel_avx2::multiply_panel),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => by_format!(kernel_avx512::multiply_panel),
        #[cfg(not(target_arch = "x86_64"))]
        _ => kernel_scalar::multiply_panel(format, panel, tile, out),
    }
}

/// Copies a panel's results to where they belong in `[m, rows]`.
fn scatter(
    matrix: &Matrix,
    panel: usize,
    x: &Activations,
    tile: usize,
    scratch: &[[f32; LANES]; TILE],
    out: &SharedMut<'_, f32>,
) {
    let first = panel * LANES;
    let lanes = (matrix.rows - first).min(LANES);
    for (row, results) in (tile * TILE..x.m()).zip(scratch) {
        let at = row * matrix.rows + first;
        // SAFETY: each panel and tile is one piece's, each piece one worker's, and their places differ.
        unsafe { out.part(at..at + lanes) }.copy_from_slice(&results[..lanes]);
    }
}

#[cfg(test)]
mod tests;
