//! Frames: a header of 32 bytes, then the body.
//!
//! | bytes | field |
//! |---|---|
//! | 4 | magic `kvt1` |
//! | 2 | kind |
//! | 2 | flags: bit 0 = reply |
//! | 4 | body length |
//! | 4 | status; zero in requests, and in replies when all went well |
//! | 8 | request id, given back in the reply |
//! | 4 | deadline in milliseconds, 0 = the daemon's default; zero in replies |
//! | 4 | reserved, zero |

use std::io::{self, Read};

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::{ReadError, WireError};

/// How a frame begins.
pub const MAGIC: [u8; 4] = *b"kvt1";
/// The longest body that a daemon takes before it has accepted [`Hello`](super::Hello), in bytes.
pub const BODY_BYTES_BEFORE_HELLO: u32 = 64 << 10;
/// The longest body after that, either way, in bytes.
pub const BODY_BYTES_MAX: u32 = 1 << 20;

const REPLY: u16 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fixed {
    magic: [u8; 4],
    kind: U16,
    flags: U16,
    body_bytes: U32,
    status: U32,
    request_id: U64,
    deadline_ms: U32,
    reserved: U32,
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Number of the kind; it may be one that is not known here, whose body can be skipped.
    pub kind: u16,
    /// True for a reply.
    pub is_reply: bool,
    /// Bytes of the body.
    pub body_bytes: u32,
    /// Of a reply: 0, or the number of a [`Status`](super::Status).
    pub status: u32,
    /// Chosen by the client, given back in the reply.
    pub request_id: u64,
    /// Of a request: milliseconds from its arrival; 0 = the daemon's default.
    pub deadline_ms: u32,
}

impl FrameHeader {
    /// Bytes of a header.
    pub const BYTES: usize = size_of::<Fixed>();

    /// The header's bytes.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let fixed = Fixed {
            magic: MAGIC,
            kind: U16::new(self.kind),
            flags: U16::new(if self.is_reply { REPLY } else { 0 }),
            body_bytes: U32::new(self.body_bytes),
            status: U32::new(self.status),
            request_id: U64::new(self.request_id),
            deadline_ms: U32::new(self.deadline_ms),
            reserved: U32::new(0),
        };
        zerocopy::transmute!(fixed)
    }

    /// Reads a header whose body may have at most `body_limit` bytes. After an error the stream has lost its place: the connection ends.
    ///
    /// Errors: [`WireError::Magic`], [`WireError::Flags`], [`WireError::NotZero`], [`WireError::BodyLength`].
    pub fn parse(bytes: &[u8; Self::BYTES], body_limit: u32) -> Result<FrameHeader, WireError> {
        let fixed: Fixed = zerocopy::transmute!(*bytes);
        if fixed.magic != MAGIC {
            return Err(WireError::Magic { found: fixed.magic });
        }
        let flags = fixed.flags.get();
        if flags & !REPLY != 0 {
            return Err(WireError::Flags { found: flags });
        }
        let is_reply = flags == REPLY;
        let zeros = [
            ("reserved", fixed.reserved, true),
            ("status", fixed.status, !is_reply),
            ("deadline_ms", fixed.deadline_ms, is_reply),
        ];
        if let Some((field, found, _)) = zeros.into_iter().find(|(_, found, is_due)| *is_due && found.get() != 0) {
            return Err(WireError::NotZero { field, found: found.get() });
        }
        if fixed.body_bytes.get() > body_limit {
            let found_bytes = u64::from(fixed.body_bytes.get());
            return Err(WireError::BodyLength { found_bytes, limit_bytes: body_limit });
        }
        Ok(FrameHeader {
            kind: fixed.kind.get(),
            is_reply,
            body_bytes: fixed.body_bytes.get(),
            status: fixed.status.get(),
            request_id: fixed.request_id.get(),
            deadline_ms: fixed.deadline_ms.get(),
        })
    }
}

/// A whole frame in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Its header.
    pub header: FrameHeader,
    /// Its body.
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The frame at the start of `bytes` and what stands behind it; `None` while it is not all there. Errors: as [`FrameHeader::parse`].
    pub fn parse(bytes: &'a [u8], body_limit: u32) -> Result<Option<(Frame<'a>, &'a [u8])>, WireError> {
        let Some((header, rest)) = bytes.split_first_chunk() else {
            return Ok(None);
        };
        let header = FrameHeader::parse(header, body_limit)?;
        let split = rest.split_at_checked(header.body_bytes as usize);
        Ok(split.map(|(body, rest)| (Frame { header, body }, rest)))
    }
}

/// Appends a frame to `out`; `body` appends the body to what it is given. Its length replaces the header's.
///
/// Errors: [`WireError::BodyLength`] above [`BODY_BYTES_MAX`]; `out` is then as it was.
pub(super) fn append_frame(
    header: FrameHeader,
    out: &mut Vec<u8>,
    body: impl FnOnce(&mut Vec<u8>),
) -> Result<(), WireError> {
    let start = out.len();
    out.extend_from_slice(&header.encode());
    body(out);
    let found_bytes = (out.len() - start - FrameHeader::BYTES) as u64;
    if found_bytes > u64::from(BODY_BYTES_MAX) {
        out.truncate(start);
        return Err(WireError::BodyLength { found_bytes, limit_bytes: BODY_BYTES_MAX });
    }
    let header = FrameHeader { body_bytes: found_bytes as u32, ..header };
    out[start..start + FrameHeader::BYTES].copy_from_slice(&header.encode());
    Ok(())
}

/// Reads one frame; its body replaces what `body` held, whose capacity never grows past `body_limit`. `None` when the stream ends where
/// a frame would begin.
///
/// Errors: [`ReadError`]. The reader's own time-outs are errors too; what was read by then is lost.
pub fn read_frame(
    reader: &mut impl Read,
    body_limit: u32,
    body: &mut Vec<u8>,
) -> Result<Option<FrameHeader>, ReadError> {
    let mut bytes = [0; FrameHeader::BYTES];
    if read_one(reader, &mut bytes[..1])? == 0 {
        return Ok(None);
    }
    reader.read_exact(&mut bytes[1..])?;
    let header = FrameHeader::parse(&bytes, body_limit)?;
    body.clear();
    body.reserve_exact(header.body_bytes as usize);
    body.resize(header.body_bytes as usize, 0);
    reader.read_exact(body)?;
    Ok(Some(header))
}

fn read_one(reader: &mut impl Read, target: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(target) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            ended => return ended,
        }
    }
}
