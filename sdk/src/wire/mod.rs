//! The wire protocol of the daemon: frames on a Unix stream socket. `docs/protocol.md` gives every byte and the order of the calls.
//!
//! There is no I/O here but [`read_frame`]; descriptors (`SCM_RIGHTS`) are passed by whoever owns the socket. The data of blocks never crosses
//! it. A daemon reads a [`FrameHeader`], then the body, then [`Request::parse`]; it answers with [`Reply::encode_frame`] or
//! [`Refusal::encode_frame`]. What comes through the socket is never trusted: every parser ends with a value or a [`WireError`], reads
//! nothing outside the body, and allocates no more than the body's length warrants.

mod admin;
mod blocks;
mod body;
mod codes;
mod error;
mod frame;
mod manifest;
mod message;
mod session;

pub use admin::{DeleteNamespace, DeleteTenant, DeleteTenantReply, Explain};
pub use blocks::{
    Abort, AbortReply, Acquire, AcquireReply, Await, AwaitReply, Commit, CommitReply, Forgo, Hit, KeyParts, LeaseId,
    Lookup, LookupReply, Pin, PinReply, PrefetchReply, Release, ReleaseReply, Report, ReservationId, Reserve,
    ReserveReply, Reserved, Run, UnpinReply,
};
pub use body::{BATCH_MAX, Batch, Body, Empty, Input, Json, Text, Zero};
pub use codes::{AcceptId, CommitCode, ReserveCode, TierCode, miss_number, miss_of_number};
pub use error::{ReadError, Status, WireError};
pub use frame::{BODY_BYTES_BEFORE_HELLO, BODY_BYTES_MAX, Frame, FrameHeader, MAGIC, read_frame};
pub use manifest::{GROUPS_MAX, LAYERS_MAX, MANIFEST_TEXT_MAX, SLOT_BYTES_MAX};
pub use message::{Kind, Refusal, Reply, Request, SENTENCE_BYTES_MAX};
pub use session::{
    ClassId, ExtentPlace, Hello, HelloReply, MapExtent, MapExtentReply, NAME_BYTES_MAX, OpenNamespace,
    OpenNamespaceReply, Stage, StageReply, Tag, VERSION,
};
