//! A naive model of the three tiers: performs a shard's actions on plain maps, with delays and failures, and states what must hold.

mod bugs;
mod disk;
mod ends;
mod expected;
mod perform;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use cache_core::chain::{Chain, Link};
use cache_core::hash::Namespace;
use cache_core::key::CopyKey;
use cache_core::manager::{Action, Budgets, CopyState, EntryId, Event, Owner, Shard, Ticket};
use cache_core::miss::MissReason;
use cache_core::units::{Now, Tier};

use crate::random::Random;

pub use bugs::Bug;
pub use ends::settle;

pub const HOME: Namespace = Namespace([3; 32]);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copy {
    Arriving,
    Committed,
    Leaving,
}

/// A sequence: its entries in chain order, and what it has open.
#[derive(Default)]
pub struct Sequence {
    pub chain: usize,
    pub held: Vec<(EntryId, CopyKey)>,
    pub open: Vec<(Option<CopyKey>, Link)>,
    /// A lost block (by index into `held`) that is being computed again.
    pub reopened: Option<usize>,
}

pub struct Model {
    pub shard: Shard,
    pub budgets: Budgets,
    pub random: Random,
    pub bug: Bug,
    pub chains: Vec<Vec<Link>>,
    /// Where the slots' copies are.
    pub device: BTreeMap<CopyKey, Copy>,
    pub host: BTreeMap<CopyKey, Copy>,
    pub leased: BTreeSet<CopyKey>,
    /// Records that the disk's index has.
    pub disk: BTreeSet<CopyKey>,
    /// Records that the disk must keep.
    pub pins: BTreeSet<CopyKey>,
    /// Published blocks for which no write-behind was asked for yet.
    pub unstored: BTreeSet<CopyKey>,
    pub readers: BTreeMap<CopyKey, u32>,
    pub gone: BTreeMap<CopyKey, MissReason>,
    pub parents: BTreeMap<CopyKey, CopyKey>,
    pub open_slots: u32,
    /// Blocks opened under a known key, and the sequence that opened each of them first.
    pub opened: BTreeMap<CopyKey, u64>,
    pub sequences: BTreeMap<u64, Sequence>,
    /// Requests for room: whose, for how many slots, and whether for a lost block.
    pub waiting: BTreeMap<Ticket, (u64, usize, bool)>,
    pub promoting: BTreeSet<Ticket>,
    pub demotions: Vec<(EntryId, CopyKey)>,
    pub onboards: Vec<(EntryId, CopyKey)>,
    /// Writes under way, and whether each was asked for as a spill.
    pub stores: Vec<(CopyKey, bool)>,
    /// Device copies that leave with a write-behind.
    pub joined: BTreeSet<CopyKey>,
    pub loads: Vec<(EntryId, CopyKey)>,
    pub queue: VecDeque<Action>,
    /// Blocks whose demotion failed when their parents' was under way already: those may go before them.
    pub stayed: BTreeSet<CopyKey>,
    pub misses: u64,
    pub failures: bool,
    pub failed_now: bool,
    pub next: u64,
    pub refused: u64,
    /// Refusals that were checked for completeness.
    pub refusals_checked: u64,
    pub granted: u64,
    pub recomputed: u64,
    /// Copies into device memory that started while other blocks were being loaded.
    pub overlapped: u64,
}

pub type Checked = Result<(), String>;

/// Returns an error in words unless the condition holds.
#[macro_export]
macro_rules! must {
    ($holds:expr, $($what:tt)*) => {
        if !$holds {
            return Err(format!($($what)*));
        }
    };
}

impl Model {
    pub fn new(seed: u64, budgets: Budgets, failures: bool, bug: Bug) -> Model {
        let mut random = Random(seed);
        // A few roots, each with branches: shared prefixes of different lengths.
        let chains: Vec<Vec<Link>> = (0..6)
            .map(|index| {
                let (root, cut, length) = (index % 3, 1 + random.below(6), 2 + random.below(12));
                let token =
                    |position: usize| (if position < 4 * cut { root } else { 100 + index } * 1000 + position) as u32;
                Chain::over(HOME, 4, &(0..4 * length).map(token).collect::<Vec<_>>()).links().to_vec()
            })
            .collect();
        // After a restart everything is on the disk, and only there.
        let restarted = budgets.below_entries > 0 && random.chance(30);
        let disk = chains.iter().flatten().filter(|_| restarted).map(|link| CopyKey::exact(HOME, link.hash)).collect();
        let parents = chains.iter().flatten().filter_map(|link| {
            let parent = CopyKey::exact(HOME, link.parent?);
            Some((CopyKey::exact(HOME, link.hash), parent))
        });
        Model {
            shard: Shard::new(budgets),
            budgets,
            parents: parents.collect(),
            random,
            bug,
            chains,
            device: BTreeMap::new(),
            host: BTreeMap::new(),
            leased: BTreeSet::new(),
            disk,
            pins: BTreeSet::new(),
            unstored: BTreeSet::new(),
            readers: BTreeMap::new(),
            gone: BTreeMap::new(),
            open_slots: 0,
            opened: BTreeMap::new(),
            sequences: BTreeMap::new(),
            waiting: BTreeMap::new(),
            promoting: BTreeSet::new(),
            demotions: Vec::new(),
            onboards: Vec::new(),
            stores: Vec::new(),
            joined: BTreeSet::new(),
            loads: Vec::new(),
            queue: VecDeque::new(),
            stayed: BTreeSet::new(),
            misses: 0,
            failures,
            failed_now: false,
            next: 0,
            refused: 0,
            refusals_checked: 0,
            granted: 0,
            recomputed: 0,
            overlapped: 0,
        }
    }

    pub fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub fn readers(&self, key: &CopyKey) -> u32 {
        self.readers.get(key).copied().unwrap_or(0)
    }

    pub fn children_in<'a>(
        &'a self,
        tier: &'a BTreeMap<CopyKey, Copy>,
        key: &'a CopyKey,
    ) -> impl Iterator<Item = &'a CopyKey> {
        tier.iter()
            .filter(move |(child, copy)| {
                **copy != Copy::Leaving && self.parents.get(child) == Some(key) && !self.stayed.contains(child)
            })
            .map(|(child, _)| child)
    }

    /// In which slot a reader would find a block.
    pub fn readable(&self, key: &CopyKey) -> Option<Tier> {
        match (self.device.get(key), self.host.get(key)) {
            (Some(Copy::Committed | Copy::Leaving), _) => Some(Tier::Device),
            (_, Some(Copy::Committed)) => Some(Tier::Host),
            _ => None,
        }
    }

    /// Feeds an event in and performs, in order, everything that follows from it at once. Returns the answers meant for the caller.
    pub fn feed(&mut self, event: Event<'_>) -> Result<Vec<Action>, String> {
        self.enqueue(event)?;
        self.run()
    }

    /// Performs what is queued.
    pub fn run(&mut self) -> Result<Vec<Action>, String> {
        let mut answers = Vec::new();
        while let Some(action) = self.queue.pop_front() {
            self.perform(action, &mut answers)?;
            self.limits()?;
        }
        Ok(answers)
    }

    pub fn enqueue(&mut self, event: Event<'_>) -> Checked {
        self.next += 1;
        let mut actions = self.shard.on(event, Now(self.next));
        self.see_joined_spills(&actions)?;
        self.plant(&mut actions);
        if matches!(event, Event::Promote { .. } | Event::Load { .. } | Event::Loaded { .. }) {
            for action in &actions {
                if let Action::Demote { key, .. } | Action::Drop { key, tier: Tier::Device, .. } = action {
                    must!(self.readers(key) == 0, "a promotion evicts live {key:?}");
                }
                if let Action::Drop { key, tier: Tier::Host, .. } = action {
                    let spare = self.readers(key) == 0 || self.device.contains_key(key);
                    must!(spare, "a promotion takes live {key:?} out of its slot");
                }
            }
        }
        if matches!(event, Event::Loaded { .. }) && !self.loads.is_empty() {
            let goes_on = |action: &&Action| matches!(action, Action::Promote { .. });
            self.overlapped += actions.iter().filter(goes_on).count() as u64;
        }
        self.queue.extend(actions);
        Ok(())
    }

    /// Blocks that were granted are open; whoever opened one first has it.
    pub fn opens(&mut self, id: u64, wanted: usize, reopens: bool) {
        let Sequence { open, held, reopened, .. } = &self.sequences[&id];
        let keys: Vec<CopyKey> = match reopened.filter(|_| reopens) {
            Some(index) => vec![held[index].1],
            None => open[open.len() - wanted..].iter().filter_map(|(key, _)| *key).collect(),
        };
        for key in keys {
            self.opened.entry(key).or_insert(id);
        }
    }

    /// A block is not open any more: committed or abandoned.
    pub fn closes(&mut self, id: u64, key: Option<CopyKey>) {
        if let Some(key) = key.filter(|key| self.opened.get(key) == Some(&id)) {
            self.opened.remove(&key);
        }
    }

    /// Blocks that were not granted are not open.
    pub fn unwish(&mut self, sequence: u64, wanted: usize, reopens: bool) {
        let sequence = self.sequences.get_mut(&sequence).expect("a waiting sequence stays");
        if reopens {
            sequence.reopened = None;
        } else {
            sequence.open.truncate(sequence.open.len() - wanted);
        }
    }

    pub fn went(&mut self, key: CopyKey, reason: MissReason) {
        if !self.device.contains_key(&key) && !self.host.contains_key(&key) {
            self.gone.insert(key, reason);
        }
    }

    /// Hard limits after every single action.
    fn limits(&self) -> Checked {
        let (device, host) = (self.device.len() as u32 + self.open_slots, self.host.len() as u32);
        must!(device <= self.budgets.device_slots, "{device} device slots of {:?}", self.budgets);
        must!(host <= self.budgets.host_slots, "{host} host slots of {:?}", self.budgets);
        Ok(())
    }

    /// Refused with nothing under way and no failure so far: then no arrangement of the live blocks would do.
    pub fn refusal_is_right(&mut self, wanted: u32) -> Checked {
        let spilling = self.device.values().any(|copy| *copy == Copy::Leaving);
        let copying = spilling || !(self.onboards.is_empty() && self.loads.is_empty());
        let quiet = !copying && self.leased.is_empty() && self.waiting.is_empty();
        let bare = self.shard.entries() != self.shard.blocks();
        if !quiet || bare || self.failed_now || self.failures {
            return Ok(());
        }
        self.refusals_checked += 1;
        let live = self.readers.values().filter(|readers| **readers > 0).count() as u32;
        let Budgets { device_slots, host_slots, below_entries } = self.budgets;
        let taken = self.open_slots + wanted;
        must!(
            taken > device_slots || live > device_slots - taken + host_slots + below_entries,
            "{wanted} slots are refused: {} open, {live} live, {:?}",
            self.open_slots,
            self.budgets
        );
        Ok(())
    }

    /// The shard's view of every block is the model's.
    pub fn compare(&self) -> Checked {
        self.shard.audit()?;
        must!(
            self.shard.open_slots() == self.open_slots,
            "{} open, the shard has {}",
            self.open_slots,
            self.shard.open_slots()
        );
        let misses: u64 = self.shard.counters().misses.iter().sum();
        must!(misses == self.misses, "{} misses, the shard counts {misses}", self.misses);
        for key in self.chains.iter().flatten().map(|link| CopyKey::exact(HOME, link.hash)) {
            let (found, expected) = (self.shard.opened_by(&key), self.opened.get(&key).map(|id| Owner(*id)));
            must!(found == expected, "{key:?} is open by {expected:?}, the shard says {found:?}");
            let view = self.shard.view(&key).map(|(_, view)| view);
            let live = view.map_or(0, |view| view.live);
            must!(live == self.readers(&key), "{key:?} has {} readers, the shard counts {live}", self.readers(&key));
            let copies = view.map_or([CopyState::None; 3], |view| view.copies);
            for (copy, state) in [self.device.get(&key), self.host.get(&key)].into_iter().zip(copies) {
                let same = match state {
                    CopyState::None => copy.is_none(),
                    CopyState::Arriving => copy == Some(&Copy::Arriving),
                    CopyState::Resident => copy == Some(&Copy::Committed),
                    CopyState::Leaving => copy == Some(&Copy::Leaving),
                };
                must!(same, "{key:?} is {copy:?}, the shard says {state:?}");
            }
            self.compare_record(&key, copies[2])?;
        }
        self.compare_disk()
    }

    pub fn owner(sequence: u64) -> Owner {
        Owner(sequence)
    }
}
