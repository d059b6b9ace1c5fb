//! One connection to a daemon: calls with deadlines. Whatever goes wrong, the connection is not used again.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::socket::{self, Descriptors};
use crate::wire::{
    BODY_BYTES_MAX, FrameHeader, Hello, HelloReply, Reply, Request, Status, Text, VERSION, WireError, Zero,
};

/// What a late answer is waited for beyond its deadline.
const GRACE: Duration = Duration::from_millis(250);

/// Why a call was not done. Text reads after "failed to".
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// There is no connection just now.
    #[error("reach the daemon: it is not connected")]
    NotConnected,
    /// The connection failed, or the answer did not come in time.
    #[error("talk to the daemon")]
    Io(#[from] io::Error),
    /// The daemon answers something that is no answer.
    #[error("understand the daemon")]
    Wire(#[from] WireError),
    /// There was no time left to begin with it.
    #[error("have the daemon do it: the time for it is over")]
    Late,
    /// The daemon refuses.
    #[error("have the daemon do it: {sentence}")]
    Refused {
        /// For programs.
        status: Status,
        /// For people.
        sentence: String,
    },
    /// The daemon sends memory that cannot be used.
    #[error("use the daemon's memory: {reason}")]
    Memory {
        /// Why.
        reason: String,
    },
}

impl CallError {
    /// True when the connection is as good as before. One to a daemon that is about to end is not: it waits for its clients to go.
    pub(crate) fn is_harmless(&self) -> bool {
        if matches!(self, CallError::Refused { status: Status::Draining, .. }) {
            return false;
        }
        matches!(self, CallError::Refused { .. } | CallError::Memory { .. } | CallError::Late)
    }
}

/// A connection that was introduced.
pub(crate) struct Link {
    stream: UnixStream,
    hello: HelloReply,
    next: u64,
    out: Vec<u8>,
    body: Vec<u8>,
}

impl Link {
    /// Connects and introduces itself. Returns the connection and the staging memory's descriptor.
    pub(crate) fn connect(path: &Path, client: &str, limit: Duration) -> Result<(Link, OwnedFd), CallError> {
        let until = Instant::now() + limit;
        let stream = socket::connect(path)?;
        let hello = HelloReply {
            version: VERSION,
            reserved: Zero::BYTES,
            default_deadline_ms: 0,
            daemon_id: [0; 16],
            session: 0,
            staging_bytes: 0,
            reservations_max: 0,
            lease_ttl_ms: 0,
        };
        let mut link = Link { stream, hello, next: 0, out: Vec::new(), body: Vec::new() };
        let request = Request::Hello(Hello {
            version_min: VERSION,
            version_max: VERSION,
            reserved: Zero::BYTES,
            client: Text::new(client)?,
        });
        let (hello, staging) = link.call(&request, until, |reply, descriptor| match reply {
            Reply::Hello(hello) => Some((hello, descriptor)),
            _ => None,
        })?;
        let staging =
            staging.ok_or(CallError::Memory { reason: "no descriptor came with the introduction".to_owned() })?;
        link.hello = hello;
        Ok((link, staging))
    }

    pub(crate) fn hello(&self) -> &HelloReply {
        &self.hello
    }

    /// One call, which ends with `until` and a little grace: `take` makes of the answer and its descriptor what the caller keeps, `None` for an answer to another question.
    pub(crate) fn call<T>(
        &mut self,
        request: &Request<'_>,
        until: Instant,
        take: impl FnOnce(Reply<'_>, Option<OwnedFd>) -> Option<T>,
    ) -> Result<T, CallError> {
        let limit = until.saturating_duration_since(Instant::now());
        if limit.is_zero() {
            return Err(CallError::Late);
        }
        self.next += 1;
        let id = self.next;
        self.out.clear();
        let millis = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX).max(1);
        request.encode_frame(id, millis, &mut self.out)?;
        let until = until + GRACE;
        send(&self.stream, &self.out, until)?;
        let mut descriptors = Descriptors::new(&self.stream);
        let mut bytes = [0; FrameHeader::BYTES];
        fill(&self.stream, &mut descriptors, &mut bytes, until)?;
        let header = FrameHeader::parse(&bytes, BODY_BYTES_MAX)?;
        self.body.resize(header.body_bytes as usize, 0);
        fill(&self.stream, &mut descriptors, &mut self.body, until)?;
        if header.request_id != id {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "an answer to another request").into());
        }
        match Reply::parse(&header, &self.body)? {
            Err(refusal) => {
                Err(CallError::Refused { status: refusal.status(), sentence: refusal.sentence().to_owned() })
            }
            Ok(reply) => take(reply, descriptors.descriptor()).ok_or_else(|| {
                CallError::Io(io::Error::new(io::ErrorKind::InvalidData, "an answer to another question"))
            }),
        }
    }
}

/// Writes all of it by a moment.
fn send(mut stream: &UnixStream, mut bytes: &[u8], until: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        stream.set_write_timeout(Some(left(until)?))?;
        match stream.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What is left until a moment. Errors: that nothing is.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

/// Reads exactly so much by a moment.
fn fill(stream: &UnixStream, reader: &mut impl Read, mut target: &mut [u8], until: Instant) -> io::Result<()> {
    while !target.is_empty() {
        stream.set_read_timeout(Some(left(until)?))?;
        match reader.read(target) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => target = &mut target[read..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
