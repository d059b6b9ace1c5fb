//! Frames of one connection as they come in: many in one read where many wait, one after the other.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use kvtier_sdk::wire::{Frame, FrameHeader, WireError};

/// One look at the socket while nothing comes: how soon a connection notices that the daemon ends.
const LOOK: Duration = Duration::from_millis(200);
/// Bytes that are read at once, at the start; as many as the longest frame so far, later.
const BYTES: usize = 16 << 10;

pub(crate) struct Incoming {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// What has been read and not been taken.
    start: usize,
    end: usize,
    /// When the frame began that is not whole yet.
    begun: Option<Instant>,
}

/// Why there is no frame.
#[derive(Debug)]
pub(crate) enum Look {
    /// None has begun, for a while.
    Nothing,
    /// One has begun, and is not whole after so long.
    Partial(Duration),
    /// The stream is over, or has failed.
    Over,
    /// What has come is no frame; the stream has lost its place.
    Wire(WireError),
}

impl Incoming {
    pub(crate) fn new(stream: UnixStream) -> io::Result<Incoming> {
        stream.set_read_timeout(Some(LOOK))?;
        Ok(Incoming { stream, buffer: vec![0; BYTES], start: 0, end: 0, begun: None })
    }

    /// True when a whole frame waits, or something that is none.
    pub(crate) fn has_more(&self, body_limit: u32) -> bool {
        !matches!(Frame::parse(&self.buffer[self.start..self.end], body_limit), Ok(None))
    }

    /// The next frame, waited for a while.
    pub(crate) fn next(&mut self, body_limit: u32) -> Result<Frame<'_>, Look> {
        loop {
            let bytes = &self.buffer[self.start..self.end];
            if Frame::parse(bytes, body_limit).map_err(Look::Wire)?.is_some() {
                return self.take(body_limit);
            }
            if !bytes.is_empty() {
                // It came with the end of the frame before.
                self.begun.get_or_insert_with(Instant::now);
            }
            self.make_room(body_limit).map_err(Look::Wire)?;
            match self.stream.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Err(Look::Over),
                Ok(read) => self.end += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if is_timeout(&error) => {
                    return Err(self.begun.map_or(Look::Nothing, |begun| Look::Partial(begun.elapsed())));
                }
                Err(_) => return Err(Look::Over),
            }
            let bytes = &self.buffer[self.start..self.end];
            if Frame::parse(bytes, body_limit).map_err(Look::Wire)?.is_none() {
                let begun = *self.begun.get_or_insert_with(Instant::now);
                // A sender of single bytes never lets the read time out.
                if begun.elapsed() > LOOK {
                    return Err(Look::Partial(begun.elapsed()));
                }
            }
        }
    }

    fn take(&mut self, body_limit: u32) -> Result<Frame<'_>, Look> {
        self.begun = None;
        let bytes = &self.buffer[self.start..self.end];
        let (frame, rest) = Frame::parse(bytes, body_limit).map_err(Look::Wire)?.expect("a whole frame was seen");
        self.start = self.end - rest.len();
        Ok(frame)
    }

    /// Makes room for the rest of the frame that has begun, or for the beginning of one.
    fn make_room(&mut self, body_limit: u32) -> Result<(), WireError> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let mut wanted = FrameHeader::BYTES;
        if let Some(header) = self.buffer[..self.end].first_chunk() {
            wanted += FrameHeader::parse(header, body_limit)?.body_bytes as usize;
        }
        if self.buffer.len() < wanted {
            self.buffer.resize(wanted, 0);
        }
        Ok(())
    }
}

pub(crate) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use kvtier_sdk::wire::{BODY_BYTES_MAX, Empty, LeaseId, Release, Request};

    use super::*;

    fn frame(request: &Request<'_>, id: u64) -> Vec<u8> {
        let mut out = Vec::new();
        request.encode_frame(id, 0, &mut out).unwrap();
        out
    }

    /// Ids of all frames that come until the stream is over.
    fn ids(incoming: &mut Incoming) -> Vec<u64> {
        let mut ids = Vec::new();
        loop {
            match incoming.next(BODY_BYTES_MAX) {
                Ok(frame) => {
                    assert_eq!(frame.body.len(), frame.header.body_bytes as usize);
                    ids.push(frame.header.request_id);
                }
                Err(Look::Over) => return ids,
                Err(Look::Nothing | Look::Partial(_)) => {}
                Err(Look::Wire(error)) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn frames_come_out_whole_however_they_are_cut() {
        let leases = vec![LeaseId(7.into()); 1024];
        let long = Request::Release(Release { leases: kvtier_sdk::wire::Batch::new(&leases).unwrap() });
        let mut bytes = Vec::new();
        for id in 0..40 {
            bytes.extend(frame(if id % 3 == 0 { &long } else { &Request::Stats(Empty) }, id));
        }
        for piece in [1, 31, 33, 5000, 1 << 20] {
            let (mut there, here) = UnixStream::pair().unwrap();
            let mut incoming = Incoming::new(here).unwrap();
            let sent = bytes.clone();
            let sender = std::thread::spawn(move || sent.chunks(piece).for_each(|part| there.write_all(part).unwrap()));
            assert_eq!(ids(&mut incoming), (0..40).collect::<Vec<_>>(), "pieces of {piece}");
            sender.join().unwrap();
        }
    }

    #[test]
    fn frames_that_wait_are_seen_and_half_of_one_is_none() {
        let (mut there, here) = UnixStream::pair().unwrap();
        let mut incoming = Incoming::new(here).unwrap();
        let one = frame(&Request::Stats(Empty), 1);
        there.write_all(&[&one[..], &one[..], &one[..9]].concat()).unwrap();
        assert!(incoming.next(BODY_BYTES_MAX).is_ok());
        assert!(incoming.has_more(BODY_BYTES_MAX), "one more is whole");
        assert!(incoming.next(BODY_BYTES_MAX).is_ok());
        assert!(!incoming.has_more(BODY_BYTES_MAX), "nine bytes are no frame");
        assert!(matches!(incoming.next(BODY_BYTES_MAX), Err(Look::Partial(_))));
    }

    #[test]
    fn a_sender_of_single_bytes_is_noticed() {
        let (mut there, here) = UnixStream::pair().unwrap();
        let mut incoming = Incoming::new(here).unwrap();
        let sender = std::thread::spawn(move || {
            for byte in frame(&Request::Stats(Empty), 1) {
                // Once the other end has seen enough, nobody reads any more.
                let _ = there.write_all(&[byte]);
                std::thread::sleep(LOOK / 4);
            }
        });
        assert!(matches!(incoming.next(BODY_BYTES_MAX), Err(Look::Partial(_))), "although each byte came in time");
        sender.join().unwrap();
    }

    #[test]
    fn a_length_over_the_limit_takes_no_memory() {
        let (mut there, here) = UnixStream::pair().unwrap();
        let mut incoming = Incoming::new(here).unwrap();
        let mut bytes = frame(&Request::Stats(Empty), 1);
        bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        there.write_all(&bytes).unwrap();
        assert!(matches!(incoming.next(64 << 10), Err(Look::Wire(WireError::BodyLength { .. }))));
        assert_eq!(incoming.buffer.len(), BYTES);
    }
}
