//! Teacher forcing in pieces: tokens are given, logits come back, and several engines can go through the same tokens side by side.

use cache_core::chain::Chain;

use crate::error::EngineError;
use crate::run::close::CloseEnd;
use crate::run::engine::Engine;
use crate::run::step::{Logits, Segment, StepEnd};
use crate::run::tables::{Caches, Tables};
use kvtier_sdk::cache::Grant;

/// A sequence whose tokens are given. [`Engine::close_forced`] ends it.
#[derive(Debug)]
pub struct Forced {
    tables: Tables,
    /// Positions whose keys and values are in blocks.
    done: usize,
}

impl Forced {
    /// Positions that are there: found, or computed.
    pub fn done(&self) -> usize {
        self.done
    }

    /// Positions from which on something is computed without its exact window.
    pub fn clamped_at(&self) -> &[u32] {
        self.tables.clamped_at()
    }
}

impl Engine {
    /// Opens a sequence without tokens.
    pub fn open_forced(&mut self) -> Forced {
        Forced { tables: Tables::open(&self.forced_caches(), self.namespace(None), false), done: 0 }
    }

    /// Takes the full blocks of `prefix` that the cache has, from the first one on: [`Forced::done`] tells how far they reach.
    pub fn acquire_forced(&mut self, forced: &mut Forced, prefix: &[u32]) -> Result<(), EngineError> {
        let chain = Chain::over(self.namespace(None), self.options.block_tokens, prefix);
        forced.tables.acquire(&self.forced_caches(), chain.links())?;
        forced.done = (forced.tables.blocks * self.options.block_tokens) as usize;
        Ok(())
    }

    /// Computes the positions of `tokens`, which follow those that are there, and shows the logits after each from position `from` on:
    /// `visit(position, logits)`, `logits` as long as the vocabulary. Nothing is looked up or published.
    pub fn advance_forced(
        &mut self,
        forced: &mut Forced,
        tokens: &[u32],
        from: usize,
        visit: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        self.check_prompt(tokens, forced.done as u32)?;
        for part in tokens.chunks(self.stepper.plan.rows as usize) {
            let (first, end) = (forced.done, forced.done + part.len());
            let positions = first as u32..end as u32;
            let caches = self.forced_caches();
            match self.stepper.close_full(&caches, &mut forced.tables, &[], &positions)? {
                CloseEnd::Done => {}
                CloseEnd::NoRoom(figures) => return Err(EngineError::NoRoom(figures)),
                CloseEnd::Lost(..) => return Err(EngineError::LostAgain { attempts: 1 }),
                CloseEnd::PendingElsewhere => unreachable!("what is not published has no name to wait for"),
            }
            if let Grant::NoRoom(figures) = forced.tables.reserve(&caches, &[], &positions)? {
                return Err(EngineError::NoRoom(figures));
            }
            let logits = if end > from { Logits::All } else { Logits::None };
            loop {
                let mut deliver = |_: usize, row: u32, logits: &[f32]| {
                    let position = first + row as usize;
                    if position >= from {
                        visit(position, logits);
                    }
                };
                let segment = Segment { tables: &forced.tables, tokens: part, first_position: first as u32, logits };
                match self.stepper.run(&[segment], &mut deliver)? {
                    StepEnd::Done(_) => break,
                    StepEnd::StaysRaw(blocks) => {
                        for (_, block) in blocks {
                            forced.tables.stays_raw(&caches, block)?;
                        }
                    }
                    // What was computed here is open on the device; only a block that was found can be lost, and that is rare enough.
                    StepEnd::Lost(_) => return Err(EngineError::LostAgain { attempts: 1 }),
                }
            }
            forced.tables.advance(&caches, &[], &positions)?;
            forced.done = end;
        }
        Ok(())
    }

    /// Gives the sequence's blocks back.
    pub fn close_forced(&mut self, forced: Forced) {
        forced.tables.close(&self.stepper.caches);
    }

    fn forced_caches(&self) -> Caches {
        Caches { publishes: false, ..self.stepper.caches.clone() }
    }
}
