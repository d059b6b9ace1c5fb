//! Switches for tests: small segments, no thread, bugs that the rigs must catch, and logs that are large in name only.

#[cfg(feature = "testing")]
pub use formats::{Format, formats};
#[cfg(feature = "testing")]
pub use sparse::sparse_log;

#[cfg(feature = "testing")]
mod formats;
#[cfg(feature = "testing")]
mod sparse;

/// A bug put in on purpose, so that a rig can show that it would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlantedBug {
    /// A record's place (store id, generation, offset) is not looked at.
    IgnorePlace,
    /// A record of a deleted namespace is served.
    IgnoreEpoch,
    /// Sections are not verified.
    IgnoreSums,
    /// A record can be found although its write failed.
    VisibleAfterFailure,
    /// A segment is begun anew while reads of it are under way.
    ReuseUnderReaders,
    /// A deletion is acknowledged before the superblocks are written.
    ForgetDeletion,
    /// Twice the segments that the budget holds.
    TooManySegments,
    /// Reclaim does not look at pins.
    IgnorePins,
}

/// How a tier under test differs from one in use.
#[derive(Clone, Copy, Debug, Default)]
pub struct Testing {
    /// Segment size in bytes, whole pages; the minimum budget then does not apply.
    pub segment_bytes: Option<u64>,
    /// Records that the index has room for.
    pub records_max: Option<u32>,
    /// No thread of its own: the log's slow work is done inside `wait`, `wait_ready`, `drain`, `close` and [`crate::DiskTier::step`].
    pub is_manual: bool,
    /// The bug.
    pub bug: Option<PlantedBug>,
}

impl Testing {
    pub(crate) fn has(&self, bug: PlantedBug) -> bool {
        self.bug == Some(bug)
    }
}
