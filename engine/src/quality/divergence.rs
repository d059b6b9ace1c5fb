//! How far a form's predictions are from exact ones over a text.

use cache_core::payload::BlockShape;

use crate::error::EngineError;
use crate::quality::compare::{ExactRow, RowDifference};
use crate::quality::lockstep::{self, Runner};
use crate::quality::stats::Summary;
use crate::quality::{EXACT, FLOOR, Open};
use crate::run::Form;
use crate::run::engine::Engine;

/// Parts of a sequence that are summed up on their own.
pub const PARTS: usize = 16;

/// One form against exact KV.
#[derive(Clone, Debug)]
pub struct Divergence {
    /// The form.
    pub form: Form,
    /// Stored bits per value of a block in it, headers and scales counted.
    pub bits_per_value: f64,
    /// The second half of every sequence.
    pub summary: Summary,
    /// Mean KL of f32 KV over the same rows.
    pub floor_kl: f64,
    /// Sixteenths of the sequences, from the first position on.
    pub parts: Vec<Part>,
    /// First position of any sequence whose logits have other bits than the exact ones.
    pub first_difference: Option<usize>,
}

/// Rows from one position to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Part {
    /// First position.
    pub from: usize,
    /// Position after the last.
    pub to: usize,
    /// What they say.
    pub summary: Summary,
}

/// Compares `forms` with exact KV over `sequences`, all of the same length. `watch(tokens done, tokens in all)`.
///
/// Errors: [`EngineError::Request`] for sequences under 4 tokens or of different lengths, and what the engines fail with.
pub fn measure(
    open: &Open<'_>,
    forms: &[Form],
    sequences: &[&[u32]],
    watch: &mut dyn FnMut(usize, usize),
) -> Result<Vec<Divergence>, EngineError> {
    let length = sequences.first().map_or(0, |sequence| sequence.len());
    if length < 4 || sequences.iter().any(|sequence| sequence.len() != length) {
        return Err(EngineError::Request(
            "quality is measured on sequences of one length, at least 4 tokens".to_owned(),
        ));
    }
    let mut compared: Vec<Form> = vec![FLOOR];
    compared.extend(forms.iter().filter(|form| **form != FLOOR));
    let mut engines = Vec::with_capacity(compared.len() + 1);
    for form in [EXACT].iter().chain(&compared) {
        engines.push(open(*form, None)?);
    }
    // The last token has no next one to be predicted.
    let rows = length - 1;
    let mut found: Vec<Vec<Vec<RowDifference>>> = vec![Vec::new(); compared.len()];
    for (index, sequence) in sequences.iter().enumerate() {
        found.iter_mut().for_each(|runs| runs.push(Vec::with_capacity(rows)));
        let runners = engines.iter_mut().map(Runner::new).collect();
        let mut told = |done| watch(index * rows + done, sequences.len() * rows);
        lockstep::run(runners, &sequence[..rows], 0, &mut told, &mut |position, logits| {
            let exact = ExactRow::new(logits[0]);
            for (runs, form) in found.iter_mut().zip(&logits[1..]) {
                runs[index].push(exact.compare(position, form, sequence[position + 1]));
            }
        })?;
    }
    let floor_kl = scored(&found[0], length / 2, rows).kl_mean;
    let of = |form: &Form| {
        let at = compared.iter().position(|other| other == form).expect("every form was compared");
        divergence(&engines[0], *form, &found[at], length, floor_kl)
    };
    Ok(forms.iter().map(of).collect())
}

fn divergence(engine: &Engine, form: Form, runs: &[Vec<RowDifference>], length: usize, floor_kl: f64) -> Divergence {
    let rows = length - 1;
    let bounds = (0..=PARTS).map(|part| (part * length / PARTS).min(rows)).collect::<Vec<usize>>();
    let parts = bounds
        .windows(2)
        .filter(|pair| pair[0] < pair[1])
        .map(|pair| Part { from: pair[0], to: pair[1], summary: scored(runs, pair[0], pair[1]) })
        .collect();
    Divergence {
        form,
        bits_per_value: bits_per_value(engine, form),
        summary: scored(runs, length / 2, rows),
        floor_kl,
        parts,
        first_difference: runs
            .iter()
            .filter_map(|rows| rows.iter().find(|row| !row.same_bits))
            .map(|row| row.position)
            .min(),
    }
}

/// What the rows of positions `from..to` say; there is at least one.
fn scored(runs: &[Vec<RowDifference>], from: usize, to: usize) -> Summary {
    let part: Vec<Vec<RowDifference>> = runs.iter().map(|rows| rows[from..to].to_vec()).collect();
    Summary::of(&part).expect("a part has rows")
}

fn bits_per_value(engine: &Engine, form: Form) -> f64 {
    let config = &engine.model().config;
    let shape = BlockShape {
        layers: config.layers,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        block_tokens: engine.options().block_tokens,
        form,
    };
    shape.bits_per_value()
}
