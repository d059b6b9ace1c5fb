//! A short check that a form still is what it was measured to be: minutes at most, for every change.

use crate::error::EngineError;
use crate::quality::Open;
use crate::quality::divergence::{self, Divergence};
use crate::run::Form;

/// What must hold on a text of [`TOKENS`] tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gate {
    /// The form.
    pub form: Form,
    /// Largest mean KL, in nats.
    pub kl_mean: f64,
    /// Least share of rows with the same most likely token.
    pub top1: f64,
}

/// Tokens of the text.
pub const TOKENS: usize = 1024;

/// Tokens behind a query that it reads exactly. Taken from `docs/forms.md` and not from the code that is checked against it.
const WINDOW: usize = 64;

impl Gate {
    /// The bars of a form; `None` where none are set.
    ///
    /// KL as in `docs/quality.md`. Top-1 is lower than there, by two standard errors of 512 rows.
    pub fn of(form: Form) -> Option<Gate> {
        match form {
            Form::Raw16 | Form::Sx12 => Some(Gate { form, kl_mean: 0.0, top1: 1.0 }),
            Form::I8h => Some(Gate { form, kl_mean: 1e-3, top1: 0.98 }),
            Form::Kc4vt4 => Some(Gate { form, kl_mean: 4e-3, top1: 0.965 }),
            _ => None,
        }
    }

    /// Measures the form on the first [`TOKENS`] of `text` and says what does not hold; nothing when all does. `open` opens the engines, so a
    /// fault can be planted in the one under test.
    ///
    /// Errors: [`EngineError::Request`] for a shorter text.
    pub fn check(&self, open: &Open<'_>, text: &[u32]) -> Result<Vec<String>, EngineError> {
        let Some(text) = text.get(..TOKENS) else {
            return Err(EngineError::Request(format!(
                "the quality gate needs {TOKENS} tokens, the text has {}",
                text.len()
            )));
        };
        let block_tokens = open(self.form, None)?.options().block_tokens as usize;
        let measured = divergence::measure(open, &[self.form], &[text], &mut |_, _| {})?;
        Ok(measured.iter().flat_map(|divergence| self.findings(divergence, block_tokens)).collect())
    }

    /// What does not hold.
    pub fn findings(&self, divergence: &Divergence, block_tokens: usize) -> Vec<String> {
        let (name, summary) = (self.form.name(), &divergence.summary);
        let mut findings = Vec::new();
        // A NaN is a finding too. Top-1 is a share of rows and never one.
        if summary.kl_mean.is_nan() || summary.kl_mean > self.kl_mean {
            findings.push(format!("{name}: mean KL {:.3e}, at most {:.3e}", summary.kl_mean, self.kl_mean));
        }
        if summary.top1 < self.top1 {
            findings.push(format!("{name}: top-1 {:.4}, at least {:.4}", summary.top1, self.top1));
        }
        // Block 0 stays exact; block 1 is read closed by the first query that has a whole window behind its end.
        let expected = (!self.form.is_lossless()).then_some(2 * block_tokens + WINDOW);
        if divergence.first_difference != expected {
            findings.push(format!(
                "{name}: logits differ from position {:?} on, expected {expected:?}",
                divergence.first_difference
            ));
        }
        findings
    }
}
