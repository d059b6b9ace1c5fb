//! What must hold after every event, and at the end.

use std::collections::{BTreeMap, BTreeSet};

use cache_core::hash::Namespace;
use cache_core::key::CopyKey;
use cache_core::manager::{CopyState, EntryId};

use super::disk::Work;
use super::memory::digest;
use super::waits::What;
use super::world::{Kind, World};
use super::{Checked, must};

impl World {
    pub fn check(&mut self) -> Checked {
        self.ghosts.retain(|ghost| ghost.until > self.now);
        self.leases_hold()?;
        self.vanished_readers_are_safe()?;
        for room in 0..self.rooms.len() {
            self.shard(room).audit()?;
            self.budgets_hold(room)?;
            self.readers_agree(room)?;
            self.copies_agree(room)?;
        }
        if self.kind == Kind::Daemon {
            self.quotas_hold()?;
        }
        self.pins_agree()?;
        self.nothing_deleted_is_there()?;
        self.nothing_is_forgotten()
    }

    /// A lease's bytes stay what they were until it ends.
    fn leases_hold(&self) -> Checked {
        for (id, client) in &self.clients {
            for held in client.leases.values() {
                let memory = &self.rooms[client.room].device;
                let (key, bytes) = (held.key, memory.read(held.place.slot));
                if !self.excused.contains(&(client.room, false, held.place)) {
                    let right = bytes.of == digest(&key) && memory.is_current(held.place);
                    must!(right, "client {id} reads {key:?} and finds other bytes: {bytes:?}");
                }
            }
        }
        Ok(())
    }

    /// Who hung up, or whose leases ended by age, may still be reading for as long as slots rest.
    fn vanished_readers_are_safe(&self) -> Checked {
        for ghost in &self.ghosts {
            let bytes = self.rooms[ghost.room].device.read(ghost.place.slot);
            let right = bytes.of == digest(&ghost.key) || self.excused.contains(&(ghost.room, false, ghost.place));
            must!(right, "a vanished reader of {:?} finds other bytes: {bytes:?}", ghost.key);
        }
        Ok(())
    }

    /// Slots of a room that are being written: reads of the disk, copies, open blocks.
    fn written(&self, room: usize, is_host: bool) -> u32 {
        let reads = self.disk.operations.values().filter(|operation| {
            matches!(operation.work, Work::Read { room: into, into_host, .. } if into == room && into_host == is_host)
        });
        let copies = self.copies.values().filter(|copy| copy.room == room && copy.is_up != is_host);
        let mut written = (reads.count() + copies.count()) as u32;
        if !is_host {
            let here = self.sequences.values().filter(|sequence| sequence.room == room);
            written += here.map(|sequence| sequence.open_slots() + sequence.granted_slots()).sum::<u32>();
        }
        written
    }

    fn budgets_hold(&self, room: usize) -> Checked {
        let (shard, memory) = (self.shard(room), &self.rooms[room]);
        let reserved: usize = match self.kind {
            Kind::Daemon => {
                let here = self.clients.values().filter(|client| client.room == room);
                here.map(|client| client.reservations.len()).sum()
            }
            Kind::Engine => 0,
        };
        let device = memory.device.committed().len() as u32 + self.written(room, false) + reserved as u32;
        must!(device <= memory.granted, "{device} slots are used of {}", memory.granted);
        let host = memory.host.committed().len() as u32 + self.written(room, true);
        must!(host <= memory.budgets.host_slots, "{host} host slots are used of {}", memory.budgets.host_slots);
        let entries = memory.budgets.entries();
        must!(shard.entries() <= entries, "{} entries are used of {entries}", shard.entries());
        if self.kind == Kind::Daemon {
            let granted: u32 = self.rooms.iter().map(|room| room.granted).sum();
            let all = memory.budgets.device_slots;
            must!(granted + self.pool == all, "{granted} slots were granted, {} were not, of {all}", self.pool);
        }
        // A copy in memory that is lost leaves a live block on the disk alone, whatever the budget says.
        let below = |(entry, live): (&EntryId, &u32)| {
            let copies = shard.entry(*entry).map_or([CopyState::None; 3], |view| view.copies);
            *live > 0
                && copies[0] == CopyState::None
                && copies[1] == CopyState::None
                && copies[2] == CopyState::Resident
        };
        let live = shard.live_entries();
        let below = live.iter().filter(|entry| below((entry.0, entry.1))).count() as u32;
        must!(
            self.failures || below <= memory.budgets.below_entries,
            "{below} live blocks are on the disk alone, {} may be",
            memory.budgets.below_entries
        );
        Ok(())
    }

    /// A namespace's copies, what is being loaded of it, and reservations for it.
    fn quotas_hold(&self) -> Checked {
        let namespaces: BTreeSet<Namespace> = self.chains.iter().map(|(namespace, _)| *namespace).collect();
        for namespace in namespaces {
            let own = |key: &CopyKey| key.namespace == namespace;
            let resident = self.rooms.iter().flat_map(|room| room.device.committed()).filter(own).count();
            let reads = self.disk.operations.values();
            let read = reads.filter(|operation| matches!(&operation.work, Work::Read { key, .. } if own(key))).count();
            let room = self.room_of(namespace);
            let census = self.shard(room).census(&namespace).resident as usize;
            must!(census == resident + read, "{resident} copies and {read} loads, the shard counts {census}");
            let reserved = self.clients.values().flat_map(|client| client.reservations.values());
            let blocks = resident + read + reserved.filter(|(key, _)| own(key)).count();
            must!(blocks as u64 <= self.quota, "{blocks} blocks of a quota of {}", self.quota);
        }
        Ok(())
    }

    /// Everybody who reads a block, by the simulator's own books.
    fn readers_agree(&self, room: usize) -> Checked {
        let mut readers: BTreeMap<EntryId, u32> = BTreeMap::new();
        let mut open = 0;
        for client in self.clients.values().filter(|client| client.room == room) {
            client.leases.values().for_each(|held| *readers.entry(held.entry).or_default() += 1);
            open += client.reservations.len() as u32;
        }
        for sequence in self.sequences.values().filter(|sequence| sequence.room == room) {
            sequence.held.iter().for_each(|(entry, _)| *readers.entry(*entry).or_default() += 1);
            open += sequence.open_slots() + sequence.granted_slots();
        }
        for wait in self.waits.values().filter(|wait| wait.room == room) {
            if let What::Loads { hits, .. } = &wait.what {
                hits.iter().for_each(|(entry, _)| *readers.entry(*entry).or_default() += 1);
            }
        }
        let kept = self.kept.values().filter(|kept| kept.room == room).map(|kept| kept.entry);
        let written = self.disk.operations.values().filter_map(|operation| match operation.work {
            Work::Write { room: from, reader: Some(entry), .. } if from == room => Some(entry),
            _ => None,
        });
        kept.chain(written).for_each(|entry| *readers.entry(entry).or_default() += 1);
        let counted: BTreeMap<EntryId, u32> = self.shard(room).live_entries().into_iter().collect();
        must!(readers == counted, "the readers are {readers:?}, the shard counts {counted:?}");
        let shard_open = self.shard(room).open_slots();
        must!(open == shard_open, "{open} blocks are open, the shard counts {shard_open}");
        Ok(())
    }

    /// What the shard believes to be in slots is there, and nothing else is.
    fn copies_agree(&self, room: usize) -> Checked {
        let shard = self.shard(room);
        for (index, memory) in [&self.rooms[room].device, &self.rooms[room].host].into_iter().enumerate() {
            let committed = memory.committed();
            for key in &committed {
                let state = shard.view(key).map(|(_, view)| view.copies[index]);
                let known = matches!(state, Some(CopyState::Resident | CopyState::Leaving));
                must!(known, "{key:?} is in memory {index}, the shard says {state:?}");
            }
            let stays = if index == 0 { shard.device_used() - shard.open_slots() } else { shard.host_used() };
            let arriving = self.written(room, index == 1)
                - if index == 0 && self.kind == Kind::Engine { shard.open_slots() } else { 0 };
            // A slot that is set aside, or that a host copy is just leaving, is counted by the shard and holds nothing.
            must!(
                committed.len() as u32 + arriving >= stays || index == 0,
                "{} copies in memory {index}, {arriving} on their way, the shard counts {stays}",
                committed.len()
            );
        }
        for (entry, live) in shard.live_entries() {
            let view = shard.entry(entry).ok_or(format!("{entry:?} is live and unknown"))?;
            let lost = view.copies.iter().all(|copy| *copy == CopyState::None);
            must!(live == 0 || !lost || self.failures || !self.deleted.is_empty(), "live {:?} is lost", view.key);
        }
        Ok(())
    }

    fn pins_agree(&self) -> Checked {
        let wanted = (0..self.rooms.len()).flat_map(|room| self.shard(room).pinned());
        let wanted: BTreeSet<CopyKey> = wanted.collect();
        must!(wanted == self.disk.pins, "{:?} are pinned, the shards want {wanted:?}", self.disk.pins);
        Ok(())
    }

    /// What was deleted does not come back; what was computed afterwards is something else.
    fn nothing_deleted_is_there(&self) -> Checked {
        for (namespace, when) in &self.deleted {
            for room in &self.rooms {
                let own = room.device.committed().into_iter().filter(|key| key.namespace == *namespace);
                for key in own {
                    let born = room.device.find(&key).map(|place| room.device.read(place.slot).born);
                    must!(born.is_some_and(|born| born >= *when), "{key:?} was deleted and is there again");
                }
            }
        }
        Ok(())
    }

    /// After the last client: nothing is kept, held, pinned, open or waited for.
    pub fn everything_is_given_back(&mut self) -> Checked {
        must!(self.clients.is_empty() && self.sequences.is_empty(), "clients are left");
        must!(self.waits.is_empty(), "{:?} were never answered", self.waits);
        must!(self.kept.is_empty(), "pins are left");
        must!(self.orphans.is_empty() && self.awaited.values().all(|ended| *ended), "requests were never answered");
        must!(self.disk.operations.is_empty() && self.copies.is_empty(), "copies are under way");
        must!(self.disk.pins.is_empty(), "{:?} stay pinned for nobody", self.disk.pins);
        let rested = self.now + 2 * super::world::REST_MILLIS * 1_000 * super::world::MICROS;
        for (index, room) in self.rooms.iter_mut().enumerate() {
            room.device.advance(rested);
            room.host.advance(rested);
            for memory in [&room.device, &room.host] {
                must!(memory.leases() == 0, "{} leases are left in room {index}", memory.leases());
                let (used, committed) = (memory.table.used(), memory.committed().len() as u32);
                must!(used == committed, "{used} slots of room {index} are used for {committed} copies");
            }
        }
        for room in 0..self.rooms.len() {
            must!(self.shard(room).live_entries().is_empty(), "somebody reads in room {room}");
            must!(self.shard(room).open_slots() == 0, "blocks are open in room {room}");
        }
        Ok(())
    }
}
