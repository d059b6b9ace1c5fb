//! `kvtier chat`: a conversation in which every turn goes on from the tokens of the one before.

use std::io::{BufRead, IsTerminal};

use kvtier_engine::run::engine::Engine;
use kvtier_engine::template::{ChatTemplate, Message};
use kvtier_engine::tokenizer::Tokenizer;

use crate::args::ChatArgs;
use crate::disk;
use crate::failure::Failure;
use crate::load;
use crate::output;
use crate::prompt::Rendered;
use crate::run;
use crate::session::Session;
use crate::signals::Signals;

/// What was said so far, as messages and as the tokens the model has seen.
#[derive(Default)]
struct Conversation {
    messages: Vec<Message>,
    /// The last turn's prompt.
    rendered: Option<Rendered>,
    /// Its token ids, then the generated ones as they were sampled.
    tokens: Vec<u32>,
}

impl Conversation {
    /// The prompt of the next turn and its token ids. They begin with the ids of the last turn's prompt and answer: an answer tokenised
    /// again could come out differently, and its blocks would not be found.
    fn ask(
        &mut self,
        content: String,
        template: &ChatTemplate,
        tokenizer: &Tokenizer,
    ) -> Result<(&Rendered, Vec<u32>), Failure> {
        self.messages.push(Message::user(content));
        let rendered = Rendered::new(template, &self.messages)?;
        let new = match &self.rendered {
            Some(earlier) => rendered.encode_after(earlier, tokenizer)?,
            None => None,
        };
        match new {
            Some(new) => self.tokens.extend(new),
            None => self.tokens = rendered.encode(tokenizer)?,
        }
        Ok((self.rendered.insert(rendered), self.tokens.clone()))
    }

    /// Takes the answer to the prompt that `ask` returned. An end token after it is left out: the template writes it.
    fn answered(&mut self, generated: &[u32], tokenizer: &Tokenizer) {
        let spoken = match generated {
            [spoken @ .., last] if tokenizer.is_end(*last) => spoken,
            _ => generated,
        };
        self.messages.push(Message::assistant(output::text(tokenizer, spoken)));
        self.tokens.extend(spoken);
    }
}

/// Runs the command.
pub fn run(args: &ChatArgs) -> Result<(), Failure> {
    let below = disk::below(&args.disk)?;
    let document = args.file.as_deref().map(load::read_document).transpose()?;
    let signals = Signals::install()?;
    let loaded = load::load(&args.engine)?;
    let template = loaded.template()?;
    let mut session = Session::open(&loaded, &args.engine, below, !args.generate.no_cache, &signals)?;
    let mut opening = document.map(|bytes| format!("{}\n\n", String::from_utf8_lossy(&bytes)));
    let mut conversation = Conversation::default();
    let mut lines = std::io::stdin().lock().lines();
    for turn in 0.. {
        let Some(line) = next_line(&mut lines)? else {
            break;
        };
        let content = opening.take().unwrap_or_default() + &line;
        let (rendered, prompt) = conversation.ask(content, template, &loaded.tokenizer)?;
        let request = run::request(turn.to_string(), &loaded, rendered, prompt, &args.generate);
        let answer = session.answer(&loaded.tokenizer, request, !args.json)?;
        if args.json {
            output::print_line(&output::answer_json(&answer, &loaded.tokenizer, session.engine()).to_string())?;
        } else {
            report(&answer, session.engine());
        }
        conversation.answered(&answer.tokens, &loaded.tokenizer);
    }
    session.close();
    Ok(())
}

fn report(answer: &kvtier_engine::run::request::Answer, engine: &Engine) {
    let cached = answer.cached_tokens.device + answer.cached_tokens.host + answer.cached_tokens.disk;
    output::note(&format!(
        "  [{} of {} prompt tokens cached, {} computed, first token after {}, device peak {:.1} MiB]\n",
        cached,
        answer.prompt_tokens,
        answer.computed_tokens,
        output::time(answer.first_token),
        engine.memory().peak_bytes as f64 / (1 << 20) as f64
    ));
}

/// The next line that is not empty, without its end; `None` at the end of input.
fn next_line(lines: &mut dyn Iterator<Item = std::io::Result<String>>) -> Result<Option<String>, Failure> {
    loop {
        if std::io::stdin().is_terminal() {
            output::note("you> ");
        }
        match lines.next().transpose().map_err(|error| Failure::input(format!("read standard input: {error}")))? {
            None => return Ok(None),
            Some(line) if line.trim().is_empty() => {}
            Some(line) => return Ok(Some(line)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::tests::text_of_the_default_model;

    /// Answers that come out differently when tokenised again, with an end token inside (`--ignore-eos`), at the end, and not at all.
    #[test]
    fn a_turn_begins_with_the_ids_of_the_turn_before() {
        let (tokenizer, template) = text_of_the_default_model();
        let end = tokenizer.eot().unwrap();
        let byte = |byte: u8| (0..tokenizer.vocab_size() as u32).find(|id| tokenizer.piece(*id) == [byte]).unwrap();
        let spelled: Vec<u32> = b"the whale".iter().map(|letter| byte(*letter)).collect();
        let split = [byte(0xE2), byte(0x80)];
        let mut conversation = Conversation::default();
        let mut known: Vec<u32> = Vec::new();
        let answers = [
            [&spelled[..], &[end]].concat(),
            spelled.clone(),
            [&spelled[..], &[end], &spelled, &[end]].concat(),
            split.to_vec(),
            vec![end],
            Vec::new(),
        ];
        for answer in answers {
            let (_, prompt) = conversation.ask("And <|im_end|> then?".to_owned(), &template, &tokenizer).unwrap();
            assert!(prompt.starts_with(&known) && prompt.len() > known.len());
            let new = &prompt[known.len()..];
            assert!(new.iter().filter(|token| tokenizer.is_control(**token)).count() >= 3, "the turn is framed");
            conversation.answered(&answer, &tokenizer);
            known = [&prompt[..], answer.strip_suffix(&[end]).unwrap_or(&answer)].concat();
        }
    }
}
