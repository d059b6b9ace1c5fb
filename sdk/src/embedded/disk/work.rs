//! The driver's part: performs the shard's actions on the disk, and feeds back what ended.
//!
//! Everything here runs under the state mutex, and nothing waits for the disk but a request that needs its answer (a spill, a load), or a
//! device copy that must go before it was copied out.

use std::time::{Duration, Instant};

use cache_core::form::Provenance;
use cache_core::key::CopyKey;
use cache_core::manager::{CopyEnd, EntryId, Event};
use cache_core::miss::MissReason;
use cache_core::store::{Lend, Lookup, Resident, Slot};
use cache_core::units::Tier;
use disk_tier::io::Memory;
use disk_tier::{DiskDone, DiskEnd, DiskOk, WriteRequest};
use gpu_tier::device::{CopyPiece, Stream};

use crate::embedded::disk::books::{Load, WAITING_MAX, Waiting};
use crate::embedded::disk::{Disk, PATIENCE, Writes};
use crate::embedded::driver::{Driver, end_of};

/// How long a device copy that must go waits for bounce memory, before it goes without having been stored.
const LAST_CHANCE: Duration = Duration::from_millis(500);
/// One look at the disk while something waits for it.
const LOOK_MILLIS: u64 = 10;

/// What became of an attempt to copy a block out.
enum CopiedOut {
    Started,
    /// No copy is left to write.
    NoSource,
    /// No bounce memory is free.
    NoRoom,
}

impl<'a> Driver<'a> {
    fn disk(&self) -> &'a Disk {
        self.tiers.disk.as_ref().expect("without a disk nothing is asked of it")
    }

    pub(in crate::embedded) fn store(&mut self, key: CopyKey, spill: bool) {
        let is_kept_out = self.disk().writes == Writes::Untainted && key.provenance != Provenance::EXACT;
        let books = &mut self.state.disk;
        if is_kept_out && !spill {
            self.feed(Event::Stored { key, spill, end: CopyEnd::Full });
        } else if spill {
            books.waiting.push_front(Waiting { key, is_live: true });
            self.copy_out_waiting(PATIENCE);
        } else if books.waiting.len() < WAITING_MAX {
            books.waiting.push_back(Waiting { key, is_live: false });
        } else {
            books.dropped_stores += 1;
            self.feed(Event::Stored { key, spill, end: CopyEnd::Full });
        }
    }

    pub(in crate::embedded) fn pin(&mut self, entry: EntryId, key: CopyKey) {
        match self.disk().tier().pin(&key) {
            Some(pin) => {
                self.state.disk.pins.insert(key, pin);
            }
            None => self.feed(Event::Lost { entry, tier: Tier::Disk, reason: MissReason::Evicted }),
        }
    }

    /// Starts to read a record into a host slot.
    pub(in crate::embedded) fn load(&mut self, entry: EntryId, key: CopyKey) -> Result<(), CopyEnd> {
        let disk = self.disk();
        let host = self.tiers.host.as_ref().ok_or(CopyEnd::Full)?;
        let sealed = self.sealed(entry, key)?;
        let slot = host.tier.reserve(key).map_err(|error| end_of(&error))?;
        let place = slot.place();
        let memory = Memory::Lent {
            region: disk.regions[place.extent as usize].clone(),
            offset: place.offset,
            bytes: place.bytes,
            guard: Box::new(slot),
        };
        let op = disk.tier().read(key, disk.shape, memory);
        self.state.disk.loads.push(Load { op, entry, sealed });
        Ok(())
    }

    /// A device copy is about to go: its last chance to be copied out.
    pub(in crate::embedded) fn before_drop(&mut self, key: &CopyKey) {
        if let Some(index) = self.state.disk.waiting.iter().position(|waiting| waiting.key == *key)
            && !self.tiers.host.as_ref().is_some_and(|host| matches!(host.tier.lookup(key), Lookup::Hit(_)))
        {
            let waiting = self.state.disk.waiting.remove(index).expect("it was just found");
            self.state.disk.waiting.push_front(waiting);
            self.copy_out_first(LAST_CHANCE);
        }
    }

    /// Copies waiting blocks out, in order, while bounce memory is free; waits at most so long for the first one.
    pub(in crate::embedded) fn copy_out_waiting(&mut self, patience: Duration) {
        let mut patience = patience;
        while !self.state.disk.waiting.is_empty() && self.copy_out_first(patience) {
            patience = Duration::ZERO;
        }
    }

    /// Copies the first waiting block out, or finds that it is not to be had any more; false when there is no bounce memory.
    fn copy_out_first(&mut self, patience: Duration) -> bool {
        let Some(waiting) = self.state.disk.waiting.front().copied() else {
            return false;
        };
        let until = Instant::now() + patience;
        loop {
            match self.copy_out(waiting) {
                CopiedOut::Started => {}
                CopiedOut::NoSource => {
                    self.state.disk.dropped_stores += 1;
                    self.feed(Event::Stored { key: waiting.key, spill: waiting.is_live, end: CopyEnd::Full });
                }
                CopiedOut::NoRoom if Instant::now() < until => {
                    self.disk().tier().wait(LOOK_MILLIS);
                    self.collect_disk();
                    continue;
                }
                CopiedOut::NoRoom => return false,
            }
            self.state.disk.waiting.pop_front();
            return true;
        }
    }

    fn copy_out(&mut self, Waiting { key, is_live }: Waiting) -> CopiedOut {
        let disk = self.disk();
        let memory = if let Lookup::Hit(lease) = self.tiers.device.lookup(&key) {
            let Some(bounce) = disk.images.take() else {
                return CopiedOut::NoRoom;
            };
            let device = self.tiers.device.range(lease.place());
            let piece = CopyPiece { host: bounce.host(), device };
            if self.enqueue(Stream::CopyOut, piece).and_then(|()| self.wait(Stream::CopyOut)).is_err() {
                return CopiedOut::NoSource;
            }
            bounce.memory(device.bytes)
        } else {
            let lookup = self.tiers.host.as_ref().map(|host| host.tier.lookup(&key));
            let Some(Lookup::Hit(lease)) = lookup else {
                return CopiedOut::NoSource;
            };
            // The lease keeps the copy in its slot until it is written.
            let place = lease.place();
            let region = disk.regions[place.extent as usize].clone();
            Memory::Lent { region, offset: place.offset, bytes: place.bytes, guard: Box::new(lease) }
        };
        let op = disk.tier().submit_write(WriteRequest { key, shape: Some(disk.shape), memory, is_live });
        self.state.disk.stores.insert(op, Waiting { key, is_live });
        CopiedOut::Started
    }

    /// Feeds in what the disk has ended; true when that was anything.
    pub(in crate::embedded) fn collect_disk(&mut self) -> bool {
        let Some(disk) = &self.tiers.disk else {
            return false;
        };
        let books = &mut self.state.disk;
        let ended: Vec<DiskDone> = books.stores.keys().filter_map(|op| disk.port.take(*op)).collect();
        let stores: Vec<(Waiting, DiskDone)> =
            ended.into_iter().filter_map(|done| Some((books.stores.remove(&done.op)?, done))).collect();
        let mut loads = Vec::new();
        books.loads.retain_mut(|load| match disk.port.take(load.op) {
            Some(done) => {
                loads.push((load.entry, load.sealed, done));
                false
            }
            None => true,
        });
        let any = !stores.is_empty() || !loads.is_empty();
        stores.into_iter().for_each(|(store, done)| self.stored(store, done));
        for (entry, sealed, done) in loads {
            let end = loaded(done, &sealed);
            self.feed(Event::Loaded { entry, end });
        }
        any
    }

    /// Waits until the disk has ended something; false when nothing is under way there.
    pub(in crate::embedded) fn await_disk(&mut self) -> bool {
        let Some(disk) = &self.tiers.disk else {
            return false;
        };
        self.copy_out_waiting(Duration::ZERO);
        let until = Instant::now() + PATIENCE;
        while !self.state.disk.stores.is_empty() || !self.state.disk.loads.is_empty() {
            if self.collect_disk() {
                return true;
            }
            if Instant::now() >= until {
                self.give_up_on_disk();
                return true;
            }
            disk.tier().wait(LOOK_MILLIS);
        }
        false
    }

    /// The tier has broken its word on deadlines: whoever waits is told that it failed.
    fn give_up_on_disk(&mut self) {
        let disk = self.disk();
        for (op, Waiting { key, is_live }) in std::mem::take(&mut self.state.disk.stores) {
            disk.port.forget(op);
            self.feed(Event::Stored { key, spill: is_live, end: CopyEnd::Failed });
        }
        for load in std::mem::take(&mut self.state.disk.loads) {
            disk.port.forget(load.op);
            self.feed(Event::Loaded { entry: load.entry, end: CopyEnd::Failed });
        }
    }

    fn stored(&mut self, Waiting { key, is_live }: Waiting, done: DiskDone) {
        let tier = self.disk().tier();
        // Held while the shard hears of the record, which it may then want pinned.
        let pin = if done.result.is_ok() { tier.pin(&key) } else { None };
        let end = match done.result {
            Ok(DiskOk::Written | DiskOk::Present) if pin.is_some() => CopyEnd::Done,
            Ok(_) | Err(DiskEnd::Full | DiskEnd::Refused(_)) => CopyEnd::Full,
            Err(_) => CopyEnd::Failed,
        };
        self.state.disk.dropped_stores += u64::from(end != CopyEnd::Done);
        self.feed(Event::Stored { key, spill: is_live, end });
    }
}

/// Commits what a load has brought.
fn loaded(done: DiskDone, sealed: &cache_core::store::Sealed) -> CopyEnd {
    match (done.result, done.memory) {
        (Ok(DiskOk::Read), Some(Memory::Lent { guard, .. })) => {
            let slot = guard.downcast::<Slot>().expect("a load's memory is a slot");
            match slot.commit(sealed) {
                Ok(()) => CopyEnd::Done,
                Err((_, error)) => end_of(&error),
            }
        }
        (Err(DiskEnd::Miss(MissReason::FailedCheck)), _) => CopyEnd::Damaged,
        (Err(DiskEnd::Miss(MissReason::Evicted | MissReason::NeverStored)), _) => CopyEnd::SourceLost,
        _ => CopyEnd::Failed,
    }
}
