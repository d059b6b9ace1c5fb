//! The index: where each record lies. All its memory is allocated when it is made: [`RECORD_BYTES`] for each record it has room for.
//!
//! A slab of entries, hash buckets that are chains through it, and one list per segment through it. A key stands as a 128-bit fingerprint,
//! salted with the store's id; the record's own header has the last word about whose it is.

use std::collections::HashMap;
use std::hash::Hasher;

use cache_core::hash::Namespace;
use cache_core::key::CopyKey;
use twox_hash::XxHash3_64;
use zerocopy::IntoBytes;

use crate::io::ALIGN_BYTES;

/// Most bytes of index for one record: an entry, and up to two buckets.
pub(crate) const RECORD_BYTES: u64 = size_of::<Entry>() as u64 + 2 * size_of::<u32>() as u64;

const NONE: u32 = u32::MAX;

/// 128 bits of a key, salted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Fingerprint(pub [u64; 2]);

impl Fingerprint {
    pub(crate) fn of(store_id: &[u8; 16], key: &CopyKey) -> Fingerprint {
        let half = |part: usize| {
            let salt =
                u64::from_le_bytes(store_id[part * 8..part * 8 + 8].try_into().expect("a store id has 16 bytes"));
            XxHash3_64::oneshot_with_seed(salt ^ 0x6b76_7469_6e64_7800 ^ part as u64, key.as_bytes())
        };
        Fingerprint([half(0), half(1)])
    }
}

/// 32 bits of a namespace, to find the records of a deleted one. A chance equal only costs a miss.
pub(crate) fn namespace_tag(namespace: &Namespace) -> u32 {
    let mut hasher = XxHash3_64::with_seed(0x6b76_7469_6e64_7802);
    hasher.write(namespace.bytes());
    (hasher.finish() >> 32) as u32
}

/// Where a record lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Location {
    pub segment: u32,
    /// First page in the segment.
    pub page: u32,
    pub pages: u32,
}

impl Location {
    /// Length of the record in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.pages) * ALIGN_BYTES
    }
}

/// A record as the index knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub fingerprint: Fingerprint,
    pub location: Location,
    pub namespace: u32,
    /// Read since it was written or reinserted.
    pub is_hit: bool,
}

#[derive(Clone, Copy)]
struct Entry {
    fingerprint: Fingerprint,
    location: Location,
    namespace: u32,
    bucket_next: u32,
    segment_next: u32,
    segment_previous: u32,
    is_hit: bool,
}

/// The index of one store.
pub(crate) struct Index {
    entries: Vec<Entry>,
    /// Unused entries, chained through `bucket_next`.
    free: u32,
    buckets: Vec<u32>,
    segments: Vec<u32>,
    len: u32,
    pages: u64,
    /// Pages of each namespace that has any. There are few of them beside the records.
    pages_of: HashMap<u32, u64>,
}

impl Index {
    /// Room for `capacity` records in `segments` segments.
    pub(crate) fn new(capacity: u32, segments: u32) -> Index {
        let blank = Entry {
            fingerprint: Fingerprint([0; 2]),
            location: Location { segment: NONE, page: 0, pages: 0 },
            namespace: 0,
            bucket_next: NONE,
            segment_next: NONE,
            segment_previous: NONE,
            is_hit: false,
        };
        let entries = (0..capacity)
            .map(|index| Entry { bucket_next: if index + 1 < capacity { index + 1 } else { NONE }, ..blank })
            .collect();
        Index {
            entries,
            free: if capacity > 0 { 0 } else { NONE },
            buckets: vec![NONE; capacity.next_power_of_two().max(1) as usize],
            segments: vec![NONE; segments as usize],
            len: 0,
            pages: 0,
            pages_of: HashMap::new(),
        }
    }

    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    pub(crate) fn capacity(&self) -> u32 {
        self.entries.len() as u32
    }

    /// Pages of all records.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// Pages of a namespace's records. Another one of the same tag would be counted with it.
    pub(crate) fn pages_of(&self, namespace: u32) -> u64 {
        self.pages_of.get(&namespace).copied().unwrap_or(0)
    }

    fn count(&mut self, namespace: u32, before: u32, after: u32) {
        self.pages = self.pages - u64::from(before) + u64::from(after);
        let pages = self.pages_of.entry(namespace).or_insert(0);
        *pages = *pages - u64::from(before) + u64::from(after);
        if *pages == 0 {
            self.pages_of.remove(&namespace);
        }
    }

    /// Bytes of all of it.
    pub(crate) fn bytes(&self) -> u64 {
        (self.entries.capacity() * size_of::<Entry>()
            + (self.buckets.capacity() + self.segments.capacity()) * size_of::<u32>()) as u64
    }

    fn bucket(&self, fingerprint: &Fingerprint) -> usize {
        fingerprint.0[0] as usize & (self.buckets.len() - 1)
    }

    fn position(&self, fingerprint: &Fingerprint) -> Option<u32> {
        let mut at = self.buckets[self.bucket(fingerprint)];
        while at != NONE {
            let entry = &self.entries[at as usize];
            if entry.fingerprint == *fingerprint {
                return Some(at);
            }
            at = entry.bucket_next;
        }
        None
    }

    fn known(&self, at: u32) -> Known {
        let entry = &self.entries[at as usize];
        Known {
            fingerprint: entry.fingerprint,
            location: entry.location,
            namespace: entry.namespace,
            is_hit: entry.is_hit,
        }
    }

    pub(crate) fn find(&self, fingerprint: &Fingerprint) -> Option<Known> {
        self.position(fingerprint).map(|at| self.known(at))
    }

    /// Notes a read.
    pub(crate) fn touch(&mut self, fingerprint: &Fingerprint) {
        if let Some(at) = self.position(fingerprint) {
            self.entries[at as usize].is_hit = true;
        }
    }

    /// Adds a record whose fingerprint is not there. `false`: there is no room.
    pub(crate) fn insert(&mut self, known: Known) -> bool {
        let at = self.free;
        if at == NONE {
            return false;
        }
        self.free = self.entries[at as usize].bucket_next;
        let bucket = self.bucket(&known.fingerprint);
        self.entries[at as usize] = Entry {
            fingerprint: known.fingerprint,
            location: known.location,
            namespace: known.namespace,
            bucket_next: self.buckets[bucket],
            segment_next: NONE,
            segment_previous: NONE,
            is_hit: known.is_hit,
        };
        self.buckets[bucket] = at;
        self.link(at);
        self.len += 1;
        self.count(known.namespace, 0, known.location.pages);
        true
    }

    /// Moves a record; it counts as not hit from here on.
    pub(crate) fn relocate(&mut self, fingerprint: &Fingerprint, location: Location) {
        if let Some(at) = self.position(fingerprint) {
            self.unlink(at);
            let entry = &mut self.entries[at as usize];
            let (namespace, before) = (entry.namespace, entry.location.pages);
            entry.location = location;
            entry.is_hit = false;
            self.link(at);
            self.count(namespace, before, location.pages);
        }
    }

    /// Takes a record out.
    pub(crate) fn remove(&mut self, fingerprint: &Fingerprint) -> Option<Known> {
        let at = self.position(fingerprint)?;
        let known = self.known(at);
        self.unlink(at);
        let bucket = self.bucket(fingerprint);
        let next = self.entries[at as usize].bucket_next;
        if self.buckets[bucket] == at {
            self.buckets[bucket] = next;
        } else {
            let mut before = self.buckets[bucket];
            while self.entries[before as usize].bucket_next != at {
                before = self.entries[before as usize].bucket_next;
            }
            self.entries[before as usize].bucket_next = next;
        }
        self.entries[at as usize].bucket_next = self.free;
        self.entries[at as usize].location.segment = NONE;
        self.free = at;
        self.len -= 1;
        self.count(known.namespace, known.location.pages, 0);
        Some(known)
    }

    /// Records of a segment, the youngest entry first.
    pub(crate) fn of_segment(&self, segment: u32) -> impl Iterator<Item = Known> + '_ {
        let mut at = self.segments[segment as usize];
        std::iter::from_fn(move || {
            if at == NONE {
                return None;
            }
            let known = self.known(at);
            at = self.entries[at as usize].segment_next;
            Some(known)
        })
    }

    /// All records.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Known> + '_ {
        (0..self.segments.len() as u32).flat_map(|segment| self.of_segment(segment))
    }

    fn link(&mut self, at: u32) {
        let segment = self.entries[at as usize].location.segment as usize;
        let next = self.segments[segment];
        self.entries[at as usize].segment_next = next;
        self.entries[at as usize].segment_previous = NONE;
        if next != NONE {
            self.entries[next as usize].segment_previous = at;
        }
        self.segments[segment] = at;
    }

    fn unlink(&mut self, at: u32) {
        let Entry { segment_next: next, segment_previous: previous, location, .. } = self.entries[at as usize];
        if previous == NONE {
            self.segments[location.segment as usize] = next;
        } else {
            self.entries[previous as usize].segment_next = next;
        }
        if next != NONE {
            self.entries[next as usize].segment_previous = previous;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cache_core::contract::Random;
    use std::collections::HashMap;

    fn known(number: u64, segment: u32) -> Known {
        // A few bits of the first half only, so that buckets become chains.
        Known {
            fingerprint: Fingerprint([number % 7, number]),
            location: Location { segment, page: number as u32, pages: 1 + number as u32 % 3 },
            namespace: number as u32 % 5,
            is_hit: false,
        }
    }

    #[test]
    fn it_is_what_a_map_is() {
        const CAPACITY: u32 = 100;
        let mut index = Index::new(CAPACITY, 4);
        let bytes = index.bytes();
        let mut map: HashMap<Fingerprint, Known> = HashMap::new();
        let mut random = Random::new(5);
        for _ in 0..50_000 {
            let record = known(random.below(150), random.below(4) as u32);
            let there = map.contains_key(&record.fingerprint);
            match random.below(4) {
                0 => {
                    assert_eq!(index.remove(&record.fingerprint), map.remove(&record.fingerprint));
                }
                1 if there => {
                    index.relocate(&record.fingerprint, record.location);
                    map.insert(record.fingerprint, record);
                }
                _ if !there => {
                    let room = map.len() < CAPACITY as usize;
                    assert_eq!(index.insert(record), room);
                    if room {
                        map.insert(record.fingerprint, record);
                    }
                }
                _ => assert_eq!(index.find(&record.fingerprint), map.get(&record.fingerprint).copied()),
            }
            assert_eq!(index.len() as usize, map.len());
        }
        assert_eq!(index.bytes(), bytes, "nothing was allocated meanwhile");
        assert_eq!(index.pages(), map.values().map(|known| u64::from(known.location.pages)).sum::<u64>());
        for namespace in 0..6 {
            let of = map.values().filter(|known| known.namespace == namespace);
            assert_eq!(index.pages_of(namespace), of.map(|known| u64::from(known.location.pages)).sum::<u64>());
        }
        for segment in 0..4 {
            let mut found: Vec<_> = index.of_segment(segment).map(|known| known.fingerprint).collect();
            let mut expected: Vec<_> =
                map.values().filter(|known| known.location.segment == segment).map(|known| known.fingerprint).collect();
            found.sort_unstable();
            expected.sort_unstable();
            assert_eq!(found, expected);
        }
    }
}
