//! The long form of the daemon's own tests, run by `cargo xtask soak daemon`.

mod rig;

#[test]
#[ignore = "minutes: cargo xtask soak daemon"]
fn a_million_lookups_of_two_salts() {
    let started = std::time::Instant::now();
    let looked = rig::isolation::paired(170 << 10);
    assert!(looked.own + looked.foreign >= 1_000_000, "{looked:?}");
    println!("  {looked:?}: {:.0} s", started.elapsed().as_secs_f64());
}
