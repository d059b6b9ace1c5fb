//! Why a call was not done: a code for programs, a sentence for people.

use std::io;

use crate::client::CallError;
use crate::wire::Status;

/// Why a plugin's call was not done. A block that is not there is no error but a miss. Text reads after "failed to".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PluginError {
    /// The daemon did not do it.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Arguments that make no sense, which is the caller's bug.
    #[error("use what was given: {reason}")]
    Usage {
        /// Why.
        reason: String,
    },
    /// The plugin was opened by another process, of which this one is a copy.
    #[error("use a connection across a fork: open one in each process")]
    Forked,
    /// The plugin was closed.
    #[error("use a client that was closed")]
    Closed,
}

/// Codes of [`PluginError::code`], for interfaces that number them.
pub mod codes {
    /// There is no daemon, or it went away during the call.
    pub const NOT_CONNECTED: &str = "not_connected";
    /// Not done in time.
    pub const DEADLINE: &str = "deadline";
    /// Reading or writing the socket failed in another way.
    pub const IO: &str = "io";
    /// The daemon speaks another language.
    pub const PROTOCOL: &str = "protocol";
    /// The daemon sends memory that cannot be used.
    pub const MEMORY: &str = "memory";
    /// Arguments that make no sense.
    pub const USAGE: &str = "usage";
    /// Used across a fork.
    pub const FORKED: &str = "forked";
    /// Used after it was closed.
    pub const CLOSED: &str = "closed";
}

impl PluginError {
    pub(crate) fn usage(reason: impl Into<String>) -> PluginError {
        PluginError::Usage { reason: reason.into() }
    }

    /// One of [`codes`], or `refused:` and the name of the status with which the daemon refuses, such as `refused:Full`.
    pub fn code(&self) -> String {
        let code = match self {
            PluginError::Call(CallError::NotConnected) => codes::NOT_CONNECTED,
            PluginError::Call(CallError::Late) => codes::DEADLINE,
            PluginError::Call(CallError::Refused { status: Status::Deadline, .. }) => codes::DEADLINE,
            PluginError::Call(CallError::Refused { status, .. }) => return format!("refused:{status:?}"),
            PluginError::Call(CallError::Io(error)) => of_io(error.kind()),
            PluginError::Call(CallError::Wire(_)) => codes::PROTOCOL,
            PluginError::Call(CallError::Memory { .. }) => codes::MEMORY,
            PluginError::Usage { .. } => codes::USAGE,
            PluginError::Forked => codes::FORKED,
            PluginError::Closed => codes::CLOSED,
        };
        code.to_owned()
    }

    /// The error and its causes in one sentence.
    pub fn sentence(&self) -> String {
        let mut text = format!("failed to {self}");
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    /// True when the daemon is gone, or never was there.
    pub(crate) fn is_absence(&self) -> bool {
        [codes::NOT_CONNECTED, codes::DEADLINE, codes::IO].contains(&&self.code()[..])
    }
}

fn of_io(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => codes::DEADLINE,
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::NotConnected => codes::NOT_CONNECTED,
        _ => codes::IO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_dies_during_a_call_is_not_connected() {
        let of = |kind: io::ErrorKind| PluginError::from(CallError::from(io::Error::from(kind)));
        assert_eq!(of(io::ErrorKind::UnexpectedEof).code(), "not_connected");
        assert_eq!(of(io::ErrorKind::TimedOut).code(), "deadline");
        assert_eq!(of(io::ErrorKind::InvalidData).code(), "io");
        let refused = CallError::Refused { status: Status::Draining, sentence: "go on".to_owned() };
        assert_eq!(PluginError::from(refused).code(), "refused:Draining");
        assert_eq!(of(io::ErrorKind::TimedOut).sentence(), "failed to talk to the daemon: timed out");
    }
}
