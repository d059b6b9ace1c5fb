//! Errors of the disk tier, and how operations end that do not end well.

use cache_core::header::CheckFailure;
use cache_core::miss::MissReason;
use cache_core::store::ErrorKind;

use crate::io::{IoError, OpenError};

/// What went wrong with the tier as a whole. Text reads after "failed to".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// Less than the tier needs to work.
    #[error("open a disk tier of {found_bytes} bytes: it needs at least {minimum_bytes}")]
    Budget {
        /// The budget that was asked for.
        found_bytes: u64,
        /// The least there is.
        minimum_bytes: u64,
    },
    /// The store there was made for a larger budget: this one does not hold enough of its segments. Nothing was touched.
    #[error(
        "open the disk tier with {budget_bytes} bytes: the store there was made for more and needs at least \
         {needed_bytes} bytes; give it those, or use another folder, or remove the store"
    )]
    BudgetOfStore {
        /// The budget that was asked for.
        budget_bytes: u64,
        /// The least under which the store can be opened as it is.
        needed_bytes: u64,
    },
    /// A sound superblock of another format version. Nothing was touched.
    #[error("open the disk tier: it has format version {found}, this program reads version {supported}")]
    Version {
        /// The version on disk.
        found: u32,
        /// The version of this program.
        supported: u32,
    },
    /// The directory cannot be used; another process that holds it among the reasons.
    #[error("open the disk tier")]
    Open(#[source] OpenError),
    /// The directory cannot be listed or a file not made.
    #[error("{what}")]
    Files {
        /// What was tried.
        what: &'static str,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// An operation on the medium failed.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The medium's word.
        #[source]
        source: IoError,
    },
    /// There is no store here.
    #[error("find a store: no superblock is sound")]
    NoStore,
    /// A thread could not be started.
    #[error("start the log's thread")]
    Thread(#[source] std::io::Error),
    /// The tier is offline.
    #[error("use the disk tier: it is offline ({reason})")]
    Offline {
        /// Why.
        reason: String,
    },
    /// The tier was closed.
    #[error("use a closed disk tier")]
    Closed,
}

impl DiskError {
    /// What the caller should do.
    pub fn kind(&self) -> ErrorKind {
        match self {
            DiskError::Budget { .. } | DiskError::BudgetOfStore { .. } => ErrorKind::Bug,
            DiskError::Version { .. } | DiskError::NoStore => ErrorKind::Corrupt,
            DiskError::Offline { .. } => ErrorKind::Retry,
            _ => ErrorKind::Closed,
        }
    }
}

/// Why a write was not taken although there is room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The key was offered for the first time ([`crate::Admission::SecondHit`]).
    Admission,
    /// The write-rate limit.
    Limit,
    /// The index is still being read.
    Recovering,
    /// Another write of this key is under way.
    PendingElsewhere,
    /// Too many operations are under way or not polled yet.
    Busy,
    /// The image is larger than a segment holds.
    TooLarge,
}

/// How an operation ended that did not do what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskEnd {
    /// Nothing to read.
    Miss(MissReason),
    /// No room, and none can be made: every segment holds too much that is pinned, or the queue is full.
    Full,
    /// Not let in.
    Refused(Refusal),
    /// The tier is offline or closed.
    Offline,
    /// The bytes to write do not verify.
    Damaged(CheckFailure),
    /// The memory has another size than the image or the span.
    Size {
        /// What is needed.
        expected_bytes: u64,
        /// What was given.
        found_bytes: u64,
    },
    /// The medium failed.
    Failed(IoError),
}
