//! Moves between registers, packing, and addresses between spaces.

use super::memory::take_space;
use super::{Decoded, Modifiers, expect, push_map};
use crate::counts::Kind;
use crate::instruction::{Condition, Join, Op, Space, WINDOW};
use crate::read::body::Body;
use crate::read::operand::Operand;

/// `mov`, `cvta`, `isspacep`.
pub(crate) fn copy(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    match m.name {
        "mov" => copy_value(body, m, operands),
        "cvta" => {
            let to_space = m.take("to");
            let space = take_space(m).ok_or_else(|| body.error("cvta without a space"))?;
            let ty = m.take_type(body)?;
            m.finish(body)?;
            let window = space.window();
            if ty.bits != 64 {
                return Err(body.error("addresses have 64 bits"));
            }
            if to_space && space != Space::Global {
                push_map(body, Kind::Move, operands, [64], |[a]| a & !WINDOW)
            } else {
                push_map(body, Kind::Move, operands, [64], move |[a]| a | window)
            }
        }
        _ => is_in_space(body, m, operands),
    }
}

fn copy_value(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    let ty = m.take_type(body)?;
    m.finish(body)?;
    expect(body, operands, 2)?;
    if ty.bits == 1 {
        let condition = body.condition(&operands[1])?;
        let target = body.predicate_target(&operands[0])?;
        body.push(Op::Predicate { join: Join::First, target, sources: [condition; 2] }, Kind::Compare);
        return Ok(());
    }
    let part_bits = |body: &Body<'_, '_>, parts: usize| match (parts, ty.bits) {
        (2 | 4, bits) if bits as usize / parts >= 8 && bits <= 64 => Ok(bits / parts as u32),
        _ => Err(body.error("this packing is not executed")),
    };
    let op = match (&operands[0], &operands[1]) {
        (Operand::List(parts), from) => {
            let bits = part_bits(body, parts.len())?;
            let source = body.source_unchecked(from, ty.bits)?;
            let parts: Result<Box<[Option<u32>]>, _> =
                parts.iter().map(|part| Ok(body.optional(part, Body::target)?.map(|(index, _)| index))).collect();
            Op::Unpack { parts: parts?, source, bits }
        }
        (to, Operand::List(parts)) => {
            let bits = part_bits(body, parts.len())?;
            let parts: Result<Box<[u32]>, _> = parts.iter().map(|part| body.source_unchecked(part, bits)).collect();
            let (target, _) = body.target(to)?;
            Op::Pack { target, parts: parts?, bits }
        }
        (to, from) => {
            let source = body.source_unchecked(from, ty.bits)?;
            let (target, _) = body.target(to)?;
            Op::Move(target, source)
        }
    };
    body.push(op, Kind::Move);
    Ok(())
}

fn is_in_space(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    let space = take_space(m).ok_or_else(|| body.error("isspacep without a space"))?;
    m.finish(body)?;
    expect(body, operands, 2)?;
    let source = body.source(&operands[1], 64)?;
    let target = body.predicate_target(&operands[0])?;
    let windows = [Space::Shared, Space::Local, Space::Constant, Space::Parameter].map(Space::window);
    let test = super::compare::lanes_where(move |address, _| match space {
        Space::Global => !windows.contains(&(address & WINDOW)),
        _ => address & WINDOW == space.window(),
    });
    let op = Op::Compare {
        test,
        sources: [source; 2],
        join: Join::First,
        with: Condition::ALWAYS,
        target: Some(target),
        inverse: None,
    };
    body.push(op, Kind::Compare);
    Ok(())
}
