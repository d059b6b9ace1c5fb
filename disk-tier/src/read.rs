//! Reads: whole images into the slot where they are used, and single sections.
//!
//! A segment counts its readers until the medium has ended their operations; reclaim waits for them before it begins the segment anew. What
//! was read is verified all the same: place, key, epoch and sums.
//!
//! A record of fewer pages than its image is a staged one. What is wanted of it is read into bounce memory and decoded from there into the
//! caller's; where that memory is short, reads wait for it in order. Where a section of it stands is in its header, which is read first unless
//! the pin has it.
//!
//! | file | part |
//! |---|---|
//! | `read` | a read begun, its parts ended, or given up: changes of the log |
//! | `check` | what was read, verified and decoded outside the log's lock |

mod check;

use std::ops::Range;
use std::sync::{Arc, PoisonError};

use cache_core::buffer::{Buffer, round_to_pages};
use cache_core::codec::Codec;
use cache_core::header::{CheckFailure, RecordPlace, SlotHeader};
use cache_core::key::CopyKey;
use cache_core::miss::MissReason;
use cache_core::payload::{BlockShape, Section};
use cache_core::store::OpId;

use crate::error::DiskEnd;
use crate::index::{Fingerprint, Location};
use crate::io::{ALIGN_BYTES, Done, FileId, IoError, Kind, Memory, Operation};
use crate::log::{Flight, HeaderCell, Log};
use crate::record::{RecordHeader, staged_header_bytes};
use crate::report::DiskOk;
use crate::segment::Phase;
use crate::stage;
use crate::testing::{PlantedBug, Testing};
use crate::write::owned;

pub(crate) use check::Verified;

/// The pages that hold a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionSpan {
    /// First byte of the first page, in the slot image.
    pub offset: u64,
    /// Bytes of the pages: what the memory of a section read must hold.
    pub bytes: u64,
    /// First byte of the section in the span.
    pub start: u64,
}

/// The whole pages around a section.
pub fn section_span(section: Section) -> SectionSpan {
    let offset = section.offset - section.offset % ALIGN_BYTES;
    let end = (section.offset + section.bytes).next_multiple_of(ALIGN_BYTES);
    SectionSpan { offset, bytes: end - offset, start: section.offset - offset }
}

/// What a read is about.
pub(crate) enum Wanted {
    Whole,
    /// One section; the header is read along unless the cell has it.
    Section(Section, HeaderCell),
}

/// A read under way.
pub(crate) struct ReadJob {
    pub op: OpId,
    pub key: CopyKey,
    pub fingerprint: Fingerprint,
    pub shape: BlockShape,
    pub wanted: Wanted,
    pub location: Location,
    /// What the header must say: store id, generation and offset; the epoch is looked at by itself.
    place: RecordPlace,
    pub since_nanos: u64,
    /// The caller's; with the operation while that fills it.
    pub memory: Option<Memory>,
    header_pages: Option<Memory>,
    /// The record's header, once it was read and verified.
    header: Option<Arc<RecordHeader>>,
    /// Of a staged record, what is read into bounce memory; empty while only its header is.
    stored_range: Range<u64>,
    /// The bounce memory, with what was read.
    stored: Option<Buffer>,
    is_staged: bool,
    parts_left: u8,
    /// Numbers of its operations.
    parts: [u64; 2],
    error: Option<IoError>,
    /// The segment counts it among its readers.
    is_counted: bool,
    /// Its user was told that it took too long; only the segment still waits for it.
    is_orphan: bool,
}

impl Log {
    /// Starts a read, or ends it at once.
    pub(crate) fn start_read(
        &mut self,
        key: CopyKey,
        shape: BlockShape,
        wanted: Wanted,
        memory: Memory,
        now_nanos: u64,
    ) -> OpId {
        let op = self.begin();
        let fingerprint = self.fingerprint(&key);
        let location = match self.locate(&fingerprint, &shape, &wanted, memory.bytes()) {
            Ok(location) => location,
            Err(end) => {
                self.finish(op, key, Some(memory), Err(end));
                return op;
            }
        };
        self.index.touch(&fingerprint);
        self.segments.at_mut(location.segment).readers += 1;
        let number = self.number();
        let place = self.record_place(&location, 0);
        let job = ReadJob {
            op,
            key,
            fingerprint,
            shape,
            header: known_header(&wanted, &place),
            wanted,
            location,
            place,
            since_nanos: now_nanos,
            memory: Some(memory),
            header_pages: None,
            stored_range: 0..0,
            stored: None,
            is_staged: location.bytes() < shape.slot_bytes(),
            parts_left: 0,
            parts: [number; 2],
            error: None,
            is_counted: true,
            is_orphan: false,
        };
        if job.is_staged {
            self.read_staged(number, job)
        } else {
            self.read_image(number, job)
        }
        op
    }

    /// Reads a record that is an image straight into the caller's memory.
    fn read_image(&mut self, number: u64, mut job: ReadJob) {
        let range = wanted_range(&job.wanted, &job.shape);
        let memory = job.memory.take().expect("a read that begins has its memory");
        let body =
            self.launch_read(Flight::ReadBody(number), &job.location, range.start, memory, range.end - range.start);
        let needs_header = matches!(job.wanted, Wanted::Section(..)) && job.header.is_none();
        let header = if needs_header {
            let bytes = job.shape.header_bytes();
            self.launch_read(Flight::ReadHeader(number), &job.location, 0, owned(bytes), bytes)
        } else {
            body
        };
        (job.parts, job.parts_left) = ([body, header], 1 + u8::from(needs_header));
        self.reads.insert(number, job);
    }

    /// The next step of a read of a staged record: what is stored of it, or its header where that is not known yet.
    pub(crate) fn read_staged(&mut self, number: u64, mut job: ReadJob) {
        let range = match (&job.wanted, &job.header) {
            (Wanted::Whole, _) => Some(0..job.location.bytes()),
            (Wanted::Section(section, _), Some(header)) => {
                let (_, span) = header.stored_at(section.index).expect("the header has a staged record's sections");
                Some(span.start - span.start % ALIGN_BYTES..round_to_pages(span.end))
            }
            (Wanted::Section(..), None) => None,
        };
        match range {
            Some(range) => {
                job.stored_range = range;
                self.reads.insert(number, job);
                self.bounced.push_back(number);
                self.launch_bounced();
            }
            None => {
                let bytes = staged_header_bytes(job.shape.section_count());
                let id = self.launch_read(Flight::ReadHeader(number), &job.location, 0, owned(bytes), bytes);
                (job.parts, job.parts_left) = ([id; 2], 1);
                self.reads.insert(number, job);
            }
        }
    }

    /// Sends reads of staged records on their way, in order, as far as there is bounce memory.
    pub(crate) fn launch_bounced(&mut self) {
        while let Some(number) = self.bounced.front().copied() {
            if let Some(job) = self.reads.get(&number) {
                let (location, range) = (job.location, job.stored_range.clone());
                let Some(buffer) = self.read_bounce.take(job.bounce_bytes()) else { return };
                let (memory, bytes) = (Memory::Owned(buffer), range.end - range.start);
                let id = self.launch_read(Flight::ReadBody(number), &location, range.start, memory, bytes);
                let job = self.reads.get_mut(&number).expect("just seen");
                (job.parts, job.parts_left) = ([id; 2], 1);
            }
            // Else it was given up while it waited.
            self.bounced.pop_front();
        }
    }

    /// Takes bounce memory back from the medium, or gives it up to it.
    fn return_bounce(&mut self, memory: Option<Memory>, bytes: u64) {
        match memory {
            Some(Memory::Owned(buffer)) => self.read_bounce.give(buffer),
            _ => self.read_bounce.lose(bytes),
        }
        self.launch_bounced();
    }

    /// The segment does not wait for this read any more.
    fn uncount(&mut self, job: &mut ReadJob) {
        if std::mem::take(&mut job.is_counted) {
            let segment = self.segments.at_mut(job.location.segment);
            segment.readers = segment.readers.saturating_sub(1);
            self.is_due |= segment.readers == 0 && segment.phase == Phase::Stale;
        }
    }

    fn locate(
        &self,
        fingerprint: &Fingerprint,
        shape: &BlockShape,
        wanted: &Wanted,
        found_bytes: u64,
    ) -> Result<Location, DiskEnd> {
        let range = wanted_range(wanted, shape);
        let expected_bytes = range.end - range.start;
        let fits =
            if matches!(wanted, Wanted::Whole) { found_bytes == expected_bytes } else { found_bytes >= expected_bytes };
        if !fits {
            return Err(DiskEnd::Size { expected_bytes, found_bytes });
        }
        if self.is_busy() {
            return Err(DiskEnd::Miss(MissReason::Quota));
        }
        let known = self.lookup(fingerprint).map_err(DiskEnd::Miss)?;
        let (bytes, slot_bytes) = (known.location.bytes(), shape.slot_bytes());
        let is_staged = bytes < slot_bytes && bytes >= staged_header_bytes(shape.section_count());
        if !(is_staged || bytes == slot_bytes) || range.end > slot_bytes {
            return Err(DiskEnd::Miss(MissReason::FailedCheck));
        }
        Ok(known.location)
    }

    /// Looks a record up, with the reason why it is not there.
    pub(crate) fn lookup(&self, fingerprint: &Fingerprint) -> Result<crate::index::Known, MissReason> {
        if self.is_offline() {
            return Err(MissReason::TierOffline);
        }
        match self.index.find(fingerprint) {
            Some(known) => Ok(known),
            None if self.recovery.is_some() => Err(MissReason::Recovering),
            None if self.ghosts.holds(fingerprint) => Err(MissReason::Evicted),
            None => Err(MissReason::NeverStored),
        }
    }

    fn launch_read(&mut self, flight: Flight, location: &Location, start: u64, memory: Memory, bytes: u64) -> u64 {
        let offset = u64::from(location.page) * ALIGN_BYTES + start;
        let file = FileId::segment(location.segment);
        self.launch(flight, |id| Operation { id, kind: Kind::Read, file, offset, memory, range: 0..bytes })
    }

    /// One part of a read has ended. Gives the read back when it was the last and its bytes are to be verified.
    pub(crate) fn end_read_part(&mut self, number: u64, is_body: bool, done: Done, now_nanos: u64) -> Option<ReadJob> {
        self.note(Kind::Read, "read a record", &done.result, now_nanos);
        let job = self.reads.get_mut(&number)?;
        job.error = job.error.or(done.result.err());
        job.parts_left -= 1;
        let (bounce_bytes, is_last) = (job.bounce_bytes(), job.parts_left == 0);
        let mut unused = None;
        match (is_body, job.is_staged, done.memory) {
            (true, true, Some(Memory::Owned(buffer))) if job.error.is_none() && !job.is_orphan => {
                job.stored = Some(buffer);
            }
            (true, true, memory) => unused = Some(memory),
            (true, false, memory) => job.memory = memory,
            (false, _, memory) => job.header_pages = memory,
        }
        if let Some(memory) = unused {
            self.return_bounce(memory, bounce_bytes);
        }
        if !is_last {
            return None;
        }
        let mut job = self.reads.remove(&number).expect("just seen");
        let is_header_alone = job.is_staged && !is_body;
        if job.error.is_some() || job.is_orphan || !is_header_alone {
            self.uncount(&mut job);
        }
        if job.is_orphan {
            return None;
        }
        let Some(error) = job.error else { return Some(job) };
        let reason = match error {
            IoError::TimedOut { .. } => MissReason::Deadline,
            IoError::Closed => MissReason::TierOffline,
            _ => {
                self.quarantine(&job.fingerprint, job.location);
                MissReason::FailedCheck
            }
        };
        let memory = job.memory.take();
        self.finish(job.op, job.key, memory, Err(DiskEnd::Miss(reason)));
        None
    }

    /// Goes on with a read of which something was verified, or ends it.
    pub(crate) fn go_on_reading(&mut self, number: u64, job: ReadJob, verified: Verified) {
        match verified {
            Verified::Header => self.read_staged(number, job),
            Verified::Whole(result) => self.end_read(job, result),
        }
    }

    fn end_read(&mut self, mut job: ReadJob, verified: Result<u64, CheckFailure>) {
        self.uncount(&mut job);
        let read_bytes = if job.is_staged {
            job.stored_range.end - job.stored_range.start
        } else {
            job.memory.as_ref().map_or(0, Memory::bytes)
        };
        if let Some(buffer) = job.stored.take() {
            self.return_bounce(Some(Memory::Owned(buffer)), 0);
        }
        let memory = job.memory.take();
        // A deletion may have come while the bytes were on their way.
        let valid_from = self.superblock.valid_from(&job.key.namespace);
        let end = match verified {
            Ok(epoch) if epoch >= valid_from || self.has(PlantedBug::IgnoreEpoch) => {
                self.counters.read_bytes += read_bytes;
                let ok = match &job.wanted {
                    Wanted::Whole => {
                        self.counters.reads += 1;
                        DiskOk::Read
                    }
                    Wanted::Section(section, _) => {
                        self.counters.section_reads += 1;
                        DiskOk::Section { start: section_span(*section).start }
                    }
                };
                Ok(ok)
            }
            Ok(_) => {
                self.quarantine(&job.fingerprint, job.location);
                Err(DiskEnd::Miss(MissReason::NeverStored))
            }
            Err(_) if self.index.find(&job.fingerprint).is_some_and(|known| known.location == job.location) => {
                self.counters.failed_checks += 1;
                self.quarantine(&job.fingerprint, job.location);
                Err(DiskEnd::Miss(MissReason::FailedCheck))
            }
            // It was deleted, or moved, while the bytes were on their way: nothing is wrong with the disk.
            Err(_) => Err(DiskEnd::Miss(self.lookup(&job.fingerprint).err().unwrap_or(MissReason::Evicted))),
        };
        self.finish(job.op, job.key, memory, end);
    }

    /// Tells users of reads that have taken too long. Operations that have not started give their memory back.
    pub(crate) fn expire_reads(&mut self, deadline_millis: u64, now_nanos: u64) -> bool {
        let limit_nanos = deadline_millis.saturating_mul(1_000_000);
        let late: Vec<u64> = self
            .reads
            .iter()
            .filter(|(_, job)| !job.is_orphan && now_nanos.saturating_sub(job.since_nanos) > limit_nanos)
            .map(|(number, _)| *number)
            .collect();
        let mut is_any = false;
        for number in late {
            let job = &self.reads[&number];
            let age_nanos = now_nanos - job.since_nanos;
            let [body, header] = job.parts;
            // Nothing of it is with the medium while it waits for bounce memory.
            let waits = job.parts_left == 0;
            let recalled = if waits { None } else { self.traffic.recall(body) };
            // What has started is the medium's to end in time; twice the deadline is for a medium that does not.
            if recalled.is_none() && !waits && age_nanos < 2 * limit_nanos {
                continue;
            }
            is_any = true;
            let mut parts_back = 0;
            let mut memory = recalled.map(|operation| {
                self.flights.remove(&operation.id);
                parts_back += 1;
                operation.memory
            });
            if header != body
                && let Some(operation) = self.traffic.recall(header)
            {
                self.flights.remove(&operation.id);
                parts_back += 1;
            }
            self.counters.timeouts += 1;
            let job = self.reads.get_mut(&number).expect("just seen");
            job.is_orphan = true;
            job.parts_left -= parts_back;
            let bounce_bytes = job.bounce_bytes();
            let is_bounce = job.is_staged && bounce_bytes > 0;
            let returned = if job.is_staged { memory.take() } else { None };
            let memory = memory.or_else(|| job.memory.take());
            let (op, key, is_over) = (job.op, job.key, job.parts_left == 0);
            if is_over && let Some(mut job) = self.reads.remove(&number) {
                self.uncount(&mut job);
            }
            if is_bounce && returned.is_some() {
                self.return_bounce(returned, bounce_bytes);
            }
            self.finish(op, key, memory, Err(DiskEnd::Miss(MissReason::Deadline)));
        }
        is_any
    }
}

/// The part of the image that is wanted, in whole pages.
fn wanted_range(wanted: &Wanted, shape: &BlockShape) -> Range<u64> {
    match wanted {
        Wanted::Whole => 0..shape.slot_bytes(),
        Wanted::Section(section, _) => {
            let span = section_span(*section);
            span.offset..span.offset + span.bytes
        }
    }
}

/// The header that the pin has, if it is of the record that lies there now.
fn known_header(wanted: &Wanted, place: &RecordPlace) -> Option<Arc<RecordHeader>> {
    let Wanted::Section(_, cell) = wanted else { return None };
    let known = cell.lock().unwrap_or_else(PoisonError::into_inner);
    known.as_ref().filter(|header| is_at(&header.slot.place, place)).map(Arc::clone)
}

fn is_at(found: &RecordPlace, expected: &RecordPlace) -> bool {
    found.store_id == expected.store_id
        && found.segment_generation == expected.segment_generation
        && found.offset == expected.offset
}

impl ReadJob {
    /// Bytes of the bounce memory for what is stored: one length for all images of a shape and one for all sections of a length, so that
    /// buffers can be used again. 0 while only the header is read.
    fn bounce_bytes(&self) -> u64 {
        match &self.wanted {
            _ if self.stored_range.is_empty() => 0,
            Wanted::Whole => self.shape.slot_bytes(),
            // Stored, it may begin anywhere in a page.
            Wanted::Section(section, _) => round_to_pages(section.bytes) + ALIGN_BYTES,
        }
    }
}
