//! Recovery: the index from an orderly end's snapshot, or from footers, or record by record where there is no sound footer. In the
//! background; what has been read is served at once.

use std::collections::VecDeque;

use cache_core::buffer::Buffer;
use cache_core::codec::Codec;
use cache_core::header::{RecordPlace, SlotHeader};

use crate::footer::{self, Entry};
use crate::index::{Known, Location, namespace_tag};
use crate::inner::{Inner, Request};
use crate::io::{ALIGN_BYTES, FileId, IoError};
use crate::log::Log;
use crate::record;
use crate::segment::{HEADER_BYTES, Phase, SegmentHeader};
use crate::snapshot::Snapshot;
use crate::superblock::{Clean, Superblock};

/// Segments whose headers or footers are read together.
const GROUP: usize = 16;
/// What is read of a segment's end at first: most footers are in it whole.
const FOOTER_PROBE_BYTES: u64 = 64 << 10;
/// Bytes that a walk reads at a time.
const WALK_BYTES: u64 = 1 << 20;

/// How far recovery has come.
pub(crate) struct Recovery {
    pub segments: u32,
    pub done_segments: u32,
    /// Sequence of the superblock as it was found.
    pub sequence: u64,
    pub clean: Option<Clean>,
    /// Epoch as it was found: later deletions came while this ran.
    pub epoch: u64,
    stage: Stage,
}

#[derive(Clone)]
enum Stage {
    Files,
    Headers(VecDeque<u32>),
    Segments(VecDeque<u32>),
}

impl Recovery {
    /// From the superblock as it was found.
    pub(crate) fn new(found: &Superblock) -> Recovery {
        let Superblock { sequence, clean, epoch, .. } = *found;
        Recovery { segments: 0, done_segments: 0, sequence, clean, epoch, stage: Stage::Files }
    }
}

/// A failure after which the same is tried again when the tier is back, rather than given up.
fn is_away(error: &IoError) -> bool {
    matches!(error, IoError::TimedOut { .. } | IoError::Closed)
}

impl Inner {
    /// Does the next piece of recovery.
    pub(crate) fn recover(&self) -> bool {
        let stage = match &self.lock().recovery {
            Some(recovery) => recovery.stage.clone(),
            None => return false,
        };
        let next = match stage {
            Stage::Files => self.recover_files(),
            Stage::Headers(queue) => self.recover_headers(queue),
            Stage::Segments(queue) => self.recover_segments(queue),
        };
        self.change(|log| match next {
            Next::Stage(stage) => {
                if let Some(recovery) = &mut log.recovery {
                    recovery.stage = stage;
                }
            }
            Next::Ready => log.end_recovery(),
            Next::Again => {}
        });
        true
    }

    /// Takes stock of the files; those that are none of this layout's go.
    fn recover_files(&self) -> Next {
        let (layout, clean) = {
            let log = self.lock();
            (log.layout, log.recovery.as_ref().and_then(|recovery| recovery.clean))
        };
        let files = match self.list_files() {
            Ok(files) => files,
            Err(error) => return self.offline(format!("list the files: {error}")),
        };
        let mut unread = VecDeque::new();
        let mut snapshot_bytes = None;
        for (file, info) in files {
            let Some(segment) = file.0.checked_sub(FileId::segment(0).0) else {
                if file == FileId::SNAPSHOT {
                    snapshot_bytes = Some(info.bytes);
                }
                continue;
            };
            if segment < layout.segments_max && info.bytes == layout.segment_bytes {
                unread.push_back(segment);
            } else if let Err(error) = self.medium.remove(file) {
                return self.offline(format!("remove a segment: {error}"));
            }
        }
        if snapshot_bytes.is_some_and(|bytes| bytes > layout.snapshot_bytes_max())
            && let Err(error) = self.medium.remove(FileId::SNAPSHOT)
        {
            return self.offline(format!("remove the snapshot: {error}"));
        }
        if let Err(error) = self.list_files() {
            return self.offline(format!("list the files: {error}"));
        }
        self.change(|log| {
            for segment in &unread {
                log.segments.at_mut(*segment).phase = Phase::Unread;
            }
            if let Some(recovery) = &mut log.recovery {
                recovery.segments = unread.len() as u32;
            }
        });
        if let (Some(clean), Some(bytes)) = (clean, snapshot_bytes)
            && clean.snapshot_bytes == bytes
            && bytes <= layout.snapshot_bytes_max()
            && let Ok(buffer) = self.perform_one(Request::read(FileId::SNAPSHOT, 0, bytes), "read the snapshot")
            && let Some(snapshot) = Snapshot::decode(buffer.as_slice(), clean.snapshot_sum)
            && self.change(|log| log.take_over(snapshot))
        {
            return Next::Ready;
        }
        Next::Stage(Stage::Headers(unread))
    }

    fn offline(&self, reason: String) -> Next {
        let now = self.now();
        self.change(|log| log.go_offline(reason, now));
        Next::Again
    }

    fn recover_headers(&self, mut queue: VecDeque<u32>) -> Next {
        let group: Vec<u32> = queue.drain(..queue.len().min(GROUP)).collect();
        let reads = group.iter().map(|at| Request::read(FileId::segment(*at), 0, HEADER_BYTES)).collect();
        let results = self.perform(reads, "read a segment header");
        let mut log = self.lock();
        for (at, result) in group.into_iter().zip(results) {
            let (store_id, segment_bytes) = (log.superblock.store_id, log.layout.segment_bytes);
            let header = match result {
                Err(error) if is_away(&error) => {
                    queue.push_back(at);
                    continue;
                }
                Ok(buffer) => SegmentHeader::decode(buffer.as_slice(), store_id, at, segment_bytes),
                Err(_) => None,
            };
            match header {
                Some(header) => {
                    let segment = log.segments.at_mut(at);
                    (segment.generation, segment.epoch) = (header.generation, header.epoch);
                }
                None => log.skip_segment(at),
            }
        }
        if !queue.is_empty() {
            return Next::Stage(Stage::Headers(queue));
        }
        // The youngest first: what is found first stays.
        let mut unread: Vec<u32> = log.segments.in_phase(Phase::Unread).collect();
        unread.sort_unstable_by_key(|at| std::cmp::Reverse(log.segments.at(*at).generation));
        Next::Stage(Stage::Segments(unread.into()))
    }

    fn recover_segments(&self, mut queue: VecDeque<u32>) -> Next {
        let group: Vec<u32> = queue.drain(..queue.len().min(GROUP)).collect();
        let segment_bytes = self.lock().layout.segment_bytes;
        let probe = FOOTER_PROBE_BYTES.min(segment_bytes);
        let reads = group.iter().map(|at| Request::read(FileId::segment(*at), segment_bytes - probe, probe)).collect();
        let ends = self.perform(reads, "read a footer");
        let mut left = Vec::new();
        for (at, end) in group.into_iter().zip(ends) {
            match end.and_then(|end| self.recover_segment(at, &end)) {
                Err(error) if is_away(&error) => left.push(at),
                Err(_) => self.lock().skip_segment(at),
                Ok(()) => {}
            }
        }
        for at in left.into_iter().rev() {
            queue.push_front(at);
        }
        if queue.is_empty() { Next::Ready } else { Next::Stage(Stage::Segments(queue)) }
    }

    /// Reads one segment, whose last bytes are `end`.
    fn recover_segment(&self, at: u32, end: &Buffer) -> Result<(), IoError> {
        let (owner, segment_bytes) = {
            let log = self.lock();
            let generation = log.segments.at(at).generation;
            let owner = footer::Owner { store_id: log.superblock.store_id, segment: at, generation };
            (owner, log.layout.segment_bytes)
        };
        let mut read = |offset: u64, bytes: u64| {
            self.perform_one(Request::read(FileId::segment(at), offset, bytes), "read a segment")
        };
        let found = read_footer(&owner, end.as_slice(), segment_bytes, &mut read)?;
        if let Some((tail, entries)) = found {
            self.change(|log| log.adopt(at, tail, entries, true));
            return Ok(());
        }
        let walked = walk(&owner, segment_bytes, &*self.config.codec, &mut read)?;
        self.change(|log| {
            log.counters.skipped_records += walked.torn;
            log.adopt(at, walked.tail, walked.entries, false);
        });
        Ok(())
    }
}

enum Next {
    Stage(Stage),
    Ready,
    /// The tier went offline; the same again later.
    Again,
}

/// Reads the footer of a segment; `end` is its last part. `None`: no sound one.
pub(crate) fn read_footer(
    owner: &footer::Owner,
    end: &[u8],
    segment_bytes: u64,
    read: &mut dyn FnMut(u64, u64) -> Result<Buffer, IoError>,
) -> Result<Option<(u64, Vec<Entry>)>, IoError> {
    let Some(bytes) = footer::claimed_bytes(owner, end, segment_bytes) else { return Ok(None) };
    if bytes <= end.len() as u64 {
        return Ok(footer::decode(owner, &end[end.len() - bytes as usize..], segment_bytes));
    }
    let whole = match read(segment_bytes - bytes, bytes) {
        Err(error) if is_away(&error) => return Err(error),
        Err(_) => return Ok(None),
        Ok(whole) => whole,
    };
    Ok(footer::decode(owner, whole.as_slice(), segment_bytes))
}

/// What a walk has found.
#[derive(Default)]
pub(crate) struct Walked {
    pub entries: Vec<Entry>,
    pub tail: u64,
    /// Headers of this tenant whose record is not whole.
    pub torn: u64,
    /// First pages of these.
    pub torn_pages: Vec<u32>,
    /// Whole records that are staged.
    pub staged: u64,
}

/// Walks over a segment page by page, from header to header: nothing is synced, so a torn record may have whole ones after it.
pub(crate) fn walk(
    owner: &footer::Owner,
    segment_bytes: u64,
    codec: &dyn Codec,
    read: &mut dyn FnMut(u64, u64) -> Result<Buffer, IoError>,
) -> Result<Walked, IoError> {
    let mut walked = Walked { tail: HEADER_BYTES, ..Walked::default() };
    let mut at = HEADER_BYTES;
    while at < segment_bytes {
        let bytes = WALK_BYTES.min(segment_bytes - at);
        let chunk = match read(at, bytes) {
            Ok(chunk) => chunk,
            Err(error) if is_away(&error) => return Err(error),
            Err(_) => {
                at += bytes;
                continue;
            }
        };
        at += walk_chunk(owner, segment_bytes, at, (chunk.as_slice(), codec), read, &mut walked)?;
    }
    Ok(walked)
}

/// Walks over one chunk; returns how far.
fn walk_chunk(
    owner: &footer::Owner,
    segment_bytes: u64,
    start: u64,
    (chunk, codec): (&[u8], &dyn Codec),
    read: &mut dyn FnMut(u64, u64) -> Result<Buffer, IoError>,
    walked: &mut Walked,
) -> Result<u64, IoError> {
    let mut at = 0;
    while at < chunk.len() as u64 {
        let rest = &chunk[at as usize..];
        if !record::begins(rest) {
            at += ALIGN_BYTES;
            continue;
        }
        let Some(header) = record::peek(rest) else {
            // Perhaps only cut off by the chunk's end: read again from here.
            if at > 0 && start + (chunk.len() as u64) < segment_bytes && record::is_cut(rest) {
                return Ok(at);
            }
            at += ALIGN_BYTES;
            continue;
        };
        let place = RecordPlace {
            store_id: owner.store_id,
            epoch: header.slot.place.epoch,
            segment_generation: owner.generation,
            offset: u64::from(owner.segment) * segment_bytes + start + at,
        };
        let record_bytes = u64::from(header.pages()) * ALIGN_BYTES;
        let image_bytes = u64::from(header.slot.image_pages) * ALIGN_BYTES;
        let is_ours = header.slot.place == place
            && record_bytes >= header.header_bytes()
            && start + at + record_bytes <= segment_bytes
            // An image that no segment holds was never written, staged or not.
            && image_bytes <= segment_bytes;
        if !is_ours {
            at += ALIGN_BYTES;
            continue;
        }
        let is_whole = if record_bytes <= rest.len() as u64 {
            header.verify_sections(&rest[..record_bytes as usize], codec)
        } else {
            match read(start + at, record_bytes) {
                Ok(record) => header.verify_sections(record.as_slice(), codec),
                Err(error) if is_away(&error) => return Err(error),
                Err(_) => false,
            }
        };
        let page = ((start + at) / ALIGN_BYTES) as u32;
        if is_whole {
            let SlotHeader { key, place, .. } = header.slot;
            walked.entries.push(Entry { key, epoch: place.epoch, page, pages: (record_bytes / ALIGN_BYTES) as u32 });
            walked.staged += u64::from(record_bytes < image_bytes);
            at += record_bytes;
            walked.tail = start + at;
        } else {
            walked.torn += 1;
            walked.torn_pages.push(page);
            at += ALIGN_BYTES;
        }
    }
    Ok(at)
}

impl Log {
    /// The content of a segment is not known: it counts for nothing, and for as old as can be.
    fn skip_segment(&mut self, at: u32) {
        self.counters.skipped_segments += 1;
        let segment = self.segments.at_mut(at);
        segment.phase = Phase::Stale;
        segment.epoch = 0;
        self.count_done();
    }

    fn count_done(&mut self) {
        if let Some(recovery) = &mut self.recovery {
            recovery.done_segments += 1;
        }
    }

    /// Takes over what a segment holds. One without a footer gets one; one without a record is begun anew.
    fn adopt(&mut self, at: u32, tail: u64, entries: Vec<Entry>, has_footer: bool) {
        let is_empty = entries.is_empty();
        // The youngest first: of two records of a key the later one stays, and the other goes, or a deletion would bring it back.
        for entry in entries.into_iter().rev() {
            let location = Location { segment: at, page: entry.page, pages: entry.pages };
            let valid_from = self.superblock.valid_from(&entry.key.namespace);
            let is_valid = entry.epoch >= valid_from && entry.epoch <= self.durable_epoch;
            let fingerprint = self.fingerprint(&entry.key);
            let known = Known { fingerprint, location, namespace: namespace_tag(&entry.key.namespace), is_hit: false };
            if !is_valid {
                self.counters.skipped_records += 1;
            } else if self.index.find(&fingerprint).is_some() || !self.index.insert(known) {
                self.counters.skipped_records += 1;
                self.bury(location);
            } else if has_footer {
                self.segments.at_mut(at).live_pages += u64::from(entry.pages);
            } else {
                self.list(&entry.key, location, entry.epoch);
            }
        }
        let segment = self.segments.at_mut(at);
        segment.tail = tail;
        segment.phase = match (is_empty, has_footer) {
            (true, _) => Phase::Stale,
            (false, true) => Phase::Sealed,
            (false, false) => Phase::Sealing,
        };
        self.count_done();
    }

    /// Takes a snapshot over. `false`: it is not the one of the superblock that was found.
    fn take_over(&mut self, snapshot: Snapshot) -> bool {
        let Some(recovery) = &self.recovery else { return false };
        if snapshot.store_id != self.superblock.store_id || snapshot.sequence != recovery.sequence {
            return false;
        }
        for state in &snapshot.segments {
            if state.segment >= self.layout.segments_max || self.segments.at(state.segment).phase != Phase::Unread {
                continue;
            }
            let segment = self.segments.at_mut(state.segment);
            segment.phase = if state.is_sealed { Phase::Sealed } else { Phase::Stale };
            (segment.generation, segment.epoch) = (state.generation, state.epoch);
        }
        let unknown: Vec<u32> = self.segments.in_phase(Phase::Unread).collect();
        for at in unknown {
            self.skip_segment(at);
        }
        let pages = self.layout.segment_bytes / ALIGN_BYTES;
        for known in snapshot.records {
            let Location { segment, page, pages: image_pages } = known.location;
            let is_inside = segment < self.layout.segments_max
                && self.segments.at(segment).phase == Phase::Sealed
                && page >= 1
                && u64::from(page) + u64::from(image_pages) <= pages;
            if is_inside && self.index.find(&known.fingerprint).is_none() && self.index.insert(known) {
                self.segments.at_mut(segment).live_pages += u64::from(image_pages);
            } else {
                self.counters.skipped_records += 1;
                if is_inside {
                    self.bury(known.location);
                }
            }
        }
        self.counters.snapshot_loads = 1;
        true
    }

    fn end_recovery(&mut self) {
        let Some(recovery) = self.recovery.take() else { return };
        // Deletions that came while the index was read.
        let late: Vec<_> = self
            .superblock
            .deleted
            .iter()
            .filter(|(_, epoch)| *epoch > recovery.epoch)
            .map(|(name, _)| *name)
            .collect();
        for namespace in late {
            self.forget_namespace(&namespace);
        }
        self.is_due = true;
    }
}
