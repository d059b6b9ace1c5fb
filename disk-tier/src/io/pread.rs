//! The twin without io_uring: a pool of threads over `pread` and `pwrite`.
//!
//! Same operations, ends and deadlines as the ring. In flight are at most as many operations as there are threads, so that large transfers
//! reach the drive's speed once `threads * operation bytes` covers its latency times its bandwidth: at 3 GB/s and 200 us that is 600 KB, or
//! one operation of 1 MiB.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::files::{Files, Open};
use super::pool::{Act, Pool};
use super::{ALIGN_BYTES, FileId, FileInfo, IoError, Kind, Medium, Operation, Sink, check};

/// More threads do not help a drive that one process uses, and each costs a stack.
const THREADS_MAX: usize = 16;
/// EAGAIN and EINTR are tried again so many times.
pub(super) const TRIES_MAX: u32 = 8;

pub(super) struct Pread {
    files: Arc<Files>,
    pool: Pool,
    reason: Option<String>,
}

impl Pread {
    /// `reason`: why it is not the ring, for people.
    pub(super) fn start(
        files: Arc<Files>,
        depth: usize,
        deadline_millis: u64,
        reason: Option<String>,
    ) -> io::Result<Pread> {
        let act = Arc::new(Calls(Arc::clone(&files)));
        let pool = Pool::start(act, depth.clamp(1, THREADS_MAX), depth, deadline_millis)?;
        Ok(Pread { files, pool, reason })
    }
}

impl Medium for Pread {
    fn files(&self) -> io::Result<Vec<(FileId, FileInfo)>> {
        self.files.list()
    }

    fn create(&self, file: FileId, bytes: u64) -> io::Result<()> {
        self.files.create(file, bytes)
    }

    fn remove(&self, file: FileId) -> io::Result<()> {
        self.files.remove(file)
    }

    fn connect(&self, sink: Arc<dyn Sink>) {
        self.pool.connect(sink);
    }

    fn submit(&self, batch: Vec<Operation>) {
        self.pool.submit(batch);
    }

    fn depth(&self) -> usize {
        self.pool.depth()
    }

    fn describe(&self) -> String {
        let reason = self.reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"));
        format!("pread on {} threads{reason}, {}", self.pool.threads(), self.files.describe())
    }

    fn close(&self, millis: u64) {
        self.pool.close(millis);
    }
}

struct Calls(Arc<Files>);

impl Act for Calls {
    fn act(&self, op: &mut Operation) -> Result<(), IoError> {
        check::operation(op)?;
        let open = self.0.get(op.file).map_err(|error| io_error(&error))?;
        if op.kind == Kind::Sync {
            return again(|| rustix::fs::fdatasync(&open.fd)).map_err(check::errno);
        }
        check::write_end(op, open.bytes.load(Ordering::Acquire))?;
        let asked_bytes = op.range.end - op.range.start;
        let mut done_bytes = moved(op, &open, 0)?;
        if done_bytes > 0 && done_bytes < asked_bytes {
            // Once more from the last whole page on; what comes then is the end of it.
            let start = done_bytes / ALIGN_BYTES * ALIGN_BYTES;
            done_bytes = done_bytes.max(start + moved(op, &open, start)?);
        }
        if done_bytes == asked_bytes { Ok(()) } else { Err(IoError::Short { done_bytes, asked_bytes }) }
    }
}

/// Moves an operation's bytes from `start` of its range on; how many were moved.
fn moved(op: &mut Operation, open: &Open, start: u64) -> Result<u64, IoError> {
    let range = (op.range.start + start) as usize..op.range.end as usize;
    let offset = op.offset + start;
    let count = match op.kind {
        Kind::Write => again(|| rustix::io::pwrite(&open.fd, &op.memory.as_slice()[range.clone()], offset)),
        Kind::Read | Kind::Sync => {
            again(|| rustix::io::pread(&open.fd, &mut op.memory.as_mut_slice()[range.clone()], offset))
        }
    };
    count.map(|count| count as u64).map_err(check::errno)
}

fn again<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    let mut tries = 1;
    loop {
        match call() {
            Err(Errno::INTR | Errno::AGAIN) if tries < TRIES_MAX => tries += 1,
            ended => return ended,
        }
    }
}

/// The errno of a failed call; EIO for one without.
pub(super) fn io_error(error: &io::Error) -> IoError {
    IoError::Errno(error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()))
}
