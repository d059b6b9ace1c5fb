//! One connection to a daemon: calls with deadlines. Whatever goes wrong, the connection is not used again.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::socket::{self, Descriptors};
use crate::wire::{
    BODY_BYTES_MAX, Frame, FrameHeader, Hello, HelloReply, Reply, Request, Status, Text, VERSION, WireError, Zero,
};

/// What a late answer is waited for beyond its deadline.
const GRACE: Duration = Duration::from_millis(250);
/// How much longer than it should a read or write may wait, so that the stream's time-outs need not be set anew for each.
const LIMIT_SLACK: Duration = Duration::from_millis(20);
/// Bytes that are read at once, at least: the answer to a full batch.
const INPUT_BYTES: usize = 64 << 10;

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
    /// Requests that go out with the next write.
    out: Vec<u8>,
    input: Input,
    write_limit: Limit,
}

/// What becomes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Refused or done, it is over.
    Said,
    /// Somebody asks for it later.
    Posted,
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
        let mut link =
            Link { stream, hello, next: 0, out: Vec::new(), input: Input::new(), write_limit: Limit::default() };
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
        let id = self.append(request, limit)?;
        // What was left to be said goes first, in the same write.
        self.send(until + GRACE)?;
        let mut descriptors = Descriptors::new(&self.stream);
        self.input.hear(None, &self.stream, &mut descriptors, until + GRACE)?;
        let frame = self.input.frame(&self.stream, &mut descriptors, until + GRACE)?;
        expect(&frame.header, id)?;
        answered(&frame.header, frame.body, |reply| take(reply, descriptors.descriptor()))
    }

    /// Sends a request whose answer is taken later, by [`Link::answer`]: the daemon is at it meanwhile. Of one that carries no descriptor.
    pub(crate) fn post(&mut self, request: &Request<'_>, until: Instant) -> Result<Posted, CallError> {
        let limit = until.saturating_duration_since(Instant::now());
        if limit.is_zero() {
            return Err(CallError::Late);
        }
        let id = self.append(request, limit)?;
        self.input.unheard.push_back((id, Fate::Posted));
        self.send(until + GRACE)?;
        Ok(Posted { id, until })
    }

    /// Waits for the answer to what was posted, until that is due, or a little if it was asked for later than that.
    pub(crate) fn answer<T>(
        &mut self,
        posted: Posted,
        take: impl FnOnce(Reply<'_>) -> Option<T>,
    ) -> Result<T, CallError> {
        let mut reader = Descriptors::new(&self.stream);
        self.input.hear(Some(posted.id), &self.stream, &mut reader, posted.until.max(Instant::now()) + GRACE)?;
        let taken = || CallError::Io(io::Error::other("an answer that was taken already"));
        let (header, body) = self.input.early.remove(&posted.id).ok_or_else(taken)?;
        answered(&header, &body, take)
    }

    /// A request whose answer nobody waits for: it goes out with the next call, before that call's own, or with [`Link::flush`].
    pub(crate) fn say(&mut self, request: &Request<'_>) -> Result<(), CallError> {
        let id = self.append(request, Duration::ZERO)?;
        self.input.unheard.push_back((id, Fate::Said));
        Ok(())
    }

    /// Sends what was said, if anything was, and waits for its end.
    pub(crate) fn flush(&mut self, until: Instant) -> Result<(), CallError> {
        if self.out.is_empty() {
            return Ok(());
        }
        if until <= Instant::now() {
            return Err(CallError::Late);
        }
        self.send(until + GRACE)?;
        self.input.hear(None, &self.stream, &mut Descriptors::new(&self.stream), until + GRACE)
    }

    /// Adds a request to what goes out next. A limit of zero is the daemon's own.
    fn append(&mut self, request: &Request<'_>, limit: Duration) -> Result<u64, CallError> {
        let millis = if limit.is_zero() { 0 } else { u32::try_from(limit.as_millis()).unwrap_or(u32::MAX).max(1) };
        request.encode_frame(self.next + 1, millis, &mut self.out)?;
        self.next += 1;
        Ok(self.next)
    }

    /// Writes everything that goes out, by a moment.
    fn send(&mut self, until: Instant) -> Result<(), CallError> {
        let mut bytes = &self.out[..];
        while !bytes.is_empty() {
            if let Some(limit) = self.write_limit.renewed(left(until)?) {
                self.stream.set_write_timeout(Some(limit))?;
            }
            match (&self.stream).write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(timed_out(error).into()),
            }
        }
        self.out.clear();
        Ok(())
    }
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Posted {
    id: u64,
    /// When its answer is due.
    until: Instant,
}

/// What a caller makes of an answer. `None` from it: an answer to another question.
fn answered<T>(header: &FrameHeader, body: &[u8], take: impl FnOnce(Reply<'_>) -> Option<T>) -> Result<T, CallError> {
    match Reply::parse(header, body)? {
        Err(refusal) => Err(CallError::Refused { status: refusal.status(), sentence: refusal.sentence().to_owned() }),
        Ok(reply) => take(reply)
            .ok_or_else(|| CallError::Io(io::Error::new(io::ErrorKind::InvalidData, "an answer to another question"))),
    }
}

fn expect(header: &FrameHeader, id: u64) -> Result<(), CallError> {
    match header.request_id == id {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "an answer to another request").into()),
    }
}

/// A time-out as the stream has it: set anew, which is a system call, only where it is not about the right one.
#[derive(Default)]
struct Limit(Duration);

impl Limit {
    /// The time-out to be set, if the one that is set ends before `left`, or much later.
    fn renewed(&mut self, left: Duration) -> Option<Duration> {
        let is_right = self.0 >= left && self.0 <= left + LIMIT_SLACK;
        if is_right {
            return None;
        }
        self.0 = left + LIMIT_SLACK / 2;
        Some(self.0)
    }
}

/// Answers as they come in: as many bytes at once as there are.
struct Input {
    buffer: Vec<u8>,
    /// What has been read and not been taken.
    start: usize,
    end: usize,
    limit: Limit,
    /// Requests whose answers have not been read, in the order in which they come.
    unheard: VecDeque<(u64, Fate)>,
    /// Answers to what was posted, until they are asked for.
    early: HashMap<u64, (FrameHeader, Vec<u8>)>,
}

impl Input {
    fn new() -> Input {
        Input {
            buffer: vec![0; INPUT_BYTES],
            start: 0,
            end: 0,
            limit: Limit::default(),
            unheard: VecDeque::new(),
            early: HashMap::new(),
        }
    }

    /// Reads the answers that have not been read, up to that to `last`; all of them without one.
    fn hear(
        &mut self,
        last: Option<u64>,
        stream: &UnixStream,
        reader: &mut impl Read,
        until: Instant,
    ) -> Result<(), CallError> {
        while last.is_none_or(|last| !self.early.contains_key(&last))
            && let Some((id, fate)) = self.unheard.front().copied()
        {
            let frame = self.frame(stream, reader, until)?;
            expect(&frame.header, id)?;
            match fate {
                Fate::Said => drop(Reply::parse(&frame.header, frame.body)?),
                Fate::Posted => {
                    let answer = (frame.header, frame.body.to_vec());
                    self.early.insert(id, answer);
                }
            }
            self.unheard.pop_front();
        }
        Ok(())
    }

    /// The next frame, which must be whole by `until`.
    fn frame(&mut self, stream: &UnixStream, reader: &mut impl Read, until: Instant) -> Result<Frame<'_>, CallError> {
        while Frame::parse(&self.buffer[self.start..self.end], BODY_BYTES_MAX)?.is_none() {
            self.make_room()?;
            self.read(stream, reader, until)?;
        }
        let bytes = &self.buffer[self.start..self.end];
        let (frame, rest) = Frame::parse(bytes, BODY_BYTES_MAX)?.expect("a whole frame was seen");
        self.start = self.end - rest.len();
        Ok(frame)
    }

    fn make_room(&mut self) -> Result<(), WireError> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        if let Some(header) = self.buffer[..self.end].first_chunk() {
            let wanted = FrameHeader::BYTES + FrameHeader::parse(header, BODY_BYTES_MAX)?.body_bytes as usize;
            if self.buffer.len() < wanted {
                self.buffer.resize(wanted, 0);
            }
        }
        Ok(())
    }

    fn read(&mut self, stream: &UnixStream, reader: &mut impl Read, until: Instant) -> io::Result<()> {
        loop {
            if let Some(limit) = self.limit.renewed(left(until)?) {
                stream.set_read_timeout(Some(limit))?;
            }
            match reader.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => {
                    self.end += read;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(timed_out(error)),
            }
        }
    }
}

/// What is left until a moment. Errors: that nothing is.
fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_out_is_set_anew_only_when_it_is_wrong() {
        let ms = Duration::from_millis;
        let mut limit = Limit::default();
        assert_eq!(limit.renewed(ms(1000)), Some(ms(1010)), "none is set");
        assert_eq!(limit.renewed(ms(1000) + Duration::from_micros(7)), None, "a call like the one before");
        assert_eq!(limit.renewed(ms(995)), None);
        assert_eq!(limit.renewed(ms(1011)), Some(ms(1021)), "it would end too early");
        assert_eq!(limit.renewed(ms(30)), Some(ms(40)), "it would end much too late");
    }
}
