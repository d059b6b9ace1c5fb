//! What can be wrong with bytes that came through the socket.

use std::io;

/// Why bytes are no frame, or no body of their kind. Text reads after "failed to".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// Another protocol, or a reader that lost its place.
    #[error("read a frame: it begins with {found:02x?}, not with `kvt1`")]
    Magic {
        /// Its first bytes.
        found: [u8; 4],
    },
    /// Flags that are not known.
    #[error("read a frame: of the flags {found:#06x} only bit 0 has a meaning")]
    Flags {
        /// All of them.
        found: u16,
    },
    /// A field of the header that must be zero in such a frame.
    #[error("read a frame: `{field}` must be zero here, not {found}")]
    NotZero {
        /// Which field.
        field: &'static str,
        /// What it holds.
        found: u32,
    },
    /// A body that is longer than the connection takes.
    #[error("take a body of {found_bytes} bytes: {limit_bytes} are the most")]
    BodyLength {
        /// As the header says.
        found_bytes: u64,
        /// The limit.
        limit_bytes: u32,
    },
    /// A kind that is not known.
    #[error("read a frame: there is no kind {found}")]
    Kind {
        /// The number.
        found: u16,
    },
    /// A reply where a request was due, or the other way round.
    #[error("read a frame: a {} is due here", if *.is_reply { "request" } else { "reply" })]
    Direction {
        /// True when it is a reply.
        is_reply: bool,
    },
    /// A status that is not known.
    #[error("read a reply: there is no status {found}")]
    Status {
        /// The number.
        found: u32,
    },
    /// The body ends inside a field.
    #[error("read `{field}`: the body ends inside it")]
    Truncated {
        /// Which field.
        field: &'static str,
    },
    /// The body goes on behind its last field.
    #[error("read the body: {bytes} bytes stand behind its last field")]
    Trailing {
        /// How many bytes.
        bytes: usize,
    },
    /// A count or length above its limit.
    #[error("read `{field}`: {found} is more than {most}")]
    TooMany {
        /// Which field.
        field: &'static str,
        /// The count or length.
        found: u64,
        /// The limit.
        most: u64,
    },
    /// A number, or the value of a row, that stands for nothing.
    #[error("read `{field}`: it has a value that means nothing")]
    Value {
        /// Which field.
        field: &'static str,
    },
    /// Text that is none, or that has control characters where a name is due.
    #[error("read `{field}`: it is not text of the kind that is due")]
    Text {
        /// Which field.
        field: &'static str,
    },
    /// Fields that contradict each other.
    #[error("take the body: {contradiction}")]
    Contradiction {
        /// What is wrong.
        contradiction: &'static str,
    },
}

/// Why no frame could be read from a stream. Text reads after "failed to".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The stream failed, or ended inside a frame ([`io::ErrorKind::UnexpectedEof`]).
    #[error("read from the socket")]
    Io(#[from] io::Error),
    /// What came is no frame; the stream has lost its place.
    #[error(transparent)]
    Wire(#[from] WireError),
}

/// Why a request was not done. A block that is not there is no refusal but a miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// The frame or its body is not as it should be, or comes before its turn.
    BadFrame,
    /// No version that both sides speak.
    BadVersion,
    /// The peer may not do this.
    Denied,
    /// A namespace, class or extent that was not opened on this connection.
    UnknownNamespace,
    /// A lease that this connection does not hold.
    UnknownLease,
    /// A reservation that this connection does not hold.
    UnknownReservation,
    /// No room.
    Full,
    /// The tenant's or the connection's share is used up.
    Quota,
    /// Bytes that do not verify.
    Check,
    /// Not done in time.
    Deadline,
    /// The daemon is about to end.
    Draining,
    /// The daemon is still reading its index.
    Recovering,
    /// The request or its reply is longer than a frame may be.
    TooLarge,
    /// The daemon failed.
    Internal,
}

impl Status {
    /// Every status, in the order of the numbers.
    pub const ALL: [Status; 14] = [
        Status::BadFrame,
        Status::BadVersion,
        Status::Denied,
        Status::UnknownNamespace,
        Status::UnknownLease,
        Status::UnknownReservation,
        Status::Full,
        Status::Quota,
        Status::Check,
        Status::Deadline,
        Status::Draining,
        Status::Recovering,
        Status::TooLarge,
        Status::Internal,
    ];

    /// The number in a frame's header. 0 is none of them: it says that all went well.
    pub fn number(self) -> u32 {
        match self {
            Status::BadFrame => 1,
            Status::BadVersion => 2,
            Status::Denied => 3,
            Status::UnknownNamespace => 4,
            Status::UnknownLease => 5,
            Status::UnknownReservation => 6,
            Status::Full => 7,
            Status::Quota => 8,
            Status::Check => 9,
            Status::Deadline => 10,
            Status::Draining => 11,
            Status::Recovering => 12,
            Status::TooLarge => 13,
            Status::Internal => 14,
        }
    }

    /// The status of a number. Errors: [`WireError::Status`].
    pub fn of_number(found: u32) -> Result<Status, WireError> {
        Status::ALL.into_iter().find(|status| status.number() == found).ok_or(WireError::Status { found })
    }
}
