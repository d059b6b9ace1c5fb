//! Logic, shifts and bit fields.

use super::{Decoded, Modifiers, Type, expect, mask, push_map, signed};
use crate::counts::Kind;
use crate::instruction::{Join, Op};
use crate::read::body::Body;
use crate::read::operand::Operand;

/// `and` and the like.
pub(crate) fn logic(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    match m.name {
        "shf" => return funnel(body, m, operands),
        "lop3" => return lookup(body, m, operands),
        "prmt" => return permute(body, m, operands),
        "szext" => return extend(body, m, operands),
        _ => {}
    }
    let shift_amount = m.name == "bfind" && m.take("shiftamt");
    let ty = m.take_type(body)?;
    m.finish(body)?;
    if ty.bits == 1 {
        return predicates(body, m.name, operands);
    }
    let (bits, all) = (ty.bits, mask(ty.bits));
    match m.name {
        "and" => two(body, bits, operands, |a, b| a & b),
        "or" => two(body, bits, operands, |a, b| a | b),
        "xor" => two(body, bits, operands, |a, b| a ^ b),
        "not" => one(body, bits, operands, move |a| !a & all),
        "cnot" => one(body, bits, operands, move |a| u64::from(a & all == 0)),
        "shl" => shift(body, bits, operands, move |a, by| if by >= bits { 0 } else { a << by & all }),
        "shr" if ty.is_signed() => {
            shift(body, bits, operands, move |a, by| (signed(a, bits) >> by.min(bits - 1)) as u64 & all)
        }
        "shr" => shift(body, bits, operands, move |a, by| if by >= bits { 0 } else { (a & all) >> by }),
        "popc" => one(body, bits, operands, move |a| u64::from((a & all).count_ones())),
        "clz" => one(body, bits, operands, move |a| u64::from((a & all).leading_zeros() - (64 - bits))),
        "brev" => one(body, bits, operands, move |a| a.reverse_bits() >> (64 - bits)),
        "bfind" => one(body, bits, operands, find(ty, shift_amount)),
        "bfe" => extract(body, ty, operands),
        "bfi" => push_map(body, Kind::Integer, operands, [bits, bits, 32, 32], move |[a, b, at, length]| {
            let (at, length) = ((at & 0xFF) as u32, (length & 0xFF) as u32);
            let field = if at >= bits { 0 } else { mask(length.min(bits)) << at & all };
            b & !field | (if at >= bits { 0 } else { a << at }) & field
        }),
        name => Err(body.error(format!("unknown opcode {name}"))),
    }
}

fn one(
    body: &mut Body<'_, '_>,
    bits: u32,
    operands: &[Operand<'_>],
    scalar: impl Fn(u64) -> u64 + Send + Sync + 'static,
) -> Decoded {
    push_map(body, Kind::Integer, operands, [bits], move |[a]| scalar(a))
}

fn two(
    body: &mut Body<'_, '_>,
    bits: u32,
    operands: &[Operand<'_>],
    scalar: impl Fn(u64, u64) -> u64 + Send + Sync + 'static,
) -> Decoded {
    push_map(body, Kind::Integer, operands, [bits; 2], move |[a, b]| scalar(a, b))
}

/// The amount has 32 bits whatever is shifted.
fn shift(
    body: &mut Body<'_, '_>,
    bits: u32,
    operands: &[Operand<'_>],
    scalar: impl Fn(u64, u32) -> u64 + Send + Sync + 'static,
) -> Decoded {
    push_map(body, Kind::Integer, operands, [bits, 32], move |[a, by]| scalar(a, by as u32))
}

/// `and.pred` and the like.
fn predicates(body: &mut Body<'_, '_>, name: &str, operands: &[Operand<'_>]) -> Decoded {
    let join = match name {
        "and" => Join::And,
        "or" => Join::Or,
        "xor" => Join::Xor,
        "not" => Join::First,
        _ => return Err(body.error(format!("{name} of predicates is not executed"))),
    };
    expect(body, operands, if join == Join::First { 2 } else { 3 })?;
    let mut first = body.condition(&operands[1])?;
    if join == Join::First {
        first.negated = !first.negated;
    }
    let second = if join == Join::First { first } else { body.condition(&operands[2])? };
    let target = body.predicate_target(&operands[0])?;
    body.push(Op::Predicate { join, target, sources: [first, second] }, Kind::Compare);
    Ok(())
}

/// `shf`: 32 bits out of the 64 of `b:a`.
fn funnel(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    let left = m.take_of(&[("l", true), ("r", false)]).ok_or_else(|| body.error("shf without .l or .r"))?;
    let clamps = m.take_of(&[("clamp", true), ("wrap", false)]).ok_or_else(|| body.error("shf without a mode"))?;
    let ty = m.take_type(body)?;
    m.finish(body)?;
    if ty.bits != 32 {
        return Err(body.error("shf needs .b32"));
    }
    push_map(body, Kind::Integer, operands, [32; 3], move |[a, b, by]| {
        let both = b << 32 | a & mask(32);
        let by = if clamps { by.min(32) } else { by & 31 };
        if left { (u128::from(both) << by >> 32) as u64 & mask(32) } else { both >> by & mask(32) }
    })
}

/// `lop3`: any function of three bits by its table.
fn lookup(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    let ty = m.take_type(body)?;
    m.finish(body)?;
    expect(body, operands, 5)?;
    let Operand::Integer(table) = operands[4] else {
        return Err(body.error("the table of lop3 is not a constant"));
    };
    if ty.bits != 32 || table > 255 {
        return Err(body.error("lop3 needs .b32 and a table of 8 bits"));
    }
    push_map(body, Kind::Integer, &operands[..4], [32; 3], move |[a, b, c]| {
        let mut result = 0;
        for entry in 0..8u64 {
            if table >> entry & 1 == 1 {
                let pick = |value: u64, bit: u64| if entry >> bit & 1 == 1 { value } else { !value };
                result |= pick(a, 2) & pick(b, 1) & pick(c, 0);
            }
        }
        result & mask(32)
    })
}

/// `prmt`: four bytes of the eight of `b:a`, or one of the special patterns.
fn permute(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    let modes = [("f4e", 0), ("b4e", 1), ("rc8", 2), ("ecl", 3), ("ecr", 4), ("rc16", 5)];
    let ty = m.take_type(body)?;
    let mode = m.take_of(&modes);
    m.finish(body)?;
    if ty.bits != 32 {
        return Err(body.error("prmt needs .b32"));
    }
    push_map(body, Kind::Move, operands, [32; 3], move |[a, b, control]| {
        let both = b << 32 | a & mask(32);
        let byte = |index: u64| both >> (8 * (index & 7)) & 0xFF;
        let four = |select: &dyn Fn(u64) -> u64| (0..4).map(|at| select(at) << (8 * at)).sum::<u64>();
        let at = control & 3;
        match mode {
            Some(0) => four(&|index| byte(at + index)),
            Some(1) => four(&|index| byte((at + 8 - index) & 7)),
            Some(2) => four(&|_| byte(at)),
            Some(3) => four(&|index| byte(index.max(at))),
            Some(4) => four(&|index| byte(index.min(at))),
            Some(_) => four(&|index| byte((at & 1) * 2 + (index & 1))),
            None => four(&|index| {
                let select = control >> (4 * index);
                let value = byte(select);
                // The fourth bit spreads the byte's sign.
                if select & 8 == 0 { value } else { (value >> 7) * 0xFF }
            }),
        }
    })
}

/// `bfind`: place of the highest bit that differs from the sign, all ones when there is none.
fn find(ty: Type, shift_amount: bool) -> impl Fn(u64) -> u64 + Send + Sync {
    let (bits, all) = (ty.bits, mask(ty.bits));
    move |a| {
        let value = if ty.is_signed() && signed(a, bits) < 0 { !a & all } else { a & all };
        match value.checked_ilog2() {
            None => mask(32),
            Some(at) if shift_amount => u64::from(bits - 1 - at),
            Some(at) => u64::from(at),
        }
    }
}

/// `bfe`: a field, its sign spread; beyond the top the sign goes on.
fn extract(body: &mut Body<'_, '_>, ty: Type, operands: &[Operand<'_>]) -> Decoded {
    let (bits, all) = (ty.bits, mask(ty.bits));
    push_map(body, Kind::Integer, operands, [bits, 32, 32], move |[a, at, length]| {
        let (at, length) = ((at & 0xFF) as u32, (length & 0xFF) as u32);
        let a = a & all;
        let field = if at >= bits { 0 } else { a >> at & mask(length.min(bits - at)) };
        if !ty.is_signed() || length == 0 {
            return field;
        }
        let is_negative = a >> (at.saturating_add(length) - 1).min(bits - 1) & 1 == 1;
        let kept = if at >= bits { 0 } else { length.min(bits - at) };
        if is_negative { field | all & !mask(kept) } else { field }
    })
}

/// `szext`: the low bits, sign- or zero-extended.
fn extend(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    let clamps = m.take_of(&[("clamp", true), ("wrap", false)]).ok_or_else(|| body.error("szext without a mode"))?;
    let ty = m.take_type(body)?;
    m.finish(body)?;
    push_map(body, Kind::Integer, operands, [32, 32], move |[a, length]| {
        let length = if clamps { length.min(32) } else { length & 31 } as u32;
        match length {
            0 => 0,
            _ if ty.is_signed() => signed(a, length) as u64 & mask(32),
            _ => a & mask(length),
        }
    })
}
