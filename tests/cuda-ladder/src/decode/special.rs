//! Functions of the special function units, and reciprocal and square root rounded exactly.

use super::{Decoded, Modifiers, push_map};
use crate::counts::Kind;
use crate::number::F64;
use crate::number::float::Float;
use crate::read::body::Body;
use crate::read::operand::Operand;

/// `rcp`, `sqrt`, `rsqrt`, `sin`, `cos`, `lg2`, `ex2`, `tanh`.
pub(crate) fn function(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    let float = m.take_by(Float::named).ok_or_else(|| body.error(format!("{} without a type", m.name)))?;
    let approximates = m.take("approx");
    let float = super::float::take_modifiers(body, m, float)?;
    m.finish(body)?;
    if approximates {
        let exact: fn(f64) -> f64 = match m.name {
            "rcp" => |x| 1.0 / x,
            "sqrt" => f64::sqrt,
            "rsqrt" => |x| 1.0 / x.sqrt(),
            "sin" => f64::sin,
            "cos" => f64::cos,
            "lg2" => f64::log2,
            "ex2" => f64::exp2,
            _ => f64::tanh,
        };
        if float.format == F64 {
            return Err(body.error("coarse f64 functions are not executed"));
        }
        return approximate(body, float, operands, [float.bits()], move |[x]| exact(x));
    }
    match m.name {
        "rcp" => rounded(body, float, operands, move |x| float.divide(1.0, x)),
        "sqrt" => rounded(body, float, operands, move |x| float.square_root(x)),
        name => Err(body.error(format!("{name} needs .approx"))),
    }
}

fn rounded(
    body: &mut Body<'_, '_>,
    float: Float,
    operands: &[Operand<'_>],
    exact: impl Fn(f64) -> f64 + Send + Sync + 'static,
) -> Decoded {
    push_map(body, super::float::kind(float), operands, [float.bits()], move |sources| {
        float.lanes(sources, |[a]| float.output(exact(float.input(a))))
    })
}

/// `div.approx` and `div.full`.
pub(crate) fn divide(
    body: &mut Body<'_, '_>,
    m: &mut Modifiers<'_>,
    float: Float,
    operands: &[Operand<'_>],
) -> Decoded {
    let full = m.take("full");
    m.take("approx");
    let float = super::float::take_modifiers(body, m, float)?;
    m.finish(body)?;
    approximate(body, float, operands, [float.bits(); 2], move |[a, b]| {
        // The reciprocal of a divisor between 2^126 and 2^128 is flushed to zero (PTX ISA, `div`).
        let vanishes = !full && b.abs() > 2f64.powi(126) && b.is_finite();
        if vanishes { a * 0f64.copysign(b) } else { a / b }
    })
}

/// An approximate function is computed exactly here; a launch can perturb it.
fn approximate<const N: usize>(
    body: &mut Body<'_, '_>,
    float: Float,
    operands: &[Operand<'_>],
    bits: [u32; N],
    exact: impl Fn([f64; N]) -> f64 + Send + Sync + 'static,
) -> Decoded
where
    [u32; N]: super::Wrap<N>,
{
    push_map(body, Kind::Special, operands, bits, move |sources| {
        float.lanes(sources, |lane| float.output(exact(lane.map(|bits| float.input(bits)))))
    })?;
    body.last().approximate = Some((float.format, float.packed));
    Ok(())
}
