//! What the tier tells about itself and about operations.

use cache_core::key::CopyKey;
use cache_core::store::OpId;

use crate::error::DiskEnd;
use crate::io::Memory;

/// What the tier is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskState {
    /// Reading its index; what was read already is served.
    Recovering {
        /// Segments read.
        done_segments: u32,
        /// Segments there are.
        segments: u32,
    },
    /// Serving.
    Ready,
    /// Every operation misses until a probe finds the medium well again.
    Offline {
        /// Why, for people.
        reason: String,
    },
    /// Closed for good.
    Closed,
}

/// How an operation ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskOk {
    /// Every byte was written; the record can be found.
    Written,
    /// The copy was there already.
    Present,
    /// The whole image is in the memory, verified.
    Read,
    /// The section is in the memory from byte `start` on, verified.
    Section {
        /// First byte of the section in the memory.
        start: u64,
    },
    /// The record is gone.
    Deleted,
}

/// The end of an operation.
#[derive(Debug)]
pub struct DiskDone {
    /// Which operation.
    pub op: OpId,
    /// Its key.
    pub key: CopyKey,
    /// Its memory; `None` when the medium has not given it back (a timeout) and for a deletion.
    pub memory: Option<Memory>,
    /// How it ended.
    pub result: Result<DiskOk, DiskEnd>,
}

/// What the index knows of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordInfo {
    /// Length of the record on disk in bytes.
    pub bytes: u64,
}

/// Counts since the tier was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounters {
    /// Whole images read and verified.
    pub reads: u64,
    /// Sections read and verified.
    pub section_reads: u64,
    /// Bytes read for reads and section reads, as they are stored.
    pub read_bytes: u64,
    /// Records written and made visible.
    pub writes: u64,
    /// Of these, staged ones.
    pub staged_writes: u64,
    /// Bytes that these are shorter than their slot images.
    pub saved_bytes: u64,
    /// Lookups, reads and pins that found nothing.
    pub misses: u64,
    /// Writes of copies that were there already.
    pub present: u64,
    /// Writes refused by admission.
    pub refused_admission: u64,
    /// Writes refused by the write-rate limit.
    pub refused_limit: u64,
    /// Writes that found no room.
    pub full: u64,
    /// Records that did not verify when they were read.
    pub failed_checks: u64,
    /// Records taken out of the index because they did not verify or could not be read.
    pub quarantined: u64,
    /// Writes whose bytes did not verify.
    pub damaged_writes: u64,
    /// Operations of the medium that failed.
    pub io_errors: u64,
    /// Operations that were not ended in time.
    pub timeouts: u64,
    /// Times the tier went offline.
    pub offline: u64,
    /// Segments reclaimed.
    pub reclaimed_segments: u64,
    /// Records written again by reclaim.
    pub reinserted: u64,
    /// Records dropped by reclaim.
    pub evicted: u64,
    /// Bytes that they had there.
    pub evicted_bytes: u64,
    /// Records, or segments of them, that were not taken over at recovery: torn, stale, foreign, of a deleted namespace.
    pub skipped_records: u64,
    /// Segments whose header was not sound at recovery.
    pub skipped_segments: u64,
    /// Segments given up after a failed or unfinished write.
    pub abandoned_segments: u64,
    /// Stores begun anew because both superblocks were damaged.
    pub reformatted: u64,
    /// 1 when the index came from a snapshot.
    pub snapshot_loads: u64,
    /// Bytes written in all: records, footers, superblocks, snapshots (wear).
    pub written_bytes: u64,
    /// Of these, bytes that reclaim wrote again.
    pub reinserted_bytes: u64,
    /// Completed syncs.
    pub syncs: u64,
    /// Namespaces deleted.
    pub deleted_namespaces: u64,
}

/// Sizes and use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCapacity {
    /// The hard limit.
    pub budget_bytes: u64,
    /// Allocated blocks of all files.
    pub allocated_bytes: u64,
    /// Records that can be found.
    pub records: u64,
    /// Records for which the index has room.
    pub records_max: u64,
    /// Bytes of the records that can be found.
    pub record_bytes: u64,
    /// Index memory, allocated when the tier was opened.
    pub index_bytes: u64,
    /// Bounce memory for staged records, allocated so far and kept.
    pub bounce_bytes: u64,
    /// Segment files that exist.
    pub segments: u32,
    /// Segment files that may exist.
    pub segments_max: u32,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// Segments ready to be written.
    pub free_segments: u32,
    /// Keys that are pinned.
    pub pinned: u64,
}
