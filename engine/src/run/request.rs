//! What is asked of the engine, and what it answers.

use std::time::{Duration, Instant};

use cache_core::hash::Namespace;

use crate::run::paging::LoadedBytes;
use crate::run::sampler::Sampling;

/// One question: a prompt and how to continue it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Named in the answer.
    pub id: String,
    /// When the prompt was rendered: the time to the first token counts from here.
    pub submitted: Instant,
    /// Token ids of the rendered prompt; at least one.
    pub prompt: Vec<u32>,
    /// Tokens to generate at most; at least one.
    pub max_tokens: u32,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Tokens that end the continuation; empty to go on regardless.
    pub end_tokens: Vec<u32>,
    /// Salt of the tenant; `None` is the default tenant.
    pub salt: Option<String>,
    /// Nothing lossy: only exact hits, and no block is closed.
    pub exact: bool,
}

/// Blocks found in the cache, in tokens by tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CachedTokens {
    /// In device memory.
    pub device: u32,
    /// In the host arena.
    pub host: u32,
    /// On the disk.
    pub disk: u32,
}

/// A finished request.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The request's.
    pub id: String,
    /// Whose blocks it shares: everything that makes them compatible, and the tenant.
    pub namespace: Namespace,
    /// Generated token ids.
    pub tokens: Vec<u32>,
    /// SHA-256 over the f32 little-endian logits of every generated token.
    pub logits_digest: [u8; 32],
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of those, found in the cache.
    pub cached_tokens: CachedTokens,
    /// Positions computed for the first time, prompt and continuation.
    pub computed_tokens: u32,
    /// Positions computed again because their block was lost, or because the request gave its blocks back to wait for another.
    pub recomputed_tokens: u32,
    /// From the rendered prompt to the first token.
    pub first_token: Duration,
    /// From the first token to the last.
    pub decode: Duration,
    /// Of the prompt's tokens, those that had to be computed.
    pub prefill_tokens: u32,
    /// Bytes copied from host to device, and read from the disk, on the request's behalf.
    pub loaded: LoadedBytes,
    /// Misses by reason, in the order of `MissReason::ALL`.
    pub misses: [u64; 11],
    /// Positions from which on something was computed after closed blocks without its exact window: after a lossy hit, or where a block was
    /// lost. Logits depend on them, and are equal for equal ones. Empty without a lossy form.
    pub clamped_at: Vec<u32>,
    /// True when the continuation ended with an end token.
    pub ended: bool,
}

/// What the engine is doing, for whoever watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many positions of the prompt of request `index` are there.
    Prefill {
        /// Index of the request.
        index: usize,
        /// Positions done.
        done: u32,
        /// Positions of the prompt.
        total: u32,
    },
    /// Request `index` got a token.
    Token {
        /// Index of the request.
        index: usize,
        /// The token.
        token: u32,
    },
}
