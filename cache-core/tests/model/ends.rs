//! How copies end, and how they are lost.

use cache_core::key::CopyKey;
use cache_core::manager::{Action, CopyEnd, EntryId, Event};
use cache_core::miss::MissReason;
use cache_core::units::Tier;

use super::{Checked, Copy, Model};
use crate::must;

/// Room and promotion answers are taken in by the model; nothing else may come unasked.
pub fn settle(answers: Vec<Action>) -> Checked {
    must!(answers.is_empty(), "{answers:?} to nobody");
    Ok(())
}

impl Model {
    fn end(&mut self) -> CopyEnd {
        match self.random.below(if self.failures { 100 } else { 1 }) {
            90..93 => CopyEnd::Damaged,
            93..95 => CopyEnd::SourceLost,
            95..98 => CopyEnd::Failed,
            98..100 => CopyEnd::Full,
            _ => CopyEnd::Done,
        }
    }

    pub fn finish_demotion(&mut self) -> Checked {
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
        settle(answers)
    }

    pub fn finish_onboard(&mut self) -> Checked {
        if self.onboards.is_empty() {
            return Ok(());
        }
        let index = self.random.below(self.onboards.len());
        let (entry, key) = self.onboards.swap_remove(index);
        if self.promotes_from_disk() {
            return self.finish_load(entry, key, Tier::Device);
        }
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
        settle(answers)
    }

    pub fn finish_store(&mut self) -> Checked {
        if self.stores.is_empty() {
            return Ok(());
        }
        let index = self.random.below(self.stores.len());
        let (key, spill) = self.stores.swap_remove(index);
        let turned_down = !spill && !self.failures && self.random.chance(15);
        let end = if turned_down { CopyEnd::Full } else { self.end() };
        let condemned = matches!(end, CopyEnd::Damaged | CopyEnd::SourceLost) && self.device.contains_key(&key);
        self.stored(key, spill, end)?;
        let answers = self.run()?;
        if condemned {
            self.went(key, if end == CopyEnd::Damaged { MissReason::FailedCheck } else { MissReason::LeaseLost });
        }
        settle(answers)
    }

    pub fn finish_any_load(&mut self) -> Checked {
        if self.loads.is_empty() {
            return Ok(());
        }
        let index = self.random.below(self.loads.len());
        let (entry, key) = self.loads.swap_remove(index);
        self.finish_load(entry, key, Tier::Host)
    }

    /// A record was read into a slot of the host, or of the device where there is no host.
    fn finish_load(&mut self, entry: EntryId, key: CopyKey, into: Tier) -> Checked {
        // Nobody pins a record that nobody reads.
        let there = self.disk.contains(&key);
        let end = match self.end() {
            CopyEnd::Done if !there => CopyEnd::SourceLost,
            end => end,
        };
        let copies = if into == Tier::Device { &mut self.device } else { &mut self.host };
        match end {
            CopyEnd::Done => drop(copies.insert(key, Copy::Committed)),
            _ => drop(copies.remove(&key)),
        }
        if end == CopyEnd::SourceLost {
            self.disk.remove(&key);
        }
        let counted: u64 = self.shard.counters().misses.iter().sum();
        let waiters = self.promoting.len() as u64;
        let live = self.readers(&key) > 0 && self.pins.contains(&key);
        let event = match into {
            Tier::Device => Event::Onboarded { entry, end },
            _ => Event::Loaded { entry, end },
        };
        let answers = self.feed(event)?;
        // Each waiter has a miss of its own: take the shard's figure, within its bounds.
        let counted = self.shard.counters().misses.iter().sum::<u64>() - counted;
        let lost = matches!(end, CopyEnd::Damaged | CopyEnd::SourceLost) && live;
        // A record that went while the block was computed again is missed by nobody.
        let missed = lost && (end == CopyEnd::Damaged || self.readable(&key).is_none());
        must!(counted <= 1 + waiters && (!missed || counted >= 1), "{counted} misses for one failed load");
        self.misses += counted;
        must!(!lost || !self.pins.contains(&key), "lost {key:?} stays pinned");
        if end == CopyEnd::Damaged && live {
            must!(!self.disk.contains(&key), "damaged {key:?} stays on the disk");
        }
        if end != CopyEnd::Done {
            self.went(key, if end == CopyEnd::Damaged { MissReason::FailedCheck } else { MissReason::Evicted });
        }
        settle(answers)
    }

    /// A copy disappears under everybody: failed check or lease lost.
    pub fn lose(&mut self) -> Checked {
        if self.random.chance(30) {
            return self.lose_record();
        }
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

    /// A live block's record cannot be read any more.
    fn lose_record(&mut self) -> Checked {
        let keys: Vec<CopyKey> = self.pins.iter().copied().collect();
        let Some(key) = (!keys.is_empty()).then(|| keys[self.random.below(keys.len())]) else {
            return Ok(());
        };
        let reasons = [MissReason::FailedCheck, MissReason::Evicted, MissReason::TierOffline, MissReason::Deadline];
        let reason = reasons[self.random.below(reasons.len())];
        if reason == MissReason::Evicted {
            self.disk.remove(&key);
        }
        let (entry, _) = self.shard.view(&key).ok_or(format!("{key:?} is pinned and has no entry"))?;
        self.loses_record(&key, reason);
        let answers = self.feed(Event::Lost { entry, tier: Tier::Disk, reason })?;
        must!(!self.pins.contains(&key), "lost {key:?} stays pinned");
        let damaged = reason == MissReason::FailedCheck && self.disk.contains(&key);
        must!(!damaged, "damaged {key:?} stays on the disk");
        settle(answers)
    }
}
