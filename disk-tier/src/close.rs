//! An orderly end: queues drained, segments sealed, the index in a snapshot, and the mark that says so.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::error::DiskEnd;
use crate::inner::{Inner, Request};
use crate::io::FileId;
use crate::log::Log;
use crate::segment::Phase;
use crate::snapshot::{SegmentState, Snapshot};
use crate::superblock::Clean;

impl Inner {
    /// Ends the log; `join` waits for the keeper's thread.
    pub(crate) fn close(self: &Arc<Inner>, millis: u64, join: impl FnOnce()) {
        let until = Instant::now() + Duration::from_millis(millis.min(1 << 40));
        let left = || until.saturating_duration_since(Instant::now()).as_millis() as u64;
        if self.lock().is_closing {
            return;
        }
        self.wait_until(left(), |log| (log.under_way == 0).then_some(()));
        let is_well = {
            let mut log = self.lock();
            let is_well = log.recovery.is_none() && !log.is_offline();
            log.is_closing = true;
            is_well
        };
        self.changed.notify_all();
        self.due.notify_all();
        self.stage_due.notify_all();
        join();
        if is_well && left() > 0 {
            self.end_well();
        }
        self.change(|log| {
            log.is_closed = true;
            log.refuse_waiting(DiskEnd::Offline);
            for tombstone in std::mem::take(&mut log.tombstones) {
                if let Some((op, key, _)) = tombstone.op {
                    log.finish(op, key, None, Err(DiskEnd::Offline));
                }
            }
        });
        self.medium.close(left().max(1));
        self.changed.notify_all();
    }

    /// Ends the log as a crash would: nothing is drained, sealed or marked. The medium has a deadline's time to come to an end, also where a
    /// close before left it less, so that whoever opens the store next does not find it held.
    pub(crate) fn drop_all(&self, join: impl FnOnce()) {
        let was_closing = std::mem::replace(&mut self.lock().is_closing, true);
        self.changed.notify_all();
        self.due.notify_all();
        self.stage_due.notify_all();
        join();
        if !was_closing {
            self.change(|log| {
                log.is_closed = true;
                log.refuse_waiting(DiskEnd::Offline);
            });
        }
        self.medium.close(self.config.deadline_millis);
    }

    fn end_well(&self) {
        let _keeping = self.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        while self.renew() || self.entomb() {}
        {
            let mut log = self.lock();
            if let Some(active) = log.segments.active.take() {
                log.segments.at_mut(active).phase = Phase::Sealing;
            }
        }
        while self.seal() {}
        let is_synced = self.sync_tombstones().is_ok();
        let is_whole = is_synced && {
            let log = self.lock();
            log.tombstones.is_empty() && matches!(log.health, crate::health::Health::Good { .. })
        };
        if is_whole {
            // An error leaves the store without the mark: it is recovered from its footers.
            let _ = self.write_superblocks(|sequence| self.write_snapshot(sequence));
        }
    }

    fn write_snapshot(&self, sequence: u64) -> Option<Clean> {
        let (snapshot, budget_bytes) = {
            let log = self.lock();
            (log.snapshot(sequence), log.layout.budget_bytes)
        };
        let (buffer, snapshot_sum) = snapshot.encode();
        let snapshot_bytes = buffer.as_slice().len() as u64;
        let made = self.medium.create(FileId::SNAPSHOT, snapshot_bytes).and_then(|()| self.list_files());
        if made.is_err() || self.lock().allocated_bytes > budget_bytes {
            let _ = self.medium.remove(FileId::SNAPSHOT).and_then(|()| self.list_files());
            return None;
        }
        self.perform_one(Request::write(FileId::SNAPSHOT, 0, buffer), "write the snapshot").ok()?;
        self.perform_one(Request::sync(FileId::SNAPSHOT), "sync the snapshot").ok()?;
        Some(Clean { snapshot_sum, snapshot_bytes })
    }
}

impl Log {
    fn snapshot(&self, sequence: u64) -> Snapshot {
        let states = self.segments.list.iter().enumerate().filter(|(_, segment)| segment.phase != Phase::Absent);
        let segments = states.map(|(at, segment)| SegmentState {
            segment: at as u32,
            is_sealed: !matches!(segment.phase, Phase::Free | Phase::Stale | Phase::Unread),
            generation: segment.generation,
            epoch: segment.epoch,
        });
        Snapshot {
            store_id: self.superblock.store_id,
            sequence,
            segments: segments.collect(),
            records: self.index.iter().collect(),
        }
    }
}
