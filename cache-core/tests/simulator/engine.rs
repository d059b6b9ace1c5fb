//! Sequences of an engine over tiers of its own.

use cache_core::chain::Link;
use cache_core::hash::Namespace;
use cache_core::key::CopyKey;
use cache_core::manager::{Action, CopyState, EntryId, Event, Owner, Ticket};
use cache_core::miss::MissReason;
use cache_core::units::Tier;

use super::disk::{End, Work};
use super::memory::{Bytes, Place, digest};
use super::waits::What;
use super::world::{Happening, MICROS, World};
use super::{Bug, Checked, must};

/// A copy between device and host.
#[derive(Clone, Copy, Debug)]
pub struct Copying {
    pub room: usize,
    pub entry: EntryId,
    pub key: CopyKey,
    /// Host to device.
    pub is_up: bool,
    pub source: Place,
    pub place: Place,
}

/// A request for room whose owner does not wait any more.
pub struct Orphan {
    owner: u64,
    keys: Vec<Option<CopyKey>>,
}

/// An open block.
#[derive(Clone, Copy, Debug)]
struct Open {
    place: Place,
    opened_for: Option<CopyKey>,
    link: Link,
}

/// A block that is being read in place.
#[derive(Clone, Copy, Debug)]
struct Reading {
    key: CopyKey,
    is_host: bool,
    place: Place,
}

/// A request for room under way.
#[derive(Clone, Debug)]
struct Ask {
    ticket: Ticket,
    keys: Vec<Option<CopyKey>>,
    links: Vec<Link>,
    /// The lost block (by index) that is to be computed again.
    reopens: Option<usize>,
    granted: Option<Vec<Place>>,
}

/// One running sequence.
pub struct Sequence {
    pub room: usize,
    namespace: Namespace,
    chain: usize,
    pub held: Vec<(EntryId, CopyKey)>,
    open: Vec<Open>,
    reopened: Option<(usize, Place)>,
    asks: Option<Ask>,
    /// It does nothing before this wait is answered.
    waits: Option<u64>,
    reading: Option<Vec<Reading>>,
    /// The open block that is just being committed.
    commits: Option<(Place, CopyKey)>,
}

impl Sequence {
    /// Device slots of open blocks.
    pub fn open_slots(&self) -> u32 {
        self.open.len() as u32 + u32::from(self.reopened.is_some())
    }

    /// Slots that were granted and whose owner has not heard of it yet.
    pub fn granted_slots(&self) -> u32 {
        self.asks.as_ref().and_then(|ask| ask.granted.as_ref()).map_or(0, Vec::len) as u32
    }
}

impl World {
    pub fn open(&mut self, id: u64) {
        let chain = self.random.below(self.chains.len());
        let namespace = self.chains[chain].0;
        let sequence = Sequence {
            room: self.room_of(namespace),
            namespace,
            chain,
            held: Vec::new(),
            open: Vec::new(),
            reopened: None,
            asks: None,
            waits: None,
            reading: None,
            commits: None,
        };
        self.sequences.insert(id, sequence);
    }

    fn sequence(&mut self, id: u64) -> &mut Sequence {
        self.sequences.get_mut(&id).expect("it acts")
    }

    pub fn sequence_acts(&mut self, id: u64, is_over: bool) -> Checked {
        let Some(sequence) = self.sequences.get(&id) else {
            return Ok(());
        };
        let reopens = sequence.asks.as_ref().is_some_and(|ask| ask.reopens.is_some());
        if sequence.waits.is_some() || sequence.reading.is_some() {
            // It hangs up in the middle of something; a block that is to be computed again is waited for.
            return if reopens { Ok(()) } else { self.close(id) };
        }
        if is_over {
            return self.close(id);
        }
        match self.random.below(100) {
            0..5 => return self.close(id),
            5..20 => self.find(id)?,
            20..40 => self.reserve_blocks(id)?,
            40..66 => self.commit_block(id)?,
            66..76 => self.recompute(id)?,
            76..90 => self.read_blocks(id)?,
            90..95 => self.bring_nearer(id)?,
            95..98 if self.failures => self.damage(id)?,
            _ => drop(self.disk.reclaim(&mut self.random)),
        }
        self.goes_on_with(id);
        Ok(())
    }

    fn goes_on_with(&mut self, id: u64) {
        let busy = |sequence: &Sequence| sequence.waits.is_some() || sequence.reading.is_some();
        if self.sequences.get(&id).is_some_and(|sequence| !busy(sequence)) {
            self.soon(id);
        } else if self.random.chance(8) {
            let after = self.random.below(400) as u64 * MICROS;
            self.happens(after, Happening::Acts(id));
        }
    }

    fn rest(&self, id: u64) -> Vec<Link> {
        let sequence = &self.sequences[&id];
        let there = sequence.held.len() + sequence.open.len();
        self.chains[sequence.chain].1.get(there..).map(<[Link]>::to_vec).unwrap_or_default()
    }

    fn find(&mut self, id: u64) -> Checked {
        let Sequence { room, namespace, ref open, .. } = self.sequences[&id];
        let links = self.rest(id);
        if !open.is_empty() || links.is_empty() {
            return Ok(());
        }
        let keys: Vec<CopyKey> = links.iter().map(|link| CopyKey::exact(namespace, link.hash)).collect();
        let hits = self.make_live(room, &keys, &links)?;
        hits.iter().for_each(|_| self.count("hits"));
        let held = hits.iter().map(|(entry, _)| *entry).zip(keys);
        self.sequence(id).held.extend(held);
        if hits.iter().any(|(_, tier)| *tier == Tier::Disk) && self.random.chance(60) {
            return self.bring_nearer(id);
        }
        Ok(())
    }

    fn bring_nearer(&mut self, id: u64) -> Checked {
        if self.sequences[&id].waits.is_some() {
            return Ok(());
        }
        let room = self.sequences[&id].room;
        let entries: Vec<EntryId> = self.sequences[&id].held.iter().map(|(entry, _)| *entry).collect();
        let ticket = Ticket(self.number());
        let limit = (50 + self.random.below(30_000) as u64) * MICROS;
        let wait = self.wait(id, room, limit, What::Promotion { ticket });
        self.sequence(id).waits = Some(wait);
        let host_only = self.rooms[room].budgets.host_slots > 0 && self.random.chance(20);
        let entries = &entries;
        let event = if host_only { Event::Load { ticket, entries } } else { Event::Promote { ticket, entries } };
        self.feed_quietly(room, event)
    }

    /// A shard has answered a request for promotion.
    pub fn promotion_told(&mut self, ticket: Ticket) {
        let asks = |what: &What| matches!(what, What::Promotion { ticket: asked } if *asked == ticket);
        if let Some(wait) = self.waits.values_mut().find(|wait| asks(&wait.what)) {
            wait.has_ended = true;
        }
    }

    pub fn promotion_ended(&mut self, id: u64, _ticket: Ticket, has_ended: bool) -> Checked {
        // Who is too late goes on, and reads what is not there yet from the disk; the copies go on as well.
        self.count(if has_ended { "waits for promotions" } else { "waits for promotions that were too late" });
        self.sequence(id).waits = None;
        self.goes_on_with(id);
        Ok(())
    }

    fn reserve_blocks(&mut self, id: u64) -> Checked {
        let links = self.rest(id);
        if links.is_empty() || self.sequences[&id].open.len() > 3 {
            return Ok(());
        }
        let links = links[..(1 + self.random.below(3)).min(links.len())].to_vec();
        let (known, namespace) = (self.random.chance(70), self.sequences[&id].namespace);
        let keys = links.iter().map(|link| known.then(|| CopyKey::exact(namespace, link.hash))).collect();
        let limit = (20 + self.random.below(5_000) as u64) * MICROS;
        self.ask(id, keys, links, None, limit)
    }

    fn ask(
        &mut self,
        id: u64,
        keys: Vec<Option<CopyKey>>,
        links: Vec<Link>,
        reopens: Option<usize>,
        limit: u64,
    ) -> Checked {
        let room = self.sequences[&id].room;
        let ticket = Ticket(self.number());
        let wait = self.wait(id, room, limit, What::Room { ticket });
        let asks = Ask { ticket, keys: keys.clone(), links, reopens, granted: None };
        let sequence = self.sequence(id);
        (sequence.waits, sequence.asks) = (Some(wait), Some(asks));
        let held = u32::from(reopens.is_some());
        self.feed_quietly(room, Event::Room { ticket, owner: Owner(id), keys: &keys, held })
    }

    fn asker(&mut self, ticket: Ticket) -> Option<u64> {
        let asks = |sequence: &Sequence| sequence.asks.as_ref().is_some_and(|ask| ask.ticket == ticket);
        self.sequences.iter().find(|(_, sequence)| asks(sequence)).map(|(id, _)| *id)
    }

    fn room_told(&mut self, ticket: Ticket) {
        let asks = |what: &What| matches!(what, What::Room { ticket: asked } if *asked == ticket);
        if let Some(wait) = self.waits.values_mut().find(|wait| asks(&wait.what)) {
            wait.has_ended = true;
        }
    }

    pub fn granted(&mut self, room: usize, ticket: Ticket, slots: u32) -> Checked {
        if let Some(Orphan { owner, keys }) = self.orphans.remove(&ticket) {
            return self.feed_quietly(room, Event::Abandon { owner: Owner(owner), keys: &keys, held: 0 });
        }
        let id = self.asker(ticket).ok_or(format!("{ticket:?} is granted to nobody"))?;
        let mut places = Vec::new();
        for _ in 0..slots {
            let place = self.rooms[room].device.reserve(None);
            places.push(place.map_err(|error| format!("{slots} slots were granted that are not there: {error}"))?);
        }
        self.sequence(id).asks.as_mut().expect("it asks").granted = Some(places);
        self.room_told(ticket);
        Ok(())
    }

    pub fn refused(&mut self, ticket: Ticket) {
        self.orphans.remove(&ticket);
        self.room_told(ticket);
    }

    pub fn room_ended(&mut self, id: u64, ticket: Ticket, has_ended: bool) -> Checked {
        self.count("waits for room");
        let sequence = self.sequence(id);
        sequence.waits = None;
        let Ask { keys, links, reopens, granted, .. } = sequence.asks.take().expect("it waits for what it asked for");
        match granted {
            Some(places) => match reopens {
                Some(index) => sequence.reopened = Some((index, places[0])),
                None => {
                    let open = places.into_iter().zip(keys).zip(links);
                    let open = open.map(|((place, opened_for), link)| Open { place, opened_for, link });
                    sequence.open.extend(open);
                }
            },
            None if !has_ended => {
                must!(reopens.is_none(), "nobody has told {ticket:?} about a block that is to be computed again");
                self.orphans.insert(ticket, Orphan { owner: id, keys });
            }
            None => {}
        }
        self.goes_on_with(id);
        Ok(())
    }

    fn commit_block(&mut self, id: u64) -> Checked {
        let Sequence { room, namespace, .. } = self.sequences[&id];
        if self.sequences[&id].open.is_empty() {
            return Ok(());
        }
        let Open { place, opened_for, link } = self.sequence(id).open.remove(0);
        let key = CopyKey::exact(namespace, link.hash);
        let bytes = Bytes { of: digest(&key), born: self.now };
        self.rooms[room].device.fill(place, bytes);
        self.sequence(id).commits = Some((place, key));
        let event = Event::Commit { owner: Owner(id), opened_for, key, link, held: false };
        let entry = self.committed(room, event)?;
        self.sequence(id).held.push((entry, key));
        self.count("commits");
        Ok(())
    }

    fn committed(&mut self, room: usize, event: Event<'_>) -> Result<EntryId, String> {
        match self.feed(room, event)?[..] {
            [Action::Committed { entry, .. }] => Ok(entry),
            ref other => Err(format!("{other:?} to a commit")),
        }
    }

    /// The shard has taken a block, or has it already: its slot becomes visible, or is free again.
    pub fn seal(&mut self, room: usize, inserted: bool) -> Checked {
        let commits = self.sequences.values_mut().find_map(|sequence| sequence.commits.take());
        let (place, key) = commits.ok_or("nobody commits anything")?;
        if !inserted {
            self.rooms[room].device.abandon(place);
            return Ok(());
        }
        let sealed = self.rooms[room].device.commit(place, key, true);
        sealed.map(drop).map_err(|error| format!("{key:?} was taken and is not: {error}"))
    }

    /// A lost block is computed again, in two acts.
    fn recompute(&mut self, id: u64) -> Checked {
        let room = self.sequences[&id].room;
        if let Some((index, place)) = self.sequence(id).reopened.take() {
            let (entry, key) = self.sequences[&id].held[index];
            let link = self.shard(room).entry(entry).ok_or(format!("{entry:?} is held and unknown"))?.link;
            self.rooms[room].device.fill(place, Bytes { of: digest(&key), born: self.now });
            self.sequence(id).commits = Some((place, key));
            let event = Event::Commit { owner: Owner(id), opened_for: Some(key), key, link, held: true };
            let found = self.committed(room, event)?;
            must!(found == entry, "{key:?} was computed again for another entry");
            self.count("blocks computed again");
            return Ok(());
        }
        let shard = self.shard(room);
        let is_lost = |(entry, _): &(EntryId, CopyKey)| shard.entry(*entry).is_some_and(|view| view.loss.is_some());
        let Some(index) = self.sequences[&id].held.iter().position(is_lost) else {
            return Ok(());
        };
        let (entry, key) = self.sequences[&id].held[index];
        let link = self.shard(room).entry(entry).ok_or(format!("{entry:?} is held and unknown"))?.link;
        self.ask(id, vec![Some(key)], vec![link], Some(index), 10_000_000 * MICROS)
    }

    /// A step reads some blocks where they are.
    fn read_blocks(&mut self, id: u64) -> Checked {
        let room = self.sequences[&id].room;
        let held = self.sequences[&id].held.clone();
        if held.is_empty() {
            return Ok(());
        }
        let first = self.random.below(held.len());
        let mut reading = Vec::new();
        for (entry, key) in held.into_iter().skip(first).take(6) {
            let copies = self.shard(room).entry(entry).ok_or(format!("{entry:?} is held and unknown"))?.copies;
            if let Some(place) = self.rooms[room].device.find(&key) {
                reading.push(Reading { key, is_host: false, place });
            } else if let Some(place) = self.rooms[room].host.lease(&key) {
                reading.push(Reading { key, is_host: true, place });
            } else if copies[2] == CopyState::Resident {
                self.submit(Work::Stage { sequence: id, key });
            }
        }
        self.sequence(id).reading = Some(reading);
        let after = (1 + self.random.below(500) as u64) * MICROS;
        self.happens(after, Happening::ReadEnds(id));
        Ok(())
    }

    pub fn read_ends(&mut self, id: u64) -> Checked {
        let Some(reading) = self.sequences.get_mut(&id).and_then(|sequence| sequence.reading.take()) else {
            return Ok(());
        };
        let room = self.sequences[&id].room;
        self.end_reading(room, reading)?;
        self.goes_on_with(id);
        Ok(())
    }

    /// What was read was the block, or its reader can tell that it was not.
    fn end_reading(&mut self, room: usize, reading: Vec<Reading>) -> Checked {
        for Reading { key, is_host, place } in reading {
            let memory = if is_host { &mut self.rooms[room].host } else { &mut self.rooms[room].device };
            let is_current = memory.is_current(place) || (self.bug == Bug::StaleServed && !is_host);
            let bytes = memory.read(place.slot);
            if is_host {
                memory.release(place);
            }
            let excused = self.excused.contains(&(room, is_host, place));
            must!(is_current || !is_host || excused, "the host copy of {key:?} is read under a lease and was taken");
            must!(!is_current || excused || bytes.of == digest(&key), "{key:?} is read and has other bytes: {bytes:?}");
            self.count("reads in place");
        }
        Ok(())
    }

    /// A section of a block was read from the disk, or could not be.
    pub fn staged(&mut self, id: u64, key: &CopyKey, end: End, bytes: Option<Bytes>) -> Checked {
        self.count("reads of the disk");
        let right = bytes.is_none_or(|bytes| bytes.of == digest(key));
        must!(right, "{key:?} is read on the disk and has other bytes: {bytes:?}");
        let reason = match end {
            End::Done => return Ok(()),
            End::Damaged => MissReason::FailedCheck,
            End::Lost => MissReason::Evicted,
            End::Full | End::Failed => MissReason::TierOffline,
        };
        let Some(sequence) = self.sequences.get(&id) else {
            return Ok(());
        };
        let held = sequence.held.iter().find(|(_, held)| held == key).map(|(entry, _)| *entry);
        must!(self.failures || held.is_none(), "the record of {key:?}, which is read, is gone: {end:?}");
        let room = sequence.room;
        match held {
            Some(entry) => self.feed_quietly(room, Event::Lost { entry, tier: Tier::Disk, reason }),
            None => Ok(()),
        }
    }

    /// A copy in memory turns out to be damaged.
    fn damage(&mut self, id: u64) -> Checked {
        let room = self.sequences[&id].room;
        let is_host = self.random.chance(50);
        let memory = if is_host { &self.rooms[room].host } else { &self.rooms[room].device };
        let there = memory.committed();
        if there.is_empty() {
            return Ok(());
        }
        let key = there[self.random.below(there.len())];
        let (entry, _) = self.shard(room).view(&key).ok_or(format!("{key:?} has a copy and no entry"))?;
        let tier = if is_host { Tier::Host } else { Tier::Device };
        self.feed_quietly(room, Event::Lost { entry, tier, reason: MissReason::FailedCheck })
    }

    /// A sequence ends, whatever it is at.
    fn close(&mut self, id: u64) -> Checked {
        let Some(sequence) = self.sequences.remove(&id) else {
            return Ok(());
        };
        self.count("hang-ups");
        let (room, owner) = (sequence.room, Owner(id));
        if let Some(wait) = sequence.waits {
            self.waits.remove(&wait);
        }
        if let Some(Ask { ticket, keys, granted, .. }) = sequence.asks {
            match granted {
                Some(places) => {
                    places.into_iter().for_each(|place| self.rooms[room].device.abandon(place));
                    self.feed_quietly(room, Event::Abandon { owner, keys: &keys, held: 0 })?;
                }
                None => drop(self.orphans.insert(ticket, Orphan { owner: id, keys })),
            }
        }
        self.end_reading(room, sequence.reading.unwrap_or_default())?;
        let keys: Vec<Option<CopyKey>> = sequence.open.iter().map(|open| open.opened_for).collect();
        sequence.open.iter().for_each(|open| self.rooms[room].device.abandon(open.place));
        self.feed_quietly(room, Event::Abandon { owner, keys: &keys, held: 0 })?;
        if let Some((index, place)) = sequence.reopened {
            self.rooms[room].device.abandon(place);
            let key = sequence.held[index].1;
            self.feed_quietly(room, Event::Abandon { owner, keys: &[Some(key)], held: 1 })?;
        }
        let entries: Vec<EntryId> = sequence.held.iter().map(|(entry, _)| *entry).collect();
        let kept = if self.bug == Bug::LeaseKeptAtHangUp { entries.len() / 2 } else { entries.len() };
        self.feed_quietly(room, Event::Release { entries: &entries[..kept] })
    }
}
