//! How a budget is divided: superblocks, snapshot, segments; and how many records the index has room for.

use crate::admission;
use crate::index;
use crate::segment::HEADER_BYTES;
use crate::snapshot;
use crate::superblock;
use crate::{footer, io::ALIGN_BYTES};

/// The smallest budget.
pub(crate) const MINIMUM_BYTES: u64 = 64 << 20;
/// A segment to write, one in reserve for reclaim, and two to choose from.
pub(crate) const SEGMENTS_MIN: u32 = 4;
const SEGMENT_BYTES_MIN: u64 = 8 << 20;
const SEGMENT_BYTES_MAX: u64 = 256 << 20;
/// Segments of a budget between 128 MiB and 4 GiB.
const SEGMENTS_USUAL: u64 = 16;
/// The index has room for so many records at least.
const RECORDS_MIN: u64 = 4096;
/// Blocks that a file system may add to a file for its own extent lists.
const FILE_SLACK_BYTES: u64 = 8192;

/// The division of a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub budget_bytes: u64,
    pub segment_bytes: u64,
    pub segments_max: u32,
    pub records_max: u32,
}

impl Layout {
    /// `segment_bytes`: as the store was formatted, or `None` to choose. `None` when the budget does not hold enough segments.
    pub(crate) fn new(budget_bytes: u64, record_bytes: u64, segment_bytes: Option<u64>) -> Option<Layout> {
        let records = (budget_bytes / record_bytes.max(ALIGN_BYTES)).clamp(RECORDS_MIN, u64::from(u32::MAX - 1));
        Layout::with_records(budget_bytes, records as u32, segment_bytes)
    }

    /// As [`Layout::new`] with room for exactly `records_max` records.
    pub(crate) fn with_records(budget_bytes: u64, records_max: u32, segment_bytes: Option<u64>) -> Option<Layout> {
        let wished = (budget_bytes / SEGMENTS_USUAL).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
        let most = budget_bytes / segment_bytes.unwrap_or(wished).max(ALIGN_BYTES);
        let fixed = 2 * superblock::BYTES + FILE_SLACK_BYTES + snapshot::bytes_for(most, u64::from(records_max));
        let left = budget_bytes.checked_sub(fixed)?;
        let (segment_bytes, segments) = match segment_bytes {
            Some(bytes) => (bytes, left / (bytes + FILE_SLACK_BYTES)),
            // A little less than the wished-for size, so that as many fit as the budget holds of it.
            None => {
                let each = (left / most.max(1)).saturating_sub(FILE_SLACK_BYTES).min(wished);
                (each - each % ALIGN_BYTES, most)
            }
        };
        let segments_max = u32::try_from(segments).unwrap_or(u32::MAX / 4);
        let layout = Layout { budget_bytes, segment_bytes, segments_max, records_max };
        (segments_max >= SEGMENTS_MIN && layout.image_bytes_max() >= ALIGN_BYTES).then_some(layout)
    }

    /// The longest image that a segment holds.
    pub(crate) fn image_bytes_max(&self) -> u64 {
        self.segment_bytes.saturating_sub(HEADER_BYTES + footer::bytes_for(1))
    }

    /// Most bytes of a snapshot file.
    pub(crate) fn snapshot_bytes_max(&self) -> u64 {
        snapshot::bytes_for(u64::from(self.segments_max), u64::from(self.records_max))
    }
}

/// Bytes of index, sketch and ghosts for one record, at most.
pub(crate) const INDEX_RECORD_BYTES: u64 = index::RECORD_BYTES + admission::RECORD_BYTES;

const _: () = assert!(INDEX_RECORD_BYTES <= 80);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_segments_between_128_mib_and_4_gib() {
        for (budget, segments, least) in [
            (64u64 << 20, 8, 7 << 20),
            (128 << 20, 16, 7 << 20),
            (1 << 30, 16, 63 << 20),
            (4 << 30, 16, 255 << 20),
            (200_000_000_000, 745, 255 << 20),
        ] {
            let layout = Layout::new(budget, 1 << 20, None).unwrap();
            assert_eq!(u64::from(layout.segments_max), segments, "{layout:?}");
            assert!(layout.segment_bytes > least && layout.segment_bytes <= 256 << 20, "{layout:?}");
            let used = 2 * superblock::BYTES
                + layout.snapshot_bytes_max()
                + u64::from(layout.segments_max) * layout.segment_bytes;
            assert!(used <= budget, "{layout:?}");
            assert!(budget - used < layout.segment_bytes, "a segment's worth is left over: {layout:?}");
            let again = Layout::new(budget, 1 << 20, Some(layout.segment_bytes)).unwrap();
            assert_eq!(again.segments_max, layout.segments_max, "the same store opened again");
        }
    }

    #[test]
    fn a_smaller_budget_keeps_the_segment_size_or_gives_up() {
        let layout = Layout::new(1 << 30, 1 << 20, None).unwrap();
        let smaller = Layout::new(512 << 20, 1 << 20, Some(layout.segment_bytes)).unwrap();
        assert!(smaller.segments_max >= 7 && smaller.segment_bytes == layout.segment_bytes);
        assert_eq!(Layout::new(64 << 20, 1 << 20, Some(layout.segment_bytes)), None);
    }
}
