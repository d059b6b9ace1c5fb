//! Comparisons and selections.

use super::{Class, Decoded, Modifiers, Type, expect, mask, push_map, signed};
use crate::counts::Kind;
use crate::instruction::{Condition, Join, Op, Test};
use crate::number::float::Float;
use crate::read::body::Body;
use crate::read::operand::Operand;
use std::cmp::Ordering;

/// What of less, equal, greater and unordered makes a comparison true.
#[derive(Clone, Copy)]
struct Relation {
    less: bool,
    equal: bool,
    greater: bool,
    unordered: bool,
    /// `lo` and its kin compare without signs.
    unsigned: bool,
}

const fn relation(holds: [bool; 4], unsigned: bool) -> Relation {
    let [less, equal, greater, unordered] = holds;
    Relation { less, equal, greater, unordered, unsigned }
}

const RELATIONS: [(&str, Relation); 18] = [
    ("eq", relation([false, true, false, false], false)),
    ("ne", relation([true, false, true, false], false)),
    ("lt", relation([true, false, false, false], false)),
    ("le", relation([true, true, false, false], false)),
    ("gt", relation([false, false, true, false], false)),
    ("ge", relation([false, true, true, false], false)),
    ("lo", relation([true, false, false, false], true)),
    ("ls", relation([true, true, false, false], true)),
    ("hi", relation([false, false, true, false], true)),
    ("hs", relation([false, true, true, false], true)),
    ("equ", relation([false, true, false, true], false)),
    ("neu", relation([true, false, true, true], false)),
    ("ltu", relation([true, false, false, true], false)),
    ("leu", relation([true, true, false, true], false)),
    ("gtu", relation([false, false, true, true], false)),
    ("geu", relation([false, true, true, true], false)),
    ("num", relation([true, true, true, false], false)),
    ("nan", relation([false, false, false, true], false)),
];

impl Relation {
    fn holds(self, order: Option<Ordering>) -> bool {
        match order {
            Some(Ordering::Less) => self.less,
            Some(Ordering::Equal) => self.equal,
            Some(Ordering::Greater) => self.greater,
            None => self.unordered,
        }
    }
}

/// A test of all lanes from a test of one.
pub(crate) fn lanes_where(scalar: impl Fn(u64, u64) -> bool + Send + Sync + 'static) -> Test {
    Box::new(move |a, b| {
        let mut found = 0;
        for lane in 0..crate::instruction::LANES {
            found |= u32::from(scalar(a[lane], b[lane])) << lane;
        }
        found
    })
}

/// `setp`, `set`, `selp`, `slct`.
pub(crate) fn compare(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    match m.name {
        "selp" => return select(body, m, operands),
        "slct" => return select_by_sign(body, m, operands),
        _ => {}
    }
    let relation = m.take_of(&RELATIONS).ok_or_else(|| body.error("a comparison without a relation"))?;
    let join = m.take_of(&[("and", Join::And), ("or", Join::Or), ("xor", Join::Xor)]).unwrap_or(Join::First);
    let flush = m.take("ftz");
    let result = if m.name == "set" { Some(m.take_type(body)?) } else { None };
    let word = m.take_by(|word| Type::named(word).map(|ty| (ty, Float::named(word))));
    let (ty, float) = word.ok_or_else(|| body.error(format!("{} without a type", m.name)))?;
    m.finish(body)?;
    expect(body, operands, if join == Join::First { 3 } else { 4 })?;
    let sources = [body.source(&operands[1], ty.bits)?, body.source(&operands[2], ty.bits)?];
    let with = if join == Join::First { Condition::ALWAYS } else { body.condition(&operands[3])? };
    let test = test(body, relation, ty, float.map(|float| Float { flush, ..float }))?;
    let op = match result {
        None => {
            let (target, inverse) = match &operands[0] {
                Operand::Pair(first, second) => {
                    (body.optional(first, Body::predicate_target)?, body.optional(second, Body::predicate_target)?)
                }
                target => (Some(body.predicate_target(target)?), None),
            };
            Op::Compare { test, sources, join, with, target, inverse }
        }
        Some(result) => {
            let truth = match (result.class, result.bits) {
                (Class::Float, 32) => u64::from(1f32.to_bits()),
                (Class::Unsigned | Class::Signed, 32) => mask(32),
                _ => return Err(body.error(format!("set to {result:?} is not executed"))),
            };
            let (target, _) = body.target(&operands[0])?;
            Op::Set { test, sources, join, with, target, truth }
        }
    };
    body.push(op, Kind::Compare);
    Ok(())
}

fn test(
    body: &Body<'_, '_>,
    relation: Relation,
    ty: Type,
    float: Option<Float>,
) -> Result<Test, crate::module::ParseError> {
    let (bits, all) = (ty.bits, mask(ty.bits));
    if let Some(float) = float {
        if float.packed {
            return Err(body.error("comparisons of packed values are not executed"));
        }
        return Ok(lanes_where(move |a, b| {
            let [a, b] = [a, b].map(|value| float.input(value & all));
            relation.holds(a.partial_cmp(&b))
        }));
    }
    if relation.unordered {
        return Err(body.error("integers are always ordered"));
    }
    Ok(if ty.is_signed() && !relation.unsigned {
        lanes_where(move |a, b| relation.holds(Some(signed(a, bits).cmp(&signed(b, bits)))))
    } else {
        lanes_where(move |a, b| relation.holds(Some((a & all).cmp(&(b & all)))))
    })
}

fn select(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    let ty = m.take_type(body)?;
    m.finish(body)?;
    expect(body, operands, 4)?;
    let sources = [body.source_unchecked(&operands[1], ty.bits)?, body.source_unchecked(&operands[2], ty.bits)?];
    let condition = body.condition(&operands[3])?;
    let (target, _) = body.target(&operands[0])?;
    body.push(Op::Select { target, sources, condition }, Kind::Compare);
    Ok(())
}

/// `slct`: the first of two unless the third operand is negative or NaN.
fn select_by_sign(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    let flush = m.take("ftz");
    let ty = m.take_type(body)?;
    let by = m.take_type(body)?;
    m.finish(body)?;
    let float = Float { flush, ..Float::plain(crate::number::F32) };
    push_map(body, Kind::Compare, operands, [ty.bits, ty.bits, 32], move |[a, b, c]| {
        let first = if by.class == Class::Float { float.input(c) >= 0.0 } else { signed(c, 32) >= 0 };
        if first { a } else { b }
    })
}
