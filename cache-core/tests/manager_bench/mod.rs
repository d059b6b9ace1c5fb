//! A shard on a bench: events in, actions out, its books checked after each.
#![allow(dead_code, reason = "each test file uses its own part")]

use cache_core::chain::{Chain, Link};
use cache_core::hash::Namespace;
use cache_core::key::CopyKey;
use cache_core::manager::{Action, Actions, Budgets, CopyEnd, EntryId, Event, Owner, Shard, Ticket};
use cache_core::units::{Now, Tier};

pub const HOME: Namespace = Namespace([1; 32]);

/// A shard and its clock.
pub struct Bench {
    pub shard: Shard,
    clock: u64,
}

pub fn links(seed: u32, blocks: u32) -> Vec<Link> {
    Chain::over(HOME, 2, &(0..2 * blocks).map(|token| seed * 1000 + token).collect::<Vec<_>>()).links().to_vec()
}

pub fn key(link: &Link) -> CopyKey {
    CopyKey::exact(HOME, link.hash)
}

pub fn keys(links: &[Link]) -> Vec<CopyKey> {
    links.iter().map(key).collect()
}

impl Bench {
    pub fn new(device_slots: u32, host_slots: u32) -> Bench {
        Bench::with_disk(device_slots, host_slots, 0)
    }

    pub fn with_disk(device_slots: u32, host_slots: u32, below_entries: u32) -> Bench {
        Bench { shard: Shard::new(Budgets { device_slots, host_slots, below_entries }), clock: 0 }
    }

    pub fn on(&mut self, event: Event<'_>) -> Actions {
        self.clock += 1;
        let actions = self.shard.on(event, Now(self.clock));
        self.shard.audit().unwrap();
        actions
    }

    pub fn room(&mut self, ticket: u64, slots: usize) -> Actions {
        self.on(Event::Room { ticket: Ticket(ticket), owner: Owner(ticket), keys: &vec![None; slots], held: 0 })
    }

    pub fn commit(&mut self, ticket: u64, link: &Link) -> EntryId {
        let event = Event::Commit { owner: Owner(ticket), opened_for: None, key: key(link), link: *link, held: false };
        match self.on(event)[..] {
            [Action::Committed { entry, .. }]
            | [Action::Committed { entry, .. }, Action::Store { spill: false, .. }] => entry,
            ref other => panic!("{other:?}"),
        }
    }

    /// Performs every copy at once; returns what was dropped, demoted and answered, in order.
    pub fn settle(&mut self, actions: Actions) -> Actions {
        let mut queue = std::collections::VecDeque::from(actions);
        let mut seen = Actions::new();
        while let Some(action) = queue.pop_front() {
            match action {
                Action::Demote { entry, .. } => queue.extend(self.on(Event::Demoted { entry, end: CopyEnd::Done })),
                Action::Promote { entry, .. } => queue.extend(self.on(Event::Onboarded { entry, end: CopyEnd::Done })),
                Action::Load { entry, .. } => queue.extend(self.on(Event::Loaded { entry, end: CopyEnd::Done })),
                Action::Store { key, spill, .. } => {
                    queue.extend(self.on(Event::Stored { key, spill, end: CopyEnd::Done }))
                }
                Action::Drop { entry, tier: Tier::Host, .. } => {
                    queue.extend(self.on(Event::Dropped { entry, refused: false }))
                }
                _ => {}
            }
            seen.push(action);
        }
        seen
    }

    /// A sequence that computes all of `links`, one at a time.
    pub fn run(&mut self, ticket: u64, links: &[Link]) -> Vec<EntryId> {
        links
            .iter()
            .map(|link| {
                let actions = self.room(ticket, 1);
                let seen = self.settle(actions);
                assert!(seen.iter().any(|action| matches!(action, Action::Granted { .. })), "{seen:?}");
                self.commit(ticket, link)
            })
            .collect()
    }
}

pub fn dropped(actions: &Actions, tier: Tier) -> Vec<CopyKey> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Drop { key, tier: from, .. } if *from == tier => Some(*key),
            _ => None,
        })
        .collect()
}
