//! What the engine can fail with.

use kvtier_sdk::cache::{CacheError, NoRoom};

/// Errors of the engine. Text names the thing and, for bad input, the fix.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The model file is damaged or incomplete.
    #[error(transparent)]
    Gguf(#[from] crate::gguf::GgufError),
    /// The model file is sound, but not one that this engine runs.
    #[error("load the model: {0}")]
    Model(String),
    /// The tokenizer or chat template cannot be used.
    #[error("use the model's text settings: {0}")]
    Text(String),
    /// A request that cannot be served as it is.
    #[error("{0}")]
    Request(String),
    /// A budget under what the engine needs at least.
    #[error("{what} of {given_bytes} bytes is too small: at least {minimum_bytes} bytes are needed; raise {what}")]
    Budget {
        /// The option.
        what: &'static str,
        /// What was given.
        given_bytes: u64,
        /// What is needed.
        minimum_bytes: u64,
    },
    /// The remaining budgets cannot hold a sequence.
    #[error(
        "hold the request's blocks: {} of {} device slots and {} of {} host slots are live; raise --device-mem or --host-mem",
        .0.device_live_slots, .0.device_slots, .0.host_live_slots, .0.host_slots
    )]
    NoRoom(NoRoom),
    /// The same blocks were lost again and again.
    #[error("keep the request's blocks: they were lost {attempts} times in one step")]
    LostAgain {
        /// How often the step was tried.
        attempts: u32,
    },
    /// Whoever asked wants no answer any more: see `Engine::stop_when`.
    #[error("finish the request: it was stopped")]
    Stopped,
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The device failed.
    #[error("run on the device: {0}")]
    Device(#[from] gpu_tier::DeviceError),
}

impl EngineError {
    /// True when the request was sound but could not be finished (exit code 3); false for bad input (exit code 2).
    pub fn is_unfinished(&self) -> bool {
        matches!(
            self,
            EngineError::NoRoom(_)
                | EngineError::LostAgain { .. }
                | EngineError::Stopped
                | EngineError::Cache(_)
                | EngineError::Device(_)
        )
    }
}
