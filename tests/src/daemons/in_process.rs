//! Daemons in the test's own process, and engines over them.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use cache_core::payload::BlockShape;
use kvtier_daemon::config::{Config, Machine};
use kvtier_daemon::{ServeError, serve};
use kvtier_engine::run::Form;
use kvtier_engine::run::engine::{DaemonOptions, EngineOptions};
use kvtier_sdk::client::{Client, ClientSettings};

use crate::daemons::process::{PATIENCE, wait_until};

/// A daemon on a thread of its own.
pub struct Daemon {
    /// Where it listens.
    pub socket: PathBuf,
    thread: JoinHandle<Result<(), ServeError>>,
}

impl Daemon {
    /// Starts one with its socket in `folder`, without disk and statistics endpoint unless `change` gives it some, and waits for its socket.
    pub fn start(folder: &Path, change: impl FnOnce(&mut Config)) -> Daemon {
        let socket = folder.join("kvtier.sock");
        let mut config = Config::defaults(&Machine::here().expect("this machine can be looked at"));
        config.socket = socket.clone();
        config.http = None;
        config.host_mem_bytes = 256 << 20;
        change(&mut config);
        let thread = std::thread::spawn(move || serve(config));
        wait_until("the socket appears", || socket.exists() || thread.is_finished());
        if thread.is_finished() {
            panic!("the daemon does not start: {:?}", thread.join());
        }
        Daemon { socket, thread }
    }

    fn client(&self) -> Client {
        let shape = BlockShape { layers: 1, kv_heads: 1, head_dim: 16, block_tokens: 16, form: Form::Raw16 };
        let deadline = PATIENCE;
        let client =
            Client::open(ClientSettings { socket: self.socket.clone(), name: "test".to_owned(), deadline }, shape);
        wait_until("a connection", || client.is_connected());
        client
    }

    /// Its figures.
    pub fn stats(&self) -> serde_json::Value {
        serde_json::from_str(&self.client().stats().expect("the daemon answers")).expect("figures are JSON")
    }

    /// An orderly end.
    pub fn end(self) {
        self.client().drain().expect("the daemon answers");
        self.thread.join().expect("the daemon does not panic").expect("the daemon ends well");
        assert!(!self.socket.exists(), "the socket goes with the daemon");
    }
}

/// `options` with a daemon in the place of host arena and disk.
pub fn over(socket: &Path, options: EngineOptions) -> EngineOptions {
    let daemon = DaemonOptions { socket: socket.to_owned(), deadline_millis: 10_000 };
    EngineOptions { daemon: Some(daemon), host_bytes: 0, disk: None, ..options }
}
