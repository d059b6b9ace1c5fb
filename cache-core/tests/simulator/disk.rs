//! A disk on virtual time: records, operations that take their time, and everything that a disk does wrong.

use std::collections::{BTreeMap, BTreeSet};

use cache_core::hash::Namespace;
use cache_core::key::CopyKey;
use cache_core::manager::{Below, EntryId};
use cache_core::miss::MissReason;

use super::memory::{Bytes, Place};
use crate::random::Random;

const MICROS: u64 = 1_000;
const MILLIS: u64 = 1_000_000;
/// The disk ends an operation by then, whatever becomes of it: what hangs has failed.
pub const HANGS: u64 = 60 * MILLIS;

/// What an operation is for.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Into a slot of the device, or of the host.
    Read { room: usize, entry: EntryId, key: CopyKey, into_host: bool, place: Place },
    /// Of bytes that were copied out, or of a slot that is leased and whose entry is read until it ends.
    Write { room: usize, key: CopyKey, bytes: Bytes, spill: bool, lease: Option<Place>, reader: Option<EntryId> },
    /// Of a block that a sequence reads from the disk.
    Stage { sequence: u64, key: CopyKey },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Done,
    Full,
    Failed,
    Damaged,
    Lost,
}

#[derive(Clone, Copy, Debug)]
pub struct Operation {
    pub work: Work,
    fate: End,
    began: u64,
    /// It has ended, and nobody has taken that in yet.
    result: Option<(End, Option<Bytes>)>,
}

#[derive(Default)]
pub struct Disk {
    pub records: BTreeMap<CopyKey, Bytes>,
    pub pins: BTreeSet<CopyKey>,
    pub operations: BTreeMap<u64, Operation>,
    capacity: usize,
    fails: bool,
    offline_until: u64,
    recovering_until: u64,
    deleted: BTreeMap<Namespace, u64>,
    next: u64,
}

impl Disk {
    pub fn new(capacity: usize, fails: bool) -> Disk {
        Disk { capacity, fails, ..Disk::default() }
    }

    /// What its index says.
    pub fn find(&self, key: &CopyKey, now: u64) -> Below {
        match self.records.contains_key(key) {
            _ if now < self.recovering_until => Err(MissReason::Recovering),
            _ if now < self.offline_until => Err(MissReason::TierOffline),
            true => Ok(()),
            false => Err(MissReason::NeverStored),
        }
    }

    /// Keeps a record; false when it is not there.
    pub fn pin(&mut self, key: CopyKey) -> bool {
        self.records.contains_key(&key) && self.pins.insert(key)
    }

    /// Starts an operation; returns its number and when it will end.
    pub fn submit(&mut self, work: Work, now: u64, random: &mut Random) -> (u64, u64) {
        self.next += 1;
        let mut takes = 20 * MICROS + random.below(500) as u64 * MICROS;
        let mut fate = End::Done;
        if random.chance(5) {
            takes += random.below(20) as u64 * MILLIS;
        }
        if self.fails {
            match random.below(100) {
                0..2 => (takes, fate) = (HANGS, End::Failed),
                2..4 => fate = End::Failed,
                4..7 => fate = End::Damaged,
                7..9 => fate = End::Lost,
                _ => {}
            }
            if now < self.offline_until {
                (takes, fate) = (10 * MICROS, End::Failed);
            }
        }
        self.operations.insert(self.next, Operation { work, fate, began: now, result: None });
        (self.next, now + takes)
    }

    /// An operation has done its work; its end is taken in later.
    pub fn finish(&mut self, number: u64, now: u64, random: &mut Random) {
        let Some(Operation { work, fate, began, .. }) = self.operations.get(&number).copied() else {
            return;
        };
        if fate == End::Failed && random.chance(30) {
            self.offline_until = now + 5 * MILLIS;
        }
        let result = match work {
            Work::Write { key, bytes, .. } => (self.write(key, bytes, fate, began, random), None),
            Work::Read { key, .. } | Work::Stage { key, .. } => self.read(&key, fate),
        };
        self.operations.get_mut(&number).expect("it was just found").result = Some(result);
    }

    /// Takes in the end of an operation: what it was for, how it ended, and what was read.
    pub fn take(&mut self, number: u64) -> Option<(Work, End, Option<Bytes>)> {
        let Operation { work, result, .. } = self.operations.remove(&number)?;
        let (end, bytes) = result?;
        Some((work, end, bytes))
    }

    fn write(&mut self, key: CopyKey, bytes: Bytes, fate: End, began: u64, random: &mut Random) -> End {
        let is_deleted = self.deleted.get(&key.namespace).is_some_and(|when| *when >= began);
        match fate {
            End::Failed => return End::Failed,
            _ if is_deleted => return End::Full,
            _ if self.records.contains_key(&key) => return End::Done,
            End::Lost => return End::Full,
            _ => {}
        }
        if self.records.len() >= self.capacity && !self.reclaim(random) {
            return End::Full;
        }
        self.records.insert(key, bytes);
        End::Done
    }

    /// A record that fails its check is taken out at once; one that is not there any more was reused, or deleted.
    fn read(&mut self, key: &CopyKey, fate: End) -> (End, Option<Bytes>) {
        match fate {
            End::Failed => (End::Failed, None),
            End::Damaged | End::Lost => {
                self.records.remove(key);
                (fate, None)
            }
            _ => match self.records.get(key) {
                Some(bytes) => (End::Done, Some(*bytes)),
                None => (End::Lost, None),
            },
        }
    }

    /// Gives up a record that nobody keeps; false when there is none.
    pub fn reclaim(&mut self, random: &mut Random) -> bool {
        let loose: Vec<CopyKey> = self.records.keys().filter(|key| !self.pins.contains(key)).copied().collect();
        if loose.is_empty() {
            return false;
        }
        self.records.remove(&loose[random.below(loose.len())]);
        true
    }

    pub fn delete(&mut self, namespace: Namespace, now: u64) {
        self.records.retain(|key, _| key.namespace != namespace);
        self.deleted.insert(namespace, now);
    }

    /// The process ends: writes under way may have landed or not, nothing is pinned, and the index is read anew.
    pub fn restart(&mut self, now: u64, random: &mut Random) {
        for Operation { work, began, .. } in std::mem::take(&mut self.operations).into_values() {
            if let Work::Write { key, bytes, .. } = work
                && random.chance(50)
            {
                self.write(key, bytes, End::Done, began, random);
            }
        }
        self.pins.clear();
        self.recovering_until = now + random.below(3_000) as u64 * MICROS;
    }
}
