//! The simulator at full scale: `cargo xtask soak daemon`. The short form is `manager_simulator`.

mod random;
mod simulator;

use std::time::Instant;

use simulator::{Kind, run_all};

fn timed(kind: Kind) {
    let start = Instant::now();
    run_all(10_000, kind);
    println!("  {kind:?}: {:.0} s", start.elapsed().as_secs_f64());
}

#[test]
#[ignore = "a minute: cargo xtask soak daemon"]
fn ten_thousand_seeds_of_a_daemon() {
    timed(Kind::Daemon);
}

#[test]
#[ignore = "a minute: cargo xtask soak daemon"]
fn ten_thousand_seeds_of_an_engine() {
    timed(Kind::Engine);
}
