//! The tier beside `fio`, turn by turn. Rewrites are compared with rewrites: the first write into a preallocated extent is slower for both.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use disk_tier::DiskTier;
use disk_tier::io::rig::SplitMix64;
use serde_json::Value;

use crate::Spread;
use crate::pump::{BLOCK_BYTES, Kind, Pump, key, open};

const DEPTH: usize = 16;
const BUDGET_BYTES: u64 = 3 << 30;
/// Bytes of one turn.
const TURN_BYTES: u64 = 512 << 20;
const ROUNDS: usize = 7;
const READ_BAR: f64 = 0.95;
const WRITE_BAR: f64 = 0.9;

/// Prints the tables; returns the bars that were missed. Errors: `fio` is missing or fails.
pub fn table(directory: &Path) -> Result<Vec<String>, String> {
    let version = Command::new("fio").arg("--version").output();
    let version = version.map_err(|_| "fio is not installed; apt-get install fio".to_owned())?;
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    let tier = open(&directory.join("tier"), BUDGET_BYTES);
    println!("### Throughput: blocks of 1 MiB, depth {DEPTH}, turns of {} MiB\n", TURN_BYTES >> 20);
    println!("Tier: {}, checksums made and verified; {version}: its io_uring engine, O_DIRECT.\n", tier.describe());
    let file = directory.join("fio.data");
    fio(&file, "write")?;
    // Every segment is written once, so that what is measured are rewrites.
    let mut next = 0;
    let mut take = |count: u64| {
        next += count;
        next - count..next
    };
    let mut pump = Pump::new(&tier, DEPTH);
    let fresh = pump.run(Kind::Write, &mut take(BUDGET_BYTES / BLOCK_BYTES));
    let mut random = SplitMix64::new(1);
    let mut rates: [Vec<f64>; 4] = Default::default();
    for round in 0..ROUNDS {
        let mut ours = |rates: &mut [Vec<f64>; 4]| {
            let blocks = take(TURN_BYTES / BLOCK_BYTES);
            rates[0].push(pump.run(Kind::Write, &mut blocks.clone()));
            let mut order: Vec<u64> = blocks.collect();
            random.shuffle(&mut order);
            rates[1].push(pump.run(Kind::Read, &mut order.into_iter()));
        };
        let theirs = |rates: &mut [Vec<f64>; 4]| -> Result<(), String> {
            rates[2].push(fio(&file, "write")?);
            rates[3].push(fio(&file, "randread")?);
            Ok(())
        };
        if round % 2 == 0 {
            ours(&mut rates);
            theirs(&mut rates)?;
        } else {
            theirs(&mut rates)?;
            ours(&mut rates);
        }
    }
    let [write, read, raw_write, raw_read] = rates;
    println!("| | tier GB/s | fio GB/s | tier / fio, round by round | bar |");
    println!("|---|---|---|---|---|");
    let mut missed = Vec::new();
    for (name, ours, theirs, bar) in [("read", read, raw_read, READ_BAR), ("rewrite", write, raw_write, WRITE_BAR)] {
        let ratio = Spread::of(ours.iter().zip(&theirs).map(|(ours, theirs)| ours / theirs));
        let (ours, theirs) = (Spread::of(ours), Spread::of(theirs));
        println!("| {name} | {} | {} | {} | {bar} |", ours.show(1e-9), theirs.show(1e-9), ratio.show(1.0));
        if ratio.median < bar {
            missed.push(format!("{name}: {:.3} of fio, the bar is {bar}", ratio.median));
        }
    }
    println!("\nFirst writes into preallocated extents, tier: {:.2} GB/s.", fresh / 1e9);
    println!("Reclaimed segments: {}.\n", tier.counters().reclaimed_segments);
    latency(&tier, take(0).start);
    tier.close(10_000);
    drop(std::fs::remove_file(file));
    drop(std::fs::remove_dir_all(directory.join("tier")));
    Ok(missed)
}

/// Bytes per second of one turn.
fn fio(file: &Path, how: &str) -> Result<f64, String> {
    let mut command = Command::new("fio");
    command.args(["--name=turn", "--ioengine=io_uring", "--direct=1", "--bs=1M", "--output-format=json"]);
    command.arg(format!("--iodepth={DEPTH}")).arg(format!("--size={TURN_BYTES}")).arg(format!("--rw={how}"));
    command.args([
        "--fallocate=native",
        "--randrepeat=0",
        "--refill_buffers=0",
        "--end_fsync=0",
        "--allow_file_create=1",
    ]);
    command.arg(format!("--filename={}", file.display()));
    let output = command.output().map_err(|error| format!("run fio: {error}"))?;
    if !output.status.success() {
        return Err(format!("fio: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let json = text.find('{').map_or("", |start| &text[start..]);
    let report: Value = serde_json::from_str(json).map_err(|error| format!("read fio's report: {error}"))?;
    let side = if how.contains("read") { "read" } else { "write" };
    report["jobs"][0][side]["bw_bytes"].as_f64().ok_or_else(|| "fio's report has no rate".to_owned())
}

/// Latency of single reads, alone and beside a writer that keeps four writes under way.
fn latency(tier: &DiskTier, mut next: u64) {
    println!("### Latency of reads, 1 MiB, one at a time\n");
    println!("| writes under way | reads | p50 ms | p90 ms | p99 ms | p99.9 ms | highest ms | written GB/s |");
    println!("|---|---|---|---|---|---|---|---|");
    let mut random = SplitMix64::new(2);
    for writes in [0, 4] {
        let mut pump = Pump::new(tier, writes + 1);
        let (mut took, mut written): (Vec<f64>, u64) = (Vec::new(), 0);
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(6) {
            while pump.count(Kind::Write) < writes {
                pump.start(Kind::Write, next);
                next += 1;
            }
            if pump.count(Kind::Read) == 0 {
                // A block that is still there: the last gigabyte is never reclaimed first.
                let number = next.saturating_sub(32 + random.below(900));
                if tier.find(&key(number)).is_ok() {
                    pump.start(Kind::Read, number);
                }
            }
            pump.finish(&mut |kind, _, time| match kind {
                Kind::Read => took.push(time.as_secs_f64() * 1e3),
                Kind::Write => written += BLOCK_BYTES,
            });
        }
        let rate = written as f64 / begun.elapsed().as_secs_f64() / 1e9;
        while pump.count(Kind::Read) + pump.count(Kind::Write) > 0 {
            pump.finish(&mut |_, _, _| {});
        }
        took.sort_by(f64::total_cmp);
        let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
        println!(
            "| {writes} | {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {rate:.2} |",
            took.len(),
            at(0.5),
            at(0.9),
            at(0.99),
            at(0.999),
            at(1.0)
        );
    }
    println!();
}
