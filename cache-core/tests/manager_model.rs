//! Random events against a naive model of the tiers. Every check runs after every action; failures print the seed.
//!
//! One seed alone: `KVTIER_SEED=n cargo test -p cache-core --test manager_model`; more of them: `KVTIER_SEEDS=n`.

mod model;

use cache_core::chain::Link;
use cache_core::form::{Accept, Provenance};
use cache_core::key::CopyKey;
use cache_core::manager::{Action, Budgets, CopyEnd, Event, Ticket};
use cache_core::miss::MissReason;
use cache_core::units::Tier;
use model::{Bug, Checked, Copy, HOME, Model, Sequence};

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
        let (tiers, reasons) = self.expected(&links);
        let answers = self.feed(Event::Acquire { namespace: HOME, links: &links, accept: Accept::Exact })?;
        let [Action::Acquired { hits, miss }] = &answers[..] else {
            return Err(format!("{answers:?} to an acquire"));
        };
        let found: Vec<Tier> = hits.iter().map(|(_, tier)| *tier).collect();
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
            *self.readers.entry(key).or_default() += 1;
            self.sequences.get_mut(&id).expect("it was chosen").held.push((*entry, key));
        }
        Ok(())
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
        self.settle(answers)
    }

    /// Room and promotion answers are taken in by the model; nothing else may come unasked.
    fn settle(&mut self, answers: Vec<Action>) -> Checked {
        must!(answers.is_empty(), "{answers:?} to nobody");
        Ok(())
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
        let there =
            self.device.contains_key(&key) || matches!(self.host.get(&key), Some(Copy::Committed | Copy::Arriving));
        let inserted = !there;
        if inserted {
            self.device.insert(key, Copy::Committed);
            self.gone.remove(&key);
        }
        *self.readers.entry(key).or_default() += 1;
        let answers = self.feed(Event::Commit { owner: Model::owner(id), opened_for, key, link, held: false })?;
        let [Action::Committed { entry, inserted: found }] = answers[..] else {
            return Err(format!("{answers:?} to a commit"));
        };
        must!(found == inserted, "{key:?} inserted: {found}, expected {inserted}");
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
        let bare = |key: &CopyKey| !self.device.contains_key(key) && !self.host.contains_key(key);
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
        self.settle(answers)
    }

    fn recommit(&mut self, id: u64) -> Checked {
        let Some(index) = self.sequences[&id].reopened.filter(|_| !self.is_waiting(id)) else {
            return Ok(());
        };
        let (entry, key) = self.sequences[&id].held[index];
        self.sequences.get_mut(&id).expect("it was chosen").reopened = None;
        let link = self.shard.entry(entry).ok_or(format!("{entry:?} is read and unknown"))?.link;
        let inserted = !self.device.contains_key(&key) && !self.host.contains_key(&key);
        self.open_slots -= 1;
        self.closes(id, Some(key));
        if inserted {
            self.device.insert(key, Copy::Committed);
            self.gone.remove(&key);
        }
        let event = Event::Commit { owner: Model::owner(id), opened_for: Some(key), key, link, held: true };
        let answers = self.feed(event)?;
        must!(
            answers == [Action::Committed { entry, inserted }],
            "{answers:?} to a recomputed block, inserted {inserted}"
        );
        self.recomputed += 1;
        Ok(())
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
        let entries: Vec<_> = self.sequences[&id].held.iter().map(|(entry, _)| *entry).collect();
        let ticket = Ticket(self.number());
        self.promoting.insert(ticket);
        let answers = self.feed(Event::Promote { ticket, entries: &entries })?;
        self.settle(answers)
    }

    fn end(&mut self) -> CopyEnd {
        match self.random.below(if self.failures { 100 } else { 1 }) {
            90..93 => CopyEnd::Damaged,
            93..95 => CopyEnd::SourceLost,
            95..98 => CopyEnd::Failed,
            98..100 => CopyEnd::Full,
            _ => CopyEnd::Done,
        }
    }

    fn finish_demotion(&mut self) -> Checked {
        if self.demotions.is_empty() {
            return Ok(());
        }
        let index = self.random.below(self.demotions.len());
        let (entry, key) = self.demotions.swap_remove(index);
        let end = self.end();
        let stands = self.host.get(&key) == Some(&Copy::Arriving);
        if end == CopyEnd::Done {
            self.host.insert(key, Copy::Committed);
        } else {
            self.failed_now = true;
            self.host.remove(&key);
            if self.device.get(&key) == Some(&Copy::Leaving) && matches!(end, CopyEnd::Full | CopyEnd::Failed) {
                self.device.insert(key, Copy::Committed);
                self.stayed.insert(key);
            }
        }
        must!(stands, "{key:?} was demoted into {:?}", self.host.get(&key));
        let reason = if end == CopyEnd::Damaged { MissReason::FailedCheck } else { MissReason::LeaseLost };
        let damaged = matches!(end, CopyEnd::Damaged | CopyEnd::SourceLost) && self.device.contains_key(&key);
        self.misses += u64::from(damaged);
        let answers = self.feed(Event::Demoted { entry, end })?;
        if !self.device.contains_key(&key) && !self.host.contains_key(&key) && end != CopyEnd::Done {
            let evicted =
                matches!(end, CopyEnd::Full | CopyEnd::Failed) && self.gone.get(&key) == Some(&MissReason::Evicted);
            self.gone.insert(key, if evicted { MissReason::Evicted } else { reason });
        }
        self.settle(answers)
    }

    fn finish_onboard(&mut self) -> Checked {
        if self.onboards.is_empty() {
            return Ok(());
        }
        let index = self.random.below(self.onboards.len());
        let (entry, key) = self.onboards.swap_remove(index);
        let end = self.end();
        let source = self.host.contains_key(&key);
        if end == CopyEnd::Done {
            self.device.insert(key, Copy::Committed);
        } else {
            self.device.remove(&key);
        }
        let counted: u64 = self.shard.counters().misses.iter().sum();
        let waiters = self.promoting.len() as u64;
        let answers = self.feed(Event::Onboarded { entry, end })?;
        // Each waiter has a miss of its own: take the shard's figure, within its bounds.
        let counted = self.shard.counters().misses.iter().sum::<u64>() - counted;
        let lost = matches!(end, CopyEnd::Damaged | CopyEnd::SourceLost) && source;
        must!(counted <= 1 + waiters && (!lost || counted >= 1), "{counted} misses for one failed promotion");
        self.misses += counted;
        if end != CopyEnd::Done && !self.host.contains_key(&key) {
            self.gone.insert(
                key,
                if end == CopyEnd::Damaged && source { MissReason::FailedCheck } else { MissReason::LeaseLost },
            );
        }
        self.settle(answers)
    }

    /// A copy disappears under everybody: failed check or lease lost.
    fn lose(&mut self) -> Checked {
        let tier = if self.random.chance(50) { Tier::Device } else { Tier::Host };
        let copies = if tier == Tier::Device { &self.device } else { &self.host };
        let keys: Vec<CopyKey> =
            copies.iter().filter(|(_, copy)| **copy == Copy::Committed).map(|(key, _)| *key).collect();
        let Some(key) = (!keys.is_empty()).then(|| keys[self.random.below(keys.len())]) else {
            return Ok(());
        };
        let reason = if self.random.chance(50) { MissReason::FailedCheck } else { MissReason::LeaseLost };
        let (entry, _) = self.shard.view(&key).ok_or(format!("{key:?} has a copy and no entry"))?;
        self.misses += 1;
        self.feed(Event::Lost { entry, tier, reason })?;
        must!(!if tier == Tier::Device { &self.device } else { &self.host }.contains_key(&key), "lost {key:?} stays");
        self.went(key, reason);
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
            30..50 => self.reserve(id),
            50..55 if self.failures => self.reopen(id).and_then(|()| self.recommit(id)),
            50..72 => self.commit(id),
            72..78 => self.prefetch(id),
            78..88 => self.finish_demotion(),
            88..94 => self.finish_onboard(),
            94..97 if self.failures => self.lose(),
            97..100 if self.failures || self.bug == Bug::LeasedEvicted => self.lease(),
            _ => Ok(()),
        }
    }

    /// Lets everything under way end, closes every sequence, and looks for what is left.
    fn wind_down(&mut self) -> Checked {
        while !(self.demotions.is_empty() && self.onboards.is_empty()) {
            self.finish_demotion()?;
            self.finish_onboard()?;
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
        must!(self.open_slots == 0 && self.shard.open_slots() == 0, "open blocks without an owner");
        Ok(())
    }
}

/// What a run did: requests granted and refused, refusals checked, demotions, promotions, recomputed blocks.
type Did = [u64; 6];

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
    let (demoted, promoted) = (counters.demoted_blocks, counters.promoted_blocks);
    Ok([model.granted, model.refused, model.refusals_checked, demoted, promoted, model.recomputed])
}

fn budgets(seed: u64) -> Budgets {
    let shapes = [(4, 0), (4, 3), (6, 12), (3, 30), (12, 2), (24, 24)];
    let (device_slots, host_slots) = shapes[seed as usize % shapes.len()];
    Budgets { device_slots, host_slots }
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
    for failures in [false, true] {
        let mut did = [0; 6];
        for seed in seeds(60) {
            let one = run(seed, budgets(seed), failures, Bug::None, 600).unwrap_or_else(|problem| panic!("{problem}"));
            did.iter_mut().zip(one).for_each(|(all, one)| *all += one);
        }
        println!("failures {failures}: granted, refused, refusals checked, demoted, promoted, recomputed: {did:?}");
        let unused = did[if failures { 2 } else { 5 }];
        let used = did.iter().filter(|count| **count > 100).count();
        assert!(std::env::var("KVTIER_SEED").is_ok() || (used == 5 && unused == 0), "{did:?}: a path was hardly taken");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in [3, 4, 5] {
        assert_eq!(run(seed, budgets(seed), true, Bug::None, 400), run(seed, budgets(seed), true, Bug::None, 400));
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
    ];
    for (bug, words) in bugs {
        let caught: Vec<String> = (0..12).filter_map(|seed| run(seed, budgets(seed), false, bug, 400).err()).collect();
        assert!(caught.iter().any(|problem| problem.contains(words)), "{bug:?} was not caught: {caught:?}");
    }
}
