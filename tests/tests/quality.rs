//! The instrument that judges stored forms: what it must say of forms whose difference is known.

use std::path::Path;

use kvtier_engine::EngineError;
use kvtier_engine::quality::compare::ExactRow;
use kvtier_engine::quality::gate::{self, Gate};
use kvtier_engine::quality::retrieval::{self, Grid};
use kvtier_engine::quality::tasks::{self, Task, TrialError};
use kvtier_engine::quality::{divergence, greedy, hit};
use kvtier_engine::run::Form;
use kvtier_engine::run::engine::{Engine, EngineOptions};
use kvtier_tests::disk::with_disk;
use kvtier_tests::spoilt::Spoil;
use kvtier_tests::{fixture, options, plain, turn};

fn open(form: Form, store: Option<&Path>) -> Result<Engine, EngineError> {
    let options = match store {
        Some(folder) => with_disk(folder, options()),
        None => plain(),
    };
    Ok(fixture().engine(EngineOptions { form, ..options }))
}

fn quiet(_: usize, _: usize) {}

#[test]
fn exact_kv_does_not_differ_from_itself_and_f32_hardly_does() {
    let _turn = turn();
    let text = fixture().prompt(200, 320);
    let pieces: Vec<&[u32]> = text.chunks_exact(160).collect();
    let measured = divergence::measure(&open, &[Form::Raw16, Form::Raw32], &pieces, &mut quiet).unwrap();
    let [itself, floor] = measured.as_slice() else { panic!("two forms") };
    let summary = &itself.summary;
    assert_eq!((summary.kl_mean, summary.kl_max, summary.top1, summary.ppl_ratio), (0.0, 0.0, 1.0, 1.0));
    assert_eq!((summary.positions, itself.first_difference, itself.bits_per_value), (2 * 79, None, 16.0));
    println!("f32 KV: mean KL {:.2e} over {} positions", floor.summary.kl_mean, floor.summary.positions);
    assert!(floor.summary.kl_mean > 1e-7 && floor.summary.kl_mean < 1e-3, "{:?}", floor.summary);
    assert_eq!((floor.first_difference, floor.floor_kl), (Some(0), floor.summary.kl_mean));
    assert_eq!(itself.floor_kl, floor.summary.kl_mean);
    // The parts are the whole.
    let rows: usize = floor.parts.iter().map(|part| part.summary.positions).sum();
    let sum: f64 = floor.parts[8..].iter().map(|part| part.summary.kl_mean * part.summary.positions as f64).sum();
    assert_eq!(rows, 2 * 159);
    assert!((sum / 158.0 - floor.summary.kl_mean).abs() < 1e-15);
}

#[test]
fn a_text_that_is_too_short_is_refused() {
    let refused = divergence::measure(&open, &[Form::Raw16], &[&[1, 2, 3]], &mut quiet).unwrap_err();
    assert!(matches!(refused, EngineError::Request(_)), "{refused}");
    let refused = Gate::of(Form::Raw16).unwrap().check(&open, &[1; gate::TOKENS - 1]).unwrap_err();
    assert!(refused.to_string().contains("1023"), "{refused}");
}

#[test]
fn lossy_forms_pass_their_gates() {
    let _turn = turn();
    for form in [Form::I8h, Form::Kc4vt4] {
        let findings = Gate::of(form).unwrap().check(&open, &fixture().tokens).unwrap();
        assert_eq!(findings, Vec::<String>::new());
    }
}

/// The gate sees an engine that keeps something else than it says, whichever way it is wrong.
#[test]
fn the_gate_catches_an_engine_with_another_form() {
    let _turn = turn();
    let instead = |really: Form| {
        move |form: Form, store: Option<&Path>| open(if form == Form::I8h { really } else { form }, store)
    };
    let gate = Gate::of(Form::I8h).unwrap();
    // Coarser: too far from exact KV. Exact: not closed at all. Blocks of 128: closed at the wrong positions.
    let coarse = gate.check(&instead(Form::Kc4vt4), &fixture().tokens).unwrap();
    assert!(coarse.iter().any(|finding| finding.contains("mean KL")), "{coarse:?}");
    let exact = gate.check(&instead(Form::Raw16), &fixture().tokens).unwrap();
    assert!(exact.len() == 1 && exact[0].contains("expected Some(192)"), "{exact:?}");
    let wide = |form: Form, _: Option<&Path>| {
        let block_tokens = if form == Form::I8h { 128 } else { 64 };
        Ok(fixture().engine(EngineOptions { form, block_tokens, ..plain() }))
    };
    let measured = divergence::measure(&wide, &[Form::I8h], &[&fixture().tokens[..512]], &mut quiet).unwrap();
    let findings = gate.findings(&measured[0], 64);
    assert!(findings.len() == 1 && findings[0].contains("Some(320)"), "{findings:?}");
}

/// Mistakes in the codec and in the rule of the window turn the gate red, each where it shows.
#[test]
fn the_gate_catches_each_planted_fault() {
    let _turn = turn();
    for under_test in [Form::I8h, Form::Kc4vt4] {
        for (spoil, finding) in [
            (Spoil::ScaleOff, "mean KL"),
            (Spoil::HeadsSwapped, "mean KL"),
            (Spoil::WindowOffByOne, "logits differ from position Some(193)"),
        ] {
            let spoilt = |form: Form, store: Option<&Path>| {
                if form != under_test {
                    return open(form, store);
                }
                Ok(fixture().spoilt_engine(EngineOptions { form, ..plain() }, spoil))
            };
            let findings = Gate::of(under_test).unwrap().check(&spoilt, &fixture().tokens).unwrap();
            assert!(findings.iter().any(|found| found.contains(finding)), "{under_test:?}, {spoil:?}: {findings:?}");
        }
    }
}

/// Logits of every position of `tokens`. A sequence `beside`, of the same length, goes through the same engine in turns of a chunk, or of 64
/// tokens where a chunk is shorter.
fn logits(form: Form, chunk: u32, tokens: &[u32], beside: Option<&[u32]>) -> Vec<Vec<f32>> {
    let mut engine = fixture().engine(EngineOptions { form, chunk, ..plain() });
    let (mut one, mut other) = (engine.open_forced(), engine.open_forced());
    let mut rows = Vec::with_capacity(tokens.len());
    let step = chunk.max(64) as usize;
    for start in (0..tokens.len()).step_by(step) {
        let end = (start + step).min(tokens.len());
        if let Some(beside) = beside {
            engine.advance_forced(&mut other, &beside[start..end], beside.len(), &mut |_, _| ()).unwrap();
        }
        engine.advance_forced(&mut one, &tokens[start..end], 0, &mut |_, row| rows.push(row.to_vec())).unwrap();
    }
    engine.close_forced(one);
    engine.close_forced(other);
    rows
}

/// The mean KL of the instrument is that of logits which have the same bits in chunks of 1, 64 and 512, alone or beside a sequence that
/// begins alike.
#[test]
fn kl_does_not_depend_on_chunks_or_on_a_sequence_beside() {
    let _turn = turn();
    let text = fixture().prompt(700, 400);
    let other: Vec<u32> = text[..290].iter().chain(&fixture().prompt(3000, 110)).copied().collect();
    let forms = [Form::I8h, Form::Kc4vt4, "kc4vt4:k8=15-29".parse().unwrap()];
    let measured = divergence::measure(&open, &forms, &[&text], &mut quiet).unwrap();
    let exact = logits(Form::Raw16, 512, &text, None);
    // The last row predicts nothing of the text.
    let exact: Vec<ExactRow<'_>> = exact[..text.len() - 1].iter().map(|row| ExactRow::new(row)).collect();
    for (form, measured) in forms.into_iter().zip(&measured) {
        let whole = logits(form, 512, &text, None);
        let scored = text.len() / 2..text.len() - 1;
        let kl = |t: usize| exact[t].compare(t, &whole[t], text[t + 1]).kl;
        let mean = scored.clone().map(kl).sum::<f64>() / scored.len() as f64;
        assert_eq!((measured.first_difference, measured.summary.kl_mean), (Some(192), mean), "{form}");
        for (chunk, beside) in [(1, None), (64, None), (64, Some(&other[..])), (512, Some(&other[..]))] {
            let found = logits(form, chunk, &text, beside);
            assert!(found == whole, "{form}: logits in chunks of {chunk}, beside another: {}", beside.is_some());
        }
    }
}

#[test]
fn a_hit_is_compared_with_the_run_that_had_none() {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let piece = fixture().prompt(1000, 1024);
    let of = |form: Form| hit::measure(&open, form, &folder.path().join(form.name()), &[&piece], &mut quiet).unwrap();
    let exact = of(Form::Raw16).expect("lossless blocks are found");
    assert_eq!((exact.found_tokens, exact.hit.positions), (512.0, 64));
    assert_eq!((exact.hit.kl_max, exact.without.kl_max), (0.0, 0.0));
    assert_eq!(of(Form::Raw32), None, "f32 is not published");
    let lossy = of(Form::Kc4vt4).expect("closed blocks are found");
    println!("after a hit: KL {:.2e}, without {:.2e}", lossy.hit.kl_mean, lossy.without.kl_mean);
    assert!(lossy.found_tokens >= 256.0 && lossy.hit.kl_mean > 0.0, "{lossy:?}");
    assert_ne!(lossy.hit.kl_mean, lossy.without.kl_mean, "the window was computed over closed blocks");
}

#[test]
fn greedy_continuations_of_exact_kv_agree() {
    let _turn = turn();
    let prompts = [fixture().prompt(0, 100), fixture().prompt(500, 230)];
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let mut last = (0, 0);
    let found = greedy::measure(&open, &[Form::Raw16], &prompts, 12, &mut |done, total| last = (done, total)).unwrap();
    assert_eq!((found[0].prompts, found[0].identical, found[0].tokens, found[0].agreeing), (2, 2, 24, 24));
    assert_eq!(last, (2 * (330 + 24), 2 * (330 + 24)));
}

#[test]
fn trials_hold_their_facts_at_their_depths() {
    let tokenizer = &fixture().tokenizer;
    for task in Task::ALL {
        for depth in 0..5 {
            let trial = tasks::draw(task, 700, (depth, 5), 3, tokenizer).unwrap();
            assert_eq!(trial, tasks::draw(task, 700, (depth, 5), 3, tokenizer).unwrap(), "a seed repeats itself");
            assert_ne!(trial, tasks::draw(task, 700, (depth, 5), 4, tokenizer).unwrap());
            let length = trial.tokens.len();
            assert!((690..=700).contains(&length) && trial.answer.end == length, "{task:?}: {length}");
            let answer = &trial.tokens[trial.answer.clone()];
            let stated = trial.tokens.windows(answer.len()).position(|part| part == answer).unwrap();
            let expected = depth * (length - 60) / 4;
            assert!(stated.abs_diff(expected) < 120, "{task:?} at {depth}: stated at {stated}, about {expected}");
            assert!(stated + answer.len() < trial.answer.start);
        }
        assert!(matches!(tasks::draw(task, 30, (0, 5), 3, tokenizer), Err(TrialError::Length { length: 30 })));
    }
}

#[test]
fn retrieval_over_exact_kv_loses_nothing_and_a_passkey_is_found() {
    let _turn = turn();
    let grid = Grid { tokens: 512, depths: 3, seeds: 1 };
    let found = retrieval::measure(&open, &[Form::Raw16], grid, &fixture().tokenizer, &mut quiet).unwrap();
    assert_eq!(found.len(), Task::ALL.len());
    for row in &found {
        println!("{}: {:.0} % right", row.task.name(), 100.0 * row.exact_right);
        let difference = row.difference;
        assert_eq!((difference.mean, difference.low, difference.high), (0.0, 0.0, 0.0));
        assert_eq!((row.questions, row.exact_right), (3, row.form_right));
        assert!(row.depths.iter().all(|depth| depth.exact < 0.0 && depth.exact == depth.form));
    }
    assert!(found[0].is_usable(), "{:?}", found[0]);
}
