//! The arena behind a host tier's handles: its extents, and the table of their slots.
//!
//! Lock order: `table`, then nothing; `completions`, then nothing. Neither is held while the other is taken, while bytes are copied or
//! verified, or while a [`Lease`] or a slot is dropped. Generation words change under `table` only, so their order is the table's.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cache_core::buffer::Buffer;
use cache_core::check::ImageCheck;
use cache_core::completions::Completions;
use cache_core::header::{CheckFailure, verify_image};
use cache_core::key::CopyKey;
use cache_core::miss::MissReason;
use cache_core::payload::BlockShape;
use cache_core::slots::{Found, SlotTable};
use cache_core::store::{Lease, Outcome, Sealed, SlotOwner, SlotPlace, StoreError, StoreOp};
use cache_core::units::{Generation, SlotIndex};

use crate::extent::Extent;
use crate::generation;
use crate::layout::Layout;
use crate::mapping::settle;
use crate::staging::Staging;
use crate::sync::AtomicU64;
use crate::tier::HostCounters;

/// Bytes of an image that are moved and then verified: they stay in the processor's first cache meanwhile. Whole pages.
const PIECE_BYTES: u64 = 16 << 10;

pub(crate) struct Arena {
    pub(crate) shape: BlockShape,
    pub(crate) layout: Layout,
    pub(crate) budget_bytes: u64,
    pub(crate) lease_ttl_millis: Option<u64>,
    pub(crate) extents: Vec<Arc<Extent>>,
    pub(crate) table: Mutex<Table>,
    pub(crate) completions: Mutex<Completions>,
}

pub(crate) struct Table {
    pub(crate) slots: SlotTable,
    /// Slots whose pages have been touched, or are just being: those before this one, since a slot that was never used is taken only when no other is
    /// free, the first one first. They stay committed when the slot is freed.
    pub(crate) touched: u64,
    pub(crate) touched_max: u64,
    /// Where [`crate::HostTier::touch_ahead`] stands: a slot below `touched`, and how many bytes of it are committed.
    pub(crate) ahead: (SlotIndex, u64),
    pub(crate) counters: HostCounters,
}

impl Table {
    /// Slots that may be touched.
    pub(crate) fn reachable(&self) -> u64 {
        self.touched_max.min(u64::from(self.slots.len()))
    }
}

impl Arena {
    /// No code panics between two changes of the table that belong together, so a poisoned lock guards a sound table.
    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn completions(&self) -> MutexGuard<'_, Completions> {
        self.completions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn word(&self, slot: SlotIndex) -> &AtomicU64 {
        let (extent, offset) = self.layout.generation_place(slot);
        self.extents[extent as usize].word((offset / 8) as u32)
    }

    pub(crate) fn reserve(&self, key: Option<CopyKey>) -> Result<(SlotIndex, Generation), StoreError> {
        let mut table = self.table();
        let (slot, generation) = table.slots.reserve(key)?;
        if u64::from(slot.0) >= table.touched {
            if table.touched >= table.touched_max {
                table.slots.abandon(slot, generation);
                return Err(StoreError::Full { slots: table.touched_max });
            }
            table.touched += 1;
        }
        generation::withdraw(self.word(slot), generation);
        Ok((slot, generation))
    }

    /// A lease that the table has counted.
    pub(crate) fn leased(self: &Arc<Arena>, slot: SlotIndex, generation: Generation) -> Lease {
        Lease::new(self.layout.place(slot), slot, generation, Arc::clone(self) as Arc<dyn SlotOwner>)
    }

    pub(crate) fn lease(&self, key: &CopyKey) -> Found {
        self.table().slots.lease(key)
    }

    pub(crate) fn write(&self, slot: SlotIndex, offset: u64, bytes: &[u8]) {
        let place = self.inside(slot, offset, bytes.len());
        generation::begin();
        self.extents[place.extent as usize].service().store(place.offset, bytes);
    }

    pub(crate) fn read(&self, slot: SlotIndex, generation: Generation, offset: u64, target: &mut [u8]) -> bool {
        let place = self.inside(slot, offset, target.len());
        self.extents[place.extent as usize].service().load(place.offset, target);
        generation::still(self.word(slot), generation)
    }

    /// A part of a slot image as a place. Panics when it leaves the image (our bug).
    pub(crate) fn inside(&self, slot: SlotIndex, offset: u64, bytes: usize) -> SlotPlace {
        let place = self.layout.place(slot);
        let end = offset.checked_add(bytes as u64).expect("the end fits u64");
        assert!(end <= place.bytes, "{offset}+{bytes} leaves a slot image of {} bytes", place.bytes);
        SlotPlace { offset: place.offset + offset, bytes: bytes as u64, ..place }
    }

    /// Takes a copy out under its readers.
    pub(crate) fn revoke(&self, table: &mut Table, key: &CopyKey) {
        let leases = table.slots.committed(key).map_or(0, |(_, leases)| leases);
        if let Some(slot) = table.slots.revoke(key) {
            generation::withdraw(self.word(slot), table.slots.generation(slot));
            table.counters.lost_leases += u64::from(leases);
        }
    }

    pub(crate) fn remove(&self, key: &CopyKey) -> Result<bool, StoreError> {
        let mut table = self.table();
        let removed = table.slots.remove(key)?;
        if let Some(slot) = removed {
            generation::withdraw(self.word(slot), table.slots.generation(slot));
        }
        Ok(removed.is_some())
    }

    pub(crate) fn quarantine(&self, key: &CopyKey, slot: SlotIndex, generation: Generation) {
        let mut table = self.table();
        table.counters.failed_checks += 1;
        if table.slots.committed(key).is_some_and(|(held, _)| held == slot) && table.slots.is_current(slot, generation)
        {
            table.counters.quarantined += 1;
            self.revoke(&mut table, key);
        }
    }

    /// Verifies the tier's own copy of a slot that nobody writes any more.
    pub(crate) fn check(&self, slot: SlotIndex, key: &CopyKey, sealed: Option<&Sealed>) -> Result<(), CheckFailure> {
        let place = self.layout.place(slot);
        let header = self.extents[place.extent as usize]
            .service()
            .look(place.offset, place.bytes, |image| verify_image(&self.shape, key, image))?;
        match sealed {
            Some(sealed) if header.lineage != sealed.lineage || header.link != sealed.link => {
                Err(CheckFailure::Identity)
            }
            _ => Ok(()),
        }
    }

    /// Copies an image out of staging, verifies it on the way and shows it.
    pub(crate) fn take_in(
        &self,
        slot: SlotIndex,
        generation: Generation,
        staging: &Staging,
        offset: u64,
        sealed: &Sealed,
    ) -> Result<(), StoreError> {
        let reserved = self.table().slots.reserved(slot, generation)?;
        let slot_bytes = self.layout.slot_bytes();
        if offset.checked_add(slot_bytes).is_none_or(|end| end > staging.bytes()) {
            return Err(StoreError::Size { slot_bytes, found_bytes: staging.bytes().saturating_sub(offset) });
        }
        let checked = match reserved {
            Some(reserved) if reserved == sealed.key => self.pass(slot, staging, offset, sealed),
            _ => Err(CheckFailure::Identity),
        };
        self.show(slot, generation, &sealed.key, checked)
    }

    /// Moves an image and verifies what is moved, piece by piece.
    fn pass(&self, slot: SlotIndex, staging: &Staging, offset: u64, sealed: &Sealed) -> Result<(), CheckFailure> {
        let place = self.layout.place(slot);
        let target = self.extents[place.extent as usize].service();
        let mut check = ImageCheck::new(self.shape, sealed.key);
        let mut piece = Buffer::zeroed(PIECE_BYTES.min(place.bytes) as usize);
        generation::begin();
        settle();
        let mut done = 0;
        let mut passed = Ok(());
        while done < place.bytes && passed.is_ok() {
            let bytes = PIECE_BYTES.min(place.bytes - done) as usize;
            let piece = &mut piece.as_mut_slice()[..bytes];
            target.pass(place.offset + done, staging.mapping(), offset + done, piece);
            passed = check.take(piece);
            done += bytes as u64;
        }
        settle();
        passed?;
        let header = check.finish()?;
        if header.lineage == sealed.lineage && header.link == sealed.link {
            Ok(())
        } else {
            Err(CheckFailure::Identity)
        }
    }

    /// Verifies a written slot and shows it.
    fn publish(
        &self,
        slot: SlotIndex,
        generation: Generation,
        key: &CopyKey,
        sealed: Option<&Sealed>,
    ) -> Result<(), StoreError> {
        let reserved = self.table().slots.reserved(slot, generation)?;
        let checked = match reserved {
            Some(reserved) if reserved == *key => self.check(slot, key, sealed),
            _ => Err(CheckFailure::Identity),
        };
        self.show(slot, generation, key, checked)
    }

    /// Shows a slot whose bytes are as they should be.
    fn show(
        &self,
        slot: SlotIndex,
        generation: Generation,
        key: &CopyKey,
        checked: Result<(), CheckFailure>,
    ) -> Result<(), StoreError> {
        let mut table = self.table();
        if let Err(failure) = checked {
            table.counters.failed_checks += 1;
            return Err(StoreError::Check(failure));
        }
        let even = table.slots.commit(slot, generation, *key)?;
        generation::publish(self.word(slot), even);
        Ok(())
    }

    pub(crate) fn perform(&self, op: StoreOp, key: &CopyKey, buffer: &mut Buffer) -> Outcome {
        let done = match op {
            StoreOp::Write => self.put(key, buffer.as_slice()),
            StoreOp::Read => match self.get(key, buffer.as_mut_slice()) {
                None => Ok(()),
                Some(reason) => return Outcome::Miss(reason),
            },
            StoreOp::Delete => match self.remove(key) {
                Ok(false) => return Outcome::Miss(MissReason::NeverStored),
                removed => removed.map(|_| ()),
            },
        };
        done.map_or_else(Outcome::Failed, |()| Outcome::Done)
    }

    fn put(&self, key: &CopyKey, image: &[u8]) -> Result<(), StoreError> {
        let (slot, generation) = self.reserve(Some(*key))?;
        self.write(slot, 0, image);
        self.publish(slot, generation, key, None).inspect_err(|_| self.table().slots.abandon(slot, generation))
    }

    fn get(&self, key: &CopyKey, image: &mut [u8]) -> Option<MissReason> {
        let Found::Leased(slot, generation) = self.lease(key) else {
            return Some(MissReason::NeverStored);
        };
        let current = self.read(slot, generation, 0, image);
        self.table().slots.release(slot, generation);
        if !current {
            return Some(MissReason::LeaseLost);
        }
        if verify_image(&self.shape, key, image).is_err() {
            self.quarantine(key, slot, generation);
            return Some(MissReason::FailedCheck);
        }
        None
    }
}

impl SlotOwner for Arena {
    fn release(&self, slot: SlotIndex, generation: Generation) {
        self.table().slots.release(slot, generation);
    }

    fn commit(&self, slot: SlotIndex, generation: Generation, sealed: &Sealed) -> Result<(), StoreError> {
        self.publish(slot, generation, &sealed.key, Some(sealed))
    }

    fn abandon(&self, slot: SlotIndex, generation: Generation) {
        self.table().slots.abandon(slot, generation);
    }
}
