//! What may be written: a sketch of keys that were offered before, a write-rate limit, and ghosts of what was dropped.
//!
//! All of it is allocated when the tier is opened.

use crate::index::Fingerprint;

/// Bits of the sketch per record, in each of its two halves.
const SKETCH_BITS: u64 = 16;
/// Bits set per key.
const PROBES: u64 = 4;

/// Bytes of sketch and ghosts for one record of the index.
pub(crate) const RECORD_BYTES: u64 = 2 * SKETCH_BITS / 8 + size_of::<u32>() as u64;

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

/// 32 bits of each of the last keys that were dropped, so that a miss can say "evicted". One place per key; a younger one takes it over.
pub(crate) struct Ghosts(Vec<u32>);

impl Ghosts {
    pub(crate) fn new(records: u32) -> Ghosts {
        Ghosts(vec![0; records.max(1) as usize])
    }

    pub(crate) fn bytes(&self) -> u64 {
        (self.0.capacity() * size_of::<u32>()) as u64
    }

    fn place(&self, fingerprint: &Fingerprint) -> (usize, u32) {
        ((fingerprint.0[1] % self.0.len() as u64) as usize, (fingerprint.0[0] >> 32) as u32 | 1)
    }

    pub(crate) fn add(&mut self, fingerprint: &Fingerprint) {
        let (place, tag) = self.place(fingerprint);
        self.0[place] = tag;
    }

    pub(crate) fn remove(&mut self, fingerprint: &Fingerprint) {
        let (place, tag) = self.place(fingerprint);
        if self.0[place] == tag {
            self.0[place] = 0;
        }
    }

    pub(crate) fn holds(&self, fingerprint: &Fingerprint) -> bool {
        let (place, tag) = self.place(fingerprint);
        self.0[place] == tag
    }
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
        ghosts.add(&key);
        assert!(ghosts.holds(&key));
        ghosts.remove(&key);
        assert!(!ghosts.holds(&key));
    }
}
