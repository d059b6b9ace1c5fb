//! `cargo xtask bars engine`: warm time to first token, decode, prefill and paged decode beside their floors, as tables.
//!
//! The bar: a warm first token takes at most 1.5 times the prefill of the uncached tail with everything resident plus loaded bytes over
//! the tier's rate. Both terms are measured in the same run. Exits with 1 when a bar is missed.
//!
//! Arguments: which tables, of `warm`, `decode`, `prefill`, `paged`; all without any.

use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use gpu_tier::cpu::isa::Isa;
use gpu_tier::cpu::workers::{Workers, split};
use kvtier_engine::run::Link;
use kvtier_engine::run::engine::{Engine, EngineOptions};
use kvtier_engine::run::request::{Answer, Progress};
use kvtier_tests::{STRICT, TOKEN_BYTES, ask, fixture, options, plain, request};

const TABLES: [&str; 4] = ["warm", "decode", "prefill", "paged"];

/// Tokens of the prefix that is asked about: 94 blocks of 64.
const PREFIX: usize = 6_016;
/// Tokens after it, of which no block is full.
const TAIL: usize = 40;
/// A chunk that divides [`PREFIX`], so that the last step of a cold prefill is the tail alone.
const TAIL_CHUNK: u32 = 376;
/// How many times the sum of its parts a warm first token may take.
const WARM_BAR: f64 = 1.5;
/// The throttled link of the warm case and of the paged case, in bytes per second.
const SLOW_LINK: f64 = 2e9;
const FAST_LINK: f64 = 8e9;
/// Tokens decoded in one measurement.
const DECODED: u32 = 33;
/// Load average up to which a machine counts as quiet.
const QUIET: f64 = 0.7;

fn main() -> ExitCode {
    let tables: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = tables.iter().find(|table| !TABLES.contains(&table.as_str())) {
        eprintln!("there is no table {unknown}; give some of: {}", TABLES.join(", "));
        return ExitCode::from(2);
    }
    let wanted = |table: &str| tables.is_empty() || tables.iter().any(|wanted| wanted == table);
    let quiet = load() <= QUIET;
    let threads = options().threads;
    println!("CPU: {}; kernels: {}; {threads} threads", processor(), Isa::detect().name());
    println!(
        "Load average at the start: {:.2}{}",
        load(),
        if quiet { "" } else { " (NOT QUIET: not to be published)" }
    );
    let machine = Machine::measure(threads);
    println!(
        "Reads {:.1} GB/s with {threads} threads; one thread copies {:.1} GB/s (both directions of a copy count once)\n",
        machine.read_rate / 1e9,
        machine.copy_rate / 1e9
    );
    let missed = if wanted("warm") { warm(&machine) } else { Vec::new() };
    if wanted("decode") {
        decode(&machine);
    }
    if wanted("prefill") {
        prefill();
    }
    if wanted("paged") {
        paged_decode(&machine);
    }
    println!("Medians (lowest to highest). Load average at the end: {:.2}", load());
    for line in &missed {
        println!("MISSED: {line}");
    }
    if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Rates of this machine, in bytes per second.
struct Machine {
    read_rate: f64,
    copy_rate: f64,
}

impl Machine {
    fn measure(threads: usize) -> Machine {
        let workers = Workers::new(threads);
        let source = vec![1u8; 1 << 30];
        let sum = |worker: usize| {
            let part = &source[split(source.len(), 4096, worker, threads)];
            let mut sums = [0u64; 8];
            for line in part.as_chunks::<64>().0 {
                for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
                    *sum = sum.wrapping_add(u64::from_ne_bytes(*word));
                }
            }
            std::hint::black_box(sums);
        };
        let read = Spread::of((0..7).map(|_| seconds(|| workers.run(&sum))));
        // As many bytes as a warm prefix has, so that caches help as little as they do there.
        let bytes = PREFIX * TOKEN_BYTES as usize;
        let mut target = vec![0u8; bytes];
        let copy = Spread::of((0..7).map(|round| {
            let source = &source[round * (bytes / 2)..][..bytes];
            seconds(|| std::hint::black_box(&mut target).copy_from_slice(source))
        }));
        Machine { read_rate: source.len() as f64 / read.median, copy_rate: bytes as f64 / copy.median }
    }
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

    /// As milliseconds.
    fn ms(&self) -> String {
        format!("{:.1} ({:.1} to {:.1})", self.median * 1e3, self.lowest * 1e3, self.highest * 1e3)
    }
}

fn seconds(work: impl FnOnce()) -> f64 {
    let begun = Instant::now();
    work();
    begun.elapsed().as_secs_f64()
}

/// Two prompts of [`PREFIX`] + [`TAIL`] tokens that share no block.
fn long_prompts() -> [Vec<u32>; 2] {
    [0, 500].map(|start| fixture().prompt(start, PREFIX + TAIL))
}

/// The table of warm first tokens. Returns the bars that were missed.
fn warm(machine: &Machine) -> Vec<String> {
    let prompts = long_prompts();
    let tail = tail_prefill(&prompts[0]);
    let mut roomy = fixture().engine(options());
    let cold = Spread::of(prompts.iter().map(|prompt| ask(&mut roomy, prompt, 1).first_token.as_secs_f64()));
    let resident = WarmCase::run("device", &mut roomy, &prompts, None);
    let area_bytes = roomy.plan().area_bytes;
    drop(roomy);
    let from_host = |name, link, rate| {
        // One prompt fills the device, so the other one has gone to the host. In place it stays there, and the second on the device.
        let slots = (PREFIX as u64 + 64) / 64;
        let device_bytes = area_bytes + slots * (64 * TOKEN_BYTES + 4096) + (64 << 10);
        let mut engine = fixture().engine(EngineOptions { device_bytes, link, ..options() });
        prompts.iter().for_each(|prompt| drop(ask(&mut engine, prompt, 1)));
        let asked = if link == Link::InPlace { &prompts[..1] } else { &prompts };
        WarmCase::run(name, &mut engine, asked, rate)
    };
    let throttled = Link::Strict { bytes_per_second: Some(SLOW_LINK) };
    let cases = [
        resident,
        from_host("host, read in place", Link::InPlace, None),
        from_host("host, strict link, unthrottled", STRICT, Some(machine.copy_rate)),
        from_host("host, strict link, 2 GB/s", throttled, Some(SLOW_LINK)),
    ];
    println!("### Time to first token: prefix of {PREFIX} tokens, tail of {TAIL}\n");
    println!(
        "Cold: {} ms. Tail alone, everything resident (last step of a cold prefill): {} ms.\n",
        cold.ms(),
        tail.ms()
    );
    println!(
        "| warm from | cached tokens, device / host | loaded MB | first token ms | bar ms | first token / bar | cold / warm |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut missed = Vec::new();
    for case in &cases {
        let load = case.rate.map_or(0.0, |rate| case.loaded_bytes as f64 / rate);
        // The term is the lesser of its two measurements, so that noise in one does not widen the bar.
        let bar = WARM_BAR * (tail.median.min(cases[0].first_token.median) + load);
        let ratio = case.first_token.median / bar;
        println!(
            "| {} | {} / {} | {:.1} | {} | {:.1} | {ratio:.2} | {:.0}x |",
            case.name,
            case.cached[0],
            case.cached[1],
            case.loaded_bytes as f64 / 1e6,
            case.first_token.ms(),
            bar * 1e3,
            cold.median / case.first_token.median
        );
        if ratio > 1.0 {
            missed.push(format!("warm from {}: {ratio:.2} of the bar", case.name));
        }
    }
    println!();
    missed
}

/// Prefill of the tail with the prefix resident, without a cache: from the end of the step before it to the first token.
fn tail_prefill(prompt: &[u32]) -> Spread {
    let mut engine = fixture().engine(EngineOptions { chunk: TAIL_CHUNK, ..plain() });
    Spread::of((0..3).map(|_| {
        let mut prefix_done = None;
        let mut first = None;
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

/// One row of the table of warm first tokens.
struct WarmCase {
    name: &'static str,
    /// Tokens found on the device and in the host arena, the fewest of each.
    cached: [u32; 2],
    /// The most that one request loaded.
    loaded_bytes: u64,
    /// Rate of what was loaded.
    rate: Option<f64>,
    first_token: Spread,
}

impl WarmCase {
    /// Asks the prompts in turns, ten times in all, after two that are not counted: they still write copies out.
    fn run(name: &'static str, engine: &mut Engine, prompts: &[Vec<u32>], rate: Option<f64>) -> WarmCase {
        let turns = prompts.iter().cycle().take(12);
        let answers: Vec<Answer> = turns.map(|prompt| ask(engine, prompt, 1)).skip(2).collect();
        for answer in &answers {
            let cached = answer.cached_tokens;
            assert_eq!((cached.device + cached.host) as usize, PREFIX, "{name}: {cached:?}");
            assert_eq!(name == "device", cached.device > cached.host, "{name}: {cached:?}");
            assert_eq!(answer.loaded.host > 0, rate.is_some(), "{name}: {} bytes", answer.loaded.host);
        }
        let least = |of: fn(&Answer) -> u32| answers.iter().map(of).min().unwrap_or(0);
        WarmCase {
            name,
            cached: [least(|answer| answer.cached_tokens.device), least(|answer| answer.cached_tokens.host)],
            loaded_bytes: answers.iter().map(|answer| answer.loaded.host).max().unwrap_or(0),
            rate,
            first_token: Spread::of(answers.iter().map(|answer| answer.first_token.as_secs_f64())),
        }
    }
}

/// Seconds and loaded bytes per decoded token after `prompt`.
fn decode_steps(engine: &mut Engine, prompt: &[u32]) -> (f64, u64) {
    let device = Arc::clone(engine.cache().device());
    let marks: Mutex<Vec<(Instant, u64)>> = Mutex::new(Vec::new());
    let watch = &mut |progress| {
        if let Progress::Token { .. } = progress {
            marks.lock().expect("one thread").push((Instant::now(), device.traffic().copied_in_bytes));
        }
    };
    engine.generate(vec![request(prompt, DECODED)], watch).pop().expect("one result").expect("an answer");
    let marks = marks.into_inner().expect("one thread");
    let steps = marks.len() as u32 - 1;
    let took: Duration = marks[steps as usize].0 - marks[0].0;
    (took.as_secs_f64() / f64::from(steps), (marks[steps as usize].1 - marks[0].1) / u64::from(steps))
}

/// Contexts that the document allows.
const CONTEXTS: [usize; 4] = [128, 2_048, 4_096, 6_800];

/// Decode after the first `context` tokens of the document, with everything resident: seconds per token.
fn resident_decode(engine: &mut Engine, context: usize) -> Spread {
    let prompt = fixture().prompt(0, context);
    Spread::of((0..5).map(|_| decode_steps(engine, &prompt).0))
}

fn decode(machine: &Machine) {
    println!("### Decode, everything resident\n");
    println!("| context | ms per token | tok/s | weights + KV MB | floor ms | measured / floor |");
    println!("|---|---|---|---|---|---|");
    let mut engine = fixture().engine(options());
    let weights = fixture().model.bytes() as u64;
    for context in CONTEXTS {
        let took = resident_decode(&mut engine, context);
        // Over the measurement the context grows by DECODED tokens; the middle counts.
        let kv = (context as u64 + u64::from(DECODED) / 2) * TOKEN_BYTES;
        let floor = (weights + kv) as f64 / machine.read_rate;
        println!(
            "| {context} | {} | {:.1} | {:.0} + {:.0} | {:.1} | {:.2}x |",
            took.ms(),
            1.0 / took.median,
            weights as f64 / 1e6,
            kv as f64 / 1e6,
            floor * 1e3,
            took.median / floor
        );
    }
    println!();
}

fn prefill() {
    println!("### Prefill, no cache, chunks of {}\n", plain().chunk);
    println!("| prompt | tok/s |");
    println!("|---|---|");
    let mut engine = fixture().engine(plain());
    for (length, rounds) in [(512, 5), (2_048, 3), (6_800, 2)] {
        let prompt = fixture().prompt(0, length);
        let rates =
            Spread::of((0..rounds).map(|_| length as f64 / ask(&mut engine, &prompt, 1).first_token.as_secs_f64()));
        println!("| {length} | {:.0} ({:.0} to {:.0}) |", rates.median, rates.lowest, rates.highest);
    }
    println!();
}

/// Decode with an eighth of the KV on the device: the rest comes over the link again for each token.
fn paged_decode(machine: &Machine) {
    println!("### Paged decode: an eighth of the KV on the device\n");
    println!(
        "| context | link | ms per token | MB loaded per token | MB / link rate, ms | resident ms | measured / the larger |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut roomy = fixture().engine(options());
    for context in CONTEXTS.into_iter().filter(|context| *context >= 2_048) {
        let prompt = fixture().prompt(0, context);
        let resident = resident_decode(&mut roomy, context).median;
        let device_bytes = (context as u64 + u64::from(DECODED)) * TOKEN_BYTES / 8;
        let links = [("strict, unthrottled", STRICT, machine.copy_rate)];
        let throttled = Link::Strict { bytes_per_second: Some(FAST_LINK) };
        for (name, link, rate) in links.into_iter().chain([("8 GB/s", throttled, FAST_LINK)]) {
            let mut engine = fixture().engine(EngineOptions { device_bytes, link, ..options() });
            let rounds: Vec<(f64, u64)> = (0..3).map(|_| decode_steps(&mut engine, &prompt)).collect();
            let took = Spread::of(rounds.iter().map(|(took, _)| *took));
            let loaded = Spread::of(rounds.iter().map(|(_, loaded)| *loaded as f64)).median;
            let copy = loaded / rate;
            println!(
                "| {context} | {name} | {} | {:.1} | {:.1} | {:.1} | {:.2}x |",
                took.ms(),
                loaded / 1e6,
                copy * 1e3,
                resident * 1e3,
                took.median / copy.max(resident)
            );
        }
    }
    println!();
}

fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(": ")).map_or("unknown", |(_, name)| name).to_owned()
}

/// Load average of the last minute; 0 where the system does not tell.
fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}
