//! `cargo xtask bars llama`: kvtier beside llama.cpp on the same file, threads, depths and machine, in turns.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Parser;
use serde_json::Value;

use crate::{peer, stage};

/// Side by side with llama.cpp.
#[derive(Parser)]
#[command(name = "cargo xtask bars llama --")]
struct Options {
    /// Times that every side is measured; medians are compared.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Compute threads of every side.
    #[arg(long, default_value_t = 2)]
    threads: u32,
    /// Leaves out the deepest context (minutes a round).
    #[arg(long)]
    short: bool,
}

/// Tokens decoded per measurement.
const DECODED: u32 = 64;
/// Room for the chat template and the question in a prompt of a wanted length.
const TEMPLATE_TOKENS: u32 = 36;
/// Wanted prompt lengths, and how many times llama.cpp's fastest rate ours must reach: decode, prefill.
const DEPTHS: [(u32, Option<f64>, Option<f64>); 3] =
    [(128, Some(0.6), None), (2048, None, Some(0.7)), (8064, Some(1.2), None)];
/// llama.cpp's settings: its fastest at depth on CPUs, and its default.
const FLASH: [&str; 2] = ["off", "auto"];

/// Load average up to which a machine counts as quiet. On a busy one llama.cpp's spinning barriers lose most, so such
/// figures flatter us.
const QUIET: f64 = 0.5;

/// One kind of figure at one depth: ours and both of llama.cpp's settings, in tokens per second.
struct Row {
    what: String,
    ours: Vec<f64>,
    theirs: [Vec<f64>; 2],
    bar: Option<f64>,
}

/// Where the programs and files of one comparison are.
struct Bench {
    kvtier: PathBuf,
    peer: PathBuf,
    model: PathBuf,
    work: PathBuf,
    options: Options,
}

/// Measures, prints a table, and fails when a ratio is under its bar.
pub fn run(rest: &[String]) -> Result<(), String> {
    let bench = prepare(Options::parse_from(std::iter::once(&String::from("bars")).chain(rest)))?;
    let busy = load().parse().is_ok_and(|load: f64| load > QUIET);
    print_machine(&bench);
    let mut rows = Vec::new();
    for (depth, decode_bar, prefill_bar) in DEPTHS {
        if !(bench.options.short && depth > 4096) {
            rows.extend(bench.depth(depth, decode_bar, prefill_bar)?);
        }
    }
    println!("\n| | kvtier tok/s | llama.cpp `-fa off` | llama.cpp default | kvtier / fastest | bar |");
    println!("|---|---|---|---|---|---|");
    let mut missed = Vec::new();
    for row in &rows {
        let ratio = row.ratio();
        let bar = row.bar.map_or("-".into(), |bar| format!("{bar:.1}x"));
        let cells = [&row.ours, &row.theirs[0], &row.theirs[1]].map(|values| spread(values));
        println!("| {} | {} | {} | {} | {ratio:.2}x | {bar} |", row.what, cells[0], cells[1], cells[2]);
        if row.bar.is_some_and(|bar| ratio < bar) {
            missed.push(format!("{}: {ratio:.2}x is under the bar of {bar}", row.what));
        }
    }
    println!("\nMedian (lowest to highest) of {} rounds. Load at the end: {}", bench.options.rounds, load());
    if busy {
        println!("The machine was NOT QUIET at the start: figures not to be published.");
    }
    if missed.is_empty() { Ok(()) } else { Err(missed.join("; ")) }
}

fn prepare(options: Options) -> Result<Bench, String> {
    peer::run(peer::Peer::Llama)?;
    stage::run("build kvtier", stage::cargo().args(["build", "--release", "-p", "kvtier"]))?;
    let kvtier = stage::target().join("release").join("kvtier");
    stage::run("model", Command::new(&kvtier).args(["model", "fetch"]))?;
    let path = read(Command::new(&kvtier).args(["model", "path"]))?;
    let work = stage::target().join("bars");
    fs::create_dir_all(&work).map_err(|error| format!("create {}: {error}", work.display()))?;
    Ok(Bench { kvtier, peer: peer::llama_programs(), model: path.trim().into(), work, options })
}

impl Bench {
    /// Decode and, where it has a bar, prefill at a prompt of about `depth` tokens; llama.cpp gets exactly the length
    /// that ours had.
    fn depth(&self, depth: u32, decode_bar: Option<f64>, prefill_bar: Option<f64>) -> Result<Vec<Row>, String> {
        let document = self.document(depth - TEMPLATE_TOKENS)?;
        let empty = |what: String, bar| Row { what, ours: vec![], theirs: [vec![], vec![]], bar };
        let mut decode = empty(String::new(), decode_bar);
        let mut prefill = empty(String::new(), prefill_bar);
        for round in 1..=self.options.rounds {
            let ours = self.ours(&document)?;
            let tokens = ours["prompt_tokens"].as_u64().ok_or("kvtier's JSON has no prompt_tokens")?;
            decode.what = format!("decode after {tokens} tokens");
            prefill.what = format!("prefill of {tokens} tokens");
            decode.ours.push(number(&ours, "decode_tok_s")?);
            prefill.ours.push(number(&ours, "prefill_tok_s")?);
            for (setting, flash) in FLASH.iter().enumerate() {
                decode.theirs[setting].push(self.theirs(flash, 0, DECODED, tokens)?);
                if prefill_bar.is_some() {
                    prefill.theirs[setting].push(self.theirs(flash, tokens, 0, 0)?);
                }
            }
            eprintln!("{} of {}: {}, load {}", round, self.options.rounds, decode.what, load());
        }
        Ok(if prefill_bar.is_some() { vec![prefill, decode] } else { vec![decode] })
    }

    /// A file whose text is `tokens` tokens long or a few less: the demo's document, twice over, cut at a space.
    fn document(&self, tokens: u32) -> Result<PathBuf, String> {
        let source = stage::root().join("cli").join("assets").join("moby-dick.txt");
        let text = fs::read_to_string(&source).map_err(|error| format!("read {}: {error}", source.display()))?;
        let text = text.repeat(2);
        let cuts: Vec<usize> = text.match_indices(' ').map(|(at, _)| at).collect();
        let path = self.work.join(format!("document-{tokens}.txt"));
        let (mut low, mut high) = (0, cuts.len());
        while high - low > 1 {
            let middle = low.midpoint(high);
            if self.count(&path, &text[..cuts[middle]])? <= tokens { low = middle } else { high = middle }
        }
        self.count(&path, &text[..cuts[low]])?;
        Ok(path)
    }

    /// Writes `text` to `path` and counts its tokens.
    fn count(&self, path: &Path, text: &str) -> Result<u32, String> {
        fs::write(path, text).map_err(|error| format!("write {}: {error}", path.display()))?;
        let mut command = Command::new(self.peer.join("llama-tokenize"));
        command.arg("-m").arg(&self.model).arg("-f").arg(path);
        let ids = read(command.args(["--ids", "--no-bos", "--no-parse-special", "--no-escape"]))?;
        Ok(ids.matches(',').count() as u32 + 1)
    }

    fn ours(&self, document: &Path) -> Result<Value, String> {
        let mut command = Command::new(&self.kvtier);
        command.args(["run", "--json", "--ignore-eos", "--ask", "What happens here?", "--file"]).arg(document);
        command.args(["--threads", &self.options.threads.to_string(), "--max-tokens", &(DECODED + 1).to_string()]);
        let line = read(command.arg("--model").arg(&self.model))?;
        serde_json::from_str(line.trim()).map_err(|error| format!("kvtier's JSON: {error}"))
    }

    fn theirs(&self, flash: &str, prompt: u64, generate: u32, depth: u64) -> Result<f64, String> {
        let mut command = Command::new(self.peer.join("llama-bench"));
        command.arg("-m").arg(&self.model).args(["-o", "json", "-r", "1", "-fa", flash]);
        command.args(["-t", &self.options.threads.to_string(), "-p", &prompt.to_string()]);
        command.args(["-n", &generate.to_string(), "-d", &depth.to_string()]);
        let found: Value =
            serde_json::from_str(&read(&mut command)?).map_err(|error| format!("llama-bench: {error}"))?;
        number(&found[0], "avg_ts")
    }
}

impl Row {
    /// Median of ours over the median of llama.cpp's faster setting.
    fn ratio(&self) -> f64 {
        let fastest = self.theirs.iter().map(|values| median(values)).fold(f64::MIN, f64::max);
        median(&self.ours) / fastest
    }
}

fn print_machine(bench: &Bench) {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| info.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(": "));
    let flags = field("flags").map_or("", |(_, flags)| flags);
    let sets = ["avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx_vnni"];
    let sets: Vec<_> = sets.into_iter().filter(|set| flags.split(' ').any(|flag| flag == *set)).collect();
    println!("CPU: {}; {}", field("model name").map_or("unknown", |(_, name)| name), sets.join(" "));
    println!("Load at the start: {}; {} threads on every side", load(), bench.options.threads);
    println!("kvtier: int16 activations, bf16 KV; AVX-512 kernels where F, BW, VL and VNNI are there, else AVX2");
    println!("llama.cpp: int8 activations, f16 KV; built with -march=native");
    let version = Command::new(bench.peer.join("llama-bench")).arg("--version").output();
    let version = version.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
    let version = String::from_utf8_lossy(&version);
    println!(
        "llama.cpp {}; model: {}",
        version.lines().next().unwrap_or("").trim_start_matches("version: "),
        bench.model.display()
    );
}

/// Standard output of a program that must exit with 0; its standard error is shown only when it does not.
fn read(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("start {command:?}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(format!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
}

fn number(value: &Value, name: &str) -> Result<f64, String> {
    value[name].as_f64().ok_or_else(|| format!("no number {name} in {value}"))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) }
}

fn spread(values: &[f64]) -> String {
    let low = values.iter().copied().fold(f64::MAX, f64::min);
    let high = values.iter().copied().fold(f64::MIN, f64::max);
    format!("{:.1} ({low:.1} to {high:.1})", median(values))
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_of_medians_and_to_the_faster_setting() {
        let theirs = [vec![10.0, 30.0, 20.0], vec![5.0, 1.0]];
        let row = Row { what: String::new(), ours: vec![90.0, 10.0, 24.0], theirs, bar: None };
        assert_eq!(row.ratio(), 24.0 / 20.0);
        assert_eq!(spread(&row.theirs[1]), "3.0 (1.0 to 5.0)");
    }
}
