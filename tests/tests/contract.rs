//! The contract of a cache, as an engine's cache over a daemon keeps it; `sdk` runs the same suite over the tiers of one process.

use std::cell::RefCell;
use std::time::Duration;

use kvtier_sdk::client::ClientSettings;
use kvtier_sdk::contract::{self, rig::Rig};
use kvtier_sdk::embedded::{DaemonSettings, Writes};
use kvtier_tests::daemons::in_process::Daemon;

#[test]
fn a_cache_over_a_daemon_keeps_the_contract() {
    // Each part has a daemon of its own: one would remember what the parts before it left there.
    let daemons = RefCell::new(Vec::new());
    contract::run(&|device_slots| {
        let folder = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(folder.path(), |config| config.host_mem_bytes = 32 << 20);
        let client = ClientSettings {
            socket: daemon.socket.clone(),
            name: "contract".to_owned(),
            deadline: Duration::from_secs(30),
        };
        daemons.borrow_mut().push((daemon, folder));
        Rig::over_daemon(device_slots, DaemonSettings { client, live_blocks: 64, writes: Writes::All })
    });
    for (daemon, _folder) in daemons.into_inner() {
        daemon.end();
    }
}
