//! What may be written: a sketch of keys that were offered before, a write-rate limit, and ghosts of what was dropped.
//!
//! All of it is allocated when the tier is opened.

use crate::index::Fingerprint;

/// Bits of the sketch per record, in each of its two halves.
const SKETCH_BITS: u64 = 16;
/// Bits set per key.
const PROBES: u64 = 4;

/// Bytes of sketch and ghosts for one record of the index.
pub(crate) const RECORD_BYTES: u64 = 2 * SKETCH_BITS / 8 + size_of::<Ghost>() as u64;

/// Two Bloom filters, the younger one filling: a key counts as seen while either holds it. When the younger has taken as many keys as the
/// index has room for, the older is emptied and takes its place. 16 bits and 4 probes per key: about 0.24 % false positives each.
pub(crate) struct Sketch {
    halves: [Vec<u64>; 2],
    young: usize,
    keys: u64,
    keys_max: u64,
}

impl Sketch {
    pub(crate) fn new(records: u32) -> Sketch {
        let words = (u64::from(records) * SKETCH_BITS).div_ceil(64).max(1) as usize;
        Sketch { halves: [vec![0; words], vec![0; words]], young: 0, keys: 0, keys_max: u64::from(records).max(1) }
    }

    pub(crate) fn bytes(&self) -> u64 {
        (self.halves.iter().map(Vec::capacity).sum::<usize>() * size_of::<u64>()) as u64
    }

    /// True when the key was offered before; remembers it otherwise.
    pub(crate) fn offer(&mut self, fingerprint: &Fingerprint) -> bool {
        if (0..2).any(|half| self.holds(half, fingerprint)) {
            return true;
        }
        if self.keys == self.keys_max {
            self.young = 1 - self.young;
            self.halves[self.young].fill(0);
            self.keys = 0;
        }
        for bit in self.bits(fingerprint) {
            self.halves[self.young][(bit / 64) as usize] |= 1 << (bit % 64);
        }
        self.keys += 1;
        false
    }

    fn holds(&self, half: usize, fingerprint: &Fingerprint) -> bool {
        self.bits(fingerprint).all(|bit| self.halves[half][(bit / 64) as usize] >> (bit % 64) & 1 == 1)
    }

    fn bits(&self, fingerprint: &Fingerprint) -> impl Iterator<Item = u64> + use<> {
        let bits = self.halves[0].len() as u64 * 64;
        let Fingerprint([a, b]) = *fingerprint;
        (0..PROBES).map(move |probe| a.wrapping_add(probe.wrapping_mul(b | 1)) % bits)
    }
}

/// Ghosts that share a set: two cache lines.
const WAYS: usize = 16;

/// What is remembered of a key that was dropped.
#[derive(Clone, Copy, Default)]
pub(crate) struct Ghost {
    /// 32 bits of it; 0 for none.
    tag: u32,
    /// When it was dropped, in seconds since the tier was opened.
    second: u32,
}

/// The last keys that were dropped, so that a miss can say "evicted", and how long ago. A set holds the last [`WAYS`] keys that fell into it, the youngest
/// first. There are as many places as records: a key is forgotten after a quarter as many younger ones once in 200,000 times, after half as many once
/// in 120 (Poisson: 16 of them in its set).
pub(crate) struct Ghosts(Vec<[Ghost; WAYS]>);

impl Ghosts {
    pub(crate) fn new(records: u32) -> Ghosts {
        Ghosts(vec![[Ghost::default(); WAYS]; (records as usize).div_ceil(WAYS).max(1)])
    }

    pub(crate) fn bytes(&self) -> u64 {
        (self.0.capacity() * size_of::<[Ghost; WAYS]>()) as u64
    }

    fn place(&self, fingerprint: &Fingerprint) -> (usize, u32) {
        ((fingerprint.0[1] % self.0.len() as u64) as usize, (fingerprint.0[0] >> 32) as u32 | 1)
    }

    pub(crate) fn add(&mut self, fingerprint: &Fingerprint, now_nanos: u64) {
        self.remove(fingerprint);
        let (place, tag) = self.place(fingerprint);
        let set = &mut self.0[place];
        set.copy_within(..WAYS - 1, 1);
        set[0] = Ghost { tag, second: second(now_nanos) };
    }

    pub(crate) fn remove(&mut self, fingerprint: &Fingerprint) {
        let (place, tag) = self.place(fingerprint);
        let set = &mut self.0[place];
        if let Some(way) = set.iter().position(|ghost| ghost.tag == tag) {
            set.copy_within(way + 1.., way);
            set[WAYS - 1] = Ghost::default();
        }
    }

    /// How many seconds ago the key was dropped; `None` when that is not remembered.
    pub(crate) fn age(&self, fingerprint: &Fingerprint, now_nanos: u64) -> Option<u32> {
        let (place, tag) = self.place(fingerprint);
        let ghost = self.0[place].iter().find(|ghost| ghost.tag == tag)?;
        Some(second(now_nanos).saturating_sub(ghost.second))
    }

    pub(crate) fn holds(&self, fingerprint: &Fingerprint) -> bool {
        self.age(fingerprint, 0).is_some()
    }
}

/// 136 years of them.
fn second(nanos: u64) -> u32 {
    u32::try_from(nanos / 1_000_000_000).unwrap_or(u32::MAX)
}

/// A bucket of bytes that fills at a rate and holds one second's worth.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    bytes_s: u64,
    level_bytes: u64,
    filled_nanos: u64,
}

impl Limit {
    pub(crate) fn new(bytes_s: u64, now_nanos: u64) -> Limit {
        Limit { bytes_s, level_bytes: bytes_s, filled_nanos: now_nanos }
    }

    /// Takes `bytes` if they are there. An image larger than the bucket goes when the bucket is full.
    pub(crate) fn take(&mut self, bytes: u64, now_nanos: u64) -> bool {
        let passed = now_nanos.saturating_sub(self.filled_nanos);
        let filled = u128::from(passed) * u128::from(self.bytes_s) / 1_000_000_000;
        if filled > 0 {
            self.level_bytes =
                self.level_bytes.saturating_add(filled.min(u128::from(u64::MAX)) as u64).min(self.bytes_s);
            self.filled_nanos = now_nanos;
        }
        if self.level_bytes >= bytes.min(self.bytes_s) {
            self.level_bytes -= bytes.min(self.bytes_s);
            return true;
        }
        false
    }

    /// Takes bytes back that were let in and are not written.
    pub(crate) fn give_back(&mut self, bytes: u64) {
        self.level_bytes = self.level_bytes.saturating_add(bytes).min(self.bytes_s);
    }

    /// Takes `bytes` whether they are there or not: live writes and reinsertions go, and later ones wait for them.
    pub(crate) fn force(&mut self, bytes: u64) {
        self.level_bytes = self.level_bytes.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cache_core::contract::Random;

    #[test]
    fn the_second_offer_is_let_in() {
        let mut sketch = Sketch::new(1000);
        let mut random = Random::new(1);
        let keys: Vec<Fingerprint> = (0..1000).map(|_| Fingerprint([random.next(), random.next()])).collect();
        let early = keys.iter().filter(|key| sketch.offer(key)).count();
        assert!(early <= 20, "{early} of 1000 keys let in at their first offer");
        assert!(keys.iter().all(|key| sketch.offer(key)));
        for _ in 0..2000 {
            sketch.offer(&Fingerprint([random.next(), random.next()]));
        }
        let remembered = keys.iter().filter(|key| (0..2).any(|half| sketch.holds(half, key))).count();
        assert!(remembered < 50, "{remembered} of 1000 old keys are still remembered");
    }

    #[test]
    fn the_limit_is_one_seconds_burst_and_then_the_rate() {
        let mut limit = Limit::new(1000, 0);
        assert!(limit.take(600, 0) && limit.take(400, 0));
        assert!(!limit.take(1, 0));
        assert!(!limit.take(200, 100_000_000) && limit.take(100, 100_000_000));
        assert!(limit.take(5000, 2_000_000_000), "larger than the bucket, which is full");
        assert!(!limit.take(1, 2_000_000_000));
        limit.force(1 << 40);
        assert!(!limit.take(1, 2_000_000_000));
        let granted = (0..1000u64).filter(|step| limit.take(10, 2_000_000_000 + step * 10_000_000)).count();
        assert!((980..=1000).contains(&granted), "{granted} of 1000 at the very rate");
    }

    #[test]
    fn a_dropped_key_leaves_a_ghost() {
        let mut ghosts = Ghosts::new(64);
        let key = Fingerprint([7 << 40, 9]);
        assert!(!ghosts.holds(&key));
        ghosts.add(&key, 0);
        assert!(ghosts.holds(&key));
        ghosts.remove(&key);
        assert!(!ghosts.holds(&key));
    }

    #[test]
    fn younger_ghosts_do_not_push_out_the_last_keys() {
        let mut ghosts = Ghosts::new(4096);
        let mut random = Random::new(2);
        let mut keys: Vec<Fingerprint> = (0..1024).map(|_| Fingerprint([random.next(), random.next()])).collect();
        keys.iter().for_each(|key| ghosts.add(key, 0));
        assert_eq!(keys.iter().filter(|key| !ghosts.holds(key)).count(), 0, "of a quarter as many keys as places");
        keys.extend((0..3072).map(|_| Fingerprint([random.next(), random.next()])));
        keys[1024..].iter().for_each(|key| ghosts.add(key, 0));
        let forgotten = |keys: &[Fingerprint]| keys.iter().filter(|key| !ghosts.holds(key)).count();
        assert!(forgotten(&keys[2048..]) < 10, "{} of the younger half", forgotten(&keys[2048..]));
        assert!(forgotten(&keys[..64]) > 0, "there is no room for all of them");
    }

    #[test]
    fn the_oldest_ghost_of_a_set_goes_first() {
        let mut ghosts = Ghosts::new(WAYS as u32);
        let key = |number: u64| Fingerprint([number << 40, 0]);
        (1..=WAYS as u64).for_each(|number| ghosts.add(&key(number), 0));
        // Dropped once more, it is the youngest, and takes no second place.
        ghosts.add(&key(1), 0);
        ghosts.add(&key(100), 0);
        assert!(ghosts.holds(&key(1)) && ghosts.holds(&key(100)) && !ghosts.holds(&key(2)));
        ghosts.remove(&key(3));
        ghosts.add(&key(101), 0);
        assert!((4..=WAYS as u64).all(|number| ghosts.holds(&key(number))), "a free place is taken first");
    }

    #[test]
    fn a_ghost_tells_when_its_key_was_dropped() {
        let mut ghosts = Ghosts::new(64);
        let keys = [1, 2].map(|number: u64| Fingerprint([number << 40, number]));
        const SECOND: u64 = 1_000_000_000;
        ghosts.add(&keys[0], 3 * SECOND);
        ghosts.add(&keys[1], 5 * SECOND);
        let ages = |ghosts: &Ghosts, now| keys.map(|key| ghosts.age(&key, now));
        assert_eq!(ages(&ghosts, 5 * SECOND), [Some(2), Some(0)]);
        ghosts.add(&keys[0], 65 * SECOND);
        assert_eq!(ages(&ghosts, 66 * SECOND), [Some(1), Some(61)]);
        ghosts.remove(&keys[1]);
        assert_eq!(ages(&ghosts, 66 * SECOND), [Some(1), None]);
    }
}
