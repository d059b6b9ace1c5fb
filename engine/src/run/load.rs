//! Load or compute: what a sequence does about blocks that are there, but far away.
//!
//! Blocks on the disk (of this process, or of its daemon) can be loaded, or computed from their tokens; `cache_core`'s meeting point says where the
//! one ends and the other begins. A sequence computes rows in order from the front, and a row needs the keys and values of everything before it,
//! never of anything behind it. So the plan "compute blocks up to m, load those from m on" begins with the loads, which need nobody, and computes
//! meanwhile; when it has computed up to m, it takes what has come. Rows of blocks that were loaded are never computed. If not all of them have come, the
//! question is asked again for what is left: it waits, or computes on, so a block that comes too late is computed.
//!
//! | bits | why they do not depend on the plan |
//! |---|---|
//! | lossless blocks | a block has the same bytes whoever computes it, and whether it was computed or read (`canonical numerics`) |
//! | closed blocks | a lossy sequence **always loads**: which form a row reads follows from positions and policy, but what is computed after a hit is clamped, and the clamp is part of the provenance of what follows. Computing instead of loading would move it, and with it the bits |
//!
//! Rates are measured where something ends: a step of one sequence that read nothing from below is a report on computing, a load that was waited for
//! one on loading. What was loaded behind a computation that took longer says only that loading was no slower than that.

use std::time::Instant;

use cache_core::chain::Link;
use cache_core::form::Accept;
use cache_core::manager::{Lies, LoadRate, Prefix, Rates, plan};
use cache_core::units::Tier;
use kvtier_sdk::cache::{CacheError, SequenceId};

use crate::run::sequence::Sequence;
use crate::run::tables::Caches;

/// What becomes of blocks that are there but far away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoadPolicy {
    /// They are loaded, however long that takes.
    Always,
    /// Loaded or computed, whichever is expected to be quicker, from what was measured. Before anything was measured they are loaded.
    #[default]
    Auto,
    /// Those before this block are computed: for tests, which show that bits do not depend on it.
    MeetAt(u32),
}

/// The path from below: the disk's, or the daemon's.
const BELOW: usize = 0;

/// Loads that go on while their sequence computes what is before them.
#[derive(Debug)]
pub(crate) struct Ahead {
    /// Keeps the blocks.
    keeper: SequenceId,
    began: Instant,
    /// Number of the first of them, and where they lay.
    first: u32,
    tiers: Vec<Tier>,
}

impl Ahead {
    /// Lets go of the blocks.
    pub(crate) fn end(&self, caches: &Caches) {
        caches.lossless.close(self.keeper);
    }

    /// Where a block lay before it was loaded.
    fn tier(&self, block: u32) -> Option<Tier> {
        self.tiers.get(block.checked_sub(self.first)? as usize).copied()
    }
}

/// What an engine has measured, and what it does about it.
#[derive(Debug)]
pub(crate) struct Loading {
    policy: LoadPolicy,
    rates: Rates,
}

/// What a sequence does about the blocks that were found for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    /// It takes all of them.
    Take,
    /// It takes those before `near`, computes up to `until`, and loads what lies behind `meet` meanwhile. Numbers of blocks.
    Compute { near: u32, until: u32, meet: u32 },
}

impl Loading {
    pub(crate) fn new(policy: LoadPolicy) -> Loading {
        Loading { policy, rates: Rates { paths: vec![LoadRate::default()], ..Rates::default() } }
    }

    /// Computing `tokens` tokens from `start` on took so long.
    pub(crate) fn computed(&mut self, start: u32, tokens: u32, began: Instant) {
        self.rates.compute.report(start, tokens, nanoseconds(began));
    }

    /// Loading so many bytes took so long, and was waited for.
    pub(crate) fn loaded(&mut self, bytes: u64, began: Instant) {
        self.rates.paths[BELOW].report(bytes, nanoseconds(began), 0);
    }

    /// Loading so many bytes took no longer than this.
    fn loaded_within(&mut self, bytes: u64, began: Instant) {
        let expected = self.rates.paths[BELOW].nanoseconds(bytes);
        if expected.is_some_and(|expected| expected > nanoseconds(began) as f64) {
            self.loaded(bytes, began);
        }
    }

    /// What to do about blocks from number `first` on that lie in these tiers.
    fn decide(&self, first: u32, tiers: &[Tier], block_tokens: u32, slot_bytes: u64) -> Decision {
        let is_far = |tier: &Tier| matches!(tier, Tier::Disk | Tier::Remote);
        let Some(near) = tiers.iter().position(is_far) else {
            return Decision::Take;
        };
        let lies = |tier: &Tier| if is_far(tier) { Lies::Far { path: BELOW, bytes: slot_bytes } } else { Lies::Near };
        let blocks: Vec<Lies> = tiers.iter().map(lies).collect();
        let meet = match self.policy {
            LoadPolicy::Always => 0,
            LoadPolicy::MeetAt(block) => block.saturating_sub(first).min(tiers.len() as u32),
            LoadPolicy::Auto => {
                let prefix = Prefix { first_token: first * block_tokens, block_tokens, blocks: &blocks };
                plan(&prefix, &self.rates).meet
            }
        };
        if meet as usize <= near {
            return Decision::Take;
        }
        // Blocks that are near are taken, not computed.
        let far = tiers[near..meet as usize].iter().take_while(|tier| is_far(tier)).count();
        Decision::Compute { near: first + near as u32, until: first + (near + far) as u32, meet: first + meet }
    }
}

fn nanoseconds(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

impl Loading {
    /// True when there is nothing to decide.
    fn takes_all(&self) -> bool {
        let is_known =
            self.rates.compute.nanoseconds(0, 1).is_some() && self.rates.paths[BELOW].nanoseconds(1).is_some();
        match self.policy {
            LoadPolicy::Always => true,
            LoadPolicy::Auto => !is_known,
            LoadPolicy::MeetAt(_) => false,
        }
    }

    /// Decides about the blocks of `links`, the sequence's full ones from block 0 on, and begins the loads; returns how many of them it takes now.
    pub(crate) fn begin(&self, caches: &Caches, sequence: &mut Sequence, links: &[Link]) -> Result<usize, CacheError> {
        sequence.computes_until = None;
        if sequence.tables.closed.is_some() || !caches.publishes || self.takes_all() {
            return Ok(links.len());
        }
        let (first, cache) = (sequence.tables.blocks, &caches.lossless);
        let tiers = cache.lookup(sequence.namespace, &links[first as usize..], Accept::Exact).tiers;
        let slot_bytes = cache.shape().slot_bytes();
        let Decision::Compute { near, until, meet } = self.decide(first, &tiers, caches.block_tokens, slot_bytes)
        else {
            return Ok(links.len());
        };
        let end = first as usize + tiers.len();
        if sequence.tables.ahead.is_none() && (meet as usize) < end {
            let keeper = cache.load_ahead(sequence.namespace, &links[meet as usize..end])?;
            let tiers = tiers[(meet - first) as usize..].to_vec();
            sequence.tables.ahead = Some(Ahead { keeper, began: Instant::now(), first: meet, tiers });
        }
        cache.forgo(sequence.namespace, &links[near as usize..until as usize]);
        sequence.computes_until = Some(until * caches.block_tokens);
        Ok(near as usize)
    }

    /// The sequence has taken blocks that were found in these tiers, from number `first` on, and waited for so many bytes since `began`. Says in
    /// `tiers` where those lay that were loaded for it meanwhile; returns the bytes of these.
    pub(crate) fn taken(
        &mut self,
        caches: &Caches,
        sequence: &mut Sequence,
        first: u32,
        tiers: &mut [Tier],
        (bytes, began): (u64, Instant),
    ) -> u64 {
        let Some(ahead) = &sequence.tables.ahead else {
            if bytes > 0 {
                self.loaded(bytes, began);
            }
            return 0;
        };
        let mut came = 0;
        for (block, tier) in (first..).zip(tiers.iter_mut()) {
            let lay = ahead.tier(block).unwrap_or(*tier);
            came += u64::from(lay == Tier::Disk && lay != *tier);
            *tier = lay;
        }
        let came = came * caches.lossless.shape().slot_bytes();
        if bytes > 0 {
            self.loaded(bytes + came, ahead.began);
        } else if came > 0 {
            self.loaded_within(came, ahead.began);
        }
        if sequence.computes_until.is_none() {
            ahead.end(caches);
            sequence.tables.ahead = None;
        }
        came
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: Tier = Tier::Disk;
    const NEAR: Tier = Tier::Host;

    fn at(meet: u32, first: u32, tiers: &[Tier]) -> Decision {
        Loading::new(LoadPolicy::MeetAt(meet)).decide(first, tiers, 64, 1 << 20)
    }

    #[test]
    fn what_is_near_is_taken_and_not_computed() {
        assert_eq!(at(9, 0, &[NEAR, NEAR]), Decision::Take);
        assert_eq!(at(9, 3, &[]), Decision::Take);
        assert_eq!(at(2, 0, &[NEAR, NEAR, FAR]), Decision::Take);
        assert_eq!(at(3, 0, &[NEAR, FAR, FAR, FAR]), Decision::Compute { near: 1, until: 3, meet: 3 });
        assert_eq!(at(8, 4, &[FAR, NEAR, FAR, FAR]), Decision::Compute { near: 4, until: 5, meet: 8 });
    }

    #[test]
    fn nothing_is_computed_before_anything_was_measured() {
        let mut loading = Loading::new(LoadPolicy::Auto);
        let decide = |loading: &Loading| loading.decide(0, &[FAR; 40], 64, 1 << 20);
        assert_eq!(decide(&loading), Decision::Take);
        loading.rates.compute.report(0, 512, 8_000_000);
        assert_eq!(decide(&loading), Decision::Take);
        loading.rates.paths[BELOW].report(1 << 20, 1_000_000, 0);
        assert_eq!(decide(&loading), Decision::Compute { near: 0, until: 20, meet: 20 });
        let always = Loading { policy: LoadPolicy::Always, ..loading };
        assert_eq!(decide(&always), Decision::Take);
    }
}
