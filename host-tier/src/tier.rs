//! The host tier: slots in extents, their table, leases and the operations on whole copies.
//!
//! Lock order: `table`, then nothing; `completions`, then nothing. Neither is held while the other is taken, while bytes are copied or
//! verified, or while a [`Lease`] or [`Slot`] is dropped. Generation words change under `table` only, so their order is the table's.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cache_core::buffer::Buffer;
use cache_core::check::ImageCheck;
use cache_core::completions::Completions;
use cache_core::header::{CheckFailure, verify_image};
use cache_core::key::CopyKey;
use cache_core::miss::MissReason;
use cache_core::payload::BlockShape;
use cache_core::slots::{Found, SlotTable};
use cache_core::store::{
    Capacity, Completion, Lease, Lend, Lookup, OpId, Outcome, Refused, Resident, Sealed, Slot, SlotOwner, SlotPlace,
    Store, StoreError, StoreOp,
};
use cache_core::units::{Generation, Now, SlotIndex};

use crate::error::HostError;
use crate::extent::Extent;
use crate::generation;
use crate::layout::Layout;
use crate::mapping::settle;
use crate::staging::Staging;
use crate::sync::AtomicU64;

/// Bytes of an image that are moved and then verified: they stay in the processor's first cache meanwhile. Whole pages.
const PIECE_BYTES: u64 = 16 << 10;
/// Operations under way or not polled yet; more are refused with [`StoreError::Busy`].
const OPERATIONS_MAX: usize = 256;

/// Settings of a host tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// Hard limit in bytes: slots, generation pages, slot table and the tier's own records.
    pub budget_bytes: u64,
    /// The one shape of its blocks.
    pub shape: BlockShape,
    /// How long a slot that was taken from its readers stays unused, in milliseconds.
    pub rest_millis: u64,
    /// A copy whose every lease is older than this is taken back by [`HostTier::expire_leases`], in milliseconds; `None` = never.
    pub lease_ttl_millis: Option<u64>,
}

impl HostConfig {
    /// `rest_millis` 2000, leases without end.
    pub fn new(budget_bytes: u64, shape: BlockShape) -> HostConfig {
        HostConfig { budget_bytes, shape, rest_millis: 2000, lease_ttl_millis: None }
    }
}

/// What went wrong so far, and was harmless.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostCounters {
    /// Releases of leases that were no longer current.
    pub stale_releases: u64,
    /// Copies that did not verify: at commit, or when they were read.
    pub failed_checks: u64,
    /// Committed copies taken out because they did not verify.
    pub quarantined: u64,
    /// Leases whose slot was taken away under them.
    pub lost_leases: u64,
}

/// The host arena. A handle: clones share it.
#[derive(Clone)]
pub struct HostTier {
    inner: Arc<Inner>,
}

struct Inner {
    shape: BlockShape,
    layout: Layout,
    budget_bytes: u64,
    lease_ttl_millis: Option<u64>,
    extents: Vec<Arc<Extent>>,
    table: Mutex<Table>,
    completions: Mutex<Completions>,
}

struct Table {
    slots: SlotTable,
    /// Slots whose pages have been touched, or are just being: those before this one, since a slot that was never used is taken only when no other is
    /// free, the first one first. They stay committed when the slot is freed.
    touched: u64,
    touched_max: u64,
    /// Where [`HostTier::touch_ahead`] stands: a slot below `touched`, and how many bytes of it are committed.
    ahead: (SlotIndex, u64),
    counters: HostCounters,
}

impl Table {
    /// Slots that may be touched.
    fn reachable(&self) -> u64 {
        self.touched_max.min(u64::from(self.slots.len()))
    }
}

impl HostTier {
    /// Maps and seals the arena; its pages are committed as slots are used. Errors: [`HostError::Budget`] under one block with its
    /// metadata, [`HostError::Memory`] when the kernel refuses.
    pub fn open(config: HostConfig) -> Result<HostTier, HostError> {
        let fixed_bytes = size_of::<Inner>() as u64 + Completions::bytes_for(OPERATIONS_MAX);
        let bytes_per_extent = (size_of::<Extent>() + 4 * size_of::<usize>()) as u64;
        let layout = Layout::new(config.budget_bytes, &config.shape, fixed_bytes, bytes_per_extent)?;
        let extents = (0..layout.extents())
            .map(|extent| Extent::new(layout.extent_bytes(extent), layout.extent_slots(extent)).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        let slots = SlotTable::new(layout.slots(), config.rest_millis);
        Ok(HostTier {
            inner: Arc::new(Inner {
                shape: config.shape,
                layout,
                budget_bytes: config.budget_bytes,
                lease_ttl_millis: config.lease_ttl_millis,
                extents,
                table: Mutex::new(Table {
                    slots,
                    touched: 0,
                    touched_max: u64::MAX,
                    ahead: (SlotIndex(0), layout.slot_bytes()),
                    counters: HostCounters::default(),
                }),
                completions: Mutex::new(Completions::new(OPERATIONS_MAX)),
            }),
        })
    }

    /// The shape of its blocks.
    pub fn shape(&self) -> &BlockShape {
        &self.inner.shape
    }

    /// How the budget is cut.
    pub fn layout(&self) -> &Layout {
        &self.inner.layout
    }

    /// The extents, by the number that [`SlotPlace::extent`] means.
    pub fn extents(&self) -> &[Arc<Extent>] {
        &self.inner.extents
    }

    /// What went wrong so far.
    pub fn counters(&self) -> HostCounters {
        let table = self.inner.table();
        HostCounters { stale_releases: table.slots.stale_releases(), ..table.counters }
    }

    /// Slots that rest: no copy holds them, and none may be written into them yet.
    pub fn resting(&self) -> u32 {
        self.inner.table().slots.resting()
    }

    /// Moves time on: slots that have rested long enough are free again.
    pub fn advance(&self, now: Now) {
        self.inner.table().slots.advance(now);
    }

    /// Takes back every copy whose leases are all older than the time limit; returns how many. Moves time on as [`HostTier::advance`].
    pub fn expire_leases(&self, now: Now) -> u32 {
        let mut table = self.inner.table();
        table.slots.advance(now);
        let overdue = self.inner.lease_ttl_millis.map(|ttl| table.slots.overdue(ttl)).unwrap_or_default();
        for key in &overdue {
            self.inner.revoke(&mut table, key);
        }
        overdue.len() as u32
    }

    /// Notes that the reader of a lease vanished without saying whether it still reads: the copy stays, but its slot rests before it is used
    /// for another.
    pub fn rest_after_removal(&self, lease: &Lease) {
        self.inner.table().slots.rest_after_removal(lease.slot(), lease.generation());
    }

    /// Takes a leased copy out because its bytes did not verify where they arrived. Counted; a copy that has moved on is left alone.
    pub fn quarantine(&self, key: &CopyKey, lease: &Lease) {
        self.inner.quarantine(key, lease.slot(), lease.generation());
    }

    /// Whose copy a slot holds, and its generation; `None` when it holds none.
    pub fn holder(&self, slot: SlotIndex) -> Option<(CopyKey, Generation)> {
        self.inner.table().slots.holder(slot)
    }

    /// Checks a resident copy where it lies: header, identity and every section. `None` when it is not there, or went meanwhile. One that is wrong
    /// is taken out and counted.
    pub fn verify(&self, key: &CopyKey) -> Option<bool> {
        let Lookup::Hit(lease) = self.lookup(key) else {
            return None;
        };
        // The lease keeps the slot from being written, unless it is revoked: then what was looked at means nothing.
        let is_sound = self.inner.check(lease.slot(), key, None).is_ok();
        if !self.is_current(&lease) {
            return None;
        }
        if !is_sound {
            self.quarantine(key, &lease);
        }
        Some(is_sound)
    }

    /// Reserves a slot for no copy in particular: memory that is set aside. Errors: [`StoreError::Full`].
    pub fn reserve_open(&self) -> Result<Slot, StoreError> {
        let (slot, generation) = self.inner.reserve(None)?;
        Ok(self.slot(slot, generation))
    }

    fn slot(&self, slot: SlotIndex, generation: Generation) -> Slot {
        Slot::new(self.inner.layout.place(slot), slot, generation, Arc::clone(&self.inner) as Arc<dyn SlotOwner>)
    }

    /// Leases copies in order, as one step, up to the first that is not there.
    pub fn lease_run<'a>(&self, keys: impl Iterator<Item = &'a CopyKey>) -> Vec<Lease> {
        let mut table = self.inner.table();
        let lease = |key| match table.slots.lease(key) {
            Found::Leased(slot, generation) => Some(self.inner.leased(slot, generation)),
            Found::Pending | Found::Absent => None,
        };
        keys.map_while(lease).collect()
    }

    /// Copies bytes into a reserved slot; `offset` counts from the start of the slot image, both are multiples of 8.
    /// Errors: [`StoreError::Stale`] when the slot is not reserved here.
    pub fn write(&self, slot: &mut Slot, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.inner.table().slots.reserved(slot.index(), slot.generation())?;
        self.inner.write(slot.index(), offset, bytes);
        Ok(())
    }

    /// Takes a whole slot image out of staging into a reserved slot, verifies what has arrived while it passes, and shows it. Another process may be
    /// writing to the staging memory: what is verified is what lies in the slot. `offset` is a multiple of 64. On failure the slot comes back, still
    /// reserved. Errors: [`StoreError::Stale`] when the slot is not reserved here, [`StoreError::Size`] when the image leaves the staging memory,
    /// [`StoreError::Check`] when it is not what `sealed` says.
    pub fn commit_from(
        &self,
        slot: Slot,
        staging: &Staging,
        offset: u64,
        sealed: &Sealed,
    ) -> Result<(), (Slot, StoreError)> {
        match self.inner.take_in(slot.index(), slot.generation(), staging, offset, sealed) {
            // The generation has moved on, so dropping the slot frees nothing.
            Ok(()) => Ok(()),
            Err(error) => Err((slot, error)),
        }
    }

    /// Lets no more than so many slots be touched: their pages stay committed, so this bounds the tier's memory below its budget.
    pub fn limit_touched(&self, slots: u64) {
        self.inner.table().touched_max = slots;
    }

    /// Slots that are free and whose pages are all committed: the next blocks do not wait for memory.
    pub fn touched_free(&self) -> u64 {
        let table = self.inner.table();
        let in_part = u64::from(table.ahead.1 < self.inner.layout.slot_bytes());
        (table.touched - u64::from(table.slots.used())).saturating_sub(in_part)
    }

    /// True when [`HostTier::touch_ahead`] would find something to do.
    pub fn has_untouched(&self) -> bool {
        let table = self.inner.table();
        table.ahead.1 < self.inner.layout.slot_bytes() || table.touched < table.reachable()
    }

    /// Commits pages of slots that were never used, in the order in which they will be, `bytes_max` bytes of one slot at most; within
    /// [`HostTier::limit_touched`]. Returns how many bytes: 0 when nothing is left to be touched. `bytes_max` is whole pages. Errors: the kernel's; those
    /// pages are then committed by whoever writes them first.
    pub fn touch_ahead(&self, bytes_max: u64) -> io::Result<u64> {
        let inner = &self.inner;
        let place = {
            let mut table = inner.table();
            let slot_bytes = inner.layout.slot_bytes();
            if table.ahead.1 == slot_bytes {
                if table.touched >= table.reachable() {
                    return Ok(0);
                }
                table.ahead = (SlotIndex(table.touched as u32), 0);
                table.touched += 1;
            }
            let (slot, done) = table.ahead;
            let bytes = bytes_max.min(slot_bytes - done);
            table.ahead.1 += bytes;
            inner.inside(slot, done, bytes as usize)
        };
        // Whoever has taken the slot by now may be writing it: its pages are committed once, and its bytes stay.
        inner.extents[place.extent as usize].service().populate(place.offset, place.bytes)?;
        Ok(place.bytes)
    }

    /// Copies bytes out of a leased slot; returns whether the lease was still current afterwards. If not, the bytes mean nothing.
    pub fn read(&self, lease: &Lease, offset: u64, target: &mut [u8]) -> bool {
        self.inner.read(lease.slot(), lease.generation(), offset, target)
    }
}

impl fmt::Debug for HostTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostTier")
            .field("layout", &self.inner.layout)
            .field("capacity", &self.capacity())
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// No code panics between two changes of the table that belong together, so a poisoned lock guards a sound table.
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn completions(&self) -> MutexGuard<'_, Completions> {
        self.completions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn word(&self, slot: SlotIndex) -> &AtomicU64 {
        let (extent, offset) = self.layout.generation_place(slot);
        self.extents[extent as usize].word((offset / 8) as u32)
    }

    fn reserve(&self, key: Option<CopyKey>) -> Result<(SlotIndex, Generation), StoreError> {
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
    fn leased(self: &Arc<Inner>, slot: SlotIndex, generation: Generation) -> Lease {
        Lease::new(self.layout.place(slot), slot, generation, Arc::clone(self) as Arc<dyn SlotOwner>)
    }

    fn lease(&self, key: &CopyKey) -> Found {
        self.table().slots.lease(key)
    }

    fn write(&self, slot: SlotIndex, offset: u64, bytes: &[u8]) {
        let place = self.inside(slot, offset, bytes.len());
        generation::begin();
        self.extents[place.extent as usize].service().store(place.offset, bytes);
    }

    fn read(&self, slot: SlotIndex, generation: Generation, offset: u64, target: &mut [u8]) -> bool {
        let place = self.inside(slot, offset, target.len());
        self.extents[place.extent as usize].service().load(place.offset, target);
        generation::still(self.word(slot), generation)
    }

    /// A part of a slot image as a place. Panics when it leaves the image (our bug).
    fn inside(&self, slot: SlotIndex, offset: u64, bytes: usize) -> SlotPlace {
        let place = self.layout.place(slot);
        let end = offset.checked_add(bytes as u64).expect("the end fits u64");
        assert!(end <= place.bytes, "{offset}+{bytes} leaves a slot image of {} bytes", place.bytes);
        SlotPlace { offset: place.offset + offset, bytes: bytes as u64, ..place }
    }

    /// Takes a copy out under its readers.
    fn revoke(&self, table: &mut Table, key: &CopyKey) {
        let leases = table.slots.committed(key).map_or(0, |(_, leases)| leases);
        if let Some(slot) = table.slots.revoke(key) {
            generation::withdraw(self.word(slot), table.slots.generation(slot));
            table.counters.lost_leases += u64::from(leases);
        }
    }

    fn remove(&self, key: &CopyKey) -> Result<bool, StoreError> {
        let mut table = self.table();
        let removed = table.slots.remove(key)?;
        if let Some(slot) = removed {
            generation::withdraw(self.word(slot), table.slots.generation(slot));
        }
        Ok(removed.is_some())
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

    /// Verifies the tier's own copy of a slot that nobody writes any more.
    fn check(&self, slot: SlotIndex, key: &CopyKey, sealed: Option<&Sealed>) -> Result<(), CheckFailure> {
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
    fn take_in(
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

    fn perform(&self, op: StoreOp, key: &CopyKey, buffer: &mut Buffer) -> Outcome {
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

impl SlotOwner for Inner {
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

impl Store for HostTier {
    fn submit(&self, op: StoreOp, key: CopyKey, mut buffer: Buffer) -> Result<OpId, Refused> {
        let (slot_bytes, found_bytes) = (self.inner.layout.slot_bytes(), buffer.as_slice().len() as u64);
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

    fn capacity(&self) -> Capacity {
        let table = self.inner.table();
        let slot_bytes = self.inner.layout.slot_bytes();
        Capacity {
            slot_bytes,
            slots: u64::from(table.slots.len()),
            used_slots: u64::from(table.slots.used()),
            held_bytes: self.inner.layout.metadata_bytes() + table.touched * slot_bytes,
            budget_bytes: self.inner.budget_bytes,
        }
    }
}

impl Lend for HostTier {
    fn lookup(&self, key: &CopyKey) -> Lookup {
        match self.inner.lease(key) {
            Found::Leased(slot, generation) => Lookup::Hit(self.inner.leased(slot, generation)),
            Found::Pending => Lookup::Pending,
            Found::Absent => Lookup::Miss(MissReason::NeverStored),
        }
    }

    fn is_current(&self, lease: &Lease) -> bool {
        generation::still(self.inner.word(lease.slot()), lease.generation())
    }
}

impl Resident for HostTier {
    fn reserve(&self, key: CopyKey) -> Result<Slot, StoreError> {
        let (slot, generation) = self.inner.reserve(Some(key))?;
        Ok(self.slot(slot, generation))
    }

    fn remove(&self, key: &CopyKey) -> Result<(), StoreError> {
        self.inner.remove(key).map(|_| ())
    }

    fn revoke(&self, key: &CopyKey) {
        self.inner.revoke(&mut self.inner.table(), key);
    }
}
