//! Right after a hit: the first tokens past a prefix that the cache had. Where it had closed blocks only, the last of them is computed
//! again, so that what follows has its exact window; that block's own rows lacked theirs, and their keys and values are what is read here.

use std::path::Path;
use std::time::Duration;

use crate::error::EngineError;
use crate::quality::compare::{ExactRow, RowDifference};
use crate::quality::greedy::request;
use crate::quality::lockstep::{self, Runner};
use crate::quality::stats::Summary;
use crate::quality::{EXACT, Open};
use crate::run::Form;
use crate::run::engine::Engine;

/// Positions past the junction that are compared.
pub const ROWS: usize = 64;

/// The first rows after a hit, and the same rows without one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AfterHit {
    /// Tokens of the prefix that came from the cache, on average over the sequences.
    pub found_tokens: f64,
    /// After the hit.
    pub hit: Summary,
    /// The same positions, everything computed by the sequence itself.
    pub without: Summary,
}

/// How long a store may take to write what it was given, and to open.
const PATIENCE: Duration = Duration::from_secs(60);

/// Publishes the first half of each sequence over `form` to a store in `folder`, closes it, opens it again, takes the halves from it and
/// compares what follows. So no exact copy is left in memory that the next rows could read. `None` when nothing is found: the form is not
/// published, or the half has no block that is. `watch(tokens done, tokens in all)`.
pub fn measure(
    open: &Open<'_>,
    form: Form,
    folder: &Path,
    sequences: &[&[u32]],
    watch: &mut dyn FnMut(usize, usize),
) -> Result<Option<AfterHit>, EngineError> {
    publish(&mut open(form, Some(folder))?, sequences)?;
    let (mut exact, mut plain, mut cached) = (open(EXACT, None)?, open(form, None)?, open(form, Some(folder))?);
    wait_ready(&cached);
    let (mut with_hit, mut without, mut found_tokens) = (Vec::new(), Vec::new(), 0);
    let total = sequences.iter().map(|sequence| sequence.len()).sum();
    let mut before = 0;
    for sequence in sequences {
        let half = sequence.len() / 2;
        let runner = Runner::after_hit(&mut cached, &sequence[..half])?;
        let found = runner.done();
        let junction = found + runner.computed_again();
        let end = (junction + ROWS).min(sequence.len() - 1);
        let runners = vec![Runner::new(&mut exact), Runner::new(&mut plain), runner];
        let (mut rows_hit, mut rows_without) = (Vec::new(), Vec::new());
        lockstep::run(runners, &sequence[..end], junction, &mut |_| {}, &mut |position, logits| {
            let exact = ExactRow::new(logits[0]);
            let compare = |row: &[f32]| -> RowDifference { exact.compare(position, row, sequence[position + 1]) };
            rows_without.push(compare(logits[1]));
            rows_hit.push(compare(logits[2]));
        })?;
        if found > 0 {
            found_tokens += found;
            with_hit.push(rows_hit);
            without.push(rows_without);
        }
        before += sequence.len();
        watch(before, total);
    }
    let count = with_hit.len().max(1) as f64;
    Ok(Summary::of(&with_hit).zip(Summary::of(&without)).map(|(hit, without)| AfterHit {
        found_tokens: found_tokens as f64 / count,
        hit,
        without,
    }))
}

/// Computes the first half of each sequence and writes its blocks to the store.
fn publish(engine: &mut Engine, sequences: &[&[u32]]) -> Result<(), EngineError> {
    wait_ready(engine);
    for sequence in sequences {
        // One token more than is looked up: a request always computes its last one itself.
        let half = request(&sequence[..sequence.len() / 2 + 1], 1);
        engine.generate(vec![half], &mut |_| {}).into_iter().try_for_each(|answer| answer.map(drop))?;
    }
    engine.close_disk(PATIENCE);
    Ok(())
}

/// A store that does not get ready finds nothing.
fn wait_ready(engine: &Engine) {
    if let Some(tier) = engine.cache().disk_tier() {
        tier.wait_ready(PATIENCE.as_millis() as u64);
    }
}
