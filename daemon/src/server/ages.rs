//! How long copies stay in the arena, how long they were idle when they were evicted, and how long it takes until they are used again.
//!
//! Only of one copy in [`SHARE`], told by its hash, so that a hit costs next to nothing more and the table stays small.

use std::time::Duration;

use cache_core::hasher::{self, DigestMap};
use cache_core::key::CopyKey;
use cache_core::units::Now;

use crate::stats::{AGE_BOUNDS_US, Ages, Histogram};

/// One copy in so many is looked at.
const SHARE: u32 = 64;
/// One slot in so many has room in the table: twice what is needed, unless somebody has chosen his hashes for it.
const ROOM_SHARE: u32 = SHARE / 2;

/// When a copy came, and when it was last asked for.
struct Age {
    came: Now,
    used: Now,
}

/// Guarded by the state's lock.
pub(crate) struct Watched {
    copies: DigestMap<CopyKey, Age>,
    copies_max: usize,
    lifetime: Histogram,
    idle: Histogram,
    reuse: Histogram,
}

impl Default for Watched {
    fn default() -> Watched {
        let [lifetime, idle, reuse] = [(); 3].map(|()| Histogram::new(&AGE_BOUNDS_US));
        Watched { copies: hasher::map(0), copies_max: 0, lifetime, idle, reuse }
    }
}

/// By all of the hash: engines that count their blocks have hashes that are nearly all zeros.
fn is_watched(key: &CopyKey) -> bool {
    let (words, _) = key.hash.0.as_chunks::<8>();
    let folded = words.iter().fold(0, |folded, word| folded ^ u64::from_le_bytes(*word));
    // Multiplied by 2^64 over the golden ratio, the upper bits depend on all.
    folded.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SHARE.trailing_zeros()) == 0
}

fn between(then: Now, now: Now) -> Duration {
    Duration::from_nanos(now.since(then))
}

impl Watched {
    /// Bytes of the table for each slot of the arena: an entry in [`ROOM_SHARE`], in a table of which less than half may be full.
    pub(crate) const BYTES_PER_SLOT: u64 = (3 * size_of::<(CopyKey, Age)>() as u64).div_ceil(ROOM_SHARE as u64);

    /// So many slots are there more.
    pub(crate) fn grow(&mut self, slots: u32) {
        self.copies_max += slots.div_ceil(ROOM_SHARE) as usize;
    }

    /// A copy is in the arena from now on.
    pub(crate) fn came(&mut self, key: &CopyKey, now: Now) {
        if is_watched(key) && self.copies.len() < self.copies_max {
            self.copies.insert(*key, Age { came: now, used: now });
        }
    }

    /// Somebody leases a copy.
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

    /// Blocks of an engine that counts them.
    fn counted(number: u64) -> CopyKey {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&number.to_le_bytes());
        CopyKey::exact(Namespace([1; 32]), BlockHash(hash))
    }

    #[test]
    fn one_in_64_is_watched_whatever_hashes_are_made_of_and_no_more_than_there_is_room_for() {
        let mut watched = Watched::default();
        watched.grow(64_000);
        (0..64_000).for_each(|number| watched.came(&counted(number), Now(0)));
        assert!((900..1100).contains(&watched.copies.len()), "{} of 64,000", watched.copies.len());
        (64_000..640_000).for_each(|number| watched.came(&counted(number), Now(0)));
        assert_eq!(watched.copies.len(), 2000);
        // Of eight places in the table one stays empty; each has a byte beside it.
        let bytes = watched.copies.capacity() as u64 * 8 / 7 * (size_of::<(CopyKey, Age)>() as u64 + 1);
        assert!(bytes <= 64_000 * Watched::BYTES_PER_SLOT, "{bytes} bytes");
    }

    #[test]
    fn a_copy_is_told_of_from_its_coming_to_its_end() {
        let at = |seconds: u64| Now(seconds * 1_000_000_000);
        let (seen, unseen): (Vec<CopyKey>, Vec<CopyKey>) = (0..6400).map(counted).partition(is_watched);
        let mut watched = Watched::default();
        watched.grow(64);
        for (copy, start) in [(seen[0], 0), (unseen[0], 0), (seen[1], 5)] {
            watched.came(&copy, at(start));
            watched.used(&copy, at(10));
            watched.used(&copy, at(40));
        }
        watched.lost(&seen[1]);
        [seen[0], unseen[0], seen[1]].iter().for_each(|copy| watched.evicted(copy, at(100)));
        let read = watched.read();
        // 10, 30 and 5, 30; of the one that was evicted, and whose hash is looked at.
        assert_eq!((read.reuse_gap.count, read.reuse_gap.sum_us), (4, 75e6));
        assert_eq!((read.lifetime.count, read.lifetime.sum_us), (1, 100e6));
        assert_eq!((read.idle_before_evict.count, read.idle_before_evict.sum_us), (1, 60e6));
        assert!(watched.copies.is_empty());
    }
}
