//! What scripts rely on: with `--json`, stdout holds one object a line and nothing else, with the documented fields.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use serde_json::Value;

fn json_lines(args: &[&str], input: &str) -> Vec<Value> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kvtier"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("the binary reads");
    let output = child.wait_with_output().expect("the binary ends");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("one object a line")).collect()
}

fn document(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(text.as_bytes()).expect("a written file");
    file
}

const TEXT: &str = include_str!("../assets/moby-dick.txt");

#[test]
fn run_prints_one_object_per_question() {
    let file = document(&TEXT[..2500]);
    let path = file.path().to_str().unwrap();
    let args = [
        "run",
        "--json",
        "--file",
        path,
        "--ask",
        "Who speaks?",
        "--ask",
        "Where?",
        "--max-tokens",
        "6",
        "--ignore-eos",
    ];
    let answers = json_lines(&args, "");
    assert_eq!(answers.len(), 2);
    for answer in &answers {
        assert_eq!(answer["tokens"].as_array().unwrap().len(), 6);
        assert_eq!(answer["logits_digest"].as_str().unwrap().len(), 64);
        for field in ["request_id", "text"] {
            assert!(answer[field].is_string(), "{field}");
        }
        let numbers = [
            "prompt_tokens",
            "computed_tokens",
            "recomputed_tokens",
            "ttft_ms",
            "prefill_tok_s",
            "decode_tok_s",
            "peak_device_bytes",
        ];
        for field in numbers {
            assert!(answer[field].is_number(), "{field}");
        }
        for tier in ["device", "host", "disk"] {
            assert!(answer["cached_tokens"][tier].is_number(), "{tier}");
        }
        assert_eq!(answer["misses"].as_object().unwrap().len(), 11);
    }
    let (cached, prompt) = (&answers[1]["cached_tokens"], answers[1]["prompt_tokens"].as_u64().unwrap());
    let cached = cached["device"].as_u64().unwrap() + cached["host"].as_u64().unwrap();
    assert!(cached > 400 && cached % 64 == 0 && cached < prompt);

    // The same first question without a cache and with another chunk: equal bits.
    let plain = [&args[..5], &["Who speaks?"], &args[8..], &["--no-cache", "--chunk", "33"]].concat();
    assert_eq!(json_lines(&plain, "")[0]["logits_digest"], answers[0]["logits_digest"]);
}

#[test]
fn a_seed_repeats_and_another_does_not() {
    let file = document("Once upon a time");
    let path = file.path().to_str().unwrap();
    let run = |seed: &str| {
        let args = [
            "run",
            "--json",
            "--file",
            path,
            "--ask",
            "Go on.",
            "--temperature",
            "1.2",
            "--seed",
            seed,
            "--max-tokens",
            "12",
        ];
        json_lines(&args, "")[0]["tokens"].clone()
    };
    assert_eq!(run("7"), run("7"));
    assert_ne!(run("7"), run("8"));
}

#[test]
fn score_prints_tokens_and_log_probabilities() {
    let file = document(&TEXT[..600]);
    let args = ["score", "--json", "--file", file.path().to_str().unwrap(), "--max-tokens", "50"];
    let score = json_lines(&args, "").remove(0);
    let length = |field: &str| score[field].as_array().unwrap().len();
    assert_eq!((length("tokens"), length("logprob"), length("top1")), (50, 49, 49));
    assert!(score["logprob"].as_array().unwrap().iter().all(|value| value.as_f64().unwrap() < 0.0));
}

/// Each turn computes its new tokens and at most 63 of the last block, and the last token of the turn before where that was an answer's:
/// it was sampled, but never computed.
#[test]
fn a_turn_of_chat_computes_only_what_is_new() {
    for options in
        [&["chat", "--json", "--max-tokens", "40"][..], &["chat", "--json", "--max-tokens", "90", "--ignore-eos"]]
    {
        let turns = json_lines(options, "Tell me about whales.\nAnd about the sea?\n\nAnd ships?\n");
        assert_eq!(turns.len(), 3);
        for (before, turn) in turns.iter().zip(&turns[1..]) {
            let of = |answer: &Value, field: &str| answer[field].as_u64().unwrap();
            let generated = before["tokens"].as_array().unwrap();
            let ended = END_TOKENS.contains(&generated.last().unwrap().as_u64().unwrap());
            let known = of(before, "prompt_tokens") + generated.len() as u64 - u64::from(ended);
            let new = of(turn, "prompt_tokens").checked_sub(known).expect("the turn goes on from the one before");
            let cached = &turn["cached_tokens"];
            let prefill = of(turn, "prompt_tokens") - of(cached, "device") - of(cached, "host");
            assert!(prefill <= new + 63 + u64::from(!ended), "{prefill} computed, {new} new");
        }
    }
}

/// `<|endoftext|>` and `<|im_end|>` of the default model.
const END_TOKENS: [u64; 2] = [0, 2];

#[test]
fn text_names_no_end_token() {
    let file = document("Say yes.");
    let path = file.path().to_str().unwrap();
    let args = ["run", "--json", "--file", path, "--ask", "Just yes.", "--max-tokens", "120", "--ignore-eos"];
    let answer = json_lines(&args, "").remove(0);
    let ended = |token: &Value| END_TOKENS.contains(&token.as_u64().unwrap());
    assert!(answer["tokens"].as_array().unwrap().iter().any(ended), "the answer goes past an end token");
    let text = answer["text"].as_str().unwrap();
    assert!(!text.contains("<|im_end|>") && !text.contains("<|endoftext|>"), "{text}");
}

/// As `kvtier demo | head -1` does it.
#[test]
fn a_reader_that_goes_away_ends_the_demo_quietly() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kvtier"))
        .arg("demo")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut line = String::new();
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    assert!(line.starts_with("kvtier demo"));
    let output = child.wait_with_output().expect("the binary ends");
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr)), (Some(0), "".into()));
}

/// The largest step takes as much scratch as it may, and yet the whole context fits.
#[test]
fn without_a_cache_a_long_prompt_fits_whatever_the_chunk() {
    let file = document(&TEXT[..9000]);
    let path = file.path().to_str().unwrap();
    let run = |options: &[&str]| {
        let args = ["run", "--json", "--file", path, "--ask", "Who?", "--max-tokens", "2", "--no-cache"];
        json_lines(&[&args, options].concat(), "").remove(0)
    };
    let (large, small) = (run(&["--chunk", "4000000000", "--block-tokens", "16"]), run(&[]));
    assert_eq!(large["logits_digest"], small["logits_digest"]);
    // An explicit budget is kept.
    let tight = run(&["--device-mem", "96MiB"]);
    assert_eq!(tight["logits_digest"], small["logits_digest"]);
    assert!(tight["peak_device_bytes"].as_u64().unwrap() <= 96 << 20);
}

#[test]
fn model_files_are_described() {
    let kvtier = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_kvtier")).args(args).output().expect("the binary runs");
        assert!(output.status.success(), "{args:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let object = |args: &[&str]| -> Value { serde_json::from_str(&kvtier(args)).expect("one object") };
    let fetched = object(&["model", "fetch", "--json"]);
    assert_eq!((&fetched["name"], &fetched["bytes"]), (&"smollm2-135m".into(), &98_362_432.into()));
    let path = kvtier(&["model", "path"]);
    assert!(path.trim_end().ends_with(".gguf") && path.lines().count() == 1);
    assert_eq!(fetched["path"], path.trim_end());
    assert_eq!(object(&["model", "path", "--json"]), fetched);
    let mut verified = object(&["model", "verify", "--json"]);
    assert_eq!(verified["ok"], true);
    verified.as_object_mut().unwrap().remove("ok");
    assert_eq!(verified, fetched);
    let listed: Value = serde_json::from_str(kvtier(&["model", "list", "--json"]).lines().next().unwrap()).unwrap();
    assert_eq!(listed["name"], "smollm2-135m");
}

/// A damaged file is an object with `ok` false, and exit code 2.
#[test]
fn a_damaged_model_is_not_ok() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("SmolLM2-135M-Instruct.Q4_1.gguf"), b"GGUF").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_kvtier"))
        .args(["model", "verify", "--json"])
        .env("KVTIER_MODEL_DIR", folder.path())
        .output()
        .expect("the binary runs");
    assert_eq!(output.status.code(), Some(2));
    let object: Value = serde_json::from_slice(&output.stdout).expect("one object");
    assert_eq!((&object["ok"], &object["bytes"]), (&false.into(), &4.into()));
}
