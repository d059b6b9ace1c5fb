//! Why the arena cannot be opened.

use std::io;

/// Errors of opening the arena or sharing it. Text reads after "failed to".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The budget does not hold one block with its metadata.
    #[error(
        "fit a block of {slot_bytes} bytes into {budget_bytes} bytes of host memory: give at least {minimum_bytes} bytes"
    )]
    Budget {
        /// What was given.
        budget_bytes: u64,
        /// The slot image of one block.
        slot_bytes: u64,
        /// The smallest budget that works.
        minimum_bytes: u64,
    },
    /// Memory that another process offers is not what it should be.
    #[error("trust memory of another process: {what}")]
    Untrusted {
        /// What is wrong with it.
        what: &'static str,
    },
    /// The kernel refused memory.
    #[error("{what} of {bytes} bytes for the host arena")]
    Memory {
        /// The call.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}
