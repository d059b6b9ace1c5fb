//! What readers get: the longest run of blocks that is there, and their entries for as long as they read.
//!
//! The disk's own index is the truth about the disk. The shard knows of a record only for blocks that it has an entry for; and only while
//! such a block is live, and so pinned, is the record sure to be there. So each request brings along what the disk has just now:
//! - a record that the shard did not know of is taken over, also for a lost block that is still read: it is there again;
//! - one that has gone is forgotten, without a trace when another copy is there. A pinned one is not: the disk may be offline and come back;
//! - a block that only the disk has is a hit only if the disk has it just now.
//!
//! A block on the disk alone takes an entry of [`crate::manager::Budgets::below_entries`] while it is live. When those run out the run of
//! hits ends there, with the reason `quota`.

use crate::chain::Link;
use crate::form::Accept;
use crate::key::CopyKey;
use crate::manager::action::{Action, Actions};
use crate::manager::counters::side;
use crate::manager::entry::{CopyState, EntryId};
use crate::manager::event::Below;
use crate::manager::shard::{DEVICE, Shard};
use crate::miss::MissReason;
use crate::units::Tier;

#[derive(Clone, Copy)]
enum Found {
    Entry(EntryId, Tier),
    /// On the disk, and not in the shard's index.
    Record,
}

impl Found {
    fn tier(self) -> Tier {
        match self {
            Found::Entry(_, tier) => tier,
            Found::Record => Tier::Disk,
        }
    }
}

/// What the hits before this one would take, while none is taken yet.
#[derive(Clone, Copy, Default)]
struct Ahead {
    below: u32,
    entries: u32,
}

/// Why a record that was there is not: the disk may have no memory of it.
fn gone(reason: MissReason) -> MissReason {
    if reason == MissReason::NeverStored { MissReason::Evicted } else { reason }
}

fn at(below: &[Below], index: usize) -> Below {
    below.get(index).copied().unwrap_or(Err(MissReason::NeverStored))
}

impl Shard {
    /// The tiers of the longest run of `keys` that is there, and why the next is not. Changes nothing.
    pub fn peek(&self, keys: &[CopyKey], below: &[Below], accept: Accept) -> (Vec<Tier>, Option<MissReason>) {
        let mut tiers = Vec::with_capacity(keys.len());
        let mut ahead = Ahead::default();
        for (index, key) in keys.iter().enumerate() {
            match self.hit(key, at(below, index), accept, ahead) {
                Ok(found) => {
                    ahead.below += u32::from(self.sinks(found));
                    ahead.entries += u32::from(matches!(found, Found::Record));
                    tiers.push(found.tier());
                }
                Err(reason) => return (tiers, Some(reason)),
            }
        }
        (tiers, None)
    }

    pub(crate) fn acquire(
        &mut self,
        keys: &[CopyKey],
        links: &[Link],
        below: &[Below],
        accept: Accept,
        actions: &mut Actions,
    ) {
        let mut hits = Vec::with_capacity(links.len());
        let mut miss = None;
        for (index, (key, link)) in keys.iter().zip(links).enumerate() {
            let found = self.hit(key, at(below, index), accept, Ahead::default());
            self.heed(key, found.ok(), at(below, index), actions);
            let found = match found {
                Ok(found) => found,
                Err(reason) => {
                    miss = Some(reason);
                    break;
                }
            };
            let id = match found {
                Found::Entry(id, _) => id,
                Found::Record => self.admit(*key, *link, actions),
            };
            self.set_live(id, self.slab[id].live + 1, actions);
            self.counters.hits[side(found.tier())] += 1;
            hits.push((id, found.tier()));
        }
        // A block that another sequence computes right now is waited for, and looked up again: no miss.
        let waits = keys.get(hits.len()).is_some_and(|key| self.opened.contains_key(key));
        if let Some(reason) = miss
            && !waits
        {
            self.counters.miss(reason);
        }
        actions.push(Action::Acquired { hits, miss });
    }

    /// Takes the answer to an acquire out of the counters again: it was made for a reader who is still to come, and who counts it.
    pub fn uncount(&mut self, hits: &[(EntryId, Tier)], miss: Option<MissReason>) {
        hits.iter().for_each(|(_, tier)| self.counters.hits[side(*tier)] -= 1);
        miss.into_iter().for_each(|reason| self.counters.misses[reason as usize] -= 1);
    }

    pub(crate) fn release(&mut self, entries: &[EntryId], actions: &mut Actions) {
        for id in entries.iter().rev() {
            self.set_live(*id, self.slab[*id].live - 1, actions);
            self.free_if_unused(*id);
        }
    }

    /// Takes over what the disk's index says of a block that has an entry. `found`: what was found for its key, perhaps another variant of it.
    fn heed(&mut self, key: &CopyKey, found: Option<Found>, below: Below, actions: &mut Actions) {
        let known = match found {
            Some(Found::Entry(id, _)) if self.slab[id].key == *key => Some(id),
            _ => self.slab.find(key),
        };
        let Some(id) = known else {
            return;
        };
        let entry = &self.slab[id];
        match below {
            Ok(()) if !entry.on_disk() => self.stands_on_disk(id, actions),
            Err(reason) if entry.on_disk() && entry.live == 0 => {
                self.set_disk(id, CopyState::None, actions);
                self.went(id, Tier::Disk, gone(reason));
            }
            _ => {}
        }
    }

    /// An entry for a block that the disk has.
    fn admit(&mut self, key: CopyKey, link: Link, actions: &mut Actions) -> EntryId {
        let id = self.slab.insert(key, link);
        self.stands_on_disk(id, actions);
        id
    }

    /// One block: what there is, if it may be had.
    fn hit(&self, key: &CopyKey, below: Below, accept: Accept, ahead: Ahead) -> Result<Found, MissReason> {
        let found = self.find(key, below, accept)?;
        let sinks = self.below + ahead.below < self.budgets.below_entries || !self.sinks(found);
        let fits = self.slab.free_entries() > self.open - self.open_held + ahead.entries;
        if sinks && (fits || !matches!(found, Found::Record)) { Ok(found) } else { Err(MissReason::Quota) }
    }

    /// True for a block that will take one of the entries below when it becomes live.
    fn sinks(&self, found: Found) -> bool {
        match found {
            // One that is just being promoted has a slot, even if its source is lost.
            Found::Entry(id, tier) => {
                let entry = &self.slab[id];
                tier == Tier::Disk && entry.live == 0 && entry.copies[DEVICE] == CopyState::None
            }
            Found::Record => true,
        }
    }

    fn find(&self, own: &CopyKey, below: Below, accept: Accept) -> Result<Found, MissReason> {
        let mut reason = None;
        for id in self.slab.variants(own) {
            let entry = &self.slab[id];
            let admitted = accept.admits(entry.key.form, entry.key.provenance, own.provenance);
            // What the disk has now was looked up under the reader's own key; of another copy it is known only while it is pinned.
            let on_disk = if entry.key == *own { below.is_ok() } else { entry.is_pinned() };
            match (entry.readable().or(on_disk.then_some(Tier::Disk)), admitted) {
                (Some(tier), true) => return Ok(Found::Entry(id, tier)),
                (Some(_), false) => reason = Some(MissReason::Provenance),
                (None, true) => {
                    let record = below.err().filter(|_| entry.on_disk()).map(gone);
                    reason = reason.or(entry.loss).or(record);
                }
                (None, false) => {}
            }
        }
        if below.is_ok() && accept.admits(own.form, own.provenance, own.provenance) {
            return Ok(Found::Record);
        }
        let ghost = || self.ghosts.find(own).map(|ghost| ghost.reason);
        Err(reason.or_else(ghost).or(below.err()).unwrap_or(MissReason::NeverStored))
    }
}
