//! Load or compute: where the two meet makes no difference to bits, and is told.

use std::time::{Duration, Instant};

use kvtier_engine::run::engine::EngineOptions;
use kvtier_engine::run::request::Answer;
use kvtier_engine::run::{Form, LoadPolicy, MissReason};
use kvtier_tests::disk::{expected, with_disk};
use kvtier_tests::{STRICT, ask, fixture, options, request, turn};

use crate::{close, open};

const BLOCK: u32 = 16;

/// Small blocks: every meeting point is a prompt of its own.
fn small() -> EngineOptions {
    EngineOptions { block_tokens: BLOCK, ..options() }
}

/// What became of the prompt's blocks: loaded from the disk, computed although they were there, and never there.
fn blocks(answer: &Answer) -> (u32, u64, u32) {
    let found = answer.cached_tokens;
    assert_eq!((found.device, found.host), (0, 0), "they were on the disk");
    (found.disk / BLOCK, answer.misses[MissReason::NotWorthIt as usize], answer.prefill_tokens)
}

/// Six full blocks on the disk, and every place where loading and computing can meet.
#[test]
fn every_meeting_point_gives_the_same_bits() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let prompt = fixture().prompt(300, 6 * BLOCK as usize + 10);
    let expected = expected(&prompt, 4);
    let mut first = open(with_disk(folder.path(), small()));
    assert_eq!(ask(&mut first, &prompt, 4).logits_digest, expected);
    close(first);
    for (link, chunk) in [(options().link, 512), (STRICT, 24)] {
        for meet in [0, 1, 2, 3, 4, 5, 6, 8] {
            let load = LoadPolicy::MeetAt(meet);
            let mut engine = open(with_disk(folder.path(), EngineOptions { load, link, chunk, ..small() }));
            let answer = ask(&mut engine, &prompt, 4);
            assert_eq!(answer.logits_digest, expected, "{link:?}, meeting at {meet}");
            let computed = meet.min(6);
            let told = (6 - computed, u64::from(computed), computed * BLOCK + 10);
            assert_eq!(blocks(&answer), told, "{link:?}, meeting at {meet}");
            assert_eq!(answer.recomputed_tokens, 0);
            // What was loaded ahead is nobody's now, and what is in memory is found there, wherever the two were to meet.
            let again = ask(&mut engine, &prompt, 4);
            assert_eq!(
                (again.logits_digest, again.prefill_tokens),
                (expected, 10),
                "{link:?}, meeting at {meet}, again"
            );
            assert_eq!(again.misses[MissReason::NotWorthIt as usize], 0);
            close(engine);
        }
    }
}

/// Several at once over the same blocks, and one that ends in the middle of its loads.
#[test]
fn sequences_side_by_side_meet_as_well() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let prompt = fixture().prompt(300, 6 * BLOCK as usize + 10);
    let other = fixture().prompt(300, 5 * BLOCK as usize + 3);
    let digests = [expected(&prompt, 4), expected(&other, 4)];
    let mut first = open(with_disk(folder.path(), small()));
    ask(&mut first, &prompt, 4);
    close(first);
    let load = LoadPolicy::MeetAt(3);
    let mut engine = open(with_disk(folder.path(), EngineOptions { load, chunk: 16, ..small() }));
    let requests = vec![request(&prompt, 4), request(&other, 4), request(&prompt, 4)];
    let answers = engine.generate(requests, &mut |_| {});
    for (answer, digest) in answers.iter().zip([digests[0], digests[1], digests[0]]) {
        assert_eq!(answer.as_ref().unwrap().logits_digest, digest);
    }
    close(engine);
    // The flag stops requests before their next step: in the middle of what they compute in front of their loads.
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut stopped = open(with_disk(folder.path(), EngineOptions { load, chunk: 16, ..small() }));
    stopped.stop_when(std::sync::Arc::clone(&stop));
    let answers = stopped.generate(vec![request(&prompt, 4)], &mut |_| {
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(answers[0].is_err());
    close(stopped);
}

/// What a lossy sequence computes after a hit depends on the hit: it always loads.
#[test]
fn a_lossy_sequence_loads_whatever_is_asked_for() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let prompt = fixture().prompt(300, 5 * 64 + 10);
    let lossy = |load| EngineOptions { form: Form::Kc4vt4, load, ..options() };
    let ask_new = |load| {
        let mut engine = open(with_disk(folder.path(), lossy(load)));
        let answer = ask(&mut engine, &prompt, 2);
        close(engine);
        answer
    };
    ask_new(LoadPolicy::Always);
    let loaded = ask_new(LoadPolicy::Always);
    assert!(loaded.cached_tokens.disk > 0);
    let asked_otherwise = ask_new(LoadPolicy::MeetAt(3));
    assert_eq!(asked_otherwise.logits_digest, loaded.logits_digest);
    assert_eq!(
        (asked_otherwise.cached_tokens, asked_otherwise.clamped_at),
        (loaded.cached_tokens, loaded.clamped_at.clone())
    );
}

/// On any machine: without a measurement everything is loaded, and what an engine does later is right, whatever it measured.
#[test]
fn auto_loads_before_it_has_measured_and_is_right_afterwards() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let prompts: Vec<Vec<u32>> = (0..3).map(|turn| fixture().prompt(200 * turn, 4 * BLOCK as usize + 10)).collect();
    let mut first = open(with_disk(folder.path(), small()));
    prompts.iter().for_each(|prompt| drop(ask(&mut first, prompt, 4)));
    close(first);
    let mut engine = open(with_disk(folder.path(), EngineOptions { load: LoadPolicy::Auto, ..small() }));
    let began = Instant::now();
    for (turn, prompt) in prompts.iter().enumerate() {
        let answer = ask(&mut engine, prompt, 4);
        assert_eq!(answer.logits_digest, expected(prompt, 4));
        let (loaded, computed, _) = blocks(&answer);
        assert_eq!(u64::from(loaded) + computed, 4, "each block is loaded or told of");
        assert!(turn > 0 || loaded == 4, "nothing was measured yet");
    }
    assert!(began.elapsed() < Duration::from_secs(600));
    close(engine);
}
