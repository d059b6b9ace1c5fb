//! The device tier: slots of one device allocation, their table, leases, and the sealing of open blocks.
//!
//! An open block is written by kernels on [`Stream::Compute`] and sealed here once, when it is full: the tier sums its sections where they
//! lie and writes the header. A copy that arrives from another tier brings its header along and is verified, never resealed.
//! A reservation holder enqueues its writes on `Compute` (open block), or waits for the event after its copy (arriving copy), and then
//! calls commit, which waits for `Compute` alone: a commit must not wait for the copies queued behind the one it is about. A copy that
//! has not arrived does not verify. A reader keeps its lease until the event after its kernel or copy is done: work enqueued under a lease that was dropped
//! early may read the next tenant.
//!
//! Lock order: `table`, then nothing; `completions`, then nothing. Neither is held over a call to the device.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cache_core::buffer::Buffer;
use cache_core::completions::Completions;
use cache_core::header::{CheckFailure, SlotHeader, seal_sums, verify_image};
use cache_core::key::CopyKey;
use cache_core::miss::MissReason;
use cache_core::payload::BlockShape;
use cache_core::slots::{Found, SlotTable};
use cache_core::store::{
    Capacity, Completion, Lease, Lend, Lookup, OpId, Outcome, Refused, Resident, Sealed, Slot, SlotOwner, SlotPlace,
    Store, StoreError, StoreOp,
};
use cache_core::units::{Generation, Now, SlotIndex};

use crate::device::{Device, DeviceBuffer, DeviceRange, Stream};
use crate::error::DeviceError;

/// Operations under way or not polled yet; more are refused with [`StoreError::Busy`].
const OPERATIONS_MAX: usize = 256;

/// Settings of a device tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceTierConfig {
    /// Slots to allocate.
    pub slots: u32,
    /// The one shape of its blocks.
    pub shape: BlockShape,
    /// How long a slot that was taken from its readers stays unused, in milliseconds.
    pub rest_millis: u64,
}

/// What went wrong so far, and was harmless.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceTierCounters {
    /// Releases of leases that were no longer current.
    pub stale_releases: u64,
    /// Copies that did not verify: at commit, or when they were read.
    pub failed_checks: u64,
    /// Committed copies taken out because they did not verify.
    pub quarantined: u64,
    /// Leases whose slot was taken away under them.
    pub lost_leases: u64,
    /// Blocks sealed here.
    pub sealed: u64,
}

/// Slots in device memory. A handle: clones share it.
pub struct DeviceTier<D: Device + ?Sized + 'static> {
    inner: Arc<Inner<D>>,
}

struct Inner<D: Device + ?Sized> {
    shape: BlockShape,
    slots: u32,
    memory: DeviceBuffer,
    device: Arc<D>,
    table: Mutex<Table>,
    completions: Mutex<Completions>,
}

struct Table {
    slots: SlotTable,
    counters: DeviceTierCounters,
}

impl<D: Device + ?Sized + 'static> DeviceTier<D> {
    /// Allocates `slots * slot_bytes` bytes from the device's budget. Errors: [`DeviceError::Full`].
    pub fn open(device: Arc<D>, config: DeviceTierConfig) -> Result<DeviceTier<D>, DeviceError> {
        let memory = device.allocate(u64::from(config.slots) * config.shape.slot_bytes())?;
        let slots = SlotTable::new(config.slots, config.rest_millis);
        Ok(DeviceTier {
            inner: Arc::new(Inner {
                shape: config.shape,
                slots: config.slots,
                memory,
                device,
                table: Mutex::new(Table { slots, counters: DeviceTierCounters::default() }),
                completions: Mutex::new(Completions::new(OPERATIONS_MAX)),
            }),
        })
    }

    /// The device.
    pub fn device(&self) -> &Arc<D> {
        &self.inner.device
    }

    /// The shape of its blocks.
    pub fn shape(&self) -> &BlockShape {
        &self.inner.shape
    }

    /// True when the slot still has the tenant it had at `generation`.
    pub fn is_at(&self, slot: SlotIndex, generation: Generation) -> bool {
        self.inner.table().slots.is_current(slot, generation)
    }

    /// What went wrong so far.
    pub fn counters(&self) -> DeviceTierCounters {
        let table = self.inner.table();
        DeviceTierCounters { stale_releases: table.slots.stale_releases(), ..table.counters }
    }

    /// Moves time on: slots that have rested long enough are free again.
    pub fn advance(&self, now: Now) {
        self.inner.table().slots.advance(now);
    }

    /// A slot image as a device range. Panics when the place is not one of this tier's (our bug).
    pub fn range(&self, place: SlotPlace) -> DeviceRange {
        self.inner.memory.range().slice(place.offset, place.bytes)
    }

    /// One layer's section of a slot image. Panics when the group has no such layer.
    pub fn section(&self, place: SlotPlace, layer: u32) -> DeviceRange {
        let section = self.inner.shape.code_section(layer);
        self.range(place).slice(section.offset, section.bytes)
    }

    /// Reserves a slot for a block that is still being filled, so that its key is not known yet. The slot is zeroed, in order with later
    /// work on [`Stream::Compute`]. Errors: [`StoreError::Full`]; [`StoreError::Medium`] when the device failed.
    pub fn reserve_open(&self) -> Result<Slot, StoreError> {
        let (slot, generation) = self.inner.table().slots.reserve(None)?;
        let slot = self.slot(slot, generation);
        let zeros = Buffer::zeroed(slot.place().bytes as usize);
        self.inner.device.upload(Stream::Compute, zeros.as_slice(), self.range(slot.place())).map_err(medium)?;
        Ok(slot)
    }

    /// Seals a full open block under its key and makes it visible: waits for [`Stream::Compute`], sums each section and writes the header.
    /// On failure the slot comes back, still open: [`StoreError::Present`] when the same block was committed meanwhile,
    /// [`StoreError::Check`] when `sealed` does not fit this tier's form, [`StoreError::Medium`] when the device failed.
    /// Panics when the slot was reserved for a key (commit that with [`Slot::commit`]).
    pub fn commit_open(&self, slot: Slot, sealed: &Sealed) -> Result<(), (Slot, StoreError)> {
        let reserved = self.inner.table().slots.reserved(slot.index(), slot.generation());
        assert!(!matches!(reserved, Ok(Some(_))), "{slot:?} was reserved for a key");
        slot.commit(sealed)
    }

    /// Takes a leased copy out because its bytes did not verify where they arrived. Counted; a copy that has moved on is left alone.
    pub fn quarantine(&self, key: &CopyKey, lease: &Lease) {
        self.inner.quarantine(key, lease.slot(), lease.generation());
    }

    fn slot(&self, slot: SlotIndex, generation: Generation) -> Slot {
        Slot::new(self.inner.place(slot), slot, generation, Arc::clone(&self.inner) as Arc<dyn SlotOwner>)
    }
}

impl<D: Device + ?Sized + 'static> Clone for DeviceTier<D> {
    fn clone(&self) -> DeviceTier<D> {
        DeviceTier { inner: Arc::clone(&self.inner) }
    }
}

impl<D: Device + ?Sized + 'static> fmt::Debug for DeviceTier<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceTier").field("capacity", &self.capacity()).finish_non_exhaustive()
    }
}

/// A device that failed is a medium that failed.
fn medium(error: DeviceError) -> StoreError {
    StoreError::Medium { reason: error.to_string() }
}

impl<D: Device + ?Sized + 'static> Inner<D> {
    /// No code panics between two changes of the table that belong together, so a poisoned lock guards a sound table.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn completions(&self) -> MutexGuard<'_, Completions> {
        self.completions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, slot: SlotIndex) -> SlotPlace {
        let bytes = self.shape.slot_bytes();
        SlotPlace { extent: 0, offset: u64::from(slot.0) * bytes, bytes }
    }

    fn range(&self, slot: SlotIndex) -> DeviceRange {
        let place = self.place(slot);
        self.memory.range().slice(place.offset, place.bytes)
    }

    fn revoke(&self, table: &mut Table, key: &CopyKey) {
        let leases = table.slots.committed(key).map_or(0, |(_, leases)| leases);
        if table.slots.revoke(key).is_some() {
            table.counters.lost_leases += u64::from(leases);
        }
    }

    fn quarantine(&self, key: &CopyKey, slot: SlotIndex, generation: Generation) {
        let mut table = self.table();
        table.counters.failed_checks += 1;
        if table.slots.committed(key).is_some_and(|(held, _)| held == slot) && table.slots.is_current(slot, generation)
        {
            table.counters.quarantined += 1;
            self.revoke(&mut table, key);
        }
    }

    /// Runs `look` on a slot image once `stream` has come to it.
    fn look<T>(&self, stream: Stream, slot: SlotIndex, mut look: impl FnMut(&[u8]) -> T) -> Result<T, StoreError> {
        let mut seen = None;
        self.device.inspect(stream, self.range(slot), &mut |image| seen = Some(look(image))).map_err(medium)?;
        Ok(seen.expect("inspect shows the bytes or fails"))
    }

    /// Verifies a copy that arrived with its header.
    fn check(&self, slot: SlotIndex, key: &CopyKey, sealed: Option<&Sealed>) -> Result<(), StoreError> {
        let header = self
            .look(Stream::Compute, slot, |image| verify_image(&self.shape, key, image))?
            .map_err(StoreError::Check)?;
        match sealed {
            Some(sealed) if header.lineage != sealed.lineage || header.link != sealed.link => {
                Err(StoreError::Check(CheckFailure::Identity))
            }
            _ => Ok(()),
        }
    }

    /// Seals an open block: sums over the device's own bytes, and a header over the sums. The header is there before anyone is told.
    fn seal(&self, slot: SlotIndex, sealed: &Sealed) -> Result<(), StoreError> {
        if sealed.key.form != self.shape.form_map() || sealed.link.hash != sealed.key.hash {
            return Err(StoreError::Check(CheckFailure::Identity));
        }
        let header: SlotHeader = self.look(Stream::Compute, slot, |image| {
            seal_sums(&self.shape, sealed.key, sealed.lineage, sealed.link, image)
        })?;
        let mut pages = Buffer::zeroed(self.shape.header_bytes() as usize);
        header.encode(pages.as_mut_slice());
        let target = self.range(slot).slice(0, self.shape.header_bytes());
        self.device.upload(Stream::Compute, pages.as_slice(), target).map_err(medium)?;
        let written = self.device.record(Stream::Compute).map_err(medium)?;
        self.device.synchronize(written).map_err(medium)
    }

    /// Makes a written slot visible, sealed or verified.
    fn publish(
        &self,
        slot: SlotIndex,
        generation: Generation,
        key: &CopyKey,
        sealed: Option<&Sealed>,
    ) -> Result<(), StoreError> {
        let reserved = {
            let table = self.table();
            let reserved = table.slots.reserved(slot, generation)?;
            if reserved.is_none() && table.slots.holds(key) {
                return Err(StoreError::Present);
            }
            reserved
        };
        let checked = match (reserved, sealed) {
            (Some(reserved), _) if reserved == *key => self.check(slot, key, sealed),
            (None, Some(sealed)) => self.seal(slot, sealed),
            _ => Err(StoreError::Check(CheckFailure::Identity)),
        };
        let mut table = self.table();
        if let Err(error) = checked {
            table.counters.failed_checks += u64::from(matches!(error, StoreError::Check(_)));
            return Err(error);
        }
        table.slots.commit(slot, generation, *key)?;
        table.counters.sealed += u64::from(reserved.is_none());
        Ok(())
    }

    fn perform(&self, op: StoreOp, key: &CopyKey, buffer: &mut Buffer) -> Outcome {
        let done = match op {
            StoreOp::Write => self.put(key, buffer.as_slice()).map(|()| None),
            StoreOp::Read => self.get(key, buffer.as_mut_slice()),
            StoreOp::Delete => {
                self.table().slots.remove(key).map(|removed| removed.is_none().then_some(MissReason::NeverStored))
            }
        };
        match done {
            Ok(None) => Outcome::Done,
            Ok(Some(reason)) => Outcome::Miss(reason),
            Err(error) => Outcome::Failed(error),
        }
    }

    fn put(&self, key: &CopyKey, image: &[u8]) -> Result<(), StoreError> {
        let (slot, generation) = self.table().slots.reserve(Some(*key))?;
        let device = &self.device;
        let uploaded = device
            .upload(Stream::CopyIn, image, self.range(slot))
            .and_then(|()| device.record(Stream::CopyIn))
            .and_then(|written| device.synchronize(written))
            .map_err(medium);
        uploaded
            .and_then(|()| self.publish(slot, generation, key, None))
            .inspect_err(|_| self.table().slots.abandon(slot, generation))
    }

    fn get(&self, key: &CopyKey, image: &mut [u8]) -> Result<Option<MissReason>, StoreError> {
        let Found::Leased(slot, generation) = self.lease(key) else {
            return Ok(Some(MissReason::NeverStored));
        };
        let downloaded = self.device.download(Stream::CopyOut, self.range(slot), image).map_err(medium);
        let current = {
            let mut table = self.table();
            table.slots.release(slot, generation);
            table.slots.is_current(slot, generation)
        };
        downloaded?;
        if !current {
            return Ok(Some(MissReason::LeaseLost));
        }
        if verify_image(&self.shape, key, image).is_err() {
            self.quarantine(key, slot, generation);
            return Ok(Some(MissReason::FailedCheck));
        }
        Ok(None)
    }

    fn lease(&self, key: &CopyKey) -> Found {
        self.table().slots.lease(key)
    }
}

impl<D: Device + ?Sized + 'static> SlotOwner for Inner<D> {
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

impl<D: Device + ?Sized + 'static> Store for DeviceTier<D> {
    fn submit(&self, op: StoreOp, key: CopyKey, mut buffer: Buffer) -> Result<OpId, Refused> {
        let (slot_bytes, found_bytes) = (self.inner.shape.slot_bytes(), buffer.as_slice().len() as u64);
        if op != StoreOp::Delete && found_bytes != slot_bytes {
            return Err(Refused { error: StoreError::Size { slot_bytes, found_bytes }, buffer });
        }
        let op_id = match self.inner.completions().begin() {
            Ok(op_id) => op_id,
            Err(error) => return Err(Refused { error, buffer }),
        };
        let outcome = self.inner.perform(op, &key, &mut buffer);
        self.inner.completions().finish(Completion { op: op_id, key, buffer, outcome });
        Ok(op_id)
    }

    fn poll(&self, out: &mut Vec<Completion>) {
        self.inner.completions().drain(out);
    }

    /// The budget is what the tier was opened with: its slots in device memory, and their table beside it.
    fn capacity(&self) -> Capacity {
        let slot_bytes = self.inner.shape.slot_bytes();
        let held_bytes = u64::from(self.inner.slots) * slot_bytes + SlotTable::bytes_for(self.inner.slots);
        Capacity {
            slot_bytes,
            slots: u64::from(self.inner.slots),
            used_slots: u64::from(self.inner.table().slots.used()),
            held_bytes,
            budget_bytes: held_bytes,
        }
    }
}

impl<D: Device + ?Sized + 'static> Lend for DeviceTier<D> {
    fn lookup(&self, key: &CopyKey) -> Lookup {
        match self.inner.lease(key) {
            Found::Leased(slot, generation) => {
                let owner = Arc::clone(&self.inner) as Arc<dyn SlotOwner>;
                Lookup::Hit(Lease::new(self.inner.place(slot), slot, generation, owner))
            }
            Found::Pending => Lookup::Pending,
            Found::Absent => Lookup::Miss(MissReason::NeverStored),
        }
    }

    fn is_current(&self, lease: &Lease) -> bool {
        self.inner.table().slots.is_current(lease.slot(), lease.generation())
    }
}

impl<D: Device + ?Sized + 'static> Resident for DeviceTier<D> {
    fn reserve(&self, key: CopyKey) -> Result<Slot, StoreError> {
        let (slot, generation) = self.inner.table().slots.reserve(Some(key))?;
        Ok(self.slot(slot, generation))
    }

    fn remove(&self, key: &CopyKey) -> Result<(), StoreError> {
        self.inner.table().slots.remove(key).map(|_| ())
    }

    fn revoke(&self, key: &CopyKey) {
        self.inner.revoke(&mut self.inner.table(), key);
    }
}
