//! Answering requests: who gets rows in the next step, and what happens after it.

use cache_core::form::Accept;
use cache_core::units::Tier;
use gpu_tier::device::Device;
use kvtier_sdk::cache::{Grant, KvCache, NoRoom, Want};

use crate::error::EngineError;
use crate::run::area::blocks_per_group;
use crate::run::engine::Engine;
use crate::run::paging::LoadedBytes;
use crate::run::request::{Answer, Progress, Request};
use crate::run::sequence::Sequence;
use crate::run::step::{Logits, Segment, StepEnd};

/// How often a step is tried again after blocks were lost under it.
const STEP_ATTEMPTS: u32 = 32;

impl Engine {
    /// Answers all requests side by side, in arrival order where budgets do not hold them all. One result per request.
    pub fn generate(
        &mut self,
        requests: Vec<Request>,
        watch: &mut dyn FnMut(Progress),
    ) -> Vec<Result<Answer, EngineError>> {
        let mut results: Vec<Option<Result<Answer, EngineError>>> = requests.iter().map(|_| None).collect();
        let mut active: Vec<(usize, Sequence)> = Vec::new();
        for (index, request) in requests.into_iter().enumerate() {
            match self.admit(request) {
                Ok(sequence) => active.push((index, sequence)),
                Err(error) => results[index] = Some(Err(error)),
            }
        }
        let mut runnable = active.len();
        while !active.is_empty() {
            if self.is_stopped() {
                for (index, sequence) in active.drain(..) {
                    self.cache.close(sequence.id);
                    results[index] = Some(Err(EngineError::Stopped));
                }
                break;
            }
            if let Err((position, error)) = self.round(&mut active, &mut runnable, watch) {
                let (index, sequence) = active.remove(position);
                self.cache.close(sequence.id);
                results[index] = Some(Err(error));
                runnable = active.len();
                continue;
            }
            while let Some(position) = active.iter().position(|(_, sequence)| sequence.is_finished()) {
                let (index, sequence) = active.remove(position);
                self.cache.close(sequence.id);
                results[index] = Some(Ok(sequence.into_answer()));
                runnable = active.len();
            }
        }
        results.into_iter().map(|result| result.expect("each request was answered or refused")).collect()
    }

    fn admit(&mut self, request: Request) -> Result<Sequence, EngineError> {
        self.check(&request)?;
        let namespace = self.namespace(request.salt.as_deref());
        let id = self.cache.open(namespace);
        Ok(Sequence::new(request, id, namespace, self.options.block_tokens))
    }

    /// One step over the first `runnable` sequences. On failure: which one, and why.
    fn round(
        &mut self,
        active: &mut [(usize, Sequence)],
        runnable: &mut usize,
        watch: &mut dyn FnMut(Progress),
    ) -> Result<(), (usize, EngineError)> {
        let (rows, refusal) = self.plan_step(&mut active[..*runnable])?;
        if rows.iter().all(|rows| *rows == 0) {
            // Nobody fits beside the others: the last to arrive gives its blocks back and waits until another has finished.
            if *runnable > 1 {
                *runnable -= 1;
                let (_, sequence) = &mut active[*runnable];
                self.cache.close(sequence.id);
                sequence.restart(self.cache.open(sequence.namespace));
                return Ok(());
            }
            let refusal = refusal.expect("a lone sequence without rows was refused room");
            return Err((0, EngineError::NoRoom(refusal)));
        }
        self.step(&mut active[..*runnable], &rows, watch)
    }

    /// Rows of each sequence in the next step; their blocks are open. 0: it waits.
    fn plan_step(
        &mut self,
        active: &mut [(usize, Sequence)],
    ) -> Result<(Vec<u32>, Option<NoRoom>), (usize, EngineError)> {
        let mut left = self.stepper.plan.rows;
        let mut segments_left = self.segments_max();
        let mut refusal = None;
        let mut rows = vec![0; active.len()];
        for (position, (_, sequence)) in active.iter_mut().enumerate() {
            if left == 0 || segments_left == 0 {
                break;
            }
            let granted = self.grant(sequence, left, &mut refusal).map_err(|error| (position, error))?;
            rows[position] = granted;
            left -= granted;
            segments_left -= u32::from(granted > 0);
        }
        Ok((rows, refusal))
    }

    /// Sequences of one step: each has at least two paging slots, and two groups' worth of staged sections where there is a disk.
    fn segments_max(&self) -> u32 {
        let by_slots = self.stepper.plan.paging_slots / 2;
        let staged_each = 2 * blocks_per_group(&self.stepper.geometry);
        let by_disk = match self.cache.stage_capacity() {
            0 => u32::MAX,
            capacity => capacity / staged_each,
        };
        by_slots.min(by_disk).max(1)
    }

    /// Finds what is there, then opens blocks for as many rows as fit, halving the chunk while they do not.
    fn grant(&mut self, sequence: &mut Sequence, most: u32, refusal: &mut Option<NoRoom>) -> Result<u32, EngineError> {
        let block_tokens = self.options.block_tokens;
        if self.options.use_cache && sequence.looks && sequence.blocks * block_tokens == sequence.computed {
            sequence.looks = false;
            self.acquire(sequence)?;
        }
        let mut rows = most.min(sequence.tokens.len() as u32 - sequence.computed);
        while rows > 0 {
            let blocks = (sequence.computed + rows).div_ceil(block_tokens);
            if blocks <= sequence.blocks {
                return Ok(rows);
            }
            let link = |block| {
                if self.options.use_cache { sequence.link(block) } else { None }
            };
            let want = Want { sequence: sequence.id, blocks: (sequence.blocks..blocks).map(link).collect() };
            match self.cache.reserve(&[want])?.pop() {
                Some(Grant::Granted) => {
                    sequence.missed();
                    sequence.blocks = blocks;
                    return Ok(rows);
                }
                Some(Grant::NoRoom(figures)) => {
                    *refusal = Some(figures);
                    rows /= 2;
                }
                Some(Grant::PendingElsewhere) | None => {
                    sequence.looks = true;
                    return Ok(0);
                }
            }
        }
        Ok(0)
    }

    fn acquire(&mut self, sequence: &mut Sequence) -> Result<(), EngineError> {
        let links = sequence.links_from(sequence.blocks, self.options.block_tokens);
        if links.is_empty() {
            return Ok(());
        }
        let acquired = self.cache.acquire(sequence.id, links, Accept::Exact)?;
        let found = !acquired.tiers.is_empty();
        sequence.found(&acquired, self.options.block_tokens);
        let in_place = self.device.info().in_place;
        if found && (!in_place || acquired.tiers.contains(&Tier::Disk)) {
            let nearest = if in_place { Tier::Host } else { Tier::Device };
            let moved = self.cache.prefetch(sequence.id, nearest)?;
            sequence.loaded += LoadedBytes { host: moved.to_device_bytes, disk: moved.to_host_bytes };
        }
        Ok(())
    }

    /// Computes the planned rows, repairing lost blocks, then samples and commits.
    fn step(
        &mut self,
        active: &mut [(usize, Sequence)],
        rows: &[u32],
        watch: &mut dyn FnMut(Progress),
    ) -> Result<(), (usize, EngineError)> {
        let members: Vec<usize> = (0..active.len()).filter(|position| rows[*position] > 0).collect();
        let first = members.first().copied().unwrap_or(0);
        let mut logits: Vec<Option<Vec<f32>>> = members.iter().map(|_| None).collect();
        let mut attempts = 0;
        let loaded = loop {
            let segments: Vec<Segment<'_>> =
                members.iter().map(|position| segment(&active[*position].1, rows[*position])).collect();
            let mut deliver = |index: usize, _row: u32, row: &[f32]| logits[index] = Some(row.to_vec());
            match self.stepper.run(&segments, &mut deliver).map_err(|error| (first, error))? {
                StepEnd::Done(loaded) => break loaded,
                StepEnd::Lost(lost) => {
                    attempts += 1;
                    if attempts == STEP_ATTEMPTS {
                        return Err((members[lost[0].segment], EngineError::LostAgain { attempts }));
                    }
                    self.repair(active, &members, lost)?;
                }
            }
        };
        for (index, position) in members.iter().enumerate() {
            let (request, sequence) = &mut active[*position];
            sequence.advanced(rows[*position]);
            sequence.loaded += loaded[index];
            self.settle(*request, sequence, logits[index].take(), watch).map_err(|error| (*position, error))?;
        }
        Ok(())
    }

    /// After a step: commits what became full, then takes the next token if the logits of the last one are there.
    fn settle(
        &mut self,
        request: usize,
        sequence: &mut Sequence,
        logits: Option<Vec<f32>>,
        watch: &mut dyn FnMut(Progress),
    ) -> Result<(), EngineError> {
        self.commit_full(sequence)?;
        if let Some(logits) = logits {
            let token = sequence.sample(&logits, self.options.block_tokens);
            if sequence.request.end_tokens.contains(&token) {
                sequence.end();
            }
            watch(Progress::Token { index: request, token });
        } else {
            watch(Progress::Prefill {
                index: request,
                done: sequence.computed,
                total: sequence.request.prompt.len() as u32,
            });
        }
        Ok(())
    }

    fn commit_full(&mut self, sequence: &mut Sequence) -> Result<(), EngineError> {
        if !self.options.use_cache {
            return Ok(());
        }
        while (sequence.committed + 1) * self.options.block_tokens <= sequence.computed {
            let link = sequence.link(sequence.committed).expect("a computed block's tokens are known");
            self.cache.commit(sequence.id, sequence.committed, link)?;
            sequence.committed += 1;
        }
        Ok(())
    }
}

fn segment(sequence: &Sequence, rows: u32) -> Segment<'_> {
    let (first, end) = (sequence.computed, sequence.computed + rows);
    let logits = if end as usize == sequence.tokens.len() { Logits::Last } else { Logits::None };
    let tokens = &sequence.tokens[first as usize..end as usize];
    Segment { sequence: sequence.id, tokens, first_position: first, logits }
}
