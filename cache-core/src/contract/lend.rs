//! What every [`Lend`](crate::store::Lend) does, whoever wrote the copy.

use super::{Rig, delete, hit, misses, read, write};
use crate::store::{Lend, StoreError};

/// Runs the suite; `open` gives a fresh, empty tier with room for at least so many blocks.
pub fn suite<R: Rig<Tier: Lend>>(open: impl Fn(u32) -> R) {
    a_lease_blocks_removal(&open(2));
    leases_add_up(&open(2));
    a_lease_survives_other_traffic(&open(3));
}

fn a_lease_blocks_removal<R: Rig<Tier: Lend>>(rig: &R) {
    assert!(misses(rig, 1));
    write(rig, 1).unwrap();
    let lease = hit(rig, 1);
    assert!(!lease.generation().is_unstable());
    assert_eq!(delete(rig, rig.block(1).0.key), Err(StoreError::Leased { leases: 1 }));
    assert!(rig.tier().is_current(&lease));
    drop(lease);
    assert_eq!(delete(rig, rig.block(1).0.key), Ok(true));
    assert!(misses(rig, 1));
}

fn leases_add_up<R: Rig<Tier: Lend>>(rig: &R) {
    write(rig, 1).unwrap();
    let (first, second) = (hit(rig, 1), hit(rig, 1));
    assert_eq!(first.place(), second.place(), "one copy, one place");
    drop(first);
    assert_eq!(delete(rig, rig.block(1).0.key), Err(StoreError::Leased { leases: 1 }));
    assert!(read(rig, rig.block(1).0.key).is_ok(), "a leased copy can be read as well");
    assert_eq!(delete(rig, rig.block(1).0.key), Err(StoreError::Leased { leases: 1 }), "the read gave its lease back");
    drop(second);
    assert_eq!(delete(rig, rig.block(1).0.key), Ok(true));
}

fn a_lease_survives_other_traffic<R: Rig<Tier: Lend>>(rig: &R) {
    write(rig, 1).unwrap();
    let lease = hit(rig, 1);
    for number in 2..20 {
        write(rig, number).unwrap();
        assert_eq!(delete(rig, rig.block(number).0.key), Ok(true));
    }
    assert!(rig.tier().is_current(&lease));
}
