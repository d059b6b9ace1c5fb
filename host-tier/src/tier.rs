//! The host tier: handles of an arena, leases, and the operations on whole copies.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};

use cache_core::buffer::Buffer;
use cache_core::completions::Completions;
use cache_core::key::CopyKey;
use cache_core::miss::MissReason;
use cache_core::payload::BlockShape;
use cache_core::slots::{Found, SlotTable};
use cache_core::store::{
    Capacity, Completion, Lease, Lend, Lookup, OpId, Refused, Resident, Sealed, Slot, SlotOwner, Store, StoreError,
    StoreOp,
};
use cache_core::units::{Generation, Now, SlotIndex};

use crate::arena::{Arena, Table};
use crate::error::HostError;
use crate::extent::Extent;
use crate::generation;
use crate::layout::Layout;
use crate::staging::Staging;

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
    arena: Arc<Arena>,
}

impl HostTier {
    /// Maps and seals the arena; its pages are committed as slots are used. Errors: [`HostError::Budget`] under one block with its
    /// metadata, [`HostError::Memory`] when the kernel refuses.
    pub fn open(config: HostConfig) -> Result<HostTier, HostError> {
        let fixed_bytes = size_of::<Arena>() as u64 + Completions::bytes_for(OPERATIONS_MAX);
        let bytes_per_extent = (size_of::<Extent>() + 4 * size_of::<usize>()) as u64;
        let layout = Layout::new(config.budget_bytes, &config.shape, fixed_bytes, bytes_per_extent)?;
        let extents = (0..layout.extents())
            .map(|extent| Extent::new(layout.extent_bytes(extent), layout.extent_slots(extent)).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        let slots = SlotTable::new(layout.slots(), config.rest_millis);
        Ok(HostTier {
            arena: Arc::new(Arena {
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
        &self.arena.shape
    }

    /// How the budget is cut.
    pub fn layout(&self) -> &Layout {
        &self.arena.layout
    }

    /// The extents, by the number that [`SlotPlace::extent`] means.
    pub fn extents(&self) -> &[Arc<Extent>] {
        &self.arena.extents
    }

    /// What went wrong so far.
    pub fn counters(&self) -> HostCounters {
        let table = self.arena.table();
        HostCounters { stale_releases: table.slots.stale_releases(), ..table.counters }
    }

    /// Slots that rest: no copy holds them, and none may be written into them yet.
    pub fn resting(&self) -> u32 {
        self.arena.table().slots.resting()
    }

    /// Moves time on: slots that have rested long enough are free again.
    pub fn advance(&self, now: Now) {
        self.arena.table().slots.advance(now);
    }

    /// Takes back every copy whose leases are all older than the time limit; returns how many. Moves time on as [`HostTier::advance`].
    pub fn expire_leases(&self, now: Now) -> u32 {
        let mut table = self.arena.table();
        table.slots.advance(now);
        let overdue = self.arena.lease_ttl_millis.map(|ttl| table.slots.overdue(ttl)).unwrap_or_default();
        for key in &overdue {
            self.arena.revoke(&mut table, key);
        }
        overdue.len() as u32
    }

    /// Notes that the reader of a lease vanished without saying whether it still reads: the copy stays, but if it goes within
    /// `rest_millis` its slot rests before it is used for another.
    pub fn rest_after_removal(&self, lease: &Lease) {
        self.arena.table().slots.rest_after_removal(lease.slot(), lease.generation());
    }

    /// Takes a leased copy out because its bytes did not verify where they arrived. Counted; a copy that has moved on is left alone.
    pub fn quarantine(&self, key: &CopyKey, lease: &Lease) {
        self.arena.quarantine(key, lease.slot(), lease.generation());
    }

    /// Whose copy a slot holds, and its generation; `None` when it holds none.
    pub fn holder(&self, slot: SlotIndex) -> Option<(CopyKey, Generation)> {
        self.arena.table().slots.holder(slot)
    }

    /// Checks a resident copy where it lies: header, identity and every section. `None` when it is not there, or went meanwhile. One that is wrong
    /// is taken out and counted.
    pub fn verify(&self, key: &CopyKey) -> Option<bool> {
        let Lookup::Hit(lease) = self.lookup(key) else {
            return None;
        };
        // The lease keeps the slot from being written, unless it is revoked: then what was looked at means nothing.
        let is_sound = self.arena.check(lease.slot(), key, None).is_ok();
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
        let (slot, generation) = self.arena.reserve(None)?;
        Ok(self.slot(slot, generation))
    }

    fn slot(&self, slot: SlotIndex, generation: Generation) -> Slot {
        Slot::new(self.arena.layout.place(slot), slot, generation, Arc::clone(&self.arena) as Arc<dyn SlotOwner>)
    }

    /// Leases copies in order, as one step, up to the first that is not there.
    pub fn lease_run<'a>(&self, keys: impl Iterator<Item = &'a CopyKey>) -> Vec<Lease> {
        let mut table = self.arena.table();
        let lease = |key| match table.slots.lease(key) {
            Found::Leased(slot, generation) => Some(self.arena.leased(slot, generation)),
            Found::Pending | Found::Absent => None,
        };
        keys.map_while(lease).collect()
    }

    /// Copies bytes into a reserved slot; `offset` counts from the start of the slot image, both are multiples of 8.
    /// Errors: [`StoreError::Stale`] when the slot is not reserved here.
    pub fn write(&self, slot: &mut Slot, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        self.arena.table().slots.reserved(slot.index(), slot.generation())?;
        self.arena.write(slot.index(), offset, bytes);
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
        match self.arena.take_in(slot.index(), slot.generation(), staging, offset, sealed) {
            // The generation has moved on, so dropping the slot frees nothing.
            Ok(()) => Ok(()),
            Err(error) => Err((slot, error)),
        }
    }

    /// Lets no more than so many slots be touched: their pages stay committed, so this bounds the tier's memory below its budget.
    pub fn limit_touched(&self, slots: u64) {
        self.arena.table().touched_max = slots;
    }

    /// Slots that are free and whose pages are all committed: the next blocks do not wait for memory.
    pub fn touched_free(&self) -> u64 {
        let table = self.arena.table();
        let in_part = u64::from(table.ahead.1 < self.arena.layout.slot_bytes());
        (table.touched - u64::from(table.slots.used())).saturating_sub(in_part)
    }

    /// True when [`HostTier::touch_ahead`] would find something to do.
    pub fn has_untouched(&self) -> bool {
        let table = self.arena.table();
        table.ahead.1 < self.arena.layout.slot_bytes() || table.touched < table.reachable()
    }

    /// Commits pages of slots that were never used, in the order in which they will be, `bytes_max` bytes of one slot at most; within
    /// [`HostTier::limit_touched`]. Returns how many bytes: 0 when nothing is left to be touched. `bytes_max` is whole pages. Errors: the kernel's; those
    /// pages are then committed by whoever writes them first.
    pub fn touch_ahead(&self, bytes_max: u64) -> io::Result<u64> {
        let arena = &self.arena;
        let place = {
            let mut table = arena.table();
            let slot_bytes = arena.layout.slot_bytes();
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
            arena.inside(slot, done, bytes as usize)
        };
        // Whoever has taken the slot by now may be writing it: its pages are committed once, and its bytes stay.
        arena.extents[place.extent as usize].service().populate(place.offset, place.bytes)?;
        Ok(place.bytes)
    }

    /// Copies bytes out of a leased slot; returns whether the lease was still current afterwards. If not, the bytes mean nothing.
    pub fn read(&self, lease: &Lease, offset: u64, target: &mut [u8]) -> bool {
        self.arena.read(lease.slot(), lease.generation(), offset, target)
    }
}

impl fmt::Debug for HostTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostTier")
            .field("layout", &self.arena.layout)
            .field("capacity", &self.capacity())
            .finish_non_exhaustive()
    }
}

impl Store for HostTier {
    fn submit(&self, op: StoreOp, key: CopyKey, mut buffer: Buffer) -> Result<OpId, Refused> {
        let (slot_bytes, found_bytes) = (self.arena.layout.slot_bytes(), buffer.as_slice().len() as u64);
        if op != StoreOp::Delete && found_bytes != slot_bytes {
            return Err(Refused { error: StoreError::Size { slot_bytes, found_bytes }, buffer });
        }
        let op_id = match self.arena.completions().begin() {
            Ok(op_id) => op_id,
            Err(error) => return Err(Refused { error, buffer }),
        };
        let outcome = self.arena.perform(op, &key, &mut buffer);
        self.arena.completions().finish(Completion { op: op_id, key, buffer, outcome });
        Ok(op_id)
    }

    fn poll(&self, out: &mut Vec<Completion>) {
        self.arena.completions().drain(out);
    }

    fn capacity(&self) -> Capacity {
        let table = self.arena.table();
        let slot_bytes = self.arena.layout.slot_bytes();
        Capacity {
            slot_bytes,
            slots: u64::from(table.slots.len()),
            used_slots: u64::from(table.slots.used()),
            held_bytes: self.arena.layout.metadata_bytes() + table.touched * slot_bytes,
            budget_bytes: self.arena.budget_bytes,
        }
    }
}

impl Lend for HostTier {
    fn lookup(&self, key: &CopyKey) -> Lookup {
        match self.arena.lease(key) {
            Found::Leased(slot, generation) => Lookup::Hit(self.arena.leased(slot, generation)),
            Found::Pending => Lookup::Pending,
            Found::Absent => Lookup::Miss(MissReason::NeverStored),
        }
    }

    fn is_current(&self, lease: &Lease) -> bool {
        generation::still(self.arena.word(lease.slot()), lease.generation())
    }
}

impl Resident for HostTier {
    fn reserve(&self, key: CopyKey) -> Result<Slot, StoreError> {
        let (slot, generation) = self.arena.reserve(Some(key))?;
        Ok(self.slot(slot, generation))
    }

    fn remove(&self, key: &CopyKey) -> Result<(), StoreError> {
        self.arena.remove(key).map(|_| ())
    }

    fn revoke(&self, key: &CopyKey) {
        self.arena.revoke(&mut self.arena.table(), key);
    }
}
