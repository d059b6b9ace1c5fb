//! `kvtier delete` against a real daemon: what one salt had is gone, after a restart of the daemon too, and nobody else's is.

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

/// Tokens that a question about the document takes from the cache.
fn cached(folder: &Path, daemon: &Daemon, salt: &str) -> u64 {
    let document = folder.join("doc.txt");
    std::fs::write(&document, &TEXT[..1000]).expect("a document");
    let output = kvtier(&["run", "--json", "--ask", "Who speaks?", "--max-tokens", "1", "--device-mem", "64MiB"])
        .args(["--daemon", &daemon.socket, "--daemon-deadline", "60000", "--salt", salt, "--file"])
        .arg(&document)
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answer: Value = serde_json::from_slice(&output.stdout).expect("one object");
    answer["cached_tokens"].as_object().expect("tiers").values().filter_map(Value::as_u64).sum()
}

#[test]
fn what_a_salt_had_is_gone_and_nobody_elses_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let daemon = Daemon::start(folder.path());
    for salt in ["a", "b"] {
        assert_eq!(cached(folder.path(), &daemon, salt), 0);
    }
    assert!(cached(folder.path(), &daemon, "a") >= 128);
    daemon.end();
    let daemon = Daemon::start(folder.path());
    let output = daemon.delete(&["--salt", "a", "--json"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "{\"namespaces\":1}\n", "{output:?}");
    daemon.end();
    let daemon = Daemon::start(folder.path());
    assert_eq!(cached(folder.path(), &daemon, "a"), 0);
    assert!(cached(folder.path(), &daemon, "b") >= 128);
    let output = daemon.delete(&["--salt", "nobody"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "deleted 0 namespaces\n");
    let output = daemon.delete(&["--namespace", &"0".repeat(64)]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "deleted 1 namespace\n");
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
