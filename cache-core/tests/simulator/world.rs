//! The clock and everything on it.

use std::collections::BTreeMap;

use cache_core::chain::{Chain, Link};
use cache_core::hash::Namespace;
use cache_core::key::CopyKey;
use cache_core::manager::{Budgets, CacheManager, EntryId, Shard, Ticket};
use cache_core::units::Now;

use super::daemon::{Client, Ghost, Kept};
use super::disk::Disk;
use super::engine::{Copying, Orphan, Sequence};
use super::memory::{Bytes, Memory, Place, digest};
use super::waits::Wait;
use super::{Bug, Checked, Did, must};
use crate::random::Random;

pub const MICROS: u64 = 1_000;
/// How long the slot of a vanished reader rests.
pub const REST_MILLIS: u64 = 5;
/// Age at which leases end.
pub const LEASE_TTL: u64 = 20 * 1_000 * MICROS;
const NAMESPACES: u8 = 3;

/// Whose cache it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A daemon's: a lending shard for each class of blocks.
    Daemon,
    /// An engine's own: a manager over device, host and disk.
    Engine,
}

/// What a run of a kind must have done now and then.
pub fn done_by(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Daemon => &[
            "leases",
            "lookups that end in a miss",
            "waits for loads",
            "waits for loads that were too late",
            "awaits",
            "awaits that were too late",
            "commits",
            "present",
            "aborts",
            "refused",
            "refused for the quota",
            "failed checks",
            "pins",
            "pins that ended",
            "hang-ups",
            "hang-ups while waiting",
            "leases that expired",
            "deletions",
            "restarts",
            "evictions",
            "damage found in memory",
            "reads that hung",
        ],
        Kind::Engine => &[
            "hits",
            "waits for room",
            "waits for promotions",
            "waits for promotions that were too late",
            "commits",
            "demotions",
            "promotions",
            "loads",
            "spills",
            "reads in place",
            "reads of the disk",
            "blocks computed again",
            "hang-ups",
            "restarts",
            "refused",
            "reads that hung",
        ],
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Happening {
    /// A client or sequence does something.
    Acts(u64),
    /// An operation of the disk has done its work.
    OperationEnds(u64),
    /// Its end is taken in.
    EndIsTaken(u64),
    /// A copy between device and host ends.
    CopyEnds(u64),
    /// A wait's deadline.
    WaitEnds(u64),
    /// The time of a pin.
    PinEnds(CopyKey),
    /// The age of a client's leases.
    LeasesEnd(u64),
    /// A sequence has read what it read.
    ReadEnds(u64),
    /// The process dies and comes back.
    Restarts,
}

/// One shard's part of the tiers.
pub struct Room {
    pub device: Memory,
    pub host: Memory,
    /// Slots in all, granted ones, and slots of the host.
    pub budgets: Budgets,
    /// Slots of the first place that may be used: a daemon grants them one by one.
    pub granted: u32,
}

pub enum Shards {
    Lending(Vec<Shard>),
    Managed(CacheManager),
}

/// A whole cache, its clients and its disk.
pub struct World {
    pub kind: Kind,
    pub bug: Bug,
    pub random: Random,
    pub now: u64,
    pub did: Did,
    pub failures: bool,
    queue: BTreeMap<(u64, u64), (u64, Happening)>,
    /// Things of an earlier process do not happen any more.
    epoch: u64,
    next: u64,
    acts_left: u32,
    pub chains: Vec<(Namespace, Vec<Link>)>,
    pub shards: Shards,
    pub rooms: Vec<Room>,
    /// Slots that no class was granted yet.
    pub pool: u32,
    pub disk: Disk,
    /// Blocks of a namespace that a daemon holds at most.
    pub quota: u64,
    pub clients: BTreeMap<u64, Client>,
    pub ghosts: Vec<Ghost>,
    pub kept: BTreeMap<CopyKey, Kept>,
    pub deleted: BTreeMap<Namespace, u64>,
    pub sequences: BTreeMap<u64, Sequence>,
    pub copies: BTreeMap<u64, Copying>,
    pub orphans: BTreeMap<Ticket, Orphan>,
    pub waits: BTreeMap<u64, Wait>,
    /// Requests for loads and whether each has ended.
    pub awaited: BTreeMap<Ticket, bool>,
    /// Handles whose copies were taken away with a reason: damage, deletion, age.
    pub excused: std::collections::BTreeSet<(usize, bool, Place)>,
}

fn namespace(number: u8) -> Namespace {
    Namespace([number + 1; 32])
}

fn chains(random: &mut Random) -> Vec<(Namespace, Vec<Link>)> {
    let chain = |index: u32, random: &mut Random| {
        let home = namespace(index as u8 % NAMESPACES);
        let (cut, length) = (1 + random.below(6) as u32, 2 + random.below(10) as u32);
        let token = |position: u32| if position < 4 * cut { index % 2 } else { 100 + index } * 1000 + position;
        let tokens: Vec<u32> = (0..4 * length).map(token).collect();
        (home, Chain::over(home, 4, &tokens).links().to_vec())
    };
    (0..9).map(|index| chain(index, random)).collect()
}

impl World {
    pub fn new(seed: u64, kind: Kind, bug: Bug) -> World {
        let mut random = Random(seed);
        let chains = chains(&mut random);
        let failures = random.chance(60) || matches!(bug, Bug::Unverified);
        let count = 1 + random.below(2);
        let device_slots = 3 + random.below(14) as u32;
        let host_slots = if kind == Kind::Daemon { 0 } else { [0, 4, 8, 24][random.below(4)] };
        let below_entries = [3, 12, 40][random.below(3)];
        let budgets = Budgets { device_slots, host_slots, below_entries };
        let disk = Disk::new([6, 20, 60][random.below(3)], failures);
        let quota = if random.chance(50) { 2 + random.below(6) as u64 } else { u64::MAX };
        let (shards, rooms) = World::memory(kind, bug, budgets, count);
        let mut world = World {
            kind,
            bug,
            random,
            now: 0,
            did: Did::new(),
            failures,
            queue: BTreeMap::new(),
            epoch: 0,
            next: 0,
            acts_left: 400,
            chains,
            shards,
            rooms,
            pool: device_slots,
            disk,
            quota,
            clients: BTreeMap::new(),
            ghosts: Vec::new(),
            kept: BTreeMap::new(),
            deleted: BTreeMap::new(),
            sequences: BTreeMap::new(),
            copies: BTreeMap::new(),
            orphans: BTreeMap::new(),
            waits: BTreeMap::new(),
            awaited: BTreeMap::new(),
            excused: Default::default(),
        };
        if world.random.chance(50) {
            world.fill_disk();
        }
        world.arrive();
        world.restarts_some_time();
        world
    }

    /// The store is not new: it has records of most chains.
    fn fill_disk(&mut self) {
        for (home, links) in self.chains.clone() {
            for link in links.iter().take(2 + self.random.below(8)) {
                let key = CopyKey::exact(home, link.hash);
                self.disk.records.insert(key, Bytes { of: digest(&key), born: 0 });
            }
        }
    }

    fn restarts_some_time(&mut self) {
        if self.random.chance(60) {
            let after = self.random.below(150_000) as u64 * MICROS;
            self.happens(after, Happening::Restarts);
        }
    }

    /// Shards and tiers of a process that has just begun.
    fn memory(kind: Kind, bug: Bug, budgets: Budgets, count: usize) -> (Shards, Vec<Room>) {
        let extra = u32::from(bug == Bug::BudgetOffByOne);
        let rest = if bug == Bug::NoRest { 0 } else { REST_MILLIS };
        let room = |budgets: Budgets, granted: u32| Room {
            device: Memory::new(budgets.device_slots + extra, rest),
            host: Memory::new(budgets.host_slots, rest),
            budgets,
            granted,
        };
        let over = |budgets: Budgets| Budgets { device_slots: budgets.device_slots + extra, ..budgets };
        match kind {
            Kind::Daemon => {
                // Each class could have the whole arena; slots are granted as they are needed.
                let shard = || {
                    let mut shard = Shard::lending(over(budgets));
                    shard.set_device_slots(extra);
                    shard
                };
                let shards = (0..count).map(|_| shard()).collect();
                (Shards::Lending(shards), (0..count).map(|_| room(budgets, 0)).collect())
            }
            Kind::Engine => {
                let manager = CacheManager::new(count as u32, budgets);
                let parts: Vec<Budgets> = manager.shards().iter().map(Shard::budgets).collect();
                let manager = if extra == 0 {
                    manager
                } else {
                    let more = Budgets { device_slots: budgets.device_slots + count as u32, ..budgets };
                    CacheManager::new(count as u32, more)
                };
                (Shards::Managed(manager), parts.iter().map(|part| room(*part, part.device_slots)).collect())
            }
        }
    }

    pub fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub fn count(&mut self, what: &'static str) {
        *self.did.entry(what).or_default() += 1;
    }

    /// Something will happen so many nanoseconds from now.
    pub fn happens(&mut self, after: u64, what: Happening) {
        let number = self.number();
        self.queue.insert((self.now + after, number), (self.epoch, what));
    }

    pub fn soon(&mut self, actor: u64) {
        let after = 1 + self.random.below(2_000) as u64 * MICROS;
        self.happens(after, Happening::Acts(actor));
    }

    /// Which room serves a namespace.
    pub fn room_of(&self, namespace: Namespace) -> usize {
        match &self.shards {
            Shards::Lending(shards) => usize::from(namespace.bytes()[0]) % shards.len(),
            Shards::Managed(manager) => manager.route(namespace),
        }
    }

    pub fn shard(&self, room: usize) -> &Shard {
        match &self.shards {
            Shards::Lending(shards) => &shards[room],
            Shards::Managed(manager) => &manager.shards()[room],
        }
    }

    pub fn shard_mut(&mut self, room: usize) -> &mut Shard {
        match &mut self.shards {
            Shards::Lending(shards) => &mut shards[room],
            Shards::Managed(manager) => {
                let here = |namespace: &Namespace| manager.route(*namespace) == room;
                let namespace = (0..=u8::MAX).map(|byte| Namespace([byte; 32])).find(here);
                manager.shard_of(namespace.expect("256 namespaces reach every shard"))
            }
        }
    }

    pub fn moment(&self) -> Now {
        Now(self.now)
    }

    /// The key of an entry that somebody holds.
    pub fn key_of(&self, room: usize, entry: EntryId) -> Result<CopyKey, String> {
        self.shard(room).entry(entry).map(|view| view.key).ok_or(format!("{entry:?} is held and unknown"))
    }

    fn arrive(&mut self) {
        let id = self.number();
        match self.kind {
            Kind::Daemon => self.connect(id),
            Kind::Engine => self.open(id),
        }
        self.soon(id);
    }

    /// Everything until the last client has gone and nothing is under way.
    pub fn run(&mut self) -> Checked {
        while let Some(((when, _), (epoch, what))) = self.queue.pop_first() {
            self.nothing_is_late(when)?;
            self.now = when;
            let (now, rooms) = (self.now, &mut self.rooms);
            rooms.iter_mut().for_each(|room| {
                room.device.advance(now);
                room.host.advance(now);
            });
            if epoch == self.epoch {
                self.happen(what).map_err(|problem| format!("{what:?}: {problem}"))?;
                self.wake().and_then(|()| self.check()).map_err(|problem| format!("after {what:?}: {problem}"))?;
            }
        }
        self.nothing_is_late(u64::MAX)?;
        self.everything_is_given_back()
    }

    fn happen(&mut self, what: Happening) -> Checked {
        match what {
            Happening::Acts(actor) => self.act(actor),
            Happening::OperationEnds(number) => self.operation_ends(number),
            Happening::EndIsTaken(number) => self.end_is_taken(number),
            Happening::CopyEnds(number) => self.copy_ends(number),
            // The wake after it looks at all of them.
            Happening::WaitEnds(_) => Ok(()),
            Happening::PinEnds(key) => self.pin_ends(&key),
            Happening::LeasesEnd(client) => self.leases_end(client),
            Happening::ReadEnds(sequence) => self.read_ends(sequence),
            Happening::Restarts => self.restart(),
        }
    }

    fn act(&mut self, actor: u64) -> Checked {
        self.acts_left = self.acts_left.saturating_sub(1);
        let actors = self.clients.len() + self.sequences.len();
        if self.acts_left > 0 && actors < 4 && self.random.chance(20) {
            self.arrive();
        }
        let is_over = self.acts_left == 0;
        match self.kind {
            Kind::Daemon => self.client_acts(actor, is_over)?,
            Kind::Engine => self.sequence_acts(actor, is_over)?,
        }
        if self.acts_left > 0 && self.clients.is_empty() && self.sequences.is_empty() {
            self.arrive();
        }
        Ok(())
    }

    /// The process dies: what was in memory is gone, and so are its clients; the disk stays.
    fn restart(&mut self) -> Checked {
        let budgets = self.rooms[0].budgets;
        let whole = match self.kind {
            Kind::Daemon => budgets,
            Kind::Engine => {
                let sum = |pick: fn(&Budgets) -> u32| self.rooms.iter().map(|room| pick(&room.budgets)).sum();
                Budgets {
                    device_slots: sum(|budgets| budgets.device_slots),
                    host_slots: sum(|budgets| budgets.host_slots),
                    below_entries: sum(|budgets| budgets.below_entries),
                }
            }
        };
        must!(self.rooms.iter().all(|room| room.granted <= whole.device_slots), "more was granted than there is");
        let count = self.rooms.len();
        (self.shards, self.rooms) = World::memory(self.kind, self.bug, whole, count);
        self.pool = whole.device_slots;
        self.disk.restart(self.now, &mut self.random);
        self.epoch += 1;
        self.clients.clear();
        self.ghosts.clear();
        self.kept.clear();
        self.sequences.clear();
        self.copies.clear();
        self.orphans.clear();
        self.waits.clear();
        self.awaited.clear();
        self.excused.clear();
        self.count("restarts");
        if self.acts_left > 0 {
            self.arrive();
            self.restarts_some_time();
        }
        Ok(())
    }
}
