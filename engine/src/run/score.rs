//! Teacher forcing: what the model thinks of tokens that are given.

use crate::error::EngineError;
use crate::run::engine::Engine;
use crate::run::request::Progress;
use crate::run::sampler::{argmax, log_sum_exp};

/// Teacher-forced log-probabilities of a token sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Natural-log probability of each next token: one less than there are tokens.
    pub logprob: Vec<f64>,
    /// The most likely next token at the same positions.
    pub top1: Vec<u32>,
}

impl Engine {
    /// Log-probabilities of `tokens` under the model, each given all before it. Nothing is looked up or published.
    pub fn score(&mut self, tokens: &[u32], watch: &mut dyn FnMut(Progress)) -> Result<Score, EngineError> {
        let mut score = Score { logprob: Vec::new(), top1: Vec::new() };
        self.teacher_force(tokens, watch, &mut |position, logits| {
            if let Some(next) = tokens.get(position + 1) {
                score.logprob.push(f64::from(logits[*next as usize]) - log_sum_exp(logits));
                score.top1.push(argmax(logits));
            }
        })?;
        Ok(score)
    }

    /// Feeds `tokens` to the model and shows the logits after each: `visit(position, logits)`, `logits` as long as the vocabulary.
    /// Nothing is looked up or published.
    pub fn teacher_force(
        &mut self,
        tokens: &[u32],
        watch: &mut dyn FnMut(Progress),
        visit: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        self.check_prompt(tokens, 0)?;
        let mut forced = self.open_forced();
        let result = tokens.chunks(self.stepper.plan.rows as usize).try_for_each(|part| {
            self.advance_forced(&mut forced, part, 0, visit)?;
            watch(Progress::Prefill { index: 0, done: forced.done() as u32, total: tokens.len() as u32 });
            Ok(())
        });
        self.close_forced(forced);
        result
    }
}
