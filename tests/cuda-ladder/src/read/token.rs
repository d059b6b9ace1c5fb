//! PTX text into tokens, each with its line.

use crate::module::ParseError;

/// A token of PTX. Opcodes with their modifiers (`ld.global.v4.f32`), registers and labels are one [`Token::Word`] each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Token<'a> {
    /// A name: opcode, directive, register, label, symbol.
    Word(&'a str),
    /// An integer, as the 64 bits it has.
    Integer(u64),
    /// `0f` and eight digits.
    Float32(u32),
    /// `0d` and sixteen digits, or a decimal fraction.
    Float64(u64),
    /// A text between quotes.
    Text(&'a str),
    /// Any other character.
    Mark(u8),
}

/// A token and the line it stands on, from 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed<'a> {
    pub(crate) token: Token<'a>,
    pub(crate) line: u32,
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

/// All tokens of a text; comments are dropped. Errors: an open comment or text, a malformed number.
pub(crate) fn tokens(text: &str) -> Result<Vec<Placed<'_>>, ParseError> {
    let bytes = text.as_bytes();
    let (mut at, mut line, mut found) = (0, 1, Vec::new());
    while at < bytes.len() {
        let rest = &bytes[at..];
        match rest[0] {
            b'\n' => {
                line += 1;
                at += 1;
            }
            // Callers of the driver hand over C strings.
            byte if byte.is_ascii_whitespace() || byte == 0 => at += 1,
            b'/' if rest.starts_with(b"//") => at += rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()),
            b'/' if rest.starts_with(b"/*") => {
                let length = text[at..].find("*/").ok_or_else(|| ParseError::at(line, "open comment"))? + 2;
                line += count_lines(&rest[..length]);
                at += length;
            }
            b'"' => {
                let length =
                    rest[1..].iter().position(|byte| *byte == b'"').ok_or_else(|| ParseError::at(line, "open text"))?;
                found.push(Placed { token: Token::Text(&text[at + 1..at + 1 + length]), line });
                line += count_lines(&rest[..length]);
                at += length + 2;
            }
            byte if is_word(byte) => {
                let length = word_length(rest);
                let word = &text[at..at + length];
                let token = if byte.is_ascii_digit() { number(word, line)? } else { Token::Word(word) };
                found.push(Placed { token, line });
                at += length;
            }
            byte => {
                found.push(Placed { token: Token::Mark(byte), line });
                at += 1;
            }
        }
    }
    Ok(found)
}

fn count_lines(bytes: &[u8]) -> u32 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u32
}

/// `::` belongs to the word (`.shared::cta`, `.L2::128B`), a single colon does not (`label:`).
fn word_length(bytes: &[u8]) -> usize {
    let mut length = 0;
    while length < bytes.len() {
        if is_word(bytes[length]) {
            length += 1;
        } else if bytes[length..].starts_with(b"::") {
            length += 2;
        } else {
            break;
        }
    }
    length
}

fn number<'a>(word: &str, line: u32) -> Result<Token<'a>, ParseError> {
    let bad = || ParseError::at(line, format!("malformed number {word}"));
    let digits = |from: usize, radix| u64::from_str_radix(word[from..].trim_end_matches('U'), radix).map_err(|_| bad());
    let lower = word.get(..2).map(str::to_ascii_lowercase);
    Ok(match lower.as_deref() {
        Some("0f") => Token::Float32(u32::from_str_radix(&word[2..], 16).map_err(|_| bad())?),
        Some("0d") => Token::Float64(digits(2, 16)?),
        Some("0x") => Token::Integer(digits(2, 16)?),
        Some("0b") => Token::Integer(digits(2, 2)?),
        _ if word.contains(['.', 'e', 'E']) => Token::Float64(word.parse::<f64>().map_err(|_| bad())?.to_bits()),
        _ if word.len() > 1 && word.starts_with('0') => Token::Integer(digits(1, 8)?),
        _ => Token::Integer(digits(0, 10)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(text: &str) -> Vec<Token<'_>> {
        tokens(text).unwrap().into_iter().map(|placed| placed.token).collect()
    }

    #[test]
    fn words_numbers_and_marks() {
        assert_eq!(
            plain("ld.global.L2::128B.v2.f32 {%f1, %f2}, [%rd1+-16]; // gone"),
            [
                Token::Word("ld.global.L2::128B.v2.f32"),
                Token::Mark(b'{'),
                Token::Word("%f1"),
                Token::Mark(b','),
                Token::Word("%f2"),
                Token::Mark(b'}'),
                Token::Mark(b','),
                Token::Mark(b'['),
                Token::Word("%rd1"),
                Token::Mark(b'+'),
                Token::Mark(b'-'),
                Token::Integer(16),
                Token::Mark(b']'),
                Token::Mark(b';'),
            ]
        );
        assert_eq!(
            plain("0f3F800000 0d3FF0000000000000 0xFFU 017 0b101 1.5 42"),
            [
                Token::Float32(0x3F80_0000),
                Token::Float64(0x3FF0_0000_0000_0000),
                Token::Integer(255),
                Token::Integer(15),
                Token::Integer(5),
                Token::Float64(1.5f64.to_bits()),
                Token::Integer(42),
            ]
        );
        assert_eq!(plain("$L__BB0_2:"), [Token::Word("$L__BB0_2"), Token::Mark(b':')]);
    }

    #[test]
    fn lines_are_counted_through_comments() {
        let found = tokens("a\n/* b\n c */ d\ne").unwrap();
        assert_eq!(found.iter().map(|placed| placed.line).collect::<Vec<_>>(), [1, 3, 4]);
        assert!(tokens("/* open").is_err() && tokens("\"open").is_err() && tokens("0fXY").is_err());
    }
}
