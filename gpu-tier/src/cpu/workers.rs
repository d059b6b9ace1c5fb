//! A fixed team of compute threads with a barrier at the end of each task.
//!
//! One decoded token makes about two hundred calls of some twenty microseconds each, so a call must not cost a wake-up:
//! idle workers spin for a bounded time, then yield, and only then park. A part whose worker has not come by the time
//! the caller is done with its own is done by the caller: on a machine with other work, a call waits only for workers
//! that have begun.
//!
//! # Safety
//! The only unsafe part is the task, a reference whose lifetime is erased while other threads look at it:
//!
//! | State | `task` cell | Who touches it |
//! |---|---|---|
//! | idle (`remaining == 0`) | stale or `None` | the thread that holds `turn`, in `run` |
//! | running (`remaining > 0`) | points at the caller's closure | read by workers that claimed their part of this epoch |
//!
//! `run` writes the cell before it publishes the new `epoch` (release). Each part is claimed once, by moving its entry of
//! `claims` from the previous epoch to this one, and `remaining` falls by one after the claimant's last use of the
//! closure. `run` returns, or unwinds, only after it has seen `remaining == 0` (acquire), so whoever holds a claim of an
//! epoch finds that epoch's closure alive.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Pause instructions before the first yield: about 20 microseconds.
const SPINS_BEFORE_YIELD: u32 = 600;
/// Pause instructions between two yields.
const SPINS_BETWEEN_YIELDS: u32 = 32;
/// How long a thread yields before it parks. Yielding gives the core to whoever wants it, so this may be longer than
/// the spin: a wake-up on a virtual machine costs more than several calls.
const YIELD_FOR: Duration = Duration::from_micros(150);

thread_local! {
    /// Whether this thread is inside a task, of any team.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

type Task = *const (dyn Fn(usize) + Sync);
type Payload = Box<dyn Any + Send>;

/// A fixed team of compute threads. The caller is worker 0.
pub struct Workers {
    shared: Arc<Shared>,
    /// Held for the whole of one `run`: tasks of several callers take turns.
    turn: Mutex<()>,
    threads: Vec<JoinHandle<()>>,
}

/// A value on a cache line of its own.
#[repr(align(64))]
struct Line<T>(T);

struct Shared {
    /// Counts tasks; a change is the start signal. Wraps. Idle workers look at it all the time, so nothing else that the
    /// caller writes is near it.
    epoch: Line<AtomicUsize>,
    /// Parts of the current task that are not finished, without the caller's own.
    remaining: AtomicUsize,
    /// By worker: the last epoch whose part was claimed. Entry 0 is unused.
    claims: Vec<AtomicUsize>,
    stop: AtomicBool,
    task: UnsafeCell<Option<Task>>,
    panic: Mutex<Option<Payload>>,
    /// Where idle workers park.
    start: Parking,
    /// Where the caller parks.
    done: Parking,
}

// SAFETY: `task` is written only by the holder of `Workers::turn` while no worker runs, and read only between the
// `epoch` and `remaining` hand-overs (module header); the closure behind it is `Sync`. All other fields are `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is never used outside a `run` that keeps the closure alive.
unsafe impl Send for Shared {}

/// A place to sleep whose waker pays nothing when nobody sleeps there.
struct Parking {
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Parking {
    fn new() -> Parking {
        Parking { sleepers: AtomicUsize::new(0), lock: Mutex::new(()), wake: Condvar::new() }
    }

    /// Spins, yields, then sleeps until `ready()`.
    fn wait(&self, ready: impl Fn() -> bool) {
        for _ in 0..SPINS_BEFORE_YIELD {
            if ready() {
                return;
            }
            std::hint::spin_loop();
        }
        let since = Instant::now();
        while since.elapsed() < YIELD_FOR {
            std::thread::yield_now();
            for _ in 0..SPINS_BETWEEN_YIELDS {
                if ready() {
                    return;
                }
                std::hint::spin_loop();
            }
        }
        let mut guard = lock(&self.lock);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        // Pairs with the fence in `notify`: either the notifier sees this sleeper or this thread sees the change.
        fence(Ordering::SeqCst);
        while !ready() {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Wakes the sleepers, after the change that makes them ready.
    fn notify(&self) {
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.lock));
            self.wake.notify_all();
        }
    }
}

/// Locks; the data of these mutexes cannot be left half-changed, so poison says nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Workers {
    /// Starts `count - 1` threads named `kvtier-worker-1` and up.
    ///
    /// Panics when `count` is 0 or the system refuses a thread.
    pub fn new(count: usize) -> Workers {
        assert!(count > 0, "a team has at least one worker");
        let shared = Arc::new(Shared {
            epoch: Line(AtomicUsize::new(0)),
            remaining: AtomicUsize::new(0),
            claims: (0..count).map(|_| AtomicUsize::new(0)).collect(),
            stop: AtomicBool::new(false),
            task: UnsafeCell::new(None),
            panic: Mutex::new(None),
            start: Parking::new(),
            done: Parking::new(),
        });
        let mut workers = Workers { shared, turn: Mutex::new(()), threads: Vec::with_capacity(count - 1) };
        for worker in 1..count {
            let shared = Arc::clone(&workers.shared);
            let thread = std::thread::Builder::new()
                .name(format!("kvtier-worker-{worker}"))
                .spawn(move || shared.serve(worker))
                .expect("the system starts a compute thread");
            workers.threads.push(thread);
        }
        workers
    }

    /// Number of workers, the caller included.
    pub fn count(&self) -> usize {
        self.threads.len() + 1
    }

    /// Runs `task(worker)` once for each `worker` in `0..count`, and returns when all are done. Part 0 runs on the caller;
    /// another part runs on its thread, or on the caller when the thread has not begun by then.
    ///
    /// Calls from several threads take turns. A call from within a task (of any team) runs all its parts on the calling
    /// thread, in order. When a part panics the others still finish, then the panic continues on the caller.
    pub fn run(&self, task: &(dyn Fn(usize) + Sync)) {
        if self.threads.is_empty() || IN_TASK.get() {
            (0..self.count()).for_each(task);
            return;
        }
        let turn = lock(&self.turn);
        let shared = &*self.shared;
        // SAFETY: only the lifetime changes. The pointer is used by `serve` alone, and this function neither returns
        // nor unwinds before `remaining` is 0, after which no worker uses it (module header).
        let erased = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(task) };
        // SAFETY: this thread holds `turn` and `remaining` is 0, so no worker looks at the cell.
        unsafe { *shared.task.get() = Some(erased) };
        shared.remaining.store(self.threads.len(), Ordering::Relaxed);
        let epoch = shared.epoch.0.fetch_add(1, Ordering::Release).wrapping_add(1);
        shared.start.notify();

        let mut own = catch_unwind(AssertUnwindSafe(|| in_task(|| task(0))));
        for worker in 1..self.count() {
            if shared.claim(worker, epoch) {
                own = own.and(catch_unwind(AssertUnwindSafe(|| in_task(|| task(worker)))));
                shared.remaining.fetch_sub(1, Ordering::AcqRel);
            }
        }
        shared.done.wait(|| shared.remaining.load(Ordering::Acquire) == 0);
        let theirs = lock(&shared.panic).take();
        drop(turn);
        if let Err(payload) = own {
            resume_unwind(payload);
        }
        if let Some(payload) = theirs {
            resume_unwind(payload);
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.epoch.0.fetch_add(1, Ordering::Release);
        self.shared.start.notify();
        for thread in self.threads.drain(..) {
            // A worker catches its tasks' panics, so there is none to hear of here.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Takes a worker's part of an epoch; false when it is taken already, also when that epoch is long over.
    fn claim(&self, worker: usize, epoch: usize) -> bool {
        let before = epoch.wrapping_sub(1);
        self.claims[worker].compare_exchange(before, epoch, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// The life of one worker thread.
    fn serve(&self, worker: usize) {
        let mut seen = 0;
        loop {
            self.start.wait(|| self.epoch.0.load(Ordering::Acquire) != seen);
            seen = self.epoch.0.load(Ordering::Acquire);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            if !self.claim(worker, seen) {
                continue;
            }
            // SAFETY: this thread holds the claim of epoch `seen`, so the cell is that epoch's and stays until the
            // decrement below (module header).
            let task = unsafe { *self.task.get() };
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                // SAFETY: `run` keeps the closure alive until `remaining` is 0, which needs that decrement.
                in_task(|| task.into_iter().for_each(|task| unsafe { (*task)(worker) }));
            }));
            if let Err(payload) = outcome {
                lock(&self.panic).get_or_insert(payload);
            }
            if self.remaining.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.done.notify();
            }
        }
    }
}

/// Runs `body` with this thread marked as inside a task, also when it panics.
fn in_task(body: impl FnOnce()) {
    struct Mark;
    impl Drop for Mark {
        fn drop(&mut self) {
            IN_TASK.set(false);
        }
    }
    IN_TASK.set(true);
    let _mark = Mark;
    body();
}

/// The part of `0..len` that `worker` of `count` does: consecutive, in order, together exactly `0..len`; every start is
/// a multiple of `granularity`. Parts may be empty.
///
/// Panics when `granularity` or `count` is 0.
pub fn split(len: usize, granularity: usize, worker: usize, count: usize) -> Range<usize> {
    let units = len.div_ceil(granularity);
    let bound = |worker: usize| (units * worker / count * granularity).min(len);
    bound(worker)..bound(worker + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum_of_runs(workers: &Workers, runs: usize) -> Vec<usize> {
        let counts: Vec<AtomicUsize> = (0..workers.count()).map(|_| AtomicUsize::new(0)).collect();
        for _ in 0..runs {
            workers.run(&|worker| {
                counts[worker].fetch_add(1, Ordering::Relaxed);
            });
        }
        counts.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn each_worker_runs_once_per_call() {
        for count in [1, 2, 3, 7] {
            assert_eq!(sum_of_runs(&Workers::new(count), 500), vec![500; count]);
        }
    }

    #[test]
    fn parked_workers_wake() {
        let workers = Workers::new(3);
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(3));
            assert_eq!(sum_of_runs(&workers, 1), [1; 3]);
        }
    }

    #[test]
    fn callers_take_turns() {
        let workers = Workers::new(2);
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        workers.run(&|_| {
                            assert!(inside.fetch_add(1, Ordering::SeqCst) < 2, "two tasks at once");
                            inside.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
    }

    #[test]
    fn nested_call_runs_inline() {
        let workers = Workers::new(2);
        let seen = Mutex::new(Vec::new());
        workers.run(&|outer| {
            workers.run(&|inner| seen.lock().unwrap().push((outer, inner, std::thread::current().id())));
        });
        let seen = seen.into_inner().unwrap();
        assert_eq!(seen.len(), 4);
        for outer in 0..2 {
            let own: Vec<_> = seen.iter().filter(|entry| entry.0 == outer).collect();
            assert_eq!((own[0].1, own[1].1), (0, 1));
            assert_eq!(own[0].2, own[1].2);
        }
    }

    #[test]
    fn panic_reaches_the_caller_and_the_team_survives() {
        let workers = Workers::new(3);
        for culprit in 0..3 {
            let finished = AtomicUsize::new(0);
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                workers.run(&|worker| {
                    if worker == culprit {
                        resume_unwind(Box::new(culprit));
                    }
                    finished.fetch_add(1, Ordering::Relaxed);
                });
            }));
            assert_eq!(outcome.unwrap_err().downcast_ref::<usize>(), Some(&culprit));
            assert_eq!(finished.into_inner(), 2);
            assert_eq!(sum_of_runs(&workers, 10), [10; 3]);
        }
    }

    #[test]
    fn split_covers_in_order() {
        for (len, granularity) in [(0, 16), (1, 16), (48, 16), (577, 16), (31, 1)] {
            for count in [1, 2, 3, 8] {
                let mut next = 0;
                for worker in 0..count {
                    let part = split(len, granularity, worker, count);
                    assert_eq!(part.start, next);
                    assert!(part.start == len || part.start.is_multiple_of(granularity));
                    next = part.end;
                }
                assert_eq!(next, len);
            }
        }
    }
}
