//! One of the three streams, with its numbered events and its slots for host memory that is not pinned.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError};

use super::bounce::Bounce;

/// A CUDA stream, its slots, and the events recorded in it that have not been seen done.
pub(super) struct Lane {
    stream: Arc<CudaStream>,
    events: Mutex<Events>,
    bounce: Mutex<Bounce>,
}

#[derive(Default)]
struct Events {
    /// The number of the last event recorded.
    last: u64,
    /// The highest number seen done; a stream works in order, so all below are done too.
    done: u64,
    /// In order of their numbers, `done + 1` to `last`.
    pending: VecDeque<Arc<CudaEvent>>,
    /// Driver events for reuse.
    spare: Vec<Arc<CudaEvent>>,
}

/// What is known of an event.
pub(super) enum Standing {
    /// Never recorded in this lane.
    Unknown,
    /// Everything before it has finished.
    Done,
    /// Not seen done yet.
    Pending(Arc<CudaEvent>),
}

impl Events {
    /// Takes events that are done from the front.
    fn reap(&mut self) -> Result<(), DriverError> {
        while let Some(first) = self.pending.front() {
            if !first.try_is_complete()? {
                break;
            }
            self.done += 1;
            // Somebody may still be about to wait for it: reuse would make them wait for something else.
            if let Some(event) = self.pending.pop_front().filter(|event| Arc::strong_count(event) == 1) {
                self.spare.push(event);
            }
        }
        Ok(())
    }
}

impl Lane {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Lane, DriverError> {
        Ok(Lane { stream: context.new_stream()?, events: Mutex::default(), bounce: Mutex::default() })
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    pub(super) fn bounce(&self) -> MutexGuard<'_, Bounce> {
        self.bounce.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn events(&self) -> MutexGuard<'_, Events> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the next event and returns its number.
    pub(super) fn record(&self) -> Result<u64, DriverError> {
        let mut events = self.events();
        // Keeps the list as short as the work in flight, also when nobody asks.
        events.reap()?;
        let event = match events.spare.pop() {
            Some(event) => event,
            None => Arc::new(self.stream.context().new_event(None)?),
        };
        event.record(&self.stream)?;
        events.pending.push_back(event);
        events.last += 1;
        Ok(events.last)
    }

    /// Looks an event up after asking the driver what is done.
    pub(super) fn standing(&self, sequence: u64) -> Result<Standing, DriverError> {
        let mut events = self.events();
        events.reap()?;
        Ok(if sequence == 0 || sequence > events.last {
            Standing::Unknown
        } else if sequence <= events.done {
            Standing::Done
        } else {
            let index = usize::try_from(sequence - events.done - 1).expect("pending events are in memory");
            Standing::Pending(events.pending[index].clone())
        })
    }
}
