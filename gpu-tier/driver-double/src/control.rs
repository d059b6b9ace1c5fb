//! What a real driver lacks: faults, gates, jitter, limits and counters, as exported symbols `cuda_double_*`.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use crate::status::Code;
use crate::stream::Kind;
use crate::{card, event, log, memory, module, report, stream};

/// Environment variable: each job sleeps a pseudo-random time up to this many microseconds before it runs.
const JITTER: &str = "CUDA_DOUBLE_JITTER_US";

/// The environment's jitter holds.
const UNSET: u64 = u64::MAX;

/// Operations that can be told to fail.
#[derive(Clone, Copy)]
pub(crate) enum Fault {
    /// Fails when it is called.
    Allocate = 0,
    /// Fails when it runs on its stream.
    Copy = 1,
    /// Fails when it runs on its stream.
    Launch = 2,
}

/// Jobs that are counted when they run.
#[derive(Clone, Copy)]
pub(crate) enum Counted {
    Copy = 0,
    Launch = 1,
}

struct Countdown {
    /// Operations until the one that fails; 0: none will.
    left: AtomicU64,
    code: AtomicU32,
}

impl Countdown {
    const fn new() -> Countdown {
        Countdown { left: AtomicU64::new(0), code: AtomicU32::new(0) }
    }
}

static FAULTS: [Countdown; 3] = [const { Countdown::new() }; 3];
static COUNTS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static REFUSE_REGISTRATION: AtomicBool = AtomicBool::new(false);
static READ_ONLY_REGISTRATION: AtomicBool = AtomicBool::new(true);
static JITTER_US: AtomicU64 = AtomicU64::new(UNSET);
static ENVIRONMENT: LazyLock<u64> =
    LazyLock::new(|| std::env::var(JITTER).ok().and_then(|text| text.parse().ok()).unwrap_or(0));
static SEED: AtomicU64 = AtomicU64::new(0x9E37_79B9_7F4A_7C15);
/// Mask of [`Kind`] bits whose jobs wait at the gate.
static HELD: Mutex<u32> = Mutex::new(0);
static RELEASED: Condvar = Condvar::new();

/// Takes part in a countdown: fails if this operation is the chosen one.
pub(crate) fn fault(kind: Fault) -> Result<(), Code> {
    let countdown = &FAULTS[kind as usize];
    let before = countdown.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
    if before == Ok(1) { Err(Code(countdown.code.load(Ordering::SeqCst))) } else { Ok(()) }
}

pub(crate) fn count(what: Counted) {
    COUNTS[what as usize].fetch_add(1, Ordering::SeqCst);
}

pub(crate) fn refuses_registration() -> bool {
    REFUSE_REGISTRATION.load(Ordering::SeqCst)
}

pub(crate) fn registers_read_only() -> bool {
    READ_ONLY_REGISTRATION.load(Ordering::SeqCst)
}

/// What a job does before it runs: waits while its kind is held, then sleeps if there is jitter.
pub(crate) fn pass(kind: Kind) {
    let mut held = HELD.lock().unwrap_or_else(PoisonError::into_inner);
    while *held & kind as u32 != 0 {
        held = RELEASED.wait(held).unwrap_or_else(PoisonError::into_inner);
    }
    drop(held);
    let limit = match JITTER_US.load(Ordering::SeqCst) {
        UNSET => *ENVIRONMENT,
        limit => limit,
    };
    if limit > 0 {
        // A Weyl sequence through the finaliser of splitmix64 (Steele et al. 2014): cheap, and different for each job.
        let step = SEED.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::SeqCst);
        let mixed = (step ^ (step >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        std::thread::sleep(Duration::from_micros((mixed >> 32) % (limit + 1)));
    }
}

/// Back to the defaults; forgets host functions and counts, and sets the high-water mark to what is live.
#[unsafe(no_mangle)]
extern "C" fn cuda_double_reset() {
    FAULTS.iter().for_each(|countdown| countdown.left.store(0, Ordering::SeqCst));
    COUNTS.iter().for_each(|count| count.store(0, Ordering::SeqCst));
    REFUSE_REGISTRATION.store(false, Ordering::SeqCst);
    READ_ONLY_REGISTRATION.store(true, Ordering::SeqCst);
    cuda_double_set_jitter_us(UNSET);
    cuda_double_hold(0);
    module::forget();
    report::reset();
    log::cuda_double_log(false);
    card::cuda_double_set_capability(0);
    card::cuda_double_set_driver(0);
    cuda_double_misalign(false);
    cuda_double_set_capacity(memory::DEFAULT_CAPACITY);
}

/// Jobs of the kinds in `mask` wait at the gate until a call with a mask that lacks them: 1 host to device, 2 device to host,
/// 4 device to device, 8 fills, 16 launches, 32 host functions.
#[unsafe(no_mangle)]
extern "C" fn cuda_double_hold(mask: u32) {
    *HELD.lock().unwrap_or_else(PoisonError::into_inner) = mask;
    RELEASED.notify_all();
}

/// Overrides the environment's jitter, in microseconds.
#[unsafe(no_mangle)]
extern "C" fn cuda_double_set_jitter_us(limit: u64) {
    JITTER_US.store(limit, Ordering::SeqCst);
}

/// Limits device memory.
#[unsafe(no_mangle)]
extern "C" fn cuda_double_set_capacity(bytes: usize) {
    memory::write().set_capacity(bytes);
}

/// Makes `cuMemHostRegister` answer that it is not supported.
#[unsafe(no_mangle)]
extern "C" fn cuda_double_refuse_registration(refuse: bool) {
    REFUSE_REGISTRATION.store(refuse, Ordering::SeqCst);
}

/// Whether `cuMemHostRegister` takes `CU_MEMHOSTREGISTER_READ_ONLY`, as the device's attribute says.
#[unsafe(no_mangle)]
extern "C" fn cuda_double_set_read_only_registration(supported: bool) {
    READ_ONLY_REGISTRATION.store(supported, Ordering::SeqCst);
}

/// Gives blocks no more alignment than the driver promises, 256 bytes.
#[unsafe(no_mangle)]
extern "C" fn cuda_double_misalign(misalign: bool) {
    memory::write().set_misalign(misalign);
}

/// Fails the `nth` operation from now (1 is the next) with `code`. Kinds: 0 allocation, 1 copy, 2 launch; others are ignored.
#[unsafe(no_mangle)]
extern "C" fn cuda_double_fail(kind: u32, nth: u64, code: u32) {
    if let Some(countdown) = FAULTS.get(kind as usize) {
        countdown.code.store(code, Ordering::SeqCst);
        countdown.left.store(nth, Ordering::SeqCst);
    }
}

/// What exists and what has run.
#[repr(C)]
struct Counters {
    live_bytes: u64,
    peak_bytes: u64,
    live_blocks: u64,
    pinned_bytes: u64,
    streams: u64,
    events: u64,
    modules: u64,
    copies: u64,
    launches: u64,
    read_only_bytes: u64,
}

#[unsafe(no_mangle)]
extern "C" fn cuda_double_counters() -> Counters {
    let [live_bytes, peak_bytes, live_blocks, pinned_bytes, read_only_bytes] = memory::read().usage();
    let [copies, launches] = COUNTS.each_ref().map(|count| count.load(Ordering::SeqCst));
    Counters {
        live_bytes,
        peak_bytes,
        live_blocks,
        pinned_bytes,
        streams: stream::count(),
        events: event::count(),
        modules: module::count(),
        copies,
        launches,
        read_only_bytes,
    }
}
