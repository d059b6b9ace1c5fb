//! Pins under pressure: what is pinned stays while everything else goes, until its time or its unpinning, whoever pinned it.

mod rig;

use cache_core::chain::Link;
use cache_core::form::Accept;
use cache_core::hash::{BlockHash, Namespace};
use cache_core::miss::MissReason;
use kvtier_sdk::client::Client;
use kvtier_sdk::wire::{AcceptId, Batch, CommitCode, KeyParts, Lookup, Pin, Reply, Request, Run};
use rig::raw::Raw;
use rig::*;

/// Blocks of a run that is pinned.
const PINNED: u32 = 8;

fn pin(raw: &mut Raw, parts: KeyParts, links: &[Link], ttl_ms: u64) -> u32 {
    let hashes: Vec<BlockHash> = links.iter().map(|link| link.hash).collect();
    let run = Run::new(0, None, &hashes).unwrap();
    let answer = raw.call(&Request::Pin(Pin { parts, accept: AcceptId::Exact, ttl_ms, run })).unwrap();
    let Reply::Pin(reply) = answer.reply() else { panic!("{answer:?}") };
    reply.pinned
}

fn unpin(raw: &mut Raw, parts: KeyParts, links: &[Link]) -> u32 {
    let hashes: Vec<BlockHash> = links.iter().map(|link| link.hash).collect();
    let lookup = Lookup { parts, accept: AcceptId::Exact, hashes: Batch::new(&hashes).unwrap() };
    let answer = raw.call(&Request::Unpin(lookup)).unwrap();
    let Reply::Unpin(reply) = answer.reply() else { panic!("{answer:?}") };
    reply.unpinned
}

/// Stores more than the arena has, in runs that nobody stored before.
fn flood(client: &Client, namespace: Namespace, turn: u32) {
    for first in 0..50 {
        put(client, namespace, &links_from(namespace, 1_000_000 * (turn + 1) + first * 10_000, 100));
    }
}

/// How many blocks of a run are there. Looking is no use: it keeps nothing.
fn there(client: &Client, namespace: Namespace, links: &[Link]) -> u32 {
    client.lookup(&wanted(namespace, links), Accept::Exact).unwrap().0.len() as u32
}

#[test]
fn what_is_pinned_stays_until_it_is_unpinned() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path(), |_| {});
    let client = daemon.client();
    let namespace = client.name(&manifest(), tenant("a"));
    let [kept, other] = [0, 100_000].map(|first| links_from(namespace, first, PINNED as usize));
    put_all(&client, namespace, &kept);
    put_all(&client, namespace, &other);
    let (mut raw, ..) = Raw::open(&daemon.socket);
    let parts = raw.open_namespace(&manifest(), tenant("a"));
    assert_eq!(pin(&mut raw, parts, &kept, 3_600_000), PINNED);
    assert_eq!(pin(&mut raw, parts, &kept[..4], 1), 4, "the later time counts");
    // A pin is not its connection's.
    drop(raw);
    flood(&client, namespace, 0);
    assert_eq!((there(&client, namespace, &kept), there(&client, namespace, &other)), (PINNED, 0));
    assert_eq!(check_run(&client, namespace, &kept), (PINNED as usize, None), "with the bytes that were put");
    let (mut raw, ..) = Raw::open(&daemon.socket);
    let parts = raw.open_namespace(&manifest(), tenant("a"));
    assert_eq!(unpin(&mut raw, parts, &other), 0);
    assert_eq!((unpin(&mut raw, parts, &kept), unpin(&mut raw, parts, &kept)), (PINNED, 0));
    flood(&client, namespace, 1);
    assert_eq!(there(&client, namespace, &kept), 0);
    assert_eq!(daemon.stats()["leases"]["count"], 0);
    drop((raw, client));
    daemon.end();
}

#[test]
fn what_is_pinned_for_a_moment_goes_when_that_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path(), |_| {});
    let client = daemon.client();
    let namespace = client.name(&manifest(), tenant("a"));
    let kept = links(namespace, PINNED as usize);
    put_all(&client, namespace, &kept);
    let (mut raw, ..) = Raw::open(&daemon.socket);
    let parts = raw.open_namespace(&manifest(), tenant("a"));
    assert_eq!(pin(&mut raw, parts, &kept, 50), PINNED);
    let mut turns = 0..;
    until("the end of the pins", || {
        flood(&client, namespace, turns.next().unwrap() % 1000);
        there(&client, namespace, &kept) == 0
    });
    assert_eq!(unpin(&mut raw, parts, &kept), 0, "they have ended");
    drop((raw, client));
    daemon.end();
}

/// An arena full of pinned blocks refuses new ones, and says so; nothing pinned is lost, and once it is unpinned there is room again.
#[test]
fn when_all_is_pinned_new_blocks_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    // What it looks at just then could not go.
    let daemon = start(folder.path(), |config| config.scrub_bytes_s = 0);
    let client = daemon.client();
    let namespace = client.name(&manifest(), tenant("a"));
    let (mut raw, ..) = Raw::open(&daemon.socket);
    let parts = raw.open_namespace(&manifest(), tenant("a"));
    let mut kept: Vec<Link> = Vec::new();
    let is_full = (0..10_000).any(|first| {
        let link = links_from(namespace, first * 1000, 1)[0];
        let is_put = put(&client, namespace, &[link]) == [Put::Committed(CommitCode::Inserted)];
        if is_put {
            assert_eq!(pin(&mut raw, parts, &[link], 3_600_000), 1);
            kept.push(link);
        }
        !is_put
    });
    assert!(is_full && kept.len() > 100, "{} blocks", kept.len());
    let stats = daemon.stats();
    assert!(stats["stores"]["refused"]["full"].as_u64() > Some(0), "{stats}");
    assert_eq!(stats["evictions"]["host"], 0, "{stats}");
    for link in &kept {
        assert_eq!(check_run(&client, namespace, &[*link]), (1, None));
    }
    let late = links_from(namespace, 50_000_000, 1);
    assert_eq!(check_run(&client, namespace, &late), (0, Some(MissReason::NeverStored)));
    assert_eq!(unpin(&mut raw, parts, &kept[..1]), 1);
    assert_eq!(put(&client, namespace, &late), [Put::Committed(CommitCode::Inserted)]);
    assert_eq!(check_run(&client, namespace, &kept[..1]), (0, Some(MissReason::Evicted)));
    drop((raw, client));
    daemon.end();
}
