//! Rows of a stored tensor looked up by index.

use super::{MatrixError, check_shape};
use crate::gguf::TensorType;
use crate::gguf::dequant::dequantize_row;

/// An embedding table as stored in the file: rows of GGUF blocks, dequantised when looked up.
///
/// `B` owns or borrows the bytes (a `Vec<u8>`, a slice of the mapped file).
pub struct EmbeddingTable<B> {
    kind: TensorType,
    rows: usize,
    cols: usize,
    bytes: B,
}

impl<B: AsRef<[u8]>> EmbeddingTable<B> {
    /// A table of `rows` rows of `cols` elements.
    ///
    /// Errors: as [`super::Matrix::from_rows`].
    pub fn new(kind: TensorType, rows: usize, cols: usize, bytes: B) -> Result<EmbeddingTable<B>, MatrixError> {
        check_shape(kind, rows, cols, bytes.as_ref())?;
        Ok(EmbeddingTable { kind, rows, cols, bytes })
    }

    /// Number of rows (token ids).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Writes row `index` to `out`, `[cols]`.
    ///
    /// Panics when `index` is not below `rows` or `out` is not `cols` long.
    pub fn row(&self, index: usize, out: &mut [f32]) {
        assert!(index < self.rows, "row {index} of {}", self.rows);
        assert_eq!(out.len(), self.cols, "one row of results");
        let row_bytes = self.bytes.as_ref().len() / self.rows;
        dequantize_row(self.kind, &self.bytes.as_ref()[index * row_bytes..][..row_bytes], out);
    }
}
