//! The offline scrub: every record of a store read and verified, nothing written.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use cache_core::buffer::Buffer;
use cache_core::codec::Scalar;

use crate::error::DiskError;
use crate::footer;
use crate::format::VERSION;
use crate::io::{ALIGN_BYTES, Directory, Done, FileId, IoChoice, IoError, Kind, Medium, Memory, Operation, Sink};
use crate::record;
use crate::recovery::{read_footer, walk};
use crate::segment::{HEADER_BYTES, SegmentHeader};
use crate::snapshot::Snapshot;
use crate::superblock::{self, Found, Superblock};
use crate::tier::DiskTier;

/// How long one operation of a scrub may take, in milliseconds.
const DEADLINE_MILLIS: u64 = 30_000;

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Segment number; `None` for a superblock or the snapshot.
    pub segment: Option<u32>,
    /// First byte in that file.
    pub offset: u64,
    /// What is wrong, for people.
    pub what: String,
}

/// What a scrub has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifyReport {
    /// Format version.
    pub version: u32,
    /// Store id.
    pub store_id: [u8; 16],
    /// Sound superblocks, of 2.
    pub superblocks: u32,
    /// The last end was an orderly one, and its snapshot is sound.
    pub has_snapshot: bool,
    /// Segment files.
    pub segments: u32,
    /// Of these, with a sound footer.
    pub footers: u32,
    /// Whole records.
    pub records: u64,
    /// Of these, records of deleted namespaces, which are never served.
    pub deleted_records: u64,
    /// Of the whole records, staged ones.
    pub staged_records: u64,
    /// Bytes of whole records, as they are stored.
    pub record_bytes: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Allocated blocks of all files.
    pub allocated_bytes: u64,
    /// What is damaged: torn records of a crash among them, which recovery skips.
    pub damage: Vec<Damage>,
}

impl DiskTier {
    /// Reads and verifies a whole store that nobody has open. Errors: [`DiskError::Version`], [`DiskError::NoStore`], [`DiskError::Open`],
    /// and a medium that cannot be read at all.
    pub fn verify_offline(dir: &Path, io: IoChoice) -> Result<VerifyReport, DiskError> {
        // Opening would leave a lock file in a folder that is no store.
        if !Directory::holds_store(dir) {
            return Err(DiskError::NoStore);
        }
        let medium = Directory::open(dir, io, Vec::new(), 8, DEADLINE_MILLIS).map_err(DiskError::Open)?;
        DiskTier::verify_medium(medium)
    }

    /// As [`DiskTier::verify_offline`], over any medium.
    pub fn verify_medium(medium: Arc<dyn Medium>) -> Result<VerifyReport, DiskError> {
        let slot = Arc::new(Answer::default());
        medium.connect(Arc::clone(&slot) as Arc<dyn Sink>);
        let mut scrub = Scrub { medium, slot, next: 0, report: VerifyReport::default() };
        let result = scrub.run();
        scrub.medium.close(DEADLINE_MILLIS);
        result.map(|()| scrub.report)
    }
}

/// The one operation that is under way.
#[derive(Default)]
struct Answer {
    done: Mutex<Option<Done>>,
    changed: Condvar,
}

impl Sink for Answer {
    fn done(&self, ended: Vec<Done>) {
        for done in ended {
            *self.done.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
        }
        self.changed.notify_all();
    }
}

struct Scrub {
    medium: Arc<dyn Medium>,
    slot: Arc<Answer>,
    next: u64,
    report: VerifyReport,
}

impl Scrub {
    fn read(&mut self, file: FileId, offset: u64, bytes: u64) -> Result<Buffer, IoError> {
        self.next += 1;
        let (id, memory) = (self.next, Memory::Owned(Buffer::zeroed(bytes as usize)));
        self.medium.submit(vec![Operation { id, kind: Kind::Read, file, offset, memory, range: 0..bytes }]);
        let wait = std::time::Duration::from_millis(2 * DEADLINE_MILLIS);
        let guard = self.slot.done.lock().unwrap_or_else(PoisonError::into_inner);
        let is_ours = |done: &mut Option<Done>| done.as_ref().is_none_or(|done| done.id != id);
        let (mut guard, _) =
            self.slot.changed.wait_timeout_while(guard, wait, is_ours).unwrap_or_else(PoisonError::into_inner);
        match guard.take() {
            Some(Done { result: Ok(()), memory: Some(Memory::Owned(buffer)), .. }) => {
                self.report.read_bytes += bytes;
                Ok(buffer)
            }
            Some(Done { result: Err(error), .. }) => Err(error),
            _ => Err(IoError::TimedOut { millis: 2 * DEADLINE_MILLIS }),
        }
    }

    fn damage(&mut self, segment: Option<u32>, offset: u64, what: impl Into<String>) {
        self.report.damage.push(Damage { segment, offset, what: what.into() });
    }

    fn run(&mut self) -> Result<(), DiskError> {
        let files =
            self.medium.files().map_err(|source| DiskError::Files { what: "list the store's files", source })?;
        self.report.allocated_bytes = files.iter().map(|(_, info)| info.allocated_bytes).sum();
        let superblock = self.superblocks()?;
        self.report.version = VERSION;
        self.report.store_id = superblock.store_id;
        self.snapshot(&superblock);
        for (file, info) in files {
            let Some(at) = file.0.checked_sub(FileId::segment(0).0) else { continue };
            self.report.segments += 1;
            if info.bytes == superblock.segment_bytes {
                self.segment(&superblock, at);
            } else {
                self.damage(
                    Some(at),
                    0,
                    format!("the segment has {} bytes, not {}", info.bytes, superblock.segment_bytes),
                );
            }
        }
        Ok(())
    }

    fn superblocks(&mut self) -> Result<Superblock, DiskError> {
        let mut best: Option<Superblock> = None;
        for file in FileId::SUPERBLOCKS {
            match self.read(file, 0, superblock::BYTES) {
                Err(error) => self.damage(None, 0, format!("superblock {}: {error}", file.0)),
                Ok(buffer) => match Superblock::decode(buffer.as_slice()) {
                    Found::OtherVersion(found) => return Err(DiskError::Version { found, supported: VERSION }),
                    Found::Damaged => self.damage(None, 0, format!("superblock {}: its sum is wrong", file.0)),
                    Found::Sound(found) => {
                        self.report.superblocks += 1;
                        if best.as_ref().is_none_or(|other| other.sequence < found.sequence) {
                            best = Some(found);
                        }
                    }
                },
            }
        }
        best.ok_or(DiskError::NoStore)
    }

    fn snapshot(&mut self, superblock: &Superblock) {
        let Some(clean) = superblock.clean else { return };
        let found = self.read(FileId::SNAPSHOT, 0, clean.snapshot_bytes);
        let sound = found.ok().and_then(|buffer| Snapshot::decode(buffer.as_slice(), clean.snapshot_sum));
        match sound {
            Some(snapshot) if snapshot.sequence == superblock.sequence => self.report.has_snapshot = true,
            _ => self.damage(None, 0, "the index snapshot does not fit the superblock's mark"),
        }
    }

    fn segment(&mut self, superblock: &Superblock, at: u32) {
        let file = FileId::segment(at);
        let bytes = superblock.segment_bytes;
        let header = self.read(file, 0, HEADER_BYTES).ok();
        let header = header.and_then(|page| SegmentHeader::decode(page.as_slice(), superblock.store_id, at, bytes));
        let Some(header) = header else { return self.damage(Some(at), 0, "the segment header's sum is wrong") };
        let owner = footer::Owner { store_id: superblock.store_id, segment: at, generation: header.generation };
        let listed = self.footer(&owner, bytes);
        let walked = {
            let mut read = |offset, bytes| self.read(file, offset, bytes);
            walk(&owner, bytes, &Scalar, &mut read)
        };
        let walked = match walked {
            Ok(walked) => walked,
            Err(error) => return self.damage(Some(at), 0, error.to_string()),
        };
        for entry in &walked.entries {
            self.report.records += 1;
            self.report.record_bytes += u64::from(entry.pages) * ALIGN_BYTES;
            let is_deleted = entry.epoch < superblock.valid_from(&entry.key.namespace);
            self.report.deleted_records += u64::from(is_deleted);
        }
        self.report.staged_records += walked.staged;
        for page in &walked.torn_pages {
            self.damage(Some(at), u64::from(*page) * ALIGN_BYTES, "a section's sum or length is wrong");
        }
        let Some(listed) = listed else { return };
        self.report.footers += 1;
        for entry in listed {
            let is_there = walked.entries.iter().any(|found| found.page == entry.page && found.key == entry.key);
            if !is_there && !walked.torn_pages.contains(&entry.page) && !self.is_deleted(&owner, bytes, &entry) {
                self.damage(Some(at), u64::from(entry.page) * ALIGN_BYTES, "the record header's sum is wrong");
            }
        }
    }

    /// The footer's records, where it is sound.
    fn footer(&mut self, owner: &footer::Owner, segment_bytes: u64) -> Option<Vec<footer::Entry>> {
        let file = FileId::segment(owner.segment);
        let end = self.read(file, segment_bytes - ALIGN_BYTES, ALIGN_BYTES).ok()?;
        let claimed = footer::claimed_bytes(owner, end.as_slice(), segment_bytes);
        let found = {
            let mut read = |offset, bytes| self.read(file, offset, bytes);
            read_footer(owner, end.as_slice(), segment_bytes, &mut read).ok()?
        };
        if found.is_none() && claimed.is_some() {
            self.damage(Some(owner.segment), segment_bytes - ALIGN_BYTES, "the footer's sum is wrong");
        }
        found.map(|(_, entries)| entries)
    }

    /// A deleted record's first page is zeros.
    fn is_deleted(&mut self, owner: &footer::Owner, segment_bytes: u64, entry: &footer::Entry) -> bool {
        debug_assert!(u64::from(entry.page) * ALIGN_BYTES < segment_bytes);
        let page = self.read(FileId::segment(owner.segment), u64::from(entry.page) * ALIGN_BYTES, ALIGN_BYTES);
        page.is_ok_and(|page| !record::begins(page.as_slice()) && page.as_slice().iter().all(|byte| *byte == 0))
    }
}
