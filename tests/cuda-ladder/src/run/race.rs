//! Bytes of global memory that one block writes and another one touches.

use std::collections::HashMap;

/// Bytes that share an entry.
const LINE: u64 = 64;
const MANY: u32 = u32::MAX;

/// Numbers of blocks plus one; 0: nobody.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    writer: u32,
    reader: u32,
    atomic: bool,
}

#[derive(Debug, Default)]
pub(super) struct GlobalMarks(HashMap<u64, Box<[Mark; LINE as usize]>>);

/// How a byte is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GlobalTouch {
    Read,
    Write,
    Atomic,
}

impl GlobalMarks {
    /// Notes an access. Returns another block that it races with, and the address.
    pub(super) fn touch(&mut self, touch: GlobalTouch, address: u64, bytes: usize, block: u32) -> Option<(u64, u32)> {
        let own = block + 1;
        for at in address..address + bytes as u64 {
            let line = self.0.entry(at / LINE).or_insert_with(|| Box::new([Mark::default(); LINE as usize]));
            let mark = &mut line[(at % LINE) as usize];
            let foreign = |other: u32| other != 0 && other != own;
            let both_atomic = mark.atomic && touch == GlobalTouch::Atomic;
            if foreign(mark.writer) && !both_atomic {
                return Some((at, mark.writer - 1));
            }
            if touch == GlobalTouch::Read {
                mark.reader = if foreign(mark.reader) { MANY } else { own };
                continue;
            }
            if foreign(mark.reader) {
                return Some((at, if mark.reader == MANY { 0 } else { mark.reader - 1 }));
            }
            mark.writer = if both_atomic && foreign(mark.writer) { MANY } else { own };
            mark.atomic = touch == GlobalTouch::Atomic;
        }
        None
    }
}
