//! Ghost records: what is known of blocks that are gone.
//!
//! A set-associative table of fixed size: a record goes to the set that its fingerprint names and overwrites the oldest one there.
//! A record holds a 64-bit fingerprint instead of the key; a collision can only make a miss's *reason* wrong, never a hit.

use crate::key::CopyKey;
use crate::miss::MissReason;
use crate::units::{Now, Tier};

const WAYS: usize = 4;

/// What is remembered of a block that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ghost {
    fingerprint: u64,
    /// When it went.
    pub when: Now,
    /// From which tier its last copy went.
    pub tier: Tier,
    /// How: evicted, failed check or lease lost.
    pub reason: MissReason,
}

/// Bounded table of [`Ghost`]s, allocated when it is made.
#[derive(Clone, Debug)]
pub struct GhostTable {
    sets: Vec<[Option<Ghost>; WAYS]>,
    forgotten_until: Option<Now>,
}

fn fingerprint(key: &CopyKey) -> u64 {
    let word = |bytes: &[u8; 32]| u64::from_le_bytes(bytes[..8].try_into().expect("8 of 32 bytes"));
    let rest = u64::from(key.group.0) << 32 | u64::from(key.form.0);
    word(key.hash.bytes())
        ^ word(key.namespace.bytes()).rotate_left(17)
        ^ rest.rotate_left(41)
        ^ key.provenance.0.rotate_left(5)
}

impl GhostTable {
    /// Bytes of one record, at most 32.
    pub const BYTES_PER_RECORD: u64 = size_of::<Option<Ghost>>() as u64;

    /// A table of about `records` records (rounded up to whole sets of four).
    pub fn new(records: u32) -> GhostTable {
        GhostTable { sets: vec![[None; WAYS]; (records as usize).div_ceil(WAYS).max(1)], forgotten_until: None }
    }

    /// Remembers that the last copy of `key` went.
    pub fn record(&mut self, key: &CopyKey, tier: Tier, reason: MissReason, now: Now) {
        let ghost = Ghost { fingerprint: fingerprint(key), when: now, tier, reason };
        let set = self.set(ghost.fingerprint);
        let same = set.iter().position(|held| held.is_some_and(|held| held.fingerprint == ghost.fingerprint));
        let oldest = (0..WAYS).min_by_key(|way| set[*way].map(|held| held.when)).expect("a set has ways");
        let overwritten = set[same.unwrap_or(oldest)].replace(ghost);
        if let Some(overwritten) = overwritten.filter(|held| held.fingerprint != ghost.fingerprint) {
            self.forgotten_until = self.forgotten_until.max(Some(overwritten.when));
        }
    }

    /// Forgets a block: it is there again.
    pub fn forget(&mut self, key: &CopyKey) {
        let fingerprint = fingerprint(key);
        for held in self.set(fingerprint) {
            if held.is_some_and(|ghost| ghost.fingerprint == fingerprint) {
                *held = None;
            }
        }
    }

    /// What is known of a block that is gone.
    pub fn find(&self, key: &CopyKey) -> Option<Ghost> {
        let fingerprint = fingerprint(key);
        let set = &self.sets[(fingerprint % self.sets.len() as u64) as usize];
        set.iter().flatten().find(|ghost| ghost.fingerprint == fingerprint).copied()
    }

    /// The latest departure that is no longer remembered: a block without a record was never stored, or went before this.
    pub fn forgotten_until(&self) -> Option<Now> {
        self.forgotten_until
    }

    fn set(&mut self, fingerprint: u64) -> &mut [Option<Ghost>; WAYS] {
        let index = (fingerprint % self.sets.len() as u64) as usize;
        &mut self.sets[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::{BlockHash, Namespace};

    fn key(number: u64) -> CopyKey {
        let mut hash = [0; 32];
        hash[..8].copy_from_slice(&number.to_le_bytes());
        CopyKey::exact(Namespace([0; 32]), BlockHash(hash))
    }

    #[test]
    fn a_record_fits_32_bytes() {
        const { assert!(GhostTable::BYTES_PER_RECORD <= 32) };
    }

    #[test]
    fn the_oldest_of_a_set_is_forgotten_and_its_time_is_kept() {
        let mut table = GhostTable::new(4);
        for number in 0..5 {
            table.record(&key(number), Tier::Host, MissReason::Evicted, Now(100 + number));
        }
        assert_eq!(table.find(&key(0)), None);
        assert_eq!(table.forgotten_until(), Some(Now(100)));
        assert_eq!(table.find(&key(4)).map(|ghost| (ghost.when, ghost.tier)), Some((Now(104), Tier::Host)));
        table.forget(&key(4));
        assert_eq!(table.find(&key(4)), None);
    }

    #[test]
    fn a_second_departure_replaces_the_first() {
        let mut table = GhostTable::new(4);
        table.record(&key(1), Tier::Host, MissReason::Evicted, Now(1));
        table.record(&key(1), Tier::Device, MissReason::FailedCheck, Now(2));
        assert_eq!(table.find(&key(1)).map(|ghost| ghost.reason), Some(MissReason::FailedCheck));
        assert_eq!(table.forgotten_until(), None);
    }
}
