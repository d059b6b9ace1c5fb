//! Blocks that were lost under a running sequence are computed again from their tokens.
//!
//! A sequence without closed blocks computes just the lost block again: everything that its rows read is there, bit for bit. One that closes
//! blocks has given up the lossless copies that those rows read: it goes back to before the block and goes on from there.

use kvtier_sdk::cache::{Grant, KvCache};

use crate::error::EngineError;
use crate::run::engine::Engine;
use crate::run::sequence::Sequence;
use crate::run::step::{Logits, LostBlock, Segment, StepEnd};

/// How often a sequence may go back.
const REWINDS_MAX: u32 = 32;

/// How a repair ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repaired {
    /// Every block is there again.
    InPlace,
    /// At least one sequence is at an earlier position now.
    WentBack,
}

impl Engine {
    /// Recomputes lost blocks from their tokens, lowest first.
    pub(super) fn repair(
        &mut self,
        active: &mut [(usize, Sequence)],
        members: &[usize],
        mut lost: Vec<LostBlock>,
    ) -> Result<Repaired, (usize, EngineError)> {
        lost.sort_unstable_by_key(|lost| (lost.segment, lost.block));
        let mut repaired = Repaired::InPlace;
        let mut went_back = None;
        for LostBlock { segment, block, reason } in lost {
            let position = members[segment];
            let sequence = &mut active[position].1;
            sequence.misses[reason as usize] += 1;
            if sequence.tables.closed.is_none() {
                self.recompute(sequence, block).map_err(|error| (position, error))?;
            } else if went_back != Some(segment) {
                self.rewind(sequence, block).map_err(|error| (position, error))?;
                (repaired, went_back) = (Repaired::WentBack, Some(segment));
            }
        }
        Ok(repaired)
    }

    /// Goes back to before a lost block.
    pub(super) fn rewind(&mut self, sequence: &mut Sequence, block: u32) -> Result<(), EngineError> {
        if sequence.rewinds == REWINDS_MAX {
            return Err(EngineError::LostAgain { attempts: REWINDS_MAX });
        }
        sequence.tables.rewind(&self.stepper.caches, block)?;
        sequence.rewound(block, self.options.block_tokens);
        Ok(())
    }

    fn recompute(&mut self, sequence: &mut Sequence, block: u32) -> Result<(), EngineError> {
        let id = sequence.tables.lossless;
        match self.cache.reopen(id, block)? {
            Grant::Granted => {}
            Grant::NoRoom(figures) => return Err(EngineError::NoRoom(figures)),
            // The block has come back meanwhile: the retried step finds it.
            Grant::PendingElsewhere => return Ok(()),
        }
        let filled = self.refill(sequence, block);
        if !matches!(filled, Ok(true)) {
            // An open block holds zeros until it is filled: nobody may take it for the block.
            let abandoned = self.cache.abandon(id, block);
            filled?;
            return Ok(abandoned?);
        }
        if block < sequence.tables.committed {
            self.cache.commit(id, block, &sequence.links()[block as usize..=block as usize])?;
        }
        Ok(())
    }

    /// Computes the tokens of a reopened block; false when a block before it was lost meanwhile (the retried step repairs both).
    fn refill(&mut self, sequence: &mut Sequence, block: u32) -> Result<bool, EngineError> {
        let first = block * self.options.block_tokens;
        let end = (first + self.options.block_tokens).min(sequence.computed);
        let mut position = first;
        while position < end {
            let rows = (end - position).min(self.stepper.plan.rows);
            let tokens = &sequence.tokens[position as usize..(position + rows) as usize];
            let segment = Segment { tables: &sequence.tables, tokens, first_position: position, logits: Logits::None };
            match self.stepper.run(&[segment], &mut |_, _, _| {})? {
                StepEnd::Done(loaded) => sequence.loaded += loaded[0],
                StepEnd::Lost(_) => return Ok(false),
                StepEnd::StaysRaw(_) => unreachable!("a sequence without closed blocks closes none"),
            }
            position += rows;
        }
        sequence.recomputed_tokens += end - first;
        Ok(true)
    }
}
