//! `ldmatrix`, `stmatrix`, `movmatrix` and `mma.sync`.

use super::memory::take_space;
use super::{Decoded, Modifiers, expect};
use crate::counts::Kind;
use crate::instruction::{Accumulator, Collective, Element, Multiply, Op, Preset, Space};
use crate::module::ParseError;
use crate::number::{BF16, F16, TF32};
use crate::read::body::Body;
use crate::read::operand::Operand;

/// Decodes a matrix instruction. All lanes take part.
pub(crate) fn matrix(body: &mut Body<'_, '_>, m: &mut Modifiers<'_>, operands: &[Operand<'_>]) -> Decoded {
    if !m.take("sync") || !m.take("aligned") {
        return Err(body.error(format!("{} without .sync.aligned", m.name)));
    }
    let (what, kind) = match m.name {
        "mma" => (multiply(body, m, operands)?, Kind::Matrix),
        "movmatrix" => {
            let is_known = m.take("m8n8") && m.take("trans") && m.take("b16");
            m.finish(body)?;
            expect(body, operands, 2)?;
            if !is_known {
                return Err(body.error("this movmatrix is not executed"));
            }
            let source = body.source(&operands[1], 32)?;
            (Collective::MoveMatrix { source, target: body.target(&operands[0])?.0 }, Kind::Warp)
        }
        _ => (transfer(body, m, operands)?, Kind::Shared),
    };
    let members = body.preset(Preset::Constant(u64::from(u32::MAX)));
    body.push(Op::Collective { members, what }, kind);
    Ok(())
}

fn transfer(
    body: &mut Body<'_, '_>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'_>],
) -> Result<Collective, ParseError> {
    let loads = m.name == "ldmatrix";
    let count = m.take_of(&[("x1", 1), ("x2", 2), ("x4", 4)]).ok_or_else(|| body.error("how many matrices?"))?;
    let transposed = m.take("trans");
    let space = take_space(m).unwrap_or(Space::Generic);
    if !m.take("m8n8") || !m.take("b16") || !matches!(space, Space::Shared | Space::Generic) {
        return Err(body.error(format!("this {} is not executed", m.name)));
    }
    m.finish(body)?;
    expect(body, operands, 2)?;
    let (value, address) = if loads { (&operands[0], &operands[1]) } else { (&operands[1], &operands[0]) };
    let parts = list(value);
    if parts.len() != count {
        return Err(body.error("the vector has another length"));
    }
    let place = body.place(address, space)?;
    if loads {
        let targets: Result<Box<[u32]>, _> = parts.iter().map(|part| Ok(body.target(part)?.0)).collect();
        return Ok(Collective::LoadMatrix { targets: targets?, transposed, place });
    }
    let sources: Result<Box<[u32]>, _> = parts.iter().map(|part| body.source(part, 32)).collect();
    Ok(Collective::StoreMatrix { sources: sources?, transposed, place })
}

fn list<'o, 'a>(operand: &'o Operand<'a>) -> &'o [Operand<'a>] {
    match operand {
        Operand::List(parts) => parts,
        part => std::slice::from_ref(part),
    }
}

fn element(word: &str) -> Option<Element> {
    Some(match word {
        "f16" => Element::Float(F16),
        "bf16" => Element::Float(BF16),
        "tf32" => Element::Float(TF32),
        "s8" => Element::Signed8,
        "u8" => Element::Unsigned8,
        _ => return None,
    })
}

fn multiply(
    body: &mut Body<'_, '_>,
    m: &mut Modifiers<'_>,
    operands: &[Operand<'_>],
) -> Result<Collective, ParseError> {
    let shapes = [("m16n8k4", 4), ("m16n8k8", 8), ("m16n8k16", 16), ("m16n8k32", 32)];
    let k = m.take_of(&shapes).ok_or_else(|| body.error("this shape of mma is not executed"))?;
    if !m.take("row") || !m.take("col") {
        return Err(body.error("mma needs .row.col"));
    }
    let saturate = m.take("satfinite");
    let types: Vec<&str> = std::mem::take(&mut m.words);
    let [d, a, b, c] = types[..] else {
        return Err(body.error("mma needs four types"));
    };
    let wrong = || format!("mma of {d}, {a}, {b}, {c} is not executed");
    let (Some(a), Some(b)) = (element(a), element(b)) else {
        return Err(body.error(wrong()));
    };
    let floats = matches!(a, Element::Float(_));
    let accumulator = match d {
        "f32" if floats && !saturate => Accumulator::Float32,
        "f16" if a == Element::Float(F16) && !saturate => Accumulator::Float16,
        "s32" if !floats => Accumulator::Signed32 { saturate },
        _ => return Err(body.error(wrong())),
    };
    // Elements of one register, and with them the registers of each operand.
    let packed = match a {
        Element::Float(TF32) => 1,
        Element::Float(_) => 2,
        _ => 4,
    };
    let steps = k / (4 * packed);
    if c != d
        || matches!(b, Element::Float(_)) && a != b
        || !floats != !matches!(b, Element::Float(_))
        || !(1..=2).contains(&steps)
    {
        return Err(body.error(wrong()));
    }
    expect(body, operands, 4)?;
    let results = if accumulator == Accumulator::Float16 { 2 } else { 4 };
    let counts = [results, 2 * steps, steps, results];
    if operands.iter().map(|operand| list(operand).len()).ne(counts) {
        return Err(body.error("an operand of mma has another number of registers"));
    }
    let mut sources = |operand: &Operand<'_>| -> Result<Box<[u32]>, ParseError> {
        list(operand).iter().map(|part| body.source(part, 32)).collect()
    };
    let (a_registers, b_registers, c_registers) =
        (sources(&operands[1])?, sources(&operands[2])?, sources(&operands[3])?);
    let targets: Result<Box<[u32]>, _> = list(&operands[0]).iter().map(|part| Ok(body.target(part)?.0)).collect();
    let multiply = Multiply { k, a, b, accumulator, targets: targets?, a_registers, b_registers, c_registers };
    Ok(Collective::Multiply(Box::new(multiply)))
}
