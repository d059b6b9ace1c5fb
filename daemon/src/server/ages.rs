//! How long copies stay in the arena, how long they were idle when they were evicted, and how long it takes until they are used again.
//!
//! Only of one copy in [`SHARE`], told by its key, so that a hit costs nothing more and the table stays small: what an arena of a million blocks
//! needs for it is less than 2 MiB.

use std::collections::HashMap;
use std::time::Duration;

use cache_core::key::CopyKey;
use cache_core::units::Now;

use crate::stats::{AGE_BOUNDS_US, Ages, Histogram};

/// One copy in so many is looked at.
const SHARE: u8 = 64;

/// When a copy came, and when it was last asked for.
struct Age {
    came: Now,
    used: Now,
}

/// Guarded by the state's lock.
pub(crate) struct Watched {
    copies: HashMap<CopyKey, Age>,
    lifetime: Histogram,
    idle: Histogram,
    reuse: Histogram,
}

impl Default for Watched {
    fn default() -> Watched {
        let [lifetime, idle, reuse] = [(); 3].map(|()| Histogram::new(&AGE_BOUNDS_US));
        Watched { copies: HashMap::new(), lifetime, idle, reuse }
    }
}

fn is_watched(key: &CopyKey) -> bool {
    key.hash.0[0].is_multiple_of(SHARE)
}

fn between(then: Now, now: Now) -> Duration {
    Duration::from_nanos(now.since(then))
}

impl Watched {
    /// A copy is in the arena from now on.
    pub(crate) fn came(&mut self, key: &CopyKey, now: Now) {
        if is_watched(key) {
            self.copies.insert(*key, Age { came: now, used: now });
        }
    }

    /// Somebody asked for a copy.
    pub(crate) fn used(&mut self, key: &CopyKey, now: Now) {
        if is_watched(key)
            && let Some(age) = self.copies.get_mut(key)
        {
            self.reuse.record(between(age.used, now));
            age.used = now;
        }
    }

    /// A copy makes room for another.
    pub(crate) fn evicted(&mut self, key: &CopyKey, now: Now) {
        if let Some(age) = self.copies.remove(key) {
            self.lifetime.record(between(age.came, now));
            self.idle.record(between(age.used, now));
        }
    }

    /// A copy is gone for another reason.
    pub(crate) fn lost(&mut self, key: &CopyKey) {
        self.copies.remove(key);
    }

    /// What was seen so far.
    pub(crate) fn read(&self) -> Ages {
        Ages {
            bounds_us: AGE_BOUNDS_US.to_vec(),
            lifetime: self.lifetime.read(),
            idle_before_evict: self.idle.read(),
            reuse_gap: self.reuse.read(),
        }
    }
}

#[cfg(test)]
mod tests {
    use cache_core::hash::{BlockHash, Namespace};

    use super::*;

    #[test]
    fn a_copy_is_told_of_from_its_coming_to_its_end() {
        let key = |first: u8| CopyKey::exact(Namespace([1; 32]), BlockHash([first; 32]));
        let at = |seconds: u64| Now(seconds * 1_000_000_000);
        let mut watched = Watched::default();
        for (copy, start) in [(key(64), 0), (key(65), 0), (key(128), 5)] {
            watched.came(&copy, at(start));
            watched.used(&copy, at(10));
            watched.used(&copy, at(40));
        }
        watched.lost(&key(128));
        [64, 65, 128].into_iter().for_each(|first| watched.evicted(&key(first), at(100)));
        let read = watched.read();
        // 10, 30 and 5, 30; of the one that was evicted, and whose hash is looked at.
        assert_eq!((read.reuse_gap.count, read.reuse_gap.sum_us), (4, 75e6));
        assert_eq!((read.lifetime.count, read.lifetime.sum_us), (1, 100e6));
        assert_eq!((read.idle_before_evict.count, read.idle_before_evict.sum_us), (1, 60e6));
        assert!(watched.copies.is_empty());
    }
}
