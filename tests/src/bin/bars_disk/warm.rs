//! First token from the disk after a restart, beside the sum of its parts: the tail's prefill, and the stored bytes at this disk's rate.

use std::path::Path;
use std::time::Instant;

use disk_tier::io::rig::SplitMix64;
use kvtier_engine::run::engine::EngineOptions;
use kvtier_engine::run::request::Progress;
use kvtier_tests::disk::{close, open, with_disk_of};
use kvtier_tests::{STRICT, ask, fixture, options, plain, request};

use crate::Spread;
use crate::pump::{self, BLOCK_BYTES, Kind, Pump};

/// Tokens of the prefix that is asked about: 94 blocks of 64.
const PREFIX: usize = 6_016;
/// Tokens after it, of which no block is full.
const TAIL: usize = 40;
/// A chunk that divides [`PREFIX`], so that the last step of a cold prefill is the tail alone.
const TAIL_CHUNK: u32 = 376;
const WARM_BAR: f64 = 1.5;
const ROUNDS: usize = 5;
const BUDGET_BYTES: u64 = 512 << 20;

/// Prints the table; returns the bars that were missed.
pub fn table(directory: &Path) -> Vec<String> {
    let store = directory.join("warm");
    let prompt = fixture().prompt(0, PREFIX + TAIL);
    let tail = tail_prefill(&prompt);
    let mut engine = open(with_disk_of(&store, BUDGET_BYTES, options()));
    let cold = ask(&mut engine, &prompt, 1);
    close(engine);
    println!("### First token after a restart: prefix of {PREFIX} tokens, tail of {TAIL}\n");
    println!(
        "Cold: {:.1} s. Tail alone, everything resident: {} ms.\n",
        cold.first_token.as_secs_f64(),
        tail.show(1e3)
    );
    println!("| link | disk GB/s | loaded MB | first token ms | parts ms | first token / parts | bar | cold / warm |");
    println!("|---|---|---|---|---|---|---|---|");
    let mut missed = Vec::new();
    for (name, link) in [("in place", options().link), ("strict, unthrottled", STRICT)] {
        let (mut first, mut rates, mut loaded) = (Vec::new(), Vec::new(), 0);
        for _ in 0..ROUNDS {
            // The disk's rate is measured beside each restart, on files of the same folder.
            rates.push(disk_rate(directory));
            let mut engine = open(with_disk_of(&store, BUDGET_BYTES, EngineOptions { link, ..options() }));
            let warm = ask(&mut engine, &prompt, 1);
            assert_eq!(warm.logits_digest, cold.logits_digest);
            assert_eq!(warm.cached_tokens.disk as usize, PREFIX, "every full block is a hit");
            first.push(warm.first_token.as_secs_f64());
            loaded = warm.loaded.disk;
            close(engine);
        }
        let (first, rate) = (Spread::of(first), Spread::of(rates));
        let parts = tail.median + loaded as f64 / rate.median;
        let ratio = first.median / parts;
        println!(
            "| {name} | {} | {:.1} | {} | {:.1} | {ratio:.2} | {WARM_BAR} | {:.0}x |",
            rate.show(1e-9),
            loaded as f64 / 1e6,
            first.show(1e3),
            parts * 1e3,
            cold.first_token.as_secs_f64() / first.median
        );
        if ratio > WARM_BAR {
            missed.push(format!("warm from disk, {name}: {ratio:.2} x its parts, the bar is {WARM_BAR}"));
        }
    }
    println!();
    missed
}

/// Bytes per second of reads of 1 MiB at depth 16 through a tier of its own.
fn disk_rate(directory: &Path) -> f64 {
    let tier = pump::open(&directory.join("rate"), 1 << 30);
    let mut pump = Pump::new(&tier, 16);
    let blocks = (256 << 20) / BLOCK_BYTES;
    pump.run(Kind::Write, &mut (0..blocks));
    let mut order: Vec<u64> = (0..blocks).collect();
    SplitMix64::new(3).shuffle(&mut order);
    let rate = pump.run(Kind::Read, &mut order.into_iter());
    drop(pump);
    tier.close(10_000);
    rate
}

/// Prefill of the tail with the prefix resident, without a cache: from the end of the step before it to the first token.
fn tail_prefill(prompt: &[u32]) -> Spread {
    let mut engine = fixture().engine(EngineOptions { chunk: TAIL_CHUNK, ..plain() });
    Spread::of((0..3).map(|_| {
        let (mut prefix_done, mut first) = (None, None);
        let watch = &mut |progress| match progress {
            Progress::Prefill { done, .. } if done as usize == PREFIX => prefix_done = Some(Instant::now()),
            Progress::Prefill { .. } => {}
            Progress::Token { .. } => first = Some(Instant::now()),
        };
        engine.generate(vec![request(prompt, 1)], watch).pop().expect("one result").expect("an answer");
        let prefix_done = prefix_done.expect("the chunk divides the prefix");
        first.expect("a token").duration_since(prefix_done).as_secs_f64()
    }))
}
