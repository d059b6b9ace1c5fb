//! How kernels of PTX are run, and what they did: schedules, perturbation, counts and the text of the last failure.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cuda_ladder::{Approximation, Counts, KINDS, Kind, Launch, Schedule};

struct State {
    schedule: Schedule,
    approximation: Approximation,
    global_races: bool,
    /// Sums over all launches, and how many there were.
    counts: BTreeMap<String, (u64, Counts)>,
    message: String,
}

const DEFAULT: State = State {
    schedule: Schedule::Forward,
    approximation: Approximation::Exact,
    global_races: false,
    counts: BTreeMap::new(),
    message: String::new(),
};

static STATE: Mutex<State> = Mutex::new(DEFAULT);

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Back to the defaults, counts and message included.
pub(crate) fn reset() {
    *state() = DEFAULT;
}

/// Keeps a failure's text, and prints it: driver codes alone say too little.
pub(crate) fn say(message: String) {
    eprintln!("cuda double: {message}");
    state().message = message;
}

/// A launch under the conditions that were set. Each launch of a random schedule has a seed of its own.
pub(crate) fn conditions(launch: Launch<'_>) -> Launch<'_> {
    let mut state = state();
    if let Schedule::Random(seed) = &mut state.schedule {
        *seed = seed.wrapping_add(1);
    }
    let State { schedule, approximation, global_races, .. } = *state;
    Launch { schedule, approximation, global_races, ..launch }
}

pub(crate) fn add(kernel: &str, counts: &Counts) {
    let mut state = state();
    let (launches, sum) = state.counts.entry(kernel.to_owned()).or_default();
    *launches += 1;
    *sum += counts;
}

/// Sets the order of threads: 0 forward, 1 reverse, 2 random from `seed`.
#[unsafe(no_mangle)]
extern "C" fn cuda_double_set_schedule(kind: u32, seed: u64) {
    state().schedule = match kind {
        0 => Schedule::Forward,
        1 => Schedule::Reverse,
        _ => Schedule::Random(seed),
    };
}

/// Perturbs results of `.approx` by up to `ulps`; 0 ends that.
#[unsafe(no_mangle)]
extern "C" fn cuda_double_set_approximation(seed: u64, ulps: u32) {
    let approximation = if ulps == 0 { Approximation::Exact } else { Approximation::Perturbed { seed, ulps } };
    state().approximation = approximation;
}

/// Looks for bytes that one block of a launch writes and another one touches.
#[unsafe(no_mangle)]
extern "C" fn cuda_double_set_global_races(look: bool) {
    state().global_races = look;
}

/// What launches of a kernel did in sum.
#[repr(C)]
#[derive(Default)]
struct KernelCounts {
    launches: u64,
    warp_instructions: u64,
    thread_instructions: u64,
    global_load_bytes: u64,
    global_store_bytes: u64,
    global_requests: u64,
    global_sectors: u64,
    global_sectors_least: u64,
    global_coalesced16_bytes: u64,
    shared_requests: u64,
    shared_conflicts: u64,
    barriers: u64,
    matrix_multiply_adds: u64,
    special_instructions: u64,
    local_bytes: u64,
    /// Instructions of threads, by [`Kind`].
    by_kind: [u64; KINDS],
}

/// Sets all counts to zero.
#[unsafe(no_mangle)]
extern "C" fn cuda_double_forget_counts() {
    state().counts.clear();
}

/// Counts of launches since the last reset, of all kernels whose names begin with `kernel`; zero when none has run.
///
/// # Safety
/// `kernel` is a C string.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuda_double_kernel_counts(kernel: *const c_char) -> KernelCounts {
    // SAFETY: the caller passes a string that ends in a zero byte.
    let kernel = unsafe { CStr::from_ptr(kernel) }.to_string_lossy();
    let state = state();
    let (mut launches, mut counts) = (0, Counts::default());
    for (_, (more, some)) in
        state.counts.range((*kernel).to_owned()..).take_while(|(name, _)| name.starts_with(&*kernel))
    {
        launches += more;
        counts += some;
    }
    KernelCounts {
        launches,
        warp_instructions: counts.warp_total(),
        thread_instructions: counts.thread_total(),
        global_load_bytes: counts.global_load_bytes.iter().sum(),
        global_store_bytes: counts.global_store_bytes.iter().sum(),
        global_requests: counts.global_requests,
        global_sectors: counts.global_sectors,
        global_sectors_least: counts.global_sectors_least,
        global_coalesced16_bytes: counts.global_coalesced16_bytes,
        shared_requests: counts.shared_requests,
        shared_conflicts: counts.shared_conflicts,
        barriers: counts.barriers,
        matrix_multiply_adds: counts.matrix_multiply_adds,
        special_instructions: counts.threads(Kind::Special),
        local_bytes: counts.local_bytes,
        by_kind: counts.thread_instructions,
    }
}

/// Copies the text of the last failure since the last reset, cut to `room` bytes, and returns its whole length.
///
/// # Safety
/// `text` is writable for `room` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuda_double_message(text: *mut u8, room: usize) -> usize {
    let state = state();
    let message = state.message.as_bytes();
    // SAFETY: the caller vouches for `room` bytes, and no more than those are written.
    unsafe { text.copy_from_nonoverlapping(message.as_ptr(), message.len().min(room)) };
    message.len()
}
