//! `kvtier demo`: the main job in front of one's eyes.
//!
//! A document of about 7,000 tokens is read once, with a device budget far under its KV; a second question is answered without reading
//! it again; then the second question is asked once more without any cache, and the logits are compared bit for bit. The default model is
//! tiny, so the tasks are ones it can do by looking back: a planted passkey, the line after a given one, a passage continued.

use std::time::Instant;

use kvtier_engine::run::engine::Engine;
use kvtier_engine::run::request::{Answer, Request};
use kvtier_engine::run::sampler::Sampling;

use crate::args::{DemoArgs, EngineArgs, KvArg, PathArg};
use crate::failure::Failure;
use crate::load::{self, Loaded};
use crate::output;
use crate::prompt;
use crate::run;

const DOCUMENT: &str = include_str!("../assets/moby-dick.txt");
const PASSKEY: &str = "71934";
const VERSE: &str = "Seven brass kettles hang beside the stair,\nand nine blue herrings whistle in the rain.";
/// The heading before which they are planted.
const PLANTED_BEFORE: &str = "CHAPTER 2. The Carpet-Bag.";

/// One task: how the prompt goes on after the document, and how to tell that the answer is right.
struct Task {
    name: &'static str,
    ask: String,
    expect: &'static str,
    tokens: u32,
}

/// Runs the command.
pub fn run(args: &DemoArgs) -> Result<(), Failure> {
    let started = Instant::now();
    let say = |line: &str| {
        if args.json {
            output::note(&format!("{line}\n"));
            return Ok(());
        }
        output::print_line(line)
    };
    say("kvtier demo: one document, three questions, a cache smaller than the context")?;
    let engine_args = engine_args(args);
    let loaded = load::load(&engine_args)?;
    let document = document();
    let mut engine = load::open(&loaded, &engine_args, true)?;
    let document_tokens = prompt::encode_plain(&document, &loaded.tokenizer)?.len() as u64;
    describe(&loaded, &engine, args, document_tokens, &say)?;
    let mut answers = Vec::new();
    for task in tasks() {
        say(&format!("\n{}: \"...{}\"", task.name, tail(&task.ask)))?;
        let answer = answer(&mut engine, &loaded, &document, &task, args.json)?;
        say(&verdict(&loaded, &task, &answer))?;
        if args.json {
            output::print_line(&output::answer_json(&answer, &loaded.tokenizer, &engine).to_string())?;
        }
        answers.push(answer);
    }
    let stats = engine.cache_stats();
    let traffic = engine.traffic();
    drop(engine);
    say("\nThe last question once more without any cache, everything in memory:")?;
    let last = tasks().pop().expect("there are tasks");
    let mut plain = load::open(&loaded, &EngineArgs { device_mem: None, ..engine_args }, false)?;
    let without = answer(&mut plain, &loaded, &document, &last, args.json)?;
    let with = answers.last().expect("there are answers");
    let equal = without.logits_digest == with.logits_digest;
    if args.json {
        output::print_line(&output::answer_json(&without, &loaded.tokenizer, &plain).to_string())?;
    } else {
        table(&answers, &without)?;
    }
    say(&format!(
        "moved: {} blocks out to the host arena, {:.0} MiB back in over the link",
        stats.demoted_blocks,
        traffic.copied_in_bytes as f64 / (1 << 20) as f64
    ))?;
    say(&format!("logits with cache {}", output::hex(&with.logits_digest[..8])))?;
    say(&format!(
        "     and without {} -> {}",
        output::hex(&without.logits_digest[..8]),
        if equal { "equal, bit for bit" } else { "DIFFERENT" }
    ))?;
    say(&format!(
        "first token {:.0}x sooner; all of this took {}",
        speedup(with, &without),
        output::time(started.elapsed())
    ))?;
    if equal {
        Ok(())
    } else {
        Err(Failure { code: 3, message: "the cached answer's logits differ from the uncached ones".to_owned() })
    }
}

fn engine_args(args: &DemoArgs) -> EngineArgs {
    EngineArgs {
        model: None,
        device_mem: Some(args.device_mem),
        host_mem: Some(args.host_mem),
        link: Some(args.link),
        block_tokens: 64,
        chunk: 512,
        threads: args.threads,
        kv: Some(KvArg::Raw16),
        path: PathArg::Fast,
    }
}

/// The document with a passkey and two lines of verse planted before its second chapter.
fn document() -> String {
    let key = format!("The passkey of the cabin is {PASSKEY}. Remember it: the passkey of the cabin is {PASSKEY}.");
    let planted = format!(
        "{key}\n\nThe ballad of the cabin:\n{VERSE}\n\nAgain, the ballad of the cabin:\n{VERSE}\n\n\n{PLANTED_BEFORE}"
    );
    DOCUMENT.replacen(PLANTED_BEFORE, &planted, 1)
}

fn tasks() -> Vec<Task> {
    let task = |name, ask: &str, expect, tokens| Task { name, ask: format!("\n\n{ask}"), expect, tokens };
    vec![
        task(
            "Continue a passage",
            "the landlord\nsaid he couldn’t afford it. Nothing but two dismal",
            "tallow candles",
            24,
        ),
        task("Find the passkey", "The passkey of the cabin is", PASSKEY, 12),
        task("Quote the line after this one", "Seven brass kettles hang beside the stair,\n", "nine blue herrings", 16),
    ]
}

fn describe(
    loaded: &Loaded,
    engine: &Engine,
    args: &DemoArgs,
    document_tokens: u64,
    say: &dyn Fn(&str) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let config = &loaded.model.config;
    let token_bytes = 4 * u64::from(config.layers) * config.kv_width() as u64;
    say(&format!(
        "model: {} layers, {} KV heads of {}, {} bytes of KV per token, weights {:.0} MiB; {} on {} thread(s)",
        config.layers,
        config.kv_heads,
        config.head_dim,
        token_bytes,
        loaded.model.bytes() as f64 / (1 << 20) as f64,
        engine.options().isa.name(),
        engine.options().threads
    ))?;
    let plan = engine.plan();
    say(&format!(
        "budgets: device {} ({} blocks of 64 tokens, {} tokens a step), host {}, link {} GB/s; the document's KV is about {} MiB",
        args.device_mem,
        plan.block_slots,
        plan.rows,
        args.host_mem,
        args.link,
        document_tokens * token_bytes / (1 << 20)
    ))
}

fn answer(engine: &mut Engine, loaded: &Loaded, document: &str, task: &Task, json: bool) -> Result<Answer, Failure> {
    let text = format!("{document}{}", task.ask);
    let request = Request {
        submitted: Instant::now(),
        id: task.name.to_lowercase().replace(' ', "-"),
        prompt: prompt::encode_plain(&text, &loaded.tokenizer)?,
        max_tokens: task.tokens,
        sampling: Sampling::Greedy,
        end_tokens: Vec::new(),
        salt: None,
    };
    if !json {
        output::print("  ")?;
    }
    run::answer(engine, &loaded.tokenizer, request, !json)
}

fn verdict(loaded: &Loaded, task: &Task, answer: &Answer) -> String {
    let text = output::text(&loaded.tokenizer, &answer.tokens).replace('\n', " ");
    let right = if text.contains(task.expect) { "right" } else { "not what the document says" };
    let cached = answer.cached_tokens.device + answer.cached_tokens.host;
    format!(
        "  -> {right}; {} prompt tokens, {cached} from the cache, {} computed, first token after {}",
        answer.prompt_tokens,
        answer.computed_tokens,
        output::time(answer.first_token)
    )
}

fn tail(text: &str) -> String {
    text.trim().replace('\n', " ")
}

fn speedup(with: &Answer, without: &Answer) -> f64 {
    without.first_token.as_secs_f64() / with.first_token.as_secs_f64().max(1e-9)
}

fn table(answers: &[Answer], without: &Answer) -> Result<(), Failure> {
    let head = ["", "prompt", "from device", "from host", "computed", "first token", "decode"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for (name, answer) in
        answers.iter().map(|answer| (answer.id.as_str(), answer)).chain([("without a cache", without)])
    {
        rows.push(vec![
            name.to_owned(),
            answer.prompt_tokens.to_string(),
            answer.cached_tokens.device.to_string(),
            answer.cached_tokens.host.to_string(),
            answer.computed_tokens.to_string(),
            output::time(answer.first_token),
            format!("{:.1} tok/s", output::rate(answer.tokens.len() as u32 - 1, answer.decode)),
        ]);
    }
    output::print_line("")?;
    output::print_table(&rows)
}
