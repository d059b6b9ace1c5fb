//! The disk tier against its bars: `cargo xtask bars disk [-- --dir DIR] [TABLE...]`. The directory should be on the disk that is meant; it
//! needs 8 GB free for `throughput`.
//!
//! | table | what is compared |
//! |---|---|
//! | `throughput` | the tier with checksums on beside `fio` on the same directory, 1 MiB, depth 16, turn by turn; read latency under a writer |
//! | `log` | index memory per block; a log that stands for 200 GB: when it is ready, when it is indexed |
//! | `warm` | first token from disk after a restart beside the sum of its parts |

mod log;
mod pump;
mod throughput;
mod warm;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

const TABLES: [&str; 3] = ["throughput", "log", "warm"];

fn main() -> ExitCode {
    let mut words: Vec<String> = std::env::args().skip(1).collect();
    let mut parent = std::env::temp_dir();
    if let Some(at) = words.iter().position(|word| word == "--dir") {
        if at + 1 == words.len() {
            eprintln!("--dir needs a directory");
            return ExitCode::from(2);
        }
        parent = PathBuf::from(words.drain(at..at + 2).nth(1).expect("it was just counted"));
    }
    if let Some(unknown) = words.iter().find(|table| !TABLES.contains(&table.as_str())) {
        eprintln!("there is no table {unknown}; give some of: {}", TABLES.join(", "));
        return ExitCode::from(2);
    }
    let wanted = |table: &str| words.is_empty() || words.iter().any(|wanted| wanted == table);
    let folder = match tempfile::tempdir_in(&parent) {
        Ok(folder) => folder,
        Err(error) => {
            eprintln!("make a folder in {}: {error}", parent.display());
            return ExitCode::FAILURE;
        }
    };
    println!("Directory: {}; load average at the start: {:.2}\n", parent.display(), load());
    let mut missed = Vec::new();
    if wanted("throughput") {
        match throughput::table(folder.path()) {
            Ok(found) => missed.extend(found),
            Err(error) => missed.push(format!("throughput was not measured: {error}")),
        }
    }
    if wanted("log") {
        missed.extend(log::table(folder.path()));
    }
    if wanted("warm") {
        missed.extend(warm::table(folder.path()));
    }
    println!("Medians (lowest to highest). Load average at the end: {:.2}", load());
    for line in &missed {
        println!("MISSED: {line}");
    }
    if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Median and extremes of a few measurements.
#[derive(Clone, Copy)]
struct Spread {
    lowest: f64,
    median: f64,
    highest: f64,
}

impl Spread {
    fn of(values: impl IntoIterator<Item = f64>) -> Spread {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let median = f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2]);
        Spread { lowest: values[0], median, highest: values[values.len() - 1] }
    }

    fn show(&self, scale: f64) -> String {
        format!("{:.2} ({:.2} to {:.2})", self.median * scale, self.lowest * scale, self.highest * scale)
    }
}

fn seconds(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64()
}

/// Load average of the last minute; 0 where the system does not tell.
fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}
