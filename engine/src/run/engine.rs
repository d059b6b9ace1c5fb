//! The engine: a model over a device and a cache, answering requests side by side.

use std::sync::Arc;

use cache_core::form::{Accept, Form};
use cache_core::hash::{Namespace, TenantId, WeightsId};
use cache_core::manifest::Manifest;
use cache_core::miss::MissReason;
use cache_core::payload::BlockShape;
use cache_core::slots::SlotTable;
use gpu_tier::attention::{Attention, Element, Geometry};
use gpu_tier::cpu::isa::Isa;
use gpu_tier::cpu::workers::Workers;
use gpu_tier::cpu::{CpuConfig, CpuDevice, Link};
use gpu_tier::device::{Device, MemoryUse, Traffic};
use kvtier_sdk::cache::{CacheStats, Grant, KvCache, NoRoom, SequenceId, Want};
use kvtier_sdk::embedded::{Embedded, EmbeddedConfig};

use crate::error::EngineError;
use crate::model::Model;
use crate::model::weights::Compute;
use crate::run::area::{AreaInput, AreaPlan};
use crate::run::request::{Answer, Progress, Request};
use crate::run::sampler::{argmax, log_sum_exp};
use crate::run::sequence::Sequence;
use crate::run::step::{Logits, Segment, StepEnd, Stepper};

/// How often a step is tried again after blocks were lost under it.
const STEP_ATTEMPTS: u32 = 32;

/// What the engine is opened with.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Device budget in bytes: blocks, open windows, tables and scratch.
    pub device_bytes: u64,
    /// Host arena in bytes.
    pub host_bytes: u64,
    /// In place, or strict over a modelled link.
    pub link: Link,
    /// Tokens of a block: a power of two, 16 to 256.
    pub block_tokens: u32,
    /// Rows of a step at most.
    pub chunk: u32,
    /// Compute threads.
    pub threads: usize,
    /// Instruction set.
    pub isa: Isa,
    /// Stored form of KV.
    pub form: Form,
    /// False: nothing is looked up or published.
    pub use_cache: bool,
    /// Positions a sequence may have at most; the model's context unless a caller knows better.
    pub context_tokens: u32,
}

/// Teacher-forced log-probabilities of a token sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// Natural-log probability of each next token: one less than there are tokens.
    pub logprob: Vec<f64>,
    /// The most likely next token at the same positions.
    pub top1: Vec<u32>,
}

/// A model over a device and a cache.
pub struct Engine {
    stepper: Stepper,
    cache: Arc<Embedded>,
    device: Arc<CpuDevice>,
    manifest: Manifest,
    options: EngineOptions,
    metadata_bytes: u64,
}

impl Engine {
    /// Opens device, host arena and cache for `model`, whose files have the identity `weights`.
    ///
    /// Errors: [`EngineError::Request`] for options that make no sense, [`EngineError::Budget`] for budgets under the minimum.
    pub fn open(model: Arc<Model>, weights: WeightsId, options: EngineOptions) -> Result<Engine, EngineError> {
        check_options(&options)?;
        let config = &model.config;
        let geometry = Geometry {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            block_tokens: options.block_tokens,
            element: if options.form == Form::Raw32 { Element::F32 } else { Element::Bf16 },
            scale: (1.0 / f64::from(config.head_dim).sqrt()) as f32,
        };
        let shape = BlockShape {
            layers: config.layers,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            block_tokens: options.block_tokens,
            form: options.form,
        };
        let plan = AreaPlan::divide(&AreaInput {
            geometry,
            slot_bytes: shape.slot_bytes(),
            device_bytes: options.device_bytes,
            chunk: options.chunk,
            context: options.context_tokens,
        })?;
        let metadata_bytes = SlotTable::bytes_for(plan.block_slots);
        let workers = Arc::new(Workers::new(options.threads));
        let device = Arc::new(CpuDevice::open(CpuConfig {
            budget_bytes: options.device_bytes - metadata_bytes,
            link: options.link,
            workers: Arc::clone(&workers),
            isa: options.isa,
        })?);
        let area = device.allocate(plan.area_bytes)?;
        let cache = Arc::new(Embedded::open(EmbeddedConfig {
            device: Arc::clone(&device) as Arc<dyn Attention>,
            shape,
            device_slots: plan.block_slots,
            host_bytes: if options.use_cache { options.host_bytes } else { 0 },
        })?);
        let numerics = format!("kvtier-engine-1 cpu {} int16 span64", model.path.name());
        let manifest = config.manifest(weights, options.form.name(), options.block_tokens, numerics);
        let compute = Compute { isa: options.isa, workers };
        let on_device = Arc::clone(&device) as Arc<dyn Attention>;
        let stepper = Stepper::new(model, compute, on_device, Arc::clone(&cache) as Arc<dyn KvCache>, geometry, plan, area);
        Ok(Engine { stepper, cache, device, manifest, options, metadata_bytes })
    }

    /// Answers all requests side by side, in arrival order where budgets do not hold them all. One result per request.
    pub fn generate(&mut self, requests: Vec<Request>, watch: &mut dyn FnMut(Progress)) -> Vec<Result<Answer, EngineError>> {
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

    /// Log-probabilities of `tokens` under the model, each given all before it. Nothing is looked up or published.
    pub fn score(&mut self, tokens: &[u32], watch: &mut dyn FnMut(Progress)) -> Result<Score, EngineError> {
        let mut score = Score { logprob: Vec::new(), top1: Vec::new() };
        self.teacher_force(tokens, watch, &mut |position, logits| {
            if let Some(next) = tokens.get(position + 1) {
                score.logprob.push(f64::from(logits[*next as usize]) - log_sum_exp(logits));
                score.top1.push(argmax(logits));
            }
        })?;
        Ok(score)
    }

    /// Feeds `tokens` to the model and shows the logits after each: `visit(position, logits)`, `logits` as long as the vocabulary.
    /// Nothing is looked up or published.
    pub fn teacher_force(
        &mut self,
        tokens: &[u32],
        watch: &mut dyn FnMut(Progress),
        visit: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        self.check_prompt(tokens, 0)?;
        let id = self.cache.open(self.namespace(None));
        let result = self.teacher_force_open(id, tokens, watch, visit);
        self.cache.close(id);
        result
    }

    /// Counters of the cache.
    pub fn cache_stats(&self) -> CacheStats {
        self.cache.stats()
    }

    /// The embedded cache, for whole-system tests and explanations.
    pub fn cache(&self) -> &Arc<Embedded> {
        &self.cache
    }

    /// Device memory with the index of its slots.
    pub fn memory(&self) -> MemoryUse {
        let memory = self.device.memory();
        MemoryUse {
            budget_bytes: memory.budget_bytes + self.metadata_bytes,
            used_bytes: memory.used_bytes + self.metadata_bytes,
            peak_bytes: memory.peak_bytes + self.metadata_bytes,
        }
    }

    /// Bytes moved and read by the device.
    pub fn traffic(&self) -> Traffic {
        self.device.traffic()
    }

    /// How the device budget is divided.
    pub fn plan(&self) -> &AreaPlan {
        &self.stepper.plan
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.stepper.model
    }

    /// The options it was opened with.
    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// The namespace of a tenant.
    pub fn namespace(&self, salt: Option<&str>) -> Namespace {
        self.manifest.namespace(TenantId::of_salt(salt))
    }

    /// Refuses token ids that the model or the context cannot take.
    fn check_prompt(&self, prompt: &[u32], more: u32) -> Result<(), EngineError> {
        let context = self.options.context_tokens;
        let vocabulary = self.stepper.model.config.vocabulary;
        if prompt.is_empty() {
            return Err(EngineError::Request("the prompt is empty; give at least one token".to_owned()));
        }
        if prompt.len() as u64 + u64::from(more) > u64::from(context) {
            return Err(EngineError::Request(format!(
                "the prompt has {} tokens and {more} more are asked for, but the context holds {context}; \
                 shorten the document or --max-tokens",
                prompt.len()
            )));
        }
        match prompt.iter().find(|token| **token >= vocabulary) {
            Some(token) => Err(EngineError::Request(format!("token {token} is outside the vocabulary of {vocabulary}"))),
            None => Ok(()),
        }
    }

    fn admit(&mut self, request: Request) -> Result<Sequence, EngineError> {
        self.check_prompt(&request.prompt, request.max_tokens)?;
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
    fn plan_step(&mut self, active: &mut [(usize, Sequence)]) -> Result<(Vec<u32>, Option<NoRoom>), (usize, EngineError)> {
        let mut left = self.stepper.plan.rows;
        let mut segments_left = (self.stepper.plan.paging_slots / 2).max(1);
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

    /// Finds what is there, then opens blocks for as many rows as fit, halving the chunk while they do not.
    fn grant(&mut self, sequence: &mut Sequence, most: u32, refusal: &mut Option<NoRoom>) -> Result<u32, EngineError> {
        let block_tokens = self.options.block_tokens;
        if self.options.use_cache && sequence.blocks * block_tokens == sequence.computed {
            self.acquire(sequence)?;
        }
        let mut rows = most.min(sequence.tokens.len() as u32 - sequence.computed);
        while rows > 0 {
            let blocks = (sequence.computed + rows).div_ceil(block_tokens);
            if blocks <= sequence.blocks {
                return Ok(rows);
            }
            let link = |block| if self.options.use_cache { sequence.link(block) } else { None };
            let want = Want { sequence: sequence.id, blocks: (sequence.blocks..blocks).map(link).collect() };
            match self.cache.reserve(&[want])?.pop() {
                Some(Grant::Granted) => {
                    sequence.blocks = blocks;
                    return Ok(rows);
                }
                Some(Grant::NoRoom(figures)) => {
                    *refusal = Some(figures);
                    rows /= 2;
                }
                Some(Grant::PendingElsewhere) | None => return Ok(0),
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
        if found && !self.device.info().in_place {
            sequence.loaded_host_bytes += self.cache.prefetch(sequence.id)?;
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
            let segments: Vec<Segment<'_>> = members.iter().map(|position| segment(&active[*position].1, rows[*position])).collect();
            let mut deliver = |index: usize, _row: u32, row: &[f32]| logits[index] = Some(row.to_vec());
            match self.stepper.run(&segments, &mut deliver).map_err(|error| (first, error))? {
                StepEnd::Done(loaded) => break loaded,
                StepEnd::Lost(lost) => {
                    attempts += 1;
                    if attempts == STEP_ATTEMPTS {
                        return Err((members[lost[0].0], EngineError::LostAgain { attempts }));
                    }
                    self.repair(active, &members, lost)?;
                }
            }
        };
        for (index, position) in members.iter().enumerate() {
            let (request, sequence) = &mut active[*position];
            sequence.advanced(rows[*position]);
            sequence.loaded_host_bytes += loaded[index];
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
            watch(Progress::Prefill { index: request, done: sequence.computed, total: sequence.request.prompt.len() as u32 });
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

    /// Recomputes lost blocks from their tokens, lowest first.
    fn repair(
        &mut self,
        active: &mut [(usize, Sequence)],
        members: &[usize],
        mut lost: Vec<(usize, u32)>,
    ) -> Result<(), (usize, EngineError)> {
        lost.sort_unstable();
        for (index, block) in lost {
            let position = members[index];
            let sequence = &mut active[position].1;
            sequence.misses[MissReason::LeaseLost as usize] += 1;
            self.recompute(sequence, block).map_err(|error| (position, error))?;
        }
        Ok(())
    }

    fn recompute(&mut self, sequence: &mut Sequence, block: u32) -> Result<(), EngineError> {
        match self.cache.reopen(sequence.id, block)? {
            Grant::Granted => {}
            Grant::NoRoom(figures) => return Err(EngineError::NoRoom(figures)),
            // Another sequence has computed it meanwhile, or is about to: the retried step looks again.
            Grant::PendingElsewhere => return Ok(()),
        }
        let done = self.refill(sequence, block);
        if !matches!(done, Ok(true)) {
            // An open block holds zeros until it is filled: nobody may take it for the block.
            self.cache.abandon(sequence.id, block)?;
        }
        done.map(|_| ())
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
                StepEnd::Done(loaded) => sequence.loaded_host_bytes += loaded[0],
                StepEnd::Lost(_) => return Ok(false),
            }
            position += rows;
        }
        sequence.recomputed_tokens += end - first;
        if let Some(link) = sequence.link(block)
            && block < sequence.committed
        {
            self.cache.commit(sequence.id, block, link)?;
        }
        Ok(true)
    }

    fn teacher_force_open(
        &mut self,
        id: SequenceId,
        tokens: &[u32],
        watch: &mut dyn FnMut(Progress),
        visit: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<(), EngineError> {
        let (mut done, mut blocks) = (0, 0);
        while done < tokens.len() {
            let rows = (self.stepper.plan.rows as usize).min(tokens.len() - done);
            let needed = ((done + rows) as u32).div_ceil(self.options.block_tokens);
            if needed > blocks {
                let want = Want { sequence: id, blocks: vec![None; (needed - blocks) as usize] };
                if let Some(Grant::NoRoom(figures)) = self.cache.reserve(&[want])?.pop() {
                    return Err(EngineError::NoRoom(figures));
                }
                blocks = needed;
            }
            let part = &tokens[done..done + rows];
            let segment = Segment { sequence: id, tokens: part, first_position: done as u32, logits: Logits::All };
            let mut deliver = |_: usize, row: u32, logits: &[f32]| visit(done + row as usize, logits);
            if let StepEnd::Lost(lost) = self.stepper.run(&[segment], &mut deliver)? {
                return Err(EngineError::LostAgain { attempts: lost.len() as u32 });
            }
            done += rows;
            watch(Progress::Prefill { index: 0, done: done as u32, total: tokens.len() as u32 });
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

fn check_options(options: &EngineOptions) -> Result<(), EngineError> {
    let problem = |text: &str| Err(EngineError::Request(text.to_owned()));
    if !options.block_tokens.is_power_of_two() || !(16..=256).contains(&options.block_tokens) {
        return problem("--block-tokens must be 16, 32, 64, 128 or 256");
    }
    if options.threads == 0 {
        return problem("--threads must be at least 1");
    }
    if options.chunk == 0 {
        return problem("--chunk must be at least 1");
    }
    if !Isa::available().contains(&options.isa) {
        return problem("this processor lacks the chosen instruction set; choose one that it has");
    }
    Ok(())
}
