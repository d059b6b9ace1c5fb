//! What every [`Store`](crate::store::Store) does.

use super::{Rig, delete, read, run, write};
use crate::buffer::Buffer;
use crate::store::{Completion, ErrorKind, Outcome, Store, StoreError, StoreOp};

/// Runs the suite; `open` gives a fresh, empty store with room for at least so many blocks.
pub fn suite<R: Rig>(open: impl Fn(u32) -> R) {
    what_was_written_is_read(&open(4));
    what_was_deleted_is_gone(&open(4));
    a_wrong_size_is_refused(&open(4));
    every_buffer_comes_back(&open(8));
    damaged_bytes_are_not_taken(&open(4));
    operations_are_bounded(&open(2));
}

fn what_was_written_is_read<R: Rig>(rig: &R) {
    for number in 0..3 {
        write(rig, number).unwrap();
    }
    for number in [2, 0, 1, 0] {
        let (sealed, image) = rig.block(number);
        let found = read(rig, sealed.key).unwrap();
        assert!(found.as_slice() == image.as_slice(), "block {number} comes back as it was written");
    }
    assert!(read(rig, rig.block(9).0.key).is_err(), "a block that was never written misses");
}

fn what_was_deleted_is_gone<R: Rig>(rig: &R) {
    write(rig, 1).unwrap();
    write(rig, 2).unwrap();
    assert_eq!(delete(rig, rig.block(1).0.key), Ok(true));
    assert!(read(rig, rig.block(1).0.key).is_err());
    assert_eq!(delete(rig, rig.block(1).0.key), Ok(false), "deleting twice is harmless");
    assert!(read(rig, rig.block(2).0.key).is_ok());
    write(rig, 1).unwrap();
    assert!(read(rig, rig.block(1).0.key).is_ok(), "a deleted block can be written again");
}

fn a_wrong_size_is_refused<R: Rig>(rig: &R) {
    let slot_bytes = rig.shape().slot_bytes() as usize;
    write(rig, 1).unwrap();
    for bytes in [0, slot_bytes - 1, slot_bytes + 1] {
        for (op, number) in [(StoreOp::Write, 2), (StoreOp::Read, 1)] {
            let refused = rig.tier().submit(op, rig.block(number).0.key, Buffer::zeroed(bytes)).unwrap_err();
            assert_eq!(refused.buffer.as_slice().len(), bytes, "the buffer comes back");
            let expected = StoreError::Size { slot_bytes: slot_bytes as u64, found_bytes: bytes as u64 };
            assert_eq!(refused.error, expected);
        }
    }
    let mut done = Vec::new();
    rig.settle();
    rig.tier().poll(&mut done);
    assert!(done.is_empty(), "a refused operation has no completion");
}

fn every_buffer_comes_back<R: Rig>(rig: &R) {
    let mut waiting = Vec::new();
    for number in 0..3 {
        let (sealed, image) = rig.block(number);
        waiting.push(rig.tier().submit(StoreOp::Write, sealed.key, image).unwrap());
        let empty = Buffer::zeroed(rig.shape().slot_bytes() as usize);
        waiting.push(rig.tier().submit(StoreOp::Read, rig.block(number + 50).0.key, empty).unwrap());
        waiting.push(rig.tier().submit(StoreOp::Delete, rig.block(number + 60).0.key, Buffer::zeroed(0)).unwrap());
    }
    let mut done: Vec<Completion> = Vec::new();
    rig.settle();
    rig.tier().poll(&mut done);
    let mut ended: Vec<_> = done.iter().map(|completion| completion.op).collect();
    ended.sort_unstable();
    waiting.sort_unstable();
    assert_eq!(ended, waiting, "each operation ends once");
    rig.tier().poll(&mut done);
    assert_eq!(done.len(), waiting.len(), "a completion is polled once");
}

fn damaged_bytes_are_not_taken<R: Rig>(rig: &R) {
    let (sealed, mut image) = rig.block(1);
    image.as_mut_slice()[rig.shape().code_section(1).offset as usize] ^= 0x10;
    let (_, outcome) = run(rig, StoreOp::Write, sealed.key, image);
    let Outcome::Failed(error) = outcome else { panic!("damaged bytes were taken: {outcome:?}") };
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(read(rig, sealed.key).is_err());
    write(rig, 1).unwrap();
}

fn operations_are_bounded<R: Rig>(rig: &R) {
    let mut taken = 0;
    let refused = loop {
        match rig.tier().submit(StoreOp::Delete, rig.block(1).0.key, Buffer::zeroed(0)) {
            Ok(_) => taken += 1,
            Err(refused) => break refused,
        }
        assert!(taken < 1 << 20, "a store that is never polled takes operations without end");
    };
    assert_eq!(refused.error.kind(), ErrorKind::Retry);
    let mut done = Vec::new();
    rig.settle();
    rig.tier().poll(&mut done);
    assert_eq!(done.len(), taken);
    write(rig, 1).unwrap();
}
