//! What every [`Resident`](crate::store::Resident) does.

use super::{REST_MILLIS, SlotRig, commit, hit, misses, within_budget};
use crate::header::{CheckFailure, encoded_bytes};
use crate::store::{ErrorKind, Lend, Lookup, Resident, Store, StoreError};
use crate::units::Now;

/// Runs the suite; `open` gives a fresh, empty tier of exactly so many slots.
pub fn suite<R: SlotRig>(open: impl Fn(u32) -> R) {
    uncommitted_is_invisible(&open(2));
    full_says_full(&open(3));
    a_revoked_lease_is_not_current(&open(1));
    a_late_release_is_harmless(&open(1));
    a_vanished_copy_takes_no_other_with_it(&open(3));
    damage_never_becomes_visible(&open(2));
    what_is_stated_must_be_what_is_there(&open(3));
}

fn uncommitted_is_invisible<R: SlotRig>(rig: &R) {
    let (sealed, image) = rig.block(1);
    let mut slot = rig.tier().reserve(sealed.key).unwrap();
    assert!(matches!(rig.tier().lookup(&sealed.key), Lookup::Pending));
    assert_eq!(rig.tier().reserve(sealed.key).unwrap_err(), StoreError::PendingElsewhere);
    rig.fill(&mut slot, image.as_slice());
    assert!(matches!(rig.tier().lookup(&sealed.key), Lookup::Pending), "written, but not committed");
    slot.commit(&sealed).unwrap();
    assert_eq!(rig.tier().reserve(sealed.key).unwrap_err(), StoreError::Present);
    let lease = hit(rig, 1);
    assert!(rig.fetch(&lease).as_slice() == image.as_slice());
    assert!(rig.tier().is_current(&lease));

    drop(rig.tier().reserve(rig.block(2).0.key).unwrap());
    assert!(misses(rig, 2), "a dropped reservation leaves nothing");
    assert_eq!(rig.tier().capacity().used_slots, 1);
}

fn full_says_full<R: SlotRig>(rig: &R) {
    assert_eq!(rig.tier().capacity().slots, 3, "the rig opens what it is asked for");
    for number in 0..3 {
        commit(rig, number).unwrap();
    }
    let error = commit(rig, 3).unwrap_err();
    assert_eq!((&error, error.kind()), (&StoreError::Full { slots: 3 }, ErrorKind::Full));
    let lease = hit(rig, 1);
    assert_eq!(rig.tier().remove(&rig.block(1).0.key), Err(StoreError::Leased { leases: 1 }));
    assert!(commit(rig, 3).is_err());
    rig.tier().remove(&rig.block(0).0.key).unwrap();
    rig.tier().remove(&rig.block(0).0.key).unwrap();
    assert!(rig.tier().is_current(&lease));
    commit(rig, 3).unwrap();
    assert!(rig.fetch(&hit(rig, 3)).as_slice() == rig.block(3).1.as_slice());
    assert!(rig.fetch(&lease).as_slice() == rig.block(1).1.as_slice());
    within_budget(rig);
}

fn a_revoked_lease_is_not_current<R: SlotRig>(rig: &R) {
    rig.advance(Now(5));
    commit(rig, 1).unwrap();
    let lease = hit(rig, 1);
    rig.tier().revoke(&rig.block(1).0.key);
    assert!(!rig.tier().is_current(&lease));
    assert!(misses(rig, 1));
    assert!(matches!(commit(rig, 2), Err(StoreError::Full { .. })), "the slot rests");
    rig.advance(Now(4).after_millis(REST_MILLIS));
    assert!(matches!(commit(rig, 2), Err(StoreError::Full { .. })), "one nanosecond early");
    rig.advance(Now(5).after_millis(REST_MILLIS));
    commit(rig, 2).unwrap();
    assert!(!rig.tier().is_current(&lease), "the next tenant is not the first");
    let next = hit(rig, 2);
    assert_eq!(next.place(), lease.place());
    assert!(next.generation().0 >= lease.generation().0 + 2);
}

fn a_late_release_is_harmless<R: SlotRig>(rig: &R) {
    commit(rig, 1).unwrap();
    let stale = hit(rig, 1);
    rig.tier().revoke(&rig.block(1).0.key);
    rig.advance(Now(0).after_millis(REST_MILLIS));
    commit(rig, 2).unwrap();
    let lease = hit(rig, 2);
    drop(stale);
    assert_eq!(
        rig.tier().remove(&rig.block(2).0.key),
        Err(StoreError::Leased { leases: 1 }),
        "the late release took another's lease"
    );
    assert!(rig.tier().is_current(&lease));
}

fn a_vanished_copy_takes_no_other_with_it<R: SlotRig>(rig: &R) {
    for number in 0..3 {
        commit(rig, number).unwrap();
    }
    let (first, last) = (hit(rig, 0), hit(rig, 2));
    rig.tier().revoke(&rig.block(1).0.key);
    rig.tier().revoke(&rig.block(7).0.key);
    assert!(rig.tier().is_current(&first) && rig.tier().is_current(&last));
    assert!(rig.fetch(&last).as_slice() == rig.block(2).1.as_slice());
}

/// Flips one bit at a time in a sample of bytes of the header and of every section.
fn damage_never_becomes_visible<R: SlotRig>(rig: &R) {
    let (sealed, image) = rig.block(1);
    let header = 0..encoded_bytes(rig.shape().section_count());
    let sections = rig.shape().sections().flat_map(|section| {
        let last = section.offset + section.bytes - 1;
        [section.offset, section.offset + section.bytes / 2, last]
    });
    for (round, byte) in header.step_by(5).chain(sections).enumerate() {
        let mut damaged = image.clone();
        damaged.as_mut_slice()[byte as usize] ^= 1 << (round % 8);
        let mut slot = rig.tier().reserve(sealed.key).unwrap();
        rig.fill(&mut slot, damaged.as_slice());
        let (mut slot, error) = slot.commit(&sealed).expect_err("damaged bytes became visible");
        assert!(matches!(error, StoreError::Check(_)), "byte {byte}: {error}");
        assert!(
            matches!(rig.tier().lookup(&sealed.key), Lookup::Pending),
            "byte {byte}: the slot came back, still reserved"
        );
        if round % 2 == 0 {
            drop(slot);
            assert!(misses(rig, 1));
        } else {
            rig.fill(&mut slot, image.as_slice());
            slot.commit(&sealed).unwrap();
            rig.tier().remove(&sealed.key).unwrap();
        }
    }
    assert_eq!(rig.tier().capacity().used_slots, 0);
}

fn what_is_stated_must_be_what_is_there<R: SlotRig>(rig: &R) {
    let (sealed, image) = rig.block(1);
    let (other, other_image) = rig.block(2);
    let mut slot = rig.tier().reserve(sealed.key).unwrap();
    rig.fill(&mut slot, other_image.as_slice());
    let (mut slot, error) = slot.commit(&sealed).expect_err("another key's image was taken");
    assert_eq!(error, StoreError::Check(CheckFailure::Identity));
    rig.fill(&mut slot, image.as_slice());
    let mut lied = vec![other];
    lied.push(crate::store::Sealed {
        link: crate::chain::Link { depth: sealed.link.depth + 1, ..sealed.link },
        ..sealed
    });
    lied.push(crate::store::Sealed { lineage: crate::form::Lineage(crate::form::FormMapId::RAW32), ..sealed });
    for stated in lied {
        let (back, error) = slot.commit(&stated).expect_err("what was stated is not what is there");
        assert_eq!(error, StoreError::Check(CheckFailure::Identity), "{stated:?}");
        slot = back;
    }
    assert!(misses(rig, 2));
    slot.commit(&sealed).unwrap();
}
