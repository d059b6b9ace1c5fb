//! Clients of the daemon that die: nobody else notices, and nothing stays behind. A hundred here, a thousand by `cargo xtask soak daemon`.

use std::time::Duration;

use kvtier_daemon::testing::Point;
use kvtier_tests::daemons::dying::{Plan, Step, kill_clients, kill_clients_of};
use kvtier_tests::daemons::process::{Daemon, PATIENCE, Settings};

const CHILD: &str = env!("CARGO_BIN_EXE_daemon_child");

#[test]
fn a_hundred_clients_die_and_leave_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let store = Some(folder.path().join("store"));
    let common = Settings::new(CHILD, folder.path());
    let settings = Settings { host_mib: 48, staging_kib: 320, store, read_millis: 3, ..common };
    let tally = kill_clients(&settings, Plan { kills: 100, workers: 8, patience: PATIENCE });
    println!("{tally:?}");
    tally.assert_sound();
}

/// The rig must catch a daemon that does not notice one client's end.
#[test]
fn a_client_whose_end_is_not_noticed_would_be_seen() {
    let folder = tempfile::tempdir().unwrap();
    let settings = Settings { staging_kib: 1024, ..Settings::new(CHILD, folder.path()) };
    let mut daemon = settings.start();
    let spoil = |daemon: &mut Daemon| daemon.panic_in(Point::HangUp);
    let plan = Plan { kills: Step::ALL.len() as u64, workers: 1, patience: Duration::from_secs(1) };
    let tally = kill_clients_of(&mut daemon, &settings, plan, spoil);
    assert_eq!((tally.failed, tally.wrong), (0, 0), "{tally:?}");
    assert!(tally.settled.is_none(), "{tally:?}");
}
