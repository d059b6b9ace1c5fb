//! Lossy closing with little memory, and closed blocks that are lost: what `scenarios/closing.rs` cannot ask of every cache.

use std::path::Path;
use std::sync::Arc;

use cache_core::chain::Chain;
use cache_core::form::{FormMapId, Provenance};
use cache_core::key::CopyKey;
use kvtier_engine::EngineError;
use kvtier_engine::run::Form;
use kvtier_engine::run::closing::Closing;
use kvtier_engine::run::engine::{Engine, EngineOptions};
use kvtier_engine::run::request::{Answer, Progress};
use kvtier_tests::closing::{closing, copy_folder, forms, without_cache};
use kvtier_tests::disk::{self, with_disk};
use kvtier_tests::{STRICT, ask, ask_together, fixture, options, request, turn};

fn restarted(directory: &Path, options: EngineOptions, prompt: &[u32], tokens: u32) -> Answer {
    let mut engine = disk::open(with_disk(directory, options));
    let answer = ask(&mut engine, prompt, tokens);
    disk::close(engine);
    answer
}

/// `options` with the least device budget.
fn least_device(options: EngineOptions) -> EngineOptions {
    let tiny = EngineOptions { device_bytes: 4096, ..options.clone() };
    let (model, weights) = (Arc::clone(&fixture().model), fixture().weights);
    let Err(EngineError::Budget { minimum_bytes, .. }) = Engine::open(model, weights, tiny) else {
        panic!("a page is no budget")
    };
    EngineOptions { device_bytes: minimum_bytes, ..options }
}

/// A closed block's only copy is taken away between two tokens.
fn lose_a_closed_block(form: Form, chunk: u32, prompt: &[u32]) -> Answer {
    let options = EngineOptions { chunk, host_bytes: 64 << 20, ..closing(form) };
    let mut engine = fixture().engine(least_device(options));
    assert!(engine.plan().closed_slots <= 2, "nearly all closed blocks are in the host arena");
    let policy = Closing::into_form(form, 64).unwrap();
    let namespace = engine.namespace(None);
    let link = Chain::over(namespace, 64, prompt).links()[3];
    assert_eq!(policy.first_tainted(), 3);
    let form = FormMapId::of(form);
    let key = CopyKey { form, provenance: policy.provenance(), ..CopyKey::exact(namespace, link.hash) };
    assert_ne!(key.provenance, Provenance::EXACT);
    let cache = Arc::clone(engine.closed_cache().expect("blocks are closed"));
    let mut tokens = 0;
    let mut watch = |progress| {
        if let Progress::Token { .. } = progress {
            tokens += 1;
            if tokens == 6 {
                assert!(cache.overwrite_host_copy(&key), "the copy was in the host arena");
            }
        }
    };
    let answer = engine.generate(vec![request(prompt, 12)], &mut watch).pop().unwrap().expect("an answer");
    cache.audit().unwrap();
    engine.cache().audit().unwrap();
    answer
}

#[test]
fn a_lost_closed_block_takes_the_sequence_back_and_is_told() {
    let _turn = turn();
    let prompt = fixture().prompt(1700, 420);
    for form in forms() {
        let [answer, other] = [64, 9].map(|chunk| lose_a_closed_block(form, chunk, &prompt));
        assert_eq!(answer.clamped_at, [192], "{form:?}");
        assert_eq!(answer.recomputed_tokens, 420 + 5 - 192, "{form:?}");
        assert_eq!(answer.misses.iter().sum::<u64>(), 2, "{form:?}: nothing was there before, and one block was lost");
        assert_eq!(answer.tokens.len(), 12);
        assert_eq!((other.logits_digest, other.clamped_at), (answer.logits_digest, answer.clamped_at), "{form:?}");
    }
}

/// What an exact run has stored is closed by a lossy one from the disk, from the host arena over a link, or in place.
#[test]
fn blocks_of_an_exact_run_are_closed_from_wherever_they_are() {
    let _turn = turn();
    let prompt = fixture().prompt(2100, 330);
    let directory = tempfile::tempdir().unwrap();
    restarted(directory.path(), options(), &prompt, 4);
    let form = Form::Kc4vt4;
    let expected = without_cache(form, &prompt, 8);
    for (link, host_bytes) in [(options().link, 40 << 20), (STRICT, 40 << 20), (STRICT, 512 << 20)] {
        let options = EngineOptions { link, host_bytes, ..closing(form) };
        let answer = restarted(directory.path(), least_device(options), &prompt, 8);
        assert_eq!((answer.logits_digest, &answer.clamped_at[..]), (expected, &[][..]), "{link:?}, {host_bytes}");
        assert_eq!(answer.cached_tokens.disk, 192, "what comes before anything lossy: {link:?}, {host_bytes}");
        std::fs::remove_dir_all(directory.path()).unwrap();
        restarted(directory.path(), kvtier_tests::options(), &prompt, 4);
    }
}

/// Closed blocks are read from the disk in several sections each: sequences side by side have memory for whole groups of them, or wait.
#[test]
fn several_lossy_sequences_read_from_the_disk_through_the_least_memory() {
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    let prompts = [100, 1200, 2300, 3400].map(|start| fixture().prompt(start, 400));
    let prompts = prompts.each_ref().map(Vec::as_slice);
    for form in [Form::Kc4vt4, Form::I8h] {
        let store = directory.path().join(form.name());
        let mut engine = disk::open(with_disk(&store, closing(form)));
        ask_together(&mut engine, &prompts, 1);
        disk::close(engine);
        let expected: Vec<[u8; 32]> = prompts
            .iter()
            .enumerate()
            .map(|(index, prompt)| {
                let copy = directory.path().join(format!("{}-{index}", form.name()));
                copy_folder(&store, &copy);
                restarted(&copy, closing(form), prompt, 4).logits_digest
            })
            .collect();
        let options = EngineOptions { link: STRICT, ..closing(form) };
        let mut engine = disk::open(disk::least(with_disk(&store, options)));
        let answers = ask_together(&mut engine, &prompts, 4);
        for (answer, expected) in answers.iter().zip(&expected) {
            assert_eq!((answer.cached_tokens.disk, &answer.clamped_at[..]), (256, &[256][..]), "{form:?}");
            assert_eq!(answer.logits_digest, *expected, "{form:?}");
        }
        disk::close(engine);
    }
}
