//! What is found again at which depth: whether a form loses the middle of a context.

use crate::error::EngineError;
use crate::quality::lockstep::{self, Runner};
use crate::quality::stats::{Interval, mean_and_error};
use crate::quality::tasks::{self, Task, Trial};
use crate::quality::{EXACT, Open};
use crate::run::Form;
use crate::run::sampler::{argmax, log_sum_exp};
use crate::tokenizer::Tokenizer;

/// Share of questions that exact KV must answer before a task says anything about a form.
pub const USABLE: f64 = 0.9;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Tokens of a sequence.
    pub tokens: usize,
    /// Depths, evenly spaced.
    pub depths: usize,
    /// Sequences of each task and depth.
    pub seeds: u64,
}

/// One form on one task at one length.
#[derive(Clone, Debug)]
pub struct Retrieval {
    /// The form.
    pub form: Form,
    /// The task.
    pub task: Task,
    /// What was asked.
    pub grid: Grid,
    /// Questions.
    pub questions: usize,
    /// Share that greedy decoding over exact KV answers.
    pub exact_right: f64,
    /// Share that it answers over the form.
    pub form_right: f64,
    /// Log-probability of the answer, form minus exact, in nats.
    pub difference: Interval,
    /// The same by depth, from the start of the sequence on.
    pub depths: Vec<Depth>,
}

impl Retrieval {
    /// True when exact KV answers enough for the task to count.
    pub fn is_usable(&self) -> bool {
        self.exact_right >= USABLE
    }
}

/// The questions about one depth.
#[derive(Clone, Copy, Debug)]
pub struct Depth {
    /// 0 is the start of the facts, 1 their end.
    pub depth: f64,
    /// Mean log-probability of the answer over exact KV, in nats.
    pub exact: f64,
    /// Over the form.
    pub form: f64,
    /// Share of right answers over exact KV.
    pub exact_right: f64,
    /// Over the form.
    pub form_right: f64,
    /// Standard error of the mean of form - exact; `None` for one question.
    pub error: Option<f64>,
}

/// How one engine did on one question.
#[derive(Clone, Copy, Debug)]
struct Answered {
    depth: usize,
    /// Sum over the answer's tokens, in nats.
    logprob: f64,
    right: bool,
}

impl Answered {
    fn add(&mut self, logits: &[f32], token: u32) {
        self.logprob += f64::from(logits[token as usize]) - log_sum_exp(logits);
        self.right &= argmax(logits) == token;
    }
}

/// Asks every task of `grid` over exact KV and over each of `forms`; results task by task, form by form. `watch(tokens done, in all)`.
///
/// A greedy continuation gives the answer if and only if each of its tokens is the most likely one after those before it, so one
/// teacher-forced pass tells both figures.
pub fn measure(
    open: &Open<'_>,
    forms: &[Form],
    grid: Grid,
    tokenizer: &Tokenizer,
    watch: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Retrieval>, EngineError> {
    let mut engines = Vec::with_capacity(forms.len() + 1);
    for form in [EXACT].iter().chain(forms) {
        engines.push(open(*form, None)?);
    }
    let mut trials = Vec::new();
    for (task, seed) in Task::ALL.into_iter().flat_map(|task| (0..grid.seeds).map(move |seed| (task, seed))) {
        for depth in 0..grid.depths {
            let trial = tasks::draw(task, grid.tokens, (depth, grid.depths), seed, tokenizer);
            trials.push((task, depth, trial.map_err(|error| EngineError::Request(error.to_string()))?));
        }
    }
    let total = trials.iter().map(|(_, _, trial)| trial.tokens.len()).sum();
    let (mut results, mut done) = (Vec::new(), 0);
    for task in Task::ALL {
        let mut answered: Vec<Vec<Answered>> = vec![Vec::new(); engines.len()];
        for (_, depth, trial) in trials.iter().filter(|(of, ..)| *of == task) {
            let runners = engines.iter_mut().map(Runner::new).collect();
            let answers = ask(runners, *depth, trial, &mut |now| watch(done + now, total))?;
            answered.iter_mut().zip(answers).for_each(|(all, answer)| all.push(answer));
            done += trial.tokens.len();
        }
        let (exact, of_forms) = answered.split_first().expect("exact KV is asked too");
        results
            .extend(forms.iter().zip(of_forms).map(|(form, answered)| retrieval(*form, task, grid, exact, answered)));
    }
    Ok(results)
}

/// Asks one trial of all runners; the answer of each.
fn ask(
    runners: Vec<Runner<'_>>,
    depth: usize,
    trial: &Trial,
    watch: &mut dyn FnMut(usize),
) -> Result<Vec<Answered>, EngineError> {
    let mut answers = vec![Answered { depth, logprob: 0.0, right: true }; runners.len()];
    // The logits of a position predict the token after it.
    let (first, last) = (trial.answer.start - 1, trial.answer.end - 1);
    lockstep::run(runners, &trial.tokens[..last], first, watch, &mut |position, logits| {
        for (answer, logits) in answers.iter_mut().zip(logits) {
            answer.add(logits, trial.tokens[position + 1]);
        }
    })?;
    Ok(answers)
}

fn retrieval(form: Form, task: Task, grid: Grid, exact: &[Answered], answered: &[Answered]) -> Retrieval {
    let share =
        |answers: &[Answered]| answers.iter().filter(|answer| answer.right).count() as f64 / answers.len() as f64;
    let mean = |answers: &[Answered]| answers.iter().map(|answer| answer.logprob).sum::<f64>() / answers.len() as f64;
    let differences = |exact: &[Answered], form: &[Answered]| -> Vec<Vec<f64>> {
        exact.iter().zip(form).map(|(exact, form)| vec![form.logprob - exact.logprob]).collect()
    };
    let depths = (0..grid.depths).map(|depth| {
        let at =
            |all: &[Answered]| all.iter().filter(|answer| answer.depth == depth).copied().collect::<Vec<Answered>>();
        let (exact, form) = (at(exact), at(answered));
        Depth {
            depth: depth as f64 / (grid.depths - 1).max(1) as f64,
            exact: mean(&exact),
            form: mean(&form),
            exact_right: share(&exact),
            form_right: share(&form),
            error: mean_and_error(&differences(&exact, &form)).1,
        }
    });
    Retrieval {
        form,
        task,
        grid,
        questions: answered.len(),
        exact_right: share(exact),
        form_right: share(answered),
        difference: Interval::of(&differences(exact, answered)).expect("more than one question"),
        depths: depths.collect(),
    }
}
