//! The index as an orderly end leaves it. Trusted only under the superblock's clean mark, which names its sum.

use cache_core::buffer::{Buffer, round_to_pages};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::format::{self, Kind, VERSION};
use crate::index::{Fingerprint, Known, Location};

const MAGIC: [u8; 8] = *b"kvtsnap1";
/// Set in `record_pages` of a record that was read since it was written.
const HIT: u32 = 1 << 31;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    version: U32,
    segments: U32,
    store_id: [u8; 16],
    sequence: U64,
    records: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawSegment {
    segment: U32,
    /// 1: sealed, with records; 0: empty.
    is_sealed: U32,
    generation: U64,
    epoch: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawRecord {
    fingerprint: [U64; 2],
    segment: U32,
    first_page: U32,
    record_pages: U32,
    namespace: U32,
}

/// Bytes of a snapshot file for so many segments and records.
pub(crate) fn bytes_for(segments: u64, records: u64) -> u64 {
    round_to_pages(
        size_of::<Head>() as u64 + segments * size_of::<RawSegment>() as u64 + records * size_of::<RawRecord>() as u64,
    )
}

/// A segment as the snapshot knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentState {
    pub segment: u32,
    pub is_sealed: bool,
    pub generation: u64,
    pub epoch: u64,
}

/// What a snapshot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    pub store_id: [u8; 16],
    /// Sequence of the superblock that carries the clean mark.
    pub sequence: u64,
    pub segments: Vec<SegmentState>,
    pub records: Vec<Known>,
}

impl Snapshot {
    /// The file's content and its sum.
    pub(crate) fn encode(&self) -> (Buffer, u64) {
        let bytes = bytes_for(self.segments.len() as u64, self.records.len() as u64);
        let mut buffer = Buffer::zeroed(bytes as usize);
        let head = Head {
            magic: MAGIC,
            version: U32::new(VERSION),
            segments: U32::new(self.segments.len() as u32),
            store_id: self.store_id,
            sequence: U64::new(self.sequence),
            records: U64::new(self.records.len() as u64),
        };
        let (target, rest) = buffer.as_mut_slice().split_at_mut(size_of::<Head>());
        target.copy_from_slice(head.as_bytes());
        let (segments, records) = rest.split_at_mut(self.segments.len() * size_of::<RawSegment>());
        for (target, state) in segments.chunks_exact_mut(size_of::<RawSegment>()).zip(&self.segments) {
            let raw = RawSegment {
                segment: U32::new(state.segment),
                is_sealed: U32::new(u32::from(state.is_sealed)),
                generation: U64::new(state.generation),
                epoch: U64::new(state.epoch),
            };
            target.copy_from_slice(raw.as_bytes());
        }
        for (target, known) in records.chunks_exact_mut(size_of::<RawRecord>()).zip(&self.records) {
            let raw = RawRecord {
                fingerprint: known.fingerprint.0.map(U64::new),
                segment: U32::new(known.location.segment),
                first_page: U32::new(known.location.page),
                record_pages: U32::new(known.location.pages | if known.is_hit { HIT } else { 0 }),
                namespace: U32::new(known.namespace),
            };
            target.copy_from_slice(raw.as_bytes());
        }
        let sum = format::sum(Kind::Snapshot, buffer.as_slice());
        (buffer, sum)
    }

    /// `None`: not the content with this sum, or not a snapshot.
    pub(crate) fn decode(bytes: &[u8], sum: u64) -> Option<Snapshot> {
        if format::sum(Kind::Snapshot, bytes) != sum {
            return None;
        }
        let (head, rest) = Head::read_from_prefix(bytes).ok()?;
        if head.magic != MAGIC || head.version.get() != VERSION {
            return None;
        }
        let segment_bytes = (head.segments.get() as usize).checked_mul(size_of::<RawSegment>())?;
        let record_bytes = usize::try_from(head.records.get()).ok()?.checked_mul(size_of::<RawRecord>())?;
        let (segments, rest) = rest.split_at_checked(segment_bytes)?;
        let records = rest.get(..record_bytes)?;
        let segments = segments
            .chunks_exact(size_of::<RawSegment>())
            .filter_map(|chunk| RawSegment::read_from_bytes(chunk).ok())
            .map(|raw| SegmentState {
                segment: raw.segment.get(),
                is_sealed: raw.is_sealed.get() == 1,
                generation: raw.generation.get(),
                epoch: raw.epoch.get(),
            })
            .collect();
        let records = records
            .chunks_exact(size_of::<RawRecord>())
            .filter_map(|chunk| RawRecord::read_from_bytes(chunk).ok())
            .map(|raw| Known {
                fingerprint: Fingerprint(raw.fingerprint.map(U64::get)),
                location: Location {
                    segment: raw.segment.get(),
                    page: raw.first_page.get(),
                    pages: raw.record_pages.get() & !HIT,
                },
                namespace: raw.namespace.get(),
                is_hit: raw.record_pages.get() & HIT != 0,
            })
            .collect();
        Some(Snapshot { store_id: head.store_id, sequence: head.sequence.get(), segments, records })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_comes_back_under_its_sum_only() {
        let record = |number: u32| Known {
            fingerprint: Fingerprint([u64::from(number), 77]),
            location: Location { segment: number % 3, page: number, pages: 2 },
            namespace: 9,
            is_hit: number.is_multiple_of(2),
        };
        let snapshot = Snapshot {
            store_id: [3; 16],
            sequence: 12,
            segments: (0..3)
                .map(|segment| SegmentState { segment, is_sealed: true, generation: 8, epoch: 1 })
                .collect(),
            records: (0..200).map(record).collect(),
        };
        let (mut buffer, sum) = snapshot.encode();
        assert_eq!(buffer.as_slice().len() as u64, bytes_for(3, 200));
        assert_eq!(Snapshot::decode(buffer.as_slice(), sum), Some(snapshot));
        assert_eq!(Snapshot::decode(buffer.as_slice(), sum ^ 1), None);
        buffer.as_mut_slice()[100] ^= 4;
        assert_eq!(Snapshot::decode(buffer.as_slice(), sum), None);
    }

    #[test]
    fn counts_that_do_not_fit_are_no_snapshot() {
        let mut bytes = vec![0; 4096];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8] = VERSION as u8;
        bytes[12..16].fill(0xff);
        bytes[40..48].fill(0xff);
        let sum = format::sum(Kind::Snapshot, &bytes);
        assert_eq!(Snapshot::decode(&bytes, sum), None);
    }
}
