//! Retrieval tasks that a small model can do: facts in filler that repeats, then a question about one of them. All is drawn from a seed.

use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::tokenizer::{SpecialTokens, Tokenizer, TokenizerError};

/// A kind of task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// A number is stated and asked for: RULER's `niah_single_1` (arXiv 2404.06654).
    Passkey,
    /// A passage of random words begins again: how does it go on?
    Induction,
    /// Numbers of several names are stated, that of one is asked for: RULER's `niah_multikey_1`.
    KeyValue,
}

impl Task {
    /// All of them.
    pub const ALL: [Task; 3] = [Task::Passkey, Task::Induction, Task::KeyValue];

    /// Name in JSON and tables.
    pub fn name(self) -> &'static str {
        match self {
            Task::Passkey => "passkey",
            Task::Induction => "induction",
            Task::KeyValue => "key_value",
        }
    }
}

/// One sequence that ends with the answer to its question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Where the answer stands in them.
    pub answer: Range<usize>,
}

/// What is stated, and how it is asked for.
struct Fact {
    statement: Vec<u32>,
    question: Vec<u32>,
    answer: Vec<u32>,
}

const FILLER: [&str; 5] =
    [" The grass is green.", " The sky is blue.", " The sun is yellow.", " Here we go.", " There and back again."];
/// Words to draw from.
const WORDS: usize = 2000;
/// Words of an induction passage; the last four are asked for.
const PASSAGE: usize = 16;
/// Names of a key=value sequence.
const KEYS: usize = 3;

/// Why a trial cannot be drawn.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrialError {
    /// Too short.
    #[error("draw a retrieval task: {length} tokens do not hold its facts and the question")]
    Length {
        /// Tokens asked for.
        length: usize,
    },
    /// The vocabulary is too small.
    #[error("draw a retrieval task: the vocabulary has fewer than {WORDS} words of one token")]
    Words,
    /// Text that the tokenizer cannot take.
    #[error(transparent)]
    Text(#[from] TokenizerError),
}

/// Draws a trial of at most `length` tokens, and less by under one line of filler, whose fact stands at the `depth`th of `depths` evenly
/// spaced depths, 0 being the start.
pub fn draw(
    task: Task,
    length: usize,
    (depth, depths): (usize, usize),
    seed: u64,
    tokenizer: &Tokenizer,
) -> Result<Trial, TrialError> {
    // Every depth has facts of its own.
    let mut draw = Draw { random: ChaCha8Rng::seed_from_u64(seed), tokenizer };
    draw.random.set_stream(depth as u64);
    let facts = match task {
        Task::Passkey => vec![draw.passkey()?],
        Task::Induction => vec![draw.passage()?],
        Task::KeyValue => draw.key_values()?,
    };
    let asked: usize = facts[0].question.len() + facts[0].answer.len();
    let stated: usize = facts.iter().map(|fact| fact.statement.len()).sum();
    let room = length.checked_sub(asked + stated).ok_or(TrialError::Length { length })?;
    let filler = draw.filler(room)?;
    // The first fact is asked about; the others stand at even distances from it, round about.
    let place = |index: usize| {
        let at = (depth + index * depths / facts.len()) % depths;
        at * filler.len() / (depths - 1).max(1)
    };
    let mut tokens = Vec::with_capacity(length);
    for line in 0..=filler.len() {
        for (index, fact) in facts.iter().enumerate() {
            if place(index) == line {
                tokens.extend(&fact.statement);
            }
        }
        tokens.extend(filler.get(line).into_iter().flatten());
    }
    tokens.extend(&facts[0].question);
    let start = tokens.len();
    tokens.extend(&facts[0].answer);
    Ok(Trial { answer: start..tokens.len(), tokens })
}

struct Draw<'a> {
    random: ChaCha8Rng,
    tokenizer: &'a Tokenizer,
}

impl Draw<'_> {
    fn passkey(&mut self) -> Result<Fact, TrialError> {
        let key = self.digits(5);
        Ok(Fact {
            statement: self.text(&format!(" The pass key is {key}. Remember it. {key} is the pass key."))?,
            question: self.text("\nWhat is the pass key? The pass key is ")?,
            answer: self.text(&key)?,
        })
    }

    fn passage(&mut self) -> Result<Fact, TrialError> {
        let words = self.words(PASSAGE)?;
        let (begin, end) = words.split_at(PASSAGE - 4);
        let newline = self.text("\n")?;
        Ok(Fact {
            // Twice, as a small model needs it.
            statement: [&newline, words.as_slice(), &newline, &words, &newline].concat(),
            question: [&newline, begin].concat(),
            answer: end.to_vec(),
        })
    }

    fn key_values(&mut self) -> Result<Vec<Fact>, TrialError> {
        let names = self.words(KEYS)?;
        let fact = |name: &u32| {
            let value = self.digits(5);
            // The number follows the name at once: with anything common between them, a small model takes one number for another.
            let lead = [self.text("\n")?, vec![*name]].concat();
            let answer = self.text(&value)?;
            let statement = [&lead, &answer, &lead, &answer].map(Vec::as_slice).concat();
            Ok(Fact { statement, question: lead, answer })
        };
        names.iter().map(fact).collect()
    }

    /// Lines that take at most `room` tokens and leave less than one line free.
    fn filler(&self, mut room: usize) -> Result<Vec<Vec<u32>>, TrialError> {
        let lines = FILLER.iter().map(|line| self.text(line)).collect::<Result<Vec<_>, _>>()?;
        let mut filler = Vec::new();
        for line in lines.iter().cycle() {
            match room.checked_sub(line.len()) {
                Some(rest) => room = rest,
                None => break,
            }
            filler.push(line.clone());
        }
        Ok(filler)
    }

    fn text(&self, text: &str) -> Result<Vec<u32>, TrialError> {
        Ok(self.tokenizer.encode(text.as_bytes(), SpecialTokens::Plain)?)
    }

    fn digits(&mut self, count: usize) -> String {
        (0..count).map(|_| char::from(b'0' + (self.random.next_u32() % 10) as u8)).collect()
    }

    /// Different words of one token each, from the first of the vocabulary: in a BPE vocabulary these are the most frequent.
    fn words(&mut self, count: usize) -> Result<Vec<u32>, TrialError> {
        let is_word = |id: &u32| match self.tokenizer.piece(*id) {
            [b' ', word @ ..] => (4..=9).contains(&word.len()) && word.iter().all(u8::is_ascii_lowercase),
            _ => false,
        };
        let mut words: Vec<u32> = (0..self.tokenizer.vocab_size() as u32).filter(is_word).take(WORDS).collect();
        if words.len() < WORDS {
            return Err(TrialError::Words);
        }
        Ok((0..count).map(|_| words.swap_remove(self.random.next_u32() as usize % words.len())).collect())
    }
}
