//! `kvtier bench disk`: a disk through the tier, beside the disk alone.

use std::path::PathBuf;
use std::time::Duration;

use indicatif::ProgressBar;
use kvtier_sdk::embedded::bench::{self, BenchError, BenchReport, BenchSettings, Latency};
use serde_json::{Value, json};

use crate::args::BenchDiskArgs;
use crate::disk;
use crate::failure::Failure;
use crate::load;
use crate::output;
use crate::signals::Signals;

/// Runs the command.
pub fn run(args: &BenchDiskArgs) -> Result<(), Failure> {
    let settings =
        BenchSettings { block_bytes: args.block_size.0, depth: args.depth, total_bytes: args.size.0, io: disk::io()? };
    let scratch = scratch(args)?;
    let bar = ProgressBar::no_length().with_style(load::bytes_style()).with_message("measuring");
    let measured = bench::measure(scratch.path(), &settings, &mut |done, whole| {
        bar.set_length(whole);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    // Gone before anything is said; a folder that cannot be removed is worth an error.
    let removed = scratch.close();
    let report = measured.map_err(|error| {
        let code = if matches!(error, BenchError::Settings(_)) { 2 } else { 3 };
        Failure::from_error(&error, code)
    })?;
    removed?;
    if args.json { output::print_line(&object(&report).to_string()) } else { print(&report, args) }
}

/// A fresh folder, removed at every orderly end, by a signal too.
fn scratch(args: &BenchDiskArgs) -> Result<tempfile::TempDir, Failure> {
    let made = tempfile::Builder::new().prefix("kvtier-bench-").tempdir_in(&args.directory);
    let scratch = made.map_err(|error| {
        let cause = error.to_string();
        Failure::input(format!("make a folder in {}: {cause}; name a folder on the disk", args.directory.display()))
    })?;
    let path: PathBuf = scratch.path().to_path_buf();
    // Files that are still being written go with it.
    Signals::install()?.at_end(move || drop(std::fs::remove_dir_all(path)));
    Ok(scratch)
}

fn object(report: &BenchReport) -> Value {
    let micros = |time: Duration| time.as_secs_f64() * 1e6;
    let percentiles = |latency: &Latency| json!({ "p50": micros(latency.p50), "p99": micros(latency.p99) });
    json!({
        "read_gb_s": report.read_bytes_s / 1e9,
        "write_gb_s": report.write_bytes_s / 1e9,
        "raw_read_gb_s": report.raw_read_bytes_s / 1e9,
        "raw_write_gb_s": report.raw_write_bytes_s / 1e9,
        "read_us": percentiles(&report.read),
        "write_us": percentiles(&report.write),
    })
}

fn print(report: &BenchReport, args: &BenchDiskArgs) -> Result<(), Failure> {
    output::print_line(&format!(
        "{} at {} operations under way, {} each way; {}",
        args.block_size, args.depth, args.size, report.medium
    ))?;
    let row = |name: &str, ours: f64, raw: f64, latency: &Latency| {
        vec![
            name.to_owned(),
            format!("{:.2} GB/s", ours / 1e9),
            format!("{:.2} GB/s", raw / 1e9),
            format!("{:.2}x", ours / raw.max(1.0)),
            output::time(latency.p50),
            output::time(latency.p99),
        ]
    };
    let head = ["", "through the tier", "disk alone", "ratio", "median", "99 %"].map(str::to_owned).to_vec();
    output::print_table(&[
        head,
        row("read", report.read_bytes_s, report.raw_read_bytes_s, &report.read),
        row("write", report.write_bytes_s, report.raw_write_bytes_s, &report.write),
    ])
}
