//! Counts, indexes and time as distinct types.

/// Monotonic time in nanoseconds since the driver's start. Never a wall clock: a jump of that must not expire anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Now(pub u64);

impl Now {
    /// This moment plus `millis` milliseconds, saturating.
    pub fn after_millis(self, millis: u64) -> Now {
        Now(self.0.saturating_add(millis.saturating_mul(1_000_000)))
    }

    /// Nanoseconds from `earlier` to this moment, 0 if it is later.
    pub fn since(self, earlier: Now) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// A place inside one tier, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotIndex(pub u32);

/// How often a slot has changed hands, times two; odd while it is being written or rests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl Generation {
    /// True while the slot's bytes may change.
    pub fn is_unstable(self) -> bool {
        self.0 % 2 == 1
    }
}

/// The storage levels, nearest the arithmetic first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Device memory.
    Device,
    /// The host arena.
    Host,
    /// NVMe.
    Disk,
    /// The shared store.
    Remote,
}

impl Tier {
    /// Name used in JSON, metrics and messages.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Device => "device",
            Tier::Host => "host",
            Tier::Disk => "disk",
            Tier::Remote => "remote",
        }
    }
}
