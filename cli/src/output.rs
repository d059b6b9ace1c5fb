//! What a person sees (progress, text, a small table), and what a script reads (one JSON object a line).

use std::io::Write;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use kvtier_engine::run::MissReason;
use kvtier_engine::run::engine::Engine;
use kvtier_engine::run::request::{Answer, Progress};
use kvtier_engine::tokenizer::{StreamDecoder, Tokenizer};
use kvtier_sdk::hex::Hex;
use serde_json::{Map, Value, json};

use crate::failure::Failure;

/// Tokens per second; 0 for no time.
pub fn rate(tokens: u32, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { f64::from(tokens) / time.as_secs_f64() }
}

/// What generated tokens say; end tokens say nothing.
pub fn text(tokenizer: &Tokenizer, tokens: &[u32]) -> String {
    let said: Vec<u32> = tokens.iter().copied().filter(|token| !tokenizer.is_end(*token)).collect();
    String::from_utf8_lossy(&tokenizer.decode(&said)).into_owned()
}

/// One answer as a JSON object (see the README for the fields).
pub fn answer_json(answer: &Answer, tokenizer: &Tokenizer, engine: &Engine) -> Value {
    let misses: Map<String, Value> = MissReason::ALL
        .iter()
        .zip(answer.misses)
        .map(|(reason, count)| (reason.name().to_owned(), json!(count)))
        .collect();
    json!({
        "request_id": answer.id,
        "namespace": Hex(answer.namespace.bytes()).to_string(),
        "tokens": answer.tokens,
        "logits_digest": Hex(&answer.logits_digest).to_string(),
        "text": text(tokenizer, &answer.tokens),
        "prompt_tokens": answer.prompt_tokens,
        "cached_tokens": { "device": answer.cached_tokens.device, "host": answer.cached_tokens.host, "disk": answer.cached_tokens.disk },
        "computed_tokens": answer.computed_tokens,
        "recomputed_tokens": answer.recomputed_tokens,
        "ttft_ms": answer.first_token.as_secs_f64() * 1e3,
        "prefill_tok_s": rate(answer.prefill_tokens, answer.first_token),
        "decode_tok_s": rate(answer.tokens.len() as u32 - 1, answer.decode),
        "peak_device_bytes": engine.memory().peak_bytes,
        "loaded_bytes": { "host": answer.loaded.host, "disk": answer.loaded.disk },
        "clamped_at": answer.clamped_at,
        "misses": misses,
    })
}

/// Writes one line to stdout. A closed pipe ends the command quietly.
pub fn print_line(text: &str) -> Result<(), Failure> {
    print(&format!("{text}\n"))
}

/// Writes to stdout at once. A closed pipe ends the command quietly.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(closed_pipe)
}

/// Writes to stderr. Nobody need be there to read it.
pub fn note(text: &str) {
    let mut out = std::io::stderr().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn closed_pipe(error: std::io::Error) -> Failure {
    if error.kind() == std::io::ErrorKind::BrokenPipe {
        return Failure { code: 0, message: String::new() };
    }
    Failure::from(error)
}

/// Shows reading as a bar on stderr and, when `stream`, the answer on stdout as it comes.
pub struct Watcher<'a> {
    bar: ProgressBar,
    tokenizer: &'a Tokenizer,
    decoder: StreamDecoder,
    stream: bool,
}

impl<'a> Watcher<'a> {
    /// `stream` is off where stdout holds JSON.
    pub fn new(tokenizer: &'a Tokenizer, stream: bool) -> Watcher<'a> {
        let style = ProgressStyle::with_template("  reading {wide_bar} {pos}/{len} tokens, {per_sec}")
            .expect("a constant template");
        Watcher { bar: ProgressBar::no_length().with_style(style), tokenizer, decoder: StreamDecoder::new(), stream }
    }

    /// For the engine's callback.
    pub fn show(&mut self, progress: Progress) {
        match progress {
            Progress::Prefill { done, total, .. } => {
                self.bar.set_length(u64::from(total));
                self.bar.set_position(u64::from(done));
            }
            Progress::Token { token, .. } => {
                self.bar.finish_and_clear();
                if self.stream && !self.tokenizer.is_end(token) {
                    self.write(token);
                }
            }
        }
    }

    fn write(&mut self, token: u32) {
        let text = self.decoder.push(self.tokenizer.piece(token));
        let mut out = std::io::stdout().lock();
        // A reader that went away is noticed by the next whole line.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    /// Ends the line of a streamed answer.
    pub fn finish(mut self) -> Result<(), Failure> {
        self.bar.finish_and_clear();
        if self.stream { print_line(&self.decoder.finish()) } else { Ok(()) }
    }
}

/// A table on stdout, columns aligned to the right but for the first.
pub fn print_table(rows: &[Vec<String>]) -> Result<(), Failure> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let width = widths[column];
            if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        print_line(cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// Milliseconds or seconds, three significant digits or so.
pub fn time(duration: Duration) -> String {
    let millis = duration.as_secs_f64() * 1e3;
    if millis < 1000.0 { format!("{millis:.0} ms") } else { format!("{:.1} s", millis / 1e3) }
}
