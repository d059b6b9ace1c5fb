//! f16 headers: little-endian, rounded to nearest even or upwards.

use half::f16;

/// All ones in an f16 that is not finite.
const EXPONENT: u16 = 0x7c00;

/// Bits of the f16 nearest to `x`, ties to even; `None` when that is not finite.
pub fn nearest(x: f32) -> Option<u16> {
    finite(f16::from_f32(x).to_bits())
}

/// Bits of the least f16 that is not below `x`, for `x >= 0`; `None` when there is no finite one.
pub fn round_up(x: f32) -> Option<u16> {
    let rounded = f16::from_f32(x);
    finite(rounded.to_bits() + u16::from(rounded.to_f32() < x))
}

fn finite(bits: u16) -> Option<u16> {
    (bits & EXPONENT != EXPONENT).then_some(bits)
}

/// Header `index` of an array of f16.
pub fn read_f16(from: &[u8], index: usize) -> f32 {
    f16::from_le_bytes([from[2 * index], from[2 * index + 1]]).to_f32()
}

/// Writes header `index` of an array of f16.
pub fn write_f16(to: &mut [u8], index: usize, bits: u16) {
    to[2 * index..2 * index + 2].copy_from_slice(&bits.to_le_bytes());
}

/// True when every f16 of an array is finite and, where `non_negative`, has no sign: what an encoder writes.
pub fn headers_are_finite(headers: &[u8], non_negative: bool) -> bool {
    let sign = if non_negative { 0x8000 } else { 0 };
    headers.chunks_exact(2).all(|header| {
        let bits = u16::from_le_bytes([header[0], header[1]]);
        bits & EXPONENT != EXPONENT && bits & sign == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_up_gives_the_least_header_that_is_not_below() {
        for bits in 0..EXPONENT {
            let x = f16::from_bits(bits).to_f32();
            assert_eq!(round_up(x), Some(bits));
            let above = f32::from_bits(x.to_bits() + 1);
            assert_eq!(round_up(above), finite(bits + 1), "{above:e}");
            if bits > 0 {
                assert_eq!(round_up(f32::from_bits(x.to_bits() - 1)), Some(bits));
            }
        }
        assert_eq!(round_up(f32::MAX), None);
        assert_eq!(nearest(65519.0), Some(0x7bff));
        assert_eq!(nearest(65520.0), None);
        assert_eq!(nearest(f32::NAN), None);
    }
}
