//! Segments: the header page that begins each, and what is known of one in memory.
//!
//! ```text
//! segment = header page | record | record | ... | free | footer (when sealed)
//! Absent --create--> Stale --header written and synced--> Free --> Active --full--> Sealing --footer--> Sealed --reclaim--> Stale
//! ```
//! The header page with the segment's new generation is durable before the first record of that generation is written, and before the
//! segment counts as free: so what an earlier tenant left in it is dead from then on, whatever crash follows.

use std::collections::VecDeque;

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::footer::Entry;
use crate::format::{self, Kind, VERSION};

/// Bytes of the header page.
pub(crate) const HEADER_BYTES: u64 = 4096;
const MAGIC: [u8; 8] = *b"kvtseg01";

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: U32,
    segment: U32,
    store_id: [u8; 16],
    generation: U64,
    epoch: U64,
    segment_bytes: U64,
    padding: [u8; 4032],
    sum: U64,
}

const _: () = assert!(size_of::<Raw>() as u64 == HEADER_BYTES);

/// What the header page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    /// Grows from one tenant of any segment to the next: run number in the upper half, a count in the lower.
    pub generation: u64,
    /// Deletion epoch when it was begun: no record in it is of an earlier one.
    pub epoch: u64,
}

impl SegmentHeader {
    pub(crate) fn encode(&self, store_id: [u8; 16], segment: u32, segment_bytes: u64, out: &mut [u8]) {
        let mut raw = Raw::new_zeroed();
        raw.magic = MAGIC;
        raw.version = U32::new(VERSION);
        raw.segment = U32::new(segment);
        raw.store_id = store_id;
        raw.generation = U64::new(self.generation);
        raw.epoch = U64::new(self.epoch);
        raw.segment_bytes = U64::new(segment_bytes);
        out.copy_from_slice(raw.as_bytes());
        let end = HEADER_BYTES as usize - 8;
        let sum = format::sum(Kind::Segment, &out[..end]);
        out[end..].copy_from_slice(&sum.to_le_bytes());
    }

    /// `None`: not a sound header of this segment of this store.
    pub(crate) fn decode(bytes: &[u8], store_id: [u8; 16], segment: u32, segment_bytes: u64) -> Option<SegmentHeader> {
        let raw = Raw::read_from_bytes(bytes).ok()?;
        let sound = format::sum(Kind::Segment, &bytes[..HEADER_BYTES as usize - 8]) == raw.sum.get()
            && raw.magic == MAGIC
            && raw.version.get() == VERSION
            && raw.segment.get() == segment
            && raw.store_id == store_id
            && raw.segment_bytes.get() == segment_bytes;
        sound.then(|| SegmentHeader { generation: raw.generation.get(), epoch: raw.epoch.get() })
    }
}

/// What happens to a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No file.
    Absent,
    /// A file whose content counts for nothing, or is not known: it needs a new header before use.
    Stale,
    /// Being read at recovery.
    Unread,
    /// Empty, under a durable header.
    Free,
    /// Records are appended.
    Active,
    /// No more records; some may still be written, then comes the footer.
    Sealing,
    /// Read only.
    Sealed,
    /// Read only, and being emptied.
    Reclaiming,
}

/// One segment.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub phase: Phase,
    pub generation: u64,
    /// Deletion epoch of its header; of a stale one, what its old content may be as old as.
    pub epoch: u64,
    /// Where the next record goes, in bytes.
    pub tail: u64,
    /// Record writes under way.
    pub writers: u32,
    /// Reads under way: the segment is not begun anew before they have ended.
    pub readers: u32,
    /// Pages of its records that are in the index.
    pub live_pages: u64,
    /// A write of it may still reach the disk although it was given up: never to be used again in this process.
    pub is_poisoned: bool,
    /// Records that were written whole, for the footer; empty once it is sealed.
    pub entries: Vec<Entry>,
}

impl Segment {
    pub(crate) fn new(phase: Phase) -> Segment {
        Segment {
            phase,
            generation: 0,
            epoch: 0,
            tail: HEADER_BYTES,
            writers: 0,
            readers: 0,
            live_pages: 0,
            is_poisoned: false,
            entries: Vec::new(),
        }
    }

    /// Becomes free under a header that is durable now.
    pub(crate) fn begin(&mut self, header: SegmentHeader) {
        self.phase = Phase::Free;
        self.generation = header.generation;
        self.epoch = header.epoch;
        self.tail = HEADER_BYTES;
        self.entries.clear();
    }
}

/// The segments of a store.
#[derive(Clone, Debug)]
pub(crate) struct Segments {
    pub list: Vec<Segment>,
    /// Free ones, in the order in which they will be used.
    pub free: VecDeque<u32>,
    pub active: Option<u32>,
}

impl Segments {
    pub(crate) fn new(count: u32) -> Segments {
        Segments {
            list: vec![Segment::new(Phase::Absent); count as usize],
            free: VecDeque::with_capacity(count as usize),
            active: None,
        }
    }

    pub(crate) fn at(&self, segment: u32) -> &Segment {
        &self.list[segment as usize]
    }

    pub(crate) fn at_mut(&mut self, segment: u32) -> &mut Segment {
        &mut self.list[segment as usize]
    }

    /// Those in a phase, by number.
    pub(crate) fn in_phase(&self, phase: Phase) -> impl Iterator<Item = u32> + '_ {
        self.list.iter().enumerate().filter(move |(_, found)| found.phase == phase).map(|(index, _)| index as u32)
    }

    /// The oldest deletion epoch that a record in any file may be of.
    pub(crate) fn oldest_epoch(&self) -> Option<u64> {
        self.list.iter().filter(|segment| segment.phase != Phase::Absent).map(|segment| segment.epoch).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_of_one_segment_of_one_store() {
        let header = SegmentHeader { generation: 5 << 32 | 2, epoch: 3 };
        let mut bytes = vec![0; HEADER_BYTES as usize];
        header.encode([4; 16], 2, 1 << 20, &mut bytes);
        assert_eq!(SegmentHeader::decode(&bytes, [4; 16], 2, 1 << 20), Some(header));
        assert_eq!(SegmentHeader::decode(&bytes, [5; 16], 2, 1 << 20), None);
        assert_eq!(SegmentHeader::decode(&bytes, [4; 16], 3, 1 << 20), None);
        assert_eq!(SegmentHeader::decode(&bytes, [4; 16], 2, 2 << 20), None);
        for bit in 0..bytes.len() * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&bytes, [4; 16], 2, 1 << 20), None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
