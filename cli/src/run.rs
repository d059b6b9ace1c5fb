//! `kvtier run`: questions about a document.

use std::time::Instant;

use kvtier_engine::run::request::{Answer, Request};
use kvtier_engine::run::sampler::Sampling;
use kvtier_engine::template::Message;

use crate::args::{GenerateArgs, RunArgs};
use crate::disk;
use crate::failure::Failure;
use crate::load::{self, Loaded};
use crate::output;
use crate::prompt::Rendered;
use crate::session::Session;
use crate::signals::Signals;

/// Runs the command.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let below = disk::below(&args.disk)?;
    let document = load::read_document(&args.file)?;
    let signals = Signals::install()?;
    let loaded = load::load(&args.engine)?;
    let template = loaded.template()?;
    let mut session = Session::open(&loaded, &args.engine, below, !args.generate.no_cache, &signals)?;
    let document = String::from_utf8_lossy(&document);
    let mut requests = Vec::new();
    for (index, question) in args.ask.iter().enumerate() {
        // One content of both, so that prompts share the document's tokens up to the question.
        let rendered = Rendered::new(template, &[Message::user(format!("{document}\n\n{question}"))])?;
        let request =
            request(index.to_string(), &loaded, &rendered, rendered.encode(&loaded.tokenizer)?, &args.generate);
        session.engine().check(&request)?;
        requests.push((request, Instant::now()));
    }
    let mut table = vec![head(session.has_disk())];
    for (question, (mut request, prepared)) in args.ask.iter().zip(requests) {
        // Waiting for the questions before it is no part of its time to the first token.
        request.submitted += prepared.elapsed();
        if !args.json {
            output::print_line(&format!("> {question}"))?;
        }
        let answer = session.answer(&loaded.tokenizer, request, !args.json)?;
        if args.json {
            output::print_line(&output::answer_json(&answer, &loaded.tokenizer, session.engine()).to_string())?;
        } else {
            table.push(table_row(&answer, session.has_disk()));
        }
    }
    session.close();
    if !args.json {
        output::print_line("")?;
        output::print_table(&table)?;
        print_memory(&session)?;
    }
    Ok(())
}

/// A request as the command line asks for it: `prompt` are the token ids of `rendered`.
pub fn request(id: String, loaded: &Loaded, rendered: &Rendered, prompt: Vec<u32>, args: &GenerateArgs) -> Request {
    let sampling = if args.temperature == 0.0 {
        Sampling::Greedy
    } else {
        Sampling::Seeded { temperature: args.temperature, seed: args.seed }
    };
    let ends = [loaded.tokenizer.eos(), loaded.tokenizer.eot()].into_iter().flatten();
    Request {
        id,
        submitted: rendered.at,
        prompt,
        max_tokens: args.max_tokens,
        sampling,
        end_tokens: if args.ignore_eos { Vec::new() } else { ends.collect() },
        salt: args.salt.clone(),
        exact: args.exact,
    }
}

fn head(has_disk: bool) -> Vec<String> {
    let disk = if has_disk { &["from disk"][..] } else { &[] };
    [&["question", "prompt", "from device", "from host"], disk, &["computed", "first token", "prefill", "decode"]]
        .concat()
        .into_iter()
        .map(str::to_owned)
        .collect()
}

fn table_row(answer: &Answer, has_disk: bool) -> Vec<String> {
    let cached = &answer.cached_tokens;
    let mut row = vec![
        answer.id.clone(),
        format!("{} tokens", answer.prompt_tokens),
        cached.device.to_string(),
        cached.host.to_string(),
    ];
    row.extend(has_disk.then(|| cached.disk.to_string()));
    row.extend([
        answer.computed_tokens.to_string(),
        output::time(answer.first_token),
        format!("{:.0} tok/s", output::rate(answer.prefill_tokens, answer.first_token)),
        format!("{:.1} tok/s", output::rate(answer.tokens.len() as u32 - 1, answer.decode)),
    ]);
    row
}

fn print_memory(session: &Session) -> Result<(), Failure> {
    let engine = session.engine();
    let (memory, stats, traffic) = (engine.memory(), engine.cache_stats(), engine.traffic());
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64);
    output::print_line(&format!(
        "device {} of {} at most, host {} of {}, {} copied in, {} out, weights {} apart",
        mib(memory.peak_bytes),
        mib(memory.budget_bytes),
        mib(stats.host_bytes.0),
        mib(stats.host_bytes.1),
        mib(traffic.copied_in_bytes),
        mib(traffic.copied_out_bytes),
        mib(engine.model().bytes() as u64),
    ))?;
    let Some(tier) = engine.cache().disk_tier() else {
        return Ok(());
    };
    let (counters, capacity) = (tier.counters(), tier.capacity());
    output::print_line(&format!(
        "disk {} of {} at most in {} blocks, {} read, {} written",
        mib(capacity.allocated_bytes),
        mib(capacity.budget_bytes),
        capacity.records,
        mib(counters.read_bytes),
        mib(counters.written_bytes),
    ))
}
