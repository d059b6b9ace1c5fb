//! `kvtier bench decode`: milliseconds per decoded token over a long context, beside what reading its bytes takes.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use kvtier_engine::machine::bandwidth;
use kvtier_engine::run::request::{Progress, Request};
use kvtier_engine::run::sampler::Sampling;
use kvtier_engine::template::Message;
use kvtier_sdk::hex::Hex;
use serde_json::json;

use crate::args::{BenchDecodeArgs, EngineArgs, LoadArg, PathArg};
use crate::disk::Below;
use crate::failure::Failure;
use crate::load::{self, Loaded};
use crate::output::{self, Watcher};
use crate::prompt::{self, Rendered};

const DOCUMENT: &str = include_str!("../../assets/moby-dick.txt");

/// A token that was decoded.
struct Mark {
    at: Instant,
    /// KV bytes that attention had read by then.
    attended_bytes: u64,
}

/// What was measured.
struct Report {
    ctx: usize,
    threads: usize,
    form: String,
    /// Seconds per token, sorted.
    steps: Vec<f64>,
    weight_bytes: u64,
    /// Mean per token.
    kv_bytes: u64,
    read_rate: f64,
    logits_digest: String,
}

/// Runs the command.
pub fn run(args: &BenchDecodeArgs) -> Result<(), Failure> {
    let engine_args = engine_args(args);
    let loaded = load::load(&engine_args)?;
    let prompt = prompt_of(args, &loaded)?;
    let mut engine = load::open(&loaded, &engine_args, Below::default(), true)?;
    let threads = engine.options().threads;
    let ctx = prompt.len();
    let request = Request {
        id: "decode".to_owned(),
        submitted: Instant::now(),
        prompt,
        max_tokens: args.max_tokens,
        sampling: Sampling::Greedy,
        end_tokens: Vec::new(),
        salt: None,
        exact: false,
    };
    let device = Arc::clone(engine.cache().device());
    let mut marks = Vec::with_capacity(args.max_tokens as usize);
    let mut watcher = Watcher::new(&loaded.tokenizer, false);
    let result = engine.generate(vec![request], &mut |progress| {
        if let Progress::Token { .. } = progress {
            let traffic = device.traffic();
            let attended_bytes = traffic.attended_device_bytes + traffic.attended_host_bytes;
            marks.push(Mark { at: Instant::now(), attended_bytes });
        }
        watcher.show(progress);
    });
    watcher.finish()?;
    let answer = result.into_iter().next().expect("one request, one result")?;
    let (first, last) = (&marks[0], &marks[marks.len() - 1]);
    let mut steps: Vec<f64> = marks.windows(2).map(|pair| (pair[1].at - pair[0].at).as_secs_f64()).collect();
    steps.sort_by(f64::total_cmp);
    let report = Report {
        ctx,
        threads,
        form: engine.options().form.name(),
        weight_bytes: engine.model().bytes() as u64,
        kv_bytes: (last.attended_bytes - first.attended_bytes) / steps.len() as u64,
        read_rate: bandwidth::read_rate(threads),
        logits_digest: Hex(&answer.logits_digest).to_string(),
        steps,
    };
    if args.json { output::print_line(&report.object().to_string()) } else { report.print() }
}

fn engine_args(args: &BenchDecodeArgs) -> EngineArgs {
    EngineArgs {
        model: args.model.clone(),
        device_mem: None,
        host_mem: None,
        link: None,
        block_tokens: 64,
        chunk: 512,
        threads: args.threads,
        form: Some(args.form),
        load: LoadArg::Always,
        path: PathArg::Fast,
    }
}

fn prompt_of(args: &BenchDecodeArgs, loaded: &Loaded) -> Result<Vec<u32>, Failure> {
    let document = match &args.file {
        Some(file) => String::from_utf8_lossy(&load::read_document(file)?).into_owned(),
        None => DOCUMENT.to_owned(),
    };
    if let Some(question) = &args.ask {
        let message = Message::user(format!("{document}\n\n{question}"));
        return Rendered::new(loaded.template()?, &[message])?.encode(&loaded.tokenizer);
    }
    let tokens = prompt::encode_plain(&document, &loaded.tokenizer)?;
    if tokens.is_empty() {
        let name = args.file.as_deref().unwrap_or(Path::new("the document")).display();
        return Err(Failure::input(format!("{name} has no text; name a text file")));
    }
    let ctx = args.ctx.expect("the command line asks for it") as usize;
    Ok(tokens.into_iter().cycle().take(ctx).collect())
}

impl Report {
    fn milliseconds(&self) -> f64 {
        self.steps[self.steps.len() / 2] * 1e3
    }

    fn floor_milliseconds(&self) -> f64 {
        (self.weight_bytes + self.kv_bytes) as f64 / self.read_rate * 1e3
    }

    fn range(&self) -> [f64; 2] {
        [self.steps[0] * 1e3, self.steps[self.steps.len() - 1] * 1e3]
    }

    fn object(&self) -> serde_json::Value {
        json!({
            "ctx": self.ctx,
            "form": self.form,
            // Every position is read; another value comes with attention that leaves some out.
            "attend": "full",
            "threads": self.threads,
            "tokens": self.steps.len() + 1,
            "ms_per_token": self.milliseconds(),
            "ms_per_token_range": self.range(),
            "bytes_per_token": self.weight_bytes + self.kv_bytes,
            "kv_bytes_per_token": self.kv_bytes,
            "read_gb_s": self.read_rate / 1e9,
            "floor_ms": self.floor_milliseconds(),
            "logits_digest": self.logits_digest,
        })
    }

    fn print(&self) -> Result<(), Failure> {
        let row = |name: &str, value: String| vec![name.to_owned(), value];
        let mb = |bytes: u64| format!("{:.1} MB", bytes as f64 / 1e6);
        let [least, most] = self.range();
        output::print_table(&[
            row("prompt", format!("{} tokens", self.ctx)),
            row("form", self.form.clone()),
            row("threads", self.threads.to_string()),
            row("decoded", format!("{} tokens", self.steps.len() + 1)),
            row("per token, median", format!("{:.2} ms", self.milliseconds())),
            row("least to most", format!("{least:.2} to {most:.2} ms")),
            row("weights read per token", mb(self.weight_bytes)),
            row("keys and values read per token", mb(self.kv_bytes)),
            row("memory reads", format!("{:.1} GB/s", self.read_rate / 1e9)),
            row("floor", format!("{:.2} ms", self.floor_milliseconds())),
            row("measured / floor", format!("{:.2}x", self.milliseconds() / self.floor_milliseconds())),
            row("logits digest", self.logits_digest.clone()),
        ])
    }
}
