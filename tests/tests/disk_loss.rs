//! Disks that fail under a running engine: what was lost is computed again, and where that is not possible the end says why.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cache_core::chain::{Chain, Link};
use cache_core::form::Accept;
use cache_core::miss::MissReason;
use cache_core::units::Tier;
use kvtier_engine::EngineError;
use kvtier_engine::run::engine::EngineOptions;
use kvtier_engine::run::request::Progress;
use kvtier_sdk::cache::KvCache;
use kvtier_sdk::embedded::{DiskState, DiskStatus};
use kvtier_tests::disk::{close, expected, open, record, with_disk};
use kvtier_tests::{STRICT, TOKEN_BYTES, ask, fixture, options, request, turn};

/// Device and host hold less than half of `tokens`.
fn tight(tokens: u64, link: kvtier_engine::run::Link) -> EngineOptions {
    let kv = tokens * TOKEN_BYTES;
    EngineOptions {
        device_bytes: (kv / 8).max(3 << 20),
        host_bytes: kv / 4 + (3 << 20),
        block_tokens: 16,
        link,
        ..options()
    }
}

/// Every second token one byte of a block whose only copy is on the disk is turned over.
fn flipped(link: kvtier_engine::run::Link) {
    let folder = tempfile::tempdir().unwrap();
    let prompt = fixture().prompt(700, 500);
    let expected = expected(&prompt, 16);
    let mut engine = open(with_disk(folder.path(), tight(516, link)));
    let namespace = engine.namespace(None);
    let links: Vec<Link> = Chain::over(namespace, 16, &prompt).links().to_vec();
    let cache = Arc::clone(engine.cache());
    let (mut tokens, mut flips) = (0, 0);
    let mut watch = |progress| {
        let Progress::Token { .. } = progress else { return };
        tokens += 1;
        if tokens % 4 != 1 {
            return;
        }
        let only_on_disk = |link: &&Link| cache.lookup(namespace, &[**link], Accept::Exact).tiers == [Tier::Disk];
        // The first such block and the last: of a layer in the middle, and of the last one.
        let on_disk: Vec<&Link> = links.iter().take(prompt.len() / 16).filter(only_on_disk).collect();
        for (link, layer) in [(on_disk.first(), 3), (on_disk.last(), 29)] {
            let at = link.and_then(|link| record(folder.path(), &cache.shape(), link.hash));
            let at = at.expect("some blocks are on the disk only");
            at.flip(at.sections[cache.shape().code_section(layer).index as usize] + 77);
            flips += 1;
        }
    };
    let answer = engine.generate(vec![request(&prompt, 16)], &mut watch).pop().unwrap().expect("an answer");
    assert_eq!(answer.logits_digest, expected, "{link:?}");
    let noticed = answer.misses[MissReason::FailedCheck as usize];
    assert!(flips >= 4 && noticed >= flips - 1, "{noticed} of {flips} were noticed");
    assert_eq!(u64::from(answer.recomputed_tokens), noticed * 16, "{link:?}");
    println!("{link:?}: {flips} flips, {noticed} noticed, {} tokens recomputed", answer.recomputed_tokens);
    close(engine);
}

#[test]
fn a_flipped_byte_of_the_only_copy_is_recomputed_in_place() {
    let _turn = turn();
    flipped(options().link);
}

#[test]
fn a_flipped_byte_of_the_only_copy_is_recomputed_over_the_link() {
    let _turn = turn();
    flipped(STRICT);
}

/// Two engines, one directory: the second does without, and says so.
#[test]
fn a_second_engine_goes_on_without_the_disk() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let prompt = fixture().prompt(50, 200);
    let expected = expected(&prompt, 8);
    let mut first = open(with_disk(folder.path(), options()));
    let mut second = fixture().engine(with_disk(folder.path(), options()));
    let DiskStatus::Absent { reason } = second.cache().disk_status() else {
        panic!("{:?}", second.cache().disk_status());
    };
    assert!(reason.contains("in use by another process"), "{reason}");
    assert_eq!(ask(&mut second, &prompt, 8).logits_digest, expected);
    assert_eq!(ask(&mut first, &prompt, 8).logits_digest, expected);
    drop(second);
    close(first);
    let mut third = open(with_disk(folder.path(), options()));
    let answer = ask(&mut third, &prompt, 8);
    assert_eq!((answer.logits_digest, answer.cached_tokens.disk), (expected, 192));
}

/// Waits until the tier has noticed; the superblocks are looked at every second.
fn offline_reason(cache: &kvtier_sdk::embedded::Embedded) -> String {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match cache.disk_status() {
            DiskStatus::Open(DiskState::Offline { reason }) => return reason,
            status if Instant::now() > until => panic!("{status:?}"),
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Removed under a sequence that device and host hold: the answer is right, and the reason is named.
#[test]
fn a_removed_directory_takes_the_disk_offline() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("store");
    let prompt = fixture().prompt(50, 300);
    let expected = expected(&prompt, 8);
    let mut engine = open(with_disk(&directory, options()));
    let cache = Arc::clone(engine.cache());
    let mut tokens = 0;
    let mut watch = |progress| {
        if let Progress::Token { .. } = progress {
            tokens += 1;
            if tokens == 3 {
                std::fs::remove_dir_all(&directory).expect("it can be removed");
            }
        }
    };
    let answer = engine.generate(vec![request(&prompt, 8)], &mut watch).pop().unwrap().expect("an answer");
    assert_eq!(answer.logits_digest, expected);
    let reason = offline_reason(&cache);
    assert!(reason.contains("was removed") || reason.contains("vanished"), "{reason}");
    let again = ask(&mut engine, &prompt, 8);
    assert_eq!((again.logits_digest, again.cached_tokens.device), (expected, 256));
    cache.audit().unwrap();
}

/// Removed under a sequence that needs it: unfinished, with the figures, and what fits is answered afterwards.
#[test]
fn a_removed_directory_that_was_needed_ends_the_request_with_figures() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("store");
    let prompt = fixture().prompt(700, 500);
    let mut engine = open(with_disk(&directory, tight(516, STRICT)));
    let cache = Arc::clone(engine.cache());
    let mut tokens = 0;
    let mut watch = |progress| {
        if let Progress::Token { .. } = progress {
            tokens += 1;
            if tokens == 2 {
                std::fs::remove_dir_all(&directory).expect("it can be removed");
                offline_reason(&cache);
            }
        }
    };
    let end = engine.generate(vec![request(&prompt, 16)], &mut watch).pop().unwrap();
    let Err(error) = end else { panic!("device and host cannot hold it: {end:?}") };
    assert!(error.is_unfinished(), "{error}");
    let EngineError::NoRoom(figures) = &error else { panic!("{error}") };
    assert!(figures.device_slots > 0 && figures.host_slots > 0, "{figures:?}");
    assert!(error.to_string().contains("raise --device-mem or --host-mem"), "{error}");
    cache.audit().unwrap();
    let short = fixture().prompt(20, 60);
    assert_eq!(ask(&mut engine, &short, 4).logits_digest, expected(&short, 4));
    cache.audit().unwrap();
}
