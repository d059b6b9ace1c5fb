//! Branches, calls, barriers and fences.

use super::{Decoded, Modifiers, expect};
use crate::counts::Kind;
use crate::instruction::{Barrier, BarrierKind, Collective, Op, Preset, VoteKind};
use crate::read::body::Body;
use crate::read::operand::Operand;

/// `bra`, `brx`, `call`, `ret`, `exit`, `trap`.
pub(crate) fn control(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    m.take("uni");
    match (m.name, operands) {
        ("bra", [Operand::Name(label)]) => {
            m.finish(body)?;
            body.push_branch(Op::Branch(0), vec![(*label).to_owned()]);
        }
        ("brx", [index, Operand::Name(table)]) if m.take("idx") => {
            m.finish(body)?;
            let labels = body.table(table).ok_or_else(|| body.error(format!("unknown table {table}")))?;
            let index = body.source(index, 32)?;
            body.push_branch(Op::BranchIndexed { index, targets: Box::default() }, labels);
        }
        ("call", _) => {
            m.finish(body)?;
            let names = |list: &[Operand<'_>]| -> Option<Vec<String>> {
                list.iter()
                    .map(|operand| match operand {
                        Operand::Name(name) => Some((*name).to_owned()),
                        _ => None,
                    })
                    .collect()
            };
            let parts = match operands {
                [Operand::Group(results), Operand::Name(name), Operand::Group(arguments)] => {
                    names(results).zip(names(arguments)).map(|(results, arguments)| (results, *name, arguments))
                }
                [Operand::Group(results), Operand::Name(name)] => names(results).map(|list| (list, *name, Vec::new())),
                [Operand::Name(name), Operand::Group(arguments)] => {
                    names(arguments).map(|list| (Vec::new(), *name, list))
                }
                [Operand::Name(name)] => Some((Vec::new(), *name, Vec::new())),
                _ => None,
            };
            let (results, name, arguments) = parts.ok_or_else(|| body.error("this call is not executed"))?;
            let results: Vec<&str> = results.iter().map(String::as_str).collect();
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            body.call(name, &results, &arguments)?;
        }
        ("ret", []) => {
            m.finish(body)?;
            body.push_return();
        }
        ("exit", []) => {
            m.finish(body)?;
            body.push(Op::Exit, Kind::Control);
        }
        ("trap" | "brkpt", []) => {
            m.finish(body)?;
            body.push(Op::Trap("trap".to_owned()), Kind::Control);
        }
        ("nanosleep", [_]) => {
            m.take("u32");
            m.finish(body)?;
            body.push(Op::Nothing, Kind::Control);
        }
        (name, _) => return Err(body.error(format!("{name} with these operands is not executed"))),
    }
    Ok(())
}

/// `bar`, `barrier`, `membar`, `fence`, `griddepcontrol`.
pub(crate) fn synchronise(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    match m.name {
        "membar" | "fence" => {
            for word in ["sc", "acq_rel", "cta", "cluster", "gpu", "gl", "sys"] {
                m.take(word);
            }
            m.finish(body)?;
            body.push(Op::Fence, Kind::Sync);
            return Ok(());
        }
        "griddepcontrol" => {
            m.take("wait");
            m.take("launch_dependents");
            m.finish(body)?;
            body.push(Op::Nothing, Kind::Sync);
            return Ok(());
        }
        _ => {}
    }
    if m.take("warp") {
        m.take("sync");
        m.finish(body)?;
        expect(body, operands, 1)?;
        let members = body.source(&operands[0], 32)?;
        body.push(Op::Collective { members, what: Collective::Barrier }, Kind::Sync);
        return Ok(());
    }
    m.take("cta");
    m.take("aligned");
    if m.take("red") {
        return reduce(body, m, operands);
    }
    let kind = m.take_of(&[("sync", BarrierKind::Sync), ("arrive", BarrierKind::Arrive)]);
    let kind = kind.ok_or_else(|| body.error("a barrier without an operation"))?;
    m.finish(body)?;
    let (id, threads) = match operands {
        [] => (body.preset(Preset::Constant(0)), None),
        [id] => (body.source(id, 32)?, None),
        [id, threads] => (body.source(id, 32)?, Some(body.source(threads, 32)?)),
        _ => return Err(body.error("too many operands of a barrier")),
    };
    if kind == BarrierKind::Arrive && threads.is_none() {
        return Err(body.error("who arrives must say for how many threads"));
    }
    let condition = crate::instruction::Condition::ALWAYS;
    body.push(Op::Barrier(Box::new(Barrier { kind, id, threads, condition, target: 0 })), Kind::Sync);
    Ok(())
}

/// `bar.red`: a count (`popc`) or a predicate (`and`, `or`) over the block.
fn reduce(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    let vote = m.take_of(&[("popc", VoteKind::Ballot), ("and", VoteKind::All), ("or", VoteKind::Any)]);
    let vote = vote.ok_or_else(|| body.error("bar.red without an operation"))?;
    m.take_type(body)?;
    m.finish(body)?;
    let (target, id, threads, condition) = match operands {
        [target, id, condition] => (target, id, None, condition),
        [target, id, threads, condition] => (target, id, Some(body.source(threads, 32)?), condition),
        _ => return Err(body.error("bar.red needs three or four operands")),
    };
    let id = body.source(id, 32)?;
    let condition = body.condition(condition)?;
    let target = if vote == VoteKind::Ballot { body.target(target)?.0 } else { body.predicate_target(target)? };
    let barrier = Barrier { kind: BarrierKind::Reduce(vote), id, threads, condition, target };
    body.push(Op::Barrier(Box::new(barrier)), Kind::Sync);
    Ok(())
}
