//! One running request: its tokens, how far they are computed, and what it has measured so far.

use std::time::Instant;

use cache_core::chain::{Chain, Link};
use cache_core::hash::Namespace;
use cache_core::miss::MissReason;
use cache_core::units::Tier;
use sha2::{Digest, Sha256};

use crate::run::paging::LoadedBytes;
use crate::run::request::{Answer, CachedTokens, Request};
use crate::run::sampler::Sampler;
use crate::run::tables::{Found, Tables};

/// A request in the course of being answered.
pub(crate) struct Sequence {
    pub(crate) request: Request,
    pub(crate) tables: Tables,
    pub(crate) namespace: Namespace,
    /// Prompt, then continuation.
    pub(crate) tokens: Vec<u32>,
    /// Positions whose keys and values are in blocks.
    pub(crate) computed: u32,
    /// True until it has looked its next blocks up: at the start, and after waiting for another sequence's blocks.
    pub(crate) looks: bool,
    /// Blocks that are there are computed up to this position, while what is behind it is loaded.
    pub(crate) computes_until: Option<u32>,
    /// Why the last lookup ended, until the block after it is opened.
    pending_miss: Option<MissReason>,
    chain: Chain,
    sampler: Sampler,
    digest: Sha256,
    first_token: Option<Instant>,
    cached: CachedTokens,
    /// Positions that were there once: what lies below is not computed for the first time.
    reached: u32,
    computed_tokens: u32,
    prefill_tokens: u32,
    pub(crate) recomputed_tokens: u32,
    pub(crate) loaded: LoadedBytes,
    pub(crate) misses: [u64; 11],
    /// How often the sequence went back because a block was lost.
    pub(crate) rewinds: u32,
    ended: bool,
}

impl Sequence {
    pub(crate) fn new(request: Request, tables: Tables, namespace: Namespace, block_tokens: u32) -> Sequence {
        let chain = Chain::over(namespace, block_tokens, &request.prompt);
        Sequence {
            tokens: request.prompt.clone(),
            sampler: Sampler::new(request.sampling),
            request,
            tables,
            namespace,
            computed: 0,
            looks: true,
            computes_until: None,
            pending_miss: None,
            chain,
            digest: Sha256::new(),
            first_token: None,
            cached: CachedTokens::default(),
            reached: 0,
            computed_tokens: 0,
            prefill_tokens: 0,
            recomputed_tokens: 0,
            loaded: LoadedBytes::default(),
            misses: [0; 11],
            rewinds: 0,
            ended: false,
        }
    }

    /// Links of the full blocks whose keys a lookup may bring: the last known token is always computed, for its logits.
    pub(crate) fn found_links(&self, block_tokens: u32) -> &[Link] {
        let most = (self.tokens.len() - 1) / block_tokens as usize;
        let links = self.chain.links();
        &links[..most.min(links.len())]
    }

    /// Links of the full blocks, as far as their tokens are known.
    pub(crate) fn links(&self) -> &[Link] {
        self.chain.links()
    }

    /// Tables and links together.
    pub(crate) fn tables_and_links(&mut self) -> (&mut Tables, &[Link]) {
        (&mut self.tables, self.chain.links())
    }

    /// Takes blocks that were found.
    pub(crate) fn found(&mut self, found: &Found, block_tokens: u32) {
        self.computed = self.tables.blocks * block_tokens;
        let before = self.reached;
        self.reached = self.reached.max(self.computed);
        // After a suspension only what was not there before counts as found in the cache.
        let new = (self.reached - before) / block_tokens;
        for tier in found.tiers.iter().rev().take(new as usize) {
            match tier {
                Tier::Device => self.cached.device += block_tokens,
                Tier::Host => self.cached.host += block_tokens,
                Tier::Disk | Tier::Remote => self.cached.disk += block_tokens,
            }
        }
        self.pending_miss = found.miss;
    }

    /// Counts the miss of the last lookup, now that the block is this sequence's to compute; waiting for another's block is none.
    fn missed(&mut self) {
        if let Some(reason) = self.pending_miss.take() {
            self.misses[reason as usize] += 1;
        }
    }

    /// Positions that the next step may compute, at most.
    pub(crate) fn rows_left(&self) -> u32 {
        self.computes_until.unwrap_or(self.tokens.len() as u32) - self.computed
    }

    /// Has computed what it was to compute before it looks for what was loaded meanwhile?
    pub(crate) fn meets(&mut self) -> bool {
        self.computes_until.take_if(|until| *until == self.computed).is_some()
    }

    /// Blocks whose first row is one of the next `rows` are opened: those that could have been loaded are misses.
    pub(crate) fn opened(&mut self, rows: u32, block_tokens: u32) {
        self.missed();
        if self.computes_until.is_some() {
            let blocks = (self.computed + rows).div_ceil(block_tokens) - self.computed.div_ceil(block_tokens);
            self.misses[MissReason::NotWorthIt as usize] += u64::from(blocks);
        }
    }

    /// Counts positions that a step computed for the first time.
    pub(crate) fn advanced(&mut self, rows: u32) {
        let again = self.reached.saturating_sub(self.computed).min(rows);
        self.recomputed_tokens += again;
        self.computed_tokens += rows - again;
        if self.first_token.is_none() {
            self.prefill_tokens += rows - again;
        }
        self.computed += rows;
        self.reached = self.reached.max(self.computed);
    }

    /// Forgets everything that was computed, as after a suspension.
    pub(crate) fn restart(&mut self, tables: Tables) {
        (self.tables, self.computed, self.looks, self.computes_until) = (tables, 0, true, None);
    }

    /// Goes back to before `block`, which was lost.
    pub(crate) fn rewound(&mut self, block: u32, block_tokens: u32) {
        self.computed = self.computed.min(block * block_tokens);
        self.rewinds += 1;
    }

    /// Chooses the next token from the logits of the last one; returns it.
    pub(crate) fn sample(&mut self, logits: &[f32], block_tokens: u32) -> u32 {
        for logit in logits {
            self.digest.update(logit.to_le_bytes());
        }
        let token = self.sampler.choose(logits);
        self.tokens.push(token);
        self.first_token.get_or_insert_with(Instant::now);
        if self.tokens.len().is_multiple_of(block_tokens as usize) {
            self.chain.push(&self.tokens[self.tokens.len() - block_tokens as usize..]);
        }
        token
    }

    /// Notes that the last token was an end token.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// True when no further token is wanted.
    pub(crate) fn is_finished(&self) -> bool {
        self.ended || self.generated() >= self.request.max_tokens
    }

    /// Tokens generated so far.
    pub(crate) fn generated(&self) -> u32 {
        (self.tokens.len() - self.request.prompt.len()) as u32
    }

    pub(crate) fn into_answer(self) -> Answer {
        let first = self.first_token.unwrap_or_else(Instant::now);
        Answer {
            id: self.request.id,
            namespace: self.namespace,
            tokens: self.tokens[self.request.prompt.len()..].to_vec(),
            logits_digest: self.digest.finalize().into(),
            prompt_tokens: self.request.prompt.len() as u32,
            cached_tokens: self.cached,
            computed_tokens: self.computed_tokens,
            recomputed_tokens: self.recomputed_tokens,
            first_token: first.saturating_duration_since(self.request.submitted),
            decode: first.elapsed(),
            prefill_tokens: self.prefill_tokens,
            loaded: self.loaded,
            misses: self.misses,
            clamped_at: self.tables.clamped_at().to_vec(),
            ended: self.ended,
        }
    }
}
