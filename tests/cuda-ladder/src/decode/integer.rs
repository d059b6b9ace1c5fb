//! Integer arithmetic.

use super::{Class, Decoded, Modifiers, Type, expect, mask, push_map, signed};
use crate::counts::Kind;
use crate::instruction::{Carry, Op};
use crate::read::body::Body;
use crate::read::operand::Operand;

#[derive(Clone, Copy, PartialEq)]
enum Part {
    Low,
    High,
    Wide,
}

const PARTS: [(&str, Part); 3] = [("lo", Part::Low), ("hi", Part::High), ("wide", Part::Wide)];

/// `add` and the like on integers.
pub(crate) fn arithmetic(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    if m.has("cc") || m.name.ends_with('c') && m.name != "bfi" {
        return carry(body, m, operands);
    }
    match m.name {
        "dp4a" | "dp2a" => return dot(body, m, operands),
        "mul" | "mad" | "mul24" | "mad24" => return multiply(body, m, operands),
        _ => {}
    }
    if let Some(bits) = m.take_by(|word| matches!(word, "u16x2" | "s16x2").then_some(word.starts_with('s'))) {
        return packed(body, m, operands, bits);
    }
    let saturates = m.take("sat");
    let ty = m.take_type(body)?;
    m.finish(body)?;
    let (bits, all) = (ty.bits, mask(ty.bits));
    let is_signed = ty.is_signed();
    match (m.name, is_signed) {
        ("add", _) if saturates => saturated(body, ty, operands, i64::wrapping_add),
        ("sub", _) if saturates => saturated(body, ty, operands, i64::wrapping_sub),
        _ if saturates => Err(body.error(format!("{}.sat is not executed", m.name))),
        ("add", _) => two(body, bits, operands, move |a, b| a.wrapping_add(b) & all),
        ("sub", _) => two(body, bits, operands, move |a, b| a.wrapping_sub(b) & all),
        ("div", true) => two(body, bits, operands, move |a, b| match signed(b, bits) {
            0 => all,
            b => signed(a, bits).wrapping_div(b) as u64 & all,
        }),
        ("div", false) => two(body, bits, operands, move |a, b| (a & all).checked_div(b & all).unwrap_or(all)),
        ("rem", true) => two(body, bits, operands, move |a, b| match signed(b, bits) {
            0 => a & all,
            b => signed(a, bits).wrapping_rem(b) as u64 & all,
        }),
        ("rem", false) => two(body, bits, operands, move |a, b| (a & all).checked_rem(b & all).unwrap_or(a & all)),
        ("min", true) => two(body, bits, operands, move |a, b| signed(a, bits).min(signed(b, bits)) as u64 & all),
        ("max", true) => two(body, bits, operands, move |a, b| signed(a, bits).max(signed(b, bits)) as u64 & all),
        ("min", false) => two(body, bits, operands, move |a, b| (a & all).min(b & all)),
        ("max", false) => two(body, bits, operands, move |a, b| (a & all).max(b & all)),
        ("abs", true) => {
            push_map(body, Kind::Integer, operands, [bits], move |[a]| signed(a, bits).wrapping_abs() as u64 & all)
        }
        ("neg", true) => push_map(body, Kind::Integer, operands, [bits], move |[a]| a.wrapping_neg() & all),
        ("sad", _) => push_map(body, Kind::Integer, operands, [bits; 3], move |[a, b, c]| {
            let far = if is_signed { signed(a, bits).abs_diff(signed(b, bits)) } else { (a & all).abs_diff(b & all) };
            c.wrapping_add(far) & all
        }),
        (name, _) => Err(body.error(format!("{name} of {ty:?} is not executed"))),
    }
}

fn two(
    body: &mut Body<'_, '_>,
    bits: u32,
    operands: &[Operand<'_>],
    scalar: impl Fn(u64, u64) -> u64 + Send + Sync + 'static,
) -> Decoded {
    push_map(body, Kind::Integer, operands, [bits; 2], move |[a, b]| scalar(a, b))
}

/// `add.sat.s32`, `sub.sat.s32`.
fn saturated(body: &mut Body<'_, '_>, ty: Type, operands: &[Operand<'_>], apply: fn(i64, i64) -> i64) -> Decoded {
    if ty != (Type { class: Class::Signed, bits: 32 }) {
        return Err(body.error("only .s32 saturates"));
    }
    two(body, 32, operands, move |a, b| {
        let exact = apply(signed(a, 32), signed(b, 32));
        exact.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as u64 & mask(32)
    })
}

/// Two 16-bit integers in a register.
fn packed(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>], is_signed: bool) -> Decoded {
    m.finish(body)?;
    let order = move |value: u64| if is_signed { signed(value, 16) } else { (value & 0xFFFF) as i64 };
    let name = m.name.to_owned();
    if !matches!(m.name, "add" | "min" | "max") {
        return Err(body.error(format!("{name} of packed integers is not executed")));
    }
    let (adds, largest) = (m.name == "add", m.name == "max");
    two(body, 32, operands, move |a, b| {
        let half = |a: u64, b: u64| {
            if adds {
                return a.wrapping_add(b) & 0xFFFF;
            }
            let (a, b) = (order(a), order(b));
            (if largest { a.max(b) } else { a.min(b) }) as u64 & 0xFFFF
        };
        half(a, b) | half(a >> 16, b >> 16) << 16
    })
}

/// The chosen part of a product.
fn product(part: Part, is_signed: bool, bits: u32) -> impl Fn(u64, u64) -> u64 + Copy + Send + Sync {
    let all = mask(bits);
    move |a, b| {
        let exact = if is_signed {
            (i128::from(signed(a, bits)) * i128::from(signed(b, bits))) as u128
        } else {
            u128::from(a & all) * u128::from(b & all)
        };
        match part {
            Part::Low => exact as u64 & all,
            Part::High => (exact >> bits) as u64 & all,
            Part::Wide => exact as u64 & mask(2 * bits),
        }
    }
}

fn multiply(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    let part = m.take_of(&PARTS).ok_or_else(|| body.error("mul without .lo, .hi or .wide"))?;
    let ty = m.take_type(body)?;
    m.finish(body)?;
    let (bits, is_signed) = (ty.bits, ty.is_signed());
    if m.name.ends_with("24") {
        return multiply24(body, part, is_signed, operands, m.name == "mad24");
    }
    let result = if part == Part::Wide { 2 * bits } else { bits };
    if result > 64 {
        return Err(body.error("products of 128 bits are not executed"));
    }
    let adds = m.name == "mad";
    // The common ones without 128-bit arithmetic.
    match (part, is_signed, adds) {
        (Part::Low, _, false) => return two(body, bits, operands, move |a, b| a.wrapping_mul(b) & mask(bits)),
        (Part::Low, _, true) => {
            return push_map(body, Kind::Integer, operands, [bits; 3], move |[a, b, c]| {
                a.wrapping_mul(b).wrapping_add(c) & mask(bits)
            });
        }
        (Part::Wide, true, false) => {
            return two(body, bits, operands, move |a, b| {
                signed(a, bits).wrapping_mul(signed(b, bits)) as u64 & mask(2 * bits)
            });
        }
        _ => {}
    }
    let exact = product(part, is_signed, bits);
    if adds {
        push_map(body, Kind::Integer, operands, [bits, bits, result], move |[a, b, c]| {
            exact(a, b).wrapping_add(c) & mask(result)
        })
    } else {
        two(body, bits, operands, exact)
    }
}

/// `mul24`: the low or high 32 of the 48 bits of a product of 24-bit numbers.
fn multiply24(body: &mut Body<'_, '_>, part: Part, is_signed: bool, operands: &[Operand<'_>], adds: bool) -> Decoded {
    let exact = move |a: u64, b: u64| {
        let whole = if is_signed { (signed(a, 24) * signed(b, 24)) as u64 } else { (a & mask(24)) * (b & mask(24)) };
        (if part == Part::High { whole >> 16 } else { whole }) & mask(32)
    };
    if part == Part::Wide {
        return Err(body.error("mul24.wide does not exist"));
    }
    if adds {
        push_map(body, Kind::Integer, operands, [32; 3], move |[a, b, c]| exact(a, b).wrapping_add(c) & mask(32))
    } else {
        two(body, 32, operands, exact)
    }
}

/// `dp4a` and `dp2a`: products of bytes, or of halves and bytes, added up.
fn dot(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    let two_way = m.name == "dp2a";
    let high =
        two_way && m.take_of(&[("lo", false), ("hi", true)]).ok_or_else(|| body.error("dp2a without .lo or .hi"))?;
    let (a_signed, b_signed) = (m.take_type(body)?.is_signed(), m.take_type(body)?.is_signed());
    m.finish(body)?;
    let pick = |value: u64, at: u32, bits: u32, is_signed: bool| {
        let part = value >> (at * bits) & mask(bits);
        if is_signed { signed(part, bits) } else { part as i64 }
    };
    push_map(body, Kind::Integer, operands, [32; 3], move |[a, b, c]| {
        let products = |index: u32| {
            let (x, y) = if two_way {
                (pick(a, index, 16, a_signed), pick(b, index + if high { 2 } else { 0 }, 8, b_signed))
            } else {
                (pick(a, index, 8, a_signed), pick(b, index, 8, b_signed))
            };
            x * y
        };
        let sum: i64 = (0..if two_way { 2 } else { 4 }).map(products).sum();
        c.wrapping_add(sum as u64) & mask(32)
    })
}

/// Arithmetic that reads or writes the carry bit. A borrow is a carry that is set.
fn carry(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    let writes = m.take("cc");
    let reads = m.name.ends_with('c');
    let name = m.name.trim_end_matches('c').to_owned();
    let part = m.take_of(&PARTS).unwrap_or(Part::Low);
    let ty = m.take_type(body)?;
    m.finish(body)?;
    let (bits, all) = (ty.bits, mask(ty.bits));
    let multiplies = name == "mad";
    expect(body, operands, if multiplies { 4 } else { 3 })?;
    let mut sources = [0; 3];
    for (source, operand) in sources.iter_mut().zip(&operands[1..]) {
        *source = body.source(operand, bits)?;
    }
    let (target, _) = body.target(&operands[0])?;
    let exact = product(part, ty.is_signed(), bits);
    let apply: Box<dyn Fn([u64; 3], bool) -> (u64, bool) + Send + Sync> = match &name[..] {
        "add" | "mad" => Box::new(move |[a, b, c], carry| {
            let (a, b) = if multiplies { (exact(a, b), c & all) } else { (a & all, b & all) };
            let sum = u128::from(a) + u128::from(b) + u128::from(carry);
            (sum as u64 & all, sum >> bits != 0)
        }),
        "sub" => Box::new(move |[a, b, _], borrow| {
            let (a, b) = (u128::from(a & all), u128::from(b & all) + u128::from(borrow));
            (a.wrapping_sub(b) as u64 & all, a < b)
        }),
        _ => return Err(body.error(format!("unknown opcode {}", m.name))),
    };
    body.push(Op::Carry(Box::new(Carry { apply, target, sources, reads, writes })), Kind::Integer);
    Ok(())
}
