//! Performs the shards' actions on slots and disk, in order, as a daemon's driver and an engine's do; ends come back on virtual time.

use std::collections::VecDeque;

use cache_core::key::CopyKey;
use cache_core::manager::{Action, CopyEnd, EntryId, Event};
use cache_core::miss::MissReason;
use cache_core::store::StoreError;
use cache_core::units::Tier;

use super::disk::{End, HANGS, Work};
use super::engine::Copying;
use super::memory::{Bytes, Place};
use super::world::{Happening, Kind, MICROS, World};
use super::{Bug, Checked, must};

/// Actions still to be performed, and answers to whoever asked.
#[derive(Default)]
struct Round {
    queue: VecDeque<Action>,
    answers: Vec<Action>,
}

fn end_of(error: &StoreError) -> CopyEnd {
    match error {
        StoreError::Full { .. } => CopyEnd::Full,
        StoreError::Check(_) => CopyEnd::Damaged,
        _ => CopyEnd::Failed,
    }
}

impl World {
    /// Feeds an event in and performs everything that follows from it at once; the answers.
    pub fn feed(&mut self, room: usize, event: Event<'_>) -> Result<Vec<Action>, String> {
        let mut round = Round::default();
        self.tell(room, event, &mut round);
        while let Some(action) = round.queue.pop_front() {
            self.perform(room, action, &mut round)?;
        }
        Ok(round.answers)
    }

    /// Feeds an event in that has no answer.
    pub fn feed_quietly(&mut self, room: usize, event: Event<'_>) -> Checked {
        let answers = self.feed(room, event)?;
        must!(answers.is_empty(), "{answers:?} to nobody");
        Ok(())
    }

    fn tell(&mut self, room: usize, event: Event<'_>, round: &mut Round) {
        let now = self.moment();
        let actions = self.shard_mut(room).on(event, now);
        round.queue.extend(actions);
    }

    fn perform(&mut self, room: usize, action: Action, round: &mut Round) -> Checked {
        match action {
            Action::Drop { key, tier: Tier::Device, .. } => self.drop_device(room, key),
            Action::Drop { entry, key, .. } => self.drop_host(room, entry, key, round),
            Action::Discard { tier: Tier::Disk, .. } => Ok(()),
            Action::Discard { key, tier } => {
                self.discard(room, &key, tier == Tier::Host);
                Ok(())
            }
            Action::Demote { entry, key } => self.demote(room, entry, key, round),
            Action::Promote { entry, key } if self.rooms[room].budgets.host_slots > 0 => {
                self.promote(room, entry, key, round)
            }
            Action::Promote { entry, key } => self.read(room, entry, key, false, round),
            Action::Load { entry, key } => self.read(room, entry, key, true, round),
            Action::Store { key, spill, .. } => self.store(room, key, spill, round),
            Action::Pin { entry, key } => {
                if self.bug != Bug::ForgottenPin && !self.disk.pin(key) {
                    must!(!self.disk.pins.contains(&key), "{key:?} is pinned twice");
                    self.tell(room, Event::Lost { entry, tier: Tier::Disk, reason: MissReason::Evicted }, round);
                    self.disk.pins.insert(key);
                }
                Ok(())
            }
            Action::Unpin { key } => {
                let was_pinned = self.disk.pins.remove(&key) || self.bug == Bug::ForgottenPin;
                must!(was_pinned, "{key:?} is unpinned and was not pinned");
                Ok(())
            }
            Action::Promoted { ticket, .. } => {
                if let Some(has_ended) = self.awaited.get_mut(&ticket) {
                    *has_ended = true;
                }
                self.promotion_told(ticket);
                Ok(())
            }
            Action::Granted { ticket, slots } if self.kind == Kind::Engine => self.granted(room, ticket, slots),
            Action::Refused { ticket, .. } | Action::PendingElsewhere { ticket } if self.kind == Kind::Engine => {
                self.count("refused");
                self.refused(ticket);
                Ok(())
            }
            Action::Committed { inserted, .. } if self.kind == Kind::Engine => {
                round.answers.push(action);
                self.seal(room, inserted)
            }
            answer => {
                round.answers.push(answer);
                Ok(())
            }
        }
    }

    fn drop_device(&mut self, room: usize, key: CopyKey) -> Checked {
        let key = self.victim(room, key);
        if let Some((id, _)) = self.leaseholder(room, &key) {
            return Err(format!("{key:?} is evicted and is read by client {id}"));
        }
        let live = self.shard(room).view(&key).is_some_and(|(_, view)| view.live > 0);
        let elsewhere = self.rooms[room].host.find(&key).is_some() || self.disk.pins.contains(&key);
        must!(!live || elsewhere, "the last copy of {key:?}, which is read, is dropped");
        self.count("evictions");
        let device = &mut self.rooms[room].device;
        must!(device.find(&key).is_some(), "{key:?} is dropped from device memory where it is not");
        if device.table.remove(&key).is_err() {
            device.table.revoke(&key);
        }
        Ok(())
    }

    /// The victim, unless a planted bug takes one that is leased.
    fn victim(&self, room: usize, key: CopyKey) -> CopyKey {
        let leased = self.clients.values().filter(|client| client.room == room).find_map(|client| client.some_lease());
        leased.filter(|_| self.bug == Bug::LeasedEvicted).unwrap_or(key)
    }

    fn drop_host(&mut self, room: usize, entry: EntryId, key: CopyKey, round: &mut Round) -> Checked {
        let host = &mut self.rooms[room].host;
        must!(host.find(&key).is_some(), "{key:?} is dropped from the host where it is not");
        let refused = match self.bug {
            Bug::LeasedEvicted => {
                host.table.revoke(&key);
                false
            }
            _ => host.table.remove(&key).is_err(),
        };
        self.tell(room, Event::Dropped { entry, refused }, round);
        Ok(())
    }

    /// A copy that must not be read again: its readers know by its generation.
    fn discard(&mut self, room: usize, key: &CopyKey, is_host: bool) {
        let memory = if is_host { &mut self.rooms[room].host } else { &mut self.rooms[room].device };
        if let Some(place) = memory.find(key) {
            memory.table.revoke(key);
            self.excused.insert((room, is_host, place));
        }
    }

    fn demote(&mut self, room: usize, entry: EntryId, key: CopyKey, round: &mut Round) -> Checked {
        let Some(source) = self.rooms[room].device.find(&key) else {
            return Err(format!("{key:?} is demoted from device memory where it is not"));
        };
        match self.rooms[room].host.reserve(Some(key)) {
            Ok(place) => self.copy(Copying { room, entry, key, is_up: false, source, place }),
            Err(error) => self.tell(room, Event::Demoted { entry, end: end_of(&error) }, round),
        }
        Ok(())
    }

    fn promote(&mut self, room: usize, entry: EntryId, key: CopyKey, round: &mut Round) -> Checked {
        let Some(source) = self.rooms[room].host.lease(&key) else {
            return Err(format!("{key:?} is promoted from the host where it is not"));
        };
        match self.rooms[room].device.reserve(Some(key)) {
            Ok(place) => self.copy(Copying { room, entry, key, is_up: true, source, place }),
            Err(error) => {
                self.rooms[room].host.release(source);
                self.tell(room, Event::Onboarded { entry, end: end_of(&error) }, round);
            }
        }
        Ok(())
    }

    fn copy(&mut self, copying: Copying) {
        let number = self.number();
        self.copies.insert(number, copying);
        let after = 10 * MICROS + self.random.below(200) as u64 * MICROS;
        self.happens(after, Happening::CopyEnds(number));
    }

    pub fn copy_ends(&mut self, number: u64) -> Checked {
        let Some(Copying { room, entry, key, is_up, source, place }) = self.copies.remove(&number) else {
            return Ok(());
        };
        let fails = self.failures && self.random.chance(3);
        let Room2 { from, to } = Room2::of(&mut self.rooms[room], is_up);
        let end = if !from.is_current(source) {
            to.abandon(place);
            CopyEnd::SourceLost
        } else if fails {
            to.abandon(place);
            CopyEnd::Failed
        } else {
            to.fill(place, from.read(source.slot));
            to.commit(place, key, true).map_or_else(|error| end_of(&error), |_| CopyEnd::Done)
        };
        if is_up {
            from.release(source);
            self.count("promotions");
            return self.feed_quietly(room, Event::Onboarded { entry, end });
        }
        self.count("demotions");
        self.feed_quietly(room, Event::Demoted { entry, end })
    }

    /// Starts to read a record into a slot.
    fn read(&mut self, room: usize, entry: EntryId, key: CopyKey, into_host: bool, round: &mut Round) -> Checked {
        let pinned = self.disk.pins.contains(&key) || self.bug == Bug::ForgottenPin;
        must!(pinned, "{key:?} is loaded and not pinned");
        let memory = if into_host { &mut self.rooms[room].host } else { &mut self.rooms[room].device };
        match memory.reserve(Some(key)) {
            Ok(place) => self.submit(Work::Read { room, entry, key, into_host, place }),
            Err(error) => {
                let end = end_of(&error);
                let event = if into_host { Event::Loaded { entry, end } } else { Event::Onboarded { entry, end } };
                self.tell(room, event, round);
            }
        }
        Ok(())
    }

    /// Starts to write a block: a daemon from its slot, which a lease keeps, an engine from a copy.
    fn store(&mut self, room: usize, key: CopyKey, spill: bool, round: &mut Round) -> Checked {
        let Some(source) = self.rooms[room].device.find(&key) else {
            return Err(format!("{key:?} is stored from device memory where it is not"));
        };
        if !spill && self.random.chance(10) {
            self.tell(room, Event::Stored { key, spill, end: CopyEnd::Full }, round);
            return Ok(());
        }
        if spill {
            self.count("spills");
        }
        let bytes = self.rooms[room].device.read(source.slot);
        let lease = if self.kind == Kind::Daemon { self.rooms[room].device.lease(&key) } else { None };
        self.submit(Work::Write { room, key, bytes, spill, lease, reader: None });
        Ok(())
    }

    pub fn submit(&mut self, work: Work) {
        let (number, ends) = self.disk.submit(work, self.now, &mut self.random);
        if ends - self.now == HANGS {
            self.count("reads that hung");
        }
        self.happens(ends - self.now, Happening::OperationEnds(number));
    }

    pub fn operation_ends(&mut self, number: u64) -> Checked {
        self.disk.finish(number, self.now, &mut self.random);
        if matches!(self.disk.operations.get(&number).map(|operation| operation.work), Some(Work::Write { .. })) {
            // Whoever takes it in finds the record pinned until then.
            return self.end_is_taken(number);
        }
        let most = if self.random.chance(85) { 100 } else { 4_000 };
        let after = self.random.below(most) as u64 * MICROS;
        self.happens(after, Happening::EndIsTaken(number));
        Ok(())
    }

    pub fn end_is_taken(&mut self, number: u64) -> Checked {
        let Some((work, end, bytes)) = self.disk.take(number) else {
            return Ok(());
        };
        match work {
            Work::Read { room, entry, key, into_host, place } => {
                self.count("loads");
                let end = self.arrived(room, key, into_host, place, end, bytes);
                let event = if into_host { Event::Loaded { entry, end } } else { Event::Onboarded { entry, end } };
                self.feed_quietly(room, event)
            }
            Work::Write { room, key, spill, lease, reader, .. } => {
                // Held while the shard hears of it: nothing reclaims in between.
                let end = match end {
                    End::Done => CopyEnd::Done,
                    End::Full => CopyEnd::Full,
                    _ => CopyEnd::Failed,
                };
                lease.into_iter().for_each(|lease| self.rooms[room].device.release(lease));
                self.feed_quietly(room, Event::Stored { key, spill, end })?;
                match reader {
                    Some(entry) => self.feed_quietly(room, Event::Release { entries: &[entry] }),
                    None => Ok(()),
                }
            }
            Work::Stage { sequence, key } => self.staged(sequence, &key, end, bytes),
        }
    }

    /// What a read has brought is verified and committed, or its slot is free again.
    fn arrived(
        &mut self,
        room: usize,
        key: CopyKey,
        into_host: bool,
        place: Place,
        end: End,
        bytes: Option<Bytes>,
    ) -> CopyEnd {
        let verifies = self.bug != Bug::Unverified;
        let memory = if into_host { &mut self.rooms[room].host } else { &mut self.rooms[room].device };
        let bytes = bytes.or((end == End::Damaged).then_some(Bytes { of: 1, born: 0 }));
        match (end, bytes) {
            (End::Done | End::Damaged, Some(bytes)) => {
                memory.fill(place, bytes);
                memory.commit(place, key, verifies).map_or_else(|error| end_of(&error), |_| CopyEnd::Done)
            }
            (end, _) => {
                memory.abandon(place);
                if end == End::Lost { CopyEnd::SourceLost } else { CopyEnd::Failed }
            }
        }
    }
}

/// The two memories of a copy.
struct Room2<'a> {
    from: &'a mut super::memory::Memory,
    to: &'a mut super::memory::Memory,
}

impl<'a> Room2<'a> {
    fn of(room: &'a mut super::world::Room, is_up: bool) -> Room2<'a> {
        let super::world::Room { device, host, .. } = room;
        if is_up { Room2 { from: host, to: device } } else { Room2 { from: device, to: host } }
    }
}
