//! Storage types of tensors in a GGUF file.

use std::fmt;

/// How a tensor's elements are stored, as ggml lays them out.
///
/// A tensor row is a run of blocks: each block stores [`block_elements`](Self::block_elements) elements in
/// [`block_bytes`](Self::block_bytes) bytes. All multi-byte fields are little-endian; `f16` is IEEE binary16.
///
/// | type | elements | bytes | block layout |
/// |---|---|---|---|
/// | `F32` | 1 | 4 | f32 |
/// | `F16` | 1 | 2 | f16 |
/// | `Bf16` | 1 | 2 | upper half of an f32 |
/// | `Q4_0` | 32 | 18 | f16 scale, 16 bytes: element j low nibble, j + 16 high nibble |
/// | `Q4_1` | 32 | 20 | f16 scale, f16 minimum, 16 bytes as above |
/// | `Q5_0` | 32 | 22 | f16 scale, u32 of fifth bits (bit j: element j), 16 bytes as above |
/// | `Q8_0` | 32 | 34 | f16 scale, 32 i8 |
/// | `Q4K` | 256 | 144 | f16 scale, f16 minimum scale, 12 bytes of 6-bit scales and minima, 128 bytes of nibbles |
/// | `Q6K` | 256 | 210 | 128 bytes of low nibbles, 64 bytes of upper bit pairs, 16 i8 scales, f16 scale |
///
/// Source: ggml-common.h of ggml 0.25 (block structs) and ggml.h (type numbers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TensorType {
    /// 32-bit float.
    F32,
    /// IEEE 16-bit float.
    F16,
    /// Brain float.
    Bf16,
    /// 4-bit, scale only.
    Q4_0,
    /// 4-bit, scale and minimum.
    Q4_1,
    /// 5-bit, scale only.
    Q5_0,
    /// 8-bit, scale only.
    Q8_0,
    /// 4-bit super-blocks of 256 (ggml `Q4_K`).
    Q4K,
    /// 6-bit super-blocks of 256 (ggml `Q6_K`).
    Q6K,
}

impl TensorType {
    /// Every type this reader understands.
    pub const ALL: [TensorType; 9] = [
        TensorType::F32,
        TensorType::F16,
        TensorType::Bf16,
        TensorType::Q4_0,
        TensorType::Q4_1,
        TensorType::Q5_0,
        TensorType::Q8_0,
        TensorType::Q4K,
        TensorType::Q6K,
    ];

    /// The type of a ggml type number; `None` for one this reader does not understand.
    pub fn from_ggml(number: u32) -> Option<TensorType> {
        Self::ALL.into_iter().find(|kind| kind.ggml_number() == number)
    }

    /// ggml's number of this type, as stored in the file.
    pub const fn ggml_number(self) -> u32 {
        match self {
            TensorType::F32 => 0,
            TensorType::F16 => 1,
            TensorType::Q4_0 => 2,
            TensorType::Q4_1 => 3,
            TensorType::Q5_0 => 6,
            TensorType::Q8_0 => 8,
            TensorType::Q4K => 12,
            TensorType::Q6K => 14,
            TensorType::Bf16 => 30,
        }
    }

    /// Elements in one block; rows are a multiple of it.
    pub const fn block_elements(self) -> usize {
        match self {
            TensorType::F32 | TensorType::F16 | TensorType::Bf16 => 1,
            TensorType::Q4_0 | TensorType::Q4_1 | TensorType::Q5_0 | TensorType::Q8_0 => 32,
            TensorType::Q4K | TensorType::Q6K => 256,
        }
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        match self {
            TensorType::F32 => 4,
            TensorType::F16 | TensorType::Bf16 => 2,
            TensorType::Q4_0 => 18,
            TensorType::Q4_1 => 20,
            TensorType::Q5_0 => 22,
            TensorType::Q8_0 => 34,
            TensorType::Q4K => 144,
            TensorType::Q6K => 210,
        }
    }

    /// Bytes of a row of `elements`; `None` unless `elements` is a whole number of blocks and the product fits.
    pub const fn row_bytes(self, elements: usize) -> Option<usize> {
        if !elements.is_multiple_of(self.block_elements()) {
            return None;
        }
        (elements / self.block_elements()).checked_mul(self.block_bytes())
    }

    /// ggml's name of the type.
    pub const fn name(self) -> &'static str {
        match self {
            TensorType::F32 => "F32",
            TensorType::F16 => "F16",
            TensorType::Bf16 => "BF16",
            TensorType::Q4_0 => "Q4_0",
            TensorType::Q4_1 => "Q4_1",
            TensorType::Q5_0 => "Q5_0",
            TensorType::Q8_0 => "Q8_0",
            TensorType::Q4K => "Q4_K",
            TensorType::Q6K => "Q6_K",
        }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip_and_unknown_ones_are_refused() {
        for kind in TensorType::ALL {
            assert_eq!(TensorType::from_ggml(kind.ggml_number()), Some(kind));
        }
        for number in [4, 5, 7, 9, 10, 11, 13, 15, 16, 29, 31, 39, u32::MAX] {
            assert_eq!(TensorType::from_ggml(number), None);
        }
    }

    #[test]
    fn a_row_is_whole_blocks() {
        assert_eq!(TensorType::Q4_1.row_bytes(576), Some(360));
        assert_eq!(TensorType::Q4_1.row_bytes(577), None);
        assert_eq!(TensorType::Q6K.row_bytes(512), Some(420));
        assert_eq!(TensorType::F32.row_bytes(usize::MAX), None);
    }
}
