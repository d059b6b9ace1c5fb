//! Operands as they are written.

use super::cursor::Cursor;
use super::token::Token;
use crate::module::ParseError;

/// An operand. Names are resolved by the decoder.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand<'a> {
    Name(&'a str),
    Integer(u64),
    Float32(u32),
    Float64(u64),
    /// `{a, b}`
    List(Vec<Operand<'a>>),
    /// `[base + offset]`
    Address {
        base: Box<Operand<'a>>,
        offset: i64,
    },
    /// `p|q`
    Pair(Box<Operand<'a>>, Box<Operand<'a>>),
    /// `!p`
    Not(&'a str),
    /// `(a, b)`
    Group(Vec<Operand<'a>>),
}

/// Reads operands up to and with the semicolon.
pub(crate) fn list<'a>(cursor: &mut Cursor<'_, 'a>) -> Result<Vec<Operand<'a>>, ParseError> {
    let mut operands = Vec::new();
    if cursor.take_mark(b';') {
        return Ok(operands);
    }
    loop {
        operands.push(one(cursor)?);
        if cursor.take_mark(b';') {
            return Ok(operands);
        }
        cursor.expect(b',')?;
    }
}

fn one<'a>(cursor: &mut Cursor<'_, 'a>) -> Result<Operand<'a>, ParseError> {
    let first = simple(cursor)?;
    if cursor.take_mark(b'|') {
        return Ok(Operand::Pair(Box::new(first), Box::new(simple(cursor)?)));
    }
    Ok(first)
}

fn simple<'a>(cursor: &mut Cursor<'_, 'a>) -> Result<Operand<'a>, ParseError> {
    match cursor.next()? {
        Token::Word(name) => {
            // `symbol+8` as an immediate address.
            if cursor.peek() == Some(Token::Mark(b'+')) {
                cursor.take_mark(b'+');
                let offset = signed(cursor)?;
                return Ok(Operand::Address { base: Box::new(Operand::Name(name)), offset });
            }
            Ok(Operand::Name(name))
        }
        Token::Integer(value) => Ok(Operand::Integer(value)),
        Token::Float32(bits) => Ok(Operand::Float32(bits)),
        Token::Float64(bits) => Ok(Operand::Float64(bits)),
        Token::Mark(b'-') => match cursor.next()? {
            Token::Integer(value) => Ok(Operand::Integer(value.wrapping_neg())),
            Token::Float64(bits) => Ok(Operand::Float64(bits ^ 1 << 63)),
            _ => Err(cursor.error("a number must follow the sign")),
        },
        Token::Mark(b'!') => match cursor.next()? {
            Token::Word(name) => Ok(Operand::Not(name)),
            _ => Err(cursor.error("a predicate must follow !")),
        },
        Token::Mark(b'{') => Ok(Operand::List(until(cursor, b'}')?)),
        Token::Mark(b'(') => Ok(Operand::Group(until(cursor, b')')?)),
        Token::Mark(b'[') => address(cursor),
        _ => Err(cursor.error("not an operand")),
    }
}

fn until<'a>(cursor: &mut Cursor<'_, 'a>, end: u8) -> Result<Vec<Operand<'a>>, ParseError> {
    let mut parts = Vec::new();
    if cursor.take_mark(end) {
        return Ok(parts);
    }
    loop {
        parts.push(one(cursor)?);
        if cursor.take_mark(end) {
            return Ok(parts);
        }
        cursor.expect(b',')?;
    }
}

fn address<'a>(cursor: &mut Cursor<'_, 'a>) -> Result<Operand<'a>, ParseError> {
    let base = match cursor.next()? {
        Token::Word(name) => Operand::Name(name),
        Token::Integer(value) => Operand::Integer(value),
        _ => return Err(cursor.error("not an address")),
    };
    let offset = if cursor.take_mark(b'+') {
        signed(cursor)?
    } else if cursor.take_mark(b'-') {
        signed(cursor)?.wrapping_neg()
    } else {
        0
    };
    cursor.expect(b']')?;
    Ok(Operand::Address { base: Box::new(base), offset })
}

fn signed(cursor: &mut Cursor<'_, '_>) -> Result<i64, ParseError> {
    let negative = cursor.take_mark(b'-');
    match cursor.next()? {
        Token::Integer(value) if negative => Ok((value as i64).wrapping_neg()),
        Token::Integer(value) => Ok(value as i64),
        _ => Err(cursor.error("not an offset")),
    }
}
