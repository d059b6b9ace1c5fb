//! `kvtier serve` as a process: one daemon a socket and a store, and an orderly end whatever its clients do.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Far more than anything here takes on a slow machine.
const PATIENCE: Duration = Duration::from_secs(60);

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended before.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(folder: &Path, socket: &str, store: Option<&str>) -> Daemon {
    let settings = folder.join("empty.toml");
    std::fs::write(&settings, "client_staging = \"1MiB\"\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvtier"));
    command.env_clear().env("KVTIER_CONFIG", &settings).args(["serve", "--host-mem", "32MiB", "--http", "off"]);
    command.arg("--socket").arg(folder.join(socket));
    if let Some(store) = store {
        command.arg("--disk").arg(folder.join(store)).args(["--disk-size", "128MiB"]);
    }
    Daemon(command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary runs"))
}

fn start(folder: &Path, socket: &str, store: Option<&str>) -> Daemon {
    let mut daemon = spawn(folder, socket, store);
    let until = Instant::now() + PATIENCE;
    // The socket is there only once somebody accepts behind it: the first attempt that finds it is served.
    while !folder.join(socket).exists() {
        assert!(daemon.0.try_wait().unwrap().is_none() && Instant::now() < until, "the daemon does not start");
        std::thread::sleep(Duration::from_millis(1));
    }
    daemon
}

impl Daemon {
    fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.0.try_wait().unwrap() {
                Some(status) => return status,
                None => assert!(Instant::now() < until, "the daemon does not end"),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn said(&mut self) -> String {
        let mut text = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    fn terminate(&self) {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    }
}

/// Expects exit code 2 and one line on why.
fn is_refused(mut second: Daemon, why: &str) {
    let status = second.wait();
    let said = second.said();
    assert_eq!(status.code(), Some(2), "{said}");
    assert!(said.lines().count() == 1 && said.contains(why), "{said}");
}

#[test]
fn a_second_daemon_on_one_socket_or_one_store_exits_2() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let mut first = start(folder, "a.sock", Some("store"));
    // The socket that appeared is served at once.
    let mut stream = UnixStream::connect(folder.join("a.sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&[0; 64]).unwrap();
    assert!(stream.read(&mut [0; 64]).unwrap() > 0, "it is told that this is no frame");
    is_refused(spawn(folder, "a.sock", None), "another daemon listens there");
    is_refused(spawn(folder, "a.sock", Some("store")), "another daemon listens there");
    is_refused(spawn(folder, "b.sock", Some("store")), "store");
    assert!(!folder.join("b.sock").exists(), "a daemon that never served leaves no socket");
    UnixStream::connect(folder.join("a.sock")).expect("the first one is as well as before");
    first.terminate();
    assert!(first.wait().success());
    let mut next = start(folder, "a.sock", Some("store"));
    next.0.kill().unwrap();
    next.0.wait().unwrap();
    // What a killed daemon leaves behind keeps nobody out.
    assert!(folder.join("a.sock").exists());
    let mut last = spawn(folder, "a.sock", Some("store"));
    let until = Instant::now() + PATIENCE;
    while UnixStream::connect(folder.join("a.sock")).is_err() {
        assert!(last.0.try_wait().unwrap().is_none() && Instant::now() < until, "the last one does not start");
        std::thread::sleep(Duration::from_millis(1));
    }
    last.terminate();
    assert!(last.wait().success());
}
