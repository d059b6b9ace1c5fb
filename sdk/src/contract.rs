//! What every cache that engines use must do, whatever is below its device: one suite, run over the tiers of one process and over a daemon.
//!
//! A part opens the cache that it wants through `open(device_slots)`; below the device there is room for a few dozen blocks more.

pub mod rig;

use cache_core::chain::Link;
use cache_core::form::Accept;
use cache_core::miss::MissReason;

use crate::cache::{BlockPlace, CacheError, Committed, Grant, KvCache, Want};
use rig::{Rig, SHAPE, branch, chain, expected};

/// Opens a cache with so many device slots.
pub type Open<'a> = &'a dyn Fn(u32) -> Rig;

/// Panics where the cache does not keep its part of the contract.
pub type Part = fn(Open<'_>);

/// Every part, by its name.
pub const PARTS: &[(&str, Part)] = &[
    ("a published prefix is read by the next sequence", published_prefix),
    ("a shared prefix is stored once, and an early token ends it", shared_prefix),
    ("another namespace shares nothing", other_namespace),
    ("more than the device holds comes back equal", over_the_device),
    ("two sequences over the device budget both finish", two_sequences),
    ("a device place that went stale does not check", stale_place),
    ("a foreign link is not committed", foreign_link),
    ("a wanted block that another sequence computes is pending", pending),
    ("an equal block that was first wins", first_wins),
    ("an open block is zeroed, and truncate frees it", open_block),
    ("a block that is given up is absent, and others are not", given_up),
    ("a look touches nothing", look),
    ("what is not there is an error", unknown),
];

/// Runs all parts.
pub fn run(open: Open<'_>) {
    for (name, part) in PARTS {
        println!("{name}");
        part(open);
    }
}

fn published_prefix(open: Open<'_>) {
    let rig = open(8);
    let home = rig.namespace("home");
    let links = chain(home, 1, 5);
    let (first, hits) = rig.run(home, &links);
    assert_eq!(hits, 0);
    let (second, hits) = rig.run(home, &links);
    assert_eq!(hits, 5);
    rig.verify(first, &links);
    rig.verify(second, &links);
    let stats = rig.cache.stats();
    assert_eq!((stats.blocks, stats.device_slots.0, stats.hits), (5, 5, [5, 0, 0]));
    rig.cache.close(first);
    rig.cache.close(second);
    assert_eq!(rig.cache.lookup(home, &links, Accept::Exact).tiers.len(), 5);
    rig.check_budgets();
}

fn shared_prefix(open: Open<'_>) {
    let rig = open(16);
    let home = rig.namespace("home");
    let (a, b) = (chain(home, 1, 5), branch(home, 1, 3, 2, 6));
    rig.run(home, &a);
    let (second, hits) = rig.run(home, &b);
    assert_eq!(hits, 3);
    rig.verify(second, &b);
    assert_eq!(rig.cache.stats().blocks, 5 + 3);
}

fn other_namespace(open: Open<'_>) {
    let rig = open(16);
    let [home, away] = ["home", "away"].map(|salt| rig.namespace(salt));
    rig.run(home, &chain(home, 1, 4));
    let (_, hits) = rig.run(away, &chain(away, 1, 4));
    assert_eq!((hits, rig.cache.stats().blocks), (0, 8));
    assert_eq!(rig.cache.stats().misses[MissReason::NeverStored as usize], 2);
}

fn over_the_device(open: Open<'_>) {
    let rig = open(4);
    let home = rig.namespace("home");
    let links = chain(home, 1, 10);
    let (sequence, _) = rig.run(home, &links);
    assert_eq!(rig.verify(sequence, &links), 6);
    // The front of the sequence stays in device memory.
    let places = rig.cache.places(sequence).unwrap();
    assert!(places[..3].iter().all(|place| matches!(place, BlockPlace::Device(..))));
    drop(places);
    rig.cache.close(sequence);
    let (again, hits) = rig.run(home, &links);
    assert_eq!(hits, 10);
    rig.verify(again, &links);
    rig.check_budgets();
}

fn two_sequences(open: Open<'_>) {
    let rig = open(5);
    let home = rig.namespace("home");
    let (a, b) = (chain(home, 1, 7), chain(home, 2, 7));
    let (first, second) = (rig.cache.open(home), rig.cache.open(home));
    for index in 0..7 {
        let wants =
            [(first, a[index]), (second, b[index])].map(|(sequence, link)| Want { sequence, blocks: vec![Some(link)] });
        assert_eq!(rig.cache.reserve(&wants).unwrap(), [Grant::Granted, Grant::Granted]);
        rig.fill(first, index as u32, a[index]);
        rig.fill(second, index as u32, b[index]);
        rig.verify(first, &a[..=index]);
        rig.verify(second, &b[..=index]);
        rig.check_budgets();
    }
}

/// Places held while another sequence takes the slots: the bytes under them are another's by then, and `check` says so.
fn stale_place(open: Open<'_>) {
    let rig = open(2);
    let home = rig.namespace("home");
    let (a, b) = (chain(home, 1, 2), chain(home, 2, 2));
    let (first, _) = rig.run(home, &a);
    let places = rig.cache.places(first).unwrap();
    assert!((0..2).all(|block| rig.cache.check(first, block as u32, &places[block])));
    let (second, _) = rig.run(home, &b);
    let others = rig.read(&places[0]).unwrap();
    assert!(others != expected(&a[0], &SHAPE), "this shows nothing unless the slot was taken");
    assert!((0..2).all(|block| !rig.cache.check(first, block as u32, &places[block])));
    drop(places);
    rig.verify(first, &a);
    rig.verify(second, &b);
}

/// A link that does not continue the sequence is refused before anything is sealed under it.
fn foreign_link(open: Open<'_>) {
    let rig = open(4);
    let home = rig.namespace("home");
    let (links, other) = (chain(home, 1, 3), chain(home, 2, 3));
    let (sequence, _) = rig.run(home, &links[..1]);
    assert_eq!(rig.reserve(sequence, Some(links[1])), Grant::Granted);
    for wrong in [links[2], other[1], Link { depth: 2, ..links[1] }, Link { parent: None, ..links[1] }] {
        assert!(rig.cache.commit(sequence, 1, &[wrong]).is_err(), "{wrong:?}");
    }
    rig.fill(sequence, 1, links[1]);
    rig.verify(sequence, &links[..2]);
    rig.cache.audit().unwrap();
}

fn pending(open: Open<'_>) {
    let rig = open(8);
    let home = rig.namespace("home");
    let links = chain(home, 1, 2);
    let (first, second) = (rig.cache.open(home), rig.cache.open(home));
    let wants = [first, second].map(|sequence| Want { sequence, blocks: links.iter().copied().map(Some).collect() });
    assert_eq!(rig.cache.reserve(&wants).unwrap(), [Grant::Granted, Grant::PendingElsewhere]);
    assert!(rig.cache.explain(home, links[0]).contains("computing it now"));
    rig.fill(first, 0, links[0]);
    rig.fill(first, 1, links[1]);
    assert_eq!(rig.cache.acquire(second, &links, Accept::Exact).unwrap().tiers.len(), 2);
    rig.verify(second, &links);
}

fn first_wins(open: Open<'_>) {
    let rig = open(4);
    let home = rig.namespace("home");
    let links = chain(home, 1, 1);
    let (first, second) = (rig.cache.open(home), rig.cache.open(home));
    assert_eq!((rig.reserve(first, None), rig.reserve(second, None)), (Grant::Granted, Grant::Granted));
    assert_eq!(rig.fill(first, 0, links[0]), Committed::Inserted);
    assert_eq!(rig.fill(second, 0, links[0]), Committed::Present);
    assert_eq!(rig.cache.stats().device_slots.0, 1, "the slot of the second is free again");
    rig.verify(second, &links);
    rig.check_budgets();
}

fn open_block(open: Open<'_>) {
    let rig = open(2);
    let home = rig.namespace("home");
    let links = chain(home, 1, 2);
    let sequence = rig.cache.open(home);
    for _ in 0..3 {
        assert_eq!(rig.reserve(sequence, None), Grant::Granted);
        let places = rig.cache.places(sequence).unwrap();
        assert!(rig.read(&places[0]).unwrap().iter().all(|byte| *byte == 0));
        rig.write(sequence, 0, links[0]);
        rig.cache.truncate(sequence, 0).unwrap();
        assert_eq!(rig.cache.stats().device_slots.0, 0);
    }
    rig.check_budgets();
}

fn given_up(open: Open<'_>) {
    let rig = open(8);
    let home = rig.namespace("home");
    let links = chain(home, 1, 3);
    let (sequence, _) = rig.run(home, &links);
    rig.cache.release(sequence, 1).unwrap();
    let places = rig.cache.places(sequence).unwrap();
    assert!(matches!(places[..], [BlockPlace::Device(..), BlockPlace::Absent, BlockPlace::Device(..)]), "{places:?}");
    drop(places);
    // It is an ordinary entry now, and found.
    let (other, hits) = rig.run(home, &links);
    assert_eq!(hits, 3);
    rig.verify(other, &links);
    rig.check_budgets();
}

fn look(open: Open<'_>) {
    let rig = open(8);
    let home = rig.namespace("home");
    let links = chain(home, 1, 4);
    let (sequence, _) = rig.run(home, &links[..2]);
    rig.cache.close(sequence);
    let before = rig.cache.stats();
    let found = rig.cache.lookup(home, &links, Accept::Exact);
    assert_eq!((found.tiers.len(), found.miss), (2, Some(MissReason::NeverStored)));
    rig.cache.forgo(home, &links[..2]);
    assert_eq!(rig.cache.stats(), before);
}

fn unknown(open: Open<'_>) {
    let rig = open(2);
    let home = rig.namespace("home");
    let sequence = rig.cache.open(home);
    let link = chain(home, 1, 1)[0];
    assert!(matches!(rig.cache.commit(sequence, 0, &[link]), Err(CacheError::Unknown { .. })));
    assert!(matches!(rig.cache.reopen(sequence, 0), Err(CacheError::Unknown { .. })));
    rig.cache.close(sequence);
    rig.cache.close(sequence);
    assert!(matches!(rig.cache.places(sequence), Err(CacheError::Unknown { .. })));
    assert!(matches!(rig.cache.reserve(&[Want { sequence, blocks: vec![None] }]), Err(CacheError::Unknown { .. })));
}
