//! Greedy continuations under a form beside exact ones.

use std::time::Instant;

use crate::error::EngineError;
use crate::quality::{EXACT, Open};
use crate::run::Form;
use crate::run::engine::Engine;
use crate::run::request::{Progress, Request};
use crate::run::sampler::Sampling;

/// Requests answered side by side: their blocks fit in a device budget for one context of 8,192 tokens.
const TOGETHER: usize = 8;

/// How far a form's continuations go along with the exact ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greedy {
    /// The form.
    pub form: Form,
    /// Prompts.
    pub prompts: usize,
    /// Prompts whose whole continuation is the same.
    pub identical: usize,
    /// Tokens generated over exact KV, all prompts together.
    pub tokens: usize,
    /// Of those, tokens before the first one that differs.
    pub agreeing: usize,
}

/// Continues `prompts` by `tokens` each, past end tokens too. `watch(tokens done, in all)`.
pub fn measure(
    open: &Open<'_>,
    forms: &[Form],
    prompts: &[&[u32]],
    tokens: u32,
    watch: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Greedy>, EngineError> {
    let each = prompts.iter().map(|prompt| prompt.len() + tokens as usize).sum::<usize>();
    let total = each * (forms.len() + 1);
    let exact = continuations(&mut open(EXACT, None)?, prompts, tokens, &mut |done| watch(done, total))?;
    let mut results = Vec::with_capacity(forms.len());
    for (index, form) in forms.iter().enumerate() {
        let mut told = |done| watch((index + 1) * each + done, total);
        let found = continuations(&mut open(*form, None)?, prompts, tokens, &mut told)?;
        results.push(compare(*form, &exact, &found));
    }
    Ok(results)
}

fn compare(form: Form, exact: &[Vec<u32>], found: &[Vec<u32>]) -> Greedy {
    let common = |(exact, found): (&Vec<u32>, &Vec<u32>)| exact.iter().zip(found).take_while(|(a, b)| a == b).count();
    Greedy {
        form,
        prompts: exact.len(),
        identical: exact.iter().zip(found).filter(|(exact, found)| exact == found).count(),
        tokens: exact.iter().map(Vec::len).sum(),
        agreeing: exact.iter().zip(found).map(common).sum(),
    }
}

fn continuations(
    engine: &mut Engine,
    prompts: &[&[u32]],
    tokens: u32,
    watch: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<u32>>, EngineError> {
    let (mut found, mut done) = (Vec::with_capacity(prompts.len()), 0);
    for prompts in prompts.chunks(TOGETHER) {
        let mut prefilled = vec![0; prompts.len()];
        let mut told = |progress| {
            match progress {
                Progress::Prefill { index, done: now, .. } => {
                    done += now as usize - prefilled[index];
                    prefilled[index] = now as usize;
                }
                // With its first token the rest of a prompt is there.
                Progress::Token { index, .. } => {
                    done += prompts[index].len() - prefilled[index] + 1;
                    prefilled[index] = prompts[index].len();
                }
            }
            watch(done);
        };
        let requests = prompts.iter().map(|prompt| request(prompt, tokens)).collect();
        for answer in engine.generate(requests, &mut told) {
            found.push(answer?.tokens);
        }
    }
    Ok(found)
}

/// A greedy request that goes on past end tokens.
pub(super) fn request(prompt: &[u32], max_tokens: u32) -> Request {
    Request {
        id: "quality".to_owned(),
        submitted: Instant::now(),
        prompt: prompt.to_vec(),
        max_tokens,
        sampling: Sampling::Greedy,
        end_tokens: Vec::new(),
        salt: None,
        exact: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agreement_ends_with_the_first_difference() {
        let exact = [vec![1, 2, 3, 4], vec![5, 6, 7, 8]];
        let found = [vec![1, 2, 9, 4], vec![5, 6, 7, 8]];
        let greedy = compare(Form::I8h, &exact, &found);
        assert_eq!((greedy.prompts, greedy.identical, greedy.tokens, greedy.agreeing), (2, 1, 8, 6));
    }
}
