//! `raw16`, scalar reference: bf16, rounded to nearest even.

use half::bf16;

/// Rounds to bf16, ties to even; a NaN stays a NaN.
pub fn encode(value: f32) -> u16 {
    bf16::from_f32(value).to_bits()
}

/// Exact.
pub fn decode(code: u16) -> f32 {
    f32::from_bits(u32::from(code) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_even() {
        assert_eq!(encode(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(encode(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(encode(f32::from_bits(0x3f80_8001)), 0x3f81);
    }

    #[test]
    fn every_code_survives() {
        for code in 0..=u16::MAX {
            let value = decode(code);
            if value.is_nan() {
                assert!(decode(encode(value)).is_nan());
            } else {
                assert_eq!(encode(value), code);
            }
        }
    }
}
