//! Weights packed into panels of sixteen outputs.
//!
//! A panel holds sixteen consecutive rows (outputs) of the matrix; missing rows of the last panel are zero. It is a run
//! of records, one per K-block of 32 columns, in order. A record holds the scales, then the codes, lanes being outputs,
//! so that a kernel never adds across lanes:
//!
//! | format | scales | codes | bytes |
//! |---|---|---|---|
//! | `Nibble` | 16 x f16 | 4 groups of 16 words | 288 |
//! | `NibbleMin` | 16 x f16, 16 x f16 minima | 4 groups of 16 words | 320 |
//! | `NibbleMinWide` | 16 x f32, 16 x f32 minima | 4 groups of 16 words | 384 |
//! | `Byte` | 16 x f16 | 8 groups of 16 words | 544 |
//! | `ByteHalves` | 2 x 16 x f32 (columns 0-15, 16-31) | 8 groups of 16 words | 640 |
//!
//! A word is a u32 (little-endian) of one output. With nibbles it holds columns 8g..8g+8 of its group g, pair p of them
//! (columns 2p, 2p + 1) at bits 4p and 16 + 4p; with bytes it holds columns 4g..4g+4, pair p at bits 8p and 16 + 8p.
//! Thus one mask, after at most one shift, gives a pair of 16-bit integers, which is what the pairwise multiply-add
//! instructions want. A weight is `scale * (code - zero) + minimum`.

use half::f16;

use super::buffer::AlignedBytes;
use crate::gguf::TensorType;

/// Outputs in a panel.
pub(super) const LANES: usize = 16;
/// Columns in a K-block.
pub(super) const BLOCK: usize = 32;

/// How the records of a panel look; see the module header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Format {
    /// Q4_0.
    Nibble,
    /// Q4_1.
    NibbleMin,
    /// Q4_K: its products of scales have 17 significant bits.
    NibbleMinWide,
    /// Q8_0 and Q5_0.
    Byte,
    /// Q6_K.
    ByteHalves,
}

impl Format {
    /// The format a GGUF type is packed into; `None` for the float types.
    pub(super) fn of(kind: TensorType) -> Option<Format> {
        match kind {
            TensorType::Q4_0 => Some(Format::Nibble),
            TensorType::Q4_1 => Some(Format::NibbleMin),
            TensorType::Q4K => Some(Format::NibbleMinWide),
            TensorType::Q8_0 | TensorType::Q5_0 => Some(Format::Byte),
            TensorType::Q6K => Some(Format::ByteHalves),
            TensorType::F32 | TensorType::F16 | TensorType::Bf16 => None,
        }
    }

    /// The inverse of `as u8`, for kernels that take the format as a constant parameter.
    pub(super) const fn from_u8(value: u8) -> Format {
        match value {
            0 => Format::Nibble,
            1 => Format::NibbleMin,
            2 => Format::NibbleMinWide,
            3 => Format::Byte,
            4 => Format::ByteHalves,
            _ => panic!("no such format"),
        }
    }

    pub(super) const fn scale_bytes(self) -> usize {
        match self {
            Format::Nibble | Format::Byte => LANES * 2,
            Format::NibbleMin => LANES * 4,
            Format::NibbleMinWide | Format::ByteHalves => LANES * 8,
        }
    }

    pub(super) const fn is_nibble(self) -> bool {
        matches!(self, Format::Nibble | Format::NibbleMin | Format::NibbleMinWide)
    }

    pub(super) const fn has_min(self) -> bool {
        matches!(self, Format::NibbleMin | Format::NibbleMinWide)
    }

    /// Bytes of the record of one K-block.
    pub(super) const fn record_bytes(self) -> usize {
        self.scale_bytes() + if self.is_nibble() { LANES * BLOCK / 2 } else { LANES * BLOCK }
    }

    /// log2 of the zero point; `None` where it is 0.
    pub(super) const fn zero_shift(self) -> Option<u32> {
        match self {
            Format::Nibble => Some(3),
            Format::NibbleMin | Format::NibbleMinWide => None,
            Format::Byte | Format::ByteHalves => Some(7),
        }
    }
}

/// One K-block of one row, before it is spread over a panel.
pub(super) struct RowBlock {
    /// Unsigned codes in column order.
    pub(super) codes: [u8; BLOCK],
    /// Of columns 0-15 and 16-31; equal except for `ByteHalves`.
    pub(super) scale: [f32; 2],
    pub(super) minimum: f32,
}

/// Packs `rows` of `cols` columns stored as `kind` (whole rows of GGUF blocks) into panels of `format`.
pub(super) fn pack(kind: TensorType, format: Format, rows: usize, cols: usize, bytes: &[u8]) -> AlignedBytes {
    let blocks = cols / BLOCK;
    let per_stored = kind.block_elements() / BLOCK;
    let row_bytes = bytes.len() / rows.max(1);
    let panel_bytes = blocks * format.record_bytes();
    let mut packed = AlignedBytes::zeroed(rows.div_ceil(LANES) * panel_bytes);
    for row in 0..rows {
        let stored = &bytes[row * row_bytes..][..row_bytes];
        let panel = &mut packed.as_mut_slice()[row / LANES * panel_bytes..][..panel_bytes];
        for (block, record) in panel.chunks_exact_mut(format.record_bytes()).enumerate() {
            let source = &stored[block / per_stored * kind.block_bytes()..][..kind.block_bytes()];
            put(format, record, row % LANES, &row_block(kind, source, block % per_stored));
        }
    }
    packed
}

/// Writes one row's block into its lane of a record.
fn put(format: Format, record: &mut [u8], lane: usize, block: &RowBlock) {
    let (scales, codes) = record.split_at_mut(format.scale_bytes());
    let half_at = |scales: &mut [u8], at: usize, value: f32| {
        scales[at * 2..][..2].copy_from_slice(&f16::from_f32(value).to_le_bytes());
    };
    let float_at = |scales: &mut [u8], at: usize, value: f32| {
        scales[at * 4..][..4].copy_from_slice(&value.to_le_bytes());
    };
    match format {
        Format::Nibble | Format::Byte => half_at(scales, lane, block.scale[0]),
        Format::NibbleMin => {
            half_at(scales, lane, block.scale[0]);
            half_at(scales, LANES + lane, block.minimum);
        }
        Format::NibbleMinWide => {
            float_at(scales, lane, block.scale[0]);
            float_at(scales, LANES + lane, block.minimum);
        }
        Format::ByteHalves => {
            float_at(scales, lane, block.scale[0]);
            float_at(scales, LANES + lane, block.scale[1]);
        }
    }
    let (per_word, width) = if format.is_nibble() { (8, 4) } else { (4, 8) };
    for (group, columns) in block.codes.chunks_exact(per_word).enumerate() {
        let mut word = 0;
        for (pair, codes) in columns.chunks_exact(2).enumerate() {
            word |= (u32::from(codes[0]) | u32::from(codes[1]) << 16) << (pair * width);
        }
        codes[(group * LANES + lane) * 4..][..4].copy_from_slice(&word.to_le_bytes());
    }
}

/// Scale, minimum and codes of one lane of a record: the inverse of [`put`].
pub(super) fn take(format: Format, record: &[u8], lane: usize) -> RowBlock {
    let (scales, codes) = record.split_at(format.scale_bytes());
    let half_at = |at: usize| f16::from_le_bytes([scales[at * 2], scales[at * 2 + 1]]).to_f32();
    let word_at =
        |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at * 4..][..4].try_into().expect("four bytes were sliced"));
    let float_at = |at: usize| f32::from_bits(word_at(scales, at));
    let (scale, minimum) = match format {
        Format::Nibble | Format::Byte => ([half_at(lane); 2], 0.0),
        Format::NibbleMin => ([half_at(lane); 2], half_at(LANES + lane)),
        Format::NibbleMinWide => ([float_at(lane); 2], float_at(LANES + lane)),
        Format::ByteHalves => ([float_at(lane), float_at(LANES + lane)], 0.0),
    };
    let (per_word, width, mask) = if format.is_nibble() { (8, 4, 15) } else { (4, 8, 255) };
    let codes = std::array::from_fn(|column| {
        let word = word_at(codes, column / per_word * LANES + lane);
        let at = column % per_word;
        ((word >> (at / 2 * width + at % 2 * 16)) & mask) as u8
    });
    RowBlock { codes, scale, minimum }
}

/// K-block `part` of one stored GGUF block. Layouts: the table at [`TensorType`].
fn row_block(kind: TensorType, stored: &[u8], part: usize) -> RowBlock {
    let half_at = |at: usize| f16::from_le_bytes([stored[at], stored[at + 1]]).to_f32();
    let nibbles = |bytes: &[u8]| -> [u8; BLOCK] {
        std::array::from_fn(|k| if k < 16 { bytes[k] & 15 } else { bytes[k - 16] >> 4 })
    };
    match kind {
        TensorType::Q4_0 => RowBlock { codes: nibbles(&stored[2..]), scale: [half_at(0); 2], minimum: 0.0 },
        TensorType::Q4_1 => RowBlock { codes: nibbles(&stored[4..]), scale: [half_at(0); 2], minimum: half_at(2) },
        TensorType::Q5_0 => {
            let fifth = u32::from_le_bytes([stored[2], stored[3], stored[4], stored[5]]);
            let mut codes = nibbles(&stored[6..]);
            for (k, code) in codes.iter_mut().enumerate() {
                // The zero point is 16 in the file and 128 in the panel.
                *code = (*code | (((fifth >> k) & 1) << 4) as u8) + 112;
            }
            RowBlock { codes, scale: [half_at(0); 2], minimum: 0.0 }
        }
        TensorType::Q8_0 => {
            // Signed in the file, zero point 128 in the panel.
            let codes = std::array::from_fn(|k| stored[2 + k] ^ 0x80);
            RowBlock { codes, scale: [half_at(0); 2], minimum: 0.0 }
        }
        TensorType::Q4K => q4_k(stored, part),
        TensorType::Q6K => q6_k(stored, part),
        TensorType::F32 | TensorType::F16 | TensorType::Bf16 => {
            unreachable!("float types have no codes; `Format::of` is `None` for them")
        }
    }
}

/// Sub-block `part` (of 8) of a Q4_K block. Source: `get_scale_min_k4` and `dequantize_row_q4_K` of ggml-quants.c.
fn q4_k(stored: &[u8], part: usize) -> RowBlock {
    let half_at = |at: usize| f16::from_le_bytes([stored[at], stored[at + 1]]).to_f32();
    let packed = &stored[4..16];
    let (scale, minimum) = if part < 4 {
        (packed[part] & 63, packed[part + 4] & 63)
    } else {
        ((packed[part + 4] & 15) | (packed[part - 4] >> 6) << 4, (packed[part + 4] >> 4) | (packed[part] >> 6) << 4)
    };
    let quarter = &stored[16 + part / 2 * 32..][..32];
    let codes = std::array::from_fn(|k| (quarter[k] >> (part % 2 * 4)) & 15);
    // Exact: 11 and 6 significant bits.
    RowBlock { codes, scale: [half_at(0) * f32::from(scale); 2], minimum: -(half_at(2) * f32::from(minimum)) }
}

/// Columns 32 * `part`.. (of 8 such runs) of a Q6_K block. Source: `dequantize_row_q6_K` of ggml-quants.c.
fn q6_k(stored: &[u8], part: usize) -> RowBlock {
    let (half, quarter) = (part / 4, part % 4);
    let low = &stored[half * 64 + quarter % 2 * 32..][..32];
    let high = &stored[128 + half * 32..][..32];
    let scales = &stored[192 + half * 8 + quarter * 2..][..2];
    let scale = f16::from_le_bytes([stored[208], stored[209]]).to_f32();
    // The zero point is 32 in the file and 128 in the panel.
    let codes =
        std::array::from_fn(|k| ((low[k] >> (quarter / 2 * 4)) & 15 | ((high[k] >> (quarter * 2)) & 3) << 4) + 96);
    // Exact: 11 and 8 significant bits.
    RowBlock { codes, scale: [0, 1].map(|i| scale * f32::from(scales[i] as i8)), minimum: 0.0 }
}
