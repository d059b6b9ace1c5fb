//! Lossy closing on the real model: which bits an answer depends on, and which copies a reader may take.

use std::path::Path;
use std::sync::Arc;

use cache_core::chain::Chain;
use cache_core::form::{FormMapId, Provenance};
use cache_core::key::CopyKey;
use kvtier_engine::EngineError;
use kvtier_engine::run::Form;
use kvtier_engine::run::closing::Closing;
use kvtier_engine::run::engine::{Engine, EngineOptions};
use kvtier_engine::run::request::{Answer, Progress, Request};
use kvtier_tests::disk::{self, with_disk};
use kvtier_tests::{STRICT, ask, ask_together, fixture, options, plain, request, turn};

/// Two uniform forms, and a map that has each of the four pairs of keys and values in some layer.
fn forms() -> [Form; 3] {
    ["i8h", "kc4vt4", "kc4vt4:k8=0-3+17-29:v8=0+10-19"].map(|name| name.parse().unwrap())
}

fn closing(form: Form) -> EngineOptions {
    EngineOptions { form, ..options() }
}

fn without_cache(form: Form, prompt: &[u32], tokens: u32) -> [u8; 32] {
    ask(&mut fixture().engine(EngineOptions { form, ..plain() }), prompt, tokens).logits_digest
}

fn cached(answer: &Answer) -> u32 {
    answer.cached_tokens.device + answer.cached_tokens.host + answer.cached_tokens.disk
}

#[test]
fn bits_depend_on_the_form_alone() {
    let _turn = turn();
    let prompt = fixture().prompt(100, 330);
    let exact = without_cache(Form::Raw16, &prompt, 24);
    let mut seen = vec![exact];
    for form in forms() {
        let expected = without_cache(form, &prompt, 24);
        assert!(!seen.contains(&expected), "{form:?} is the form that it says it is");
        seen.push(expected);
        let engines = [
            ("chunk 1", EngineOptions { chunk: 1, ..closing(form) }),
            ("chunk 7", EngineOptions { chunk: 7, ..closing(form) }),
            ("chunk 64", EngineOptions { chunk: 64, ..closing(form) }),
            ("one thread", EngineOptions { threads: 1, ..closing(form) }),
            ("a link", EngineOptions { link: STRICT, ..closing(form) }),
            ("little memory over a link", EngineOptions { link: STRICT, device_bytes: 12 << 20, ..closing(form) }),
            ("little memory in place", EngineOptions { device_bytes: 12 << 20, host_bytes: 64 << 20, ..closing(form) }),
        ];
        for (name, options) in engines {
            let answer = ask(&mut fixture().engine(options), &prompt, 24);
            assert_eq!(answer.logits_digest, expected, "{form:?}, {name}");
            assert!(answer.clamped_at.is_empty(), "{form:?}, {name}");
        }
        let other: Vec<u32> = prompt[..290].iter().chain(&fixture().prompt(3000, 90)).copied().collect();
        for chunk in [1, 64, 512] {
            let options = EngineOptions { chunk, ..closing(form) };
            let together = ask_together(&mut fixture().engine(options), &[&prompt, &other, &prompt], 24);
            for index in [0, 2] {
                let answer = &together[index];
                assert_eq!(
                    (answer.logits_digest, &answer.clamped_at[..]),
                    (expected, &[][..]),
                    "{form:?} beside others in chunks of {chunk}"
                );
            }
        }
    }
}

#[test]
fn a_hit_with_its_lossless_window_leaves_no_trace() {
    let _turn = turn();
    let prompt = fixture().prompt(500, 460);
    for form in forms() {
        let mut engine = fixture().engine(closing(form));
        let cold = ask(&mut engine, &prompt, 8);
        let warm = ask(&mut engine, &prompt, 8);
        assert_eq!(cached(&warm), 448, "{form:?}");
        assert_eq!((warm.logits_digest, &warm.clamped_at[..]), (cold.logits_digest, &[][..]), "{form:?}");
        assert_eq!(cold.logits_digest, without_cache(form, &prompt, 8), "{form:?}");
    }
}

fn restarted(directory: &Path, options: EngineOptions, prompt: &[u32], tokens: u32) -> Answer {
    let mut engine = disk::open(with_disk(directory, options));
    let answer = ask(&mut engine, prompt, tokens);
    disk::close(engine);
    answer
}

#[test]
fn after_a_restart_the_last_closed_block_is_computed_again_and_equal_clamps_give_equal_bits() {
    let _turn = turn();
    let prompt = fixture().prompt(900, 600);
    for form in forms() {
        let directory = tempfile::tempdir().unwrap();
        let cold = restarted(directory.path(), closing(form), &prompt, 8);
        assert_eq!(cold.logits_digest, without_cache(form, &prompt, 8));
        let copy = |name: &str| {
            let target = directory.path().with_file_name(format!("{name}-{form}-{}", std::process::id()));
            copy_folder(directory.path(), &target);
            target
        };
        // 599 / 64 = 9 full blocks; the last that is closed while these 607 positions are read is block 7.
        let stores = [copy("a"), copy("b"), copy("c")];
        let answers = [
            restarted(&stores[0], closing(form), &prompt, 8),
            restarted(&stores[1], EngineOptions { chunk: 5, ..closing(form) }, &prompt, 8),
            restarted(&stores[2], EngineOptions { link: STRICT, ..closing(form) }, &prompt, 8),
        ];
        stores.iter().for_each(|store| std::fs::remove_dir_all(store).unwrap());
        for answer in &answers {
            assert_eq!(answer.cached_tokens.disk, 448, "{form:?}");
            assert_eq!(answer.clamped_at, [448], "{form:?}");
            assert_eq!(answer.logits_digest, answers[0].logits_digest, "{form:?}");
        }
        assert_ne!(answers[0].logits_digest, cold.logits_digest, "{form:?}: a clamp is not without effect");
        // What was computed after the clamp is found again by whoever is clamped there.
        let again = restarted(directory.path(), closing(form), &prompt, 8);
        let third = restarted(directory.path(), closing(form), &prompt, 8);
        assert_eq!(again.logits_digest, answers[0].logits_digest);
        assert_eq!((third.logits_digest, third.clamped_at), (again.logits_digest, again.clamped_at));
    }
}

/// Two maps whose slots and sections have the same sizes share a store: each finds its own closed blocks, and lossless ones alone of the other.
#[test]
fn maps_take_no_closed_copy_of_each_other() {
    let _turn = turn();
    let prompt = fixture().prompt(2100, 420);
    let [one, other] = ["kc4vt4:k8=3:v8=4", "kc4vt4:k8=4:v8=3"].map(|name| name.parse::<Form>().unwrap());
    let directory = tempfile::tempdir().unwrap();
    let first = restarted(directory.path(), closing(one), &prompt, 4);
    let second = restarted(directory.path(), closing(other), &prompt, 4);
    // Blocks 0 to 2 come before anything lossy.
    assert_eq!((cached(&first), cached(&second)), (0, 192));
    assert_eq!(second.logits_digest, without_cache(other, &prompt, 4));
    assert_ne!(second.logits_digest, first.logits_digest);
    for form in [one, other] {
        let again = restarted(directory.path(), closing(form), &prompt, 4);
        assert!(again.cached_tokens.disk > 192, "{form}: {:?}", again.cached_tokens);
    }
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn an_exact_request_takes_nothing_tainted_and_finds_its_own_blocks_again() {
    let _turn = turn();
    let prompt = fixture().prompt(1300, 200);
    for form in forms() {
        let mut engine = fixture().engine(closing(form));
        let lossy = ask(&mut engine, &prompt, 256);
        let told: Vec<u32> = prompt.iter().chain(&lossy.tokens).copied().collect();
        let exact = |engine: &mut _| {
            let request = Request { exact: true, ..request(&told, 4) };
            let engine: &mut kvtier_engine::run::engine::Engine = engine;
            engine.generate(vec![request], &mut |_| {}).pop().unwrap().unwrap()
        };
        let first = exact(&mut engine);
        // Blocks 0 to 2 come before anything lossy.
        assert_eq!(cached(&first), 192, "{form:?}");
        assert_eq!(first.logits_digest, without_cache(Form::Raw16, &told, 4), "{form:?}");
        let second = exact(&mut engine);
        assert_eq!(cached(&second), (told.len() as u32 - 1) / 64 * 64, "{form:?}");
        assert_eq!(second.logits_digest, first.logits_digest, "{form:?}");
        let lossy_again = ask(&mut engine, &prompt, 256);
        assert_eq!(lossy_again.tokens, lossy.tokens, "{form:?}");
    }
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
