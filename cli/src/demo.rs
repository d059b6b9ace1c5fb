//! `kvtier demo`: the main job in front of one's eyes.
//!
//! A document of about 7,000 tokens is read once, with a device budget far under its KV; a second question is answered without reading
//! it again; a third one by a new process, from disk alone; then the third question is asked once more without any cache, and the logits
//! are compared bit for bit. The default model is tiny, so the tasks are ones it can do by looking back: a planted passkey, the line after
//! a given one, a passage continued.

use std::time::{Duration, Instant};

use kvtier_engine::run::Form;
use kvtier_engine::run::engine::Engine;
use kvtier_engine::run::request::Request;
use kvtier_engine::run::sampler::Sampling;
use serde::Deserialize;
use serde_json::Value;

use crate::args::{DemoArgs, EngineArgs, LoadArg, PathArg};
use crate::failure::Failure;
use crate::load::{self, Loaded};
use crate::output;
use crate::prompt;
use crate::session::Session;
use crate::signals::Signals;

mod restart;

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

/// What the demo shows of an answer: parts of the object that scripts get, which may come from another process.
#[derive(Deserialize)]
struct Shown {
    request_id: String,
    text: String,
    logits_digest: String,
    prompt_tokens: u32,
    cached_tokens: Cached,
    computed_tokens: u32,
    ttft_ms: f64,
    decode_tok_s: f64,
}

#[derive(Deserialize)]
struct Cached {
    device: u32,
    host: u32,
    disk: u32,
}

/// Lines of the demo: on stdout, or on stderr where stdout holds JSON.
struct Stage {
    json: bool,
}

impl Stage {
    fn say(&self, line: &str) -> Result<(), Failure> {
        if self.json {
            output::note(&format!("{line}\n"));
            return Ok(());
        }
        output::print_line(line)
    }

    /// Takes an answer's object: a line for scripts, figures for people.
    fn show(&self, object: Value) -> Result<Shown, Failure> {
        if self.json {
            output::print_line(&object.to_string())?;
        }
        serde_json::from_value(object)
            .map_err(|error| Failure { code: 3, message: format!("read the new process's answer: {error}") })
    }
}

/// Runs the command.
pub fn run(args: &DemoArgs) -> Result<(), Failure> {
    let signals = Signals::install()?;
    if let Some(store) = &args.from_store {
        return restart::answer(args, store, &signals);
    }
    let started = Instant::now();
    let stage = Stage { json: args.json };
    let store = restart::Store::new(args, &signals)?;
    stage.say("kvtier demo: one document, three questions, a cache smaller than the context")?;
    let engine_args = engine_args(args);
    let loaded = load::load(&engine_args)?;
    let document = document();
    let options = store.as_ref().map(|store| store.options(args)).transpose()?;
    let mut session = Session::open(&loaded, &engine_args, options, true, &signals)?;
    let document_tokens = prompt::encode_plain(&document, &loaded.tokenizer)?.len() as u64;
    describe(&loaded, session.engine(), args, document_tokens, &stage)?;
    let mut tasks = tasks();
    let last = tasks.pop().expect("there are tasks");
    let mut answers = Vec::new();
    for task in &tasks {
        answers.push(ask(&mut session, &loaded, &document, task, &stage)?);
    }
    let moved = moved(session.engine());
    match store.as_ref().filter(|_| session.has_disk()) {
        Some(store) => {
            stage.say("\nThe engine closes. A new process has the disk alone:")?;
            stage.say(&restart::end(session))?;
            announce(&last, &stage)?;
            answers.push(restart::ask(args, store, &last, &signals, &stage)?);
        }
        None => {
            answers.push(ask(&mut session, &loaded, &document, &last, &stage)?);
            drop(session);
        }
    }
    stage.say("\nThe last question once more without any cache, everything in memory:")?;
    let plain = EngineArgs { device_mem: None, ..engine_args.clone() };
    let mut plain = Session::open(&loaded, &plain, None, false, &signals)?;
    let without = answer(&mut plain, &loaded, &document, &last, &stage)?;
    drop(plain);
    stage.say("\nAnd once with --form kc4vt4: all blocks but the first and the latest in 4.5 bits a value, in the same budgets:")?;
    let closing = EngineArgs { form: Some(Form::Kc4vt4), ..engine_args };
    let mut closing = Session::open(&loaded, &closing, None, true, &signals)?;
    let closed = answer(&mut closing, &loaded, &document, &last, &stage)?;
    stage.say(&beside(&last, &closed, &without, closing.engine()))?;
    if !args.json {
        table(&answers, &without, &closed)?;
    }
    stage.say(&moved)?;
    compare(answers.last().expect("there are answers"), &without, &stage)?;
    stage.say(&format!("all of this took {}", output::time(started.elapsed())))
}

/// Errors: exit code 3 when the bits differ.
fn compare(with: &Shown, without: &Shown, stage: &Stage) -> Result<(), Failure> {
    let equal = without.logits_digest == with.logits_digest;
    stage.say(&format!("logits with cache {}", &with.logits_digest[..16]))?;
    stage.say(&format!(
        "     and without {} -> {}",
        &without.logits_digest[..16],
        if equal { "equal, bit for bit" } else { "DIFFERENT" }
    ))?;
    stage.say(&format!("first token {:.0}x sooner", without.ttft_ms / with.ttft_ms.max(1e-6)))?;
    if equal {
        Ok(())
    } else {
        Err(Failure { code: 3, message: "the cached answer's logits differ from the uncached ones".to_owned() })
    }
}

/// A lossy answer beside the exact one.
fn beside(task: &Task, closed: &Shown, exact: &Shown, engine: &Engine) -> String {
    let same = if closed.text == exact.text {
        "the same text as the exact answer"
    } else {
        "another text than the exact answer"
    };
    let plan = engine.plan();
    format!(
        "{}\n  {same}, other bits ({}); device: {} closed blocks and {} lossless ones, {:.0} MiB over the link",
        verdict(task, closed),
        &closed.logits_digest[..16],
        plan.closed_slots,
        plan.block_slots,
        engine.traffic().copied_in_bytes as f64 / (1 << 20) as f64
    )
}

fn moved(engine: &Engine) -> String {
    format!(
        "moved: {} blocks out to the host arena, {:.0} MiB back in over the link",
        engine.cache_stats().demoted_blocks,
        engine.traffic().copied_in_bytes as f64 / (1 << 20) as f64
    )
}

fn engine_args(args: &DemoArgs) -> EngineArgs {
    EngineArgs {
        model: None,
        device_mem: Some(args.device_mem),
        host_mem: Some(args.host_mem),
        link: Some(args.link),
        block_tokens: 64,
        chunk: 512,
        // What it shows are hits.
        load: LoadArg::Always,
        threads: args.threads,
        form: Some(Form::Raw16),
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
    stage: &Stage,
) -> Result<(), Failure> {
    let config = &loaded.model.config;
    let token_bytes = 4 * u64::from(config.layers) * config.kv_width() as u64;
    stage.say(&format!(
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
    stage.say(&format!(
        "budgets: device {} ({} blocks of 64 tokens, {} tokens a step), host {}, link {} GB/s; the document's KV is about {} MiB",
        args.device_mem,
        plan.block_slots,
        plan.rows,
        args.host_mem,
        args.link,
        document_tokens * token_bytes / (1 << 20)
    ))
}

fn announce(task: &Task, stage: &Stage) -> Result<(), Failure> {
    stage.say(&format!("\n{}: \"...{}\"", task.name, task.ask.trim().replace('\n', " ")))
}

fn ask(session: &mut Session, loaded: &Loaded, document: &str, task: &Task, stage: &Stage) -> Result<Shown, Failure> {
    announce(task, stage)?;
    let shown = answer(session, loaded, document, task, stage)?;
    stage.say(&verdict(task, &shown))?;
    Ok(shown)
}

fn answer(
    session: &mut Session,
    loaded: &Loaded,
    document: &str,
    task: &Task,
    stage: &Stage,
) -> Result<Shown, Failure> {
    if !stage.json {
        output::print("  ")?;
    }
    let answer = session.answer(&loaded.tokenizer, request(loaded, document, task)?, !stage.json)?;
    stage.show(output::answer_json(&answer, &loaded.tokenizer, session.engine()))
}

fn request(loaded: &Loaded, document: &str, task: &Task) -> Result<Request, Failure> {
    let text = format!("{document}{}", task.ask);
    Ok(Request {
        submitted: Instant::now(),
        id: task.name.to_lowercase().replace(' ', "-"),
        prompt: prompt::encode_plain(&text, &loaded.tokenizer)?,
        max_tokens: task.tokens,
        sampling: Sampling::Greedy,
        end_tokens: Vec::new(),
        salt: None,
        exact: false,
    })
}

fn verdict(task: &Task, shown: &Shown) -> String {
    let right = shown.text.replace('\n', " ").contains(task.expect);
    let Cached { device, host, disk } = shown.cached_tokens;
    format!(
        "  -> {}; {} prompt tokens, {} from the cache, {} computed, first token after {}",
        if right { "right" } else { "not what the document says" },
        shown.prompt_tokens,
        device + host + disk,
        shown.computed_tokens,
        output::time(first_token(shown))
    )
}

fn first_token(shown: &Shown) -> Duration {
    Duration::from_secs_f64(shown.ttft_ms.max(0.0) / 1e3)
}

fn table(answers: &[Shown], without: &Shown, closed: &Shown) -> Result<(), Failure> {
    let head = ["", "prompt", "from device", "from host", "from disk", "computed", "first token", "decode"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let named = answers.iter().map(|shown| (shown.request_id.as_str(), shown));
    for (name, shown) in named.chain([("without a cache", without), ("with --form kc4vt4", closed)]) {
        let Cached { device, host, disk } = &shown.cached_tokens;
        rows.push(vec![
            name.to_owned(),
            shown.prompt_tokens.to_string(),
            device.to_string(),
            host.to_string(),
            disk.to_string(),
            shown.computed_tokens.to_string(),
            output::time(first_token(shown)),
            format!("{:.1} tok/s", shown.decode_tok_s),
        ]);
    }
    output::print_line("")?;
    output::print_table(&rows)
}
