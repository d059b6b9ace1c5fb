//! A place in the tokens.

use super::token::{Placed, Token};
use crate::module::ParseError;

/// Reads tokens one after the other.
#[derive(Clone)]
pub(crate) struct Cursor<'t, 'a> {
    tokens: &'t [Placed<'a>],
    pub(crate) at: usize,
}

impl<'t, 'a> Cursor<'t, 'a> {
    pub(crate) fn new(tokens: &'t [Placed<'a>], at: usize) -> Cursor<'t, 'a> {
        Cursor { tokens, at }
    }

    /// Line of the token that comes next, or of the last one.
    pub(crate) fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |placed| placed.line)
    }

    pub(crate) fn error(&self, reason: impl Into<String>) -> ParseError {
        let before = self.at.checked_sub(1).and_then(|at| self.tokens.get(at));
        ParseError::at(before.map_or(1, |placed| placed.line), reason)
    }

    pub(crate) fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).map(|placed| placed.token)
    }

    pub(crate) fn next(&mut self) -> Result<Token<'a>, ParseError> {
        let token = self.peek().ok_or_else(|| self.error("the text ends too early"))?;
        self.at += 1;
        Ok(token)
    }

    pub(crate) fn take_mark(&mut self, mark: u8) -> bool {
        let is_next = self.peek() == Some(Token::Mark(mark));
        self.at += usize::from(is_next);
        is_next
    }

    pub(crate) fn expect(&mut self, mark: u8) -> Result<(), ParseError> {
        match self.next()? {
            Token::Mark(found) if found == mark => Ok(()),
            found => Err(self.error(format!("expected {}, found {found:?}", mark as char))),
        }
    }

    pub(crate) fn word(&mut self) -> Result<&'a str, ParseError> {
        match self.next()? {
            Token::Word(word) => Ok(word),
            found => Err(self.error(format!("expected a name, found {found:?}"))),
        }
    }

    pub(crate) fn integer(&mut self) -> Result<u32, ParseError> {
        match self.next()? {
            Token::Integer(value) => u32::try_from(value).map_err(|_| self.error("number too large")),
            found => Err(self.error(format!("expected a number, found {found:?}"))),
        }
    }

    /// Skips a block between braces, the opening one included.
    pub(crate) fn skip_braces(&mut self) -> Result<(), ParseError> {
        self.expect(b'{')?;
        let mut depth = 1;
        while depth > 0 {
            match self.next()? {
                Token::Mark(b'{') => depth += 1,
                Token::Mark(b'}') => depth -= 1,
                _ => {}
            }
        }
        Ok(())
    }

    /// Skips up to and with a semicolon.
    pub(crate) fn skip_statement(&mut self) -> Result<(), ParseError> {
        while self.next()? != Token::Mark(b';') {}
        Ok(())
    }
}
