//! The disk as the third tier: bits do not depend on it, and it outlives the engine.

use kvtier_engine::run::Link;
use kvtier_engine::run::engine::EngineOptions;
use kvtier_sdk::cache::KvCache;
use kvtier_sdk::embedded::IoChoice;
use kvtier_tests::disk::{allocated_bytes, close, expected, least, open, with_disk, with_disk_of};
use kvtier_tests::{STRICT, TOKEN_BYTES, ask, ask_together, fixture, options, turn};

/// Strict over a link of 1 GB/s.
const SLOW: Link = Link::Strict { bytes_per_second: Some(1e9) };

#[test]
fn a_restart_answers_from_the_disk() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let prompt = fixture().prompt(100, 400);
    let expected = expected(&prompt, 16);
    let mut engine = open(with_disk(folder.path(), options()));
    assert_eq!(ask(&mut engine, &prompt, 16).logits_digest, expected);
    assert_eq!(engine.cache_stats().dropped_stores, 0);
    close(engine);
    for link in [options().link, STRICT] {
        let mut engine = open(with_disk(folder.path(), EngineOptions { link, ..options() }));
        let answer = ask(&mut engine, &prompt, 16);
        assert_eq!(answer.logits_digest, expected, "{link:?}");
        assert_eq!(answer.cached_tokens.disk, 384, "every full block is a hit");
        assert_eq!(answer.computed_tokens, 16 + 15);
        assert!(answer.loaded.disk >= 384 * TOKEN_BYTES);
        close(engine);
    }
}

/// Device and host are as small as an engine accepts: the sequence lives on the disk, after a restart and from the start.
#[test]
fn an_answer_from_the_disk_alone() {
    let _turn = turn();
    let prompt = fixture().prompt(2100, 300);
    let expected = expected(&prompt, 16);
    let folder = tempfile::tempdir().unwrap();
    let mut engine = open(with_disk(folder.path(), options()));
    assert_eq!(ask(&mut engine, &prompt, 16).logits_digest, expected);
    close(engine);
    for link in [options().link, STRICT] {
        let options = least(with_disk(folder.path(), EngineOptions { link, ..options() }));
        let mut engine = open(options.clone());
        let answer = ask(&mut engine, &prompt, 16);
        assert_eq!(answer.logits_digest, expected, "{link:?}");
        assert_eq!((answer.cached_tokens.disk, answer.recomputed_tokens), (256, 0), "{link:?}");
        let stats = engine.cache_stats();
        assert!(stats.device_slots.1 + stats.host_slots.1 <= 3, "{stats:?}");
        // More than once: each decoded token reads it again.
        assert!(answer.loaded.disk > 8 * 256 * TOKEN_BYTES, "{:?}", answer.loaded);
        close(engine);
    }
}

/// A cold sequence that has to go to the disk as it grows.
#[test]
fn a_cold_answer_through_the_least_memory() {
    let _turn = turn();
    let prompt = fixture().prompt(3000, 200);
    let expected = expected(&prompt, 70);
    let folder = tempfile::tempdir().unwrap();
    let options = least(with_disk(folder.path(), EngineOptions { link: STRICT, block_tokens: 16, ..options() }));
    let mut engine = open(options);
    let answer = ask(&mut engine, &prompt, 70);
    assert_eq!(answer.logits_digest, expected);
    assert_eq!(answer.recomputed_tokens, 0);
    assert!(answer.loaded.disk > 0);
    close(engine);
}

/// The KV lies on device, host and disk at once.
#[test]
fn a_context_over_three_tiers() {
    let _turn = turn();
    let prompt = fixture().prompt(300, 700);
    let expected = expected(&prompt, 32);
    for (block_tokens, link) in [(16, STRICT), (16, options().link), (64, STRICT), (64, options().link)] {
        let folder = tempfile::tempdir().unwrap();
        let kv = 732 * TOKEN_BYTES;
        // Staged records on their way: two to read and one to write.
        let bounce = 3 * u64::from(block_tokens) * TOKEN_BYTES;
        let mut engine = open(with_disk(
            folder.path(),
            EngineOptions {
                device_bytes: (kv / 8).max(6 << 20),
                host_bytes: kv / 4 + (3 << 20) + bounce,
                block_tokens,
                link,
                chunk: 32,
                ..options()
            },
        ));
        let what = format!("blocks of {block_tokens}, {link:?}");
        let cold = ask(&mut engine, &prompt, 32);
        assert_eq!(cold.logits_digest, expected, "{what}");
        assert!(cold.loaded.disk > 0, "{what}: nothing was paged from the disk");
        let warm = ask(&mut engine, &prompt, 32);
        assert_eq!(warm.logits_digest, expected, "{what}, warm");
        assert!(warm.cached_tokens.disk > 0, "{what}: {:?}", warm.cached_tokens);
        assert_eq!((cold.recomputed_tokens, warm.recomputed_tokens), (0, 0), "{what}");
        close(engine);
    }
}

/// Exactly an eighth of the KV on the device and a quarter in the host, strict, over a link of 1 GB/s.
#[test]
fn an_eighth_and_a_quarter_over_a_slow_link() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let prompt = fixture().prompt(1200, 1300);
    let expected = expected(&prompt, 8);
    let kv = (1300 + 8) * TOKEN_BYTES;
    let options = EngineOptions { device_bytes: kv / 8, host_bytes: kv / 4, block_tokens: 16, link: SLOW, ..options() };
    let mut engine = open(with_disk(folder.path(), options));
    engine.cache().protect_host_reader().expect("the mapping can be closed");
    for name in ["cold", "warm"] {
        let answer = ask(&mut engine, &prompt, 8);
        assert_eq!(answer.logits_digest, expected, "{name}");
        assert!(answer.loaded.disk > 0 && answer.loaded.host > 0, "{name}: {:?}", answer.loaded);
        assert_eq!(answer.recomputed_tokens, 0, "{name}");
    }
    let memory = engine.memory();
    assert!(memory.peak_bytes <= kv / 8, "{memory:?}");
    close(engine);
}

/// As the soak does with 128 MiB of disk and 32 MiB of host for 140 MiB of KV: the three together hold little more than the sequence.
#[test]
fn little_more_than_the_sequence_in_all() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let prompt = fixture().prompt(0, 2400);
    let expected = expected(&prompt, 4);
    let options = EngineOptions { device_bytes: 12 << 20, host_bytes: 16 << 20, link: STRICT, ..options() };
    let mut engine = open(with_disk_of(folder.path(), 64 << 20, options));
    let answer = ask(&mut engine, &prompt, 4);
    assert_eq!(answer.logits_digest, expected);
    assert!(answer.loaded.disk > 0 && answer.loaded.host > 0, "{:?}", answer.loaded);
    assert!(allocated_bytes(folder.path()) <= 64 << 20);
    close(engine);
    assert!(allocated_bytes(folder.path()) <= 64 << 20);
}

/// Two sequences whose sum exceeds device and host.
#[test]
fn two_sequences_share_three_tiers() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let prompts = [fixture().prompt(10, 350), fixture().prompt(900, 420)];
    let expected: Vec<[u8; 32]> = prompts.iter().map(|prompt| expected(prompt, 16)).collect();
    let options = EngineOptions { device_bytes: 8 << 20, host_bytes: 12 << 20, link: STRICT, chunk: 64, ..options() };
    let mut engine = open(with_disk(folder.path(), options));
    let answers = ask_together(&mut engine, &[&prompts[0], &prompts[1]], 16);
    let found: Vec<[u8; 32]> = answers.iter().map(|answer| answer.logits_digest).collect();
    assert_eq!(found, expected);
    close(engine);
}

/// The twin over `pread`, and a file system in memory, where there is no direct I/O.
#[test]
fn other_ways_to_the_disk_change_no_bit() {
    let _turn = turn();
    let prompt = fixture().prompt(4000, 200);
    let expected = expected(&prompt, 8);
    let on_disk = tempfile::tempdir().unwrap();
    let in_memory = tempfile::tempdir_in("/dev/shm").expect("every Linux has a tmpfs there");
    for (folder, io, says) in [
        (&on_disk, IoChoice::Pread, "pread"),
        (&on_disk, IoChoice::Auto, ""),
        (&in_memory, IoChoice::Auto, "buffered (tmpfs"),
        (&in_memory, IoChoice::Pread, "buffered (tmpfs"),
    ] {
        let is_first = allocated_bytes(folder.path()) == 0;
        let mut options = with_disk_of(folder.path(), 64 << 20, options());
        options.disk.as_mut().expect("it was just given").io = io;
        let mut engine = open(options);
        let medium = engine.cache().disk_tier().expect("it is open").describe();
        assert!(medium.contains(says), "{medium}");
        let answer = ask(&mut engine, &prompt, 8);
        assert_eq!(answer.logits_digest, expected, "{medium}");
        assert_eq!(answer.cached_tokens.disk, if is_first { 0 } else { 192 }, "{medium}");
        assert_eq!(engine.cache().stats().dropped_stores, 0, "{medium}");
        close(engine);
    }
}
