//! Daemons that die, stop and come back, under clients and under an engine: nobody hangs, nobody reads wrong bytes, logits are those of a run without any
//! cache. Twelve deaths here, a hundred by `cargo xtask soak daemon`.

use std::time::Duration;

use kvtier_tests::daemons::deaths::{Plan, under_an_engine};

#[test]
fn daemons_die_under_clients_and_an_engine() {
    let plan = Plan { cycles: 12, workers: 4, deadline: Duration::from_millis(500) };
    let tally = under_an_engine(env!("CARGO_BIN_EXE_daemon_child"), plan);
    println!("{tally:?}");
    tally.assert_sound(plan);
    // What a machine that is ten times slower may take; the soak holds the figures.
    assert!(tally.late_max < Duration::from_secs(10) && tally.reconnect_max < Duration::from_secs(20), "{tally:?}");
    assert!(tally.drain_max < Duration::from_secs(20), "{tally:?}");
}
