//! Engines over a daemon: bits do not depend on it, it is shared, it outlives them, and its end is no trouble.

use std::path::Path;
use std::time::{Duration, Instant};

use kvtier_engine::run::engine::EngineOptions;
use kvtier_engine::run::{Form, LoadPolicy, MissReason};
use kvtier_tests::daemons::in_process::Daemon;
use kvtier_tests::disk::expected;
use kvtier_tests::{STRICT, ask, fixture, options, request, turn};

/// A daemon with a store beside its socket.
fn start(folder: &Path) -> Daemon {
    Daemon::start(folder, |config| {
        config.disk = Some(folder.join("store"));
        config.disk_size_bytes = 256 << 20;
    })
}

fn over(socket: &Path) -> EngineOptions {
    kvtier_tests::daemons::in_process::over(socket, options())
}

#[test]
fn engines_share_a_daemon_and_its_disk_outlives_it() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let prompt = fixture().prompt(100, 400);
    let expected = expected(&prompt, 16);
    let daemon = start(folder.path());
    {
        let mut first = fixture().engine(over(&daemon.socket));
        let answer = ask(&mut first, &prompt, 16);
        assert_eq!((answer.logits_digest, answer.computed_tokens), (expected, 400 + 15));
        first.cache().audit().unwrap();
    }
    for link in [options().link, STRICT] {
        let mut other = fixture().engine(EngineOptions { link, ..over(&daemon.socket) });
        let answer = ask(&mut other, &prompt, 16);
        assert_eq!(answer.logits_digest, expected, "{link:?}");
        assert_eq!((answer.cached_tokens.host, answer.computed_tokens), (384, 16 + 15), "{link:?}");
        // Another tenant finds nothing: one that has not asked before.
        let mut salted = request(&prompt, 4);
        salted.salt = Some(format!("{link:?}"));
        let answer = other.generate(vec![salted], &mut |_| {}).pop().unwrap().unwrap();
        assert_eq!(answer.cached_tokens.host + answer.cached_tokens.disk, 0, "{link:?}");
        other.cache().audit().unwrap();
    }
    let stats = daemon.stats();
    assert_eq!(stats["copied_bytes"], 0, "hits are read in place");
    assert!(stats["hits"]["host"]["blocks"].as_u64() >= Some(12), "{stats}");
    assert_eq!((&stats["leases"]["count"], &stats["reservations"]), (&0.into(), &0.into()), "{stats}");
    daemon.end();
    let daemon = start(folder.path());
    let mut engine = fixture().engine(over(&daemon.socket));
    // Its index is read in the background.
    let until = Instant::now() + Duration::from_secs(20);
    while daemon.stats()["state"] != "ready" {
        assert!(Instant::now() < until, "{}", daemon.stats());
        std::thread::sleep(Duration::from_millis(5));
    }
    let answer = ask(&mut engine, &prompt, 16);
    assert_eq!((answer.logits_digest, answer.cached_tokens.disk), (expected, 384));
    drop(engine);
    daemon.end();
}

#[test]
fn closed_blocks_are_shared_as_well() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let prompt = fixture().prompt(700, 520);
    let daemon = start(folder.path());
    let answers: Vec<_> = (0..3)
        .map(|_| {
            let mut engine = fixture().engine(EngineOptions { form: Form::Kc4vt4, ..over(&daemon.socket) });
            ask(&mut engine, &prompt, 8)
        })
        .collect();
    assert!(answers[0].clamped_at.is_empty());
    assert!(answers[1].cached_tokens.host >= 320, "{:?}", answers[1].cached_tokens);
    // What is found by the second and the third is the same, and so are the clamps and the bits.
    assert_eq!(answers[1].clamped_at, answers[2].clamped_at);
    assert_eq!(answers[1].logits_digest, answers[2].logits_digest);
    daemon.end();
}

#[test]
fn a_daemon_that_is_not_there_or_ends_is_no_trouble() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let prompt = fixture().prompt(1500, 300);
    let expected = expected(&prompt, 8);
    let mut engine = fixture().engine(over(&folder.path().join("kvtier.sock")));
    assert_eq!(ask(&mut engine, &prompt, 8).logits_digest, expected, "without a daemon");
    let daemon = start(folder.path());
    let until = Instant::now() + Duration::from_secs(10);
    while engine.cache().is_daemon_connected() != Some(true) {
        assert!(Instant::now() < until, "the engine does not find the daemon that has come");
        std::thread::sleep(Duration::from_millis(5));
    }
    let other = fixture().prompt(1600, 300);
    let others = kvtier_tests::disk::expected(&other, 8);
    assert_eq!(ask(&mut engine, &other, 8).logits_digest, others, "with one that has come");
    daemon.end();
    assert_eq!(ask(&mut engine, &other, 8).logits_digest, others, "after it has gone");
    assert_eq!(ask(&mut engine, &prompt, 8).logits_digest, expected, "after it has gone");
    engine.cache().audit().unwrap();
}

/// Blocks that the daemon has on its disk, loaded by it or computed here: every place where the two can meet.
#[test]
fn where_loading_by_the_daemon_and_computing_meet_makes_no_difference() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let prompt = fixture().prompt(100, 400);
    let expected = expected(&prompt, 8);
    let daemon = start(folder.path());
    drop(ask(&mut fixture().engine(over(&daemon.socket)), &prompt, 8));
    daemon.end();
    for meet in [0, 1, 3, 6, 7] {
        // Only a daemon that was just started has them on its disk alone.
        let daemon = start(folder.path());
        let until = Instant::now() + Duration::from_secs(20);
        while daemon.stats()["state"] != "ready" {
            assert!(Instant::now() < until, "{}", daemon.stats());
            std::thread::sleep(Duration::from_millis(5));
        }
        let load = LoadPolicy::MeetAt(meet);
        let mut engine = fixture().engine(EngineOptions { load, ..over(&daemon.socket) });
        let answer = ask(&mut engine, &prompt, 8);
        assert_eq!(answer.logits_digest, expected, "meeting at {meet}");
        let computed = meet.min(6);
        assert_eq!(answer.misses[MissReason::NotWorthIt as usize], u64::from(computed), "meeting at {meet}");
        assert_eq!(daemon.stats()["misses"]["not_worth_it"], computed, "meeting at {meet}");
        assert_eq!(answer.cached_tokens.disk, 384 - 64 * computed, "meeting at {meet}");
        assert_eq!(answer.prefill_tokens, 16 + 64 * computed, "meeting at {meet}");
        engine.cache().audit().unwrap();
        drop(engine);
        daemon.end();
    }
}
