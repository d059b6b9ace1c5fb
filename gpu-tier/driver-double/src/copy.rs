//! Copies and fills.

use crate::control::{self, Counted, Fault};
use crate::memory::{Memory, read};
use crate::status::{Code, answer};
use crate::stream::{self, Kind, Stream};
use crate::{context, memory};

/// Host bytes of a copy: where pinned memory is, or what was there when the call was made.
enum Source {
    Pinned(usize),
    Staged(Vec<u8>),
}

/// What every copy and fill does first: context, stream, bounds of one device range.
fn enter(stream: usize, address: u64, bytes: usize) -> Result<std::sync::Arc<Stream>, Code> {
    context::enter()?;
    memory::read().device(address, bytes).ok_or(Code::INVALID_VALUE)?;
    stream::find(stream)
}

fn running(memory: &Memory, address: u64, bytes: usize) -> Result<*mut u8, Code> {
    control::count(Counted::Copy);
    memory.device(address, bytes).ok_or(Code::ILLEGAL_ADDRESS)
}

/// # Safety
/// `source` is readable for `bytes` bytes: until this returns, or if it is pinned until the stream has done the copy.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyHtoDAsync_v2(target: u64, source: *const u8, bytes: usize, stream: usize) -> u32 {
    answer(enter(stream, target, bytes).and_then(|stream| {
        let fault = control::fault(Fault::Copy);
        let source = if read().is_pinned(source as usize, bytes) {
            Source::Pinned(source as usize)
        } else {
            let mut staged = vec![0; bytes];
            // SAFETY: the caller vouches for `source` during this call.
            unsafe { staged.as_mut_ptr().copy_from_nonoverlapping(source, bytes) };
            Source::Staged(staged)
        };
        stream.enqueue(Kind::CopyIn, move || {
            fault?;
            let memory = read();
            let place = running(&memory, target, bytes)?;
            let from = match &source {
                Source::Pinned(address) if memory.is_pinned(*address, bytes) => *address as *const u8,
                Source::Pinned(_) => return Err(Code::ILLEGAL_ADDRESS),
                Source::Staged(staged) => staged.as_ptr(),
            };
            // SAFETY: both ranges were checked under the read lock that is still held; host and device blocks are different
            // mappings.
            unsafe { place.copy_from_nonoverlapping(from, bytes) };
            Ok(())
        })
    }))
}

/// # Safety
/// `target` is writable for `bytes` bytes: until this returns, or if it is pinned until the stream has done the copy.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemcpyDtoHAsync_v2(target: *mut u8, source: u64, bytes: usize, stream: usize) -> u32 {
    answer(enter(stream, source, bytes).and_then(|stream| {
        let fault = control::fault(Fault::Copy);
        let target = target as usize;
        if read().is_pinned_read_only(target, bytes) {
            return Err(Code::INVALID_VALUE);
        }
        let pinned = read().is_pinned(target, bytes);
        stream.enqueue(Kind::CopyOut, move || {
            fault?;
            let memory = read();
            let place = running(&memory, source, bytes)?;
            if pinned && !memory.is_pinned(target, bytes) {
                return Err(Code::ILLEGAL_ADDRESS);
            }
            // SAFETY: the device range and a pinned target were checked under the read lock that is still held; a pageable
            // target is the caller's until the call returns, which is after this job.
            unsafe { (target as *mut u8).copy_from_nonoverlapping(place, bytes) };
            Ok(())
        })?;
        if !pinned {
            stream.drain();
            context::healthy()?;
        }
        Ok(())
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(target: u64, source: u64, bytes: usize, stream: usize) -> u32 {
    answer(enter(stream, target, bytes).and_then(|stream| {
        read().device(source, bytes).ok_or(Code::INVALID_VALUE)?;
        let fault = control::fault(Fault::Copy);
        stream.enqueue(Kind::CopyWithin, move || {
            fault?;
            let memory = read();
            let (from, to) =
                (memory.device(source, bytes).ok_or(Code::ILLEGAL_ADDRESS)?, running(&memory, target, bytes)?);
            if (from as usize).abs_diff(to as usize) < bytes {
                return Err(Code::INVALID_VALUE);
            }
            // SAFETY: both ranges were checked under the read lock that is still held, and do not overlap.
            unsafe { to.copy_from_nonoverlapping(from, bytes) };
            Ok(())
        })
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(target: u64, value: u8, bytes: usize, stream: usize) -> u32 {
    answer(enter(stream, target, bytes).and_then(|stream| {
        stream.enqueue(Kind::Set, move || {
            let memory = read();
            let place = memory.device(target, bytes).ok_or(Code::ILLEGAL_ADDRESS)?;
            // SAFETY: the range was checked under the read lock that is still held.
            unsafe { place.write_bytes(value, bytes) };
            Ok(())
        })
    }))
}
