//! Random operations on the embedded cache: whatever happens, a block that is there has its own bytes, a block that a sequence reads is
//! lost only when its copy was taken away, and no budget is exceeded. One seed alone: `KVTIER_SEED=n`.

use std::collections::{BTreeMap, HashSet};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering};

use cache_core::chain::Link;
use cache_core::form::Accept;
use cache_core::hash::BlockHash;
use cache_core::miss::MissReason;
use cache_core::units::Tier;
use gpu_tier::cpu::Link as HostLink;
use kvtier_sdk::cache::{BlockPlace, Committed, Grant, KvCache, SequenceId};
use kvtier_sdk::contract::rig::{HOME, Rig, SHAPE, branch, expected, host_bytes};

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        ((self.0 >> 33) % limit as u64) as usize
    }
}

struct Running {
    chain: usize,
    /// Links of its full blocks.
    have: usize,
    /// Open blocks behind them.
    open: usize,
}

#[derive(Default, Debug)]
struct Did {
    hits: usize,
    misses: u64,
    refused: usize,
    revoked: usize,
    recomputed: usize,
    read_in_host: usize,
    prefetched_bytes: u64,
}

struct World {
    rig: Rig,
    random: Random,
    chains: Vec<Vec<Link>>,
    running: BTreeMap<SequenceId, Running>,
    /// Every block that was ever committed.
    stored: HashSet<BlockHash>,
    /// Blocks whose host copy was taken away since they were last committed.
    revoked: HashSet<BlockHash>,
    did: Did,
}

impl World {
    fn new(seed: u64) -> World {
        let (device_slots, host_slots) = [(3, 24), (8, 4), (5, 10), (6, 0)][seed as usize % 4];
        let link = if seed.is_multiple_of(2) { HostLink::InPlace } else { HostLink::Strict { bytes_per_second: None } };
        let host = if host_slots == 0 { 0 } else { host_bytes(device_slots, host_slots) };
        let rig = Rig::open(link, SHAPE, device_slots, host);
        if link != HostLink::InPlace {
            rig.cache.protect_host_reader().unwrap();
        }
        let mut random = Random(seed);
        let chains = (0..5)
            .map(|index| branch(HOME, index % 2, random.below(4) as u32, 10 + index, 3 + random.below(5) as u32))
            .collect();
        World {
            rig,
            random,
            chains,
            running: BTreeMap::new(),
            stored: HashSet::new(),
            revoked: HashSet::new(),
            did: Did::default(),
        }
    }

    fn some(&mut self) -> Option<SequenceId> {
        let ids: Vec<SequenceId> = self.running.keys().copied().collect();
        (!ids.is_empty()).then(|| ids[self.random.below(ids.len())])
    }

    fn open(&mut self) {
        let id = self.rig.cache.open(HOME);
        let chain = self.random.below(self.chains.len());
        self.running.insert(id, Running { chain, have: 0, open: 0 });
        self.acquire(id);
    }

    fn acquire(&mut self, id: SequenceId) {
        let sequence = self.running.get_mut(&id).unwrap();
        if sequence.open > 0 {
            return;
        }
        let links = &self.chains[sequence.chain][sequence.have..];
        let seen = self.rig.cache.lookup(HOME, links, Accept::Exact);
        let acquired = self.rig.cache.acquire(id, links, Accept::Exact).unwrap();
        assert_eq!(seen, acquired);
        let found = acquired.tiers.len();
        assert!(
            links[..found].iter().all(|link| self.stored.contains(&link.hash)),
            "a hit on a block that was never stored"
        );
        match links.get(found) {
            None => assert_eq!(acquired.miss, None),
            Some(link) if self.stored.contains(&link.hash) => {
                let reason = acquired.miss.unwrap();
                assert!(
                    matches!(reason, MissReason::Evicted | MissReason::LeaseLost | MissReason::NeverStored),
                    "{reason:?}"
                );
                assert!(reason != MissReason::LeaseLost || self.revoked.contains(&link.hash));
            }
            Some(_) => assert_eq!(acquired.miss, Some(MissReason::NeverStored)),
        }
        self.did.misses += u64::from(acquired.miss.is_some());
        self.did.hits += found;
        sequence.have += found;
    }

    fn reserve(&mut self, id: SequenceId) {
        let sequence = &self.running[&id];
        let known = self.random.below(2) == 0;
        let Some(link) = self.chains[sequence.chain].get(sequence.have + sequence.open) else {
            return;
        };
        match self.rig.reserve(id, known.then_some(*link)) {
            Grant::Granted => self.running.get_mut(&id).unwrap().open += 1,
            Grant::PendingElsewhere => assert!(known && self.running.values().any(|other| other.open > 0)),
            Grant::NoRoom(figures) => {
                let left =
                    figures.device_slots - figures.device_live_slots + figures.host_slots - figures.host_live_slots;
                assert!(
                    figures.wanted_slots == 1
                        && (left == 0 || self.did.revoked > 0 || self.all_open(figures.device_slots)),
                    "{figures:?}"
                );
                self.did.refused += 1;
            }
        }
    }

    fn all_open(&self, slots: u32) -> bool {
        self.running.values().map(|sequence| sequence.open as u32).sum::<u32>() == slots
    }

    fn commit(&mut self, id: SequenceId) {
        let sequence = self.running.get_mut(&id).unwrap();
        if sequence.open == 0 {
            return;
        }
        let (block, link) = (sequence.have as u32, self.chains[sequence.chain][sequence.have]);
        (sequence.have, sequence.open) = (sequence.have + 1, sequence.open - 1);
        let present = self.rig.cache.lookup(HOME, &[link], Accept::Exact).miss.is_none();
        let committed = self.rig.fill(id, block, link);
        assert_eq!(committed, if present { Committed::Present } else { Committed::Inserted });
        if !present {
            self.revoked.remove(&link.hash);
        }
        self.stored.insert(link.hash);
    }

    /// Reads everything; computes again what was taken away.
    fn verify(&mut self, id: SequenceId) {
        let sequence = &self.running[&id];
        let links = self.chains[sequence.chain][..sequence.have].to_vec();
        let places = self.rig.cache.places(id).unwrap();
        assert_eq!(places.len(), sequence.have + sequence.open);
        let mut lost = Vec::new();
        for (index, (place, link)) in places.iter().zip(&links).enumerate() {
            let bytes = self.rig.read(place);
            if let BlockPlace::Lost(reason) = place {
                assert_eq!(*reason, MissReason::LeaseLost);
                assert!(self.revoked.contains(&link.hash), "live block {index} was lost although nobody took it away");
                lost.push(index);
                continue;
            }
            assert!(self.rig.cache.check(id, index as u32, place));
            assert!(
                bytes.as_deref() == Some(&expected(link, &SHAPE)[..]),
                "block {index} at {place:?} has other bytes"
            );
            self.did.read_in_host += usize::from(matches!(place, BlockPlace::Host(..)));
        }
        drop(places);
        for index in lost {
            if self.rig.cache.reopen(id, index as u32).unwrap() == Grant::Granted {
                self.rig.fill(id, index as u32, links[index]);
                self.revoked.remove(&links[index].hash);
                self.did.recomputed += 1;
            } else {
                // No room to compute it again now: give the sequence up, as an engine would.
                return self.close(id);
            }
        }
    }

    fn revoke(&mut self) {
        let chain = self.random.below(self.chains.len());
        let link = self.chains[chain][self.random.below(self.chains[chain].len())];
        if self.rig.cache.revoke_host(HOME, link) {
            self.revoked.insert(link.hash);
            self.did.revoked += 1;
        }
    }

    fn truncate(&mut self, id: SequenceId) {
        let sequence = self.running.get_mut(&id).unwrap();
        let keep = self.random.below(sequence.have + sequence.open + 1);
        self.rig.cache.truncate(id, keep as u32).unwrap();
        sequence.open = keep.saturating_sub(sequence.have);
        sequence.have = sequence.have.min(keep);
    }

    fn close(&mut self, id: SequenceId) {
        self.running.remove(&id);
        self.rig.cache.close(id);
    }

    fn step(&mut self) {
        let Some(id) = self.some() else {
            return self.open();
        };
        match self.random.below(100) {
            0..8 if self.running.len() < 4 => self.open(),
            0..14 => self.close(id),
            14..22 => self.acquire(id),
            22..48 => self.reserve(id),
            48..74 => self.commit(id),
            74..88 => self.verify(id),
            88..92 => self.did.prefetched_bytes += self.rig.cache.prefetch(id, Tier::Device).unwrap().to_device_bytes,
            92..96 => self.revoke(),
            _ => self.truncate(id),
        }
    }
}

#[test]
fn random_operations_never_give_other_bytes() {
    let seeds = match std::env::var("KVTIER_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..24).collect(),
    };
    let mut all = Did::default();
    for seed in seeds {
        println!("seed {seed}");
        let mut world = World::new(seed);
        for _ in 0..400 {
            world.step();
            world.rig.check_budgets();
        }
        for id in world.running.keys().copied().collect::<Vec<_>>() {
            world.verify(id);
        }
        for id in world.running.keys().copied().collect::<Vec<_>>() {
            world.close(id);
        }
        world.rig.check_budgets();
        assert_eq!(world.rig.cache.stats().hits.iter().sum::<u64>(), world.did.hits as u64);
        let did = world.did;
        all.hits += did.hits;
        all.misses += did.misses;
        all.refused += did.refused;
        all.revoked += did.revoked;
        all.recomputed += did.recomputed;
        all.read_in_host += did.read_in_host;
        all.prefetched_bytes += did.prefetched_bytes;
    }
    println!("{all:?}");
    if std::env::var("KVTIER_SEED").is_err() {
        let least = [all.hits, all.refused, all.revoked, all.recomputed, all.read_in_host].into_iter().min();
        assert!(least > Some(10) && all.prefetched_bytes > 0, "{all:?}: a path was hardly taken");
    }
}

/// Threads that share one cache, each with its own sequences over the same prefixes, while copies are taken away between the reading of
/// a block and its check.
#[test]
fn threads_share_prefixes_and_never_see_other_bytes() {
    const THREADS: u32 = 3;
    // Each slot taken away rests for two seconds: few enough that the others hold everything.
    let rig = Rig::open(HostLink::InPlace, SHAPE, 10, host_bytes(10, 40));
    let start = Barrier::new(THREADS as usize);
    let tally = Tally { lost: AtomicU64::new(0), kept: AtomicU64::new(0), revocations_left: AtomicU64::new(20) };
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (rig, start, tally) = (&rig, &start, &tally);
            scope.spawn(move || {
                start.wait();
                for round in 0..60 {
                    let links = branch(HOME, 1, 3, 2 + (round + thread) % 4, 6);
                    let sequence = rig.cache.open(HOME);
                    complete(rig, sequence, &links);
                    read_all(rig, sequence, &links, round, tally);
                    rig.cache.close(sequence);
                }
            });
        }
    });
    rig.check_budgets();
    let (lost, kept) = (tally.lost.into_inner(), tally.kept.into_inner());
    println!("{kept} host reads kept, {lost} thrown away");
    assert!(kept > 0 && lost > 0);
}

struct Tally {
    lost: AtomicU64,
    kept: AtomicU64,
    revocations_left: AtomicU64,
}

/// Acquires or computes every block of a sequence, taking turns with others that compute the same ones.
fn complete(rig: &Rig, sequence: SequenceId, links: &[Link]) {
    let mut have = 0;
    while have < links.len() {
        have += rig.cache.acquire(sequence, &links[have..], Accept::Exact).unwrap().tiers.len();
        if have == links.len() {
            return;
        }
        match rig.reserve(sequence, Some(links[have])) {
            Grant::Granted => {
                rig.fill(sequence, have as u32, links[have]);
                have += 1;
            }
            Grant::PendingElsewhere => std::thread::yield_now(),
            Grant::NoRoom(figures) => panic!("{figures:?} hold three sequences of six blocks"),
        }
    }
}

/// Reads the blocks that are in the host arena; a lost lease throws the bytes away, a good one vouches for them.
fn read_all(rig: &Rig, sequence: SequenceId, links: &[Link], round: u32, tally: &Tally) {
    let places = rig.cache.places(sequence).unwrap();
    for (index, (place, link)) in places.iter().zip(links).enumerate() {
        let (BlockPlace::Host(..), Some(bytes)) = (place, rig.read(place)) else {
            continue;
        };
        let left = &tally.revocations_left;
        if round % 5 == 4 && left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
        {
            rig.cache.revoke_host(HOME, *link);
            assert!(!rig.cache.check(sequence, index as u32, place));
            tally.lost.fetch_add(1, Ordering::Relaxed);
        } else if rig.cache.check(sequence, index as u32, place) {
            assert!(bytes == expected(link, &SHAPE), "round {round} block {index} has other bytes");
            tally.kept.fetch_add(1, Ordering::Relaxed);
        } else {
            tally.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}
