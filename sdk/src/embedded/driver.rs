//! Performs the shard's actions on the tiers, in order, and feeds their ends back until nothing is left to do.
//!
//! Copies are enqueued as they come. A demotion is `reserve` in the host, copy out of the whole slot image, `commit` in the host (which
//! verifies what arrived); the device copy goes when the shard says so, after that. A promotion is the same the other way round, under a
//! host lease that is validated after the copy. Demotions of a round are awaited together. Promotions are awaited one by one, and only when
//! the disk has brought nothing: a block that it brings follows the copies that are under way.

use std::collections::VecDeque;
use std::time::Duration;

use cache_core::form::Lineage;
use cache_core::hash::Namespace;
use cache_core::key::CopyKey;
use cache_core::manager::{Action, CopyEnd, EntryId, Event, Shortage};
use cache_core::store::{Lease, Lend, Lookup, Resident, Sealed, Slot, StoreError};
use cache_core::units::{Now, Tier};
use gpu_tier::DeviceError;
use gpu_tier::attention::Attention;
use gpu_tier::device::{CopyPiece, Event as DeviceEvent, HostRange, Stream};

use crate::cache::{Committed, NoRoom};
use crate::embedded::disk::Waiting;
use crate::embedded::state::State;
use crate::embedded::{Embedded, Host, Tiers};

/// What a shard answered, once all actions on the way there are performed.
#[derive(Debug)]
pub(crate) enum Answer {
    Granted,
    PendingElsewhere,
    Refused(NoRoom),
    Acquired(Vec<(EntryId, Tier)>, Option<cache_core::miss::MissReason>),
    Committed(EntryId, Committed),
    Promoted { arrived: u32, loaded: u32 },
}

struct Demotion {
    entry: EntryId,
    sealed: Sealed,
    slot: Slot,
}

struct Promotion {
    entry: EntryId,
    sealed: Sealed,
    slot: Slot,
    lease: Lease,
    /// Done when the bytes have arrived.
    copied: DeviceEvent,
}

/// One run of the driver: lives as long as the state lock is held.
pub(crate) struct Driver<'a> {
    device: &'a dyn Attention,
    pub(in crate::embedded) tiers: &'a Tiers,
    pub(in crate::embedded) state: &'a mut State,
    namespace: Namespace,
    now: Now,
    queue: VecDeque<Action>,
    demotions: Vec<Demotion>,
    /// In the order of their copies.
    promotions: VecDeque<Promotion>,
    answer: Option<Answer>,
    /// The first device error of the run.
    failure: Option<DeviceError>,
}

impl<'a> Driver<'a> {
    pub(crate) fn new(cache: &'a Embedded, state: &'a mut State, namespace: Namespace) -> Driver<'a> {
        let now = cache.now();
        if let Some(host) = &cache.tiers.host {
            host.tier.advance(now);
        }
        Driver {
            device: &*cache.device,
            tiers: &cache.tiers,
            state,
            namespace,
            now,
            queue: VecDeque::new(),
            demotions: Vec::new(),
            promotions: VecDeque::new(),
            answer: None,
            failure: None,
        }
    }

    /// Feeds one event in and performs everything that follows from it. A device error does not stop the run: its copies have failed.
    pub(crate) fn run(mut self, event: Event<'_>) -> (Option<Answer>, Option<DeviceError>) {
        // A block that is just being committed cannot be copied out before its slot is.
        let copies_out = !matches!(event, Event::Commit { .. });
        let asks =
            matches!(event, Event::Acquire { .. } | Event::Room { .. } | Event::Promote { .. } | Event::Load { .. });
        self.collect_disk();
        self.feed(event);
        loop {
            self.settle();
            if asks && self.answer.is_none() && self.await_disk() {
                continue;
            }
            if copies_out {
                self.send_below();
            }
            if self.is_settled() {
                return (self.answer, self.failure);
            }
        }
    }

    /// Feeds one event in whose answer nobody waits for: what it starts on the disk goes on by itself.
    pub(crate) fn start(mut self, event: Event<'_>) {
        self.collect_disk();
        self.feed(event);
        self.settle();
    }

    /// Takes in what the disk has ended, and copies waiting blocks out while there is bounce memory; hands them over to a daemon.
    pub(crate) fn tend_below(mut self) {
        self.collect_disk();
        loop {
            self.settle();
            self.send_below();
            if self.is_settled() {
                return;
            }
        }
    }

    /// Starts to write published blocks to whatever is below.
    fn send_below(&mut self) {
        if self.tiers.parent.is_some() {
            self.hand_over_waiting();
        } else if self.tiers.disk.is_some() {
            self.copy_out_waiting(Duration::ZERO);
        }
    }

    /// Performs actions until there are none and every copy between slots has ended.
    fn settle(&mut self) {
        loop {
            while let Some(action) = self.queue.pop_front() {
                self.perform(action);
            }
            if self.is_settled() {
                return;
            }
            self.finish_demotions();
            let brought = !self.state.disk.loads.is_empty() && self.collect_disk();
            if !brought && self.queue.is_empty() {
                self.finish_promotion();
            }
        }
    }

    fn is_settled(&self) -> bool {
        self.queue.is_empty() && self.demotions.is_empty() && self.promotions.is_empty()
    }

    pub(in crate::embedded) fn feed(&mut self, event: Event<'_>) {
        self.queue.extend(self.state.shard_mut(self.namespace).on(event, self.now));
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Drop { key, tier: Tier::Device, .. } => {
                match self.tiers.parent {
                    Some(_) => self.hand_over_last(&key),
                    None => self.before_drop(&key),
                }
                self.free_device(&key);
            }
            Action::Discard { key, tier: Tier::Device } => self.free_device(&key),
            Action::Drop { entry, key, .. } => {
                let removed = self.tiers.host.as_ref().map_or(Ok(()), |host| host.tier.remove(&key));
                self.feed(Event::Dropped { entry, refused: removed.is_err() });
            }
            // The disk tier has taken out a record that failed its check when it told of it.
            Action::Discard { tier: Tier::Disk, .. } => {}
            Action::Discard { key, .. } => {
                if let Some(host) = &self.tiers.host {
                    host.tier.revoke(&key);
                }
            }
            Action::Demote { entry, key } => match self.start_demotion(entry, key) {
                Ok(demotion) => self.demotions.push(demotion),
                Err(end) => self.feed(Event::Demoted { entry, end }),
            },
            Action::Promote { entry, key } => match self.start_promotion(entry, key) {
                Ok(promotion) => self.promotions.push_back(promotion),
                Err(end) => self.feed(Event::Onboarded { entry, end }),
            },
            Action::Store { key, spill, .. } => match self.tiers.parent {
                Some(_) if spill => self.hand_over_one(Waiting { key, is_live: true }),
                Some(_) if self.is_kept_out(&key) => self.feed(Event::Stored { key, spill, end: CopyEnd::Full }),
                // A block that is just being committed is handed over as soon as its slot is.
                Some(_) => self.state.disk.waiting.push_back(Waiting { key, is_live: false }),
                None => self.store(key, spill),
            },
            Action::Load { entry, key } => {
                if let Err(end) = self.load(entry, key) {
                    self.feed(Event::Loaded { entry, end });
                }
            }
            Action::Pin { entry, key } if self.tiers.parent.is_some() => self.lease(entry, key),
            Action::Pin { entry, key } => self.pin(entry, key),
            Action::Unpin { key } => {
                self.state.disk.pins.remove(&key);
                self.state.leases.pinned.remove(&key);
            }
            Action::Acquired { hits, miss } => self.answer = Some(Answer::Acquired(hits, miss)),
            Action::Granted { .. } => self.answer = Some(Answer::Granted),
            Action::PendingElsewhere { .. } => self.answer = Some(Answer::PendingElsewhere),
            Action::Refused { shortage, .. } => self.answer = Some(Answer::Refused(no_room(shortage))),
            Action::Committed { entry, inserted } => {
                let how = if inserted { Committed::Inserted } else { Committed::Present };
                self.answer = Some(Answer::Committed(entry, how));
            }
            Action::Promoted { ticket, .. } if self.state.unawaited.remove(&ticket) => {}
            Action::Promoted { arrived, loaded, .. } => self.answer = Some(Answer::Promoted { arrived, loaded }),
        }
    }

    /// Device leases live as long as one call under the state lock; the slot is free at once.
    fn free_device(&mut self, key: &CopyKey) {
        self.tiers.device.revoke(key);
        self.tiers.device.advance(self.now);
    }

    fn start_demotion(&mut self, entry: EntryId, key: CopyKey) -> Result<Demotion, CopyEnd> {
        let host = self.tiers.host.as_ref().ok_or(CopyEnd::Full)?;
        let sealed = self.sealed(entry, key)?;
        let Lookup::Hit(lease) = self.tiers.device.lookup(&key) else {
            return Err(CopyEnd::SourceLost);
        };
        let slot = host.tier.reserve(key).map_err(|error| end_of(&error))?;
        let piece = CopyPiece { host: host.range(slot.place()), device: self.tiers.device.range(lease.place()) };
        self.enqueue(Stream::CopyOut, piece)?;
        Ok(Demotion { entry, sealed, slot })
    }

    fn start_promotion(&mut self, entry: EntryId, key: CopyKey) -> Result<Promotion, CopyEnd> {
        let sealed = self.sealed(entry, key)?;
        let (host, lease) = match (&self.tiers.host, &self.tiers.parent) {
            (Some(host), _) => match host.tier.lookup(&key) {
                Lookup::Hit(lease) => (host.range(lease.place()), lease),
                _ => return Err(CopyEnd::SourceLost),
            },
            (None, Some(parent)) => {
                let lent = self.state.leases.pinned.get(&key).ok_or(CopyEnd::SourceLost)?;
                parent.place(lent).map_err(|error| self.failed(error))?
            }
            (None, None) => return Err(CopyEnd::SourceLost),
        };
        let slot = self.tiers.device.reserve(key).map_err(|error| end_of(&error))?;
        let piece = CopyPiece { host, device: self.tiers.device.range(slot.place()) };
        self.enqueue(Stream::CopyIn, piece)?;
        let copied = self.device.record(Stream::CopyIn).map_err(|error| self.failed(error))?;
        Ok(Promotion { entry, sealed, slot, lease, copied })
    }

    /// What the writer states about a copy that is moved: copies are never re-encoded on the way.
    pub(in crate::embedded) fn sealed(&self, entry: EntryId, key: CopyKey) -> Result<Sealed, CopyEnd> {
        let view = self.state.shard().entry(entry).ok_or(CopyEnd::SourceLost)?;
        Ok(Sealed { key, lineage: Lineage::of(key.form), link: view.link })
    }

    /// Copies start after the kernels enqueued so far: the target slot may have been read, the source slot written by one.
    pub(in crate::embedded) fn enqueue(&mut self, stream: Stream, piece: CopyPiece) -> Result<(), CopyEnd> {
        let device = self.device;
        let enqueued =
            device.record(Stream::Compute).and_then(|event| device.wait(stream, event)).and_then(|()| match stream {
                Stream::CopyOut => device.copy_out(stream, &[piece]),
                _ => device.copy_in(stream, &[piece]),
            });
        enqueued.map_err(|error| self.failed(error))
    }

    pub(in crate::embedded) fn failed(&mut self, error: DeviceError) -> CopyEnd {
        self.failure.get_or_insert(error);
        CopyEnd::Failed
    }

    /// Waits for everything enqueued on a copy stream.
    pub(in crate::embedded) fn wait(&mut self, stream: Stream) -> Result<(), CopyEnd> {
        let device = self.device;
        device.record(stream).and_then(|event| device.synchronize(event)).map_err(|error| self.failed(error))
    }

    fn finish_demotions(&mut self) {
        let demotions = std::mem::take(&mut self.demotions);
        if demotions.is_empty() {
            return;
        }
        let copied = self.wait(Stream::CopyOut);
        for Demotion { entry, sealed, slot } in demotions {
            let end = copied.err().unwrap_or_else(|| match slot.commit(&sealed) {
                Ok(()) => CopyEnd::Done,
                Err((_, error)) => end_of(&error),
            });
            self.feed(Event::Demoted { entry, end });
        }
    }

    /// Waits for the oldest promotion.
    fn finish_promotion(&mut self) {
        let Some(Promotion { entry, sealed, slot, lease, copied }) = self.promotions.pop_front() else {
            return;
        };
        let copied = self.device.synchronize(copied).map_err(|error| self.failed(error));
        let current = match &self.tiers.host {
            Some(host) => host.tier.is_current(&lease),
            None => self.state.leases.is_current(&sealed.key, &lease),
        };
        let end = match copied {
            Err(end) => end,
            Ok(()) if !current => CopyEnd::SourceLost,
            Ok(()) => match slot.commit(&sealed) {
                Ok(()) => CopyEnd::Done,
                Err((_, error)) => end_of(&error),
            },
        };
        self.feed(Event::Onboarded { entry, end });
    }
}

impl Host {
    /// A slot's place as a device knows it.
    pub(crate) fn range(&self, place: cache_core::store::SlotPlace) -> HostRange {
        HostRange { extent: self.extents[place.extent as usize], offset: place.offset, bytes: place.bytes }
    }
}

pub(in crate::embedded) fn end_of(error: &StoreError) -> CopyEnd {
    match error {
        StoreError::Full { .. } => CopyEnd::Full,
        StoreError::Check(_) => CopyEnd::Damaged,
        _ => CopyEnd::Failed,
    }
}

fn no_room(shortage: Shortage) -> NoRoom {
    let Shortage { wanted_slots, device_slots, device_live_slots, host_slots, host_live_slots, .. } = shortage;
    NoRoom { wanted_slots, device_slots, device_live_slots, host_slots, host_live_slots }
}
