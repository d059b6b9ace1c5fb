//! The engine's scenarios over a daemon: each engine has one to itself, whose arena has the bytes that the engine's own would have,
//! and whose store is in the same folder.

mod scenarios;

use std::ops::{Deref, DerefMut};

use kvtier_engine::run::engine::{Engine, EngineOptions};
use kvtier_tests::daemons::in_process::{Daemon, over};
use kvtier_tests::daemons::process::wait_until;
use kvtier_tests::fixture;
use tempfile::TempDir;

/// Staging memory of the engine's connections: one for lossless and one for closed blocks.
const STAGING_BYTES: u64 = 4 << 20;

/// An engine and its daemon, which ends after it.
struct OverDaemon {
    engine: Option<Engine>,
    daemon: Option<Daemon>,
    _folder: TempDir,
}

fn open(options: EngineOptions) -> OverDaemon {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path(), |config| {
        config.client_staging_bytes = STAGING_BYTES;
        config.host_mem_bytes = options.host_bytes + 2 * STAGING_BYTES;
        if let Some(disk) = &options.disk {
            config.disk = Some(disk.directory.clone());
            config.disk_size_bytes = disk.budget_bytes;
        }
    });
    wait_until("the disk's index is read", || daemon.stats()["state"] == "ready");
    let engine = fixture().engine(over(&daemon.socket, options));
    OverDaemon { engine: Some(engine), daemon: Some(daemon), _folder: folder }
}

/// Everything of an engine with a disk is on it afterwards: that of its daemon, which ends.
fn close(engine: OverDaemon) {
    engine.cache().audit().expect("sound books");
    drop(engine);
}

impl Deref for OverDaemon {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        self.engine.as_ref().expect("it is there until it is dropped")
    }
}

impl DerefMut for OverDaemon {
    fn deref_mut(&mut self) -> &mut Engine {
        self.engine.as_mut().expect("it is there until it is dropped")
    }
}

impl Drop for OverDaemon {
    fn drop(&mut self) {
        drop(self.engine.take());
        if let Some(daemon) = self.daemon.take().filter(|_| !std::thread::panicking()) {
            daemon.end();
        }
    }
}
