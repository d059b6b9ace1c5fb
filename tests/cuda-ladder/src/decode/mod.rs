//! Opcodes into [`Op`]s. A modifier that is not understood is an error: nothing is executed half.

mod bits;
mod compare;
mod control;
mod convert;
mod copy;
mod float;
mod integer;
mod matrix;
mod memory;
mod special;
mod warp;

use crate::counts::Kind;
use crate::instruction::{Op, lift};
use crate::module::ParseError;
use crate::number::float::Float;
use crate::read::body::Body;
use crate::read::operand::Operand;

type Decoded = Result<(), ParseError>;

/// A type of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Type {
    pub(crate) class: Class,
    pub(crate) bits: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Unsigned,
    Signed,
    Untyped,
    Float,
    Predicate,
}

impl Type {
    pub(crate) fn named(word: &str) -> Option<Type> {
        if word == "pred" {
            return Some(Type { class: Class::Predicate, bits: 1 });
        }
        if let Some(float) = Float::named(word) {
            return Some(Type { class: Class::Float, bits: float.bits() });
        }
        let class = match word.as_bytes().first()? {
            b'u' => Class::Unsigned,
            b's' => Class::Signed,
            b'b' => Class::Untyped,
            _ => return None,
        };
        let bits = word[1..].parse().ok()?;
        [8, 16, 32, 64, 128].contains(&bits).then_some(Type { class, bits })
    }

    pub(crate) fn is_signed(self) -> bool {
        self.class == Class::Signed
    }
}

/// All ones in the low `bits`.
pub(crate) const fn mask(bits: u32) -> u64 {
    if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
}

/// The low `bits` as a signed number.
pub(crate) const fn signed(value: u64, bits: u32) -> i64 {
    ((value << (64 - bits)) as i64) >> (64 - bits)
}

/// The words behind an opcode's name, taken one by one.
pub(crate) struct Modifiers<'o> {
    name: &'o str,
    words: Vec<&'o str>,
}

impl<'o> Modifiers<'o> {
    fn new(opcode: &'o str) -> Modifiers<'o> {
        let mut words = opcode.split('.');
        let name = words.next().unwrap_or_default();
        Modifiers { name, words: words.collect() }
    }

    /// Takes a word if it is there.
    pub(crate) fn take(&mut self, word: &str) -> bool {
        let index = self.words.iter().position(|found| *found == word);
        index.map(|index| self.words.remove(index)).is_some()
    }

    /// Takes the first of these words that is there.
    pub(crate) fn take_of<T: Copy>(&mut self, words: &[(&str, T)]) -> Option<T> {
        words.iter().find(|(word, _)| self.take(word)).map(|(_, value)| *value)
    }

    /// Takes the first word that `read` understands.
    pub(crate) fn take_by<T>(&mut self, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (index, value) = self.words.iter().enumerate().find_map(|(index, word)| Some((index, read(word)?)))?;
        self.words.remove(index);
        Some(value)
    }

    pub(crate) fn take_type(&mut self, body: &Body<'_, '_>) -> Result<Type, ParseError> {
        self.take_by(Type::named).ok_or_else(|| body.error(format!("{} without a type", self.name)))
    }

    /// Whether a word is there, without taking it.
    pub(crate) fn has(&self, word: &str) -> bool {
        self.words.contains(&word)
    }

    /// Fails when words are left.
    pub(crate) fn finish(&self, body: &Body<'_, '_>) -> Result<(), ParseError> {
        match self.words.first() {
            None => Ok(()),
            Some(word) => Err(body.error(format!("{} with .{word} is not executed", self.name))),
        }
    }
}

/// Decodes one instruction into the body.
pub(crate) fn instruction(body: &mut Body<'_, '_>, opcode: &str, operands: &[Operand<'_>]) -> Decoded {
    let mut modifiers = Modifiers::new(opcode);
    let m = &mut modifiers;
    match m.name {
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "min" | "max" | "abs" | "neg" => {
            let float = m.words.iter().rev().find_map(|word| Float::named(word));
            match float {
                Some(float) => {
                    m.take_by(Float::named);
                    float::arithmetic(body, m, float, operands)
                }
                None => integer::arithmetic(body, m, operands),
            }
        }
        "addc" | "subc" | "madc" | "rem" | "mul24" | "mad24" | "sad" | "dp4a" | "dp2a" => {
            integer::arithmetic(body, m, operands)
        }
        "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "shf" | "lop3" | "popc" | "clz" | "brev" | "bfind"
        | "bfe" | "bfi" | "prmt" | "szext" => bits::logic(body, m, operands),
        "rcp" | "sqrt" | "rsqrt" | "sin" | "cos" | "lg2" | "ex2" | "tanh" => special::function(body, m, operands),
        "copysign" | "testp" => float::sign(body, m, operands),
        "cvt" => convert::convert(body, m, operands),
        "setp" | "set" | "selp" | "slct" => compare::compare(body, m, operands),
        "mov" | "cvta" | "isspacep" => copy::copy(body, m, operands),
        "ld" | "ldu" | "st" | "prefetch" | "prefetchu" | "atom" | "red" => memory::access(body, m, operands),
        "cp" => memory::asynchronous(body, m, operands),
        "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "brkpt" | "nanosleep" => control::control(body, m, operands),
        "bar" | "barrier" | "membar" | "fence" | "griddepcontrol" => control::synchronise(body, m, operands),
        "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" => warp::exchange(body, m, operands),
        "ldmatrix" | "stmatrix" | "movmatrix" | "mma" => matrix::matrix(body, m, operands),
        name => Err(body.error(format!("unknown opcode {name}"))),
    }
}

/// Fails unless there are `count` operands.
pub(crate) fn expect(body: &Body<'_, '_>, operands: &[Operand<'_>], count: usize) -> Decoded {
    if operands.len() == count {
        Ok(())
    } else {
        Err(body.error(format!("{count} operands expected, {} found", operands.len())))
    }
}

/// Decodes arithmetic whose sources have the widths in `bits`. The result is cut to the target register.
pub(crate) fn push_map<const N: usize>(
    body: &mut Body<'_, '_>,
    kind: Kind,
    operands: &[Operand<'_>],
    bits: [u32; N],
    scalar: impl Fn([u64; N]) -> u64 + Send + Sync + 'static,
) -> Decoded
where
    [u32; N]: Wrap<N>,
{
    expect(body, operands, N + 1)?;
    let mut sources = [0; N];
    for index in 0..N {
        sources[index] = body.source(&operands[index + 1], bits[index])?;
    }
    let (target, _) = body.target(&operands[0])?;
    let op = <[u32; N]>::wrap(lift(scalar), target, sources);
    body.push(op, kind);
    Ok(())
}

/// Numbers of operands that have an [`Op`].
pub(crate) trait Wrap<const N: usize> {
    fn wrap(map: crate::instruction::Map<N>, target: u32, sources: [u32; N]) -> Op;
}

macro_rules! wrap {
    ($count:literal, $op:ident) => {
        impl Wrap<$count> for [u32; $count] {
            fn wrap(map: crate::instruction::Map<$count>, target: u32, sources: [u32; $count]) -> Op {
                Op::$op(map, target, sources)
            }
        }
    };
}

wrap!(1, Map1);
wrap!(2, Map2);
wrap!(3, Map3);
wrap!(4, Map4);
