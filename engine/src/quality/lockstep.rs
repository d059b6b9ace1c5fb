//! Engines that go through the same tokens side by side, so that their logits can be compared without keeping them.

use crate::error::EngineError;
use crate::run::engine::Engine;
use crate::run::forced::Forced;

/// Rows computed by each engine in turn: bounds the memory of `[rows, vocabulary]` logits of each.
const ROWS: usize = 128;

/// One engine's part.
pub(super) struct Runner<'a> {
    engine: &'a mut Engine,
    forced: Forced,
    logits: Vec<f32>,
}

impl<'a> Runner<'a> {
    /// From the first token on.
    pub(super) fn new(engine: &'a mut Engine) -> Runner<'a> {
        let forced = engine.open_forced();
        Runner { engine, forced, logits: Vec::new() }
    }

    /// From the end of what the cache has of `prefix`.
    pub(super) fn after_hit(engine: &'a mut Engine, prefix: &[u32]) -> Result<Runner<'a>, EngineError> {
        let mut runner = Runner::new(engine);
        runner.engine.acquire_forced(&mut runner.forced, prefix).map(|()| runner)
    }

    /// Positions that were found and taken.
    pub(super) fn done(&self) -> usize {
        self.forced.done()
    }

    /// Positions that were found too, and are computed again for the exact window of what follows.
    pub(super) fn computed_again(&self) -> usize {
        if self.forced.clamped_at().is_empty() { 0 } else { self.engine.options().block_tokens as usize }
    }
}

/// Feeds `tokens` to all `runners`, each from where it is, and shows the logits of all at each position from `from` on:
/// `visit(position, rows)`, one row per runner. `watch` hears how many tokens are done. Ends the sequences.
pub(super) fn run(
    mut runners: Vec<Runner<'_>>,
    tokens: &[u32],
    from: usize,
    watch: &mut dyn FnMut(usize),
    visit: &mut dyn FnMut(usize, &[&[f32]]),
) -> Result<(), EngineError> {
    let result = advance(&mut runners, tokens, from, watch, visit);
    for Runner { engine, forced, .. } in runners {
        engine.close_forced(forced);
    }
    result
}

fn advance(
    runners: &mut [Runner<'_>],
    tokens: &[u32],
    from: usize,
    watch: &mut dyn FnMut(usize),
    visit: &mut dyn FnMut(usize, &[&[f32]]),
) -> Result<(), EngineError> {
    let mut first = 0;
    while first < tokens.len() {
        let end = (first + ROWS).min(tokens.len());
        for Runner { engine, forced, logits } in runners.iter_mut() {
            logits.clear();
            let start = forced.done();
            if start < end {
                engine.advance_forced(forced, &tokens[start..end], from.max(first), &mut |_, row| {
                    logits.extend_from_slice(row);
                })?;
            }
        }
        for (index, position) in (from.max(first)..end).enumerate() {
            let rows: Vec<&[f32]> = runners
                .iter()
                .map(|runner| {
                    let vocabulary = runner.engine.model().config.vocabulary as usize;
                    &runner.logits[index * vocabulary..(index + 1) * vocabulary]
                })
                .collect();
            visit(position, &rows);
        }
        watch(end);
        first = end;
    }
    Ok(())
}
