//! Staging: writes whose sections are encoded before they get their place.
//!
//! A write that was let in waits here with its image; when bounce memory for its record is there, one thread (`disk-stage-0`, or, under test,
//! wherever somebody waits) encodes it without any lock of the log. Then it goes on as a shorter record, or as the image where no page was
//! gained. The queue is bounded together with that of writes that wait for room, and so is the bounce memory: a disk that does not keep up
//! holds the thread back.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use cache_core::buffer::Buffer;

use crate::error::DiskEnd;
use crate::inner::Inner;
use crate::io::{ALIGN_BYTES, Memory};
use crate::log::Log;
use crate::record::StoredSection;
use crate::write::WriteJob;

/// How long the thread sleeps when there is nothing to do, unless it is woken.
const IDLE_MILLIS: u64 = 200;

impl Inner {
    /// The thread's life. A panic in it takes the tier offline: the write that it had in hand never ends.
    pub(crate) fn keep_staging(&self) {
        if catch_unwind(AssertUnwindSafe(|| self.stage_until_closed())).is_err() {
            let now = self.now();
            self.change(|log| log.go_offline("the stage's thread has panicked".into(), now));
        }
    }

    fn stage_until_closed(&self) {
        loop {
            while self.stage_next() {}
            let log = self.lock();
            if log.is_closing {
                return;
            }
            if !log.can_stage() {
                let idle = Duration::from_millis(IDLE_MILLIS);
                drop(self.stage_due.wait_timeout(log, idle).unwrap_or_else(PoisonError::into_inner));
            }
        }
    }

    /// Encodes one write. `false`: there is none, or no bounce memory for it.
    pub(crate) fn stage_next(&self) -> bool {
        let mut encoder = self.encoder.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((job, mut buffer)) = self.lock().next_to_stage() else { return false };
        let image = job.memory.as_ref().map_or(&[][..], Memory::as_slice);
        let stored = encoder.encode(&job.record.slot, image, buffer.as_mut_slice());
        let now = self.now();
        self.change(|log| log.end_staging(job, buffer, stored, now));
        true
    }
}

impl Log {
    /// True when a write can be encoded now.
    pub(crate) fn can_stage(&self) -> bool {
        self.to_stage.front().is_some_and(|job| self.write_bounce.has_room(job.image_bytes()))
    }

    fn next_to_stage(&mut self) -> Option<(WriteJob, Buffer)> {
        let buffer = self.write_bounce.take(self.to_stage.front()?.image_bytes())?;
        Some((self.to_stage.pop_front()?, buffer))
    }

    /// Sends a write on its way that was encoded, or that is not to be.
    fn end_staging(&mut self, mut job: WriteJob, buffer: Buffer, stored: Option<Vec<StoredSection>>, now_nanos: u64) {
        match stored {
            None => self.write_bounce.give(buffer),
            Some(stored) => {
                job.record.stored = Some(stored);
                job.staged = Some(buffer);
                let record_bytes = u64::from(job.record.pages()) * ALIGN_BYTES;
                if let Some(limit) = &mut self.limit {
                    limit.give_back(job.image_bytes() - record_bytes);
                }
            }
        }
        job.since_nanos = now_nanos;
        if self.is_offline() {
            self.end_unplaced(job, DiskEnd::Offline);
        } else {
            self.place_or_wait(job);
        }
    }
}

/// Starts the thread, where there is something for it to do.
pub(crate) fn start(inner: &Arc<Inner>) -> std::io::Result<std::thread::JoinHandle<()>> {
    let inner = Arc::clone(inner);
    std::thread::Builder::new().name("disk-stage-0".into()).spawn(move || inner.keep_staging())
}
