//! The disk tier as a [`Store`] of one shape, over buffers.

use std::sync::{Mutex, PoisonError};

use cache_core::buffer::Buffer;
use cache_core::key::CopyKey;
use cache_core::payload::BlockShape;
use cache_core::store::{Capacity, Completion, OpId, Outcome, Refused, Store, StoreError, StoreOp};

use crate::error::{DiskEnd, Refusal};
use crate::io::Memory;
use crate::log::OPERATIONS_MAX;
use crate::report::{DiskDone, DiskOk};
use crate::tier::DiskTier;
use crate::write::WriteRequest;

/// A [`DiskTier`] that keeps blocks of one shape. Whoever polls it polls the tier: no other user may start operations beside it.
#[derive(Debug)]
pub struct DiskStore {
    tier: DiskTier,
    shape: BlockShape,
    /// Buffers of deletions, which the tier does not take.
    deletions: Mutex<Vec<(OpId, Buffer)>>,
}

impl DiskStore {
    /// The store of one shape.
    pub fn new(tier: DiskTier, shape: BlockShape) -> DiskStore {
        DiskStore { tier, shape, deletions: Mutex::new(Vec::new()) }
    }

    /// The tier itself.
    pub fn tier(&self) -> &DiskTier {
        &self.tier
    }

    fn error(&self, end: DiskEnd) -> StoreError {
        let medium = |reason: &str| StoreError::Medium { reason: reason.into() };
        match end {
            DiskEnd::Full | DiskEnd::Refused(Refusal::Admission | Refusal::Limit | Refusal::TooLarge) => {
                StoreError::Full { slots: self.capacity().slots }
            }
            DiskEnd::Refused(Refusal::PendingElsewhere) => StoreError::PendingElsewhere,
            DiskEnd::Refused(Refusal::Busy) => StoreError::Busy { operations: OPERATIONS_MAX as u64 },
            DiskEnd::Refused(Refusal::Recovering) => medium("it is still reading its index"),
            DiskEnd::Damaged(failure) => StoreError::Check(failure),
            DiskEnd::Size { expected_bytes, found_bytes } => {
                StoreError::Size { slot_bytes: expected_bytes, found_bytes }
            }
            DiskEnd::Failed(error) => medium(&error.to_string()),
            DiskEnd::Offline | DiskEnd::Miss(_) => medium("it is offline"),
        }
    }

    fn completion(&self, done: DiskDone) -> Completion {
        let DiskDone { op, key, memory, result } = done;
        let outcome = match result {
            Ok(DiskOk::Present) => Outcome::Failed(StoreError::Present),
            Ok(_) => Outcome::Done,
            Err(DiskEnd::Miss(reason)) => Outcome::Miss(reason),
            Err(end) => Outcome::Failed(self.error(end)),
        };
        let mut deletions = self.deletions.lock().unwrap_or_else(PoisonError::into_inner);
        let deletion = deletions.iter().position(|(found, _)| *found == op);
        let buffer = match (deletion, memory) {
            (Some(at), _) => deletions.swap_remove(at).1,
            (None, Some(Memory::Owned(buffer))) => buffer,
            // The medium has not given it back; the caller gets another of its size.
            (None, _) => Buffer::zeroed(self.shape.slot_bytes() as usize),
        };
        Completion { op, key, buffer, outcome }
    }
}

impl Store for DiskStore {
    fn submit(&self, op: StoreOp, key: CopyKey, buffer: Buffer) -> Result<OpId, Refused> {
        let (slot_bytes, found_bytes) = (self.shape.slot_bytes(), buffer.as_slice().len() as u64);
        if op != StoreOp::Delete && found_bytes != slot_bytes {
            return Err(Refused { error: StoreError::Size { slot_bytes, found_bytes }, buffer });
        }
        if self.tier.is_busy() {
            return Err(Refused { error: StoreError::Busy { operations: OPERATIONS_MAX as u64 }, buffer });
        }
        Ok(match op {
            StoreOp::Read => self.tier.read(key, self.shape, Memory::Owned(buffer)),
            StoreOp::Write => {
                let memory = Memory::Owned(buffer);
                self.tier.submit_write(WriteRequest { key, shape: Some(self.shape), memory, is_live: false })
            }
            StoreOp::Delete => {
                // Held from before the deletion starts, so that its end finds the buffer.
                let mut deletions = self.deletions.lock().unwrap_or_else(PoisonError::into_inner);
                let op = self.tier.delete(key);
                deletions.push((op, buffer));
                op
            }
        })
    }

    fn poll(&self, out: &mut Vec<Completion>) {
        let mut done = Vec::new();
        self.tier.poll(&mut done);
        out.extend(done.into_iter().map(|done| self.completion(done)));
    }

    fn capacity(&self) -> Capacity {
        let capacity = self.tier.capacity();
        let slot_bytes = self.shape.slot_bytes();
        let per_segment = capacity.segment_bytes / slot_bytes;
        Capacity {
            slot_bytes,
            slots: (per_segment * u64::from(capacity.segments_max)).min(capacity.records_max),
            used_slots: capacity.records,
            held_bytes: capacity.allocated_bytes,
            budget_bytes: capacity.budget_bytes,
        }
    }
}
