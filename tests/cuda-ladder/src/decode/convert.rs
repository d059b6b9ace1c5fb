//! `cvt`.

use super::{Class, Decoded, Modifiers, Type, mask, push_map, signed};
use crate::counts::Kind;
use crate::module::ParseError;
use crate::number::float::Float;
use crate::number::{F64, Format, Round, TF32, to_integer};
use crate::read::body::Body;
use crate::read::operand::Operand;

/// One side of a conversion.
#[derive(Clone, Copy)]
enum Side {
    Integer(Type),
    Float(Format),
    /// Two floats in a register.
    Packed(Format),
}

impl Side {
    fn named(word: &str) -> Option<Side> {
        if word == "tf32" {
            return Some(Side::Float(TF32));
        }
        match Float::named(word) {
            Some(Float { format, packed: true, .. }) => Some(Side::Packed(format)),
            Some(Float { format, .. }) => Some(Side::Float(format)),
            None => Type::named(word)
                .filter(|ty| matches!(ty.class, Class::Unsigned | Class::Signed) && ty.bits <= 64)
                .map(Side::Integer),
        }
    }
}

/// How a conversion rounds and clamps.
#[derive(Clone, Copy)]
struct Manner {
    round: Round,
    /// `.rni` and its kin: to an integer value.
    integer: bool,
    flush: bool,
    saturate: bool,
    relu: bool,
    finite: bool,
}

const ROUNDS: [(&str, (Round, bool)); 9] = [
    ("rni", (Round::Even, true)),
    ("rzi", (Round::Zero, true)),
    ("rmi", (Round::Down, true)),
    ("rpi", (Round::Up, true)),
    ("rn", (Round::Even, false)),
    ("rna", (Round::Away, false)),
    ("rz", (Round::Zero, false)),
    ("rm", (Round::Down, false)),
    ("rp", (Round::Up, false)),
];

/// Decodes a conversion.
pub(crate) fn convert(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    let (round, integer) = m.take_of(&ROUNDS).unwrap_or((Round::Even, false));
    let (flush, saturate) = (m.take("ftz"), m.take("sat"));
    let manner = Manner { round, integer, flush, saturate, relu: m.take("relu"), finite: m.take("satfinite") };
    let missing = |body: &Body<'_, '_>| body.error("cvt needs two types");
    let to = m.take_by(Side::named).ok_or_else(|| missing(body))?;
    let from = m.take_by(Side::named).ok_or_else(|| missing(body))?;
    m.finish(body)?;
    let width = operands.first().map(|target| body.target(target)).transpose()?.map_or(0, |(_, bits)| bits);
    match (to, from) {
        (Side::Integer(to), Side::Integer(from)) => one(body, operands, from.bits, move |bits| {
            let value = whole(from, bits);
            let kept = if manner.saturate { clamp(to, value) } else { value };
            fit(to, kept as u64, width)
        }),
        (Side::Integer(to), Side::Float(from)) => {
            one(body, operands, from.bits(), move |bits| fit(to, float_to_integer(manner, from, to, bits), width))
        }
        (Side::Float(to), Side::Integer(from)) => {
            one(body, operands, from.bits, move |bits| integer_to_float(manner, to, whole(from, bits)))
        }
        (Side::Float(to), Side::Float(from)) => {
            one(body, operands, from.bits(), move |bits| float_to_float(manner, to, from, bits))
        }
        (Side::Packed(to), Side::Float(from)) => {
            // The first source becomes the upper half.
            push_map(body, Kind::Convert, operands, [from.bits(); 2], move |[high, low]| {
                let half = |bits| float_to_float(manner, to, from, bits);
                half(high) << to.bits() | half(low)
            })
        }
        _ => Err(body.error("this conversion of packed values is not executed")),
    }
}

fn one(
    body: &mut Body<'_, '_>,
    operands: &[Operand<'_>],
    bits: u32,
    scalar: impl Fn(u64) -> u64 + Send + Sync + 'static,
) -> Result<(), ParseError> {
    push_map(body, Kind::Convert, operands, [bits], move |[a]| scalar(a))
}

fn whole(ty: Type, bits: u64) -> i128 {
    if ty.is_signed() { i128::from(signed(bits, ty.bits)) } else { i128::from(bits & mask(ty.bits)) }
}

fn clamp(ty: Type, value: i128) -> i128 {
    if ty.is_signed() {
        value.clamp(-(1 << (ty.bits - 1)), (1 << (ty.bits - 1)) - 1)
    } else {
        value.clamp(0, (1 << ty.bits) - 1)
    }
}

/// Cuts to the type and extends to the register.
fn fit(ty: Type, value: u64, width: u32) -> u64 {
    let kept = value & mask(ty.bits);
    if ty.is_signed() { signed(kept, ty.bits) as u64 & mask(width) } else { kept }
}

/// Out of range is clamped; NaN is 0, or the top bit where either side has 64 bits (PTX ISA, `cvt`, "Floating-point to integer").
fn float_to_integer(manner: Manner, from: Format, to: Type, bits: u64) -> u64 {
    let value = from.decode(if manner.flush { from.flush(bits) } else { bits });
    if value.is_nan() {
        return if from == F64 || to.bits == 64 { 1 << (to.bits - 1) } else { 0 };
    }
    // `as` clamps, and 2^127 is beyond every type here.
    clamp(to, to_integer(value, manner.round) as i128) as u64
}

/// Exact up to 53 bits; beyond them rounded to odd first, which the final rounding does not see.
fn integer_to_float(manner: Manner, to: Format, value: i128) -> u64 {
    let magnitude = value.unsigned_abs();
    let extra = (128 - magnitude.leading_zeros()).saturating_sub(53);
    let float = if extra == 0 {
        value as f64
    } else {
        if to == F64 && manner.round == Round::Even {
            return (value as f64).to_bits();
        }
        let kept = (magnitude >> extra | u128::from(magnitude & ((1 << extra) - 1) != 0)) as f64;
        let scaled = kept * 2f64.powi(extra as i32);
        if value < 0 { -scaled } else { scaled }
    };
    finish(manner, to, to.encode(float, manner.round))
}

fn float_to_float(manner: Manner, to: Format, from: Format, bits: u64) -> u64 {
    let bits = if manner.flush { from.flush(bits) } else { bits };
    let value = from.decode(bits);
    if value.is_nan() {
        return finish(manner, to, to.nan());
    }
    let rounded = if manner.integer { to_integer(value, manner.round) } else { value };
    // A tf32 lies in an f32's register, its fraction at the top.
    let result = to.encode(rounded, manner.round);
    let result = if to == TF32 { result << 13 } else { result };
    finish(manner, to, result)
}

fn finish(manner: Manner, to: Format, bits: u64) -> u64 {
    let mut bits = if manner.flush && to == crate::number::F32 { to.flush(bits) } else { bits };
    let value = to.decode(bits);
    if manner.finite && value.is_infinite() {
        bits -= 1;
    }
    if manner.saturate {
        bits = to.encode(if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) + 0.0 }, Round::Even);
    }
    if manner.relu && !value.is_nan() && bits & to.sign() != 0 {
        bits = 0;
    }
    bits
}
