//! Clients of a daemon, and what the daemon does for them.

use std::collections::BTreeMap;

use cache_core::chain::Link;
use cache_core::form::Accept;
use cache_core::hash::Namespace;
use cache_core::key::CopyKey;
use cache_core::manager::{Action, Below, CopyState, EntryId, Event, Owner, Ticket};
use cache_core::miss::MissReason;
use cache_core::store::StoreError;
use cache_core::units::{SlotIndex, Tier};

use super::disk::Work;
use super::memory::{Bytes, Place, digest};
use super::waits::What;
use super::world::{Happening, LEASE_TTL, MICROS, REST_MILLIS, Shards, World};
use super::{Bug, Checked, must};

#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub entry: EntryId,
    pub key: CopyKey,
    pub place: Place,
    pub since: u64,
}

/// One connection.
pub struct Client {
    pub room: usize,
    pub namespace: Namespace,
    pub leases: BTreeMap<u64, Held>,
    pub reservations: BTreeMap<u64, (CopyKey, Link)>,
    waits: bool,
    is_gone: bool,
    /// Where blocks were that it read once.
    remembered: BTreeMap<CopyKey, Place>,
}

impl Client {
    pub fn reserves(&self, key: &CopyKey) -> bool {
        self.reservations.values().any(|(reserved, _)| reserved == key)
    }

    pub fn some_lease(&self) -> Option<CopyKey> {
        self.leases.values().next().map(|held| held.key)
    }

    pub fn oldest_lease_ends(&self) -> Option<u64> {
        self.leases.values().map(|held| held.since + LEASE_TTL).min()
    }
}

/// A reader that has vanished and may go on reading for a while.
pub struct Ghost {
    pub room: usize,
    pub key: CopyKey,
    pub place: Place,
    pub until: u64,
}

/// A block that is kept for a client.
pub struct Kept {
    pub room: usize,
    pub entry: EntryId,
    pub until: u64,
}

impl World {
    pub fn connect(&mut self, id: u64) {
        let namespace = self.chains[self.random.below(self.chains.len())].0;
        let client = Client {
            room: self.room_of(namespace),
            namespace,
            leases: BTreeMap::new(),
            reservations: BTreeMap::new(),
            waits: false,
            is_gone: false,
            remembered: BTreeMap::new(),
        };
        self.clients.insert(id, client);
    }

    /// Who of the living reads a block.
    pub fn leaseholder(&self, room: usize, key: &CopyKey) -> Option<(u64, Place)> {
        let here = self.clients.iter().filter(|(_, client)| client.room == room);
        let held = here.flat_map(|(id, client)| client.leases.values().map(move |held| (*id, held)));
        held.filter(|(_, held)| held.key == *key).map(|(id, held)| (id, held.place)).next()
    }

    pub fn client_acts(&mut self, id: u64, is_over: bool) -> Checked {
        let Some(client) = self.clients.get_mut(&id) else {
            return Ok(());
        };
        if client.waits {
            // It hangs up while it waits; the daemon notices when the wait has ended.
            client.is_gone = true;
            self.count("hang-ups while waiting");
            return Ok(());
        }
        if is_over {
            return self.hang_up(id);
        }
        let namespace = client.namespace;
        let is_read = |work: &Work| matches!(work, Work::Read { key, .. } if key.namespace == namespace);
        let reads = self.disk.operations.values().any(|operation| is_read(&operation.work));
        if reads && self.random.chance(4) {
            // In the middle of loads of what is deleted.
            self.delete(id)?;
        }
        match self.random.below(100) {
            0..2 => return self.hang_up(id),
            2..32 => self.acquire(id)?,
            32..50 => self.release_some(id)?,
            50..66 => self.reserve(id)?,
            66..82 => self.commit_some(id)?,
            82..85 => self.abort_some(id)?,
            85..89 => self.await_some(id)?,
            89..92 => self.prefetch(id)?,
            92..95 => self.pin(id)?,
            95..96 => self.unpin(id)?,
            96..97 if self.random.chance(30) => self.delete(id)?,
            97..98 => self.scrub(id)?,
            _ => drop(self.disk.reclaim(&mut self.random)),
        }
        self.goes_on(id)
    }

    /// After a request: the client's next one, or its end.
    fn goes_on(&mut self, id: u64) -> Checked {
        let Some(client) = self.clients.get(&id) else {
            return Ok(());
        };
        match (client.waits, client.is_gone) {
            (true, _) => Ok(()),
            (false, true) => self.hang_up(id),
            (false, false) => {
                self.soon(id);
                Ok(())
            }
        }
    }

    /// The first blocks of one of its chains.
    fn some_links(&mut self, namespace: Namespace) -> Vec<Link> {
        let own: Vec<usize> = (0..self.chains.len()).filter(|index| self.chains[*index].0 == namespace).collect();
        let chain = own[self.random.below(own.len())];
        let length = 1 + self.random.below(self.chains[chain].1.len());
        self.chains[chain].1[..length].to_vec()
    }

    fn asked(&mut self, id: u64) -> (usize, Vec<CopyKey>, Vec<Link>) {
        let Client { room, namespace, .. } = self.clients[&id];
        let links = self.some_links(namespace);
        (room, links.iter().map(|link| CopyKey::exact(namespace, link.hash)).collect(), links)
    }

    /// The run that is there becomes live; what the shard says of it is compared with what is there.
    pub fn make_live(&mut self, room: usize, keys: &[CopyKey], links: &[Link]) -> Result<Vec<(EntryId, Tier)>, String> {
        let below: Vec<Below> = keys.iter().map(|key| self.disk.find(key, self.now)).collect();
        let peeked = self.shard(room).peek(keys, &below, Accept::Exact);
        let answers = self.feed(room, Event::Acquire { keys, links, below: &below, accept: Accept::Exact })?;
        let [Action::Acquired { hits, miss }] = &answers[..] else {
            return Err(format!("{answers:?} to an acquire"));
        };
        let tiers: Vec<Tier> = hits.iter().map(|(_, tier)| *tier).collect();
        must!(peeked == (tiers, *miss), "{hits:?} {miss:?} are acquired, {peeked:?} were seen before");
        let memory = &self.rooms[room];
        for ((entry, tier), (key, below)) in hits.iter().zip(keys.iter().zip(&below)) {
            let there = match tier {
                Tier::Device => memory.device.find(key).is_some(),
                Tier::Host => memory.host.find(key).is_some(),
                _ => below.is_ok(),
            };
            must!(there, "{key:?} ({entry:?}) is a hit in {tier:?}, where it is not");
        }
        if let Some((key, below)) = keys.get(hits.len()).zip(below.get(hits.len())) {
            let there = memory.device.find(key).is_some() || memory.host.find(key).is_some();
            must!(!there, "{key:?} is a miss ({miss:?}) and is there");
            must!(below.is_err() || *miss == Some(MissReason::Quota), "{key:?} is on the disk and a miss: {miss:?}");
        }
        must!(miss.is_none() == (hits.len() == keys.len()), "{} of {} hits, {miss:?}", hits.len(), keys.len());
        if miss.is_some() {
            self.count("lookups that end in a miss");
        }
        Ok(hits.clone())
    }

    /// Sees to it that so many slots are free, as far as the pool goes.
    fn grow(&mut self, room: usize, wanted: u32) {
        let extra = u32::from(self.bug == Bug::BudgetOffByOne);
        let Shards::Lending(shards) = &mut self.shards else {
            return;
        };
        let free = shards[room].budgets().device_slots - shards[room].device_used();
        let more = wanted.saturating_sub(free).min(self.pool);
        self.pool -= more;
        self.rooms[room].granted += more;
        shards[room].set_device_slots(self.rooms[room].granted + extra);
    }

    fn acquire(&mut self, id: u64) -> Checked {
        let (room, keys, links) = self.asked(id);
        let hits = self.make_live(room, &keys, &links)?;
        let on_disk = hits.iter().zip(&keys).filter(|((_, tier), _)| *tier == Tier::Disk);
        let on_disk = on_disk.map(|((entry, _), key)| (*entry, *key));
        let (mut entries, mut wanted): (Vec<EntryId>, Vec<CopyKey>) = on_disk.unzip();
        self.cut_to_quota(&keys[0].namespace, &mut entries);
        wanted.truncate(entries.len());
        if entries.is_empty() {
            return self.lease(id, room, &hits, false);
        }
        let ticket = Ticket(self.number());
        self.grow(room, entries.len() as u32);
        self.awaited.insert(ticket, false);
        self.feed_quietly(room, Event::Promote { ticket, entries: &entries })?;
        let limit = self.some_patience();
        let reads = self.reads_of(room, &wanted);
        self.begin_wait(id, room, limit, What::Loads { ticket, hits, reads });
        Ok(())
    }

    fn some_patience(&mut self) -> u64 {
        let micros = if self.random.chance(80) { 1 + self.random.below(3_000) } else { 100_000 };
        micros as u64 * MICROS
    }

    fn begin_wait(&mut self, id: u64, room: usize, limit: u64, what: What) {
        self.wait(id, room, limit, what);
        self.clients.get_mut(&id).expect("it asks").waits = true;
        if self.random.chance(10) {
            let after = self.random.below(limit as usize) as u64;
            self.happens(after, Happening::Acts(id));
        }
    }

    pub fn loads_ended(&mut self, id: u64, room: usize, hits: &[(EntryId, Tier)], is_late: bool) -> Checked {
        self.lease(id, room, hits, is_late)?;
        self.clients.get_mut(&id).expect("who waits is there").waits = false;
        self.goes_on(id)
    }

    /// Leases the slots of live blocks up to the first that has none; lets go of the others.
    fn lease(&mut self, id: u64, room: usize, hits: &[(EntryId, Tier)], is_late: bool) -> Checked {
        let mut leased = 0;
        for (entry, tier) in hits {
            let key = self.key_of(room, *entry)?;
            let Some(place) = self.rooms[room].device.lease(&key) else {
                let view = self.shard(room).entry(*entry).ok_or(format!("{entry:?} is live and unknown"))?;
                // Not late, not lost: then no slot was to be had for it. One that was damaged or deleted may have a record again.
                let spoiled = self.failures || !self.deleted.is_empty();
                let excused = is_late || view.loss.is_some() || *tier == Tier::Disk || spoiled;
                must!(excused, "{key:?} was in memory when it became live, and is not now");
                break;
            };
            let client = self.clients.get_mut(&id).expect("it asks");
            let stale = client.remembered.get(&key).filter(|_| self.bug == Bug::StaleServed);
            let place = stale.copied().unwrap_or(place);
            self.next_lease(id, Held { entry: *entry, key, place, since: self.now });
            leased += 1;
            self.count("leases");
        }
        if leased > 0 {
            self.happens(LEASE_TTL, Happening::LeasesEnd(id));
        }
        let left: Vec<EntryId> = hits[leased..].iter().map(|(entry, _)| *entry).collect();
        if left.is_empty() { Ok(()) } else { self.feed_quietly(room, Event::Release { entries: &left }) }
    }

    fn next_lease(&mut self, id: u64, held: Held) {
        let number = self.number();
        let client = self.clients.get_mut(&id).expect("it asks");
        client.remembered.insert(held.key, held.place);
        client.leases.insert(number, held);
    }

    fn release_some(&mut self, id: u64) -> Checked {
        let room = self.clients[&id].room;
        let numbers: Vec<u64> = self.clients[&id].leases.keys().copied().collect();
        let chosen: Vec<u64> = numbers.into_iter().filter(|_| self.random.chance(60)).collect();
        let client = self.clients.get_mut(&id).expect("it asks");
        let held = chosen.iter().filter_map(|number| client.leases.remove(number)).collect();
        self.let_go(room, held)
    }

    fn let_go(&mut self, room: usize, held: Vec<Held>) -> Checked {
        held.iter().for_each(|held| self.rooms[room].device.release(held.place));
        let entries: Vec<EntryId> = held.iter().map(|held| held.entry).collect();
        self.feed_quietly(room, Event::Release { entries: &entries })
    }

    /// Leases whose holder may go on reading: their slots rest once they are taken from their blocks.
    fn take_back(&mut self, room: usize, held: Vec<Held>) -> Checked {
        for Held { key, place, .. } in &held {
            let device = &mut self.rooms[room].device;
            device.table.rest_after_removal(place.slot, place.generation);
            if device.is_current(*place) {
                let until = self.now + REST_MILLIS * 1_000 * MICROS;
                self.ghosts.push(Ghost { room, key: *key, place: *place, until });
            }
        }
        self.let_go(room, held)
    }

    pub fn hang_up(&mut self, id: u64) -> Checked {
        let Some(client) = self.clients.remove(&id) else {
            return Ok(());
        };
        self.count("hang-ups");
        if self.bug != Bug::ReservationKeptAtHangUp {
            for (key, _) in client.reservations.values() {
                self.feed_quietly(client.room, Event::Abandon { owner: Owner(id), keys: &[Some(*key)], held: 0 })?;
            }
        }
        let held = client.leases.into_values().collect();
        if self.bug == Bug::LeaseKeptAtHangUp { Ok(()) } else { self.take_back(client.room, held) }
    }

    pub fn leases_end(&mut self, id: u64) -> Checked {
        let now = self.now;
        let Some(client) = self.clients.get_mut(&id) else {
            return Ok(());
        };
        let (room, before) = (client.room, client.leases.len());
        let over: Vec<Held> =
            client.leases.extract_if(.., |_, held| held.since + LEASE_TTL <= now).map(|(_, held)| held).collect();
        (0..before - client.leases.len()).for_each(|_| self.count("leases that expired"));
        self.take_back(room, over)
    }

    /// Blocks of a namespace as a daemon counts them: those that shards have or load, and those that it has reserved itself.
    fn blocks_of(&self, namespace: &Namespace) -> u64 {
        let Shards::Lending(shards) = &self.shards else {
            return 0;
        };
        let resident: u32 = shards.iter().map(|shard| shard.census(namespace).resident).sum();
        let reserved = if self.bug == Bug::QuotaBlind { 0 } else { self.reserved_of(namespace) };
        u64::from(resident) + reserved
    }

    /// Leaves out loads for which a quota has no room.
    fn cut_to_quota(&self, namespace: &Namespace, wanted: &mut Vec<EntryId>) {
        let left = self.quota.saturating_sub(self.blocks_of(namespace));
        wanted.truncate(usize::try_from(left).unwrap_or(usize::MAX));
    }

    fn reserved_of(&self, namespace: &Namespace) -> u64 {
        let reserved = self.clients.values().flat_map(|client| client.reservations.values());
        reserved.filter(|(key, _)| key.namespace == *namespace).count() as u64
    }

    fn reserve(&mut self, id: u64) -> Checked {
        let (room, keys, links) = self.asked(id);
        let (key, link) = (keys[keys.len() - 1], links[links.len() - 1]);
        if self.clients[&id].reserves(&key) {
            return Ok(());
        }
        if self.blocks_of(&key.namespace) + 1 > self.quota {
            self.count("refused for the quota");
            return Ok(());
        }
        let view = self.shard(room).view(&key);
        let is_resident = view.is_some_and(|(_, view)| view.copies[0] == CopyState::Resident);
        must!(is_resident == self.rooms[room].device.find(&key).is_some(), "{key:?} is resident: {is_resident}");
        if is_resident || self.disk.find(&key, self.now).is_ok() {
            self.count("present");
            return Ok(());
        }
        self.grow(room, 1);
        let ticket = Ticket(self.number());
        let answers = self.feed(room, Event::Room { ticket, owner: Owner(id), keys: &[Some(key)], held: 0 })?;
        let other = self.clients.iter().find(|(other, client)| **other != id && client.reserves(&key));
        match (&answers[..], other) {
            ([Action::Granted { slots: 1, .. }], None) => {
                let number = self.number();
                let client = self.clients.get_mut(&id).expect("it asks");
                client.reservations.insert(number, (key, link));
                Ok(())
            }
            ([Action::PendingElsewhere { .. }], Some(_)) => Ok(()),
            ([Action::Refused { .. }], _) => {
                self.count("refused");
                Ok(())
            }
            (answers, other) => {
                Err(format!("{answers:?} to a reservation of {key:?}, of client {:?}", other.map(|other| other.0)))
            }
        }
    }

    fn commit_some(&mut self, id: u64) -> Checked {
        let Some((number, (key, link))) =
            self.clients[&id].reservations.iter().next().map(|(number, what)| (*number, *what))
        else {
            return Ok(());
        };
        let room = self.clients[&id].room;
        self.clients.get_mut(&id).expect("it asks").reservations.remove(&number);
        // A client that hands over something else is found out.
        let lies = self.failures && self.random.chance(4);
        let bytes = Bytes { of: digest(&key) ^ u64::from(lies), born: self.now };
        let device = &mut self.rooms[room].device;
        let filled = device.reserve(Some(key)).and_then(|place| {
            device.fill(place, bytes);
            device.commit(place, key, true)
        });
        let opened_for = Some(key);
        if let Err(error) = filled {
            self.count(match error {
                StoreError::Present | StoreError::PendingElsewhere => "present",
                StoreError::Check(_) => "failed checks",
                _ => "refused",
            });
            must!(lies == matches!(error, StoreError::Check(_)) || !matches!(error, StoreError::Check(_)), "{error:?}");
            return self.feed_quietly(room, Event::Abandon { owner: Owner(id), keys: &[opened_for], held: 0 });
        }
        must!(!lies, "{key:?} was committed with other bytes");
        self.count("commits");
        let event = Event::Commit { owner: Owner(id), opened_for, key, link, held: false };
        let answers = self.feed(room, event)?;
        let [Action::Committed { entry, inserted: true }] = answers[..] else {
            return Err(format!("{answers:?} to the commit of {key:?}"));
        };
        self.hand_to_write(room, &key, entry)
    }

    /// The writer reads its block no longer; a write to the disk goes on reading it.
    fn hand_to_write(&mut self, room: usize, key: &CopyKey, entry: EntryId) -> Checked {
        for operation in self.disk.operations.values_mut() {
            if let Work::Write { room: from, key: written, reader, lease: Some(_), .. } = &mut operation.work
                && reader.is_none()
                && (*from, &*written) == (room, key)
            {
                *reader = Some(entry);
                return Ok(());
            }
        }
        self.feed_quietly(room, Event::Release { entries: &[entry] })
    }

    fn abort_some(&mut self, id: u64) -> Checked {
        let client = self.clients.get_mut(&id).expect("it asks");
        let room = client.room;
        let Some((_, (key, _))) = client.reservations.pop_last() else {
            return Ok(());
        };
        self.count("aborts");
        self.feed_quietly(room, Event::Abandon { owner: Owner(id), keys: &[Some(key)], held: 0 })
    }

    fn await_some(&mut self, id: u64) -> Checked {
        let Client { room, namespace, .. } = self.clients[&id];
        let others = self.clients.iter().filter(|(other, client)| **other != id && client.room == room);
        let written: Vec<CopyKey> =
            others.flat_map(|(_, client)| client.reservations.values().map(|(key, _)| *key)).collect();
        let key = match written.is_empty() {
            true => CopyKey::exact(namespace, self.some_links(namespace)[0].hash),
            false => written[self.random.below(written.len())],
        };
        let limit = self.some_patience();
        self.begin_wait(id, room, limit, What::Block { key });
        Ok(())
    }

    pub fn block_ended(&mut self, id: u64, room: usize, key: &CopyKey, is_late: bool) -> Checked {
        let there = self.rooms[room].device.find(key).is_some();
        must!(!(there && is_late), "{key:?} is there, and who awaited it was too late");
        self.clients.get_mut(&id).expect("who waits is there").waits = false;
        self.goes_on(id)
    }

    fn prefetch(&mut self, id: u64) -> Checked {
        let (room, keys, links) = self.asked(id);
        let hits = self.make_live(room, &keys, &links)?;
        let entries: Vec<EntryId> = hits.iter().map(|(entry, _)| *entry).collect();
        let on_disk = hits.iter().filter(|(_, tier)| *tier == Tier::Disk).map(|(entry, _)| *entry);
        let mut wanted: Vec<EntryId> = on_disk.collect();
        self.cut_to_quota(&keys[0].namespace, &mut wanted);
        let ticket = Ticket(self.number());
        self.grow(room, wanted.len() as u32);
        self.feed_quietly(room, Event::Promote { ticket, entries: &wanted })?;
        self.feed_quietly(room, Event::Release { entries: &entries })
    }

    fn pin(&mut self, id: u64) -> Checked {
        let (room, keys, links) = self.asked(id);
        let ttl = (1 + self.random.below(20_000) as u64) * MICROS;
        let until = self.now + ttl;
        let hits = self.make_live(room, &keys, &links)?;
        let mut twice = Vec::new();
        for ((entry, _), key) in hits.iter().zip(&keys) {
            match self.kept.get_mut(key) {
                Some(kept) => {
                    kept.until = kept.until.max(until);
                    twice.push(*entry);
                }
                None => drop(self.kept.insert(*key, Kept { room, entry: *entry, until })),
            }
            self.happens(ttl, Happening::PinEnds(*key));
            self.count("pins");
        }
        self.feed_quietly(room, Event::Release { entries: &twice })
    }

    pub fn pin_ends(&mut self, key: &CopyKey) -> Checked {
        if self.bug == Bug::PinForever || self.kept.get(key).is_none_or(|kept| kept.until > self.now) {
            return Ok(());
        }
        let Kept { room, entry, .. } = self.kept.remove(key).expect("it was just found");
        self.count("pins that ended");
        self.feed_quietly(room, Event::Release { entries: &[entry] })
    }

    fn unpin(&mut self, id: u64) -> Checked {
        let (room, keys, _) = self.asked(id);
        let ended: Vec<EntryId> = keys.iter().filter_map(|key| self.kept.remove(key)).map(|kept| kept.entry).collect();
        self.feed_quietly(room, Event::Release { entries: &ended })
    }

    /// Deletes everything of a namespace, also what is just being loaded.
    fn delete(&mut self, id: u64) -> Checked {
        let Client { room, namespace, .. } = self.clients[&id];
        self.count("deletions");
        self.disk.delete(namespace, self.now);
        self.deleted.insert(namespace, self.now);
        for (entry, view) in self.shard(room).entries_of(&namespace) {
            if let Some(kept) = self.kept.remove(&view.key) {
                self.feed_quietly(room, Event::Release { entries: &[kept.entry] })?;
            }
            let forgets_loads = self.bug == Bug::DeletedComesBack;
            for (tier, copy) in [Tier::Device, Tier::Disk].into_iter().zip([view.copies[0], view.copies[2]]) {
                if copy == CopyState::Resident || (copy == CopyState::Arriving && !forgets_loads) {
                    self.feed_quietly(room, Event::Lost { entry, tier, reason: MissReason::NeverStored })?;
                }
            }
        }
        Ok(())
    }

    /// A bit flips in memory, and the scrubber comes by.
    fn scrub(&mut self, id: u64) -> Checked {
        let room = self.clients[&id].room;
        let there = self.rooms[room].device.committed();
        if !self.failures || there.is_empty() {
            return Ok(());
        }
        let key = there[self.random.below(there.len())];
        let place = self.rooms[room].device.find(&key).ok_or("a committed copy has a place")?;
        self.rooms[room].device.spoil(SlotIndex(place.slot.0));
        self.excused.insert((room, false, place));
        self.count("damage found in memory");
        let (entry, _) = self.shard(room).view(&key).ok_or(format!("{key:?} has a copy and no entry"))?;
        self.feed_quietly(room, Event::Lost { entry, tier: Tier::Device, reason: MissReason::FailedCheck })
    }
}
