//! io_uring: one ring, and one thread that alone enters it.
//!
//! | part | who touches it |
//! |---|---|
//! | `Inbox` | callers and the ring's thread, under its lock |
//! | the ring, the flights and their memory | the ring's thread ([`super::flights`]) |
//! | the eventfd | a caller writes it when the thread sleeps; the ring polls it |
//!
//! In flight are at most `depth` operations, and the completion queue holds every one of them, a cancel for each and the wake-up, so that it
//! cannot overflow. The thread never spins: it sleeps in the ring until a completion, a wake-up or the nearest deadline.
//!
//! The floor of a transfer is its bytes over the drive's bandwidth; the ring adds one system call per batch and no copy. Registered files were
//! left out: they save one look-up per operation, about 0.1 us of the 300 us that 1 MiB takes at 3.5 GB/s.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use io_uring::IoUring;
use rustix::event::EventfdFlags;
use rustix::io::Errno;
use rustix::process::Resource;

use super::ends::{Ends, ended, lock};
use super::files::Files;
use super::flights::RingThread;
use super::pool::QUEUE_PER_DEPTH;
use super::{Done, FileId, FileInfo, Medium, Operation, Region, Sink, check};

/// Longest registered buffer that the kernel takes.
const REGISTERED_BYTES_MAX: u64 = 1 << 30;
/// Registered buffers that the kernel takes.
const REGISTERED_MAX: usize = 16_384;

/// What waits for the thread.
pub(super) struct Inbox {
    pub(super) queue: VecDeque<Waiting>,
    /// Ends of operations that found the queue full.
    pub(super) refused: Vec<Done>,
    /// The thread is in the ring, or about to be, and wants the eventfd written when something comes.
    pub(super) sleeping: bool,
    pub(super) closing: bool,
    pub(super) stopped: bool,
}

pub(super) struct Waiting {
    pub(super) op: Operation,
    pub(super) due: Option<Instant>,
}

pub(super) struct Shared {
    pub(super) inbox: Mutex<Inbox>,
    pub(super) stopped: Condvar,
    pub(super) wake: OwnedFd,
    pub(super) ends: Arc<Ends>,
}

impl Shared {
    /// Wakes the thread if it sleeps. Called with the lock held, so that no wake-up is lost between its last look and its sleep.
    fn wake(&self, inbox: &mut Inbox) {
        if std::mem::take(&mut inbox.sleeping) {
            // The counter cannot overflow: at most one write comes between two sleeps.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }
}

/// Address ranges that the ring knows as fixed buffers, by buffer index, and what keeps them mapped.
pub(super) struct Registered {
    pub(super) ranges: Vec<std::ops::Range<usize>>,
    /// Dropped after the ring.
    pub(super) regions: Vec<Arc<dyn Region>>,
    describe: String,
}

pub(super) struct Uring {
    files: Arc<Files>,
    shared: Arc<Shared>,
    depth: usize,
    deadline_millis: u64,
    describe: String,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Uring {
    /// Sets up the ring and its thread. Errors: the kernel's word on why there is no ring: EPERM (seccomp, `kernel.io_uring_disabled`), ENOSYS, ...
    pub(super) fn start(
        files: Arc<Files>,
        regions: Vec<Arc<dyn Region>>,
        depth: usize,
        deadline_millis: u64,
    ) -> io::Result<Uring> {
        let entries = (2 * depth as u32 + 2).next_power_of_two();
        let ring = IoUring::builder().setup_cqsize(2 * entries).build(entries)?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel is older than Linux 5.11"));
        }
        let registered = register(&ring, regions);
        let describe = format!("io_uring, {}, {}", files.describe(), registered.describe);
        let shared = Arc::new(Shared {
            inbox: Mutex::new(Inbox {
                queue: VecDeque::new(),
                refused: Vec::new(),
                sleeping: false,
                closing: false,
                stopped: false,
            }),
            stopped: Condvar::new(),
            wake: rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            ends: Arc::new(Ends::new()),
        });
        let thread = RingThread::new(ring, registered, Arc::clone(&files), Arc::clone(&shared), depth, deadline_millis);
        let thread = std::thread::Builder::new().name("disk-ring-0".into()).spawn(move || thread.run())?;
        Ok(Uring { files, shared, depth, deadline_millis, describe, thread: Mutex::new(Some(thread)) })
    }
}

/// Makes the regions fixed buffers of the ring. Where the kernel will not, operations use them all the same, at the price of pinning the pages
/// of each.
fn register(ring: &IoUring, regions: Vec<Arc<dyn Region>>) -> Registered {
    let total_bytes: u64 = regions.iter().map(|region| region.bytes()).sum();
    let mut ranges = Vec::new();
    for region in &regions {
        let start = region.address() as usize;
        for offset in (0..region.bytes()).step_by(REGISTERED_BYTES_MAX as usize) {
            let first = start + offset as usize;
            ranges.push(first..first + (region.bytes() - offset).min(REGISTERED_BYTES_MAX) as usize);
        }
    }
    ranges.truncate(REGISTERED_MAX);
    if ranges.is_empty() {
        return Registered { ranges, regions, describe: "no registered buffers".into() };
    }
    let vectors: Vec<libc::iovec> = ranges
        .iter()
        .map(|range| libc::iovec { iov_base: range.start as *mut libc::c_void, iov_len: range.len() })
        .collect();
    // SAFETY: each range lies in a region, whose memory is valid while it lives (`Region`'s contract); `Registered` holds the regions, and the
    // ring's thread drops it after the ring, or leaks it.
    let result = unsafe { ring.submitter().register_buffers(&vectors) };
    let mib = total_bytes >> 20;
    let describe = match result {
        Ok(()) => format!("{mib} MiB of registered buffers"),
        Err(error) => {
            ranges.clear();
            let limit = rustix::process::getrlimit(Resource::Memlock).current;
            let limit = limit.map_or_else(|| "unlimited".into(), |bytes| format!("{} MiB", bytes >> 20));
            if error.raw_os_error() == Some(libc::ENOMEM) {
                format!("buffers not registered ({mib} MiB are more than the locked-memory limit of {limit} allows)")
            } else {
                format!("buffers not registered ({error}; {mib} MiB, locked-memory limit {limit})")
            }
        }
    };
    Registered { ranges, regions, describe }
}

impl Medium for Uring {
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
        self.shared.ends.connect(sink);
    }

    fn submit(&self, batch: Vec<Operation>) {
        let mut inbox = lock(&self.shared.inbox);
        if inbox.closing {
            drop(inbox);
            return self.shared.ends.refuse(batch);
        }
        let due = (self.deadline_millis > 0).then(|| Instant::now() + Duration::from_millis(self.deadline_millis));
        for op in batch {
            if inbox.queue.len() >= self.depth * QUEUE_PER_DEPTH {
                inbox.refused.push(ended(op, Err(check::errno(Errno::AGAIN))));
            } else {
                inbox.queue.push_back(Waiting { op, due });
            }
        }
        self.shared.wake(&mut inbox);
    }

    fn depth(&self) -> usize {
        self.depth
    }

    fn describe(&self) -> String {
        self.describe.clone()
    }

    fn close(&self, millis: u64) {
        let limit = Instant::now() + Duration::from_millis(millis);
        let mut inbox = lock(&self.shared.inbox);
        inbox.closing = true;
        self.shared.wake(&mut inbox);
        while !inbox.stopped {
            let left = limit.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            inbox = self.shared.stopped.wait_timeout(inbox, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let stopped = inbox.stopped;
        drop(inbox);
        // A thread whose operations the kernel still has goes on by itself until it has them back; a later close waits for it again.
        let thread = if stopped { lock(&self.thread).take() } else { None };
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            // Its panic has been printed; its operations were told as failed.
            let _ = thread.join();
        }
        self.shared.ends.close();
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.close(0);
    }
}
