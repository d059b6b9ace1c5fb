//! The hash of maps whose keys are digests and numbers of ours.
//!
//! The standard library's hash takes some 70 ns for a copy key, and a request about a thousand blocks makes several thousand of them. Block hashes come
//! from clients, who could choose them so that they collide under a hash that they know; so this one is seeded as the standard library's maps are, with
//! numbers that are new for each map and that nobody is told. It folds 128-bit products of the seeded words; it is no cryptographic hash.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

/// A map over digests. Made by [`map`].
pub type DigestMap<K, V> = HashMap<K, V, DigestState>;

/// A map with room for so many keys.
pub fn map<K, V>(keys: usize) -> DigestMap<K, V> {
    HashMap::with_capacity_and_hasher(keys, DigestState::default())
}

/// The seeds of one map.
#[derive(Clone)]
pub struct DigestState([u64; 2]);

impl Default for DigestState {
    fn default() -> DigestState {
        let random = RandomState::new();
        DigestState([random.hash_one(0u8), random.hash_one(1u8)])
    }
}

impl std::fmt::Debug for DigestState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DigestState")
    }
}

impl BuildHasher for DigestState {
    type Hasher = DigestHasher;

    #[inline]
    fn build_hasher(&self) -> DigestHasher {
        DigestHasher { state: self.0[0], key: self.0[1] }
    }
}

/// One hash being made.
pub struct DigestHasher {
    state: u64,
    key: u64,
}

/// Low and high half of the product.
#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

impl DigestHasher {
    #[inline]
    fn add(&mut self, low: u64, high: u64) {
        self.state = fold(self.state ^ low, self.key ^ high) ^ self.state.rotate_left(23);
    }
}

impl Hasher for DigestHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let word = |bytes: &[u8]| {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(word)
        };
        let (pairs, rest) = bytes.as_chunks::<16>();
        for pair in pairs {
            self.add(word(&pair[..8]), word(&pair[8..]));
        }
        if !rest.is_empty() {
            let (low, high) = rest.split_at(rest.len().min(8));
            self.add(word(low), word(high));
        }
    }

    #[inline]
    fn write_u8(&mut self, number: u8) {
        self.add(u64::from(number), 1);
    }

    #[inline]
    fn write_u32(&mut self, number: u32) {
        self.add(u64::from(number), 4);
    }

    #[inline]
    fn write_u64(&mut self, number: u64) {
        self.add(number, 8);
    }

    #[inline]
    fn write_usize(&mut self, number: usize) {
        self.add(number as u64, 8);
    }

    #[inline]
    fn finish(&self) -> u64 {
        fold(self.state, self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::{BlockHash, Namespace};
    use crate::key::{CopyKey, GroupId};

    fn keys() -> Vec<CopyKey> {
        // Keys that differ in one bit, or in one small number, of any field.
        let first = CopyKey::exact(Namespace([0; 32]), BlockHash([0; 32]));
        let mut keys = vec![first];
        for bit in 0..256 {
            let mut bytes = [0; 32];
            bytes[bit / 8] = 1 << (bit % 8);
            keys.push(CopyKey { hash: BlockHash(bytes), ..first });
            keys.push(CopyKey { namespace: Namespace(bytes), ..first });
        }
        keys.extend((1..64).map(|group| CopyKey { group: GroupId(group), ..first }));
        keys
    }

    #[test]
    fn keys_that_hardly_differ_fall_into_different_buckets() {
        let state = DigestState::default();
        let keys = keys();
        for shift in [0, 57] {
            // The low bits choose a bucket, the top seven tell its keys apart.
            let mut counts = vec![0u32; 128];
            keys.iter().for_each(|key| counts[(state.hash_one(key) >> shift & 127) as usize] += 1);
            let mean = keys.len() as u32 / 128;
            let most = counts.iter().copied().max().unwrap();
            assert!(most < mean * 6, "{most} of {} keys in one of 128 buckets", keys.len());
        }
        let mut hashes: Vec<u64> = keys.iter().map(|key| state.hash_one(key)).collect();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), keys.len());
    }

    #[test]
    fn no_two_maps_have_the_same_seeds() {
        let key = keys()[0];
        assert_ne!(DigestState::default().hash_one(key), DigestState::default().hash_one(key));
    }
}
