//! The contract of a cache, as an engine's cache over a daemon keeps it; `sdk` runs the same suite over the tiers of one process.

use std::cell::RefCell;
use std::time::Duration;

use kvtier_sdk::cache::{Committed, Grant, KvCache, Want};
use kvtier_sdk::client::ClientSettings;
use kvtier_sdk::contract;
use kvtier_sdk::contract::rig::{Rig, SHAPE, chain};
use kvtier_sdk::embedded::{DaemonSettings, Writes};
use kvtier_tests::daemons::in_process::Daemon;

fn over(daemon: &Daemon, device_slots: u32) -> Rig {
    let deadline = Duration::from_secs(30);
    let client = ClientSettings { socket: daemon.socket.clone(), name: "contract".to_owned(), deadline };
    Rig::over_daemon(device_slots, DaemonSettings { client, live_blocks: 64, writes: Writes::All })
}

#[test]
fn a_cache_over_a_daemon_keeps_the_contract() {
    // Each part has a daemon of its own: one would remember what the parts before it left there.
    let daemons = RefCell::new(Vec::new());
    contract::run(&|device_slots| {
        let folder = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(folder.path(), |config| config.host_mem_bytes = 32 << 20);
        let rig = over(&daemon, device_slots);
        daemons.borrow_mut().push((daemon, folder));
        rig
    });
    for (daemon, _folder) in daemons.into_inner() {
        daemon.end();
    }
}

#[test]
fn blocks_that_are_published_together_are_handed_over_together() {
    const BLOCKS: usize = 6;
    // Messages each way, at most: one for all that staging memory holds at once, and one before anybody knows how much that is.
    for (places, messages) in [(BLOCKS, 2), (4, 3)] {
        let folder = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(folder.path(), |config| {
            config.host_mem_bytes = 32 << 20;
            config.client_staging_bytes = places as u64 * SHAPE.slot_bytes();
        });
        let rig = over(&daemon, 8);
        let home = rig.namespace("home");
        let links = chain(home, 1, BLOCKS as u32);
        let sequence = rig.cache.open(home);
        let blocks = links.iter().copied().map(Some).collect();
        assert_eq!(rig.cache.reserve(&[Want { sequence, blocks }]).unwrap(), [Grant::Granted]);
        links.iter().enumerate().for_each(|(block, link)| rig.write(sequence, block as u32, *link));
        assert_eq!(rig.cache.commit(sequence, 0, &links).unwrap(), [Committed::Inserted; BLOCKS]);
        let stats = daemon.stats();
        let asked = |operation: &str| stats["latency"]["operations"][operation]["count"].as_u64().unwrap();
        let asked = [asked("reserve"), asked("commit")];
        assert!(asked.iter().all(|asked| *asked <= messages), "{places} places: {asked:?} messages");
        assert_eq!(stats["stores"]["accepted"]["blocks"], BLOCKS);
        // What the daemon has are these blocks.
        let other = over(&daemon, 8);
        let (sequence, hits) = other.run(other.namespace("home"), &links);
        assert_eq!(hits, BLOCKS);
        other.verify(sequence, &links);
        drop((rig, other));
        daemon.end();
    }
}
