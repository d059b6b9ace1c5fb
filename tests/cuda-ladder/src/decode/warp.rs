//! Exchange between the lanes of a warp.

use super::{Decoded, Modifiers, expect};
use crate::counts::Kind;
use crate::instruction::{Collective, Op, ReduceKind, ShuffleKind, VoteKind};
use crate::module::ParseError;
use crate::read::body::Body;
use crate::read::operand::Operand;

type Targets = (Option<u32>, Option<u32>);

/// `d` or `d|p`.
fn targets(body: &mut Body<'_, '_>, operand: &Operand<'_>) -> Result<Targets, ParseError> {
    let register = |body: &mut Body<'_, '_>, operand: &Operand<'_>| {
        Ok::<_, ParseError>(body.optional(operand, Body::target)?.map(|(index, _)| index))
    };
    match operand {
        Operand::Pair(value, predicate) => {
            Ok((register(body, value)?, body.optional(predicate, Body::predicate_target)?))
        }
        value => Ok((register(body, value)?, None)),
    }
}

/// `shfl`, `vote`, `match`, `redux`, `activemask`, `elect`.
pub(crate) fn exchange(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    if m.name == "activemask" {
        m.take_type(body)?;
        m.finish(body)?;
        expect(body, operands, 1)?;
        let (target, _) = body.target(&operands[0])?;
        body.push(Op::ActiveMask(target), Kind::Warp);
        return Ok(());
    }
    if !m.take("sync") {
        return Err(body.error(format!("{} without .sync", m.name)));
    }
    let what = match m.name {
        "shfl" => shuffle(body, m, operands)?,
        "vote" => vote(body, m, operands)?,
        "match" => match_values(body, m, operands)?,
        "redux" => reduce(body, m, operands)?,
        _ => {
            m.finish(body)?;
            expect(body, operands, 2)?;
            let (target, elected) = targets(body, &operands[0])?;
            let elected = elected.ok_or_else(|| body.error("elect needs a predicate"))?;
            Collective::Elect { target, elected }
        }
    };
    let members = body.source(operands.last().expect("every form has operands"), 32)?;
    body.push(Op::Collective { members, what }, Kind::Warp);
    Ok(())
}

fn shuffle(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Result<Collective, ParseError> {
    let kinds = [
        ("up", ShuffleKind::Up),
        ("down", ShuffleKind::Down),
        ("bfly", ShuffleKind::Butterfly),
        ("idx", ShuffleKind::Index),
    ];
    let kind = m.take_of(&kinds).ok_or_else(|| body.error("shfl without a mode"))?;
    m.take("b32");
    m.finish(body)?;
    expect(body, operands, 5)?;
    let value = body.source(&operands[1], 32)?;
    let lane = body.source(&operands[2], 32)?;
    let clamp = body.source(&operands[3], 32)?;
    let (target, inside) = targets(body, &operands[0])?;
    Ok(Collective::Shuffle { kind, target, inside, value, lane, clamp })
}

fn vote(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Result<Collective, ParseError> {
    let kinds =
        [("all", VoteKind::All), ("any", VoteKind::Any), ("uni", VoteKind::Uniform), ("ballot", VoteKind::Ballot)];
    let kind = m.take_of(&kinds).ok_or_else(|| body.error("vote without a mode"))?;
    m.take_type(body)?;
    m.finish(body)?;
    expect(body, operands, 3)?;
    let condition = body.condition(&operands[1])?;
    let target =
        if kind == VoteKind::Ballot { body.target(&operands[0])?.0 } else { body.predicate_target(&operands[0])? };
    Ok(Collective::Vote { kind, target, condition })
}

fn match_values(
    body: &mut Body<'_, '_>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'_>],
) -> Result<Collective, ParseError> {
    let all = m.take_of(&[("any", false), ("all", true)]).ok_or_else(|| body.error("match without a mode"))?;
    let ty = m.take_type(body)?;
    m.finish(body)?;
    expect(body, operands, 3)?;
    let value = body.source(&operands[1], ty.bits)?;
    let (target, equal) = targets(body, &operands[0])?;
    if all {
        return Ok(Collective::MatchAll { target, equal, value });
    }
    let target = target.ok_or_else(|| body.error("match.any needs a target"))?;
    Ok(Collective::MatchAny { target, value })
}

fn reduce(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Result<Collective, ParseError> {
    let kinds = [
        ("add", ReduceKind::Add),
        ("min", ReduceKind::Minimum),
        ("max", ReduceKind::Maximum),
        ("and", ReduceKind::And),
        ("or", ReduceKind::Or),
        ("xor", ReduceKind::Xor),
    ];
    let kind = m.take_of(&kinds).ok_or_else(|| body.error("redux without an operation"))?;
    let ty = m.take_type(body)?;
    m.finish(body)?;
    expect(body, operands, 3)?;
    if ty.bits != 32 || ty.class == super::Class::Float {
        return Err(body.error("redux of floats is not executed"));
    }
    let value = body.source(&operands[1], 32)?;
    let (target, _) = body.target(&operands[0])?;
    Ok(Collective::Reduce { kind, signed: ty.is_signed(), target, value })
}
