//! Lossy closing: which bits an answer depends on, and which copies a reader may take.

use std::path::Path;

use kvtier_engine::run::Form;
use kvtier_engine::run::engine::{Engine, EngineOptions};
use kvtier_engine::run::request::{Answer, Request};
use kvtier_tests::closing::{cached, closing, copy_folder, forms, without_cache};
use kvtier_tests::disk::with_disk;
use kvtier_tests::{STRICT, ask, ask_together, fixture, request, turn};

use crate::{close, open};

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
            let answer = ask(&mut open(options), &prompt, 24);
            assert_eq!(answer.logits_digest, expected, "{form:?}, {name}");
            assert!(answer.clamped_at.is_empty(), "{form:?}, {name}");
        }
        let other: Vec<u32> = prompt[..290].iter().chain(&fixture().prompt(3000, 90)).copied().collect();
        for chunk in [1, 64, 512] {
            let options = EngineOptions { chunk, ..closing(form) };
            let together = ask_together(&mut open(options), &[&prompt, &other, &prompt], 24);
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
        let mut engine = open(closing(form));
        let cold = ask(&mut engine, &prompt, 8);
        let warm = ask(&mut engine, &prompt, 8);
        assert_eq!(cached(&warm), 448, "{form:?}");
        assert_eq!((warm.logits_digest, &warm.clamped_at[..]), (cold.logits_digest, &[][..]), "{form:?}");
        assert_eq!(cold.logits_digest, without_cache(form, &prompt, 8), "{form:?}");
    }
}

fn restarted(directory: &Path, options: EngineOptions, prompt: &[u32], tokens: u32) -> Answer {
    let mut engine = open(with_disk(directory, options));
    let answer = ask(&mut engine, prompt, tokens);
    close(engine);
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

#[test]
fn an_exact_request_takes_nothing_tainted_and_finds_its_own_blocks_again() {
    let _turn = turn();
    let prompt = fixture().prompt(1300, 200);
    for form in forms() {
        let mut engine = open(closing(form));
        let lossy = ask(&mut engine, &prompt, 256);
        let told: Vec<u32> = prompt.iter().chain(&lossy.tokens).copied().collect();
        let exact = |engine: &mut Engine| {
            let request = Request { exact: true, ..request(&told, 4) };
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
