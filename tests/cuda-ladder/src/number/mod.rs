//! Floating-point formats and exact rounding.

pub(crate) mod float;

/// How a result that does not fit is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Round {
    /// To nearest, ties to even (`.rn`).
    Even,
    /// To nearest, ties away from zero (`.rna`).
    Away,
    /// Towards zero (`.rz`).
    Zero,
    /// Towards minus infinity (`.rm`).
    Down,
    /// Towards plus infinity (`.rp`).
    Up,
}

/// A binary format of sign, exponent and fraction, with infinities and NaN as in IEEE 754.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Format {
    /// Bits of the fraction, without the hidden one.
    pub(crate) fraction: u32,
    pub(crate) exponent: u32,
}

pub(crate) const F16: Format = Format { fraction: 10, exponent: 5 };
pub(crate) const BF16: Format = Format { fraction: 7, exponent: 8 };
pub(crate) const TF32: Format = Format { fraction: 10, exponent: 8 };
pub(crate) const F32: Format = Format { fraction: 23, exponent: 8 };
pub(crate) const F64: Format = Format { fraction: 52, exponent: 11 };

impl Format {
    pub(crate) const fn bits(self) -> u32 {
        1 + self.exponent + self.fraction
    }

    const fn bias(self) -> i32 {
        (1 << (self.exponent - 1)) - 1
    }

    pub(crate) const fn infinity(self) -> u64 {
        ((1 << self.exponent) - 1) << self.fraction
    }

    /// The NaN that the hardware's arithmetic gives: every bit but the sign (PTX ISA, "Floating Point Instructions").
    pub(crate) const fn nan(self) -> u64 {
        (1 << (self.bits() - 1)) - 1
    }

    pub(crate) const fn sign(self) -> u64 {
        1 << (self.bits() - 1)
    }

    /// A zero or subnormal of the format becomes the zero of its sign.
    pub(crate) fn flush(self, bits: u64) -> u64 {
        if bits & self.infinity() == 0 { bits & self.sign() } else { bits }
    }

    /// Exact, since every format here fits into 64 bits.
    pub(crate) fn decode(self, bits: u64) -> f64 {
        match self {
            F64 => return f64::from_bits(bits),
            F32 => return f64::from(f32::from_bits(bits as u32)),
            BF16 => return f64::from(f32::from_bits((bits as u32) << 16)),
            _ => {}
        }
        let sign = if bits & self.sign() == 0 { 1.0 } else { -1.0 };
        let fraction = bits & ((1 << self.fraction) - 1);
        let exponent = ((bits >> self.fraction) & ((1 << self.exponent) - 1)) as i32;
        if exponent == (1 << self.exponent) - 1 {
            return if fraction == 0 { sign * f64::INFINITY } else { f64::NAN };
        }
        let (significand, exponent) =
            if exponent == 0 { (fraction, 1) } else { (fraction | 1 << self.fraction, exponent) };
        sign * significand as f64 * power(exponent - self.bias() - self.fraction as i32)
    }

    /// Rounds once. A `value` that stands for a more exact one must be rounded to odd ([`sum`]), and then the result is right for
    /// every format of at most 50 bits of fraction.
    pub(crate) fn encode(self, value: f64, round: Round) -> u64 {
        if value.is_nan() {
            return self.nan();
        }
        if self == F64 {
            return value.to_bits();
        }
        let bits = value.to_bits();
        let sign = if bits >> 63 == 1 { self.sign() } else { 0 };
        if value.is_infinite() {
            return sign | self.infinity();
        }
        let raw = (bits >> 52 & 0x7FF) as i32;
        let fraction = bits & ((1 << 52) - 1);
        let (significand, exponent) = if raw == 0 { (fraction, -1022) } else { (fraction | 1 << 52, raw - 1023) };
        let least = 1 - self.bias();
        let shift = 52 - self.fraction + (least - exponent).max(0) as u32;
        let (kept, rest, half) = if shift > 62 {
            // Below half of the smallest subnormal, unless it is nothing at all.
            (0, u64::from(significand != 0), 2)
        } else {
            (significand >> shift, significand & ((1 << shift) - 1), 1 << (shift - 1))
        };
        let up = match round {
            Round::Even => rest > half || (rest == half && kept & 1 == 1),
            Round::Away => rest >= half && rest != 0,
            Round::Zero => false,
            Round::Down => rest != 0 && sign != 0,
            Round::Up => rest != 0 && sign == 0,
        };
        let hidden = if exponent >= least { ((exponent - least) as u64) << self.fraction } else { 0 };
        let magnitude = hidden + kept + u64::from(up);
        if magnitude < self.infinity() {
            return sign | magnitude;
        }
        let to_infinity = match round {
            Round::Even | Round::Away => true,
            Round::Zero => false,
            Round::Down => sign != 0,
            Round::Up => sign == 0,
        };
        sign | if to_infinity { self.infinity() } else { self.infinity() - 1 }
    }
}

/// 2 to an exponent within the range of f64, subnormals included.
fn power(exponent: i32) -> f64 {
    if exponent >= -1022 {
        f64::from_bits(((exponent + 1023) as u64) << 52)
    } else {
        f64::from_bits(1 << (exponent + 1074).max(0))
    }
}

/// `a + b` rounded to odd: an inexact sum has its last bit set, so that one more rounding to fewer bits is right (Boldo and
/// Melquiond, "Emulation of FMA and correctly rounded sums", 2008; the error term is Knuth's TwoSum).
pub(crate) fn sum(a: f64, b: f64) -> f64 {
    let sum = a + b;
    if !sum.is_finite() {
        return sum;
    }
    let other = sum - a;
    let error = (a - (sum - other)) + (b - other);
    let bits = sum.to_bits();
    if error == 0.0 || bits & 1 == 1 {
        return sum;
    }
    let grows = (error > 0.0) == (sum > 0.0);
    f64::from_bits(if grows { bits | 1 } else { bits - 1 })
}

/// Rounds to an integer. The sign of zero is kept.
pub(crate) fn to_integer(value: f64, round: Round) -> f64 {
    match round {
        Round::Even => value.round_ties_even(),
        Round::Away => value.round(),
        Round::Zero => value.trunc(),
        Round::Down => value.floor(),
        Round::Up => value.ceil(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f32_rounds_as_the_processor_does() {
        let mut state = 1u64;
        for _ in 0..200_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // Exponents around the whole range of f32, and beyond it.
            let exponent = 1023 - 160 + (state >> 32) % 300;
            let value = f64::from_bits((state & (1 << 63)) | exponent << 52 | (state >> 5) & ((1 << 52) - 1));
            assert_eq!(F32.encode(value, Round::Even), u64::from((value as f32).to_bits()), "{value:e}");
        }
    }

    #[test]
    fn small_formats_round_trip() {
        for bits in 0..1u64 << 16 {
            for format in [F16, BF16] {
                let value = format.decode(bits);
                let expected = if value.is_nan() { format.nan() } else { bits };
                for round in [Round::Even, Round::Zero, Round::Down, Round::Up, Round::Away] {
                    assert_eq!(format.encode(value, round), expected);
                }
            }
        }
    }

    #[test]
    fn ties_and_directions() {
        // 1 + 2^-11 is halfway between two halves; 65520 is halfway between the largest one and infinity.
        let tie = 1.0 + 1.0 / 2048.0;
        let all = |value| {
            [Round::Even, Round::Away, Round::Zero, Round::Down, Round::Up].map(|round| F16.encode(value, round))
        };
        assert_eq!(all(tie), [0x3C00, 0x3C01, 0x3C00, 0x3C00, 0x3C01]);
        assert_eq!(all(-tie), [0xBC00, 0xBC01, 0xBC00, 0xBC01, 0xBC00]);
        assert_eq!(all(65520.0), [0x7C00, 0x7C00, 0x7BFF, 0x7BFF, 0x7C00]);
        assert_eq!(all(-65520.0), [0xFC00, 0xFC00, 0xFBFF, 0xFC00, 0xFBFF]);
        // Half of the smallest subnormal, and a little less and more.
        assert_eq!(F16.encode(power(-25), Round::Even), 0);
        assert_eq!(F16.encode(power(-25) * 1.001, Round::Even), 1);
        assert_eq!(F16.encode(power(-200), Round::Up), 1);
        assert_eq!(F16.encode(-power(-200), Round::Up), 0x8000);
    }

    #[test]
    fn sums_are_rounded_to_odd() {
        assert_eq!(sum(1.0, power(-80)).to_bits(), 1.0f64.to_bits() | 1);
        assert_eq!(sum(1.0, -power(-80)).to_bits(), 1.0f64.to_bits() - 1);
        assert_eq!(sum(-1.0, -power(-80)).to_bits(), (-1.0f64).to_bits() | 1);
        assert_eq!(sum(1.0, 2.0), 3.0);
        // 1 + 2^-24 is a tie in f32; a little more than that is not, however little.
        let more = sum(1.0 + power(-24), power(-90));
        assert_eq!(F32.encode(more, Round::Even), 0x3F80_0001);
        assert_eq!(F32.encode(1.0 + power(-24), Round::Even), 0x3F80_0000);
    }
}
