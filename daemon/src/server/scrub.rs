//! Blocks in memory are checked again, slot after slot, at a pace: memory rots too, and a hit is read in place without a check.

use std::time::{Duration, Instant};

use crate::server::cache::Cache;
use crate::server::class::ClassId;
use crate::stats::Counters;

/// How often the scrubber goes on.
pub(crate) const PACE: Duration = Duration::from_millis(100);
/// Unused time that is made up for, at most.
const ARREARS_MAX: Duration = Duration::from_secs(1);

pub(crate) struct Scrubber {
    bytes_s: u64,
    since: Instant,
    /// Where it stands.
    class: ClassId,
    slot: u32,
}

impl Scrubber {
    /// `bytes_s`: 0 for none.
    pub(crate) fn new(bytes_s: u64) -> Scrubber {
        Scrubber { bytes_s, since: Instant::now(), class: 0, slot: 0 }
    }

    /// Checks as many slots as are due.
    pub(crate) fn go_on(&mut self, cache: &Cache, counters: &Counters) {
        let due = self.since.elapsed().min(ARREARS_MAX).as_secs_f64() * self.bytes_s as f64;
        let mut left = due as u64;
        let Some((mut classes, mut slot_bytes)) = cache.scrubbed_class(self.class) else {
            return;
        };
        if left < slot_bytes {
            return;
        }
        self.since = Instant::now();
        let mut passed = 0;
        while left >= slot_bytes && passed < classes {
            match cache.check_slot(self.class, self.slot) {
                Some(None) => {}
                Some(Some(is_sound)) => {
                    left -= slot_bytes;
                    counters.scrubbed(slot_bytes);
                    if !is_sound {
                        counters.integrity_failure();
                    }
                }
                None => {
                    // The end of the class.
                    (self.class, self.slot) = ((self.class + 1) % classes, 0);
                    passed += 1;
                    match cache.scrubbed_class(self.class) {
                        Some(next) => (classes, slot_bytes) = next,
                        None => return,
                    }
                    continue;
                }
            }
            self.slot += 1;
        }
    }
}
