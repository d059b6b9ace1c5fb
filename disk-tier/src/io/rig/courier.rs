//! Does jobs later, or at least elsewhere: a rig never calls its sink from inside `submit`.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::super::ends::lock;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Bag {
    /// By due time, and by the order of coming among equals.
    jobs: BTreeMap<(Instant, u64), Job>,
    coming: u64,
    stopped: bool,
    /// Threads of jobs that came after the stop.
    late: Vec<JoinHandle<()>>,
}

pub(super) struct Courier {
    bag: Arc<(Mutex<Bag>, Condvar)>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Courier {
    pub(super) fn new() -> Courier {
        let bag = Arc::new((Mutex::new(Bag::default()), Condvar::new()));
        let theirs = Arc::clone(&bag);
        let thread = std::thread::Builder::new()
            .name("disk-rig".into())
            .spawn(move || run(&theirs))
            .expect("a test can start a thread");
        Courier { bag, thread: Mutex::new(Some(thread)) }
    }

    /// Does the job after `millis`; jobs of equal delay in the order of coming. After the stop it is done at once, on a thread of its own.
    pub(super) fn after(&self, millis: u64, job: impl FnOnce() + Send + 'static) {
        let mut bag = lock(&self.bag.0);
        if bag.stopped {
            bag.late.push(std::thread::spawn(job));
            return;
        }
        let key = (Instant::now() + Duration::from_millis(millis), bag.coming);
        bag.coming += 1;
        bag.jobs.insert(key, Box::new(job));
        self.bag.1.notify_one();
    }

    /// Does what is left, without waiting for its time, and ends the threads. A medium stops it before and after what it stands on, since ends
    /// that are told there may bring more jobs.
    pub(super) fn stop(&self) {
        lock(&self.bag.0).stopped = true;
        self.bag.1.notify_one();
        let mut threads: Vec<JoinHandle<()>> = lock(&self.thread).take().into_iter().collect();
        loop {
            threads.append(&mut lock(&self.bag.0).late);
            if threads.is_empty() {
                return;
            }
            for thread in threads.drain(..).filter(|thread| thread.thread().id() != std::thread::current().id()) {
                // A job that panicked has printed its message; the test fails by what it did not hear.
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(bag: &(Mutex<Bag>, Condvar)) {
    let (jobs, changed) = bag;
    let mut guard = lock(jobs);
    loop {
        let now = Instant::now();
        let first = guard.jobs.first_key_value().map(|(key, _)| key.0);
        guard = match first {
            Some(due) if due <= now || guard.stopped => {
                let job = guard.jobs.pop_first().map(|(_, job)| job);
                drop(guard);
                if let Some(job) = job {
                    job();
                }
                lock(jobs)
            }
            Some(due) => changed.wait_timeout(guard, due - now).unwrap_or_else(PoisonError::into_inner).0,
            None if guard.stopped => return,
            None => changed.wait(guard).unwrap_or_else(PoisonError::into_inner),
        };
    }
}
