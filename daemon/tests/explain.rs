//! Each reason of a miss, produced on purpose: the answer says it, and so does `/explain`, by the request's name and by the block.

mod rig;

use cache_core::chain::{Chain, Link};
use cache_core::form::{Form, Provenance};
use cache_core::hash::{BlockHash, Namespace};
use cache_core::miss::MissReason;
use cache_core::payload::BlockShape;
use kvtier_daemon::config::{Config, Verify};
use kvtier_sdk::wire::{CommitCode, Forgo, KeyParts, Reply, Report, Request, Run};
use rig::raw::Raw;
use rig::*;
use serde_json::Value;

/// 2 MiB a slot: little of it fits, and it takes its time.
const LARGE: BlockShape = BlockShape { layers: 32, kv_heads: 4, head_dim: 64, block_tokens: 64, form: Form::Raw16 };

struct Bench {
    folder: tempfile::TempDir,
    daemon: Daemon,
    raw: Raw,
    parts: KeyParts,
}

fn change(folder: &std::path::Path, has_disk: bool, change: impl FnOnce(&mut Config)) -> impl FnOnce(&mut Config) {
    move |config: &mut Config| {
        if has_disk {
            with_disk(folder, config);
        }
        change(config);
    }
}

impl Bench {
    fn new(shape: BlockShape, has_disk: bool, more: impl FnOnce(&mut Config)) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        Bench::over(folder, shape, has_disk, more)
    }

    fn over(folder: tempfile::TempDir, shape: BlockShape, has_disk: bool, more: impl FnOnce(&mut Config)) -> Bench {
        let daemon = start(folder.path(), change(folder.path(), has_disk, more));
        let (mut raw, ..) = Raw::open(&daemon.socket);
        let parts = raw.open_namespace(&manifest_of(shape), tenant("a"));
        Bench { folder, daemon, raw, parts }
    }

    /// Acquires under a name and expects so many hits and this reason: in the answer, by the name over HTTP, and by the block. Returns what is
    /// told of the block.
    fn misses(&mut self, tag: &str, hashes: &[BlockHash], hits: usize, reason: MissReason) -> Value {
        assert_eq!(self.raw.acquire_as(tag, self.parts, hashes), (hits, Some(reason)), "{tag}");
        let told = self.told(tag);
        assert_eq!(told.len(), hits + 1, "{tag}: {told:?}");
        for (position, block) in told.iter().enumerate() {
            assert_eq!(block["position"], position, "{tag}");
            let (tier, expected) = if position < hits { ("host", Value::Null) } else { ("", reason.name().into()) };
            assert_eq!(block["reason"], expected, "{tag}: {told:?}");
            assert!(block["tier"] == tier || position == hits && block["tier"].is_null(), "{tag}: {told:?}");
        }
        told[hits].clone()
    }

    fn told(&self, tag: &str) -> Vec<Value> {
        self.daemon.get(&format!("/explain?request={tag}"))["blocks"].as_array().unwrap().clone()
    }

    fn restart(self, shape: BlockShape, more: impl FnOnce(&mut Config)) -> Bench {
        let Bench { folder, daemon, raw, .. } = self;
        drop(raw);
        daemon.end();
        let bench = Bench::over(folder, shape, true, more);
        bench.daemon.settles("recovery", |stats| stats["state"] == "ready");
        bench
    }
}

/// Room for a dozen large blocks and a few clients.
fn small(config: &mut Config) {
    config.host_mem_bytes = 48 << 20;
    config.client_staging_bytes = 3 << 20;
}

fn chain(shape: BlockShape, namespace: Namespace, blocks: usize) -> Vec<Link> {
    let tokens: Vec<u32> = (0..shape.block_tokens * blocks as u32).collect();
    Chain::over(namespace, shape.block_tokens, &tokens).links().to_vec()
}

fn hashes(links: &[Link]) -> Vec<BlockHash> {
    links.iter().map(|link| link.hash).collect()
}

#[test]
fn never_stored() {
    let mut bench = Bench::new(SHAPE, false, |_| {});
    let links = links(bench.parts.namespace, 3);
    let client = bench.daemon.client();
    client.name(&manifest(), tenant("a"));
    put_all(&client, bench.parts.namespace, &links[..2]);
    let block = bench.misses("never", &hashes(&links), 2, MissReason::NeverStored);
    assert!(block["evicted_from"].is_null() && block["ago_ms"].is_null(), "nothing was forgotten: {block}");
    assert_eq!(bench.raw.explain(bench.parts, links[2].hash)["reason"], "never_stored");
    assert_eq!(bench.raw.explain(bench.parts, links[1].hash)["tier"], "host");
    assert!(bench.daemon.get("/explain?request=unknown")["error"].is_string());
    bench.daemon.end();
}

#[test]
fn evicted_from_memory_and_how_long_ago() {
    let mut bench = Bench::new(LARGE, false, small);
    let links = chain(LARGE, bench.parts.namespace, 30);
    let client = bench.daemon.client_of(LARGE);
    client.name(&manifest_of(LARGE), tenant("a"));
    // Children go before their parents: chains of one block each, so that the first one is the oldest.
    let alone: Vec<Link> = links.iter().map(|link| Link { parent: None, depth: 0, ..*link }).collect();
    for link in &alone {
        assert_eq!(put(&client, bench.parts.namespace, &[*link]).len(), 1);
    }
    let block = bench.misses("evicted", &[alone[0].hash], 0, MissReason::Evicted);
    assert_eq!(block["evicted_from"], "host");
    let ago = block["ago_ms"].as_u64().unwrap();
    assert!(ago <= bench.daemon.stats()["uptime_ms"].as_u64().unwrap(), "{block}");
    // It is counted from then on, not from the question.
    until("a moment", || bench.raw.explain(bench.parts, alone[0].hash)["ago_ms"].as_u64() > Some(ago + 20));
    bench.daemon.end();
}

#[test]
fn evicted_from_the_disk() {
    // A block that is dropped while the scrubber looks at it leaves its slot at rest, and of a dozen slots too few may be left.
    let mut bench = Bench::new(LARGE, true, |config| {
        small(config);
        config.scrub_bytes_s = 0;
    });
    let links = chain(LARGE, bench.parts.namespace, 60);
    let client = bench.daemon.client_of(LARGE);
    client.name(&manifest_of(LARGE), tenant("a"));
    // Each is on the disk before the next one comes: none is turned away.
    for (link, written) in links.iter().zip(1..) {
        let alone = Link { parent: None, depth: 0, ..*link };
        assert_eq!(put(&client, bench.parts.namespace, &[alone]), [Put::Committed(CommitCode::Inserted)]);
        bench.daemon.settles("a write", |stats| {
            stats["tiers"]["disk"]["blocks"].as_u64().unwrap() + stats["evictions"]["disk"].as_u64().unwrap() == written
        });
    }
    let mut gone = 0;
    for (at, link) in links.iter().enumerate() {
        let told = bench.raw.explain(bench.parts, link.hash);
        if told["tier"].is_null() {
            assert_eq!(
                (&told["reason"], &told["evicted_from"]),
                (&"evicted".into(), &"disk".into()),
                "block {at}: {told}"
            );
            let block = bench.misses(&format!("evicted-{at}"), &[link.hash], 0, MissReason::Evicted);
            assert_eq!(block["evicted_from"], "disk", "{block}");
            gone += 1;
        }
    }
    assert!(gone > 20, "{gone} blocks are gone");
    // To the second, from then on.
    let (first, parts) = (links[0].hash, bench.parts);
    let ago = bench.raw.explain(parts, first)["ago_ms"].as_u64().unwrap();
    assert!(ago < bench.daemon.stats()["uptime_ms"].as_u64().unwrap() + 1000, "{ago} ms");
    until("a moment", || bench.raw.explain(parts, first)["ago_ms"].as_u64() > Some(ago));
    bench.daemon.end();
}

#[test]
fn failed_check() {
    let mut bench = Bench::new(SHAPE, false, |config| (config.verify, config.scrub_bytes_s) = (Verify::Always, 0));
    let links = links(bench.parts.namespace, 4);
    let client = bench.daemon.client();
    client.name(&manifest(), tenant("a"));
    put_all(&client, bench.parts.namespace, &links);
    spoil::flip(&links[2].hash, SHAPE.header_bytes() + 77, 3);
    let block = bench.misses("spoilt", &hashes(&links), 2, MissReason::FailedCheck);
    assert_eq!(block["position"], 2);
    let told = bench.raw.explain(bench.parts, links[2].hash);
    assert_eq!((&told["reason"], &told["evicted_from"]), (&"failed_check".into(), &"host".into()), "{told}");
    assert_eq!(bench.daemon.stats()["integrity_failures"]["host"], 1);
    bench.daemon.end();
}

#[test]
fn provenance() {
    let mut bench = Bench::new(SHAPE, false, |_| {});
    let links = links(bench.parts.namespace, 1);
    let client = bench.daemon.client();
    client.name(&manifest(), tenant("a"));
    put_as(&client, bench.parts.namespace, Provenance(5), &links);
    bench.misses("tainted", &hashes(&links), 0, MissReason::Provenance);
    assert_eq!(bench.raw.explain(bench.parts, links[0].hash)["reason"], "provenance");
    bench.daemon.end();
}

#[test]
fn lease_lost() {
    let mut bench = Bench::new(SHAPE, false, |_| {});
    let links = links(bench.parts.namespace, 3);
    let client = bench.daemon.client();
    client.name(&manifest(), tenant("a"));
    put_all(&client, bench.parts.namespace, &links);
    bench.raw.tag("lost");
    let (hits, miss) = bench.raw.acquire(bench.parts, &hashes(&links));
    assert_eq!((hits.len(), miss), (3, None));
    assert!(bench.told("lost").iter().all(|block| block["tier"] == "host"));
    client.delete_namespace(bench.parts.namespace).unwrap();
    let report = Report {
        class: bench.parts.class,
        slot: cache_core::units::SlotIndex(hits[1].slot.get()),
        generation: cache_core::units::Generation(hits[1].generation.get()),
        reason: MissReason::LeaseLost,
    };
    assert!(matches!(bench.raw.call(&Request::Report(report)).unwrap().reply(), Reply::Report(_)));
    let told = bench.told("lost");
    assert_eq!((&told[1]["reason"], &told[1]["tier"]), (&"lease_lost".into(), &Value::Null), "{told:?}");
    assert_eq!((told.len(), &told[0]["tier"]), (3, &"host".into()), "{told:?}");
    let stats = bench.daemon.stats();
    assert_eq!((&stats["leases"]["lost"], &stats["integrity_failures"]["host"]), (&1.into(), &0.into()));
    bench.daemon.end();
}

#[test]
fn deadline() {
    let memory = |config: &mut Config| {
        config.host_mem_bytes = 128 << 20;
        config.client_staging_bytes = 3 << 20;
    };
    let bench = Bench::new(LARGE, true, memory);
    let links = chain(LARGE, bench.parts.namespace, 16);
    let client = bench.daemon.client_of(LARGE);
    client.name(&manifest_of(LARGE), tenant("a"));
    for link in &links {
        put(&client, bench.parts.namespace, &[*link]);
        bench.daemon.settles("a write", |stats| stats["tiers"]["disk"]["blocks"] == link.depth + 1);
    }
    drop(client);
    let mut bench = bench.restart(LARGE, memory);
    // 32 MiB are not read and verified in a millisecond.
    bench.raw.deadline_ms = 1;
    bench.raw.tag("late");
    let (hits, miss) = bench.raw.acquire(bench.parts, &hashes(&links));
    assert_eq!(miss, Some(MissReason::Deadline), "after {} blocks", hits.len());
    let told = bench.told("late");
    assert_eq!(told[hits.len()]["reason"], "deadline", "{told:?}");
    // The loads go on, and then it is there.
    bench.raw.deadline_ms = 0;
    assert_eq!(bench.raw.acquire_as("in time", bench.parts, &hashes(&links)), (16, None));
    bench.daemon.end();
}

/// The one reason that only the engine knows.
#[test]
fn not_worth_it() {
    let mut bench = Bench::new(SHAPE, false, |_| {});
    let links = links(bench.parts.namespace, 5);
    let client = bench.daemon.client();
    client.name(&manifest(), tenant("a"));
    put_all(&client, bench.parts.namespace, &links);
    let hashes = hashes(&links);
    bench.raw.tag("computed");
    let run = Run::new(1, Some(hashes[0]), &hashes[1..3]).unwrap();
    let reply = bench.raw.call(&Request::Forgo(Forgo { parts: bench.parts, run })).unwrap();
    assert!(matches!(reply.reply(), Reply::Forgo(_)));
    let told = bench.told("computed");
    let told: Vec<_> = told.iter().map(|block| (&block["position"], &block["reason"])).collect();
    assert_eq!(told, [(&1.into(), &"not_worth_it".into()), (&2.into(), &"not_worth_it".into())]);
    assert_eq!(bench.daemon.stats()["misses"]["not_worth_it"], 2);
    // They are there all the same, and who takes them after all is told so.
    assert_eq!(bench.raw.explain(bench.parts, links[1].hash)["tier"], "host");
    assert_eq!(bench.raw.acquire_as("computed", bench.parts, &hashes), (5, None));
    assert!(bench.told("computed").iter().all(|block| block["reason"].is_null()));
    bench.daemon.end();
}

#[test]
fn quota() {
    let quota_bytes = 3 * SHAPE.slot_bytes();
    let mut bench = Bench::new(SHAPE, false, |config| config.tenant_quota_bytes = Some(quota_bytes));
    let links = links(bench.parts.namespace, 5);
    let client = bench.daemon.client();
    client.name(&manifest(), tenant("a"));
    put(&client, bench.parts.namespace, &links[..4]);
    let block = bench.misses("quota", &hashes(&links), 3, MissReason::Quota);
    assert!(block["evicted_from"].is_null() && block["ago_ms"].is_u64(), "{block}");
    assert_eq!(bench.raw.explain(bench.parts, links[3].hash)["reason"], "quota");
    assert_eq!(bench.raw.explain(bench.parts, links[4].hash)["reason"], "never_stored");
    assert_eq!(bench.daemon.stats()["stores"]["refused"]["quota"], 1);
    bench.daemon.end();
}

/// The records' files are cut off under the daemon, and the store's folder taken away, so that no probe brings it back: what was there only is a miss
/// for that reason.
#[test]
fn tier_offline() {
    let bench = Bench::new(SHAPE, true, |_| {});
    let links = links(bench.parts.namespace, 8);
    let client = bench.daemon.client();
    client.name(&manifest(), tenant("a"));
    put_all(&client, bench.parts.namespace, &links);
    bench.daemon.settles("writes", |stats| stats["tiers"]["disk"]["blocks"] == 8);
    drop(client);
    let mut bench = bench.restart(SHAPE, |_| {});
    for file in std::fs::read_dir(bench.folder.path().join("store")).unwrap() {
        let path = file.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("segment.") {
            std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(4096).unwrap();
        }
    }
    std::fs::remove_dir_all(bench.folder.path().join("store")).unwrap();
    let hashes = hashes(&links);
    until("going offline", || {
        assert_eq!(bench.raw.acquire_as("reads", bench.parts, &hashes[..3]).0, 0);
        bench.daemon.stats()["tiers"]["disk"]["state"] == "offline"
    });
    // One that nobody tried to read.
    let alone = [hashes[7]];
    bench.misses("offline", &alone, 0, MissReason::TierOffline);
    assert_eq!(bench.raw.explain(bench.parts, alone[0])["reason"], "tier_offline");
    let ready = bench.daemon.get("/readyz");
    assert!(ready["reasons"][0].as_str().unwrap().contains("offline"), "{ready}");
    bench.daemon.end();
}
