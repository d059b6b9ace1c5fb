//! How long a lease lasts: as long as the daemon says, whatever its holder does meanwhile.

mod rig;

use std::path::Path;
use std::time::Instant;

use cache_core::form::Lineage;
use cache_core::miss::MissReason;
use kvtier_sdk::wire::{
    Abort, AcceptId, Await, Batch, CommitCode, Empty, KeyParts, LeaseId, Lookup, Reply, Request, Reserve, Run,
};
use rig::raw::Raw;
use rig::*;
use serde_json::Value;

const BLOCKS: usize = 4;

/// Leases that the daemon has ended because their time was over.
fn expired(stats: &Value) -> u64 {
    stats["leases"]["reclaimed"]["expired"].as_u64().unwrap()
}

/// A daemon whose leases last a second, the least there is; a connection that has [`BLOCKS`] of them, and what it asked for.
fn held(folder: &Path) -> (Daemon, Raw, KeyParts, Vec<LeaseId>) {
    let daemon = start(folder, |config| config.lease_ttl_ms = 1000);
    let (mut raw, hello, _) = Raw::open(&daemon.socket);
    assert_eq!(hello.lease_ttl_ms, 1000);
    let parts = raw.open_namespace(&manifest(), tenant("a"));
    let client = daemon.client();
    client.name(&manifest(), tenant("a"));
    let links = links(parts.namespace, BLOCKS);
    put_all(&client, parts.namespace, &links);
    let hashes: Vec<_> = links.iter().map(|link| link.hash).collect();
    let (hits, miss) = raw.acquire(parts, &hashes);
    assert_eq!((hits.len(), miss), (BLOCKS, None));
    (daemon, raw, parts, hits.iter().map(|hit| hit.lease).collect())
}

/// Requests are always under way, so that the connection is never silent.
#[test]
fn a_lease_ends_however_busy_its_holder_is() {
    const AHEAD: usize = 64;
    let folder = tempfile::tempdir().unwrap();
    let (daemon, mut raw, parts, leases) = held(folder.path());
    let hash = [links(parts.namespace, 1)[0].hash];
    let lookup = Request::Lookup(Lookup { parts, accept: AcceptId::Exact, hashes: Batch::new(&hash).unwrap() });
    for _ in 0..AHEAD {
        raw.request(&lookup).unwrap();
    }
    let end = Instant::now() + PATIENCE;
    let mut ended = 0;
    while ended < BLOCKS as u64 {
        assert!(Instant::now() < end, "{ended} leases have ended");
        raw.request(&Request::Stats(Empty)).unwrap();
        loop {
            let answer = raw.answer().unwrap();
            match answer.reply() {
                Reply::Stats(text) => {
                    ended = expired(&serde_json::from_str(text.0).unwrap());
                    break;
                }
                _ => {
                    raw.request(&lookup).unwrap();
                }
            }
        }
    }
    for _ in 0..AHEAD {
        assert!(matches!(raw.answer().unwrap().reply(), Reply::Lookup(_)));
    }
    assert_eq!(raw.release(&leases), (0, BLOCKS as u32), "all have ended");
    drop(raw);
    daemon.end();
}

/// A wait may take hours, and others may have it take them.
#[test]
fn a_lease_ends_while_its_holder_waits() {
    let folder = tempfile::tempdir().unwrap();
    let (daemon, mut raw, parts, leases) = held(folder.path());
    let (mut writer, ..) = Raw::open(&daemon.socket);
    writer.open_namespace(&manifest(), tenant("a"));
    let link = links_from(parts.namespace, 1 << 20, 1)[0];
    let hash = [link.hash];
    let run = Run::new(0, None, &hash).unwrap();
    let reserve = Request::Reserve(Reserve { parts, lineage: Lineage::of(SHAPE.form_map()), run });
    let answer = writer.call(&reserve).unwrap();
    let Reply::Reserve(reserved) = answer.reply() else { panic!("{answer:?}") };
    let reservation = [reserved.answers[0].reservation];
    raw.deadline_ms = 3_600_000;
    raw.request(&Request::Await(Await { parts, hash: link.hash })).unwrap();
    daemon.settles("the end of a waiting client's leases", |stats| expired(stats) == BLOCKS as u64);
    let given_up = Request::Abort(Abort { reservations: Batch::new(&reservation).unwrap() });
    assert!(matches!(writer.call(&given_up).unwrap().reply(), Reply::Abort(_)));
    let answer = raw.answer().unwrap();
    let Reply::Await(awaited) = answer.reply() else { panic!("{answer:?}") };
    assert_eq!(awaited.miss, Some(MissReason::NeverStored), "the wait went on");
    assert_eq!(raw.release(&leases), (0, BLOCKS as u32), "all have ended");
    drop((raw, writer));
    daemon.end();
}

/// For a moment, slots that a vanished client may still read rest when their blocks go. Each of them turns one put away, and no other.
#[test]
fn what_a_vanished_client_has_read_is_soon_room_for_others() {
    const READ: u32 = 100;
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path(), |config| config.scrub_bytes_s = 0);
    let client = daemon.client();
    let namespace = client.name(&manifest(), tenant("a"));
    let alone = |number: u32| links_from(namespace, number * 1000, 1)[0];
    let is_put = |number: u32| put(&client, namespace, &[alone(number)]) == [Put::Committed(CommitCode::Inserted)];
    let (mut raw, ..) = Raw::open(&daemon.socket);
    let parts = raw.open_namespace(&manifest(), tenant("a"));
    for number in 0..READ {
        assert!(is_put(number));
        assert_eq!(raw.acquire(parts, &[alone(number).hash]).0.len(), 1);
    }
    drop(raw);
    daemon.settles("hanging up", |stats| stats["leases"]["count"] == 0 && stats["clients"]["count"] == 1);
    // The first that go are those that were read.
    let refused = (READ..6000).filter(|number| !is_put(*number)).count();
    let evicted = daemon.stats()["evictions"]["host"].as_u64().unwrap();
    assert!(refused <= READ as usize && evicted > 1000, "{refused} puts were refused, {evicted} blocks evicted");
    assert!((6000..6100).all(is_put), "every one of them was refused at most once");
    drop(client);
    daemon.end();
}
