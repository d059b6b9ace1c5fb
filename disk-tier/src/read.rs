//! Reads: whole images into the slot where they are used, and single sections.
//!
//! A segment counts its readers until the medium has ended their operations; reclaim waits for them before it begins the segment anew. What
//! was read is verified all the same: place, key, epoch and sums.

use std::ops::Range;

use cache_core::header::{CheckFailure, RecordPlace, SlotHeader};
use cache_core::key::CopyKey;
use cache_core::miss::MissReason;
use cache_core::payload::{BlockShape, Section};
use cache_core::store::OpId;

use crate::error::DiskEnd;
use crate::index::{Fingerprint, Location};
use crate::io::{ALIGN_BYTES, Done, FileId, IoError, Kind, Memory, Operation};
use crate::log::{Flight, HeaderCell, Log};
use crate::report::DiskOk;
use crate::segment::Phase;
use crate::testing::{PlantedBug, Testing};
use crate::write::owned;

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
    pub memory: Option<Memory>,
    header_pages: Option<Memory>,
    parts_left: u8,
    /// Numbers of its operations.
    parts: [u64; 2],
    error: Option<IoError>,
    /// Its user was told that it took too long; only the segment still waits for it.
    is_orphan: bool,
}

/// What verification found.
pub(crate) struct Verified {
    result: Result<u64, CheckFailure>,
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
        let range = match &wanted {
            Wanted::Whole => 0..shape.slot_bytes(),
            Wanted::Section(section, _) => {
                let span = section_span(*section);
                span.offset..span.offset + span.bytes
            }
        };
        let location = match self.locate(&fingerprint, &shape, &wanted, &range, memory.bytes()) {
            Ok(location) => location,
            Err(end) => {
                self.finish(op, key, Some(memory), Err(end));
                return op;
            }
        };
        self.index.touch(&fingerprint);
        self.segments.at_mut(location.segment).readers += 1;
        let number = self.number();
        let needs_header = matches!(&wanted, Wanted::Section(_, cell) if cell.get().is_none());
        let length = range.end - range.start;
        let body = self.launch_read(Flight::ReadBody(number), &location, range.start, memory, length);
        let header = if needs_header {
            let bytes = shape.header_bytes();
            self.launch_read(Flight::ReadHeader(number), &location, 0, owned(bytes), bytes)
        } else {
            body
        };
        let job = ReadJob {
            op,
            key,
            fingerprint,
            shape,
            wanted,
            location,
            place: self.record_place(&location, 0),
            since_nanos: now_nanos,
            memory: None,
            header_pages: None,
            parts_left: 1 + u8::from(needs_header),
            parts: [body, header],
            error: None,
            is_orphan: false,
        };
        self.reads.insert(number, job);
        op
    }

    fn locate(
        &self,
        fingerprint: &Fingerprint,
        shape: &BlockShape,
        wanted: &Wanted,
        range: &Range<u64>,
        found_bytes: u64,
    ) -> Result<Location, DiskEnd> {
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
        let bytes = u64::from(known.location.pages) * ALIGN_BYTES;
        if bytes != shape.slot_bytes() || range.end > bytes {
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
        if is_body {
            job.memory = done.memory;
        } else {
            job.header_pages = done.memory;
        }
        job.error = job.error.or(done.result.err());
        job.parts_left -= 1;
        if job.parts_left > 0 {
            return None;
        }
        let mut job = self.reads.remove(&number).expect("just seen");
        let segment = self.segments.at_mut(job.location.segment);
        segment.readers = segment.readers.saturating_sub(1);
        self.is_due |= segment.readers == 0 && segment.phase == Phase::Stale;
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

    /// Ends a read whose bytes were verified.
    pub(crate) fn end_read(&mut self, mut job: ReadJob, verified: Verified) {
        let memory = job.memory.take();
        // A deletion may have come while the bytes were on their way.
        let valid_from = self.superblock.valid_from(&job.key.namespace);
        let end = match verified.result {
            Ok(epoch) if epoch >= valid_from || self.has(PlantedBug::IgnoreEpoch) => {
                self.counters.read_bytes += memory.as_ref().map_or(0, Memory::bytes);
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
            let age_nanos = now_nanos - self.reads[&number].since_nanos;
            let [body, header] = self.reads[&number].parts;
            let recalled = self.traffic.recall(body);
            // What has started is the medium's to end in time; twice the deadline is for a medium that does not.
            if recalled.is_none() && age_nanos < 2 * limit_nanos {
                continue;
            }
            is_any = true;
            let mut parts_back = 0;
            let memory = recalled.map(|operation| {
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
            let memory = memory.or_else(|| job.memory.take());
            let (op, key, segment, is_over) = (job.op, job.key, job.location.segment, job.parts_left == 0);
            if is_over {
                self.reads.remove(&number);
                let segment = self.segments.at_mut(segment);
                segment.readers = segment.readers.saturating_sub(1);
            }
            self.finish(op, key, memory, Err(DiskEnd::Miss(MissReason::Deadline)));
        }
        is_any
    }
}

impl ReadJob {
    /// Verifies what was read, without any lock; the epoch of the record comes back.
    pub(crate) fn verify(&mut self, testing: &Testing) -> Verified {
        let result = match &self.wanted {
            Wanted::Whole => self.verify_whole(testing),
            Wanted::Section(section, cell) => self.verify_section(section, cell, testing),
        };
        Verified { result }
    }

    fn header(&self, bytes: &[u8], testing: &Testing) -> Result<SlotHeader, CheckFailure> {
        let header = SlotHeader::decode(bytes, self.shape.section_count())?;
        header.expect_key(&self.key)?;
        header.expect_shape(&self.shape)?;
        let (found, expected) = (&header.place, &self.place);
        let is_here = found.store_id == expected.store_id
            && found.segment_generation == expected.segment_generation
            && found.offset == expected.offset;
        if is_here || testing.has(PlantedBug::IgnorePlace) { Ok(header) } else { Err(CheckFailure::Identity) }
    }

    /// Outside the disk the header names no place: the image becomes what was written.
    fn verify_whole(&mut self, testing: &Testing) -> Result<u64, CheckFailure> {
        let header = {
            let image = self.memory.as_ref().map_or(&[][..], Memory::as_slice);
            let header = self.header(image, testing)?;
            if !testing.has(PlantedBug::IgnoreSums) {
                header.verify_sections(self.shape.sections(), image)?;
            }
            header
        };
        let epoch = header.place.epoch;
        let header_bytes = self.shape.header_bytes() as usize;
        if let Some(pages) = self.memory.as_mut().and_then(|memory| memory.as_mut_slice().get_mut(..header_bytes)) {
            SlotHeader { place: RecordPlace::default(), ..header }.encode(pages);
        }
        Ok(epoch)
    }

    fn verify_section(&self, section: &Section, cell: &HeaderCell, testing: &Testing) -> Result<u64, CheckFailure> {
        let header = match (cell.get(), &self.header_pages) {
            (Some(header), _) => header,
            (None, Some(pages)) => {
                let header = self.header(pages.as_slice(), testing)?;
                cell.get_or_init(|| header)
            }
            (None, None) => return Err(CheckFailure::Header),
        };
        let span = self.memory.as_ref().map_or(&[][..], Memory::as_slice);
        let in_span = Section { offset: section_span(*section).start, ..*section };
        header.verify_sections(std::iter::once(in_span), span)?;
        Ok(header.place.epoch)
    }
}
