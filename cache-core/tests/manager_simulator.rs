//! The simulator at the size that runs with every change: see `simulator`. 10,000 seeds: `cargo xtask soak daemon`.
//!
//! One seed alone: `KVTIER_SEED=n cargo test -p cache-core --test manager_simulator`.

mod random;
mod simulator;

use simulator::{Bug, Kind, run, run_all};

#[test]
fn clients_of_a_daemon() {
    run_all(1_000, Kind::Daemon);
}

#[test]
fn sequences_of_an_engine() {
    run_all(1_000, Kind::Engine);
}

#[test]
fn a_seed_fails_again_the_same_way() {
    for (kind, bug) in [(Kind::Daemon, Bug::LeaseKeptAtHangUp), (Kind::Engine, Bug::Unverified)] {
        let failing = (0..50).find(|seed| run(*seed, kind, bug).is_err()).expect("one of 50 seeds sees the bug");
        let problem = run(failing, kind, bug).unwrap_err();
        assert_eq!(run(failing, kind, bug).unwrap_err(), problem);
        assert!(problem.contains(&format!("seed {failing}")), "{problem}");
    }
    for seed in 0..5 {
        assert_eq!(run(seed, Kind::Daemon, Bug::None), run(seed, Kind::Daemon, Bug::None));
    }
}

#[test]
fn every_planted_bug_is_caught() {
    let daemon = Bug::OF_DAEMON.into_iter().map(|bug| (Kind::Daemon, bug));
    let engine = Bug::OF_ENGINE.into_iter().map(|bug| (Kind::Engine, bug));
    for (kind, (bug, words)) in daemon.chain(engine) {
        let caught: Vec<String> = (0..60).filter_map(|seed| run(seed, kind, bug).err()).collect();
        let named = caught.iter().filter(|problem| problem.contains(words)).count();
        println!("{kind:?}, {bug:?}: {} of 60 seeds, {named} with the words", caught.len());
        assert!(named > 0, "{kind:?}: {bug:?} was not caught: {caught:?}");
    }
}
