//! Streams: a thread and a queue each, so that only events order two of them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::status::{Code, answer};
use crate::{context, control, log};

/// What a job does, as a bit in the masks of [`control`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Host to device.
    CopyIn = 1,
    /// Device to host.
    CopyOut = 2,
    /// Device to device.
    CopyWithin = 4,
    /// Fill.
    Set = 8,
    /// Kernel.
    Launch = 16,
    /// Host function.
    Host = 32,
    /// Event records and waits: they run also after a failure, so that nobody waits for ever.
    Order = 0,
}

impl Kind {
    /// In the log.
    fn name(self) -> &'static str {
        match self {
            Kind::CopyIn => "copy in",
            Kind::CopyOut => "copy out",
            Kind::CopyWithin => "copy within",
            Kind::Set => "fill",
            Kind::Launch => "launch",
            Kind::Host => "host function",
            Kind::Order => "order",
        }
    }
}

type Work = Box<dyn FnOnce() -> Result<(), Code> + Send>;

struct Job {
    kind: Kind,
    name: Cow<'static, str>,
    work: Work,
}

pub(crate) struct Stream {
    queue: Mutex<Queue>,
    changed: Condvar,
}

struct Queue {
    jobs: Option<Sender<Job>>,
    enqueued: u64,
    done: u64,
}

struct Entry {
    stream: Arc<Stream>,
    thread: JoinHandle<()>,
}

/// Handles start above the driver's own: 0 the null stream, 1 the legacy and 2 the per-thread default stream.
static NEXT: AtomicUsize = AtomicUsize::new(0x100);
static STREAMS: Mutex<Option<HashMap<usize, Entry>>> = Mutex::new(None);

fn streams() -> MutexGuard<'static, Option<HashMap<usize, Entry>>> {
    STREAMS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Streams that exist.
pub(crate) fn count() -> u64 {
    streams().as_ref().map_or(0, |streams| streams.len() as u64)
}

/// The stream behind a handle; the null stream is not imitated.
pub(crate) fn find(handle: usize) -> Result<Arc<Stream>, Code> {
    let streams = streams();
    let entry = streams.as_ref().and_then(|streams| streams.get(&handle)).ok_or(Code::INVALID_HANDLE)?;
    Ok(entry.stream.clone())
}

/// Waits for the work of all streams.
pub(crate) fn drain_all() {
    let all: Vec<Arc<Stream>> = streams().iter().flatten().map(|(_, entry)| entry.stream.clone()).collect();
    all.iter().for_each(|stream| stream.drain());
}

impl Stream {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job at the end.
    pub(crate) fn enqueue(
        &self,
        kind: Kind,
        work: impl FnOnce() -> Result<(), Code> + Send + 'static,
    ) -> Result<(), Code> {
        self.enqueue_as(kind, Cow::Borrowed(kind.name()), work)
    }

    /// Adds a job under a name of its own in the log.
    pub(crate) fn enqueue_as(
        &self,
        kind: Kind,
        name: Cow<'static, str>,
        work: impl FnOnce() -> Result<(), Code> + Send + 'static,
    ) -> Result<(), Code> {
        let mut queue = self.queue();
        let jobs = queue.jobs.as_ref().ok_or(Code::INVALID_HANDLE)?;
        jobs.send(Job { kind, name, work: Box::new(work) }).map_err(|_| Code::INVALID_HANDLE)?;
        queue.enqueued += 1;
        Ok(())
    }

    /// Waits until everything enqueued so far has run.
    pub(crate) fn drain(&self) {
        let mut queue = self.queue();
        let target = queue.enqueued;
        while queue.done < target {
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn run(&self, jobs: &Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            let run = log::begin(&job.name, std::ptr::from_ref(self).addr());
            control::pass(job.kind);
            // After a failure the context does no more work, as on hardware.
            if job.kind == Kind::Order || context::healthy().is_ok() {
                (job.work)().unwrap_or_else(context::fail);
            }
            log::end(run);
            self.queue().done += 1;
            self.changed.notify_all();
        }
    }
}

/// # Safety
/// `handle` is writable.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreate(handle: *mut usize, _flags: u32) -> u32 {
    answer(context::enter().and_then(|()| {
        let id = NEXT.fetch_add(1, Ordering::SeqCst);
        let (sender, receiver) = channel();
        let queue = Queue { jobs: Some(sender), enqueued: 0, done: 0 };
        let stream = Arc::new(Stream { queue: Mutex::new(queue), changed: Condvar::new() });
        let worker = stream.clone();
        let thread = std::thread::Builder::new()
            .name(format!("cuda-double-{id}"))
            .spawn(move || worker.run(&receiver))
            .map_err(|_| Code::OUT_OF_MEMORY)?;
        streams().get_or_insert_default().insert(id, Entry { stream, thread });
        // SAFETY: the caller passes a place for one handle.
        unsafe { handle.write(id) };
        Ok(())
    }))
}

/// Finishes the enqueued work first, as the driver does behind the caller's back.
#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(handle: usize) -> u32 {
    let Some(entry) = streams().as_mut().and_then(|streams| streams.remove(&handle)) else {
        return Code::INVALID_HANDLE.0;
    };
    entry.stream.queue().jobs = None;
    let joined = entry.thread.join().map_err(|_| Code::ILLEGAL_ADDRESS);
    answer(joined.and_then(|()| context::healthy()))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(handle: usize) -> u32 {
    answer(context::enter().and_then(|()| {
        find(handle)?.drain();
        context::healthy()
    }))
}

/// Calls `run` in the stream's order, and not at all once the context has failed.
///
/// # Safety
/// `run` may be called with `data`, from any thread, once.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchHostFunc(handle: usize, run: unsafe extern "C" fn(*mut c_void), data: *mut c_void) -> u32 {
    let data = data as usize;
    answer(context::enter().and_then(|()| {
        find(handle)?.enqueue(Kind::Host, move || {
            // SAFETY: the caller vouches for it.
            unsafe { run(data as *mut c_void) };
            Ok(())
        })
    }))
}
