//! Shared memory of a block, and for each byte who touched it last.

use super::order::Order;
use crate::fault::{FaultKind, Wrong};

/// Who touched a byte last. Times are [`Order`]'s; 0 is never.
#[derive(Clone, Copy, Debug, Default)]
struct Mark {
    written: u32,
    read: u32,
    /// Warps whose last reads are ordered before nobody's write yet.
    readers: u32,
    writer: u16,
    /// Lane of the last reading warp, or [`MANY`].
    reader: u8,
    state: u8,
}

const MANY: u8 = 255;
/// An asynchronous copy to the byte has not been waited for.
const PENDING: u8 = 1;
/// The last write was an atomic.
const ATOMIC: u8 = 2;

/// What an access wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touch {
    Read,
    Write,
    Atomic,
    /// The start of an asynchronous copy.
    Start,
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) data: Vec<u8>,
    marks: Vec<Mark>,
}

impl Shared {
    /// Everything is unwritten again.
    pub(super) fn reset(&mut self, bytes: usize) {
        self.data.clear();
        self.data.resize(bytes, 0xFF);
        self.marks.clear();
        self.marks.resize(bytes, Mark::default());
    }

    fn check_range(&self, address: u64, bytes: usize, thread: u16) -> Result<usize, Wrong> {
        let end = address.checked_add(bytes as u64);
        if end.is_some_and(|end| end <= self.data.len() as u64) {
            return Ok(address as usize);
        }
        let detail = format!("{bytes} bytes at shared address {address}, of {}", self.data.len());
        Err(Wrong::new(FaultKind::OutOfBounds, u32::from(thread % 32), detail))
    }

    /// Checks an access against all earlier ones and notes it. `new`: what a write writes.
    pub(super) fn touch(
        &mut self,
        order: &Order,
        touch: Touch,
        address: u64,
        bytes: usize,
        thread: u16,
        new: &[u8],
    ) -> Result<usize, Wrong> {
        let start = self.check_range(address, bytes, thread)?;
        for index in start..start + bytes {
            let same = new.get(index - start) == Some(&self.data[index]);
            self.touch_byte(order, touch, index, thread, same)?;
        }
        Ok(start)
    }

    fn touch_byte(&mut self, order: &Order, touch: Touch, index: usize, thread: u16, same: bool) -> Result<(), Wrong> {
        let mark = &mut self.marks[index];
        let race = |what: &str, other: u16| {
            let detail = format!("{what} at byte {index} with thread {other}");
            Err(Wrong::new(FaultKind::SharedRace, u32::from(thread % 32), detail))
        };
        if mark.state & PENDING != 0 {
            let detail = format!("byte {index}, whose copy thread {} started", mark.writer);
            return Err(Wrong::new(FaultKind::PendingCopy, u32::from(thread % 32), detail));
        }
        let reads = matches!(touch, Touch::Read | Touch::Atomic);
        if reads && mark.written == 0 {
            let detail = format!("byte {index} of shared memory");
            return Err(Wrong::new(FaultKind::UninitialisedShared, u32::from(thread % 32), detail));
        }
        let both_atomic = touch == Touch::Atomic && mark.state & ATOMIC != 0;
        // Two that write the same value do no harm.
        let harmless = touch == Touch::Write && same;
        if mark.written != 0 && !both_atomic && !harmless && !order.is_before(mark.writer, mark.written, thread) {
            return race(if touch == Touch::Read { "load after store" } else { "store after store" }, mark.writer);
        }
        if touch == Touch::Read {
            note_read(mark, order, thread);
            return Ok(());
        }
        if let Some(other) = unordered_reader(mark, order, thread) {
            return race("store after load", other);
        }
        *mark = Mark {
            written: order.now,
            writer: thread,
            state: match touch {
                Touch::Start => PENDING,
                Touch::Atomic => ATOMIC,
                _ => 0,
            },
            ..Mark::default()
        };
        Ok(())
    }

    /// Ends an asynchronous copy: its bytes are written now.
    pub(super) fn finish(&mut self, order: &Order, start: usize, data: &[u8], thread: u16) {
        self.data[start..start + data.len()].copy_from_slice(data);
        for mark in &mut self.marks[start..start + data.len()] {
            *mark = Mark { written: order.now, writer: thread, ..Mark::default() };
        }
    }
}

fn note_read(mark: &mut Mark, order: &Order, thread: u16) {
    let (warp, lane) = (usize::from(thread / 32), (thread % 32) as u8);
    let own = 1u32 << warp;
    if mark.read == order.now && mark.readers & own != 0 {
        if mark.reader != lane {
            mark.reader = MANY;
        }
        return;
    }
    // Reads that come before this one need not be remembered beside it.
    let mut kept = 0;
    for reader in crate::instruction::lanes(mark.readers) {
        if !order.is_warp_before(reader, mark.read, thread) {
            kept |= 1 << reader;
        }
    }
    let alone = kept & own == 0 || mark.reader == lane;
    mark.reader = if alone && kept & !own == 0 { lane } else { MANY };
    mark.readers = kept | own;
    mark.read = order.now;
}

/// A reader whose read does not come before a write of `thread`.
fn unordered_reader(mark: &Mark, order: &Order, thread: u16) -> Option<u16> {
    let warp = u16::from((thread / 32) as u8);
    for reader in crate::instruction::lanes(mark.readers) {
        let reader = reader as u16;
        if reader == warp && mark.reader != MANY {
            let other = 32 * reader + u16::from(mark.reader);
            if !order.is_before(other, mark.read, thread) {
                return Some(other);
            }
        } else if !order.is_warp_before(usize::from(reader), mark.read, thread) {
            return Some(32 * reader + if mark.reader == MANY { 0 } else { u16::from(mark.reader) });
        }
    }
    None
}
