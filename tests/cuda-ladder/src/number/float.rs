//! Arithmetic of one PTX floating-point type with its modifiers.

use super::{BF16, F16, F32, F64, Format, Round, sum};

/// A floating-point type as an instruction names it: format, packing and modifiers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Float {
    pub(crate) format: Format,
    /// Two values in one register.
    pub(crate) packed: bool,
    pub(crate) round: Round,
    /// Subnormal inputs and results are zero.
    pub(crate) flush: bool,
    /// Results are clamped to [0, 1], NaN becomes 0.
    pub(crate) saturate: bool,
    /// Negative results become 0, NaN stays.
    pub(crate) relu: bool,
}

impl Float {
    pub(crate) fn plain(format: Format) -> Float {
        Float { format, packed: false, round: Round::Even, flush: false, saturate: false, relu: false }
    }

    /// By the name of the type; `None` when it is no float.
    pub(crate) fn named(name: &str) -> Option<Float> {
        let (format, packed) = match name {
            "f16" => (F16, false),
            "f16x2" => (F16, true),
            "bf16" => (BF16, false),
            "bf16x2" => (BF16, true),
            "f32" => (F32, false),
            "f32x2" => (F32, true),
            "f64" => (F64, false),
            _ => return None,
        };
        Some(Float { packed, ..Float::plain(format) })
    }

    /// Nothing but one f32 rounded to nearest: what the processor does itself.
    pub(crate) fn is_native(self) -> bool {
        self.format == F32 && !self.packed && self.round == Round::Even && !self.flush && !self.saturate && !self.relu
    }

    pub(crate) fn bits(self) -> u32 {
        if self.packed { 2 * self.format.bits() } else { self.format.bits() }
    }

    /// An input, exactly.
    pub(crate) fn input(self, bits: u64) -> f64 {
        self.format.decode(if self.flush { self.format.flush(bits) } else { bits })
    }

    /// A result, rounded once; `value` is exact or rounded to odd.
    pub(crate) fn output(self, value: f64) -> u64 {
        let format = self.format;
        let mut bits = format.encode(value, self.round);
        if self.flush {
            bits = format.flush(bits);
        }
        if self.saturate {
            let clamped = if value.is_nan() { 0.0 } else { format.decode(bits).clamp(0.0, 1.0) };
            bits = format.encode(clamped + 0.0, Round::Even);
        }
        if self.relu && bits & format.sign() != 0 {
            bits = 0;
        }
        bits
    }

    /// `apply` on each value of packed registers.
    pub(crate) fn lanes<const N: usize>(self, inputs: [u64; N], apply: impl Fn([u64; N]) -> u64) -> u64 {
        let bits = self.format.bits();
        if !self.packed {
            return apply(inputs);
        }
        let mask = (1u64 << bits) - 1;
        apply(inputs.map(|value| value & mask)) | apply(inputs.map(|value| value >> bits & mask)) << bits
    }

    pub(crate) fn add(self, a: f64, b: f64) -> f64 {
        if self.format == F64 {
            return a + b;
        }
        let result = sum(a, b);
        // A sum of opposite values is -0 when rounded down, else +0 (IEEE 754, 6.3).
        let cancels = result == 0.0 && (a != 0.0 || a.is_sign_negative() != b.is_sign_negative());
        if cancels && self.round == Round::Down { -0.0 } else { result }
    }

    /// Exact for every format but f64, which rounds here to nearest.
    pub(crate) fn multiply(self, a: f64, b: f64) -> f64 {
        a * b
    }

    pub(crate) fn fused(self, a: f64, b: f64, c: f64) -> f64 {
        if self.format == F64 { a.mul_add(b, c) } else { self.add(a * b, c) }
    }

    /// The quotient rounded to odd, so that [`Float::output`] rounds it rightly.
    pub(crate) fn divide(self, a: f64, b: f64) -> f64 {
        let quotient = a / b;
        if self.format == F64 || !quotient.is_finite() || quotient == 0.0 {
            return quotient;
        }
        odd(quotient, (-quotient).mul_add(b, a), b.is_sign_negative())
    }

    pub(crate) fn square_root(self, a: f64) -> f64 {
        let root = a.sqrt();
        if self.format == F64 || !root.is_finite() || root == 0.0 {
            return root;
        }
        odd(root, (-root).mul_add(root, a), false)
    }

    /// `min` and `max`: a NaN gives way to a number unless `nan`; -0 is less than +0.
    pub(crate) fn select(self, a: u64, b: u64, largest: bool, nan: bool) -> u64 {
        let format = self.format;
        let [a, b] = [a, b].map(|bits| if self.flush { format.flush(bits) } else { bits });
        let [x, y] = [a, b].map(|bits| format.decode(bits));
        let chosen = match (x.is_nan(), y.is_nan()) {
            (true, true) => format.nan(),
            (true, false) | (false, true) if nan => format.nan(),
            (true, false) => b,
            (false, true) => a,
            _ if x == y => {
                let is_first_negative = a & format.sign() != 0;
                if is_first_negative == largest { b } else { a }
            }
            _ => {
                if (x > y) == largest {
                    a
                } else {
                    b
                }
            }
        };
        if self.relu && chosen & format.sign() != 0 { 0 } else { chosen }
    }
}

/// Rounds a nearest result to odd by the sign of what it lacks; `flipped` turns that sign around.
fn odd(result: f64, rest: f64, flipped: bool) -> f64 {
    let bits = result.to_bits();
    if rest == 0.0 || bits & 1 == 1 {
        return result;
    }
    let is_more = (rest > 0.0) != flipped;
    let grows = is_more == (result > 0.0);
    f64::from_bits(if grows { bits | 1 } else { bits - 1 })
}

/// The bits of an f32 result, as the hardware writes NaN.
pub(crate) fn f32_bits(value: f32) -> u64 {
    if value.is_nan() { F32.nan() } else { u64::from(value.to_bits()) }
}

/// An f32 register.
pub(crate) fn f32_of(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}
