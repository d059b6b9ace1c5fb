//! What scripts rely on: with `--json`, stdout holds one object a line and nothing else, with the documented fields.

use std::io::Write;
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

/// Each turn computes its new tokens and at most 63 of the last block.
#[test]
fn a_turn_of_chat_computes_only_what_is_new() {
    let args = ["chat", "--json", "--max-tokens", "40"];
    let turns = json_lines(&args, "Tell me about whales.\nAnd about the sea?\n\nAnd ships?\n");
    assert_eq!(turns.len(), 3);
    for (before, turn) in turns.iter().zip(&turns[1..]) {
        let of = |answer: &Value, field: &str| answer[field].as_u64().unwrap();
        let known = of(before, "prompt_tokens") + before["tokens"].as_array().unwrap().len() as u64;
        let new = of(turn, "prompt_tokens") - known.min(of(turn, "prompt_tokens"));
        let prefill = of(turn, "prompt_tokens") - turn["cached_tokens"]["device"].as_u64().unwrap();
        assert!(prefill <= new + 64, "{prefill} computed, {new} new");
    }
}

#[test]
fn model_path_is_printed_alone() {
    let output = Command::new(env!("CARGO_BIN_EXE_kvtier")).args(["model", "path"]).output().expect("the binary runs");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.trim_end().ends_with(".gguf") && text.lines().count() == 1);
    let output =
        Command::new(env!("CARGO_BIN_EXE_kvtier")).args(["model", "list", "--json"]).output().expect("the binary runs");
    let line: Value = serde_json::from_str(String::from_utf8(output.stdout).unwrap().lines().next().unwrap()).unwrap();
    assert_eq!(line["name"], "smollm2-135m");
}
