//! The disk under `kvtier run` and `kvtier chat`: blocks outlive the process, and whatever befalls the disk costs time, never an answer.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

const KVTIER: &str = env!("CARGO_BIN_EXE_kvtier");
const TEXT: &str = include_str!("../assets/moby-dick.txt");
/// For what takes as long as it takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const BLOCK_TOKENS: u64 = 64;

/// A folder with a document of about 700 tokens in it, and room for a store.
struct Folder {
    folder: TempDir,
    document: String,
}

impl Folder {
    fn new() -> Folder {
        let folder = tempfile::tempdir().expect("a folder");
        let document = folder.path().join("doc.txt");
        std::fs::write(&document, &TEXT[..2500]).expect("a document");
        let document = document.to_str().expect("UTF-8").to_owned();
        Folder { folder, document }
    }

    fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    /// Arguments of a short run on the store.
    fn run(&self, more: &[&str]) -> Vec<String> {
        let store = self.store();
        let store = store.to_str().expect("UTF-8");
        let disk = ["--disk", store, "--disk-size", "64MiB"];
        let run = ["run", "--json", "--file", &self.document, "--ask", "Who speaks?", "--max-tokens", "4"];
        let budgets = ["--ignore-eos", "--device-mem", "64MiB", "--host-mem", "64MiB"];
        [&run[..], &budgets, &disk, more].concat().into_iter().map(str::to_owned).collect()
    }

    fn verify(&self) -> (i32, Value) {
        verify(&self.store())
    }
}

fn verify(store: &Path) -> (i32, Value) {
    let output = Command::new(KVTIER).arg("verify").arg(store).arg("--json").output().expect("the binary runs");
    let code = output.status.code().expect("an exit code");
    let object = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    assert_eq!(object.is_null(), code == 2, "{}", said(&output));
    (code, object)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn kvtier(args: &[String], io: &str) -> (Value, String) {
    let output = Command::new(KVTIER).args(args).env("KVTIER_DISK_IO", io).output().expect("the binary runs");
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    (object(&output.stdout), said(&output))
}

fn object(stdout: &[u8]) -> Value {
    serde_json::from_slice(stdout).expect("one object")
}

fn cached(answer: &Value, tier: &str) -> u64 {
    answer["cached_tokens"][tier].as_u64().expect("a number")
}

/// A running process that is ended with the test.
struct Running {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Running {
    fn start(command: &mut Command) -> Running {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        Running { child, out }
    }

    /// One turn of `kvtier chat --json`.
    fn say(&mut self, line: &str) -> Value {
        writeln!(self.child.stdin.as_mut().expect("a pipe"), "{line}").expect("the binary reads");
        let mut answer = String::new();
        self.out.read_line(&mut answer).expect("a line");
        object(answer.as_bytes())
    }

    fn signal(&self, name: &str) {
        let line = format!("kill -s {name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &line]).status().expect("a shell").success());
    }

    /// Waits for the end, with the input closed where `close`. Returns the exit code and what was said on stderr.
    fn end(mut self, close: bool) -> (Option<i32>, String) {
        let input = self.child.stdin.take();
        if close {
            drop(input);
        }
        let until = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                break status;
            }
            assert!(Instant::now() < until, "the process ends");
            std::thread::sleep(Duration::from_millis(10));
        };
        let mut said = String::new();
        self.child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("UTF-8");
        (status.code(), said)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_store_of_any_stage_gives_equal_bits_and_by_default_takes_a_quarter_less() {
    let mut digests = Vec::new();
    let [off, auto, _] = ["off", "auto", "zstd"].map(|stage| {
        let folder = Folder::new();
        let (first, _) = kvtier(&folder.run(&["--disk-stage", stage]), "auto");
        // Who reads need not know how it was written.
        let (second, _) = kvtier(&folder.run(&["--disk-stage", "off"]), "auto");
        assert!(cached(&second, "disk") > 0, "{stage}");
        digests.extend([first, second].map(|answer| answer["logits_digest"].clone()));
        let (code, report) = folder.verify();
        assert_eq!((code, &report["ok"]), (0, &true.into()), "{stage}");
        report["record_bytes"].as_f64().expect("bytes") / report["records"].as_f64().expect("records")
    });
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
    assert!(off / auto >= 1.3, "{off} bytes a record, {auto} staged");
}

#[test]
fn a_second_process_answers_from_disk_with_equal_bits() {
    let folder = Folder::new();
    let plain = kvtier(&folder.run(&["--no-cache"]), "auto").0;
    assert!(!folder.store().exists(), "nothing is published without a cache");
    let (first, _) = kvtier(&folder.run(&[]), "pread");
    assert_eq!((cached(&first, "disk"), cached(&first, "device")), (0, 0));
    assert_eq!(first["logits_digest"], plain["logits_digest"]);
    let full_blocks = (first["prompt_tokens"].as_u64().unwrap() - 1) / BLOCK_TOKENS;
    for io in ["auto", "pread"] {
        let (second, said) = kvtier(&folder.run(&[]), io);
        assert_eq!(said, "");
        assert_eq!(cached(&second, "disk"), full_blocks * BLOCK_TOKENS, "{io}: every full block");
        assert_eq!(cached(&second, "device") + cached(&second, "host"), 0);
        assert!(second["loaded_bytes"]["disk"].as_u64().unwrap() > 0);
        assert_eq!(second["logits_digest"], plain["logits_digest"], "{io}");
    }
    let (code, report) = folder.verify();
    assert_eq!((code, &report["ok"], &report["has_snapshot"]), (0, &true.into(), &true.into()));
    assert!(report["records"].as_u64().unwrap() >= full_blocks);
    assert!(report["allocated_bytes"].as_u64().unwrap() <= 64 << 20);
}

#[test]
fn an_exact_answer_behind_a_lossy_one_takes_nothing_lossy() {
    let folder = Folder::new();
    let lossy = ["--form", "kc4vt4"];
    let exact = [&lossy[..], &["--exact"]].concat();
    let plain = kvtier(&folder.run(&["--no-cache"]), "auto").0;
    let first = kvtier(&folder.run(&lossy), "auto").0;
    assert_ne!(first["logits_digest"], plain["logits_digest"]);
    let (again, _) = kvtier(&folder.run(&lossy), "auto");
    assert!(cached(&again, "disk") > 2 * BLOCK_TOKENS, "lossy blocks are there: {again}");
    // The first blocks are exact in either: rows that read the latest blocks as they are have nothing lossy before them.
    let (behind, _) = kvtier(&folder.run(&exact), "auto");
    assert!(
        cached(&behind, "disk") < cached(&again, "disk") / 2,
        "{} of {}: {behind}",
        cached(&behind, "disk"),
        cached(&again, "disk")
    );
    assert_eq!(behind["logits_digest"], plain["logits_digest"]);
    let full_blocks = (plain["prompt_tokens"].as_u64().unwrap() - 1) / BLOCK_TOKENS;
    let (second, _) = kvtier(&folder.run(&exact), "auto");
    assert_eq!(cached(&second, "disk"), full_blocks * BLOCK_TOKENS, "then every full block");
    assert_eq!(second["logits_digest"], plain["logits_digest"]);
}

#[test]
fn a_second_hit_is_written_and_a_first_is_not() {
    let folder = Folder::new();
    let args = folder.run(&["--disk-admission", "second-hit"]);
    kvtier(&args, "auto");
    assert_eq!(folder.verify().1["records"], 0);
}

#[test]
fn a_store_that_another_process_holds_is_left_alone() {
    let folder = Folder::new();
    let args = folder.run(&[]);
    let mut holder =
        Running::start(Command::new(KVTIER).args(["chat", "--json", "--max-tokens", "2"]).args(disk(&args)));
    holder.say("Hello there.");
    for form in ["raw16", "kc4vt4"] {
        let args: Vec<String> = args.iter().cloned().chain(["--form", form].map(str::to_owned)).collect();
        let (answer, said) = kvtier(&args, "auto");
        assert_eq!(cached(&answer, "disk"), 0);
        assert!(said.contains("without the disk") && said.contains("another process"), "{form}: {said}");
        assert_eq!(said.lines().count(), 1, "{form}: {said}");
    }
    assert_eq!(folder.verify().0, 2, "and cannot be verified");
    assert_eq!(holder.end(true), (Some(0), String::new()));
    assert_eq!(folder.verify().0, 0);
}

/// The disk options of a run.
fn disk(args: &[String]) -> &[String] {
    let from = args.iter().position(|arg| arg == "--disk").expect("a disk");
    &args[from..from + 4]
}

#[test]
fn a_store_removed_under_a_conversation_ends_the_disk_only() {
    let folder = Folder::new();
    let args = folder.run(&[]);
    let mut chat = Running::start(
        Command::new(KVTIER)
            .args(["chat", "--json", "--max-tokens", "4", "--file", &folder.document])
            .args(disk(&args)),
    );
    let first = chat.say("Who speaks?");
    std::fs::remove_dir_all(folder.store()).expect("removed");
    // The tier looks at its superblocks every second.
    std::thread::sleep(Duration::from_millis(2500));
    let second = chat.say("And where?");
    assert!(cached(&second, "device") + cached(&second, "host") > cached(&first, "device"), "{second}");
    let (code, said) = chat.end(true);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("offline") && said.lines().count() == 1, "{said}");
}

#[test]
fn sigterm_in_an_answer_drains_the_disk() {
    let folder = Folder::new();
    let mut args = folder.run(&["--max-tokens", "4000"]);
    // The answer as it comes, so that there is a moment in the middle of it.
    args.retain(|arg| arg != "--json");
    let at = args.iter().position(|arg| arg == "--max-tokens").unwrap();
    args.drain(at..at + 2);
    let mut run = Running::start(Command::new(KVTIER).args(&args));
    let mut question = String::new();
    run.out.read_line(&mut question).expect("the question");
    run.out.read_exact(&mut [0; 8]).expect("the beginning of an answer");
    run.signal("TERM");
    let (code, said) = run.end(false);
    assert_eq!(code, Some(143), "{said}");
    let (code, report) = folder.verify();
    assert_eq!((code, &report["has_snapshot"]), (0, &true.into()));
    assert!(report["records"].as_u64().unwrap() >= 10, "{report}");
    let (again, _) = kvtier(&folder.run(&[]), "auto");
    assert!(cached(&again, "disk") >= 10 * BLOCK_TOKENS, "{again}");
}

#[test]
fn sigint_between_turns_drains_the_disk() {
    let folder = Folder::new();
    let args = folder.run(&[]);
    let mut chat = Running::start(
        Command::new(KVTIER)
            .args(["chat", "--json", "--max-tokens", "2", "--file", &folder.document])
            .args(disk(&args)),
    );
    chat.say("Who speaks?");
    chat.signal("INT");
    assert_eq!(chat.end(false).0, Some(130));
    let (code, report) = folder.verify();
    assert_eq!((code, &report["has_snapshot"]), (0, &true.into()));
    assert!(report["records"].as_u64().unwrap() >= 10, "{report}");
}

#[test]
fn a_damaged_record_is_found_and_never_served() {
    let folder = Folder::new();
    let plain = kvtier(&folder.run(&[]), "auto").0;
    let segment = std::fs::read_dir(folder.store())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_str().unwrap().ends_with("segment.000001"))
        .expect("a segment");
    let mut bytes = std::fs::read(&segment).unwrap();
    // In the sections of the first record: after the segment's header page and the record's.
    bytes[600_000] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    let (code, report) = folder.verify();
    assert_eq!((code, &report["ok"]), (3, &false.into()));
    let damage = report["damage"].as_array().unwrap();
    assert_eq!((damage.len(), &damage[0]["segment"]), (1, &0.into()), "{damage:?}");
    let output = Command::new(KVTIER).arg("verify").arg(folder.store()).output().unwrap();
    assert!(said(&output).starts_with("kvtier: verify ") && said(&output).lines().count() == 1, "{}", said(&output));
    let (answer, _) = kvtier(&folder.run(&[]), "auto");
    assert_eq!(answer["logits_digest"], plain["logits_digest"]);
    assert!(answer["misses"]["failed_check"].as_u64().unwrap() > 0, "{}", answer["misses"]);
    assert!(answer["computed_tokens"].as_u64().unwrap() < plain["computed_tokens"].as_u64().unwrap(), "{answer}");
}

/// As root of a mount namespace of its own: the script mounts something at `$1`, and the rest is a kvtier command line. `None`, and a skip
/// by name, where that is not allowed.
fn on_mount(script: &str, at: &Path, args: &[String]) -> Option<Output> {
    std::fs::create_dir_all(at).unwrap();
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    let user = if is_root { &[][..] } else { &["--map-root-user"][..] };
    let wrapped = |line: &str| {
        let mut command = Command::new("unshare");
        command.arg("--mount").args(user).args(["sh", "-c", line, KVTIER]).arg(at);
        command
    };
    if !wrapped(script).output().is_ok_and(|output| output.status.success()) {
        println!("SKIP: no mount namespaces");
        return None;
    }
    let line = format!("{script} && shift && exec \"$0\" \"$@\"");
    Some(wrapped(&line).args(args).output().expect("a shell"))
}

#[test]
fn a_read_only_disk_is_done_without() {
    let folder = Folder::new();
    let mount = "mount -t tmpfs -o ro tmpfs \"$1\"";
    let Some(output) = on_mount(mount, &folder.store(), &folder.run(&[])) else { return };
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(cached(&object(&output.stdout), "disk"), 0);
    assert!(said(&output).contains("without the disk") && said(&output).contains("Read-only"), "{}", said(&output));
}

/// Room for the superblocks and one segment: the second ends in ENOSPC while the answer goes on.
#[test]
fn a_full_disk_is_done_without() {
    let folder = Folder::new();
    let plain = kvtier(&folder.run(&["--no-cache"]), "auto").0;
    let mount = "mount -t tmpfs -o size=12m tmpfs \"$1\"";
    let Some(output) = on_mount(mount, &folder.store(), &folder.run(&[])) else { return };
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(object(&output.stdout)["logits_digest"], plain["logits_digest"]);
    let said = said(&output);
    assert!(said.contains("without the disk") && said.contains("No space"), "{said}");
}

/// Segments of a larger store do not fit a smaller one.
#[test]
fn a_store_that_needs_a_larger_budget_is_left_alone_and_that_is_said() {
    let folder = Folder::new();
    let sized = |size: &str| -> Vec<String> {
        folder
            .run(&[])
            .into_iter()
            .map(|arg| if arg == "64MiB" && size != arg { size.to_owned() } else { arg })
            .collect()
    };
    assert_eq!(kvtier(&sized("512MiB"), "auto").1, "");
    let (answer, said) = kvtier(&sized("64MiB"), "auto");
    assert_eq!(cached(&answer, "disk"), 0);
    let is_named = said.contains("without the disk") && said.contains("needs at least") && said.lines().count() == 1;
    assert!(is_named, "{said}");
    let (answer, said) = kvtier(&sized("512MiB"), "auto");
    assert!(cached(&answer, "disk") > 0 && said.is_empty(), "{said}");
}

#[test]
fn bench_disk_prints_its_figures_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let args = ["bench", "disk", path, "--block-size", "256KiB", "--depth", "4", "--size", "16MiB", "--json"];
    let output = Command::new(KVTIER).args(args).output().expect("the binary runs");
    assert!(output.status.success(), "{}", said(&output));
    let report = object(&output.stdout);
    let keys = |value: &Value| {
        let mut keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        keys.sort_unstable();
        keys
    };
    let rates = ["raw_read_gb_s", "raw_write_gb_s", "read_gb_s", "write_gb_s"];
    assert_eq!(keys(&report), [&rates[..3], &["read_us", "write_gb_s", "write_us"]].concat());
    assert!(rates.iter().all(|rate| report[rate].as_f64().unwrap() > 0.0), "{report}");
    for direction in ["read_us", "write_us"] {
        assert_eq!(keys(&report[direction]), ["p50", "p99"]);
        assert!(report[direction]["p50"].as_f64().unwrap() <= report[direction]["p99"].as_f64().unwrap());
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// A folder that is no store, for instance a mistyped one, is named and left as it was.
#[test]
fn verify_leaves_a_folder_that_is_no_store_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mine.txt"), "mine").unwrap();
    let output = Command::new(KVTIER).arg("verify").arg(folder.path()).output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(2));
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["mine.txt"]);
    let missing = folder.path().join("not-here");
    let output = Command::new(KVTIER).arg("verify").arg(&missing).output().expect("the binary runs");
    assert_eq!((output.status.code(), missing.exists()), (Some(2), false));
}
