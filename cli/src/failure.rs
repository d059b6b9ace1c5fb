//! How a command ends when it cannot do what was asked.

use std::fmt::Display;

use kvtier_engine::EngineError;

/// A failure with its exit code: 2 for bad input, 3 for a request that could not be finished.
#[derive(Debug)]
pub struct Failure {
    /// Exit code.
    pub code: u8,
    /// One to four lines that name the thing and the fix.
    pub message: String,
}

impl Failure {
    /// Bad input.
    pub fn input(message: impl Display) -> Failure {
        Failure { code: 2, message: message.to_string() }
    }

    /// The text of an error and its causes, in one line.
    pub fn from_error(error: &(dyn std::error::Error + 'static), code: u8) -> Failure {
        Failure { code, message: kvtier_daemon::command::sentence(error) }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Failure {
        let code = if error.is_unfinished() { 3 } else { 2 };
        Failure::from_error(&error, code)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::from_error(&error, 3)
    }
}
