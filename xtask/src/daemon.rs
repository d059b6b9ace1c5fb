//! `cargo xtask bars daemon`: the daemon under clients beside a plain copy, Redis and LMCache's daemon, as one table with its bars.

mod lmcache;

use std::process::Command;

use serde_json::Value;

use crate::measure::{is_busy, load, number, processor, read};
use crate::stage;

/// The least and the most that figures may be.
const ACQUIRE_US: f64 = 60.0;
const ACQUIRE_BATCH_US: f64 = 200.0;
const PUT_TO_COPY: f64 = 0.5;
const GET_TO_LMCACHE: f64 = 10.0;
const PUT_TO_LMCACHE: f64 = 4.0;

/// Lines of `kvtier bench daemon --json`.
struct Figures(Vec<Value>);

impl Figures {
    fn find(&self, system: &str, op: &str, block_bytes: u64, clients: u64) -> Option<&Value> {
        self.0.iter().find(|row| {
            row["system"] == system
                && row["op"] == op
                && row["block_bytes"].as_u64() == Some(block_bytes)
                && row["clients"].as_u64() == Some(clients)
        })
    }

    fn number(&self, system: &str, op: &str, of: (u64, u64), field: &str) -> Result<f64, String> {
        let row = self.find(system, op, of.0, of.1).ok_or_else(|| format!("no {op} of {system} for {of:?}"))?;
        number(row, field)
    }

    /// Block sizes and clients, each pair once.
    fn cases(&self) -> Vec<(u64, u64)> {
        let case = |row: &Value| Some((row["block_bytes"].as_u64()?, row["clients"].as_u64()?));
        let mut cases: Vec<_> = self.0.iter().filter_map(case).collect();
        cases.sort_unstable();
        cases.dedup();
        cases
    }

    /// Median of the ratios, round by round: both took their turns in each.
    fn ratio(&self, op: &str, of: (u64, u64)) -> Result<(f64, f64, f64), String> {
        let rounds = |system: &str| -> Result<Vec<f64>, String> {
            let row = self.find(system, op, of.0, of.1).ok_or_else(|| format!("no {op} of {system} for {of:?}"))?;
            let rounds = row["gb_s_rounds"].as_array().ok_or("no rounds")?;
            Ok(rounds.iter().filter_map(Value::as_f64).collect())
        };
        let mut ratios: Vec<f64> =
            rounds("kvtier")?.iter().zip(rounds("copy")?).map(|(ours, copy)| ours / copy).collect();
        ratios.sort_by(f64::total_cmp);
        let last = ratios.len().checked_sub(1).ok_or("no rounds")?;
        Ok((ratios[last / 2], ratios[0], ratios[last]))
    }
}

/// What a bar says, and whether it holds.
struct Bar {
    what: String,
    value: String,
    wanted: String,
    /// `None` for a row that only stands beside the others.
    holds: Option<bool>,
}

/// Measures, prints a table, and fails when a bar is missed.
pub fn run(rest: &[String]) -> Result<(), String> {
    stage::run("build kvtier", stage::cargo().args(["build", "--release", "-p", "kvtier"]))?;
    let busy = is_busy();
    println!("{}\nLoad at the start: {}", processor(), load());
    let kvtier = stage::target().join("release").join("kvtier");
    let before = lmcache::measure();
    let lines = read(Command::new(&kvtier).args(["bench", "daemon", "--json"]).args(rest))?;
    let after = if before.is_ok() { lmcache::measure() } else { Err(String::new()) };
    let rows: Result<Vec<Value>, _> = lines.lines().map(serde_json::from_str).collect();
    let figures = Figures(rows.map_err(|error| format!("kvtier's JSON: {error}"))?);
    let bars = bars(&figures, &before, &after)?;
    println!("\n| what | value | bar | |\n|---|---|---|---|");
    for Bar { what, value, wanted, holds } in &bars {
        let verdict = holds.map_or("", |holds| if holds { "held" } else { "**MISSED**" });
        println!("| {what} | {value} | {wanted} | {verdict} |");
    }
    println!("\nMedians (lowest to highest of the rounds). Load at the end: {}", load());
    if busy {
        println!("The machine was NOT QUIET at the start: figures not to be published.");
    }
    let missed: Vec<&str> = bars.iter().filter(|bar| bar.holds == Some(false)).map(|bar| &bar.what[..]).collect();
    if missed.is_empty() { Ok(()) } else { Err(format!("missed: {}", missed.join("; "))) }
}

fn bars(
    figures: &Figures,
    before: &Result<lmcache::Rates, String>,
    after: &Result<lmcache::Rates, String>,
) -> Result<Vec<Bar>, String> {
    let mut bars = Vec::new();
    for case in figures.cases() {
        let name = format!("{} MiB, {} client{}", case.0 >> 20, case.1, if case.1 == 1 { "" } else { "s" });
        for (op, bar) in [("acquire", ACQUIRE_US), ("acquire_batch", ACQUIRE_BATCH_US)] {
            let found = |system: &str, field: &str| figures.number(system, op, case, field);
            let p50 = found("kvtier", "p50_us")?;
            let redis = found("redis", "p50_us").map_or("not installed".to_owned(), |us| format!("{us:.1}"));
            let is_judged = case.1 == 1;
            bars.push(Bar {
                what: format!("{name}: {}", if op == "acquire" { "acquire" } else { "acquire of 1,024" }),
                value: format!("p50 {p50:.1} us, p99 {:.1} (Redis p50 {redis})", found("kvtier", "p99_us")?),
                wanted: if is_judged { format!("<= {bar} us") } else { "-".to_owned() },
                holds: is_judged.then_some(p50 <= bar),
            });
        }
        for op in ["put", "get"] {
            let (median, least, most) = figures.ratio(op, case)?;
            let rate = |system: &str| figures.number(system, op, case, "gb_s");
            let redis = rate("redis").map_or("not installed".to_owned(), |rate| format!("{rate:.2}"));
            let is_judged = op == "put";
            bars.push(Bar {
                what: format!("{name}: {op} / copy"),
                value: format!(
                    "{median:.2}x ({least:.2} to {most:.2}): {:.2} of {:.2} GB/s (Redis {redis})",
                    rate("kvtier")?,
                    rate("copy")?
                ),
                wanted: if is_judged { format!(">= {PUT_TO_COPY}x") } else { "-".to_owned() },
                holds: is_judged.then_some(median >= PUT_TO_COPY),
            });
        }
    }
    bars.extend(beside_lmcache(figures, before, after)?);
    Ok(bars)
}

/// Our blocks of 32 MiB at one client beside its blocks, the better of its two runs. A get is judged by what a client of each does until it can read
/// the block: ours where it lies, LMCache's in a copy of its own. Beside it stands ours with a copy, which no daemon can make faster than memory.
fn beside_lmcache(
    figures: &Figures,
    before: &Result<lmcache::Rates, String>,
    after: &Result<lmcache::Rates, String>,
) -> Result<Vec<Bar>, String> {
    let case = figures.cases().into_iter().filter(|case| case.1 == 1).max();
    let rows = [("get", Some(GET_TO_LMCACHE)), ("get with a copy", None), ("put", Some(PUT_TO_LMCACHE))];
    let wanted = |bar: Option<f64>| bar.map_or("-".to_owned(), |bar| format!(">= {bar}x"));
    let (Ok(first), Some(case)) = (before, case) else {
        let reason = before.as_ref().err().map_or("no case of one client", |reason| reason);
        let absent = |(op, bar)| Bar {
            what: format!("{op} / LMCache's daemon"),
            value: reason.to_owned(),
            wanted: wanted(bar),
            holds: None,
        };
        return Ok(rows.map(absent).into());
    };
    let best = |of: fn(&lmcache::Rates) -> f64| of(first).max(after.as_ref().map_or(0.0, of));
    let (retrieve, store) = (best(|rates| rates.retrieve_gb_s), best(|rates| rates.store_gb_s));
    // Bytes a microsecond are MB/s.
    let in_place = case.0 as f64 / figures.number("kvtier", "acquire", case, "p50_us")? / 1e3;
    let ours = |op: &str| figures.number("kvtier", op, case, "gb_s");
    let pairs = [(in_place, retrieve), (ours("get")?, retrieve), (ours("put")?, store)];
    let bar = |((op, bar), (ours, theirs)): ((&str, Option<f64>), (f64, f64))| Bar {
        what: format!("{op} / LMCache's daemon"),
        value: format!("{:.1}x: {ours:.2} of {theirs:.2} GB/s", ours / theirs),
        wanted: wanted(bar),
        holds: bar.map(|bar| ours >= bar * theirs),
    };
    Ok(rows.into_iter().zip(pairs).map(bar).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(system: &str, op: &str, rounds: &[f64], p50_us: f64) -> Value {
        json!({
            "system": system, "op": op, "block_bytes": 2 << 20, "clients": 1,
            "gb_s": rounds.first(), "gb_s_rounds": rounds, "p50_us": p50_us, "p99_us": 2.0 * p50_us,
        })
    }

    fn figures(put: &[f64], acquire_us: f64) -> Figures {
        Figures(vec![
            row("copy", "put", &[10.0, 20.0, 10.0], 1.0),
            row("copy", "get", &[10.0, 10.0, 10.0], 1.0),
            row("kvtier", "put", put, 1.0),
            row("kvtier", "get", &[9.0, 9.0, 9.0], 1.0),
            row("kvtier", "acquire", &[], acquire_us),
            row("kvtier", "acquire_batch", &[], 150.0),
        ])
    }

    fn held(figures: &Figures, what: &str) -> Option<bool> {
        let none = Err("no environment".to_owned());
        let bars = bars(figures, &none, &none).unwrap();
        bars.iter().find(|bar| bar.what.ends_with(what)).unwrap_or_else(|| panic!("no {what}")).holds
    }

    #[test]
    fn bars_are_held_and_missed() {
        // 0.9, 0.4 and 0.6 of the copy in the same round.
        let good = figures(&[9.0, 8.0, 6.0], 59.0);
        assert_eq!((held(&good, "put / copy"), held(&good, ": acquire")), (Some(true), Some(true)));
        let bad = figures(&[4.0, 8.0, 6.0], 61.0);
        assert_eq!((held(&bad, "put / copy"), held(&bad, ": acquire")), (Some(false), Some(false)));
        assert_eq!(held(&good, "acquire of 1,024"), Some(true));
        assert_eq!((held(&good, "get / copy"), held(&good, "get / LMCache's daemon")), (None, None));
    }

    #[test]
    fn lmcache_is_judged_by_the_better_of_its_runs() {
        // 2 MiB in 100 us: 21 GB/s in place.
        let figures = figures(&[9.0, 9.0, 9.0], 100.0);
        let rates = |store_gb_s, retrieve_gb_s| Ok(lmcache::Rates { store_gb_s, retrieve_gb_s });
        let bars = beside_lmcache(&figures, &rates(0.2, 0.8), &rates(2.5, 0.7)).unwrap();
        assert_eq!(bars.iter().map(|bar| bar.holds).collect::<Vec<_>>(), [Some(true), None, Some(false)]);
        let bars = beside_lmcache(&figures, &rates(0.2, 2.5), &rates(0.2, 0.7)).unwrap();
        assert_eq!(bars[0].holds, Some(false));
    }
}
