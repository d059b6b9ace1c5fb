//! Blocks that were lost under a running sequence are computed again from their tokens.

use kvtier_sdk::cache::{Grant, KvCache};

use crate::error::EngineError;
use crate::run::engine::Engine;
use crate::run::sequence::Sequence;
use crate::run::step::{Logits, LostBlock, Segment, StepEnd};

impl Engine {
    /// Recomputes lost blocks from their tokens, lowest first.
    pub(super) fn repair(
        &mut self,
        active: &mut [(usize, Sequence)],
        members: &[usize],
        mut lost: Vec<LostBlock>,
    ) -> Result<(), (usize, EngineError)> {
        lost.sort_unstable_by_key(|lost| (lost.segment, lost.block));
        for LostBlock { segment, block, reason } in lost {
            let position = members[segment];
            let sequence = &mut active[position].1;
            sequence.misses[reason as usize] += 1;
            self.recompute(sequence, block).map_err(|error| (position, error))?;
        }
        Ok(())
    }

    fn recompute(&mut self, sequence: &mut Sequence, block: u32) -> Result<(), EngineError> {
        match self.cache.reopen(sequence.id, block)? {
            Grant::Granted => {}
            Grant::NoRoom(figures) => return Err(EngineError::NoRoom(figures)),
            // The block has come back meanwhile: the retried step finds it.
            Grant::PendingElsewhere => return Ok(()),
        }
        let filled = self.refill(sequence, block);
        if !matches!(filled, Ok(true)) {
            // An open block holds zeros until it is filled: nobody may take it for the block.
            let abandoned = self.cache.abandon(sequence.id, block);
            filled?;
            return Ok(abandoned?);
        }
        if let Some(link) = sequence.link(block)
            && block < sequence.committed
        {
            self.cache.commit(sequence.id, block, link)?;
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
            let segment = Segment { sequence: sequence.id, tokens, first_position: position, logits: Logits::None };
            match self.stepper.run(&[segment], &mut |_, _, _| {})? {
                StepEnd::Done(loaded) => sequence.loaded += loaded[0],
                StepEnd::Lost(_) => return Ok(false),
            }
            position += rows;
        }
        sequence.recomputed_tokens += end - first;
        Ok(true)
    }
}
