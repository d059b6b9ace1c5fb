//! Canonical numerics: the logits of a token depend on the model and the token ids alone.
//!
//! Each scenario answers six prompts of 40 to 700 tokens with 64 tokens each and compares the digest of all logits, bit for bit, with a
//! run without any cache. Longer prompts run in `soak engine`.

use std::sync::OnceLock;

use crate::open;
use gpu_tier::cpu::isa::Isa;
use kvtier_engine::run::engine::EngineOptions;
use kvtier_tests::{STRICT, TOKEN_BYTES, ask, ask_together, fixture, options, plain, request, turn};

const LENGTHS: [usize; 6] = [40, 91, 160, 257, 400, 700];
const TOKENS: u32 = 64;

fn prompts() -> Vec<Vec<u32>> {
    LENGTHS.iter().enumerate().map(|(index, length)| fixture().prompt(index * 700, *length)).collect()
}

/// Digests without any cache.
fn expected() -> &'static Vec<[u8; 32]> {
    static EXPECTED: OnceLock<Vec<[u8; 32]>> = OnceLock::new();
    EXPECTED.get_or_init(|| digests(plain()))
}

fn digests(options: EngineOptions) -> Vec<[u8; 32]> {
    let mut engine = open(options);
    prompts().iter().map(|prompt| ask(&mut engine, prompt, TOKENS).logits_digest).collect()
}

#[test]
fn chunk_size_leaves_no_trace() {
    let _turn = turn();
    for chunk in [1, 7, 64] {
        assert_eq!(&digests(EngineOptions { chunk, ..options() }), expected(), "chunk {chunk}");
    }
}

#[test]
fn threads_leave_no_trace() {
    let _turn = turn();
    assert_eq!(&digests(EngineOptions { threads: 1, ..options() }), expected());
}

/// The scalar twin takes minutes for what the others do in seconds, so it answers a short prompt.
#[test]
fn instruction_sets_give_the_same_bits() {
    let _turn = turn();
    if Isa::available().contains(&Isa::Avx2) {
        assert_eq!(&digests(EngineOptions { isa: Isa::Avx2, ..options() }), expected());
    }
    let prompt = &prompts()[0];
    let of = |isa| ask(&mut open(EngineOptions { isa, ..options() }), prompt, 4).logits_digest;
    for isa in Isa::available() {
        assert_eq!(of(isa), of(Isa::detect()), "{}", isa.name());
    }
}

#[test]
fn block_size_leaves_no_trace() {
    let _turn = turn();
    for block_tokens in [16, 256] {
        assert_eq!(&digests(EngineOptions { block_tokens, ..options() }), expected(), "{block_tokens} tokens a block");
    }
}

#[test]
fn company_leaves_no_trace() {
    let _turn = turn();
    let prompts = prompts();
    let mut engine = open(options());
    let all: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let answers = ask_together(&mut engine, &all, TOKENS);
    assert_eq!(&answers.iter().map(|answer| answer.logits_digest).collect::<Vec<_>>(), expected());
}

/// Cold, then warm: every full block but the one of the last token is a hit.
#[test]
fn warm_from_device_equals_cold() {
    let _turn = turn();
    let mut engine = open(options());
    for (prompt, expected) in prompts().iter().zip(expected()) {
        assert_eq!(&ask(&mut engine, prompt, TOKENS).logits_digest, expected);
        let warm = ask(&mut engine, prompt, TOKENS);
        assert_eq!(&warm.logits_digest, expected);
        assert_eq!(warm.cached_tokens.device, (prompt.len() as u32 - 1) / 64 * 64);
        assert_eq!(warm.prefill_tokens, prompt.len() as u32 - warm.cached_tokens.device);
    }
}

/// A device that holds one prompt at a time sends each one's blocks to the host before it is asked again.
fn warm_from_host(options: EngineOptions) {
    let mut engine = open(EngineOptions { device_bytes: 800 * TOKEN_BYTES + (12 << 20), ..options });
    let prompts = prompts();
    for prompt in &prompts {
        ask(&mut engine, prompt, TOKENS);
    }
    let mut from_host = 0;
    for (prompt, expected) in prompts.iter().zip(expected()) {
        let warm = ask(&mut engine, prompt, TOKENS);
        assert_eq!(&warm.logits_digest, expected);
        from_host += warm.cached_tokens.host;
    }
    assert!(from_host > 500, "{from_host} tokens came from the host");
    let memory = engine.memory();
    assert!(memory.peak_bytes <= memory.budget_bytes);
}

#[test]
fn warm_from_host_in_place_equals_cold() {
    let _turn = turn();
    warm_from_host(options());
}

#[test]
fn warm_from_host_over_the_link_equals_cold() {
    let _turn = turn();
    warm_from_host(EngineOptions { link: STRICT, ..options() });
}

/// An eighth of the KV on the device, the rest in the host arena, which attention cannot read: its mapping is PROT_NONE.
#[test]
fn an_eighth_of_the_kv_on_the_device_is_enough() {
    let _turn = turn();
    for (prompt, expected) in prompts().iter().zip(expected()) {
        let kv = (prompt.len() as u64 + u64::from(TOKENS)) * TOKEN_BYTES;
        // A step needs one block of 16 tokens and its scratch; only the longer prompts have an eighth that is more than that.
        let device_bytes = (kv / 8).max(600 << 10);
        for link in [STRICT, options().link] {
            let mut engine = open(EngineOptions { block_tokens: 16, device_bytes, link, ..options() });
            if link == STRICT {
                engine.cache().protect_host_reader().unwrap();
            }
            let answer = ask(&mut engine, prompt, TOKENS);
            assert_eq!(&answer.logits_digest, expected, "{} tokens, {link:?}", prompt.len());
            let memory = engine.memory();
            assert!(memory.peak_bytes <= device_bytes, "{} of {device_bytes}", memory.peak_bytes);
            if link == STRICT {
                assert_eq!(engine.traffic().attended_host_bytes, 0);
            }
        }
    }
}

/// Neither sequence fits the device beside the other; both finish.
#[test]
fn two_sequences_beyond_the_device_both_finish() {
    let _turn = turn();
    let prompts = prompts();
    for link in [STRICT, options().link] {
        let mut engine = open(EngineOptions { device_bytes: 500 * TOKEN_BYTES, link, ..options() });
        let answers = ask_together(&mut engine, &[&prompts[4], &prompts[5]], TOKENS);
        assert_eq!([answers[0].logits_digest, answers[1].logits_digest], [expected()[4], expected()[5]]);
        let memory = engine.memory();
        assert!(memory.peak_bytes <= memory.budget_bytes);
    }
}

/// Neither budget holds both: one waits until the other has finished, and is computed from the start.
#[test]
fn sequences_beyond_both_budgets_take_turns() {
    let _turn = turn();
    let prompts = prompts();
    let small =
        EngineOptions { device_bytes: 500 * TOKEN_BYTES, host_bytes: 500 * TOKEN_BYTES, link: STRICT, ..options() };
    let mut engine = open(small);
    let answers = ask_together(&mut engine, &[&prompts[4], &prompts[5]], TOKENS);
    assert_eq!([answers[0].logits_digest, answers[1].logits_digest], [expected()[4], expected()[5]]);
}

/// One that the budgets cannot hold even alone ends with a sentence; its neighbour does not notice.
#[test]
fn a_sequence_beyond_all_budgets_ends_alone() {
    let _turn = turn();
    let prompts = prompts();
    let small = EngineOptions {
        device_bytes: 200 * TOKEN_BYTES,
        host_bytes: 16 << 20,
        link: STRICT,
        block_tokens: 16,
        ..options()
    };
    let mut engine = open(small);
    let requests = vec![request(&fixture().prompt(0, 2000), TOKENS), request(&prompts[1], TOKENS)];
    let results = engine.generate(requests, &mut |_| {});
    let refusal = results[0].as_ref().unwrap_err();
    assert!(refusal.is_unfinished());
    assert!(refusal.to_string().contains("--device-mem"), "{refusal}");
    assert_eq!(results[1].as_ref().unwrap().logits_digest, expected()[1]);
}
