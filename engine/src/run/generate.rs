//! Answering requests: who gets rows in the next step, and what happens after it.

use std::time::Instant;

use cache_core::units::Tier;
use kvtier_sdk::cache::{Grant, NoRoom};

use crate::error::EngineError;
use crate::run::close::CloseEnd;
use crate::run::engine::Engine;
use crate::run::paging::LoadedBytes;
use crate::run::repair::Repaired;
use crate::run::request::{Answer, Progress, Request};
use crate::run::sequence::Sequence;
use crate::run::step::{Logits, Segment, StepEnd};
use crate::run::tables::Tables;

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
                    sequence.tables.close(&self.stepper.caches);
                    results[index] = Some(Err(EngineError::Stopped));
                }
                break;
            }
            if let Err((position, error)) = self.round(&mut active, &mut runnable, watch) {
                let (index, sequence) = active.remove(position);
                sequence.tables.close(&self.stepper.caches);
                results[index] = Some(Err(error));
                runnable = active.len();
                continue;
            }
            while let Some(position) = active.iter().position(|(_, sequence)| sequence.is_finished()) {
                let (index, sequence) = active.remove(position);
                sequence.tables.close(&self.stepper.caches);
                results[index] = Some(Ok(sequence.into_answer()));
                runnable = active.len();
            }
        }
        results.into_iter().map(|result| result.expect("each request was answered or refused")).collect()
    }

    fn admit(&mut self, request: Request) -> Result<Sequence, EngineError> {
        self.check(&request)?;
        let namespace = self.namespace(request.salt.as_deref());
        let tables = Tables::open(&self.stepper.caches, namespace, request.exact);
        Ok(Sequence::new(request, tables, namespace, self.options.block_tokens))
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
                sequence.tables.close(&self.stepper.caches);
                sequence.restart(Tables::open(&self.stepper.caches, sequence.namespace, sequence.request.exact));
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
        let by_disk = self.stepper.caches.stage_groups(&self.stepper.geometry).map_or(u32::MAX, |groups| groups / 2);
        by_slots.min(by_disk).max(1)
    }

    /// Finds what is there, then opens blocks for as many rows as fit, halving the chunk while they do not.
    fn grant(&mut self, sequence: &mut Sequence, most: u32, refusal: &mut Option<NoRoom>) -> Result<u32, EngineError> {
        let block_tokens = self.options.block_tokens;
        sequence.looks |= sequence.meets();
        if self.options.use_cache && sequence.looks && sequence.tables.blocks * block_tokens == sequence.computed {
            sequence.looks = false;
            self.acquire(sequence)?;
        }
        let mut rows = most.min(sequence.rows_left());
        while rows > 0 {
            match self.open_rows(sequence, rows)? {
                Opened::Granted => {
                    sequence.opened(rows, block_tokens);
                    return Ok(rows);
                }
                Opened::NoRoom(figures) => {
                    *refusal = Some(figures);
                    rows /= 2;
                }
                Opened::LookAgain => {
                    sequence.looks = true;
                    return Ok(0);
                }
                Opened::WentBack => {
                    rows = most.min(sequence.rows_left());
                }
            }
        }
        Ok(0)
    }

    /// Closes what the next rows read closed, and opens what they fill.
    fn open_rows(&mut self, sequence: &mut Sequence, rows: u32) -> Result<Opened, EngineError> {
        let positions = sequence.computed..sequence.computed + rows;
        let caches = self.stepper.caches.clone();
        let (tables, links) = sequence.tables_and_links();
        match self.stepper.close_full(&caches, tables, links, &positions)? {
            CloseEnd::Done => {}
            CloseEnd::NoRoom(figures) => return Ok(Opened::NoRoom(figures)),
            CloseEnd::PendingElsewhere => return Ok(Opened::LookAgain),
            CloseEnd::Lost(block, reason) => {
                sequence.misses[reason as usize] += 1;
                self.rewind(sequence, block)?;
                return Ok(Opened::WentBack);
            }
        }
        Ok(match tables.reserve(&caches, links, &positions)? {
            Grant::Granted => Opened::Granted,
            Grant::NoRoom(figures) => Opened::NoRoom(figures),
            Grant::PendingElsewhere => Opened::LookAgain,
        })
    }

    fn acquire(&mut self, sequence: &mut Sequence) -> Result<(), EngineError> {
        let block_tokens = self.options.block_tokens;
        let links = sequence.found_links(block_tokens).to_vec();
        if links.len() <= sequence.tables.blocks as usize {
            return Ok(());
        }
        let caches = self.stepper.caches.clone();
        let (first, began) = (sequence.tables.blocks, Instant::now());
        let takes = self.loading.begin(&caches, sequence, &links)?;
        let mut found = sequence.tables.acquire(&caches, &links[..takes])?;
        let in_place = self.device.info().in_place;
        let far = found.tiers.iter().filter(|tier| **tier == Tier::Disk).count() as u64;
        let mut waited = (0, began);
        if self.options.daemon.is_some() {
            // The daemon has brought them before it answered.
            waited.0 = far * caches.lossless.shape().slot_bytes();
        }
        if !found.tiers.is_empty() && (!in_place || far > 0) {
            let (nearest, began) = (if in_place { Tier::Host } else { Tier::Device }, Instant::now());
            let moved = sequence.tables.prefetch(&caches, nearest)?;
            sequence.loaded += LoadedBytes { host: moved.to_device_bytes, disk: moved.to_host_bytes };
            if moved.to_host_bytes > 0 {
                waited = (moved.to_host_bytes, began);
            }
        }
        let came = self.loading.taken(&caches, sequence, first, &mut found.tiers, waited);
        if self.options.daemon.is_none() {
            sequence.loaded += LoadedBytes { host: 0, disk: came };
        }
        sequence.found(&found, block_tokens);
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
        let (mut attempts, began) = (0, Instant::now());
        let loaded = loop {
            let segments: Vec<Segment<'_>> =
                members.iter().map(|position| segment(&active[*position].1, rows[*position])).collect();
            let mut deliver = |index: usize, _row: u32, row: &[f32]| logits[index] = Some(row.to_vec());
            match self.stepper.run(&segments, &mut deliver).map_err(|error| (first, error))? {
                StepEnd::Done(loaded) => break loaded,
                StepEnd::StaysRaw(blocks) => {
                    for (segment, block) in blocks {
                        let position = members[segment];
                        let stays = active[position].1.tables.stays_raw(&self.stepper.caches, block);
                        stays.map_err(|error| (position, error.into()))?;
                    }
                }
                StepEnd::Lost(lost) => {
                    attempts += 1;
                    if attempts == STEP_ATTEMPTS {
                        return Err((members[lost[0].segment], EngineError::LostAgain { attempts }));
                    }
                    if self.repair(active, &members, lost)? == Repaired::WentBack {
                        // The step was planned for rows that a sequence is not at any more.
                        return Ok(());
                    }
                }
            }
        };
        if let ([position], [LoadedBytes { host: 0, disk: 0 }], 0) = (&members[..], &loaded[..], attempts)
            && rows[*position] >= self.options.block_tokens
        {
            self.loading.computed(active[*position].1.computed, rows[*position], began);
        }
        for (index, position) in members.iter().enumerate() {
            let (request, sequence) = &mut active[*position];
            let positions = sequence.computed..sequence.computed + rows[*position];
            sequence.advanced(rows[*position]);
            let (tables, links) = sequence.tables_and_links();
            let advanced = tables.advance(&self.stepper.caches, links, &positions);
            advanced.map_err(|error| (*position, error.into()))?;
            sequence.loaded += loaded[index];
            self.settle(*request, sequence, logits[index].take(), watch);
        }
        Ok(())
    }

    /// After a step: takes the next token if the logits of the last one are there.
    fn settle(
        &mut self,
        request: usize,
        sequence: &mut Sequence,
        logits: Option<Vec<f32>>,
        watch: &mut dyn FnMut(Progress),
    ) {
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
    }
}

/// How opening rows ended.
enum Opened {
    Granted,
    NoRoom(NoRoom),
    /// Another sequence computes, or closes, what is next.
    LookAgain,
    /// A block was lost: the sequence is at an earlier position now.
    WentBack,
}

fn segment(sequence: &Sequence, rows: u32) -> Segment<'_> {
    let (first, end) = (sequence.computed, sequence.computed + rows);
    let logits = if end as usize == sequence.tokens.len() { Logits::Last } else { Logits::None };
    let tokens = &sequence.tokens[first as usize..end as usize];
    Segment { tables: &sequence.tables, tokens, first_position: first, logits }
}
