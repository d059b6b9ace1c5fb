//! The log's slow work, one piece at a time: recovery, probes, footers, new segments, tombstones, reclaim. On a thread of its own
//! (`disk-log-0`), or, under test, wherever somebody waits.

use std::sync::{Arc, PoisonError, TryLockError};
use std::time::Duration;

use cache_core::buffer::Buffer;

use crate::error::DiskEnd;
use crate::footer;
use crate::health::Health;
use crate::index::Location;
use crate::inner::{Inner, Request};
use crate::io::{ALIGN_BYTES, FileId, IoError};
use crate::recovery::read_footer;
use crate::segment::{HEADER_BYTES, Phase, Segment, SegmentHeader};
use crate::testing::PlantedBug;

/// Free segments that are kept ready: one in reserve for reclaim, one to go on with.
pub(crate) const FREE_WANTED: usize = 2;
/// With fewer segments than this the log cannot go round: one to write, one in reserve.
const SEGMENTS_WORKING: u32 = 2;
/// How long the thread sleeps when there is nothing to do, unless it is woken.
const IDLE_MILLIS: u64 = 200;

impl Inner {
    /// The thread: works until the tier closes.
    pub(crate) fn keep(self: &Arc<Inner>) {
        loop {
            {
                let mut log = self.lock();
                if log.is_closing {
                    return;
                }
                log.is_due = false;
            }
            if self.step() {
                continue;
            }
            let log = self.lock();
            if !log.is_closing && !log.is_due {
                let idle = Duration::from_millis(IDLE_MILLIS.min(self.config.probe_millis.max(1)));
                drop(self.due.wait_timeout(log, idle).unwrap_or_else(PoisonError::into_inner));
            }
        }
    }

    /// Does one piece of work. `false`: there was nothing to do.
    pub(crate) fn step(&self) -> bool {
        let _keeping = self.keeping.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.now();
        let (is_offline, is_recovering) = {
            let mut log = self.lock();
            if log.is_closed {
                return false;
            }
            let deadline = self.config.deadline_millis;
            if log.expire_waiting(deadline, now) | log.expire_reads(deadline, now) {
                drop(log);
                self.changed.notify_all();
                // Bounce memory that came back is another read's.
                self.pump();
                return true;
            }
            (matches!(log.health, Health::Offline { .. }), log.recovery.is_some())
        };
        if is_offline {
            return self.give_up_deletions() | self.probe(now);
        }
        // Without a thread of its own, as under test, writes are encoded here.
        if self.testing.is_manual && self.stage_next() {
            return true;
        }
        if self.watch(now) {
            return true;
        }
        if is_recovering {
            return self.recover();
        }
        self.seal() || self.renew() || self.entomb() || self.grow() || self.make_room() || self.settle_waiting()
    }

    /// Looks whether the superblocks are still there, now and then.
    fn watch(&self, now: u64) -> bool {
        {
            let mut log = self.lock();
            if now.saturating_sub(log.watched_at) < self.config.probe_millis.saturating_mul(1_000_000) {
                return false;
            }
            log.watched_at = now;
        }
        // While they are written, one may be made again.
        let writer = self.superblocks.try_lock();
        if matches!(writer, Err(TryLockError::WouldBlock)) {
            return false;
        }
        if let Err(reason) = self.superblocks_are_there() {
            self.change(|log| log.go_offline(reason, now));
            return true;
        }
        false
    }

    /// Tries an offline medium with what matters most: the superblocks, written, synced and read back.
    fn probe(&self, now: u64) -> bool {
        {
            let mut log = self.lock();
            let Health::Offline { probe_at, .. } = &mut log.health else { return false };
            if *probe_at > now {
                return false;
            }
            *probe_at = now.saturating_add(self.config.probe_millis.max(1).saturating_mul(1_000_000));
        }
        // Written first: a copy that is made again is there only then.
        let is_well = self.write_superblocks(|_| None).is_ok()
            && self.superblocks_are_there().is_ok()
            && FileId::SUPERBLOCKS.iter().all(|file| self.superblock_is_ours(*file));
        if is_well {
            self.change(|log| log.health = Health::Good { failed_reads: 0 });
        }
        true
    }

    /// Tells those who wait for deletions that the medium is away; the records are made unreadable all the same when it is back.
    fn give_up_deletions(&self) -> bool {
        self.change(|log| {
            let waiting: Vec<_> = log.tombstones.iter_mut().filter_map(|tombstone| tombstone.op.take()).collect();
            for (op, key, _) in &waiting {
                log.finish(*op, *key, None, Err(DiskEnd::Offline));
            }
            !waiting.is_empty()
        })
    }

    /// Makes one record unreadable on disk: a deleted one, whose deletion then ends, or a damaged one. Waits until no stale segment is left:
    /// what is in those, older copies of the same record perhaps, is dead only once they have been begun anew.
    pub(crate) fn entomb(&self) -> bool {
        let (tombstone, page) = {
            let mut log = self.lock();
            if log.segments.in_phase(Phase::Stale).next().is_some() {
                return false;
            }
            let Some(tombstone) = log.tombstones.pop_front() else { return false };
            // What was begun anew since holds nothing of it any more.
            let is_current = |(location, generation): &(Location, u64)| {
                let segment = log.segments.at(location.segment);
                segment.generation == *generation && segment.phase != Phase::Absent
            };
            (tombstone, tombstone.place.filter(is_current).map(|(location, _)| location))
        };
        let mut result: Result<(), IoError> = Ok(());
        if let Some(location) = page {
            result = self.unlist(&location);
        }
        if let (Some(location), Ok(())) = (page, result) {
            let file = FileId::segment(location.segment);
            let blank = Buffer::zeroed(ALIGN_BYTES as usize);
            let request = Request::write(file, u64::from(location.page) * ALIGN_BYTES, blank);
            result = self.perform_one(request, "delete a record").map(drop);
            self.lock().unsynced.insert(location.segment);
        }
        if let (Some(location), Err(error)) = (page, &result) {
            self.lock().poison(location.segment, error);
        }
        let Some((op, key, end)) = tombstone.op else { return true };
        let result = result.and_then(|()| self.sync_tombstones());
        self.change(|log| log.finish(op, key, None, result.map_err(DiskEnd::Failed).and(end)));
        true
    }

    /// Takes a record out of its segment's footer, durably, so that recovery does not find it there once its header is gone.
    fn unlist(&self, location: &Location) -> Result<(), IoError> {
        let (owner, segment_bytes, is_sealed) = {
            let log = self.lock();
            let segment = log.segments.at(location.segment);
            let (store_id, generation) = (log.superblock.store_id, segment.generation);
            let owner = footer::Owner { store_id, segment: location.segment, generation };
            (owner, log.layout.segment_bytes, matches!(segment.phase, Phase::Sealed | Phase::Reclaiming))
        };
        if !is_sealed {
            return Ok(());
        }
        let file = FileId::segment(location.segment);
        let mut read = |offset, bytes| self.perform_one(Request::read(file, offset, bytes), "read a footer");
        let end = read(segment_bytes - ALIGN_BYTES, ALIGN_BYTES)?;
        let Some((tail, mut entries)) = read_footer(&owner, end.as_slice(), segment_bytes, &mut read)? else {
            return Ok(());
        };
        let before = entries.len();
        entries.retain(|entry| entry.page != location.page);
        if entries.len() == before {
            return Ok(());
        }
        let bytes = footer::bytes_for(entries.len() as u64);
        let mut buffer = Buffer::zeroed(bytes as usize);
        footer::encode(&owner, tail, &entries, buffer.as_mut_slice());
        self.perform_one(Request::write(file, segment_bytes - bytes, buffer), "write a footer")?;
        self.perform_one(Request::sync(file), "delete a record").map(drop)
    }

    /// Makes every tombstone so far durable.
    pub(crate) fn sync_tombstones(&self) -> Result<(), IoError> {
        let segments = std::mem::take(&mut self.lock().unsynced);
        for segment in &segments {
            if let Err(error) = self.perform_one(Request::sync(FileId::segment(*segment)), "delete a record") {
                self.lock().unsynced.extend(&segments);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Ends one full segment whose writes are over: what it holds is made durable, then its footer is written.
    pub(crate) fn seal(&self) -> bool {
        let (segment, file_offset, buffer) = {
            let mut log = self.lock();
            let ready = |log: &crate::log::Log, at: &u32| log.segments.at(*at).writers == 0;
            let Some(at) = log.segments.in_phase(Phase::Sealing).find(|at| ready(&log, at)) else { return false };
            let owner = footer::Owner {
                store_id: log.superblock.store_id,
                segment: at,
                generation: log.segments.at(at).generation,
            };
            let mut entries = std::mem::take(&mut log.segments.at_mut(at).entries);
            entries.retain(|entry| log.holds(at, entry));
            let bytes = footer::bytes_for(entries.len() as u64);
            let mut buffer = Buffer::zeroed(bytes as usize);
            footer::encode(&owner, log.segments.at(at).tail, &entries, buffer.as_mut_slice());
            (at, log.layout.segment_bytes - bytes, buffer)
        };
        let file = FileId::segment(segment);
        let synced = self.perform_one(Request::sync(file), "sync a segment");
        // Without a footer the segment is read record by record at the next recovery; it is read-only from here on either way.
        if synced.is_ok() {
            let written = self.perform_one(Request::write(file, file_offset, buffer), "write a footer");
            if let Err(error) = written {
                self.lock().abandon(segment, &error);
            }
        }
        self.change(|log| log.segments.at_mut(segment).phase = Phase::Sealed);
        true
    }

    /// Begins a stale segment anew, once nobody reads it any more. One that a write may still reach is removed and made again: what comes
    /// late then goes to a file without a name.
    pub(crate) fn renew(&self) -> bool {
        let (segment, is_poisoned) = {
            let log = self.lock();
            let unread = |at: &u32| log.segments.at(*at).readers == 0 || log.has(PlantedBug::ReuseUnderReaders);
            let Some(at) = log.segments.in_phase(Phase::Stale).find(unread) else {
                return false;
            };
            (at, log.segments.at(at).is_poisoned)
        };
        if !is_poisoned {
            return self.begin_segment(segment).is_ok();
        }
        let removed = self.medium.remove(FileId::segment(segment)).and_then(|()| self.list_files());
        let now = self.now();
        self.change(|log| match removed {
            Ok(_) => *log.segments.at_mut(segment) = Segment::new(Phase::Absent),
            Err(error) => log.go_offline(format!("remove a segment: {error}"), now),
        });
        true
    }

    /// Writes and syncs a header of a new generation; then the segment is free, and what was in it is dead whatever crash follows.
    pub(crate) fn begin_segment(&self, segment: u32) -> Result<(), IoError> {
        let (header, buffer) = {
            let mut log = self.lock();
            log.begun += 1;
            let header = SegmentHeader {
                generation: (log.superblock.run << 32) | u64::from(log.begun),
                epoch: log.durable_epoch,
            };
            let mut buffer = Buffer::zeroed(HEADER_BYTES as usize);
            header.encode(log.superblock.store_id, segment, log.layout.segment_bytes, buffer.as_mut_slice());
            (header, buffer)
        };
        let file = FileId::segment(segment);
        let written = self.perform_one(Request::write(file, 0, buffer), "begin a segment");
        let result = written.and_then(|_| self.perform_one(Request::sync(file), "begin a segment"));
        self.change(|log| match result {
            Ok(_) => {
                log.segments.at_mut(segment).begin(header);
                log.segments.free.push_back(segment);
                log.place_waiting();
                Ok(())
            }
            Err(error) => {
                log.poison(segment, &error);
                Err(error)
            }
        })
    }

    /// Makes one more segment file while the budget has room and free ones are few.
    fn grow(&self) -> bool {
        let (segment, segment_bytes, budget_bytes, existing) = {
            let log = self.lock();
            if log.segments.free.len() >= log.free_wanted {
                return false;
            }
            let limit = log.segments_limit();
            let Some(segment) = log.segments.in_phase(Phase::Absent).find(|at| *at < limit) else { return false };
            let existing = limit - log.segments.in_phase(Phase::Absent).filter(|at| *at < limit).count() as u32;
            (segment, log.layout.segment_bytes, log.layout.budget_bytes, existing)
        };
        let file = FileId::segment(segment);
        let made = self.medium.create(file, segment_bytes).and_then(|()| self.list_files());
        let is_over = made.is_ok()
            && self.lock().allocated_bytes > budget_bytes
            && !self.testing.has(PlantedBug::TooManySegments);
        if made.is_err() || is_over {
            // The medium has removed what it could not make; this is for one that takes more than it should.
            let removed = self.medium.remove(file).and_then(|()| self.list_files());
            let now = self.now();
            let word = match (&made, &removed) {
                (Err(error), _) | (_, Err(error)) => error.to_string(),
                _ => "it takes more blocks than the budget has".into(),
            };
            self.change(|log| {
                if existing < SEGMENTS_WORKING {
                    log.go_offline(format!("make a segment: {word}"), now);
                } else {
                    log.segments_cap = Some((segment, word));
                }
            });
            return true;
        }
        self.change(|log| log.segments.at_mut(segment).phase = Phase::Stale);
        true
    }

    /// Reclaims a segment when free ones or index entries run out while somebody writes. A log that is only read keeps what it has: opening
    /// a full one costs none of its records.
    fn make_room(&self) -> bool {
        let is_wanted = {
            let log = self.lock();
            let is_waited_for = !log.waiting.is_empty();
            let short_of_index = log.index.len() as usize + log.writes.len() >= log.index.capacity() as usize;
            let short_of_free = log.segments.free.len() < FREE_WANTED;
            let is_short =
                short_of_free && (is_waited_for || log.segments.active.is_some()) || short_of_index && is_waited_for;
            is_short && log.segments.in_phase(Phase::Stale).next().is_none()
        };
        is_wanted && self.reclaim()
    }

    /// Nothing more can be done for writes that wait: places what fits, and ends the rest as full unless a segment is still being ended.
    fn settle_waiting(&self) -> bool {
        if self.lock().waiting.is_empty() {
            return false;
        }
        self.change(|log| {
            let before = log.waiting.len();
            log.place_waiting();
            let may_come =
                [Phase::Sealing, Phase::Stale].iter().any(|phase| log.segments.in_phase(*phase).next().is_some());
            if !may_come {
                log.refuse_waiting(DiskEnd::Full);
            }
            log.waiting.len() != before
        })
    }
}
