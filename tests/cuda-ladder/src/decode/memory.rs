//! Loads, stores, atomics and asynchronous copies.

use super::{Class, Decoded, Modifiers, Type, expect};
use crate::counts::Kind;
use crate::instruction::{Access, AsyncCopy, Atomic, AtomicKind, Op, Space};
use crate::number::float::Float;
use crate::read::body::Body;
use crate::read::operand::Operand;

const SPACES: [(&str, Space); 9] = [
    ("global", Space::Global),
    ("shared", Space::Shared),
    ("shared::cta", Space::Shared),
    ("local", Space::Local),
    ("const", Space::Constant),
    ("param", Space::Parameter),
    ("param::entry", Space::Parameter),
    ("param::func", Space::Parameter),
    ("generic", Space::Generic),
];

/// Orders, scopes and cache hints: memory here is always consistent and has no caches.
const HINTS: [&str; 27] = [
    "weak",
    "volatile",
    "relaxed",
    "acquire",
    "release",
    "acq_rel",
    "cta",
    "cluster",
    "gpu",
    "sys",
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "nc",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L1::evict_first",
    "L1::evict_last",
    "L1::no_allocate",
    "L2::64B",
    "L2::128B",
    "L2::256B",
    "noftz",
];

pub(crate) fn take_space(m: &mut Modifiers<'_>) -> Option<Space> {
    m.take_of(&SPACES)
}

fn take_hints(m: &mut Modifiers<'_>) {
    HINTS.iter().for_each(|hint| {
        m.take(hint);
    });
}

fn kind(space: Space) -> Kind {
    match space {
        Space::Global | Space::Generic => Kind::Global,
        Space::Shared => Kind::Shared,
        Space::Local => Kind::Local,
        Space::Constant | Space::Parameter => Kind::Constant,
    }
}

/// `ld`, `st`, `atom`, `red`, `prefetch`.
pub(crate) fn access(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    if m.name.starts_with("prefetch") {
        body.push(Op::Nothing, Kind::Global);
        return Ok(());
    }
    let space = take_space(m).unwrap_or(Space::Generic);
    if matches!(m.name, "atom" | "red") {
        return atomic(body, m, space, operands);
    }
    take_hints(m);
    let count = m.take_of(&[("v2", 2), ("v4", 4), ("v8", 8)]);
    let ty = m.take_type(body)?;
    // A cache policy stands behind the other operands and is not looked at.
    let policy = usize::from(m.take("L2::cache_hint"));
    m.finish(body)?;
    expect(body, operands, 2 + policy)?;
    if ty.bits < 8 || ty.bits > 64 || count.unwrap_or(1) * ty.bits > 256 {
        return Err(body.error(format!("{} of {ty:?} is not executed", m.name)));
    }
    let loads = m.name != "st";
    let (value, address) = if loads { (&operands[0], &operands[1]) } else { (&operands[1], &operands[0]) };
    let parts = match value {
        Operand::List(parts) => &parts[..],
        part => std::slice::from_ref(part),
    };
    if parts.len() != count.unwrap_or(1) as usize {
        return Err(body.error("the vector has another length"));
    }
    let place = body.place(address, space)?;
    let (mut registers, mut width) = (Vec::new(), ty.bits);
    for part in parts {
        registers.push(if loads {
            let target = body.optional(part, Body::target)?;
            width = target.map_or(width, |(_, bits)| bits);
            target.map(|(index, _)| index)
        } else {
            Some(body.source(part, ty.bits)?)
        });
    }
    let access =
        Access { place, element: ty.bits as usize / 8, signed: ty.is_signed(), width, registers: registers.into() };
    let op = if loads { Op::Load(Box::new(access)) } else { Op::Store(Box::new(access)) };
    body.push(op, kind(place.space));
    Ok(())
}

fn atomic_kind(m: &mut Modifiers<'_>) -> Option<AtomicKind> {
    m.take_of(&[
        ("add", AtomicKind::Add),
        ("min", AtomicKind::Minimum),
        ("max", AtomicKind::Maximum),
        ("and", AtomicKind::And),
        ("or", AtomicKind::Or),
        ("xor", AtomicKind::Xor),
        ("exch", AtomicKind::Exchange),
        ("cas", AtomicKind::CompareExchange),
        ("inc", AtomicKind::Increment),
        ("dec", AtomicKind::Decrement),
    ])
}

fn atomic(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, space: Space, operands: &[Operand<'_>]) -> Decoded {
    let mut kind = atomic_kind(m).ok_or_else(|| body.error("an atomic without an operation"))?;
    take_hints(m);
    let word = m.take_by(|word| Type::named(word).map(|ty| (ty, Float::named(word))));
    let (ty, float) = word.ok_or_else(|| body.error(format!("{} without a type", m.name)))?;
    m.finish(body)?;
    if let Some(float) = float {
        if kind != AtomicKind::Add {
            return Err(body.error("floats are only added"));
        }
        kind = AtomicKind::AddFloat(float.format, float.packed);
    }
    if ty.class == Class::Predicate || ty.bits > 64 {
        return Err(body.error(format!("atomics of {ty:?} are not executed")));
    }
    let returns = m.name == "atom";
    let first = usize::from(returns);
    let values = 1 + usize::from(kind == AtomicKind::CompareExchange);
    expect(body, operands, first + 1 + values)?;
    let place = body.place(&operands[first], space)?;
    if !matches!(place.space, Space::Global | Space::Shared | Space::Generic) {
        return Err(body.error("atomics work on global and shared memory"));
    }
    let value = body.source(&operands[first + 1], ty.bits)?;
    let swap = if values == 2 { body.source(&operands[first + 2], ty.bits)? } else { value };
    let target = if returns { body.optional(&operands[0], Body::target)?.map(|(index, _)| index) } else { None };
    let bytes = ty.bits as usize / 8;
    let atomic = Atomic { kind, place, bytes, signed: ty.is_signed(), target, value, swap };
    body.push(Op::Atomic(Box::new(atomic)), self::kind(space));
    Ok(())
}

/// `cp.async` and its groups; bulk copies and mbarriers are not executed.
pub(crate) fn asynchronous(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    if !m.take("async") {
        return Err(body.error("unknown opcode cp"));
    }
    if m.take("commit_group") {
        m.finish(body)?;
        body.push(Op::Commit, Kind::AsyncCopy);
        return expect(body, operands, 0);
    }
    if m.take("wait_all") {
        m.finish(body)?;
        body.push(Op::Wait(None), Kind::AsyncCopy);
        return expect(body, operands, 0);
    }
    if m.take("wait_group") {
        m.finish(body)?;
        let [Operand::Integer(groups)] = operands else {
            return Err(body.error("cp.async.wait_group needs a constant"));
        };
        body.push(Op::Wait(Some(*groups as u32)), Kind::AsyncCopy);
        return Ok(());
    }
    let cached_in_all =
        m.take_of(&[("ca", true), ("cg", false)]).ok_or_else(|| body.error("cp.async without .ca or .cg"))?;
    let to_shared = (m.take("shared") || m.take("shared::cta")) && m.take("global");
    take_hints(m);
    let policy = usize::from(m.take("L2::cache_hint"));
    m.finish(body)?;
    let count = operands.len().saturating_sub(policy);
    let (true, 3 | 4) = (to_shared, count) else {
        return Err(body.error("this cp.async is not executed"));
    };
    let Operand::Integer(bytes) = operands[2] else {
        return Err(body.error("cp.async needs a constant size"));
    };
    if !(bytes == 16 || cached_in_all && (bytes == 4 || bytes == 8)) {
        return Err(body.error(format!("cp.async of {bytes} bytes does not exist")));
    }
    let target = body.place(&operands[0], Space::Shared)?;
    let source = body.place(&operands[1], Space::Global)?;
    let (mut source_bytes, mut ignored) = (None, None);
    if count == 4 {
        if body.is_predicate(&operands[3]) {
            ignored = Some(body.condition(&operands[3])?);
        } else {
            source_bytes = Some(body.source(&operands[3], 32)?);
        }
    }
    let copy = AsyncCopy { target, source, bytes: bytes as usize, source_bytes, ignored };
    body.push(Op::AsyncCopy(Box::new(copy)), Kind::AsyncCopy);
    Ok(())
}
