//! Scalar reference dequantisation: the values a stored row stands for.
//!
//! Every formula, and the order of its f32 operations, is that of `dequantize_row_*` in ggml-quants.c (ggml 0.25), so
//! the results are equal bit for bit to ggml's own. Fast kernels are checked against this module.

use half::{bf16, f16};

use super::tensor_type::TensorType;

/// Dequantises one row (or any whole number of blocks).
///
/// `row`: the blocks as stored; `out`: `[elements]`, overwritten whole.
/// Panics unless `out.len()` is a whole number of blocks and `row` is exactly their bytes: both come from a checked
/// tensor directory, so a mismatch is a caller's bug.
pub fn dequantize_row(kind: TensorType, row: &[u8], out: &mut [f32]) {
    assert_eq!(
        kind.row_bytes(out.len()),
        Some(row.len()),
        "{kind} row of {} elements handed {} bytes",
        out.len(),
        row.len()
    );
    let blocks = row.chunks_exact(kind.block_bytes()).zip(out.chunks_exact_mut(kind.block_elements()));
    match kind {
        TensorType::F32 => blocks.for_each(|(b, o)| o[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        TensorType::F16 => blocks.for_each(|(b, o)| o[0] = half_at(b, 0)),
        TensorType::Bf16 => blocks.for_each(|(b, o)| o[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
        TensorType::Q4_0 => blocks.for_each(|(b, o)| q4_0(b, o)),
        TensorType::Q4_1 => blocks.for_each(|(b, o)| q4_1(b, o)),
        TensorType::Q5_0 => blocks.for_each(|(b, o)| q5_0(b, o)),
        TensorType::Q8_0 => blocks.for_each(|(b, o)| q8_0(b, o)),
        TensorType::Q4K => blocks.for_each(|(b, o)| q4_k(b, o)),
        TensorType::Q6K => blocks.for_each(|(b, o)| q6_k(b, o)),
    }
}

/// The little-endian f16 at byte `at`.
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn q4_0(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    for (j, &pair) in block[2..].iter().enumerate() {
        out[j] = (i32::from(pair & 15) - 8) as f32 * scale;
        out[j + 16] = (i32::from(pair >> 4) - 8) as f32 * scale;
    }
}

fn q4_1(block: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    for (j, &pair) in block[4..].iter().enumerate() {
        out[j] = f32::from(pair & 15) * scale + minimum;
        out[j + 16] = f32::from(pair >> 4) * scale + minimum;
    }
}

fn q5_0(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    let fifth = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    let value = |nibble: u8, element: usize| (i32::from(nibble) | (((fifth >> element) & 1) as i32) << 4) - 16;
    for (j, &pair) in block[6..].iter().enumerate() {
        out[j] = value(pair & 15, j) as f32 * scale;
        out[j + 16] = value(pair >> 4, j + 16) as f32 * scale;
    }
}

fn q8_0(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 0);
    for (value, &code) in out.iter_mut().zip(&block[2..]) {
        *value = f32::from(code as i8) * scale;
    }
}

/// The 6-bit scale and minimum of 32-element group `group` (0..8) from the 12 packed bytes of a `Q4_K` block.
fn q4_k_group(packed: &[u8], group: usize) -> (u8, u8) {
    if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        (
            (packed[group + 4] & 15) | ((packed[group - 4] >> 6) << 4),
            (packed[group + 4] >> 4) | ((packed[group] >> 6) << 4),
        )
    }
}

fn q4_k(block: &[u8], out: &mut [f32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let (packed, codes) = (&block[4..16], &block[16..144]);
    for (pair, (values, codes)) in out.chunks_exact_mut(64).zip(codes.chunks_exact(32)).enumerate() {
        let (s0, m0) = q4_k_group(packed, 2 * pair);
        let (s1, m1) = q4_k_group(packed, 2 * pair + 1);
        let (d0, m0) = (scale * f32::from(s0), minimum * f32::from(m0));
        let (d1, m1) = (scale * f32::from(s1), minimum * f32::from(m1));
        for (j, &code) in codes.iter().enumerate() {
            values[j] = d0 * f32::from(code & 15) - m0;
            values[j + 32] = d1 * f32::from(code >> 4) - m1;
        }
    }
}

fn q6_k(block: &[u8], out: &mut [f32]) {
    let scale = half_at(block, 208);
    for (part, values) in out.chunks_exact_mut(128).enumerate() {
        let low = &block[64 * part..64 * part + 64];
        let high = &block[128 + 32 * part..160 + 32 * part];
        let scales = &block[192 + 8 * part..200 + 8 * part];
        for j in 0..32 {
            let codes = [
                (low[j] & 15) | (high[j] & 3) << 4,
                (low[j + 32] & 15) | (high[j] >> 2 & 3) << 4,
                (low[j] >> 4) | (high[j] >> 4 & 3) << 4,
                (low[j + 32] >> 4) | (high[j] >> 6) << 4,
            ];
            for (quarter, code) in codes.into_iter().enumerate() {
                let group = f32::from(scales[j / 16 + 2 * quarter] as i8);
                values[j + 32 * quarter] = scale * group * (i32::from(code) - 32) as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    fn half(value: f32) -> [u8; 2] {
        f16::from_f32(value).to_le_bytes()
    }

    fn row(kind: TensorType, bytes: &[u8]) -> Vec<f32> {
        let blocks = bytes.len() / kind.block_bytes();
        let mut out = vec![f32::NAN; blocks * kind.block_elements()];
        dequantize_row(kind, bytes, &mut out);
        out
    }

    #[test]
    fn floats_are_themselves() {
        let bytes: Vec<u8> = [1.5f32, -0.0, f32::INFINITY].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(row(TensorType::F32, &bytes), [1.5, -0.0, f32::INFINITY]);
        assert_eq!(row(TensorType::F16, &[0x00, 0x3C, 0x01, 0x00]), [1.0, 2f32.powi(-24)]);
        assert_eq!(row(TensorType::Bf16, &[0x80, 0x3F, 0x49, 0xC0]), [1.0, -3.140625]);
    }

    #[test]
    fn blocks_of_32_by_hand() {
        // Nibbles of byte j: low 3 (element j), high 12 (element j + 16).
        let codes = [0xC3; 16];
        let q4_0 = [&half(0.5)[..], &codes].concat();
        assert_eq!(row(TensorType::Q4_0, &q4_0)[15..17], [-2.5, 2.0]);
        let q4_1 = [&half(0.5)[..], &half(-1.0), &codes].concat();
        assert_eq!(row(TensorType::Q4_1, &q4_1)[15..17], [0.5, 5.0]);
        // Fifth bits: element 0 and element 31.
        let q5_0 = [&half(2.0)[..], &0x8000_0001u32.to_le_bytes(), &codes].concat();
        let values = row(TensorType::Q5_0, &q5_0);
        assert_eq!((values[0], values[1]), (6.0, -26.0));
        assert_eq!((values[16], values[31]), (-8.0, 24.0));
        let q8_0 = [&half(0.25)[..], &[0x80; 16], &[0x7F; 16]].concat();
        assert_eq!(row(TensorType::Q8_0, &q8_0)[15..17], [-32.0, 31.75]);
    }

    #[test]
    fn super_blocks_by_hand() {
        // Group 0: scale 1, minimum 2. Group 5: scale 0b01_0011 = 19 and minimum 0b10_0100 = 36, whose upper bits lie
        // over those of groups 1 and 5's neighbours (bytes 1 and 5).
        let mut packed = [0u8; 12];
        packed[0] = 1;
        packed[4] = 2;
        packed[1] = 0b01 << 6;
        packed[5] = 0b10 << 6;
        packed[9] = 0x43;
        let q4_k = [&half(1.0)[..], &half(0.5), &packed, &[0x5A; 128]].concat();
        let values = row(TensorType::Q4K, &q4_k);
        assert_eq!(values[0], 10.0 * 1.0 - 0.5 * 2.0);
        assert_eq!(values[5 * 32], 5.0 * 19.0 - 0.5 * 36.0);
        assert_eq!(values[2 * 32], 0.0);

        let (mut low, mut high, mut scales) = ([0u8; 128], [0u8; 64], [0u8; 16]);
        low[0] = 0x2F; // elements 0 (15) and 64 (2)
        high[0] = 0b00_11_00_01; // upper bits of 0: 1, 32: 0, 64: 3, 96: 0
        scales[0] = 2;
        scales[4] = 0xFF; // -1
        let q6_k = [&low[..], &high, &scales, &half(0.5)].concat();
        let values = row(TensorType::Q6K, &q6_k);
        assert_eq!(values[0], 0.5 * 2.0 * (31.0 - 32.0));
        assert_eq!(values[64], -0.5 * (50.0 - 32.0));
        assert_eq!(values[32], 0.0);
    }

    /// Digests of the bits of three blocks, from `gguf.quants.dequantize` of the Python package `gguf` 0.19.0 over the
    /// same bytes.
    #[test]
    fn bits_equal_the_python_package_s() {
        let golden = [
            (TensorType::Q4_0, "2152fd0a78964c3a3acc61d63da941af34d17ee037592e697cc303f1f769c240", &[0][..]),
            (TensorType::Q4_1, "c8af2c45c0d361f0e12789737695e0cfeac918da3d5faf785daa5dc5b18df3b7", &[0, 2]),
            (TensorType::Q5_0, "af7c7a1f7fe3113ea66782065d3c07778d9426d80c5d94f2565409c7b9681f97", &[0]),
            (TensorType::Q8_0, "7ea3307fcb49caa508bbe50534d645c6311aada9950ec2e88ae51eb4db6668e1", &[0]),
            (TensorType::Q4K, "eabf48b1142eb413136f305242c06a3d4f17947c4d11f117ba689745eebfa219", &[0, 2]),
            (TensorType::Q6K, "b2ca735c2f9a295047a7dd519f7cf00100c0e74a1213b663213427de671ad655", &[208]),
        ];
        for (kind, expected, halves) in golden {
            let mut state = 0x6B76u64;
            let mut bytes = Vec::new();
            for _ in 0..3 {
                let mut block: Vec<u8> = (0..kind.block_bytes())
                    .map(|_| {
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                        (state >> 56) as u8
                    })
                    .collect();
                // Scales become f16 of moderate size and either sign.
                for &at in halves {
                    block[at + 1] = (block[at + 1] & 0x83) | 0x24;
                }
                bytes.extend(block);
            }
            let values = row(kind, &bytes);
            let bits: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let digest = Sha256::digest(&bits);
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, expected, "{kind}");
        }
    }

    #[test]
    #[should_panic(expected = "Q4_0 row of 32 elements handed 17 bytes")]
    fn a_row_of_the_wrong_size_is_a_bug() {
        dequantize_row(TensorType::Q4_0, &[0; 17], &mut [0.0; 32]);
    }
}
