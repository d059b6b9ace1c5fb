//! The model is right: log-probabilities of the reference path against `transformers` in float32, and the shipped path against the
//! reference. Golden values: `engine/tests/golden/reference.py`, which records versions and the file's SHA-256.

use std::sync::{Arc, OnceLock};

use kvtier_engine::model::{Model, Path};
use kvtier_engine::run::Form;
use kvtier_engine::run::engine::{Engine, EngineOptions};
use kvtier_tests::golden::{Golden, load, worst_difference};
use kvtier_tests::{fixture, plain, turn};

fn reference_model() -> Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    Arc::clone(
        MODEL.get_or_init(|| Arc::new(Model::load(&fixture().file, Path::Reference).expect("a supported model"))),
    )
}

fn reference() -> Engine {
    Engine::open(reference_model(), fixture().weights, EngineOptions { form: Form::Raw32, ..plain() })
        .expect("an engine")
}

#[test]
fn the_reference_path_agrees_with_transformers() {
    let _turn = turn();
    let mut engine = reference();
    for golden in load("logprobs.json") {
        let worst = worst_difference(&mut engine, &golden);
        println!("{}: {} tokens, largest difference {worst:.5}", golden.name, golden.tokens.len());
        assert!(worst <= 0.01, "{}: {worst}", golden.name);
    }
}

/// A rig must catch its planted bug: one wrong token id moves the log-probabilities after it.
#[test]
fn a_wrong_token_would_be_seen() {
    let _turn = turn();
    let mut golden: Golden = load("logprobs.json").swap_remove(1);
    golden.tokens[3] = (golden.tokens[3] + 1) % 40_000;
    assert!(worst_difference(&mut reference(), &golden) > 0.1);
}

/// Mean KL(reference || shipped) over every position of the golden prompts up to 256 tokens.
#[test]
fn the_shipped_path_stays_close_to_the_reference() {
    let _turn = turn();
    let prompts: Vec<Vec<u32>> =
        load("logprobs.json").into_iter().map(|golden| golden.tokens).filter(|tokens| tokens.len() <= 256).collect();
    for (form, bar) in [(Form::Raw32, 1e-5), (Form::Raw16, 1e-4)] {
        let (mut sum, mut rows) = (0.0, 0);
        for tokens in &prompts {
            let mut exact = Vec::new();
            reference().teacher_force(tokens, &mut |_| {}, &mut |_, logits| exact.push(logits.to_vec())).unwrap();
            let mut shipped = fixture().engine(EngineOptions { form, ..plain() });
            shipped
                .teacher_force(tokens, &mut |_| {}, &mut |position, logits| {
                    sum += kl(&exact[position], logits);
                    rows += 1;
                })
                .unwrap();
        }
        let mean = sum / f64::from(rows);
        println!("{} KV: mean KL {mean:.2e} over {rows} positions", form.name());
        assert!(mean <= bar, "{}: {mean:e}", form.name());
        assert!(mean > 0.0, "the two paths differ in their arithmetic");
    }
}

/// KL(p || q) of two rows of logits, in nats.
fn kl(p: &[f32], q: &[f32]) -> f64 {
    let log_total = |logits: &[f32]| {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        f64::from(largest) + logits.iter().map(|logit| f64::from(logit - largest).exp()).sum::<f64>().ln()
    };
    let (p_total, q_total) = (log_total(p), log_total(q));
    p.iter()
        .zip(q)
        .map(|(p, q)| {
            let p = f64::from(*p) - p_total;
            p.exp() * (p - (f64::from(*q) - q_total))
        })
        .sum()
}
