//! Floating-point arithmetic that is rounded exactly.

use super::{Decoded, Modifiers, expect, push_map};
use crate::counts::Kind;
use crate::instruction::Op;
use crate::module::ParseError;
use crate::number::float::{Float, f32_bits, f32_of};
use crate::number::{F32, F64, Round};
use crate::read::body::Body;
use crate::read::operand::Operand;

const ROUNDS: [(&str, Round); 5] =
    [("rn", Round::Even), ("rz", Round::Zero), ("rm", Round::Down), ("rp", Round::Up), ("rna", Round::Away)];

/// The kind under which a format is counted.
pub(crate) fn kind(float: Float) -> Kind {
    match float.format {
        F32 => Kind::Float32,
        F64 => Kind::Float64,
        _ => Kind::Float16,
    }
}

/// Takes the modifiers that arithmetic has. f64 is rounded to nearest only.
pub(crate) fn take_modifiers(
    body: &Body<'_, '_>,
    m: &mut Modifiers<'_>,
    mut float: Float,
) -> Result<Float, ParseError> {
    float.round = m.take_of(&ROUNDS).unwrap_or(Round::Even);
    float.flush = m.take("ftz");
    float.saturate = m.take("sat");
    float.relu = m.take("relu");
    if float.format == F64 && float.round != Round::Even {
        return Err(body.error("f64 is rounded to nearest only"));
    }
    Ok(float)
}

/// `add` and the like on floats.
pub(crate) fn arithmetic(
    body: &mut Body<'_, '_>,
    m: &mut Modifiers<'_>,
    float: Float,
    operands: &[Operand<'_>],
) -> Decoded {
    match m.name {
        "min" | "max" => return extreme(body, m, float, operands),
        "abs" | "neg" => return unary(body, m, float, operands),
        "div" if m.has("approx") || m.has("full") => return super::special::divide(body, m, float, operands),
        _ => {}
    }
    let float = take_modifiers(body, m, float)?;
    // `fma.rn.oob` and mixed precision are not executed; `noftz` is what happens anyway.
    m.take("noftz");
    m.finish(body)?;
    if float.is_native() {
        return native(body, m.name, operands);
    }
    let bits = float.bits();
    match m.name {
        "add" => two(body, float, operands, move |a, b| float.add(a, b)),
        "sub" => two(body, float, operands, move |a, b| float.add(a, -b)),
        "mul" => two(body, float, operands, move |a, b| float.multiply(a, b)),
        "div" => two(body, float, operands, move |a, b| float.divide(a, b)),
        "fma" | "mad" => push_map(body, kind(float), operands, [bits; 3], move |sources| {
            float.lanes(sources, |lane| {
                let [a, b, c] = lane.map(|bits| float.input(bits));
                float.output(float.fused(a, b, c))
            })
        }),
        name => Err(body.error(format!("{name} of floats is not executed"))),
    }
}

fn native(body: &mut Body<'_, '_>, name: &str, operands: &[Operand<'_>]) -> Decoded {
    let pair = |scalar: fn(f32, f32) -> f32| move |[a, b]: [u64; 2]| f32_bits(scalar(f32_of(a), f32_of(b)));
    match name {
        "add" => push_map(body, Kind::Float32, operands, [32; 2], |[a, b]| f32_bits(f32_of(a) + f32_of(b))),
        "sub" => push_map(body, Kind::Float32, operands, [32; 2], |[a, b]| f32_bits(f32_of(a) - f32_of(b))),
        "mul" => push_map(body, Kind::Float32, operands, [32; 2], |[a, b]| f32_bits(f32_of(a) * f32_of(b))),
        "div" => push_map(body, Kind::Float32, operands, [32; 2], pair(|a, b| a / b)),
        "fma" | "mad" => push_map(body, Kind::Float32, operands, [32; 3], |[a, b, c]| {
            f32_bits(f32_of(a).mul_add(f32_of(b), f32_of(c)))
        }),
        name => Err(body.error(format!("{name} of floats is not executed"))),
    }
}

fn two(
    body: &mut Body<'_, '_>,
    float: Float,
    operands: &[Operand<'_>],
    exact: impl Fn(f64, f64) -> f64 + Send + Sync + 'static,
) -> Decoded {
    push_map(body, kind(float), operands, [float.bits(); 2], move |sources| {
        float.lanes(sources, |lane| {
            let [a, b] = lane.map(|bits| float.input(bits));
            float.output(exact(a, b))
        })
    })
}

/// `min` and `max` of two, or of three (compute capability 10.0).
fn extreme(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, mut float: Float, operands: &[Operand<'_>]) -> Decoded {
    let (largest, nan) = (m.name == "max", m.take("NaN"));
    float.flush = m.take("ftz");
    m.finish(body)?;
    let bits = float.bits();
    if operands.len() == 4 {
        return push_map(body, kind(float), operands, [bits; 3], move |sources| {
            float.lanes(sources, |[a, b, c]| float.select(float.select(a, b, largest, nan), c, largest, nan))
        });
    }
    push_map(body, kind(float), operands, [bits; 2], move |sources| {
        float.lanes(sources, |[a, b]| float.select(a, b, largest, nan))
    })
}

/// `abs` and `neg` change the sign bit only, also of a NaN.
fn unary(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, mut float: Float, operands: &[Operand<'_>]) -> Decoded {
    float.flush = m.take("ftz");
    m.finish(body)?;
    let clears = m.name == "abs";
    let sign = float.format.sign();
    push_map(body, kind(float), operands, [float.bits()], move |sources| {
        float.lanes(sources, |[a]| {
            let a = if float.flush { float.format.flush(a) } else { a };
            if clears { a & !sign } else { a ^ sign }
        })
    })
}

/// `copysign` and `testp`.
pub(crate) fn sign(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    let tests = [("finite", 0), ("infinite", 1), ("number", 2), ("notanumber", 3), ("normal", 4), ("subnormal", 5)];
    let test = m.take_of(&tests);
    let float = m.take_by(Float::named).ok_or_else(|| body.error(format!("{} without a type", m.name)))?;
    m.finish(body)?;
    let format = float.format;
    let Some(test) = test else {
        // The first operand gives its sign to the second.
        return push_map(body, kind(float), operands, [format.bits(); 2], move |[a, b]| {
            a & format.sign() | b & !format.sign()
        });
    };
    expect(body, operands, 2)?;
    let source = body.source(&operands[1], format.bits())?;
    let target = body.predicate_target(&operands[0])?;
    let holds = move |bits: u64| {
        let magnitude = bits & !format.sign() & super::mask(format.bits());
        let hidden = 1 << format.fraction;
        match test {
            0 => magnitude < format.infinity(),
            1 => magnitude == format.infinity(),
            2 => magnitude <= format.infinity(),
            3 => magnitude > format.infinity(),
            4 => (hidden..format.infinity()).contains(&magnitude),
            _ => magnitude > 0 && magnitude < hidden,
        }
    };
    let op = Op::Compare {
        test: super::compare::lanes_where(move |a, _| holds(a)),
        sources: [source; 2],
        join: crate::instruction::Join::First,
        with: crate::instruction::Condition::ALWAYS,
        target: Some(target),
        inverse: None,
    };
    body.push(op, Kind::Compare);
    Ok(())
}
