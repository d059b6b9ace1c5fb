//! The state of the log, changed only under one lock and by plain functions: what is decided here is decided in one order.
//!
//! Operations that a change asks for are put into [`Traffic`]; they start after the lock is free. Nothing here waits or does I/O.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};

use cache_core::hash::Namespace;
use cache_core::key::CopyKey;
use cache_core::miss::MissReason;
use cache_core::store::OpId;

use crate::admission::{Ghosts, Limit, Sketch};
use crate::bounce::Bounce;
use crate::error::DiskEnd;
use crate::footer;
use crate::health::Health;
use crate::index::{Fingerprint, Index, Known, Location, namespace_tag};
use crate::io::{ALIGN_BYTES, Done, IoError, Memory, Operation};
use crate::keeper::FREE_WANTED;
use crate::layout::Layout;
use crate::read::ReadJob;
use crate::record::RecordHeader;
use crate::recovery::Recovery;
use crate::report::{DiskCounters, DiskDone, DiskOk, DiskState};
use crate::segment::{Phase, Segments};
use crate::stage::ByteStage;
use crate::superblock::Superblock;
use crate::testing::{PlantedBug, Testing};
use crate::traffic::Traffic;
use crate::write::WriteJob;

/// Operations under way or not polled yet; more are refused.
pub(crate) const OPERATIONS_MAX: usize = 1024;
/// Writes that wait to be encoded or for room; more end as full.
pub(crate) const WAITING_MAX: usize = 256;

/// Whose an operation of the medium is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Flight {
    /// The header pages of a write.
    WriteHeader(u64),
    /// The bytes of a write that belong to the caller.
    WriteBody(u64),
    /// A whole staged record, from bounce memory.
    WriteStaged(u64),
    /// The header pages of a section read.
    ReadHeader(u64),
    /// The bytes that the caller wants, or what is stored of them.
    ReadBody(u64),
    /// Somebody waits for it.
    Ticket(u64),
}

/// A record to be made unreadable on disk, or somebody who waits until everything before is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tombstone {
    /// The deletion that waits for it, and how that ends.
    pub op: Option<(OpId, CopyKey, Result<DiskOk, DiskEnd>)>,
    /// Where the record lies, in which generation of the segment.
    pub place: Option<(Location, u64)>,
}

/// The state of one log.
pub(crate) struct Log {
    pub layout: Layout,
    pub testing: Testing,
    /// What is meant to be on disk: deletions count from the moment they are asked for.
    pub superblock: Superblock,
    /// Epoch of the superblock that is known to be on disk. Records are written under it, never under a later one, so that no record can
    /// be younger than a deletion that comes after a crash.
    pub durable_epoch: u64,
    /// Segments begun in this run.
    pub begun: u32,
    pub segments: Segments,
    pub index: Index,
    pub ghosts: Ghosts,
    pub sketch: Option<Sketch>,
    pub limit: Option<Limit>,
    pub pins: HashMap<Fingerprint, u32>,
    /// Keys that are being written.
    pub pending: HashSet<Fingerprint>,
    pub stage: ByteStage,
    /// Writes that wait to be encoded, in order.
    pub to_stage: VecDeque<WriteJob>,
    /// Memory for staged records to be written.
    pub write_bounce: Bounce,
    /// Writes that wait for room, in order.
    pub waiting: VecDeque<WriteJob>,
    pub writes: HashMap<u64, WriteJob>,
    pub reads: HashMap<u64, ReadJob>,
    /// Memory for what is read of staged records.
    pub read_bounce: Bounce,
    /// Reads that wait for it, in order.
    pub bounced: VecDeque<u64>,
    pub tombstones: VecDeque<Tombstone>,
    /// Segments with tombstones that were not synced.
    pub unsynced: BTreeSet<u32>,
    pub traffic: Traffic,
    pub flights: HashMap<u64, (Flight, crate::io::Kind)>,
    pub tickets: HashMap<u64, Option<Done>>,
    pub finished: VecDeque<DiskDone>,
    pub under_way: usize,
    pub recovery: Option<Recovery>,
    pub health: Health,
    /// The keeper has something to do.
    pub is_due: bool,
    pub is_closing: bool,
    pub is_closed: bool,
    pub counters: DiskCounters,
    /// No segment from this number on can be made: the file system said so.
    pub segments_cap: Option<(u32, String)>,
    /// Free segments up to which new ones are made.
    pub free_wanted: usize,
    /// How often an offline medium is probed.
    pub probe_millis: u64,
    /// When the superblocks were last looked for.
    pub watched_at: u64,
    /// Allocated blocks of all files, as last listed.
    pub allocated_bytes: u64,
    pub next: u64,
}

impl Log {
    pub(crate) fn new(layout: Layout, testing: Testing, superblock: Superblock, parts: Parts) -> Log {
        let records = layout.records_max;
        Log {
            durable_epoch: superblock.epoch,
            superblock,
            begun: 0,
            segments: Segments::new(layout.segments_max),
            index: Index::new(records, layout.segments_max),
            ghosts: Ghosts::new(records),
            sketch: parts.second_hit.then(|| Sketch::new(records)),
            limit: parts.write_limit_bytes_s.map(|bytes_s| Limit::new(bytes_s, 0)),
            pins: HashMap::new(),
            pending: HashSet::new(),
            stage: parts.stage,
            to_stage: VecDeque::new(),
            write_bounce: Bounce::new(parts.bounce_bytes / 3),
            waiting: VecDeque::new(),
            writes: HashMap::new(),
            reads: HashMap::new(),
            read_bounce: Bounce::new(parts.bounce_bytes / 3 * 2),
            bounced: VecDeque::new(),
            tombstones: VecDeque::new(),
            unsynced: BTreeSet::new(),
            traffic: Traffic::new(parts.depth),
            flights: HashMap::new(),
            tickets: HashMap::new(),
            finished: VecDeque::new(),
            under_way: 0,
            recovery: None,
            health: Health::Good { failed_reads: 0 },
            is_due: true,
            is_closing: false,
            is_closed: false,
            counters: DiskCounters::default(),
            segments_cap: None,
            free_wanted: FREE_WANTED,
            probe_millis: parts.probe_millis,
            watched_at: 0,
            allocated_bytes: 0,
            next: 0,
            layout,
            testing,
        }
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub(crate) fn fingerprint(&self, key: &CopyKey) -> Fingerprint {
        Fingerprint::of(&self.superblock.store_id, key)
    }

    pub(crate) fn state(&self) -> DiskState {
        if self.is_closed || self.is_closing {
            return DiskState::Closed;
        }
        match (&self.health, &self.recovery) {
            (Health::Offline { reason, .. }, _) => DiskState::Offline { reason: reason.clone() },
            (_, Some(recovery)) => {
                DiskState::Recovering { done_segments: recovery.done_segments, segments: recovery.segments }
            }
            _ => DiskState::Ready,
        }
    }

    pub(crate) fn is_offline(&self) -> bool {
        self.is_closed || self.is_closing || matches!(self.health, Health::Offline { .. })
    }

    /// Names a new operation of a user.
    pub(crate) fn begin(&mut self) -> OpId {
        self.under_way += 1;
        OpId(self.number())
    }

    /// Too many operations are under way or not polled.
    pub(crate) fn is_busy(&self) -> bool {
        self.under_way + self.finished.len() >= OPERATIONS_MAX
    }

    /// Ends an operation of a user.
    pub(crate) fn finish(&mut self, op: OpId, key: CopyKey, memory: Option<Memory>, result: Result<DiskOk, DiskEnd>) {
        self.under_way -= 1;
        match result {
            Err(DiskEnd::Miss(_)) => self.counters.misses += 1,
            Err(DiskEnd::Full) => self.counters.full += 1,
            _ => {}
        }
        self.finished.push_back(DiskDone { op, key, memory, result });
    }

    /// Sends an operation on its way; returns its number.
    pub(crate) fn launch(&mut self, flight: Flight, operation: impl FnOnce(u64) -> Operation) -> u64 {
        let id = self.number();
        let operation = operation(id);
        self.flights.insert(id, (flight, operation.kind));
        self.traffic.push(operation);
        id
    }

    /// First byte of a record in the store: what its header names as its offset.
    pub(crate) fn offset(&self, location: &Location) -> u64 {
        u64::from(location.segment) * self.layout.segment_bytes + u64::from(location.page) * ALIGN_BYTES
    }

    /// Takes room for an image in the active segment, or in the next free one; the last free one only for reclaim. The segment has one
    /// writer more until the write has ended.
    pub(crate) fn allocate(&mut self, pages: u32, is_reclaim: bool) -> Option<Location> {
        let bytes = u64::from(pages) * ALIGN_BYTES;
        loop {
            if let Some(active) = self.segments.active {
                let segment_bytes = self.layout.segment_bytes;
                let segment = self.segments.at_mut(active);
                let entries = segment.entries.len() as u64 + u64::from(segment.writers) + 1;
                if segment.tail + bytes + footer::bytes_for(entries) <= segment_bytes {
                    let page = (segment.tail / ALIGN_BYTES) as u32;
                    segment.tail += bytes;
                    segment.writers += 1;
                    return Some(Location { segment: active, page, pages });
                }
                segment.phase = Phase::Sealing;
                self.segments.active = None;
            }
            self.is_due = true;
            if self.segments.free.len() < if is_reclaim { 1 } else { 2 } {
                return None;
            }
            let next = self.segments.free.pop_front().expect("just counted");
            self.segments.at_mut(next).phase = Phase::Active;
            self.segments.active = Some(next);
        }
    }

    /// A write of a segment failed: nothing more goes there, and what was not ended in time keeps it from ever being used again.
    pub(crate) fn abandon(&mut self, segment: u32, error: &IoError) {
        if self.segments.active == Some(segment) {
            self.segments.active = None;
            self.segments.at_mut(segment).phase = Phase::Sealing;
        }
        self.counters.abandoned_segments += 1;
        self.is_due = true;
        self.poison(segment, error);
    }

    /// What was not ended in time may still reach the segment's file, which is therefore not used for another tenant.
    pub(crate) fn poison(&mut self, segment: u32, error: &IoError) {
        self.segments.at_mut(segment).is_poisoned |= matches!(error, IoError::TimedOut { .. });
    }

    /// Puts a record that is whole on disk into index and footer list. `false`: the index has no room, or it was deleted meanwhile.
    pub(crate) fn publish(&mut self, key: &CopyKey, location: Location, epoch: u64) -> bool {
        let fingerprint = self.fingerprint(key);
        let known = Known { fingerprint, location, namespace: namespace_tag(&key.namespace), is_hit: false };
        if epoch < self.superblock.valid_from(&key.namespace) || !self.index.insert(known) {
            return false;
        }
        self.ghosts.remove(&fingerprint);
        self.list(key, location, epoch);
        true
    }

    /// Notes a record for its segment's footer.
    pub(crate) fn list(&mut self, key: &CopyKey, location: Location, epoch: u64) {
        let segment = self.segments.at_mut(location.segment);
        segment.live_pages += u64::from(location.pages);
        segment.entries.push(footer::Entry { key: *key, epoch, page: location.page, pages: location.pages });
    }

    /// Takes a record out of the index.
    pub(crate) fn forget(&mut self, fingerprint: &Fingerprint) -> Option<Known> {
        let known = self.index.remove(fingerprint)?;
        let segment = self.segments.at_mut(known.location.segment);
        segment.live_pages = segment.live_pages.saturating_sub(u64::from(known.location.pages));
        Some(known)
    }

    /// Takes every record out of the index that may be of this namespace.
    pub(crate) fn forget_namespace(&mut self, namespace: &Namespace) {
        let tag = namespace_tag(namespace);
        let gone: Vec<Fingerprint> =
            self.index.iter().filter(|known| known.namespace == tag).map(|known| known.fingerprint).collect();
        for fingerprint in gone {
            self.forget(&fingerprint);
        }
    }

    /// A record did not verify or could not be read: it is taken out if it still lies where it was read, and made unreadable on disk.
    pub(crate) fn quarantine(&mut self, fingerprint: &Fingerprint, location: Location) {
        if self.index.find(fingerprint).is_some_and(|known| known.location == location) {
            self.forget(fingerprint);
            self.counters.quarantined += 1;
            self.bury(location);
        }
    }

    /// Asks for a record that the index does not know to be made unreadable: it would come back at the next recovery, perhaps after its key
    /// was deleted.
    pub(crate) fn bury(&mut self, location: Location) {
        let generation = self.segments.at(location.segment).generation;
        self.tombstones.push_back(Tombstone { op: None, place: Some((location, generation)) });
        self.is_due = true;
    }

    /// Starts a deletion. One of a key that the index does not know waits too, while copies that were dropped may still be found on disk.
    pub(crate) fn start_delete(&mut self, key: CopyKey) -> OpId {
        let op = self.begin();
        let fingerprint = self.fingerprint(&key);
        let (end, place) = match self.lookup(&fingerprint) {
            // Not known yet is not the same as not there.
            Err(MissReason::Recovering | MissReason::TierOffline) => {
                self.finish(op, key, None, Err(DiskEnd::Offline));
                return op;
            }
            Err(reason) => (Err(DiskEnd::Miss(reason)), None),
            Ok(known) => {
                self.forget(&fingerprint);
                (Ok(DiskOk::Deleted), Some((known.location, self.segments.at(known.location.segment).generation)))
            }
        };
        let is_calm = self.tombstones.is_empty()
            && self.unsynced.is_empty()
            && [Phase::Stale, Phase::Reclaiming].iter().all(|phase| self.segments.in_phase(*phase).next().is_none());
        if place.is_none() && is_calm {
            self.finish(op, key, None, end);
        } else {
            self.tombstones.push_back(Tombstone { op: Some((op, key, end)), place });
            self.is_due = true;
        }
        op
    }

    /// Bytes of index, ghosts and sketch.
    pub(crate) fn index_bytes(&self) -> u64 {
        self.index.bytes() + self.ghosts.bytes() + self.sketch.as_ref().map_or(0, Sketch::bytes)
    }

    /// Segment files that exist.
    pub(crate) fn segments_count(&self) -> u32 {
        self.segments.list.iter().filter(|segment| segment.phase != Phase::Absent).count() as u32
    }

    /// Segments that may exist.
    pub(crate) fn segments_limit(&self) -> u32 {
        self.segments_cap.as_ref().map_or(self.layout.segments_max, |(cap, _)| *cap)
    }

    /// Whether the index knows a record of a segment at this very place.
    pub(crate) fn holds(&self, segment: u32, entry: &footer::Entry) -> bool {
        let location = Location { segment, page: entry.page, pages: entry.pages };
        self.index.find(&self.fingerprint(&entry.key)).is_some_and(|known| known.location == location)
    }

    /// Places writes that wait for room, in order, as far as there is any.
    pub(crate) fn place_waiting(&mut self) {
        while let Some(job) = self.waiting.pop_front() {
            if let Some(job) = self.place(job) {
                self.waiting.push_front(job);
                return;
            }
        }
    }

    /// Ends every write that waits to be encoded or for room.
    pub(crate) fn refuse_waiting(&mut self, end: DiskEnd) {
        let unstaged = std::mem::take(&mut self.to_stage);
        for job in std::mem::take(&mut self.waiting).into_iter().chain(unstaged) {
            self.end_unplaced(job, end);
        }
    }

    /// Whether a bug was put in.
    pub(crate) fn has(&self, bug: PlantedBug) -> bool {
        self.testing.has(bug)
    }
}

/// What [`Log::new`] takes from the settings.
pub(crate) struct Parts {
    pub second_hit: bool,
    pub write_limit_bytes_s: Option<u64>,
    pub depth: usize,
    pub probe_millis: u64,
    pub stage: ByteStage,
    pub bounce_bytes: u64,
}

/// The header of a pinned record, once it was read and verified; of another place when the record has moved since.
pub(crate) type HeaderCell = Arc<Mutex<Option<Arc<RecordHeader>>>>;
