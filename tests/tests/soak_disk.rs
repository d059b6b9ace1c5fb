//! The long form of the disk's scenarios, run by `cargo xtask soak disk`, which also runs the tests of the tier itself at full scale. The
//! short forms are `disk.rs`, `disk_loss.rs` and `disk_kill.rs`.

use std::path::Path;
use std::time::Instant;

use kvtier_engine::run::Link;
use kvtier_engine::run::engine::EngineOptions;
use kvtier_tests::disk::{allocated_bytes, close, expected, open, with_disk_of};
use kvtier_tests::{STRICT, TOKEN_BYTES, ask, fixture, kill, options, turn};

const MIB: u64 = 1 << 20;

/// The document over and over, for prompts longer than it.
fn prompt(start: usize, length: usize) -> Vec<u32> {
    fixture().tokens.iter().cycle().skip(start).take(length).copied().collect()
}

/// Prints how long a test took.
struct Clock(&'static str, Instant);

impl Clock {
    fn start(name: &'static str) -> Clock {
        Clock(name, Instant::now())
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        println!("  {}: {:.0} s", self.0, self.1.elapsed().as_secs_f64());
    }
}

/// 140 MiB of KV; an eighth of it on the device, 32 MiB of host, 128 MiB of disk. Of the host, bounce memory is set aside, of the disk a segment
/// or two, and of each segment what no whole record fits into: little is left over.
#[test]
#[ignore = "minutes: cargo xtask soak disk"]
fn a_sequence_as_large_as_all_three_tiers() {
    let _turn = turn();
    let _clock = Clock::start("140 MiB of KV over 18 + 32 + 128 MiB");
    let folder = tempfile::tempdir().unwrap();
    let prompt = prompt(0, 6_350);
    let expected = expected(&prompt, 8);
    let device_bytes = prompt.len() as u64 * TOKEN_BYTES / 8;
    for (block_tokens, link) in [(64, STRICT), (64, options().link), (16, STRICT)] {
        let directory = folder.path().join(format!("{block_tokens}{:?}", link == STRICT));
        let options = EngineOptions { device_bytes, host_bytes: 32 * MIB, block_tokens, link, chunk: 128, ..options() };
        let mut engine = open(with_disk_of(&directory, 128 * MIB, options));
        let what = format!("blocks of {block_tokens}, {link:?}");
        for name in ["cold", "warm"] {
            let answer = ask(&mut engine, &prompt, 8);
            assert_eq!(answer.logits_digest, expected, "{what}, {name}");
            assert!(allocated_bytes(&directory) <= 128 * MIB);
            println!(
                "  {what}, {name}: first token {:.1} s, decode {:.2} s a token, from the disk {:.0} MB, again {} tokens, {:?}",
                answer.first_token.as_secs_f64(),
                answer.decode.as_secs_f64() / 7.0,
                answer.loaded.disk as f64 / 1e6,
                answer.recomputed_tokens,
                answer.cached_tokens
            );
        }
        close(engine);
        assert!(allocated_bytes(&directory) <= 128 * MIB);
    }
}

/// An eighth on the device and a quarter in the host over a link of 1 GB/s, 4,000 tokens, blocks of 16 and 64.
#[test]
#[ignore = "minutes: cargo xtask soak disk"]
fn an_eighth_and_a_quarter() {
    let _turn = turn();
    let _clock = Clock::start("1/8 + 1/4 over 1 GB/s");
    let prompt = prompt(500, 4_000);
    let expected = expected(&prompt, 16);
    let kv = (prompt.len() as u64 + 16) * TOKEN_BYTES;
    let link = Link::Strict { bytes_per_second: Some(1e9) };
    for block_tokens in [16, 64] {
        let folder = tempfile::tempdir().unwrap();
        let options = EngineOptions { device_bytes: kv / 8, host_bytes: kv / 4, block_tokens, link, ..options() };
        let mut engine = open(with_disk_of(folder.path(), 256 * MIB, options));
        engine.cache().protect_host_reader().expect("the mapping can be closed");
        for name in ["cold", "warm"] {
            let answer = ask(&mut engine, &prompt, 16);
            assert_eq!((answer.logits_digest, answer.recomputed_tokens), (expected, 0), "{block_tokens}, {name}");
            println!(
                "  blocks of {block_tokens}, {name}: {:.0} MB from the disk, {:.0} MB from the host",
                answer.loaded.disk as f64 / 1e6,
                answer.loaded.host as f64 / 1e6
            );
        }
        close(engine);
    }
}

/// One chain three times as long as the disk, in a host that holds it; then other chains, and the log goes round.
#[test]
#[ignore = "minutes: cargo xtask soak disk"]
fn a_chain_three_times_the_disk() {
    let _turn = turn();
    let _clock = Clock::start("three times the disk");
    let folder = tempfile::tempdir().unwrap();
    let prompt = prompt(0, 8_800);
    assert!(prompt.len() as u64 * TOKEN_BYTES >= 3 * 64 * MIB);
    let roomy = EngineOptions { context_tokens: 9_216, ..options() };
    let expected = {
        let mut engine = fixture().engine(EngineOptions { use_cache: false, ..roomy.clone() });
        ask(&mut engine, &prompt, 4).logits_digest
    };
    let mut engine = open(with_disk_of(folder.path(), 64 * MIB, roomy.clone()));
    assert_eq!(ask(&mut engine, &prompt, 4).logits_digest, expected);
    let tier = engine.cache().disk_tier().expect("it is open").clone();
    println!("  after one chain: {:?}", tier.capacity());
    let mut reclaimed = tier.counters().reclaimed_segments;
    for start in [3, 11, 29] {
        ask(&mut engine, &self::prompt(start, 3_000), 1);
        let now = tier.counters().reclaimed_segments;
        println!("  reclaimed {now} segments so far");
        assert!(now > reclaimed, "reclaim makes progress");
        reclaimed = now;
        assert!(allocated_bytes(folder.path()) <= 64 * MIB);
    }
    assert_eq!(ask(&mut engine, &prompt, 4).logits_digest, expected);
    close(engine);
    // The last handle releases the directory.
    drop(tier);
    let mut engine = open(with_disk_of(folder.path(), 64 * MIB, roomy));
    assert_eq!(ask(&mut engine, &prompt, 4).logits_digest, expected);
    close(engine);
}

/// Prompts of many lengths: written, the engine ended, answered again by a new one; every full block a hit.
#[test]
#[ignore = "minutes: cargo xtask soak disk"]
fn restarts_answer_from_the_disk() {
    let _turn = turn();
    let _clock = Clock::start("restarts");
    let folder = tempfile::tempdir().unwrap();
    let prompts: Vec<Vec<u32>> =
        [40, 64, 65, 129, 400, 640, 1_025, 2_048, 6_040].iter().enumerate().map(|(i, n)| prompt(977 * i, *n)).collect();
    let mut engine = open(with_disk_of(folder.path(), 1024 * MIB, options()));
    let cold: Vec<[u8; 32]> = prompts.iter().map(|prompt| ask(&mut engine, prompt, 16).logits_digest).collect();
    close(engine);
    let tight = EngineOptions { device_bytes: 24 * MIB, host_bytes: 40 * MIB, ..options() };
    for options in
        [options(), EngineOptions { link: STRICT, ..options() }, tight.clone(), EngineOptions { link: STRICT, ..tight }]
    {
        let mut engine = open(with_disk_of(folder.path(), 1024 * MIB, options));
        for (prompt, cold) in prompts.iter().zip(&cold) {
            let warm = ask(&mut engine, prompt, 16);
            assert_eq!(warm.logits_digest, *cold, "{} tokens", prompt.len());
            let cached = warm.cached_tokens;
            assert_eq!(cached.device + cached.host + cached.disk, (prompt.len() as u32 - 1) / 64 * 64, "{cached:?}");
        }
        close(engine);
    }
    for (prompt, cold) in prompts.iter().zip(&cold).take(7) {
        assert_eq!(expected(prompt, 16), *cold);
    }
}

#[test]
#[ignore = "minutes: cargo xtask soak disk"]
fn a_thousand_kills() {
    let _clock = Clock::start("1,000 kills");
    let tally = kill::run(Path::new(env!("CARGO_BIN_EXE_disk_child")), 1_000, false);
    println!("  {tally:?}");
    tally.assert_sound();
}
