//! The copy streams of the `cpu` device: one named thread and one bounded queue each.
//!
//! Numbers of a stream count its operations, the opening of the device being number 1, so an [`Event`] is done when
//! that many operations are. A wait can only name an event that was recorded before it, so waits form no cycle.
//!
//! # Safety
//! A queued operation holds raw addresses. Device addresses stay mapped and unfreed because it holds their pins
//! (`memory.rs`); host addresses stay mapped because the device keeps every registered extent until its threads have
//! ended. Host bytes may be written by others during a copy: they are copied as bytes through raw pointers, nothing is
//! decided by them, and the caller throws the copy away when the slot's generation has moved.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::link::{Clock, Direction};
use super::memory::Pinned;
use crate::device::{Event, Stream};
use crate::error::DeviceError;

/// Operations a queue holds; the caller waits for room.
const QUEUE_OPERATIONS: usize = 1024;

/// Bytes to move from one address to another.
pub(crate) struct Move {
    pub(crate) source: *const u8,
    pub(crate) target: *mut u8,
    pub(crate) bytes: usize,
}

/// One operation of a stream.
pub(crate) enum Operation {
    /// Moves bytes, in order; over the link when it has a direction.
    Copy { moves: Vec<Move>, direction: Option<Direction>, ready: Instant, pinned: Pinned },
    /// Writes staged bytes.
    Write { staged: Vec<u8>, target: *mut u8, pinned: Pinned },
    /// Starts what follows after an event of another stream.
    Wait(Event),
}

// SAFETY: the addresses are valid on every thread for as long as the operation lives (module header).
unsafe impl Send for Operation {}

/// The queues of both copy streams and the link they share.
pub(crate) struct Copies {
    queues: [Queue; 2],
    pub(crate) link: Clock,
}

struct Queue {
    state: Mutex<QueueState>,
    /// Signalled when there is work or the queue closes.
    work: Condvar,
    /// Signalled when an operation starts (there is room) or ends (an event may be done).
    progress: Condvar,
}

struct QueueState {
    operations: VecDeque<Operation>,
    enqueued: u64,
    completed: u64,
    closed: bool,
    lost: bool,
}

fn lock(queue: &Queue) -> MutexGuard<'_, QueueState> {
    // Critical sections only move numbers and queue entries; none can stop half-way.
    queue.state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Copies {
    pub(crate) fn new(bytes_per_second: Option<f64>) -> Copies {
        let queue = || Queue {
            state: Mutex::new(QueueState {
                operations: VecDeque::new(),
                enqueued: 1,
                completed: 1,
                closed: false,
                lost: false,
            }),
            work: Condvar::new(),
            progress: Condvar::new(),
        };
        Copies { queues: [queue(), queue()], link: Clock::new(bytes_per_second) }
    }

    /// Panics for the compute stream, which has no queue (our bug).
    fn queue(&self, stream: Stream) -> &Queue {
        match stream {
            Stream::CopyIn => &self.queues[0],
            Stream::CopyOut => &self.queues[1],
            Stream::Compute => panic!("the compute stream has no queue"),
        }
    }

    /// Adds an operation, waiting for room. Errors: [`DeviceError::Lost`].
    pub(crate) fn enqueue(&self, stream: Stream, operation: Operation) -> Result<(), DeviceError> {
        let queue = self.queue(stream);
        let mut state = lock(queue);
        while state.operations.len() >= QUEUE_OPERATIONS && !state.lost {
            state = queue.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.lost {
            return Err(DeviceError::Lost);
        }
        state.operations.push_back(operation);
        state.enqueued += 1;
        drop(state);
        queue.work.notify_one();
        Ok(())
    }

    /// The event behind everything enqueued so far.
    pub(crate) fn record(&self, stream: Stream) -> Result<Event, DeviceError> {
        let state = lock(self.queue(stream));
        if state.lost {
            return Err(DeviceError::Lost);
        }
        Ok(Event { stream, sequence: state.enqueued })
    }

    /// Whether an event is done. Errors: a number the stream has not reached; [`DeviceError::Lost`].
    pub(crate) fn is_done(&self, event: Event) -> Result<bool, DeviceError> {
        let state = lock(self.queue(event.stream));
        check(event, &state)?;
        Ok(state.completed >= event.sequence)
    }

    /// Blocks until an event is done. Errors: as [`Copies::is_done`].
    pub(crate) fn wait(&self, event: Event) -> Result<(), DeviceError> {
        let queue = self.queue(event.stream);
        let mut state = lock(queue);
        check(event, &state)?;
        while state.completed < event.sequence {
            state = queue.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
            check(event, &state)?;
        }
        Ok(())
    }

    /// Lets the threads end once their queues are empty; nothing is throttled any more.
    pub(crate) fn close(&self) {
        self.link.close();
        for queue in &self.queues {
            lock(queue).closed = true;
            queue.work.notify_all();
        }
    }

    /// Performs one operation on the calling thread. `floor` is when the last wait before it ended.
    pub(crate) fn perform(&self, operation: Operation, floor: Instant) -> Result<(), DeviceError> {
        match operation {
            Operation::Copy { moves, direction, ready, pinned } => {
                for Move { source, target, bytes } in &moves {
                    // SAFETY: both ranges were checked when the operation was made and stay mapped (module header).
                    // `copy` and not `copy_nonoverlapping`: a copy inside device memory may overlap itself.
                    unsafe { std::ptr::copy(*source, *target, *bytes) };
                }
                if let Some(direction) = direction {
                    let bytes = moves.iter().map(|piece| piece.bytes as u64).sum();
                    self.link.carry(direction, bytes, ready.max(floor));
                }
                drop(pinned);
                Ok(())
            }
            Operation::Write { staged, target, pinned } => {
                // SAFETY: the target was checked to hold the staged bytes and is pinned; the staging copy is our own.
                unsafe { std::ptr::copy_nonoverlapping(staged.as_ptr(), target, staged.len()) };
                drop(pinned);
                Ok(())
            }
            Operation::Wait(event) => self.wait(event),
        }
    }

    /// The life of a copy thread.
    pub(crate) fn serve(self: Arc<Self>, stream: Stream) {
        let queue = self.queue(stream);
        let lost = MarkLost(queue);
        let mut floor = Instant::now();
        loop {
            let mut state = lock(queue);
            let operation = loop {
                match state.operations.pop_front() {
                    Some(operation) => break operation,
                    None if state.closed => {
                        drop(state);
                        std::mem::forget(lost);
                        return;
                    }
                    None => state = queue.work.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(state);
            queue.progress.notify_all();
            let waited = matches!(operation, Operation::Wait(event) if self.is_done(event) != Ok(true));
            if self.perform(operation, floor).is_err() {
                return;
            }
            if waited {
                floor = Instant::now();
            }
            lock(queue).completed += 1;
            queue.progress.notify_all();
        }
    }
}

/// Refuses numbers that the stream has not reached, and lost streams.
fn check(event: Event, state: &QueueState) -> Result<(), DeviceError> {
    if state.lost && state.completed < event.sequence {
        return Err(DeviceError::Lost);
    }
    if event.sequence > state.enqueued {
        let problem = format!("{event:?} was never recorded: the stream is at {}", state.enqueued);
        return Err(DeviceError::Shape { what: "event", problem });
    }
    Ok(())
}

/// Marks a stream as lost when its thread ends early, so that nobody waits for it for ever.
struct MarkLost<'q>(&'q Queue);

impl Drop for MarkLost<'_> {
    fn drop(&mut self) {
        let mut state = lock(self.0);
        state.lost = true;
        // Their pins must go, or buffers could never be freed.
        let abandoned = std::mem::take(&mut state.operations);
        drop(state);
        drop(abandoned);
        self.0.progress.notify_all();
    }
}
