//! The daemon on the clock: deadlines over a slow disk and one that never answers, and clients that come and go for a while. At full scale:
//! `cargo xtask soak daemon`.

use std::time::Duration;

use kvtier_tests::daemons::churn::churn;
use kvtier_tests::daemons::late::{Disk, run_against};
use kvtier_tests::daemons::process::Settings;

#[test]
fn an_acquire_ends_by_its_deadline_whatever_the_disk_does() {
    for disk in [Disk::Slow { millis: 25 }, Disk::Slow { millis: 5000 }, Disk::BlackHole] {
        let tally = run_against(disk, 120, 4);
        println!("{disk:?}: {tally:?}");
        assert!(tally.calls == 120 && tally.cut > 0, "{disk:?}: {tally:?}");
        // The soak holds the figure; here a slow machine is let off.
        assert!(tally.late_max < Duration::from_secs(5), "{disk:?}: {tally:?}");
    }
}

#[test]
fn clients_come_and_go_and_nothing_grows() {
    let folder = tempfile::tempdir().unwrap();
    let store = Some(folder.path().join("store"));
    let settings = Settings { host_mib: 32, store, ..Settings::new(env!("CARGO_BIN_EXE_daemon_child"), folder.path()) };
    let tally = churn(&settings, Duration::from_secs(5), Duration::from_secs(25));
    println!("{tally:?}");
    tally.assert_sound(8 << 20);
}
