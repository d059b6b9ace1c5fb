//! Why a tokenizer could not be made or used.

use crate::gguf::GgufError;

/// What is wrong with a model's tokenizer, or with an id given to it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// Metadata is missing or of the wrong type.
    #[error("read the tokenizer: {0}")]
    Metadata(#[from] GgufError),
    /// A kind of tokenizer that is not supported.
    #[error("`tokenizer.ggml.model` is `{found}`, only `gpt2` (byte-level BPE) is supported; use another model")]
    Model {
        /// The value stored.
        found: String,
    },
    /// A pre-tokenizer that is not supported.
    #[error("`tokenizer.ggml.pre` is `{found}`, supported are {known}; use another model")]
    Pre {
        /// The value stored.
        found: String,
        /// The values supported.
        known: &'static str,
    },
    /// Arrays of different lengths.
    #[error("`{key}` has {found} entries for {expected} tokens; fetch the model again")]
    Entries {
        /// The metadata key.
        key: &'static str,
        /// Entries in it.
        found: usize,
        /// Tokens in the vocabulary.
        expected: usize,
    },
    /// A special token id outside the vocabulary.
    #[error("`{key}` is {found}, the vocabulary has {vocab} tokens; fetch the model again")]
    SpecialId {
        /// The metadata key.
        key: &'static str,
        /// The id stored.
        found: u32,
        /// Tokens in the vocabulary.
        vocab: usize,
    },
    /// A merge that is not two texts with a space between.
    #[error("`tokenizer.ggml.merges` entry {index} (`{merge}`) is not a pair; fetch the model again")]
    Merge {
        /// Which entry.
        index: usize,
        /// Its text.
        merge: String,
    },
    /// Vocabulary and merges that do not fit each other.
    #[error("vocabulary and merges do not fit: {reason}; use another conversion of the model")]
    Vocabulary {
        /// What the merge model reports.
        reason: String,
    },
    /// The merge model refused a word.
    #[error("tokenize a word of {bytes} bytes: {reason}")]
    Word {
        /// Bytes of the word.
        bytes: usize,
        /// What the merge model reports.
        reason: String,
    },
}
