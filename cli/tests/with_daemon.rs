//! `kvtier run` and `kvtier delete` with a real daemon: answers say what they say without one; what a salt had is gone, after a restart of the daemon too, and
//! nobody else's is.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const KVTIER: &str = env!("CARGO_BIN_EXE_kvtier");
const TEXT: &str = include_str!("../assets/moby-dick.txt");
/// For what takes as long as it takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Daemon {
    child: Child,
    socket: String,
}

impl Daemon {
    fn start(folder: &Path) -> Daemon {
        let at = |name: &str| folder.join(name).to_str().expect("UTF-8").to_owned();
        let socket = at("kvtier.sock");
        let child = kvtier(&["serve", "--socket", &socket, "--host-mem", "128MiB", "--http", "off"])
            .args(["--disk", &at("store"), "--disk-size", "64MiB"])
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary runs");
        let daemon = Daemon { child, socket };
        let until = Instant::now() + PATIENCE;
        while !Path::new(&daemon.socket).exists() {
            assert!(Instant::now() < until, "the daemon does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        daemon
    }

    fn end(mut self) {
        let told = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().expect("kill runs");
        assert!(told.success() && self.child.wait().expect("it ends").success());
    }

    fn delete(&self, more: &[&str]) -> Output {
        kvtier(&["delete", "--socket", &self.socket]).args(more).output().expect("the binary runs")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Of a test that has failed; one that was waited for is left alone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn kvtier(args: &[&str]) -> Command {
    let mut command = Command::new(KVTIER);
    command.args(args).env("KVTIER_CONFIG", "/dev/null");
    command
}

/// What a question about the document is answered with.
fn answer(folder: &Path, more: &[&str]) -> Value {
    let document = folder.join("doc.txt");
    std::fs::write(&document, &TEXT[..1000]).expect("a document");
    let output = kvtier(&["run", "--json", "--ask", "Who speaks?", "--max-tokens", "1", "--device-mem", "64MiB"])
        .args(more)
        .arg("--file")
        .arg(&document)
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one object")
}

/// What it is answered with by way of a daemon.
fn shared(folder: &Path, daemon: &Daemon, salt: &str) -> Value {
    answer(folder, &["--daemon", &daemon.socket, "--daemon-deadline", "60000", "--salt", salt])
}

/// Tokens that an answer took from the cache.
fn cached(answer: &Value) -> u64 {
    answer["cached_tokens"].as_object().expect("tiers").values().filter_map(Value::as_u64).sum()
}

/// The names of an object's fields and of those inside it, in order.
fn fields(value: &Value) -> Vec<String> {
    let Value::Object(object) = value else { return Vec::new() };
    let inner = |(name, value): (&String, &Value)| {
        let below = fields(value).into_iter().map(|below| format!("{name}.{below}")).collect::<Vec<_>>();
        std::iter::once(name.clone()).chain(below).collect::<Vec<_>>()
    };
    object.iter().flat_map(inner).collect()
}

#[test]
fn an_answer_says_the_same_with_a_daemon_and_without() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    let alone = answer(folder.path(), &[]);
    let first = shared(folder.path(), &daemon, "a");
    let again = shared(folder.path(), &daemon, "a");
    assert!(fields(&alone).iter().any(|field| field == "cached_tokens.host"), "{alone}");
    assert_eq!((cached(&alone), cached(&first)), (0, 0), "{alone} {first}");
    assert!(cached(&again) >= 128, "nothing came from the daemon: {again}");
    for other in [&first, &again] {
        assert_eq!(fields(other), fields(&alone));
        for equal in ["logits_digest", "tokens", "text", "prompt_tokens"] {
            assert_eq!(other[equal], alone[equal], "{equal}: {other} {alone}");
        }
        // The one of salt a, whatever keeps the blocks.
        assert!(other["namespace"] == first["namespace"] && other["namespace"] != alone["namespace"], "{other}");
    }
}

#[test]
fn what_a_salt_had_is_gone_and_nobody_elses_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    for salt in ["a", "b"] {
        assert_eq!(cached(&shared(folder.path(), &daemon, salt)), 0);
    }
    assert!(cached(&shared(folder.path(), &daemon, "a")) >= 128);
    daemon.end();
    let daemon = Daemon::start(folder.path());
    let output = daemon.delete(&["--salt", "a", "--json"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "{\"namespaces\":1}\n", "{output:?}");
    daemon.end();
    let daemon = Daemon::start(folder.path());
    assert_eq!(cached(&shared(folder.path(), &daemon, "a")), 0);
    let theirs = shared(folder.path(), &daemon, "b");
    assert!(cached(&theirs) >= 128);
    let output = daemon.delete(&["--salt", "nobody"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "deleted 0 namespaces\n");
    // By the name that an answer tells.
    let namespace = theirs["namespace"].as_str().expect("64 digits");
    let output = daemon.delete(&["--namespace", namespace]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "deleted 1 namespace\n");
    assert_eq!(cached(&shared(folder.path(), &daemon, "b")), 0);
    daemon.end();
}

#[test]
fn what_cannot_be_deleted_is_told_in_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("kvtier.sock").to_str().expect("UTF-8").to_owned();
    for (more, code, named) in [
        (&["--salt", "a"][..], 3, "no daemon answers at"),
        (&["--namespace", "123"], 2, "64 hexadecimal digits"),
        (&[], 2, "--salt"),
        (&["--salt", "a", "--namespace", &"0".repeat(64)], 2, "cannot be used with"),
    ] {
        let output = kvtier(&["delete", "--socket", &socket]).args(more).output().expect("the binary runs");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{more:?}: {told}");
        assert!(told.starts_with("kvtier: ") && told.contains(named), "{more:?}: {told}");
    }
}
