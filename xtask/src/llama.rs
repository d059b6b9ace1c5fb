//! `cargo xtask bars llama`: kvtier beside llama.cpp on the same file, threads, depths and machine, in turns.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Parser;
use serde_json::Value;

use crate::measure::{is_busy, load, median, number, processor, read, spread};
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
/// Our forms of keys and values.
const FORMS: [&str; 3] = ["raw16", "i8h", "kc4vt4"];
/// llama.cpp's settings: name, `-fa`, type of keys and values. Quantised values need flash attention.
const SETTINGS: [(&str, &str, &str); 4] =
    [("f16, -fa off", "off", "f16"), ("f16, -fa auto", "auto", "f16"), ("q8_0", "on", "q8_0"), ("q4_0", "on", "q4_0")];

/// A wanted prompt length, and how many times llama.cpp's fastest rate ours must reach.
struct Depth {
    tokens: u32,
    /// Of each form.
    decode: [Option<f64>; FORMS.len()],
    /// Of `raw16`.
    prefill: Option<f64>,
}

const DEPTHS: [Depth; 4] = [
    Depth { tokens: 128, decode: [Some(0.6), None, None], prefill: None },
    Depth { tokens: 2048, decode: [None; 3], prefill: Some(0.7) },
    Depth { tokens: 4096, decode: [None; 3], prefill: None },
    Depth { tokens: 8064, decode: [Some(1.2), None, Some(1.5)], prefill: None },
];

/// One kind of figure at one depth, in tokens per second: ours by form, and llama.cpp's by setting.
struct Row {
    what: String,
    ours: [Vec<f64>; FORMS.len()],
    theirs: [Vec<f64>; SETTINGS.len()],
    bars: [Option<f64>; FORMS.len()],
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
    // On a busy machine llama.cpp's spinning barriers lose most, so such figures flatter us.
    let busy = is_busy();
    print_machine(&bench);
    let mut rows = Vec::new();
    for depth in &DEPTHS {
        if !(bench.options.short && depth.tokens > 4096) {
            rows.extend(bench.depth(depth)?);
        }
    }
    let settings = SETTINGS.map(|(name, ..)| format!(" llama.cpp {name} |")).concat();
    println!("\n| | form | kvtier tok/s |{settings} kvtier / fastest | bar |");
    println!("|---|---|---|{}---|---|", "---|".repeat(SETTINGS.len()));
    let mut missed = Vec::new();
    for (row, form) in rows.iter().flat_map(|row| (0..FORMS.len()).map(move |form| (row, form))) {
        let Some(ratio) = row.ratio(form) else { continue };
        let bar = row.bars[form].map_or("-".into(), |bar| format!("{bar:.1}x"));
        let theirs = row.theirs.iter().map(|values| format!(" {} |", spread(values))).collect::<String>();
        println!("| {} | {} | {} |{theirs} {ratio:.2}x | {bar} |", row.what, FORMS[form], spread(&row.ours[form]));
        if row.bars[form].is_some_and(|bar| ratio < bar) {
            missed.push(format!("{} ({}): {ratio:.2}x is under {bar}", row.what, FORMS[form]));
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
    /// Decode and, where it has a bar, prefill at a prompt of about so many tokens; llama.cpp gets exactly the length that ours had.
    fn depth(&self, depth: &Depth) -> Result<Vec<Row>, String> {
        let document = self.document(depth.tokens - TEMPLATE_TOKENS)?;
        let empty = |bars| Row { what: String::new(), ours: Default::default(), theirs: Default::default(), bars };
        let mut decode = empty(depth.decode);
        let mut prefill = empty([depth.prefill, None, None]);
        for round in 1..=self.options.rounds {
            let mut tokens = 0;
            for (index, form) in FORMS.into_iter().enumerate() {
                let ours = self.ours(&document, form)?;
                tokens = ours["prompt_tokens"].as_u64().ok_or("kvtier's JSON has no prompt_tokens")?;
                decode.ours[index].push(number(&ours, "decode_tok_s")?);
                prefill.ours[index].push(number(&ours, "prefill_tok_s")?);
            }
            decode.what = format!("decode after {tokens} tokens");
            prefill.what = format!("prefill of {tokens} tokens");
            for (index, setting) in SETTINGS.iter().enumerate() {
                decode.theirs[index].push(self.theirs(setting, 0, DECODED, tokens)?);
                if depth.prefill.is_some() {
                    prefill.theirs[index].push(self.theirs(setting, tokens, 0, 0)?);
                }
            }
            eprintln!("{} of {}: {}, load {}", round, self.options.rounds, decode.what, load());
        }
        Ok(if depth.prefill.is_some() { vec![prefill, decode] } else { vec![decode] })
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

    fn ours(&self, document: &Path, form: &str) -> Result<Value, String> {
        let mut command = Command::new(&self.kvtier);
        command.args(["run", "--json", "--ignore-eos", "--ask", "What happens here?", "--file"]).arg(document);
        command.args(["--threads", &self.options.threads.to_string(), "--max-tokens", &(DECODED + 1).to_string()]);
        command.args(["--form", form]);
        let line = read(command.arg("--model").arg(&self.model))?;
        serde_json::from_str(line.trim()).map_err(|error| format!("kvtier's JSON: {error}"))
    }

    fn theirs(
        &self,
        (_, flash, kv): &(&str, &str, &str),
        prompt: u64,
        generate: u32,
        depth: u64,
    ) -> Result<f64, String> {
        let mut command = Command::new(self.peer.join("llama-bench"));
        command.arg("-m").arg(&self.model).args(["-o", "json", "-r", "1", "-fa", flash, "-ctk", kv, "-ctv", kv]);
        command.args(["-t", &self.options.threads.to_string(), "-p", &prompt.to_string()]);
        command.args(["-n", &generate.to_string(), "-d", &depth.to_string()]);
        let found: Value =
            serde_json::from_str(&read(&mut command)?).map_err(|error| format!("llama-bench: {error}"))?;
        number(&found[0], "avg_ts")
    }
}

impl Row {
    /// Median of ours in a form over the median of llama.cpp's fastest setting; `None` where the form was not measured.
    fn ratio(&self, form: usize) -> Option<f64> {
        let fastest = self.theirs.iter().map(|values| median(values)).fold(f64::MIN, f64::max);
        (!self.ours[form].is_empty()).then(|| median(&self.ours[form]) / fastest)
    }
}

fn print_machine(bench: &Bench) {
    println!("{}", processor());
    println!("Load at the start: {}; {} threads on every side", load(), bench.options.threads);
    println!("kvtier: int16 activations; AVX-512 kernels where F, BW, VL and VNNI are there, else AVX2");
    println!("llama.cpp: int8 activations; built with -march=native");
    let version = Command::new(bench.peer.join("llama-bench")).arg("--version").output();
    let version = version.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
    let version = String::from_utf8_lossy(&version);
    println!(
        "llama.cpp {}; model: {}",
        version.lines().next().unwrap_or("").trim_start_matches("version: "),
        bench.model.display()
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_of_medians_and_to_the_fastest_setting() {
        let theirs = [vec![10.0, 30.0, 20.0], vec![5.0, 1.0], vec![1.0], vec![2.0]];
        let ours = [vec![90.0, 10.0, 24.0], vec![], vec![40.0]];
        let row = Row { what: String::new(), ours, theirs, bars: [None; 3] };
        assert_eq!([0, 1, 2].map(|form| row.ratio(form)), [Some(24.0 / 20.0), None, Some(2.0)]);
        assert_eq!(spread(&row.theirs[1]), "3.0 (1.0 to 5.0)");
    }
}
