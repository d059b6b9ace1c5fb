//! Requests and replies: which body belongs to which kind of frame.

use super::admin::{DeleteNamespace, DeleteTenant, DeleteTenantReply, Explain};
use super::blocks::{
    Abort, AbortReply, Acquire, AcquireReply, Await, AwaitReply, Commit, CommitReply, Forgo, Lookup, LookupReply, Pin,
    PinReply, PrefetchReply, Release, ReleaseReply, Report, Reserve, ReserveReply, UnpinReply,
};
use super::body::{Body, Empty, Input, Json};
use super::error::{Status, WireError};
use super::frame::{FrameHeader, append_frame};
use super::session::{
    Hello, HelloReply, MapExtent, MapExtentReply, OpenNamespace, OpenNamespaceReply, Stage, StageReply, Tag,
};

/// The longest sentence of a refusal, in bytes.
pub const SENTENCE_BYTES_MAX: usize = 512;

macro_rules! messages {
    ($($number:literal $name:literal $(#[$doc:meta])* $kind:ident: $request:ty => $reply:ty,)*) => {
        /// What a frame is about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum Kind {
            $($(#[$doc])* $kind = $number,)*
        }

        impl Kind {
            /// Every kind, in the order of the numbers.
            pub const ALL: &'static [Kind] = &[$(Kind::$kind),*];

            /// Name in logs and metrics.
            pub fn name(self) -> &'static str {
                match self {
                    $(Kind::$kind => $name,)*
                }
            }
        }

        /// A request.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Request<'a> {
            $($(#[$doc])* $kind($request),)*
        }

        impl<'a> Request<'a> {
            /// Its kind.
            pub fn kind(&self) -> Kind {
                match self {
                    $(Request::$kind(_) => Kind::$kind,)*
                }
            }

            fn encode_body(&self, out: &mut Vec<u8>) {
                match self {
                    $(Request::$kind(body) => body.encode(out),)*
                }
            }

            fn parse_body(kind: Kind, body: &'a [u8]) -> Result<Request<'a>, WireError> {
                match kind {
                    $(Kind::$kind => Body::decode(body).map(Request::$kind),)*
                }
            }
        }

        /// What a request that was done is answered with.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Reply<'a> {
            $(
                #[doc = concat!("To [`Request::", stringify!($kind), "`].")]
                $kind($reply),
            )*
        }

        impl<'a> Reply<'a> {
            /// The kind of its request.
            pub fn kind(&self) -> Kind {
                match self {
                    $(Reply::$kind(_) => Kind::$kind,)*
                }
            }

            fn encode_body(&self, out: &mut Vec<u8>) {
                match self {
                    $(Reply::$kind(body) => body.encode(out),)*
                }
            }

            fn parse_body(kind: Kind, body: &'a [u8]) -> Result<Reply<'a>, WireError> {
                match kind {
                    $(Kind::$kind => Body::decode(body).map(Reply::$kind),)*
                }
            }
        }
    };
}

messages! {
    1 "hello" /// The first request of a connection.
    Hello: Hello<'a> => HelloReply,
    2 "open_namespace" /// Opens a namespace and a class of slots.
    OpenNamespace: Box<OpenNamespace> => OpenNamespaceReply,
    3 "map_extent" /// Asks for an extent's descriptor.
    MapExtent: MapExtent => MapExtentReply,
    4 "lookup" /// Longest run of copies that are there.
    Lookup: Lookup<'a> => LookupReply<'a>,
    5 "acquire" /// Leases that run.
    Acquire: Acquire<'a> => AcquireReply<'a>,
    6 "release" /// Ends leases.
    Release: Release<'a> => ReleaseReply,
    7 "reserve" /// Places to write blocks to.
    Reserve: Reserve<'a> => ReserveReply<'a>,
    8 "commit" /// Blocks are written.
    Commit: Commit<'a> => CommitReply<'a>,
    9 "abort" /// Blocks will not be written.
    Abort: Abort<'a> => AbortReply,
    10 "await" /// Waits for a block that another client writes.
    Await: Await => AwaitReply,
    11 "prefetch" /// Brings blocks into the host arena.
    Prefetch: Acquire<'a> => PrefetchReply,
    12 "pin" /// Keeps blocks from being evicted.
    Pin: Pin<'a> => PinReply,
    13 "unpin" /// The end of that.
    Unpin: Lookup<'a> => UnpinReply,
    14 "delete_namespace" /// Deletes a namespace.
    DeleteNamespace: DeleteNamespace => Empty,
    15 "delete_tenant" /// Deletes a tenant.
    DeleteTenant: DeleteTenant => DeleteTenantReply,
    16 "stats" /// Statistics.
    Stats: Empty => Json<'a>,
    17 "explain" /// Why blocks are or are not there.
    Explain: Explain<'a> => Json<'a>,
    18 "drain" /// Makes the daemon end in good order.
    Drain: Empty => Empty,
    19 "report" /// A leased copy was not what it should be.
    Report: Report => Empty,
    20 "tag" /// Which request of the client's own the next calls belong to.
    Tag: Tag<'a> => Empty,
    21 "forgo" /// Blocks are computed although they are there.
    Forgo: Forgo<'a> => Empty,
    22 "stage" /// Asks for more staging memory.
    Stage: Stage => StageReply,
}

impl Kind {
    /// The number in a frame's header.
    pub fn number(self) -> u16 {
        self as u16
    }

    /// The kind of a number. Errors: [`WireError::Kind`].
    pub fn of_number(found: u16) -> Result<Kind, WireError> {
        Kind::ALL.iter().copied().find(|kind| kind.number() == found).ok_or(WireError::Kind { found })
    }
}

impl<'a, T: Body<'a>> Body<'a> for Box<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        T::encode(self, out);
    }

    fn read(input: &mut Input<'a>) -> Result<Box<T>, WireError> {
        T::read(input).map(Box::new)
    }
}

impl<'a> Request<'a> {
    /// Reads the request in the frame of `header`. Errors: [`WireError`]; the frame itself was sound, so the next one can be read.
    pub fn parse(header: &FrameHeader, body: &'a [u8]) -> Result<Request<'a>, WireError> {
        if header.is_reply {
            return Err(WireError::Direction { is_reply: true });
        }
        Request::parse_body(Kind::of_number(header.kind)?, body)
    }

    /// Appends the request's frame to `out`. `deadline_ms`: from its arrival; 0 = the daemon's default. Errors: [`WireError::BodyLength`].
    pub fn encode_frame(&self, request_id: u64, deadline_ms: u32, out: &mut Vec<u8>) -> Result<(), WireError> {
        let kind = self.kind().number();
        let header = FrameHeader { kind, is_reply: false, body_bytes: 0, status: 0, request_id, deadline_ms };
        append_frame(header, out, |out| self.encode_body(out))
    }
}

impl<'a> Reply<'a> {
    /// Reads the reply, or refusal, in the frame of `header`. Errors: [`WireError`]: the daemon cannot be understood.
    pub fn parse(header: &FrameHeader, body: &'a [u8]) -> Result<Result<Reply<'a>, Refusal<'a>>, WireError> {
        if !header.is_reply {
            return Err(WireError::Direction { is_reply: false });
        }
        if header.status == 0 {
            return Reply::parse_body(Kind::of_number(header.kind)?, body).map(Ok);
        }
        let status = Status::of_number(header.status)?;
        let sentence = str::from_utf8(body).map_err(|_| WireError::Text { field: "refusal" })?;
        if sentence.len() > SENTENCE_BYTES_MAX {
            let found = sentence.len() as u64;
            return Err(WireError::TooMany { field: "refusal", found, most: SENTENCE_BYTES_MAX as u64 });
        }
        Ok(Err(Refusal { status, sentence }))
    }

    /// Appends the reply's frame to `out`. Errors: [`WireError::BodyLength`].
    pub fn encode_frame(&self, request_id: u64, out: &mut Vec<u8>) -> Result<(), WireError> {
        let kind = self.kind().number();
        let header = FrameHeader { kind, is_reply: true, body_bytes: 0, status: 0, request_id, deadline_ms: 0 };
        append_frame(header, out, |out| self.encode_body(out))
    }
}

/// What a request that was not done is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal<'a> {
    status: Status,
    sentence: &'a str,
}

impl<'a> Refusal<'a> {
    /// `sentence` is cut after [`SENTENCE_BYTES_MAX`] bytes, or a little before them where a character stands across that place.
    pub fn new(status: Status, sentence: &'a str) -> Refusal<'a> {
        Refusal { status, sentence: &sentence[..sentence.floor_char_boundary(SENTENCE_BYTES_MAX)] }
    }

    /// For programs.
    pub fn status(&self) -> Status {
        self.status
    }

    /// For people.
    pub fn sentence(&self) -> &'a str {
        self.sentence
    }

    /// Appends the refusal's frame to `out`. `kind` and `request_id` are the request's, whatever they are; both 0 when its header could not be
    /// read.
    pub fn encode_frame(&self, kind: u16, request_id: u64, out: &mut Vec<u8>) {
        let status = self.status.number();
        let header = FrameHeader { kind, is_reply: true, body_bytes: 0, status, request_id, deadline_ms: 0 };
        append_frame(header, out, |out| out.extend_from_slice(self.sentence.as_bytes()))
            .expect("a sentence is shorter than a body may be");
    }
}
