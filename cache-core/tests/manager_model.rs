//! Random events against a naive model of the tiers. Every check runs after every action; failures print the seed.
//!
//! One seed alone: `KVTIER_SEED=n cargo test -p cache-core --test manager_model`; more of them: `KVTIER_SEEDS=n`.

mod model;
mod random;

use cache_core::chain::Link;
use cache_core::form::{Accept, Provenance};
use cache_core::key::CopyKey;
use cache_core::manager::{Action, Budgets, CopyState, Event, Ticket};
use cache_core::miss::MissReason;
use cache_core::units::Tier;
use model::{Bug, Checked, Copy, HOME, Model, Sequence, settle};

impl Model {
    fn open(&mut self) -> Checked {
        let id = self.number();
        let chain = self.random.below(self.chains.len());
        self.sequences.insert(id, Sequence { chain, ..Sequence::default() });
        self.acquire(id)
    }

    fn some_sequence(&mut self) -> Option<u64> {
        let ids: Vec<u64> = self.sequences.keys().copied().collect();
        (!ids.is_empty()).then(|| ids[self.random.below(ids.len())])
    }

    fn rest(&self, id: u64) -> Vec<Link> {
        let sequence = &self.sequences[&id];
        self.chains[sequence.chain][sequence.held.len() + sequence.open.len()..].to_vec()
    }

    fn acquire(&mut self, id: u64) -> Checked {
        if !self.sequences[&id].open.is_empty() || self.is_waiting(id) {
            return Ok(());
        }
        let links = self.rest(id);
        let below = self.look_below(&links);
        let said = if self.bug == Bug::BelowIgnored { Vec::new() } else { below.clone() };
        let none = vec![Err(MissReason::NeverStored); links.len()];
        let (tiers, reasons) = self.expected(&links, if self.has_disk() { &below } else { &none });
        let keys: Vec<CopyKey> = links.iter().map(|link| CopyKey::exact(HOME, link.hash)).collect();
        let peeked = self.shard.peek(&keys, &said, Accept::Exact);
        let event = Event::Acquire { keys: &keys, links: &links, below: &said, accept: Accept::Exact };
        for link in &links[..tiers.len()] {
            *self.readers.entry(CopyKey::exact(HOME, link.hash)).or_default() += 1;
        }
        let answers = self.feed(event)?;
        let [Action::Acquired { hits, miss }] = &answers[..] else {
            return Err(format!("{answers:?} to an acquire"));
        };
        let found: Vec<Tier> = hits.iter().map(|(_, tier)| *tier).collect();
        must!(peeked == (found.clone(), *miss), "{hits:?} {miss:?} are acquired, {peeked:?} seen before");
        must!(found == tiers, "found {found:?}, {tiers:?} are there");
        must!(miss.is_some() == reasons.is_some(), "miss {miss:?}, expected {reasons:?}");
        must!(
            miss.is_none_or(|miss| reasons.clone().is_some_and(|all| all.contains(&miss))),
            "miss {miss:?}, expected {reasons:?}"
        );
        // A block that is open is waited for: no miss yet.
        let next = links.get(hits.len()).map(|link| CopyKey::exact(HOME, link.hash));
        self.misses += u64::from(next.is_some_and(|key| !self.opened.contains_key(&key)));
        for ((entry, _), link) in hits.iter().zip(&links) {
            let key = CopyKey::exact(HOME, link.hash);
            self.sequences.get_mut(&id).expect("it was chosen").held.push((*entry, key));
        }
        if found.contains(&Tier::Disk) && self.random.chance(50) { self.prefetch(id) } else { Ok(()) }
    }

    fn is_waiting(&self, id: u64) -> bool {
        self.waiting.values().any(|(sequence, ..)| *sequence == id)
    }

    fn reserve(&mut self, id: u64) -> Checked {
        let links = self.rest(id);
        if links.is_empty() || self.is_waiting(id) {
            return Ok(());
        }
        let count = (1 + self.random.below(3)).min(links.len());
        let known = self.random.chance(70);
        let keys: Vec<Option<CopyKey>> =
            links[..count].iter().map(|link| known.then(|| CopyKey::exact(HOME, link.hash))).collect();
        let ticket = Ticket(self.number());
        self.waiting.insert(ticket, (id, count, false));
        let sequence = self.sequences.get_mut(&id).expect("it was chosen");
        sequence.open.extend(keys.iter().copied().zip(links));
        self.failed_now = false;
        let answers = self.feed(Event::Room { ticket, owner: Model::owner(id), keys: &keys, held: 0 })?;
        settle(answers)
    }

    fn commit(&mut self, id: u64) -> Checked {
        let sequence = self.sequences.get_mut(&id).expect("it was chosen");
        if sequence.open.is_empty() || self.waiting.values().any(|(waiting, ..)| *waiting == id) {
            return Ok(());
        }
        let (opened_for, link) = sequence.open.remove(0);
        let last = sequence.open.is_empty();
        self.closes(id, opened_for);
        let taint = last && opened_for.is_none() && self.random.chance(15);
        let exact = CopyKey::exact(HOME, link.hash);
        let key = if taint { CopyKey { provenance: Provenance(9), ..exact } } else { exact };
        self.open_slots -= 1;
        let inserted = !self.is_in_a_slot(&key);
        if inserted {
            self.publish(key);
        }
        *self.readers.entry(key).or_default() += 1;
        let answers = self.feed(Event::Commit { owner: Model::owner(id), opened_for, key, link, held: false })?;
        let [Action::Committed { entry, inserted: found }] = answers[..] else {
            return Err(format!("{answers:?} to a commit"));
        };
        must!(found == inserted, "{key:?} inserted: {found}, expected {inserted}");
        self.is_written_behind(key)?;
        let sequence = self.sequences.get_mut(&id).expect("it was chosen");
        sequence.held.push((entry, key));
        if taint {
            // Nothing exact can follow: this sequence ends here.
            return self.close(id);
        }
        Ok(())
    }

    /// A block that this sequence reads has lost its copies: compute it again.
    fn reopen(&mut self, id: u64) -> Checked {
        let sequence = &self.sequences[&id];
        let bare =
            |key: &CopyKey| !self.device.contains_key(key) && !self.host.contains_key(key) && !self.pins.contains(key);
        let Some(index) = sequence.held.iter().position(|(_, key)| bare(key)) else {
            return Ok(());
        };
        if sequence.reopened.is_some() || self.is_waiting(id) {
            return Ok(());
        }
        let keys = [Some(sequence.held[index].1)];
        let ticket = Ticket(self.number());
        self.waiting.insert(ticket, (id, 1, true));
        self.sequences.get_mut(&id).expect("it was chosen").reopened = Some(index);
        self.failed_now = false;
        let answers = self.feed(Event::Room { ticket, owner: Model::owner(id), keys: &keys, held: 1 })?;
        settle(answers)
    }

    fn recommit(&mut self, id: u64) -> Checked {
        let Some(index) = self.sequences[&id].reopened.filter(|_| !self.is_waiting(id)) else {
            return Ok(());
        };
        let (entry, key) = self.sequences[&id].held[index];
        self.sequences.get_mut(&id).expect("it was chosen").reopened = None;
        let link = self.shard.entry(entry).ok_or(format!("{entry:?} is read and unknown"))?.link;
        let inserted = !self.is_in_a_slot(&key);
        self.open_slots -= 1;
        self.closes(id, Some(key));
        if inserted {
            self.publish(key);
        }
        let event = Event::Commit { owner: Model::owner(id), opened_for: Some(key), key, link, held: true };
        let answers = self.feed(event)?;
        must!(
            answers == [Action::Committed { entry, inserted }],
            "{answers:?} to a recomputed block, inserted {inserted}"
        );
        self.recomputed += 1;
        self.is_written_behind(key)
    }

    fn close(&mut self, id: u64) -> Checked {
        if self.is_waiting(id) {
            return Ok(());
        }
        let sequence = self.sequences.remove(&id).expect("it was chosen");
        for key in sequence.open.iter().map(|(key, _)| *key) {
            self.closes(id, key);
        }
        if let Some(index) = sequence.reopened {
            self.open_slots -= 1;
            self.closes(id, Some(sequence.held[index].1));
            self.feed(Event::Abandon { owner: Model::owner(id), keys: &[Some(sequence.held[index].1)], held: 1 })?;
        }
        self.open_slots -= sequence.open.len() as u32;
        let keys: Vec<Option<CopyKey>> = sequence.open.iter().map(|(key, _)| *key).collect();
        self.feed(Event::Abandon { owner: Model::owner(id), keys: &keys, held: 0 })?;
        for (_, key) in &sequence.held {
            *self.readers.get_mut(key).expect("it was read") -= 1;
        }
        let entries: Vec<_> = sequence.held.iter().map(|(entry, _)| *entry).collect();
        let kept = if self.bug == Bug::ForgottenRelease { &entries[..entries.len() / 2] } else { &entries[..] };
        self.feed(Event::Release { entries: kept }).map(drop)
    }

    fn prefetch(&mut self, id: u64) -> Checked {
        let entries = &self.sequences[&id].held.iter().map(|(entry, _)| *entry).collect::<Vec<_>>();
        let ticket = Ticket(self.number());
        self.promoting.insert(ticket);
        let event =
            if self.random.chance(15) { Event::Load { ticket, entries } } else { Event::Promote { ticket, entries } };
        let answers = self.feed(event)?;
        settle(answers)
    }

    /// True for a block with a copy in a slot, or on its way there; one that is being loaded is not there yet.
    fn is_in_a_slot(&self, key: &CopyKey) -> bool {
        let loading = self.loads.iter().any(|(_, loaded)| loaded == key);
        self.device.contains_key(key) || (self.host.contains_key(key) && !loading)
    }

    fn publish(&mut self, key: CopyKey) {
        self.device.insert(key, Copy::Committed);
        self.gone.remove(&key);
        if self.has_disk() {
            self.unstored.insert(key);
        }
    }

    /// A published block is on the disk, or on its way there, or was turned down.
    fn is_written_behind(&mut self, key: CopyKey) -> Checked {
        let known = self.shard.view(&key).is_some_and(|(_, view)| view.copies[2] == CopyState::Resident);
        let asked = !self.unstored.remove(&key);
        must!(asked || known || self.is_on_its_way(&key), "{key:?} was published and is not on its way to the disk");
        Ok(())
    }

    /// A reader of the host arena outlives its sequence.
    fn lease(&mut self) -> Checked {
        if self.random.chance(60) {
            self.leased.clear();
        } else if let Some(key) = self.host.iter().find(|(_, copy)| **copy == Copy::Committed).map(|(key, _)| *key) {
            self.leased.insert(key);
        }
        Ok(())
    }

    fn step(&mut self) -> Checked {
        let Some(id) = self.some_sequence() else {
            return self.open();
        };
        match self.random.below(100) {
            0..8 if self.sequences.len() < 5 => self.open(),
            0..15 => self.close(id),
            15..30 => self.acquire(id),
            30..48 => self.reserve(id),
            48..53 if self.failures => self.reopen(id).and_then(|()| self.recommit(id)),
            48..70 => self.commit(id),
            70..76 => self.prefetch(id),
            76..82 => self.finish_demotion(),
            82..86 => self.finish_onboard(),
            86..91 => self.finish_store(),
            91..94 => self.finish_any_load(),
            94..95 => {
                self.reclaim();
                Ok(())
            }
            95..97 if self.failures => self.lose(),
            97..100 if self.failures || self.bug == Bug::LeasedEvicted => self.lease(),
            _ => Ok(()),
        }
    }

    /// Lets everything under way end, closes every sequence, and looks for what is left.
    fn wind_down(&mut self) -> Checked {
        while !(self.demotions.is_empty()
            && self.onboards.is_empty()
            && self.stores.is_empty()
            && self.loads.is_empty())
        {
            self.finish_demotion()?;
            self.finish_onboard()?;
            self.finish_store()?;
            self.finish_any_load()?;
        }
        must!(
            self.waiting.is_empty() && self.promoting.is_empty(),
            "{:?} {:?} were never answered",
            self.waiting,
            self.promoting
        );
        for id in self.sequences.keys().copied().collect::<Vec<_>>() {
            self.close(id)?;
        }
        self.compare()?;
        must!(self.shard.live_entries().is_empty(), "live entries without a reader: {:?}", self.shard.live_entries());
        must!(self.pins.is_empty(), "{:?} stay pinned for nobody", self.pins);
        must!(self.open_slots == 0 && self.shard.open_slots() == 0, "open blocks without an owner");
        Ok(())
    }
}

/// What a run did, by name.
type Did = [(&'static str, u64); 13];

fn run(seed: u64, budgets: Budgets, failures: bool, bug: Bug, steps: u32) -> Result<Did, String> {
    let mut model = Model::new(seed, budgets, failures, bug);
    for step in 0..steps {
        let checked = model.step().and_then(|()| model.compare());
        checked.map_err(|problem| format!("seed {seed}, {budgets:?}, failures {failures}, step {step}: {problem}"))?;
    }
    model
        .wind_down()
        .map_err(|problem| format!("seed {seed}, {budgets:?}, failures {failures}, at the end: {problem}"))?;
    let counters = model.shard.counters();
    let quota = counters.misses[MissReason::Quota as usize];
    Ok([
        ("granted", model.granted),
        ("refused", model.refused),
        ("demoted", counters.demoted_blocks),
        ("promoted", counters.promoted_blocks),
        ("refusals checked", model.refusals_checked),
        ("recomputed", model.recomputed),
        ("stored", counters.stored_blocks),
        ("spilled", counters.spilled_blocks),
        ("loaded", counters.loaded_blocks),
        ("disk hits", counters.hits[2]),
        ("quota", quota),
        ("lost on disk", counters.lost_blocks[2]),
        ("overlapped", model.overlapped),
    ])
}

fn budgets(seed: u64, disk: bool) -> Budgets {
    let shapes = [(4, 0, 8), (4, 3, 3), (6, 12, 6), (3, 30, 8), (12, 2, 40), (24, 24, 2), (3, 2, 60)];
    let (device_slots, host_slots, below_entries) = shapes[seed as usize % if disk { 7 } else { 6 }];
    Budgets { device_slots, host_slots, below_entries: if disk { below_entries } else { 0 } }
}

fn seeds(count: u64) -> Vec<u64> {
    match std::env::var("KVTIER_SEED") {
        Ok(seed) => vec![seed.parse().expect("KVTIER_SEED is a number")],
        Err(_) => (0..std::env::var("KVTIER_SEEDS")
            .map_or(count, |count| count.parse().expect("KVTIER_SEEDS is a number")))
            .collect(),
    }
}

#[test]
fn random_events_keep_every_rule() {
    for (disk, failures) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut did: std::collections::BTreeMap<&str, u64> = std::collections::BTreeMap::new();
        for seed in seeds(60) {
            let one = run(seed, budgets(seed, disk), failures, Bug::None, 600);
            for (what, count) in one.unwrap_or_else(|problem| panic!("{problem}")) {
                *did.entry(what).or_default() += count;
            }
        }
        println!("disk {disk}, failures {failures}: {did:?}");
        let only_with_disk = ["stored", "spilled", "loaded", "disk hits", "quota", "lost on disk", "overlapped"];
        for (what, count) in did {
            let idle = !disk && only_with_disk.contains(&what);
            let idle = idle || what == if failures { "refusals checked" } else { "recomputed" };
            let idle = idle || (!failures && what == "lost on disk");
            let right = if idle { count == 0 } else { count > 20 };
            assert!(std::env::var("KVTIER_SEED").is_ok() || right, "disk {disk}, failures {failures}: {count} {what}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [3, 4, 5] {
        let run = || run(seed, budgets(seed, true), true, Bug::None, 400);
        assert_eq!(run(), run());
    }
}

#[test]
fn every_planted_bug_is_caught() {
    let bugs = [
        (Bug::DropInsteadOfDemote, "last copy of live"),
        (Bug::DropBeforeCommit, "is dropped"),
        (Bug::GrantWithoutDrop, "device slots of"),
        (Bug::ParentFirst, "child"),
        (Bug::ForgottenRelease, "readers"),
        (Bug::LeasedEvicted, "leased"),
        (Bug::DropBeforeStored, "last copy of live"),
        (Bug::ForgottenPin, "are pinned"),
        (Bug::ForgottenUnpin, "are pinned"),
        (Bug::StoredTwice, "stored again"),
        (Bug::NeverStored, "on its way to the disk"),
        (Bug::BelowIgnored, "are there"),
        (Bug::UnbackedDropped, "last copy of live"),
        (Bug::LoadedOver, "is loaded"),
        (Bug::PromotedTwice, "is promoted onto"),
    ];
    for (bug, words) in bugs {
        let disk =
            !matches!(bug, Bug::DropInsteadOfDemote | Bug::DropBeforeCommit | Bug::GrantWithoutDrop | Bug::ParentFirst);
        let run = |seed| run(seed, budgets(seed, disk), false, bug, 400).err();
        let caught: Vec<String> = (0..14).filter_map(run).collect();
        assert!(caught.iter().any(|problem| problem.contains(words)), "{bug:?} was not caught: {caught:?}");
    }
}
