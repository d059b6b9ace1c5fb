//! A connection's staging memory, and which parts of it wait for a commit.

use std::collections::BTreeMap;

use host_tier::{HostError, Staging};

pub(crate) struct StagingArea {
    memory: Staging,
    /// Taken ranges: first byte and length.
    taken: BTreeMap<u64, u64>,
}

impl StagingArea {
    /// Makes one of `bytes` bytes, whole pages.
    pub(crate) fn new(bytes: u64) -> Result<StagingArea, HostError> {
        Ok(StagingArea { memory: Staging::new(bytes)?, taken: BTreeMap::new() })
    }

    pub(crate) fn memory(&self) -> &Staging {
        &self.memory
    }

    /// First byte of a free range of so many bytes, whole pages; `None` when there is none.
    pub(crate) fn take(&mut self, bytes: u64) -> Option<u64> {
        let mut start = 0;
        for (taken, length) in &self.taken {
            if taken - start >= bytes {
                break;
            }
            start = taken + length;
        }
        if start + bytes > self.memory.bytes() {
            return None;
        }
        self.taken.insert(start, bytes);
        Some(start)
    }

    /// Gives a range back by its first byte.
    pub(crate) fn give_back(&mut self, start: u64) {
        self.taken.remove(&start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_never_overlap_and_gaps_are_used_again() {
        let mut area = StagingArea::new(64 << 10).unwrap();
        let first = area.take(24 << 10).unwrap();
        let second = area.take(16 << 10).unwrap();
        let third = area.take(24 << 10).unwrap();
        assert_eq!((first, second, third, area.take(4096)), (0, 24 << 10, 40 << 10, None));
        area.give_back(second);
        assert_eq!(area.take(20 << 10), None);
        assert_eq!(area.take(12 << 10), Some(24 << 10));
        assert_eq!(area.take(4096), Some(36 << 10));
        area.give_back(first);
        assert_eq!(area.take(24 << 10), Some(0));
    }
}
