//! `cargo xtask bars nvfp4 -- TEXT`: `kc4vt4` beside NVFP4 on the same text with the same window and block 0, as a table. The comparison is
//! that of `kvtier quality`; NVFP4's side is the engine with `kvtier_tests::nvfp4` between it and its device.
//!
//! The bar: `kc4vt4` has at most a third of NVFP4's mean KL. Exits with 1 when it is missed.
//!
//! Arguments: a text, then lengths as TOKENSxPIECES; without any, 2048x16 and 8192x4.

use std::process::ExitCode;

use kvtier_engine::quality::divergence::{self, Divergence};
use kvtier_engine::run::Form;
use kvtier_engine::run::engine::EngineOptions;
use kvtier_engine::tokenizer::SpecialTokens;
use kvtier_tests::{fixture, nvfp4, plain};

/// NVFP4's mean KL over that of `kc4vt4`, at least.
const BAR: f64 = 3.0;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let Some(file) = arguments.next() else { return refuse("give a text") };
    let lengths: Option<Vec<(usize, usize)>> = arguments.map(|length| parse(&length)).collect();
    let Some(mut lengths) = lengths else { return refuse("give lengths as TOKENSxPIECES, with 4 tokens at least") };
    if lengths.is_empty() {
        lengths = vec![(2048, 16), (8192, 4)];
    }
    let text = match std::fs::read(&file) {
        Ok(text) => text,
        Err(error) => return refuse(&format!("read {file}: {error}")),
    };
    let tokens = match fixture().tokenizer.encode(&text, SpecialTokens::Plain) {
        Ok(tokens) => tokens,
        Err(error) => return refuse(&error.to_string()),
    };
    if let Some((length, pieces)) = lengths.iter().find(|(length, pieces)| length * pieces > tokens.len()) {
        return refuse(&format!("{file} has {} tokens, fewer than {length} x {pieces}", tokens.len()));
    }
    let mut held = true;
    for (length, pieces) in lengths {
        held &= compare(&tokens, length, pieces);
    }
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn refuse(reason: &str) -> ExitCode {
    eprintln!("error: {reason}");
    ExitCode::from(2)
}

fn parse(length: &str) -> Option<(usize, usize)> {
    let (tokens, pieces) = length.split_once('x')?;
    let (tokens, pieces) = (tokens.parse().ok()?, pieces.parse().ok()?);
    (tokens >= 4 && pieces >= 1).then_some((tokens, pieces))
}

/// Prints the table of one length; whether the bar was held.
fn compare(tokens: &[u32], length: usize, count: usize) -> bool {
    let pieces: Vec<&[u32]> = tokens.chunks_exact(length).take(count).collect();
    // NVFP4's numbers lie in slots of `i8h`.
    let open = |form: Form, _: Option<&std::path::Path>| {
        Ok(match form {
            Form::I8h => fixture().nvfp4_engine(),
            form => fixture().engine(EngineOptions { form, ..plain() }),
        })
    };
    let mut told = 0;
    let mut watch = |done: usize, all: usize| {
        if 20 * done / all > told {
            told = 20 * done / all;
            eprintln!("  {count} x {length}: {} %", 5 * told);
        }
    };
    let measured = divergence::measure(&open, &[Form::Kc4vt4, Form::I8h], &pieces, &mut watch);
    let [ours, theirs] = <[Divergence; 2]>::try_from(measured.expect("two engines over one text")).expect("two forms");
    let ratio = theirs.summary.kl_mean / ours.summary.kl_mean;
    println!(
        "{count} x {length} tokens, {} positions, floor {:.1e}; NVFP4 / kc4vt4: {ratio:.2}, bar {BAR}{}\n",
        ours.summary.positions,
        ours.floor_kl,
        if ratio < BAR { " MISSED" } else { "" }
    );
    println!("| form | bits | mean KL | median | p99 | max | top-1 | perplexity |\n|---|---|---|---|---|---|---|---|");
    row("`kc4vt4`", ours.bits_per_value, &ours);
    row("NVFP4", nvfp4::BITS, &theirs);
    println!();
    ratio >= BAR
}

fn row(name: &str, bits: f64, measured: &Divergence) {
    let summary = &measured.summary;
    let error = |error: Option<f64>, unit: f64| error.map_or("-".to_owned(), |error| format!("{:.2}", error * unit));
    println!(
        "| {name} | {bits} | {:.2}e-3 ± {}e-3 | {:.2e} | {:.2e} | {:.2} | {:.2} % | {:+.2} ± {} % |",
        1e3 * summary.kl_mean,
        error(summary.kl_mean_error, 1e3),
        summary.kl_median,
        summary.kl_p99,
        summary.kl_max,
        100.0 * summary.top1,
        100.0 * (summary.ppl_ratio - 1.0),
        error(summary.ppl_ratio_error, 100.0)
    );
}
