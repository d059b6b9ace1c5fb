//! Bad input ends with exit code 2 and one to four lines that name the thing and the fix, never with a panic.

use std::path::Path;
use std::process::{Command, Output};

fn kvtier(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvtier")).args(args).output().expect("the binary runs")
}

fn kvtier_with(variable: &str, value: &str, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvtier")).args(args).env(variable, value).output().expect("the binary runs")
}

/// Runs and expects exit code 2 with one to four lines that name each of `named`.
fn short(args: &[&str], named: &[&str]) {
    ends(args, 2, named);
}

fn ends(args: &[&str], code: i32, named: &[&str]) {
    ended(args, kvtier(args), code, named);
}

fn ended(args: &[&str], output: Output, code: i32, named: &[&str]) {
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
    assert!(output.stdout.is_empty(), "{args:?} printed on stdout");
    assert!(!message.contains("panicked"), "{args:?}: {message}");
    assert!(message.starts_with("kvtier: "), "{args:?}: {message}");
    let lines = message.lines().count();
    assert!((1..=4).contains(&lines) && !message.contains("Usage"), "{args:?}: {message}");
    for name in named {
        assert!(message.contains(name), "{args:?} does not name `{name}`: {message}");
    }
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
        short(&args, named);
    };
    run(&["--threads", "0"], &["--threads"]);
    run(&["--device-mem", "12"], &["--device-mem", "MiB"]);
    run(&["--host-mem", "lots"], &["--host-mem"]);
    for rate in ["-1", "nan", "inf", "1e-7", "1e300"] {
        run(&["--link", rate], &["--link", "10^9"]);
    }
    run(&["--temperature", "nan"], &["--temperature"]);
    run(&["--chunk", "0"], &["--chunk"]);
    run(&["--max-tokens", "0"], &["--max-tokens"]);
    run(&["--block-tokens", "48"], &["--block-tokens"]);
    run(&["--device-mem", "64KiB"], &["--device-mem", "at least"]);
    run(&["--host-mem", "64KiB"], &["--host-mem", "at least"]);
    run(&["--no-cache", "--device-mem", "64KiB"], &["--device-mem", "at least"]);
    run(&["--max-tokens", "9000"], &["context", "--max-tokens"]);
    run(&["--path", "scenic"], &["--path", "reference"]);
    run(&["--devicemem", "1GiB"], &["--devicemem", "--device-mem"]);
    short(&["run", "--file", &document], &["--ask"]);
    short(&["run"], &["--ask", "--file"]);
    short(&["dance"], &["dance", "--help"]);
    short(&["model", "fech"], &["fech", "fetch", "--help"]);
    short(&[], &["command", "--help"]);
    short(&["model"], &["command", "kvtier model", "--help"]);
}

#[test]
fn nonsensical_disks_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let document = write(folder.path(), "doc.txt", b"a text of some words");
    let store = folder.path().join("store");
    let store = store.to_str().unwrap();
    let run = ["run", "--file", &document, "--ask", "what?"];
    let with = |options: &[&'static str]| [&run[..], options].concat();
    let on_disk = |options: &[&'static str]| [&run[..], &["--disk", store], options].concat();
    short(&on_disk(&["--disk-size", "63MiB"]), &["--disk-size", "64MiB"]);
    short(&on_disk(&["--disk-size", "63MiB", "--no-cache"]), &["--disk-size", "64MiB"]);
    short(&on_disk(&["--disk-size", "plenty"]), &["--disk-size"]);
    short(&on_disk(&["--disk-admission", "never"]), &["--disk-admission", "second-hit"]);
    short(&on_disk(&["--disk-stage", "gzip"]), &["--disk-stage", "zstd"]);
    short(&["demo", "--disk-stage", "gzip"], &["--disk-stage", "zstd"]);
    short(&with(&["--disk-size", "64MiB"]), &["--disk <DIR>"]);
    short(&with(&["--disk-admission", "always"]), &["--disk <DIR>"]);
    short(&with(&["--disk-stage", "lz4"]), &["--disk <DIR>"]);
    short(&["demo", "--disk-size", "1MiB"], &["--disk-size", "64MiB"]);
    let bench = |options: &[&'static str]| [&["bench", "disk", folder.path().to_str().unwrap()], options].concat();
    short(&bench(&["--block-size", "1KiB"]), &["--block-size", "8KiB"]);
    short(&bench(&["--depth", "0"]), &["--depth"]);
    short(&bench(&["--size", "4KiB"]), &["--size"]);
    short(&bench(&["--size", "1000000GiB"]), &["--size", "free"]);
    short(&["bench", "disk", store], &["store"]);
    short(&["bench"], &["command", "kvtier bench"]);
    short(&["verify", store], &["store"]);
    short(&["verify", folder.path().to_str().unwrap()], &["no superblock"]);
    short(&["verify"], &["<DIR>"]);
    for args in [on_disk(&[]), bench(&[]), vec!["verify", store], vec!["demo"]] {
        let output = kvtier_with("KVTIER_DISK_IO", "tape", &args);
        ended(&args, output, 2, &["KVTIER_DISK_IO", "io_uring", "pread"]);
    }
    assert!(!Path::new(store).exists());
}

#[test]
fn memory_that_no_machine_has_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let document = write(folder.path(), "doc.txt", b"a text of some words");
    for (option, size) in [("--device-mem", "200000GiB"), ("--host-mem", "100000GiB")] {
        short(&["run", "--file", &document, "--ask", "what?", option, size], &[option]);
    }
}

/// Without a cache a budget is still a budget.
#[test]
fn a_prompt_past_the_device_budget_is_refused_with_figures() {
    let folder = tempfile::tempdir().unwrap();
    let document = write(folder.path(), "doc.txt", "one two three four five ".repeat(400).as_bytes());
    ends(
        &["run", "--file", &document, "--ask", "what?", "--no-cache", "--device-mem", "16MiB", "--json"],
        3,
        &["--device-mem", "device slots"],
    );
}

#[test]
fn help_and_version_are_no_errors() {
    for args in [["--help"], ["--version"]] {
        let output = kvtier(&args);
        assert!(output.status.success() && output.stderr.is_empty() && !output.stdout.is_empty(), "{args:?}");
    }
}

/// A base model carries no chat template: its documents can be scored, but not asked about.
#[test]
fn a_model_without_chat_template_scores_and_does_not_chat() {
    let folder = tempfile::tempdir().unwrap();
    let document = write(folder.path(), "doc.txt", b"a text of some words");
    // Fetches the model where it is not there yet.
    assert!(kvtier(&["model", "fetch"]).status.success());
    let path = String::from_utf8(kvtier(&["model", "path"]).stdout).unwrap();
    let mut bytes = std::fs::read(path.trim_end()).unwrap();
    let key = b"tokenizer.chat_template";
    let at = bytes.windows(key.len()).position(|window| window == key).expect("the default model has a template");
    bytes[at + key.len() - 1] = b'_';
    let model = write(folder.path(), "base.gguf", &bytes);
    let score = kvtier(&["score", "--model", &model, "--file", &document, "--max-tokens", "5"]);
    assert!(score.status.success(), "{}", String::from_utf8_lossy(&score.stderr));
    short(&["run", "--model", &model, "--file", &document, "--ask", "what?"], &["chat_template", "kvtier score"]);
    short(&["chat", "--model", &model], &["chat_template"]);
}

#[test]
fn a_prompt_past_the_context_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let long = write(folder.path(), "long.txt", "one two three four five ".repeat(2500).as_bytes());
    short(&["run", "--file", &long, "--ask", "what?"], &["8192", "shorten the document"]);
}
