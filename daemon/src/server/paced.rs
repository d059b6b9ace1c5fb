//! Answers on their way out, each by its time: a peer that reads a byte now and then holds a thread no longer than one that never reads.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};

/// Writes all of `bytes` within `limit`. Errors: `TimedOut` when the peer has not read them by then; the system's.
pub(crate) fn write_within(stream: &UnixStream, mut bytes: &[u8], limit: Duration) -> io::Result<()> {
    let until = Instant::now() + limit;
    while !bytes.is_empty() {
        match send(stream, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                wait_writable(stream, left)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn wait_writable(stream: &UnixStream, limit: Duration) -> io::Result<()> {
    let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
    match poll(&mut [PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::OUT)], Some(&limit)) {
        Err(Errno::INTR) | Ok(_) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);

    #[test]
    fn a_reader_of_single_bytes_gets_no_more_time_than_one_that_never_reads() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&is_over);
        let reader = std::thread::spawn(move || {
            while !ends.load(Ordering::SeqCst) && theirs.read_exact(&mut [0]).is_ok() {
                std::thread::sleep(SHORT / 10);
            }
        });
        let ended = write_within(&ours, &vec![0; 16 << 20], SHORT).unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        is_over.store(true, Ordering::SeqCst);
        reader.join().unwrap();
    }
}
