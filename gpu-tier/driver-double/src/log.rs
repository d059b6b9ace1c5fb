//! When jobs ran, in the order in which streams began and ended them: which went on at the same time.

use std::ffi::{CStr, c_char};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A job that has begun.
struct Run {
    /// A kernel's, or the kind of another job.
    name: String,
    stream: usize,
    begun: u64,
    /// `None` while it runs.
    ended: Option<u64>,
}

struct Log {
    keeps: bool,
    /// Beginnings and ends so far.
    moments: u64,
    runs: Vec<Run>,
}

static LOG: Mutex<Log> = Mutex::new(Log { keeps: false, moments: 0, runs: Vec::new() });

fn log() -> MutexGuard<'static, Log> {
    LOG.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    fn now(&mut self) -> u64 {
        self.moments += 1;
        self.moments
    }
}

/// A stream (any number that is its own) has come to a job. Returns what [`end`] wants to know.
pub(crate) fn begin(name: &str, stream: usize) -> Option<usize> {
    let mut log = log();
    if !log.keeps {
        return None;
    }
    let begun = log.now();
    log.runs.push(Run { name: name.to_owned(), stream, begun, ended: None });
    Some(log.runs.len() - 1)
}

pub(crate) fn end(run: Option<usize>) {
    let mut log = log();
    let now = log.now();
    if let Some(run) = run.and_then(|index| log.runs.get_mut(index)) {
        run.ended = Some(now);
    }
}

/// Forgets all runs; keeps those that come when it is told to. Called while no stream has work.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuda_double_log(keep: bool) {
    let mut log = log();
    log.keeps = keep;
    log.runs.clear();
}

/// How many runs of jobs whose names begin with `first` went on, for some time, beside one in another stream whose name begins with `second`.
/// Names are those of kernels, and `copy in`, `copy out`, `copy within`, `fill` and `host function`.
///
/// # Safety
/// Both are C strings.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuda_double_side_by_side(first: *const c_char, second: *const c_char) -> u64 {
    // SAFETY: the caller passes strings that end in a zero byte.
    let [first, second] = [first, second].map(|name| unsafe { CStr::from_ptr(name) }.to_string_lossy());
    let log = log();
    let named = |prefix: &str| log.runs.iter().filter(|run| run.name.starts_with(prefix)).collect::<Vec<_>>();
    let others = named(&second);
    let before = |one: &Run, other: &Run| one.ended.is_some_and(|ended| ended < other.begun);
    let beside = |one: &Run, other: &Run| one.stream != other.stream && !before(one, other) && !before(other, one);
    named(&first).iter().filter(|run| others.iter().any(|other| beside(run, other))).count() as u64
}
