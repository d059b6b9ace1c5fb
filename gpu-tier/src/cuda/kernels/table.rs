//! Tables of records for kernels, little-endian words without padding that is not stated.

use super::super::address::DevicePtr;
use super::super::staging::CHUNK_BYTES;

/// The bytes of a table.
#[derive(Default)]
pub(super) struct Table(Vec<u8>);

impl Table {
    pub(super) fn address(&mut self, address: DevicePtr) -> &mut Table {
        self.long(address.raw())
    }

    pub(super) fn long(&mut self, value: u64) -> &mut Table {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn longs(&mut self, values: impl IntoIterator<Item = u64>) -> &mut Table {
        values.into_iter().for_each(|value| self.0.extend(value.to_le_bytes()));
        self
    }

    pub(super) fn word(&mut self, value: u32) -> &mut Table {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn words(&mut self, values: impl IntoIterator<Item = u32>) -> &mut Table {
        values.into_iter().for_each(|value| self.0.extend(value.to_le_bytes()));
        self
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn extend(&mut self, other: &Table) {
        self.0.extend_from_slice(&other.0);
    }

    pub(super) fn len(&self) -> u64 {
        self.0.len() as u64
    }
}

/// Records of a given length that a table has room for.
pub(super) const fn records(bytes: usize) -> usize {
    CHUNK_BYTES / bytes
}
