//! Performs a class's actions on arena and disk, in order, and feeds their ends back.
//!
//! The shard's first place is the host arena, and the only one with slots: its *device* is our host (see [`Shard::lending`]). A block that is
//! published is written behind from its slot, where a lease and a reader of its own keep it until the write has ended; a block that only the disk has is read
//! into a slot before anybody gets it.
//!
//! [`Shard::lending`]: cache_core::manager::Shard::lending

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use cache_core::form::Lineage;
use cache_core::key::CopyKey;
use cache_core::manager::{Action, CopyEnd, EntryId, Event};
use cache_core::miss::MissReason;
use cache_core::store::{Lend, Lookup, OpId, Resident, Sealed, Slot};
use cache_core::units::{Now, Tier};
use disk_tier::io::Memory;
use disk_tier::{DiskDone, DiskEnd, DiskOk, DiskTier, Refusal, WriteRequest};

use crate::server::cache::State;
use crate::server::class::ClassId;
use crate::stats::{Amount, Operation};

/// A write under way.
pub(crate) struct Write {
    pub(crate) class: ClassId,
    pub(crate) key: CopyKey,
    /// The reader that keeps the block in its slot for the write's sake.
    pub(crate) reader: Option<EntryId>,
    /// When it was given to the disk.
    since: Instant,
}

impl Write {
    /// True when it is the write of this block, and nobody keeps the block for it yet.
    pub(crate) fn waits_for(&self, class: ClassId, key: &CopyKey) -> bool {
        self.reader.is_none() && self.class == class && self.key == *key
    }
}

/// A read under way; the slot that it fills travels with the operation's memory.
pub(crate) struct Load {
    class: ClassId,
    entry: EntryId,
    /// When the disk was asked for it.
    since: Instant,
}

/// What a load's memory is guarded by.
struct Filling {
    slot: Slot,
    sealed: Sealed,
}

/// One run over one class: lives as long as the state lock is held.
pub(crate) struct Driver<'a> {
    disk: Option<&'a DiskTier>,
    state: &'a mut State,
    class: ClassId,
    now: Now,
    queue: VecDeque<Action>,
    answers: Vec<Action>,
}

impl<'a> Driver<'a> {
    pub(crate) fn new(disk: Option<&'a DiskTier>, state: &'a mut State, class: ClassId, now: Now) -> Driver<'a> {
        state.class(class).host.advance(now);
        Driver { disk, state, class, now, queue: VecDeque::new(), answers: Vec::new() }
    }

    /// Feeds one event in, performs everything that follows from it, and returns the shard's answers.
    pub(crate) fn run(mut self, event: Event<'_>) -> Vec<Action> {
        let loaded = match &event {
            Event::Onboarded { entry, end: CopyEnd::Done } => Some(*entry),
            _ => None,
        };
        self.feed(event);
        self.watch_coming(loaded);
        while let Some(action) = self.queue.pop_front() {
            self.perform(action);
        }
        self.answers
    }

    /// An entry has got a copy in the arena.
    fn watch_coming(&mut self, entry: Option<EntryId>) {
        let shard = &self.state.class(self.class).shard;
        if let Some(key) = entry.and_then(|entry| shard.key(entry)).copied() {
            self.state.watched.came(&key, self.now);
        }
    }

    fn feed(&mut self, event: Event<'_>) {
        let actions = self.state.class_mut(self.class).shard.on(event, self.now);
        self.queue.extend(actions);
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Drop { key, tier: Tier::Device, .. } => {
                let shape = self.state.class(self.class).shape;
                self.state.moved.evicted += Amount::of(1, &shape);
                self.state.watched.evicted(&key, self.now);
                // Under a reader of the daemon's own, the scrubber, or one that has just vanished, the slot rests.
                let host = &self.state.class(self.class).host;
                if host.remove(&key).is_err() {
                    host.revoke(&key);
                }
            }
            Action::Discard { key, tier: Tier::Device } => {
                self.state.watched.lost(&key);
                self.state.class(self.class).host.revoke(&key);
            }
            // The disk tier has taken out a record that failed its check when it told of it.
            Action::Discard { tier: Tier::Disk, .. } => {}
            Action::Promote { entry, key } => {
                if let Err(end) = self.load(entry, key) {
                    self.feed(Event::Onboarded { entry, end });
                }
            }
            Action::Store { key, spill, .. } => {
                if self.write(key, None).is_none() {
                    self.feed(Event::Stored { key, spill, end: CopyEnd::Full });
                }
            }
            Action::Pin { entry, key } => match self.disk.and_then(|disk| disk.pin(&key)) {
                Some(pin) => drop(self.state.pins.insert(key, pin)),
                None => self.feed(Event::Lost { entry, tier: Tier::Disk, reason: MissReason::Evicted }),
            },
            Action::Unpin { key } => drop(self.state.pins.remove(&key)),
            Action::Promoted { ticket, .. } => {
                // Whoever asked may have given up waiting.
                if let Some(has_ended) = self.state.awaited.get_mut(&ticket) {
                    *has_ended = true;
                }
            }
            Action::Demote { .. } | Action::Load { .. } | Action::Drop { .. } | Action::Discard { .. } => {
                unreachable!("a lending shard has no second place of slots: {action:?}")
            }
            answer => {
                if let Action::Committed { entry, inserted: true } = answer {
                    self.watch_coming(Some(entry));
                }
                self.answers.push(answer);
            }
        }
    }

    /// Starts to read a record into a slot.
    fn load(&mut self, entry: EntryId, key: CopyKey) -> Result<(), CopyEnd> {
        let disk = self.disk.ok_or(CopyEnd::SourceLost)?;
        let class = self.state.class(self.class);
        let link = class.shard.entry(entry).ok_or(CopyEnd::SourceLost)?.link;
        let sealed = Sealed { key, lineage: Lineage::of(key.form), link };
        let slot = class.host.reserve(key).map_err(|_| CopyEnd::Full)?;
        let place = slot.place();
        let memory = Memory::Lent {
            region: class.regions[place.extent as usize].clone(),
            offset: place.offset,
            bytes: place.bytes,
            guard: Box::new(Filling { slot, sealed }),
        };
        let since = Instant::now();
        let op = disk.read(key, class.shape, memory);
        self.state.loads.insert(op, Load { class: self.class, entry, since });
        Ok(())
    }

    /// Starts to write a block from its slot; `None` when it is not there any more.
    fn write(&mut self, key: CopyKey, reader: Option<EntryId>) -> Option<OpId> {
        let class = self.state.class(self.class);
        let (disk, Lookup::Hit(lease)) = (self.disk?, class.host.lookup(&key)) else {
            return None;
        };
        let place = lease.place();
        let region = class.regions[place.extent as usize].clone();
        let memory = Memory::Lent { region, offset: place.offset, bytes: place.bytes, guard: Box::new(lease) };
        let since = Instant::now();
        let op = disk.submit_write(WriteRequest { key, shape: None, memory, is_live: false });
        self.state.writes.insert(op, Write { class: self.class, key, reader, since });
        Some(op)
    }
}

/// Starts the writes again that came while the disk's index was still being read.
pub(crate) fn resume(disk: &DiskTier, state: &mut State, now: Now) {
    for write in std::mem::take(&mut state.deferred) {
        if Driver::new(Some(disk), state, write.class, now).write(write.key, write.reader).is_none() {
            end_write(disk, state, now, write, CopyEnd::Full);
        }
    }
}

/// Tells the shard how a write has ended, and lets go of what kept its block.
fn end_write(disk: &DiskTier, state: &mut State, now: Now, write: Write, end: CopyEnd) {
    let Write { class, key, reader, .. } = write;
    Driver::new(Some(disk), state, class, now).run(Event::Stored { key, spill: false, end });
    if let Some(entry) = reader {
        Driver::new(Some(disk), state, class, now).run(Event::Release { entries: &[entry] });
    }
}

/// What one operation of the disk has brought, its bytes verified and committed outside the state's lock.
pub(crate) struct Brought {
    done: DiskDone,
    committed: Option<CopyEnd>,
}

impl Brought {
    pub(crate) fn new(mut done: DiskDone) -> Brought {
        let memory = match (&done.result, done.memory.take()) {
            (Ok(DiskOk::Read), Some(Memory::Lent { guard, .. })) => guard,
            (_, memory) => {
                done.memory = memory;
                return Brought { done, committed: None };
            }
        };
        let filling = memory.downcast::<Filling>().expect("a read fills a slot");
        let Filling { slot, sealed } = *filling;
        let committed = match slot.commit(&sealed) {
            Ok(()) => CopyEnd::Done,
            Err(_) => CopyEnd::Damaged,
        };
        Brought { done, committed: Some(committed) }
    }

    /// Feeds it in. Returns how long it took when a block has moved.
    pub(crate) fn feed(self, disk: &DiskTier, state: &mut State, now: Now) -> Option<(Operation, Duration)> {
        let Brought { done, committed } = self;
        if let Some(load) = state.loads.remove(&done.op) {
            let end = committed.unwrap_or(match done.result {
                Err(DiskEnd::Miss(MissReason::FailedCheck)) => CopyEnd::Damaged,
                Err(DiskEnd::Miss(MissReason::Evicted | MissReason::NeverStored)) => CopyEnd::SourceLost,
                _ => CopyEnd::Failed,
            });
            // Its slot is free before the shard hears that nothing came.
            drop(done.memory);
            if end == CopyEnd::Done {
                let shape = state.class(load.class).shape;
                state.moved.loaded += Amount::of(1, &shape);
            }
            Driver::new(Some(disk), state, load.class, now).run(Event::Onboarded { entry: load.entry, end });
            (end == CopyEnd::Done).then(|| (Operation::Load, load.since.elapsed()))
        } else if let Some(write) = state.writes.remove(&done.op) {
            // Half of a class's slots at most are kept from going for a write that waits: an index that takes long must not leave the arena full.
            let may_wait = state.deferred.len() < state.class(write.class).host.layout().slots() as usize / 2;
            if may_wait && matches!(done.result, Err(DiskEnd::Refused(Refusal::Recovering))) {
                state.deferred.push(write);
                return None;
            }
            let took = matches!(done.result, Ok(DiskOk::Written)).then(|| (Operation::Write, write.since.elapsed()));
            // Held while the shard hears of the record, which it may then want pinned.
            let pin = if done.result.is_ok() { disk.pin(&write.key) } else { None };
            let end = match done.result {
                Ok(DiskOk::Written | DiskOk::Present) if pin.is_some() => CopyEnd::Done,
                Ok(_) | Err(DiskEnd::Full | DiskEnd::Refused(_)) => CopyEnd::Full,
                Err(_) => CopyEnd::Failed,
            };
            drop(done.memory);
            end_write(disk, state, now, write, end);
            took
        } else {
            None
        }
    }
}
