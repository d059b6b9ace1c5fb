//! Events: a count of records and a count of completions.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::context;
use crate::status::{Code, answer};
use crate::stream::{self, Kind};

/// `CU_EVENT_DISABLE_TIMING`.
const DISABLE_TIMING: u32 = 2;

struct Event {
    timed: bool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    recorded: u64,
    done: u64,
    at: Option<Instant>,
}

static NEXT: AtomicUsize = AtomicUsize::new(1);
static EVENTS: Mutex<Option<HashMap<usize, Arc<Event>>>> = Mutex::new(None);

fn events() -> MutexGuard<'static, Option<HashMap<usize, Arc<Event>>>> {
    EVENTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Events that exist.
pub(crate) fn count() -> u64 {
    events().as_ref().map_or(0, |events| events.len() as u64)
}

fn find(handle: usize) -> Result<Arc<Event>, Code> {
    events().as_ref().and_then(|events| events.get(&handle)).cloned().ok_or(Code::INVALID_HANDLE)
}

impl Event {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complete(&self, record: u64) {
        let mut state = self.state();
        state.done = state.done.max(record);
        state.at = Some(Instant::now());
        self.changed.notify_all();
    }

    fn wait(&self, record: u64) {
        let mut state = self.state();
        while state.done < record {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// # Safety
/// `handle` is writable.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(handle: *mut usize, flags: u32) -> u32 {
    answer(context::enter().map(|()| {
        let id = NEXT.fetch_add(1, Ordering::SeqCst);
        let event = Event { timed: flags & DISABLE_TIMING == 0, state: Mutex::default(), changed: Condvar::new() };
        events().get_or_insert_default().insert(id, Arc::new(event));
        // SAFETY: the caller passes a place for one handle.
        unsafe { handle.write(id) };
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(handle: usize) -> u32 {
    let removed = events().as_mut().and_then(|events| events.remove(&handle));
    answer(removed.ok_or(Code::INVALID_HANDLE).and_then(|_| context::healthy()))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(handle: usize, stream: usize) -> u32 {
    answer(context::enter().and_then(|()| {
        let (event, stream) = (find(handle)?, stream::find(stream)?);
        let record = {
            let mut state = event.state();
            state.recorded += 1;
            state.recorded
        };
        stream.enqueue(Kind::Order, move || {
            event.complete(record);
            Ok(())
        })
    }))
}

/// Waits for the records made before this call, as the driver documents it; later ones do not count.
#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: usize, handle: usize, _flags: u32) -> u32 {
    answer(context::enter().and_then(|()| {
        let (event, stream) = (find(handle)?, stream::find(stream)?);
        let record = event.state().recorded;
        stream.enqueue(Kind::Order, move || {
            event.wait(record);
            Ok(())
        })
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(handle: usize) -> u32 {
    answer(context::enter().and_then(|()| {
        let event = find(handle)?;
        let state = event.state();
        if state.done < state.recorded { Err(Code::NOT_READY) } else { context::healthy() }
    }))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(handle: usize) -> u32 {
    answer(context::enter().and_then(|()| {
        let event = find(handle)?;
        let record = event.state().recorded;
        event.wait(record);
        context::healthy()
    }))
}

/// # Safety
/// `milliseconds` is writable.
unsafe fn elapsed(milliseconds: *mut f32, start: usize, end: usize) -> Result<(), Code> {
    context::enter()?;
    let (start, end) = (find(start)?, find(end)?);
    if !start.timed || !end.timed {
        return Err(Code::INVALID_HANDLE);
    }
    let at = |event: &Event| {
        let state = event.state();
        if state.done < state.recorded { Err(Code::NOT_READY) } else { state.at.ok_or(Code::INVALID_HANDLE) }
    };
    let span = at(&end)?.saturating_duration_since(at(&start)?);
    // SAFETY: the caller passes a place for one float.
    unsafe { milliseconds.write(span.as_secs_f32() * 1e3) };
    Ok(())
}

/// # Safety
/// `milliseconds` is writable.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime(milliseconds: *mut f32, start: usize, end: usize) -> u32 {
    // SAFETY: passed on.
    answer(unsafe { elapsed(milliseconds, start, end) })
}

/// # Safety
/// `milliseconds` is writable.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime_v2(milliseconds: *mut f32, start: usize, end: usize) -> u32 {
    // SAFETY: passed on.
    answer(unsafe { elapsed(milliseconds, start, end) })
}
