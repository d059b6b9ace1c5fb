//! Declarations of variables and parameters.

use super::cursor::Cursor;
use super::token::Token;
use crate::instruction::Space;
use crate::module::ParseError;

/// What a name in a body stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Symbol {
    Register { index: u32, bits: u32 },
    Predicate(u32),
    Variable { space: Space, offset: u64 },
}

/// A variable or parameter as declared.
#[derive(Clone, Debug)]
pub(crate) struct Declaration<'a> {
    pub(crate) name: &'a str,
    pub(crate) align: u32,
    pub(crate) element: u32,
    /// Elements; `None` for an array without a size (dynamic shared memory).
    pub(crate) count: Option<u32>,
    initial: Vec<u8>,
}

impl Declaration<'_> {
    /// Size; 0 for an array without one.
    pub(crate) fn bytes(&self) -> u32 {
        self.element * self.count.unwrap_or(0)
    }

    /// Appends the variable to an image and returns its offset.
    pub(crate) fn place_in(&self, image: &mut Vec<u8>) -> u64 {
        let offset = image.len().next_multiple_of(self.align as usize);
        image.resize(offset, 0);
        image.extend_from_slice(&self.initial);
        image.resize(offset + self.bytes() as usize, 0);
        offset as u64
    }
}

/// Bytes of a fundamental type.
pub(crate) fn type_bytes(word: &str) -> Option<u32> {
    Some(match word {
        ".b8" | ".u8" | ".s8" => 1,
        ".b16" | ".u16" | ".s16" | ".f16" | ".bf16" => 2,
        ".b32" | ".u32" | ".s32" | ".f32" | ".f16x2" | ".bf16x2" => 4,
        ".b64" | ".u64" | ".s64" | ".f64" => 8,
        ".b128" => 16,
        _ => return None,
    })
}

/// Parameters up to and with the closing parenthesis.
pub(crate) fn parameters<'a>(cursor: &mut Cursor<'_, 'a>) -> Result<Vec<Declaration<'a>>, ParseError> {
    let mut found = Vec::new();
    if cursor.take_mark(b')') {
        return Ok(found);
    }
    loop {
        match cursor.word()? {
            ".param" => found.push(one(cursor)?),
            word => return Err(cursor.error(format!("expected .param, found {word}"))),
        }
        if cursor.take_mark(b')') {
            return Ok(found);
        }
        cursor.expect(b',')?;
    }
}

/// Variables of one statement, up to and with the semicolon.
pub(crate) fn declarations<'a>(cursor: &mut Cursor<'_, 'a>) -> Result<Vec<Declaration<'a>>, ParseError> {
    let mut found = vec![one(cursor)?];
    while cursor.take_mark(b',') {
        let name = cursor.word()?;
        let like = Declaration { name, count: Some(1), initial: Vec::new(), ..found[0] };
        found.push(rest(cursor, like)?);
    }
    cursor.expect(b';')?;
    Ok(found)
}

/// Alignment, type, name, array and initial value.
fn one<'a>(cursor: &mut Cursor<'_, 'a>) -> Result<Declaration<'a>, ParseError> {
    let (mut align, mut element, mut vector) = (None, None, 1);
    loop {
        let word = cursor.word()?;
        match word {
            ".align" => align = Some(cursor.integer()?),
            ".v2" => vector = 2,
            ".v4" => vector = 4,
            // How a pointer parameter's target is aligned: of no concern here.
            ".ptr" | ".global" | ".shared" | ".const" | ".local" => {}
            _ if word.starts_with('.') => {
                element = Some(type_bytes(word).ok_or_else(|| cursor.error(format!("unknown type {word}")))?);
            }
            name => {
                let element = element.ok_or_else(|| cursor.error("a variable needs a type"))? * vector;
                // `.ptr .align` comes after the type and is never below it.
                let align = align.unwrap_or(element);
                if !align.is_power_of_two() {
                    return Err(cursor.error("alignment must be a power of two"));
                }
                return rest(cursor, Declaration { name, align, element, count: Some(1), initial: Vec::new() });
            }
        }
        // The alignment of a pointer's target is not the parameter's own.
        if word == ".ptr" {
            while let Some(Token::Word(".global" | ".shared" | ".const" | ".local" | ".align")) = cursor.peek() {
                if cursor.word()? == ".align" {
                    cursor.integer()?;
                }
            }
        }
    }
}

fn rest<'a>(cursor: &mut Cursor<'_, 'a>, mut variable: Declaration<'a>) -> Result<Declaration<'a>, ParseError> {
    while cursor.take_mark(b'[') {
        if cursor.take_mark(b']') {
            variable.count = None;
        } else {
            let size = cursor.integer()?;
            variable.count = variable.count.and_then(|count| count.checked_mul(size));
            cursor.expect(b']')?;
        }
    }
    if cursor.take_mark(b'=') {
        if cursor.take_mark(b'{') {
            loop {
                initial(cursor, &mut variable)?;
                if cursor.take_mark(b'}') {
                    break;
                }
                cursor.expect(b',')?;
            }
        } else {
            initial(cursor, &mut variable)?;
        }
        variable.count = variable.count.or(Some(variable.initial.len() as u32 / variable.element));
    }
    Ok(variable)
}

fn initial(cursor: &mut Cursor<'_, '_>, variable: &mut Declaration<'_>) -> Result<(), ParseError> {
    let negative = cursor.take_mark(b'-');
    let value = match cursor.next()? {
        Token::Integer(value) if negative => value.wrapping_neg(),
        Token::Integer(value) => value,
        Token::Float32(bits) => u64::from(bits),
        Token::Float64(bits) => bits,
        _ => return Err(cursor.error("an initial value must be a number")),
    };
    variable.initial.extend_from_slice(&value.to_le_bytes()[..variable.element.min(8) as usize]);
    Ok(())
}
