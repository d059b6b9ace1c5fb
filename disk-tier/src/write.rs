//! Writes: from an image in somebody's memory to a record that can be found.
//!
//! With a byte stage the sections are encoded first (`staging`). A record becomes visible in [`Log::end_write`] and nowhere else, after every byte of it was written without an error.

use cache_core::buffer::Buffer;
use cache_core::header::{RecordPlace, SlotHeader, verify_image};
use cache_core::key::CopyKey;
use cache_core::payload::BlockShape;
use cache_core::store::OpId;

use crate::error::{DiskEnd, Refusal};
use crate::index::{Fingerprint, Location};
use crate::io::{ALIGN_BYTES, Done, FileId, IoError, Kind, Memory, Operation};
use crate::log::{Flight, Log, WAITING_MAX};
use crate::record::{self, RecordHeader};
use crate::report::DiskOk;
use crate::segment::Phase;
use crate::stage::Coding;
use crate::testing::PlantedBug;

/// What is to be written.
#[derive(Debug)]
pub struct WriteRequest {
    /// The copy's name.
    pub key: CopyKey,
    /// The image's shape. With it every section is verified before anything is written; without, the header alone, and the sections when
    /// they are read.
    pub shape: Option<BlockShape>,
    /// The whole sealed slot image. Its place fields are ignored.
    pub memory: Memory,
    /// A running sequence needs this copy: admission and the write-rate limit do not apply.
    pub is_live: bool,
}

/// A write under way.
pub(crate) struct WriteJob {
    pub op: OpId,
    pub key: CopyKey,
    pub fingerprint: Fingerprint,
    pub record: RecordHeader,
    /// The caller's; with the operation while that writes from it.
    pub memory: Option<Memory>,
    /// The encoded sections of a staged record in bounce memory, until they are on their way.
    pub staged: Option<Buffer>,
    pub since_nanos: u64,
    location: Location,
    epoch: u64,
    parts_left: u8,
    error: Option<IoError>,
}

/// Verifies what is to be written, before any lock is taken.
pub(crate) fn check(request: &WriteRequest) -> Result<SlotHeader, DiskEnd> {
    let image = request.memory.as_slice();
    if let Some(shape) = &request.shape {
        let expected_bytes = shape.slot_bytes();
        if image.len() as u64 != expected_bytes {
            return Err(DiskEnd::Size { expected_bytes, found_bytes: image.len() as u64 });
        }
        verify_image(shape, &request.key, image).map_err(DiskEnd::Damaged)?;
    }
    record::header_of(&request.key, image).map_err(DiskEnd::Damaged)
}

impl Log {
    /// Starts a write whose bytes were checked, or ends it at once.
    pub(crate) fn start_write(
        &mut self,
        request: WriteRequest,
        checked: Result<SlotHeader, DiskEnd>,
        now_nanos: u64,
    ) -> OpId {
        let op = self.begin();
        let WriteRequest { key, memory, is_live, .. } = request;
        let bytes = memory.bytes();
        let fingerprint = self.fingerprint(&key);
        let admitted = checked.map_err(Err).and_then(|header| {
            self.admit(&fingerprint, bytes, is_live, now_nanos)?;
            Ok(header)
        });
        let header = match admitted {
            Ok(header) => header,
            Err(end) => {
                self.finish(op, key, Some(memory), end);
                return op;
            }
        };
        self.pending.insert(fingerprint);
        let location = Location { segment: 0, page: 0, pages: header.image_pages };
        let memory = Some(memory);
        let job = WriteJob {
            op,
            key,
            fingerprint,
            record: RecordHeader::plain(header),
            memory,
            staged: None,
            since_nanos: now_nanos,
            location,
            epoch: 0,
            parts_left: 0,
            error: None,
        };
        if self.stage.coding(key.form) == Coding::Plain {
            self.place_or_wait(job);
        } else {
            self.to_stage.push_back(job);
        }
        op
    }

    /// Places a write, behind those who wait for room.
    pub(crate) fn place_or_wait(&mut self, job: WriteJob) {
        let unplaced = if self.waiting.is_empty() { self.place(job) } else { Some(job) };
        if let Some(job) = unplaced {
            self.waiting.push_back(job);
            self.is_due = true;
        }
    }

    /// Lets a write in, or says how it ends.
    fn admit(
        &mut self,
        fingerprint: &Fingerprint,
        bytes: u64,
        is_live: bool,
        now_nanos: u64,
    ) -> Result<(), Result<DiskOk, DiskEnd>> {
        let refuse = |refusal| Err(Err(DiskEnd::Refused(refusal)));
        if self.is_offline() {
            return Err(Err(DiskEnd::Offline));
        }
        if self.recovery.is_some() {
            return refuse(Refusal::Recovering);
        }
        if self.index.find(fingerprint).is_some() {
            self.counters.present += 1;
            return Err(Ok(DiskOk::Present));
        }
        if self.pending.contains(fingerprint) {
            return refuse(Refusal::PendingElsewhere);
        }
        if self.is_busy() {
            return refuse(Refusal::Busy);
        }
        if bytes > self.layout.image_bytes_max() {
            return refuse(Refusal::TooLarge);
        }
        if self.waiting.len() + self.to_stage.len() >= WAITING_MAX {
            return Err(Err(DiskEnd::Full));
        }
        let is_seen = self.sketch.as_mut().is_none_or(|sketch| sketch.offer(fingerprint));
        if !is_seen && !is_live {
            self.counters.refused_admission += 1;
            return refuse(Refusal::Admission);
        }
        let is_within = match &mut self.limit {
            Some(limit) if is_live => {
                limit.force(bytes);
                true
            }
            Some(limit) => limit.take(bytes, now_nanos),
            None => true,
        };
        if !is_within {
            self.counters.refused_limit += 1;
            return refuse(Refusal::Limit);
        }
        Ok(())
    }

    /// Gives a write its place and sends it on its way; gives it back when there is no room now.
    pub(crate) fn place(&mut self, mut job: WriteJob) -> Option<WriteJob> {
        // The job itself is among the pending ones already.
        if self.index.len() as usize + self.writes.len() + 1 > self.index.capacity() as usize {
            return Some(job);
        }
        let Some(location) = self.allocate(job.record.pages(), false) else { return Some(job) };
        job.location = location;
        job.epoch = self.durable_epoch;
        let place = self.record_place(&location, job.epoch);
        let pages = job.record.placed(place);
        let (id, header_bytes, bytes) = (self.number(), pages.as_slice().len() as u64, location.bytes());
        if let Some(mut staged) = job.staged.take() {
            staged.as_mut_slice()[..header_bytes as usize].copy_from_slice(pages.as_slice());
            self.launch_write(Flight::WriteStaged(id), &location, 0, Memory::Owned(staged), 0..bytes);
            job.parts_left = 1;
            self.writes.insert(id, job);
            return None;
        }
        match job.memory.take().expect("a write that waits has its memory") {
            // An image of its own takes the header in: one operation.
            Memory::Owned(mut image) => {
                image.as_mut_slice()[..header_bytes as usize].copy_from_slice(pages.as_slice());
                self.launch_write(Flight::WriteBody(id), &location, 0, Memory::Owned(image), 0..bytes);
                job.parts_left = 1;
            }
            lent => {
                self.launch_write(Flight::WriteHeader(id), &location, 0, Memory::Owned(pages), 0..header_bytes);
                job.parts_left = 1;
                if header_bytes < bytes {
                    self.launch_write(Flight::WriteBody(id), &location, header_bytes, lent, header_bytes..bytes);
                    job.parts_left = 2;
                } else {
                    job.memory = Some(lent);
                }
            }
        }
        self.writes.insert(id, job);
        None
    }

    /// What the header of a record says about its place.
    pub(crate) fn record_place(&self, location: &Location, epoch: u64) -> RecordPlace {
        RecordPlace {
            store_id: self.superblock.store_id,
            epoch,
            segment_generation: self.segments.at(location.segment).generation,
            offset: self.offset(location),
        }
    }

    fn launch_write(
        &mut self,
        flight: Flight,
        location: &Location,
        start: u64,
        memory: Memory,
        range: std::ops::Range<u64>,
    ) {
        let offset = u64::from(location.page) * ALIGN_BYTES + start;
        let file = FileId::segment(location.segment);
        self.launch(flight, |id| Operation { id, kind: Kind::Write, file, offset, memory, range });
    }

    /// The write of a staged record has ended.
    pub(crate) fn end_staged_write(&mut self, number: u64, mut done: Done, now_nanos: u64) {
        let Some(job) = self.writes.get(&number) else { return };
        match done.memory.take() {
            Some(Memory::Owned(buffer)) => self.write_bounce.give(buffer),
            _ => self.write_bounce.lose(job.image_bytes()),
        }
        self.end_write_part(number, false, done, now_nanos);
    }

    /// One part of a write has ended; `is_body`: with the caller's memory.
    pub(crate) fn end_write_part(&mut self, number: u64, is_body: bool, done: Done, now_nanos: u64) {
        self.note(Kind::Write, "write a record", &done.result, now_nanos);
        let Some(job) = self.writes.get_mut(&number) else { return };
        if is_body {
            job.memory = done.memory;
        }
        // A part that was not ended in time says more than one that failed.
        match (&job.error, done.result) {
            (Some(IoError::TimedOut { .. }), _) | (_, Ok(())) => {}
            (_, Err(error)) => job.error = Some(error),
        }
        job.parts_left -= 1;
        if job.parts_left == 0 {
            let job = self.writes.remove(&number).expect("just seen");
            self.end_write(job);
        }
    }

    fn end_write(&mut self, mut job: WriteJob) {
        // The caller's image comes back as it was given.
        if let Some(Memory::Owned(image)) = &mut job.memory {
            let header_bytes = job.record.slot.header_bytes() as usize;
            job.record.slot.encode(&mut image.as_mut_slice()[..header_bytes]);
        }
        self.pending.remove(&job.fingerprint);
        let segment = self.segments.at_mut(job.location.segment);
        segment.writers -= 1;
        self.is_due |= segment.writers == 0 && segment.phase == Phase::Sealing;
        if let Some(error) = job.error {
            self.abandon(job.location.segment, &error);
            self.bury(job.location);
            if !self.has(PlantedBug::VisibleAfterFailure) {
                return self.finish(job.op, job.key, job.memory, Err(DiskEnd::Failed(error)));
            }
        }
        // A write that a deletion of its namespace has overtaken is done, and gone.
        self.publish(&job.key, job.location, job.epoch);
        self.counters.writes += 1;
        self.counters.written_bytes += job.location.bytes();
        if job.record.stored.is_some() {
            self.counters.staged_writes += 1;
            self.counters.saved_bytes += job.image_bytes() - job.location.bytes();
        }
        self.finish(job.op, job.key, job.memory, Ok(DiskOk::Written));
    }

    /// Ends a write that has no place.
    pub(crate) fn end_unplaced(&mut self, mut job: WriteJob, end: DiskEnd) {
        if let Some(buffer) = job.staged.take() {
            self.write_bounce.give(buffer);
        }
        self.pending.remove(&job.fingerprint);
        self.finish(job.op, job.key, job.memory, Err(end));
    }

    /// Ends writes that have waited too long, to be encoded or for room.
    pub(crate) fn expire_waiting(&mut self, deadline_millis: u64, now_nanos: u64) -> bool {
        let due =
            |job: &WriteJob| now_nanos.saturating_sub(job.since_nanos) > deadline_millis.saturating_mul(1_000_000);
        let mut is_any = false;
        loop {
            let late = if self.waiting.front().is_some_and(due) {
                self.waiting.pop_front()
            } else if self.to_stage.front().is_some_and(due) {
                self.to_stage.pop_front()
            } else {
                return is_any;
            };
            if let Some(job) = late {
                self.end_unplaced(job, DiskEnd::Full);
                is_any = true;
            }
        }
    }
}

impl WriteJob {
    /// Length of the slot image in bytes.
    pub(crate) fn image_bytes(&self) -> u64 {
        u64::from(self.record.slot.image_pages) * ALIGN_BYTES
    }
}

/// A buffer as the memory of an operation.
pub(crate) fn owned(bytes: u64) -> Memory {
    Memory::Owned(Buffer::zeroed(bytes as usize))
}
