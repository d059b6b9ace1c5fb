//! What the scenarios of lossy closing share.

use std::path::Path;

use kvtier_engine::run::Form;
use kvtier_engine::run::engine::EngineOptions;
use kvtier_engine::run::request::Answer;

use crate::{ask, fixture, options, plain};

/// Two uniform forms, and a map that has each of the four pairs of keys and values in some layer.
pub fn forms() -> [Form; 3] {
    ["i8h", "kc4vt4", "kc4vt4:k8=0-3+17-29:v8=0+10-19"].map(|name| name.parse().unwrap())
}

/// Roomy budgets, and blocks closed in this form.
pub fn closing(form: Form) -> EngineOptions {
    EngineOptions { form, ..options() }
}

/// Digest of what a run without any cache says.
pub fn without_cache(form: Form, prompt: &[u32], tokens: u32) -> [u8; 32] {
    ask(&mut fixture().engine(EngineOptions { form, ..plain() }), prompt, tokens).logits_digest
}

/// Tokens found in any tier.
pub fn cached(answer: &Answer) -> u32 {
    answer.cached_tokens.device + answer.cached_tokens.host + answer.cached_tokens.disk
}

/// A copy of a store's files.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
