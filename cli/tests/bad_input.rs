//! Bad input ends with exit code 2 and one to four lines that name the thing and the fix, never with a panic.

use std::path::Path;
use std::process::{Command, Output};

fn kvtier(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvtier")).args(args).output().expect("the binary runs")
}

/// Runs and expects exit code 2 with a short message that names each of `named`.
fn refused(args: &[&str], named: &[&str]) {
    let output = kvtier(args);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {message}");
    assert!(output.stdout.is_empty(), "{args:?} printed on stdout");
    assert!(!message.contains("panicked"), "{args:?}: {message}");
    for name in named {
        assert!(message.contains(name), "{args:?} does not name `{name}`: {message}");
    }
}

fn short(args: &[&str], named: &[&str]) {
    refused(args, named);
    let lines = String::from_utf8_lossy(&kvtier(args).stderr).lines().count();
    assert!((1..=4).contains(&lines), "{args:?}: {lines} lines");
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> String {
    let path = folder.join(name);
    std::fs::write(&path, bytes).expect("a temporary file");
    path.to_str().expect("UTF-8").to_owned()
}

/// A GGUF header with one string of metadata: the architecture.
fn tiny_gguf(architecture: &str) -> Vec<u8> {
    let mut bytes = b"GGUF\x03\x00\x00\x00".to_vec();
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    };
    bytes.extend(0u64.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    text(&mut bytes, "general.architecture");
    bytes.extend(8u32.to_le_bytes());
    text(&mut bytes, architecture);
    bytes
}

#[test]
fn damaged_and_foreign_models_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let document = write(folder.path(), "doc.txt", b"a text");
    let run =
        |model: &str, named: &[&str]| short(&["run", "--model", model, "--file", &document, "--ask", "what?"], named);
    run(&write(folder.path(), "empty.gguf", b""), &["empty.gguf"]);
    run(&write(folder.path(), "text.gguf", b"this is no model"), &["text.gguf", "GGUF"]);
    let sound = tiny_gguf("llama");
    run(&write(folder.path(), "cut.gguf", &sound[..sound.len() - 3]), &["cut.gguf", "truncated"]);
    run(&write(folder.path(), "mamba.gguf", &tiny_gguf("mamba")), &["mamba", "llama"]);
    run(&write(folder.path(), "bare.gguf", &sound), &["llama."]);
    run(folder.path().join("absent.gguf").to_str().unwrap(), &["absent.gguf"]);
    run(folder.path().to_str().unwrap(), &["not a regular file"]);
    run("no-such-model", &["no-such-model", "smollm2-135m"]);
}

#[test]
fn unusable_documents_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let absent = folder.path().join("absent.txt");
    short(&["run", "--file", absent.to_str().unwrap(), "--ask", "what?"], &["absent.txt"]);
    short(&["run", "--file", folder.path().to_str().unwrap(), "--ask", "what?"], &["directory"]);
    short(&["score", "--file", folder.path().to_str().unwrap(), "--max-tokens", "5"], &["directory"]);
}

#[test]
fn nonsensical_options_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let document = write(folder.path(), "doc.txt", b"a text of some words");
    let run = |options: &[&str], named: &[&str]| {
        let mut args = vec!["run", "--file", &document, "--ask", "what?"];
        args.extend(options);
        refused(&args, named);
    };
    run(&["--threads", "0"], &["--threads"]);
    run(&["--device-mem", "12"], &["--device-mem", "MiB"]);
    run(&["--host-mem", "lots"], &["--host-mem"]);
    run(&["--link", "-1"], &["--link"]);
    run(&["--temperature", "nan"], &["--temperature"]);
    run(&["--chunk", "0"], &["--chunk"]);
    run(&["--max-tokens", "0"], &["--max-tokens"]);
    run(&["--block-tokens", "48"], &["--block-tokens"]);
    run(&["--device-mem", "64KiB"], &["--device-mem", "at least"]);
    run(&["--host-mem", "64KiB"], &["--host-mem", "at least"]);
    run(&["--max-tokens", "9000"], &["context", "--max-tokens"]);
    refused(&["run", "--file", &document], &["--ask"]);
    refused(&["dance"], &["dance"]);
}

#[test]
fn a_prompt_past_the_context_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let long = write(folder.path(), "long.txt", "one two three four five ".repeat(2500).as_bytes());
    short(&["run", "--file", &long, "--ask", "what?"], &["8192", "shorten the document"]);
}
