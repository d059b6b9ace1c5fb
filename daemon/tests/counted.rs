//! What a real daemon counts as it works.

mod rig;

use cache_core::form::Accept;
use cache_core::miss::MissReason;
use cache_core::units::Tier;
use rig::*;
use serde_json::Value;

fn durations(stats: &Value, operation: &str) -> u64 {
    stats["latency"]["operations"][operation]["count"].as_u64().unwrap()
}

#[test]
fn each_block_that_moves_between_memory_and_disk_is_timed() {
    let folder = tempfile::tempdir().unwrap();
    let serve = || {
        let daemon = start(folder.path(), |config| with_disk(folder.path(), config));
        daemon.settles("recovery", |stats| stats["state"] == "ready");
        let client = daemon.client();
        let namespace = client.name(&manifest(), tenant("a"));
        (daemon, client, namespace)
    };
    let (daemon, client, namespace) = serve();
    let links = links(namespace, 8);
    put_all(&client, namespace, &links);
    let stats = daemon.settles("writes", |stats| durations(stats, "write") == 8);
    assert_eq!((durations(&stats, "load"), &stats["tiers"]["disk"]["blocks"]), (0, &8.into()), "{stats}");
    drop(client);
    daemon.end();
    let (daemon, client, namespace) = serve();
    assert_eq!(check_run(&client, namespace, &links), (8, None));
    let stats = daemon.stats();
    assert_eq!((durations(&stats, "load"), durations(&stats, "write")), (8, 0), "{stats}");
    assert_eq!(stats["loads"]["blocks"], 8);
    drop(client);
    daemon.end();
}

#[test]
fn looking_counts_as_no_request() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path(), |_| {});
    let client = daemon.client();
    let namespace = client.name(&manifest(), tenant("a"));
    let links = links(namespace, 5);
    put_all(&client, namespace, &links[..3]);
    let figures = || {
        let stats = daemon.stats();
        let blocks = |what: &Value| what["blocks"].as_u64().unwrap();
        (blocks(&stats["requested"]), blocks(&stats["hits"]["host"]), stats["misses"]["never_stored"].as_u64().unwrap())
    };
    let missed = Some(MissReason::NeverStored);
    let looked = client.lookup(&wanted(namespace, &links), Accept::Exact).unwrap();
    assert_eq!((looked, figures()), ((vec![Tier::Host; 3], missed), (0, 0, 0)));
    assert_eq!(durations(&daemon.stats(), "lookup"), 1);
    assert_eq!(check_run(&client, namespace, &links), (3, missed));
    assert_eq!(figures(), (5, 3, 2), "each block once, however often it was looked for");
    drop(client);
    daemon.end();
}

#[test]
fn what_makes_room_is_counted_in_bytes_and_its_age_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = start(folder.path(), |_| {});
    let client = daemon.client();
    let namespace = client.name(&manifest(), tenant("a"));
    let runs: Vec<_> = (0..50).map(|first| links_from(namespace, first * 100_000, 100)).collect();
    for run in &runs {
        put(&client, namespace, run);
    }
    let read: usize = runs.iter().map(|run| check_run(&client, namespace, run).0).sum();
    let stats = daemon.stats();
    let evicted = stats["evictions"]["host"].as_u64().unwrap();
    assert!(evicted > 1000, "{stats}");
    assert_eq!(stats["evicted_bytes"]["host"], evicted * SHAPE.slot_bytes());
    let ages = |kind: &str| &stats["ages"][kind];
    let count = |kind: &str| ages(kind)["count"].as_u64().unwrap();
    // One in 64, by hashes that are the same in every run.
    let watched = count("lifetime");
    assert!((evicted / 128..=evicted / 32).contains(&watched), "{evicted} evicted: {}", ages("lifetime"));
    assert_eq!(count("idle_before_evict"), count("lifetime"));
    let seconds = |kind: &str| ages(kind)["sum_us"].as_f64().unwrap() / 1e6;
    assert!(seconds("idle_before_evict") <= seconds("lifetime"), "{stats}");
    let reused = count("reuse_gap") as usize;
    assert!((read / 128..=read / 32).contains(&reused), "{read} read: {}", ages("reuse_gap"));
    drop(client);
    daemon.end();
}
