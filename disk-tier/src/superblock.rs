//! The superblock: one page, in two copies, that says whose store this is and what has been deleted.
//!
//! Byte table in `docs/disk-format.md`. The sum stands in the last 8 bytes in every version, so that a sound superblock of another version
//! is told from a damaged one.

use cache_core::hash::Namespace;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::format::{self, VERSION};

/// Bytes of a superblock file.
pub(crate) const BYTES: u64 = 4096;
/// Deleted namespaces that can be listed at once.
pub(crate) const DELETED_MAX: usize = 90;
const MAGIC: [u8; 8] = *b"kvtdisk1";

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawDeleted {
    namespace: [u8; 32],
    epoch: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: U32,
    deleted_count: U32,
    store_id: [u8; 16],
    sequence: U64,
    epoch: U64,
    floor_epoch: U64,
    segment_bytes: U64,
    run: U64,
    snapshot_sum: U64,
    snapshot_bytes: U64,
    clean: U32,
    reserved: U32,
    deleted: [RawDeleted; DELETED_MAX],
    padding: [u8; 392],
    sum: U64,
}

const _: () = assert!(size_of::<Raw>() as u64 == BYTES);

/// The mark of an orderly end: which snapshot may be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clean {
    pub snapshot_sum: u64,
    pub snapshot_bytes: u64,
}

/// What the superblock says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// 128 random bits, new at every format.
    pub store_id: [u8; 16],
    /// One more at every write of both copies.
    pub sequence: u64,
    /// Deletion epoch that records are written under.
    pub epoch: u64,
    /// No record of an earlier epoch counts, whosever it is.
    pub floor_epoch: u64,
    /// Bytes of a segment.
    pub segment_bytes: u64,
    /// How often the store was opened: the upper half of the segment generations of a run.
    pub run: u64,
    /// Deleted namespaces: records of an earlier epoch do not count.
    pub deleted: Vec<(Namespace, u64)>,
    pub clean: Option<Clean>,
}

/// What a superblock's bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Sound(Superblock),
    OtherVersion(u32),
    Damaged,
}

impl Superblock {
    pub(crate) fn new(store_id: [u8; 16], segment_bytes: u64) -> Superblock {
        Superblock {
            store_id,
            sequence: 0,
            epoch: 1,
            floor_epoch: 0,
            segment_bytes,
            run: 0,
            deleted: Vec::new(),
            clean: None,
        }
    }

    pub(crate) fn encode(&self) -> [u8; BYTES as usize] {
        let mut raw = Raw::new_zeroed();
        raw.magic = MAGIC;
        raw.version = U32::new(VERSION);
        raw.deleted_count = U32::new(self.deleted.len() as u32);
        raw.store_id = self.store_id;
        raw.sequence = U64::new(self.sequence);
        raw.epoch = U64::new(self.epoch);
        raw.floor_epoch = U64::new(self.floor_epoch);
        raw.segment_bytes = U64::new(self.segment_bytes);
        raw.run = U64::new(self.run);
        if let Some(clean) = self.clean {
            raw.snapshot_sum = U64::new(clean.snapshot_sum);
            raw.snapshot_bytes = U64::new(clean.snapshot_bytes);
            raw.clean = U32::new(1);
        }
        for (target, (namespace, epoch)) in raw.deleted.iter_mut().zip(&self.deleted) {
            *target = RawDeleted { namespace: namespace.0, epoch: U64::new(*epoch) };
        }
        let mut bytes = [0; BYTES as usize];
        bytes.copy_from_slice(raw.as_bytes());
        let sum = format::sum(format::Kind::Superblock, &bytes[..BYTES as usize - 8]);
        bytes[BYTES as usize - 8..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Found {
        let Ok(raw) = Raw::read_from_bytes(bytes) else { return Found::Damaged };
        let sum = format::sum(format::Kind::Superblock, &bytes[..BYTES as usize - 8]);
        if sum != raw.sum.get() || raw.magic != MAGIC {
            return Found::Damaged;
        }
        if raw.version.get() != VERSION {
            return Found::OtherVersion(raw.version.get());
        }
        let count = raw.deleted_count.get() as usize;
        if count > DELETED_MAX || raw.segment_bytes.get() == 0 || !raw.segment_bytes.get().is_multiple_of(BYTES) {
            return Found::Damaged;
        }
        let clean = Clean { snapshot_sum: raw.snapshot_sum.get(), snapshot_bytes: raw.snapshot_bytes.get() };
        Found::Sound(Superblock {
            store_id: raw.store_id,
            sequence: raw.sequence.get(),
            epoch: raw.epoch.get(),
            floor_epoch: raw.floor_epoch.get(),
            segment_bytes: raw.segment_bytes.get(),
            run: raw.run.get(),
            deleted: raw.deleted[..count].iter().map(|entry| (Namespace(entry.namespace), entry.epoch.get())).collect(),
            clean: (raw.clean.get() == 1).then_some(clean),
        })
    }

    /// The first epoch whose records of a namespace count.
    pub(crate) fn valid_from(&self, namespace: &Namespace) -> u64 {
        let deleted = self.deleted.iter().find(|(found, _)| found == namespace).map_or(0, |(_, epoch)| *epoch);
        deleted.max(self.floor_epoch)
    }

    /// Deletes a namespace: every record written so far is of an earlier epoch. When the table is full, the oldest deletion takes everything
    /// that was written before it along, whosever it is.
    pub(crate) fn delete(&mut self, namespace: Namespace) {
        self.epoch += 1;
        let epoch = self.epoch;
        if let Some(entry) = self.deleted.iter_mut().find(|(found, _)| *found == namespace) {
            entry.1 = epoch;
            return;
        }
        if self.deleted.len() == DELETED_MAX {
            let oldest = self.deleted.iter().map(|(_, epoch)| *epoch).min().expect("the table is full");
            self.floor_epoch = oldest;
            self.forget_until(oldest);
        }
        self.deleted.push((namespace, epoch));
    }

    /// Strikes deletions off that nothing on disk is older than: every segment there is was begun in `epoch` or later.
    pub(crate) fn forget_until(&mut self, epoch: u64) {
        self.deleted.retain(|(_, deleted)| *deleted > epoch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Superblock {
        let mut superblock = Superblock::new([7; 16], 8 << 20);
        superblock.sequence = 9;
        superblock.run = 3;
        superblock.delete(Namespace([1; 32]));
        superblock.delete(Namespace([2; 32]));
        superblock.clean = Some(Clean { snapshot_sum: 5, snapshot_bytes: 4096 });
        superblock
    }

    #[test]
    fn bytes_come_back_and_every_flipped_bit_is_noticed() {
        let superblock = sample();
        let mut bytes = superblock.encode();
        assert_eq!(Superblock::decode(&bytes), Found::Sound(superblock));
        for bit in 0..BYTES as usize * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Superblock::decode(&bytes), Found::Damaged, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_right_sum_under_another_version_is_told_from_damage() {
        let mut bytes = sample().encode();
        bytes[8] = 9;
        assert_eq!(Superblock::decode(&bytes), Found::Damaged);
        let sum = format::sum(format::Kind::Superblock, &bytes[..BYTES as usize - 8]);
        bytes[BYTES as usize - 8..].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(Superblock::decode(&bytes), Found::OtherVersion(9));
    }

    #[test]
    fn a_full_table_raises_the_floor() {
        let mut superblock = Superblock::new([7; 16], 8 << 20);
        let name = |number: usize| Namespace([number as u8; 32]);
        for number in 0..DELETED_MAX {
            superblock.delete(name(number));
        }
        let first = superblock.valid_from(&name(0));
        assert_eq!(superblock.floor_epoch, 0);
        superblock.delete(name(DELETED_MAX));
        assert_eq!(superblock.floor_epoch, first);
        assert_eq!(superblock.deleted.len(), DELETED_MAX);
        assert_eq!(superblock.valid_from(&name(0)), first, "still deleted, by the floor");
        assert_eq!(superblock.valid_from(&name(200)), first);
    }
}
