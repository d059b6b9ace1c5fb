//! A daemon in a process of its own, for what is counted by the process: descriptors and memory. The test program runs itself again, for the one test
//! that serves.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::*;

const FOLDER: &str = "KVTIER_TEST_SERVE";

/// Serves when this process was started to; the body of a test called `the_other_process` in each target that has need of it.
pub fn serve_if_asked(change: impl FnOnce(&mut Config)) {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let mut config = config(Path::new(&folder));
    std::fs::write(Path::new(&folder).join("http"), config.http.unwrap().to_string()).unwrap();
    change(&mut config);
    serve(config).unwrap();
}

pub struct Process {
    child: Child,
    pub socket: PathBuf,
    pub http: SocketAddr,
}

impl Process {
    pub fn start(folder: &Path) -> Process {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "the_other_process"])
            .env(FOLDER, folder)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let socket = folder.join("kvtier.sock");
        let until = Instant::now() + PATIENCE;
        while !socket.exists() {
            assert!(child.try_wait().unwrap().is_none(), "the daemon does not start");
            assert!(Instant::now() < until, "the daemon does not start in time");
            std::thread::sleep(Duration::from_millis(5));
        }
        let http = std::fs::read_to_string(folder.join("http")).unwrap().parse().unwrap();
        Process { child, socket, http }
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }

    pub fn stats(&self) -> Value {
        get(self.http, "/stats")
    }

    pub fn client(&self) -> Client {
        client_at(&self.socket, SHAPE)
    }

    /// An orderly end.
    pub fn end(mut self) {
        self.client().drain().unwrap();
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Of a test that has failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
