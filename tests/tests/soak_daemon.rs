//! The daemon's rigs at full scale, run by `cargo xtask soak daemon`. The short forms are `daemon_clients.rs`, `daemon_deaths.rs` and `daemon_time.rs`.
//!
//! `KVTIER_SOAK_MINUTES`: how long clients come and go, 10 unless said.

use std::time::{Duration, Instant};

use kvtier_tests::daemons::churn::churn;
use kvtier_tests::daemons::deaths::{Plan as Deaths, under_an_engine};
use kvtier_tests::daemons::dying::{Plan as Kills, kill_clients};
use kvtier_tests::daemons::late::{Disk, run_against};
use kvtier_tests::daemons::process::Settings;

const CHILD: &str = env!("CARGO_BIN_EXE_daemon_child");

/// Prints how long a test took.
struct Clock(&'static str, Instant);

impl Clock {
    fn start(name: &'static str) -> Clock {
        Clock(name, Instant::now())
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        println!("  {}: {:.0} s", self.0, self.1.elapsed().as_secs_f64());
    }
}

#[test]
#[ignore = "minutes: cargo xtask soak daemon"]
fn a_thousand_clients_die() {
    let _clock = Clock::start("1,000 clients killed");
    let folder = tempfile::tempdir().unwrap();
    let store = Some(folder.path().join("store"));
    let common = Settings::new(CHILD, folder.path());
    let settings = Settings { host_mib: 48, staging_kib: 320, store, read_millis: 3, ..common };
    let patience = Duration::from_secs(3);
    let tally = kill_clients(&settings, Kills { kills: 1000, workers: 8, patience });
    println!("  {tally:?}");
    tally.assert_sound();
}

#[test]
#[ignore = "minutes: cargo xtask soak daemon"]
fn a_hundred_daemons_die() {
    let _clock = Clock::start("100 daemons killed, stopped, ended");
    let plan = Deaths { cycles: 100, workers: 4, deadline: Duration::from_millis(500) };
    let tally = under_an_engine(CHILD, plan);
    println!("  {tally:?}");
    tally.assert_sound(plan);
    // A client's thread may have to wait for a processor.
    assert!(tally.late_max < Duration::from_millis(250), "{tally:?}");
    assert!(tally.reconnect_max < Duration::from_secs(1), "{tally:?}");
    assert!(tally.drain_max < Duration::from_secs(10), "{tally:?}");
}

#[test]
#[ignore = "minutes: cargo xtask soak daemon"]
fn ten_thousand_deadlines() {
    let _clock = Clock::start("10,000 deadlines");
    for (disk, calls) in
        [(Disk::Slow { millis: 25 }, 3000), (Disk::Slow { millis: 5000 }, 3000), (Disk::BlackHole, 4000)]
    {
        let tally = run_against(disk, calls, 4);
        println!("  {disk:?}: {tally:?}");
        assert!(tally.calls == calls && tally.cut > 0, "{disk:?}: {tally:?}");
        assert_eq!(tally.late, 0, "{disk:?}: {tally:?}");
    }
}

#[test]
#[ignore = "minutes: cargo xtask soak daemon"]
fn clients_come_and_go_for_long() {
    let _clock = Clock::start("clients come and go");
    let minutes = std::env::var("KVTIER_SOAK_MINUTES").map_or(10, |text| text.parse().expect("whole minutes"));
    let folder = tempfile::tempdir().unwrap();
    let store = Some(folder.path().join("store"));
    let settings = Settings { host_mib: 32, store, ..Settings::new(CHILD, folder.path()) };
    let tally = churn(&settings, Duration::from_secs(60), Duration::from_secs(60 * minutes));
    println!("  {tally:?}");
    tally.assert_sound(2 << 20);
}
