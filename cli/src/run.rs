//! `kvtier run`: questions about a document.

use std::time::Instant;

use kvtier_engine::run::engine::Engine;
use kvtier_engine::run::request::{Answer, Request};
use kvtier_engine::run::sampler::Sampling;
use kvtier_engine::template::Message;
use kvtier_engine::tokenizer::Tokenizer;

use crate::args::{GenerateArgs, RunArgs};
use crate::failure::Failure;
use crate::load::{self, Loaded};
use crate::output::{self, Watcher};
use crate::prompt::Rendered;

/// Runs the command.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let document = load::read_document(&args.file)?;
    let loaded = load::load(&args.engine)?;
    let template = loaded.template()?;
    let mut engine = load::open(&loaded, &args.engine, !args.generate.no_cache)?;
    let document = String::from_utf8_lossy(&document);
    let mut requests = Vec::new();
    for (index, question) in args.ask.iter().enumerate() {
        // One content of both, so that prompts share the document's tokens up to the question.
        let rendered = Rendered::new(template, &[Message::user(format!("{document}\n\n{question}"))])?;
        let request =
            request(index.to_string(), &loaded, &rendered, rendered.encode(&loaded.tokenizer)?, &args.generate);
        engine.check(&request)?;
        requests.push((request, Instant::now()));
    }
    let mut table = vec![row(["question", "prompt", "device", "host", "computed", "first token", "prefill", "decode"])];
    for (question, (mut request, prepared)) in args.ask.iter().zip(requests) {
        // Waiting for the questions before it is no part of its time to the first token.
        request.submitted += prepared.elapsed();
        if !args.json {
            output::print_line(&format!("> {question}"))?;
        }
        let answer = answer(&mut engine, &loaded.tokenizer, request, !args.json)?;
        if args.json {
            output::print_line(&output::answer_json(&answer, &loaded.tokenizer, &engine).to_string())?;
        } else {
            table.push(table_row(&answer));
        }
    }
    if !args.json {
        output::print_line("")?;
        output::print_table(&table)?;
        print_memory(&engine)?;
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
    }
}

/// Answers one request, showing it as it comes.
pub fn answer(engine: &mut Engine, tokenizer: &Tokenizer, request: Request, stream: bool) -> Result<Answer, Failure> {
    let mut watcher = Watcher::new(tokenizer, stream);
    let result = engine.generate(vec![request], &mut |progress| watcher.show(progress)).pop();
    watcher.finish()?;
    Ok(result.expect("one request, one result")?)
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_owned).to_vec()
}

fn table_row(answer: &Answer) -> Vec<String> {
    vec![
        answer.id.clone(),
        format!("{} tokens", answer.prompt_tokens),
        answer.cached_tokens.device.to_string(),
        answer.cached_tokens.host.to_string(),
        answer.computed_tokens.to_string(),
        output::time(answer.first_token),
        format!("{:.0} tok/s", output::rate(answer.prefill_tokens, answer.first_token)),
        format!("{:.1} tok/s", output::rate(answer.tokens.len() as u32 - 1, answer.decode)),
    ]
}

fn print_memory(engine: &Engine) -> Result<(), Failure> {
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
    ))
}
