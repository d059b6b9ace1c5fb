//! `kvtier run` on device `cuda`, whose driver is the double (or the machine's, with `KVTIER_TEST_DRIVER=real`): it executes kernels instruction by
//! instruction, so prompts are short.

#[path = "../../gpu-tier/tests/cuda_double/library.rs"]
mod double;

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const KVTIER: &str = env!("CARGO_BIN_EXE_kvtier");
const TEXT: &str = include_str!("../assets/moby-dick.txt");
/// For what takes as long as it takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon that goes with its test.
struct Daemon(Child);

impl Daemon {
    fn start(socket: &Path) -> Daemon {
        let mut command = Command::new(KVTIER);
        command.args(["serve", "--host-mem", "128MiB", "--http", "off", "--disk", "off", "--socket"]).arg(socket);
        command.env("KVTIER_CONFIG", "/dev/null").stderr(Stdio::null());
        let mut daemon = Daemon(command.spawn().expect("the binary runs"));
        let until = Instant::now() + PATIENCE;
        while !socket.exists() {
            let ended = daemon.0.try_wait().expect("a child");
            assert!(ended.is_none() && Instant::now() < until, "the daemon does not start: {ended:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Asks about a few lines of text.
fn run(device: &str, folder: &Path, more: &[&str]) -> Output {
    let document = folder.join("doc.txt");
    std::fs::write(&document, &TEXT[..220]).expect("a document");
    let mut command = Command::new(KVTIER);
    command.args(["run", "--json", "--ask", "Who?", "--max-tokens", "2", "--ignore-eos", "--device-mem", "64MiB"]);
    command.arg("--file").arg(document).args(more).env("KVTIER_DEVICE", device).env("KVTIER_CONFIG", "/dev/null");
    if !std::env::var("KVTIER_TEST_DRIVER").is_ok_and(|driver| driver == "real") {
        let library = folder.join("libcuda.so");
        if !library.exists() {
            std::os::unix::fs::symlink(double::build(), library).expect("a link");
        }
        command.env("LD_LIBRARY_PATH", folder);
    }
    command.output().expect("the binary runs")
}

fn answer(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one object")
}

/// The second run attends a block that the first one published, in memory that the daemon lends for reading only.
#[test]
fn answers_are_those_of_the_cpu_device_over_a_daemon_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let expected = answer(&run("cpu", folder.path(), &[]));
    let socket = folder.path().join("kvtier.sock");
    let _daemon = Daemon::start(&socket);
    let daemon = ["--daemon", socket.to_str().expect("UTF-8"), "--daemon-deadline", "60000"];
    for (device, lent) in [("cuda", 0), ("cuda:0", 64)] {
        let found = answer(&run(device, folder.path(), &daemon));
        assert_eq!(found["cached_tokens"]["host"], lent, "{found}");
        for field in ["logits_digest", "tokens", "text", "prompt_tokens"] {
            assert_eq!(found[field], expected[field], "{device}: {found}");
        }
    }
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    for (device, named) in [("cuda:64", "no device 64"), ("cuda:one", "`cuda:one` is no device")] {
        let output = run(device, folder.path(), &[]);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{message}");
        assert!(message.starts_with("kvtier: ") && message.contains(named), "{message}");
    }
}
