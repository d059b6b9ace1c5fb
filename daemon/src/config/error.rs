//! Why there is no configuration.

use std::io;
use std::path::PathBuf;

use crate::config::Origin;

/// Errors of settings. Text reads after "failed to"; each names what is wrong, where it was said, and the fix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read the settings in {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("read the settings in {}, line {line}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1 on.
        line: usize,
        /// What is wrong with it.
        message: String,
    },
    /// A key, or a variable of our prefix, that there is not.
    #[error("use `{name}`{}: there is no such {kind}; {fix}", place(origin))]
    Unknown {
        /// `setting` or `variable`.
        kind: &'static str,
        /// As it was written.
        name: String,
        /// Where.
        origin: Origin,
        /// The nearest one that there is, or where they are listed.
        fix: String,
    },
    /// A value that a key does not take.
    #[error("use {key} = {value}, from {origin}: {problem}")]
    Value {
        /// The key.
        key: &'static str,
        /// As it was written.
        value: String,
        /// Where.
        origin: Origin,
        /// What is wrong with it and what is taken.
        problem: String,
    },
    /// The machine does not tell what a default is made from.
    #[error("choose a default: {problem}")]
    Machine {
        /// What is missing, and what to give instead.
        problem: String,
    },
}

/// A variable is its own place.
fn place(origin: &Origin) -> String {
    match origin {
        Origin::Environment(_) => String::new(),
        origin => format!(", from {origin}"),
    }
}
