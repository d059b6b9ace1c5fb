//! Every I/O fails once: for n = 1, 2, 3, ... the n-th operation of a whole life of a store goes wrong, in each of several ways, until a run
//! is left untouched. What was said to be written is there; what is served is right; what was deleted stays deleted; the budget holds.

mod support;

use std::collections::HashMap;
use std::sync::Arc;

use cache_core::contract::SHAPE;
use cache_core::hash::Namespace;
use disk_tier::io::Medium;
use disk_tier::io::rig::{Completion, Effect, FailNth, Fault, MemoryMedium, Plan};
use disk_tier::testing::PlantedBug;
use disk_tier::{DiskEnd, DiskOk, DiskState, DiskTier};
use support::*;

const SEGMENTS: u64 = 5;
const NUMBERS: u32 = 4 * SEGMENT_RECORDS;

const EIO: i32 = 5;
const EAGAIN: i32 = 11;
const ENOSPC: i32 = 28;
const ETIMEDOUT: i32 = 110;

/// What the run knows about a block.
#[derive(Clone, Copy, PartialEq)]
enum Known {
    Written,
    /// A write failed or a deletion did not end well: there or not.
    Perhaps,
    Gone,
}

/// One life: written, read, deleted, reclaimed, closed. Returns what is known, and whether the tier said things that were not so.
fn live(tier: &DiskTier, known: &mut HashMap<u32, Known>) -> u32 {
    let mut lies = 0;
    for number in 0..NUMBERS {
        let end = write(tier, number, 0);
        let state = match end {
            Ok(DiskOk::Written) => {
                // Said to be whole: it reads back, unless the medium fails just there.
                let wrong = tier.counters().failed_checks;
                let io_errors = tier.counters().io_errors;
                let read = read(tier, number);
                let is_excused = tier.counters().io_errors > io_errors;
                if read.is_err() && (!is_excused || tier.counters().failed_checks > wrong) {
                    lies += 1;
                }
                Known::Written
            }
            Ok(_) => panic!("block {number} was there before it was written"),
            Err(DiskEnd::Failed(_)) => {
                assert!(tier.find(&key(number)).is_err(), "a failed write is invisible");
                Known::Perhaps
            }
            Err(_) => Known::Gone,
        };
        known.insert(number, state);
        if number % 6 == 5 {
            let before = known[&(number - 3)];
            let after = match delete(tier, number - 3) {
                Ok(_) => Known::Gone,
                Err(DiskEnd::Miss(_)) if before != Known::Perhaps => Known::Gone,
                Err(_) => Known::Perhaps,
            };
            known.insert(number - 3, after);
        }
        if number == NUMBERS / 2 {
            let _ = tier.delete_namespace(Namespace([44; 32]));
        }
    }
    lies
}

/// What a store holds: nothing wrong, nothing that is gone.
fn check(tier: &DiskTier, medium: &MemoryMedium, known: &HashMap<u32, Known>) {
    for number in 0..NUMBERS {
        let state = known.get(&number).copied().unwrap_or(Known::Gone);
        if holds(tier, number, 0) {
            assert!(state != Known::Gone, "block {number} was deleted or never written");
        }
    }
    assert!(medium.image().allocated_bytes() <= tier.capacity().budget_bytes);
}

fn run(plan: Plan, bug: Option<PlantedBug>) -> (bool, u32) {
    let medium = MemoryMedium::new(Completion::Inline);
    let rig = FailNth::new(Arc::clone(&medium) as Arc<dyn Medium>, plan);
    let mut settings = config(SEGMENTS);
    settings.deadline_millis = 20;
    settings.probe_millis = 1;
    let mut known = HashMap::new();
    let mut lies = 0;
    if let Ok(tier) = DiskTier::over_with(Arc::clone(&rig) as Arc<dyn Medium>, settings, manual(bug)) {
        tier.wait_ready(5000);
        lies = live(&tier, &mut known);
        check(&tier, &medium, &known);
        tier.close(2000);
    }
    let fired = rig.fired() > 0;
    // What the medium still held comes to pass, late.
    rig.release();
    rig.heal();
    let (tier, medium) = reopen(&medium.image(), SEGMENTS, None).unwrap();
    assert_eq!(tier.state(), DiskState::Ready);
    check(&tier, &medium, &known);
    let again = (500..505).filter(|number| write(&tier, *number, 0) == Ok(DiskOk::Written)).count();
    assert_eq!(again, 5, "the store is of use again");
    (fired, lies)
}

#[test]
fn the_nth_operation_fails_for_every_n() {
    assert_eq!(SHAPE.slot_bytes(), 8192);
    let faults = [
        ("EIO", Fault::Errno(EIO), Effect::Half),
        ("ENOSPC", Fault::Errno(ENOSPC), Effect::Nothing),
        ("EAGAIN", Fault::Errno(EAGAIN), Effect::Nothing),
        ("ETIMEDOUT", Fault::Errno(ETIMEDOUT), Effect::Whole),
        ("short", Fault::Short, Effect::Nothing),
        ("never", Fault::Never { deadline_millis: 5 }, Effect::Nothing),
    ];
    for (name, fault, effect) in faults {
        let step = scale(3, 1);
        let mut n = 1;
        loop {
            let (fired, lies) = run(Plan::nth(n, fault).effect(effect), None);
            assert_eq!(lies, 0, "{name}, n = {n}");
            if !fired {
                break;
            }
            n += step;
        }
        println!("{name}: every {step}th operation of {n} failed once");
        assert!(n > 60);
    }
}

#[test]
fn a_tier_that_shows_failed_writes_is_caught() {
    let lies: u32 = (1..80)
        .map(|n| run(Plan::nth(n, Fault::Errno(EIO)).effect(Effect::Half), Some(PlantedBug::VisibleAfterFailure)).1)
        .sum();
    assert!(lies > 0, "the planted bug was not noticed");
}
