//! Teacher forcing: what the model thinks of tokens that are given.

use kvtier_sdk::cache::{Grant, KvCache, SequenceId, Want};

use crate::error::EngineError;
use crate::run::engine::Engine;
use crate::run::request::Progress;
use crate::run::sampler::{argmax, log_sum_exp};
use crate::run::step::{Logits, Segment, StepEnd};

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
        let id = self.cache.open(self.namespace(None));
        let result = self.teacher_force_open(id, tokens, watch, visit);
        self.cache.close(id);
        result
    }

    fn teacher_force_open(
        &mut self,
        id: SequenceId,
        tokens: &[u32],
        watch: &mut dyn FnMut(Progress),
        visit: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        let (mut done, mut blocks) = (0, 0);
        while done < tokens.len() {
            let rows = (self.stepper.plan.rows as usize).min(tokens.len() - done);
            let needed = ((done + rows) as u32).div_ceil(self.options.block_tokens);
            if needed > blocks {
                let want = Want { sequence: id, blocks: vec![None; (needed - blocks) as usize] };
                if let Some(Grant::NoRoom(figures)) = self.cache.reserve(&[want])?.pop() {
                    return Err(EngineError::NoRoom(figures));
                }
                blocks = needed;
            }
            let part = &tokens[done..done + rows];
            let segment = Segment { sequence: id, tokens: part, first_position: done as u32, logits: Logits::All };
            let mut deliver = |_: usize, row: u32, logits: &[f32]| visit(done + row as usize, logits);
            if let StepEnd::Lost(_) = self.stepper.run(&[segment], &mut deliver)? {
                // Open blocks are on the device and nothing else is read, so there is nothing to lose.
                return Err(EngineError::LostAgain { attempts: 1 });
            }
            done += rows;
            watch(Progress::Prefill { index: 0, done: done as u32, total: tokens.len() as u32 });
        }
        Ok(())
    }
}
