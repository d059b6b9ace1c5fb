//! `kvtier chat`: a conversation in which every turn goes on from the tokens of the one before.

use std::io::{BufRead, IsTerminal, Write};

use kvtier_engine::run::engine::Engine;
use kvtier_engine::template::Message;

use crate::args::ChatArgs;
use crate::failure::Failure;
use crate::load::{self, Loaded};
use crate::output;
use crate::run;

/// What was said so far, as messages, as text and as the tokens the model has seen.
struct Conversation {
    messages: Vec<Message>,
    /// Rendered prompt of the last turn with the model's answer after it.
    text: String,
    /// Token ids of `text`: the prompt's, then the generated ones as they were sampled.
    tokens: Vec<u32>,
}

impl Conversation {
    /// The prompt of the next turn. Text that the last turn ended with keeps its tokens: an answer tokenised again could come out
    /// differently, and its blocks would not be found.
    fn ask(&mut self, loaded: &Loaded, content: String) -> Result<Vec<u32>, Failure> {
        self.messages.push(Message::user(content));
        let text = loaded.template.render(&self.messages).map_err(Failure::input)?;
        let tokens = match text.strip_prefix(self.text.as_str()) {
            Some(new) if !self.tokens.is_empty() => {
                let mut tokens = self.tokens.clone();
                tokens.extend(run::encode(loaded, new)?);
                tokens
            }
            _ => run::encode(loaded, &text)?,
        };
        self.text = text;
        Ok(tokens)
    }

    /// Takes the answer to the prompt that `ask` returned. The end token is left out: the template writes it.
    fn answered(&mut self, loaded: &Loaded, mut prompt: Vec<u32>, generated: &[u32]) {
        let spoken: Vec<u32> = generated.iter().copied().filter(|token| !loaded.tokenizer.is_end(*token)).collect();
        let bytes = loaded.tokenizer.decode(&spoken);
        let content = String::from_utf8_lossy(&bytes).into_owned();
        self.text.push_str(&content);
        self.messages.push(Message::assistant(content));
        prompt.extend(spoken);
        self.tokens = prompt;
    }
}

/// Runs the command.
pub fn run(args: &ChatArgs) -> Result<(), Failure> {
    let document = args.file.as_deref().map(load::read_document).transpose()?;
    let loaded = load::load(&args.engine)?;
    let mut engine = load::open(&loaded, &args.engine, !args.generate.no_cache)?;
    let mut opening = document.map(|bytes| format!("{}\n\n", String::from_utf8_lossy(&bytes)));
    let mut conversation = Conversation { messages: Vec::new(), text: String::new(), tokens: Vec::new() };
    let mut lines = std::io::stdin().lock().lines();
    for turn in 0.. {
        let Some(line) = next_line(&mut lines)? else {
            break;
        };
        let content = opening.take().unwrap_or_default() + &line;
        let prompt = conversation.ask(&loaded, content)?;
        let request = run::request(turn.to_string(), prompt.clone(), &args.generate, &loaded.tokenizer);
        let answer = run::answer(&mut engine, &loaded.tokenizer, request, !args.json)?;
        if args.json {
            output::print_line(&output::answer_json(&answer, &loaded.tokenizer, &engine).to_string())?;
        } else {
            report(&answer, &engine);
        }
        conversation.answered(&loaded, prompt, &answer.tokens);
    }
    Ok(())
}

fn report(answer: &kvtier_engine::run::request::Answer, engine: &Engine) {
    let cached = answer.cached_tokens.device + answer.cached_tokens.host;
    eprintln!(
        "  [{} of {} prompt tokens cached, {} computed, first token after {}, device peak {:.1} MiB]",
        cached,
        answer.prompt_tokens,
        answer.computed_tokens,
        output::time(answer.first_token),
        engine.memory().peak_bytes as f64 / (1 << 20) as f64
    );
}

/// The next line that is not empty, without its end; `None` at the end of input.
fn next_line(lines: &mut dyn Iterator<Item = std::io::Result<String>>) -> Result<Option<String>, Failure> {
    loop {
        if std::io::stdin().is_terminal() {
            eprint!("you> ");
            let _ = std::io::stderr().flush();
        }
        match lines.next().transpose().map_err(|error| Failure::input(format!("read standard input: {error}")))? {
            None => return Ok(None),
            Some(line) if line.trim().is_empty() => {}
            Some(line) => return Ok(Some(line)),
        }
    }
}
