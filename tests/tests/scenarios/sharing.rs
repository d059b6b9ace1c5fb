//! What two prompts share: equal prefixes, once; nothing after the first difference; nothing across salts.

use crate::open;
use kvtier_engine::run::engine::EngineOptions;
use kvtier_tests::{ask, fixture, options, request, turn};

#[test]
fn a_shared_prefix_is_stored_once() {
    let _turn = turn();
    let fixture = fixture();
    let mut engine = open(options());
    let document = fixture.prompt(0, 600);
    let first: Vec<u32> = document.iter().chain(&fixture.prompt(3000, 30)).copied().collect();
    let second: Vec<u32> = document.iter().chain(&fixture.prompt(4000, 50)).copied().collect();
    ask(&mut engine, &first, 1);
    let blocks = engine.cache_stats().blocks;
    let answer = ask(&mut engine, &second, 1);
    // 9 full blocks of the document; the rest of it and the second tail are computed.
    assert_eq!(answer.cached_tokens.device, 576);
    assert_eq!(answer.prefill_tokens, 600 - 576 + 50);
    assert!(answer.prefill_tokens <= 50 + 63);
    assert_eq!(engine.cache_stats().blocks - blocks, (650 / 64) - 9);
}

#[test]
fn one_early_token_shares_only_the_blocks_before_it() {
    let _turn = turn();
    let fixture = fixture();
    let mut engine = open(options());
    let prompt = fixture.prompt(0, 500);
    ask(&mut engine, &prompt, 1);
    let mut other = prompt.clone();
    other[130] = (other[130] + 1) % 1000 + 100;
    let answer = ask(&mut engine, &other, 1);
    assert_eq!(answer.cached_tokens.device, 128);
    assert_eq!(answer.misses.iter().sum::<u64>(), 1);
    assert_eq!(answer.misses[0], 1, "never stored");
}

#[test]
fn another_salt_shares_nothing() {
    let _turn = turn();
    let fixture = fixture();
    let mut engine = open(options());
    let prompt = fixture.prompt(0, 300);
    let salted = |salt: Option<&str>| {
        let mut request = request(&prompt, 4);
        request.salt = salt.map(str::to_owned);
        request
    };
    for (salt, cached) in [(None, 0), (Some("a"), 0), (Some("b"), 0), (Some(""), 0), (None, 256), (Some("a"), 256)] {
        let answer = engine.generate(vec![salted(salt)], &mut |_| {}).pop().unwrap().unwrap();
        assert_eq!(answer.cached_tokens.device + answer.cached_tokens.host, cached, "{salt:?}");
    }
}

/// Two equal prompts side by side: the second waits for the first one's blocks instead of computing them again.
#[test]
fn equal_prompts_side_by_side_are_computed_once() {
    let _turn = turn();
    let fixture = fixture();
    let mut engine = open(EngineOptions { chunk: 64, ..options() });
    let prompt = fixture.prompt(100, 400);
    let results = engine.generate(vec![request(&prompt, 8), request(&prompt, 8)], &mut |_| {});
    let answers: Vec<_> = results.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers[0].logits_digest, answers[1].logits_digest);
    assert!(answers[1].prefill_tokens <= 64 + 16, "{}", answers[1].prefill_tokens);
    assert_eq!(engine.cache_stats().blocks, 400 / 64);
    let misses = |answer: &kvtier_engine::run::request::Answer| answer.misses.iter().sum::<u64>();
    assert_eq!((misses(&answers[0]), misses(&answers[1])), (1, 0), "waiting for another's block is no miss");
    assert_eq!(engine.cache_stats().misses.iter().sum::<u64>(), 1);
}

/// The next turn of a conversation computes its new tokens and at most 63 of the last block.
#[test]
fn blocks_written_by_decode_are_found_again() {
    let _turn = turn();
    let fixture = fixture();
    let mut engine = open(options());
    let mut prompt = fixture.prompt(0, 250);
    let answer = ask(&mut engine, &prompt, 200);
    prompt.extend(&answer.tokens);
    prompt.extend(fixture.prompt(5000, 20));
    let next = ask(&mut engine, &prompt, 4);
    assert!(next.prefill_tokens <= 20 + 63 + 1, "{}", next.prefill_tokens);
    let cold = ask(&mut open(options()), &prompt, 4);
    assert_eq!(next.logits_digest, cold.logits_digest);
}
