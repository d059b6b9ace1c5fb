//! The thread that makes a client's calls, one after the other, behind a queue that has an end.
//!
//! A call counts from its submission until its result was polled, and no more than `queue_max` of them are let in: so neither
//! queue grows. The eventfd is readable
//! exactly while there are results to poll.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use kvtier_sdk::plugin::SharedPlugin;

use crate::codes::kvtier_code;
use crate::guard::{Failure, caught};
use crate::result::{Done, kvtier_result};

/// A call to be made.
pub(crate) type Work = Box<dyn FnOnce(&SharedPlugin) -> Result<Done, Failure> + Send>;

struct Job {
    op: u64,
    work: Work,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    done: VecDeque<kvtier_result>,
    /// Submitted and not polled.
    open: usize,
    next_op: u64,
    /// What is to be dropped where waiting does not matter.
    leftovers: Vec<Box<dyn Send>>,
    ends: bool,
}

pub(crate) struct Worker {
    state: Mutex<State>,
    wake: Condvar,
    event: OwnedFd,
    queue_max: usize,
    /// The last call was for a request with a name.
    is_tagged: AtomicBool,
}

impl Worker {
    pub(crate) fn new(queue_max: usize) -> Result<Worker, Failure> {
        use rustix::event::{EventfdFlags, eventfd};
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| Failure::new(kvtier_code::KVTIER_IO, format!("failed to make an eventfd: {error}")))?;
        Ok(Worker {
            state: Mutex::default(),
            wake: Condvar::new(),
            event,
            queue_max,
            is_tagged: AtomicBool::new(false),
        })
    }

    pub(crate) fn event(&self) -> &OwnedFd {
        &self.event
    }

    /// Lets a call in and returns its number.
    pub(crate) fn submit(&self, work: Work) -> Result<u64, Failure> {
        let mut state = self.state();
        if state.open >= self.queue_max {
            let message = format!("failed to take a call: {} are under way or wait to be polled", state.open);
            return Err(Failure::new(kvtier_code::KVTIER_BUSY, message));
        }
        state.open += 1;
        state.next_op += 1;
        let op = state.next_op;
        state.queue.push_back(Job { op, work });
        self.wake.notify_one();
        Ok(op)
    }

    /// Takes results, the oldest first, at most so many.
    pub(crate) fn poll(&self, most: usize) -> Vec<kvtier_result> {
        let mut state = self.state();
        let count = state.done.len().min(most);
        let results: Vec<_> = state.done.drain(..count).collect();
        state.open -= results.len();
        if state.done.is_empty() {
            // Not readable any more. It may not have been.
            let mut count = [0; 8];
            let _ = rustix::io::read(&self.event, &mut count);
        }
        results
    }

    /// Tells the daemon which request of the engine's the next call is for, on the worker's thread. It is told each time: a daemon that is new knows of none.
    pub(crate) fn tag(&self, plugin: &SharedPlugin, request: Option<&str>) -> Result<(), Failure> {
        let was_tagged = self.is_tagged.swap(request.is_some(), Ordering::Relaxed);
        if was_tagged || request.is_some() {
            plugin.tag(request.unwrap_or_default())?;
        }
        Ok(())
    }

    /// Drops something on the worker's thread, since that may have to speak with the daemon.
    pub(crate) fn drop_there(&self, leftover: Box<dyn Send>) {
        self.state().leftovers.push(leftover);
        self.wake.notify_one();
    }

    /// Makes calls until the end.
    pub(crate) fn run(&self, plugin: &SharedPlugin) {
        loop {
            let mut state = self.state();
            while state.queue.is_empty() && state.leftovers.is_empty() && !state.ends {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            let leftovers = std::mem::take(&mut state.leftovers);
            if state.ends {
                // What has not begun is not done, and what was not polled is not wanted. It may hold shares of this worker.
                let rest = (std::mem::take(&mut state.queue), std::mem::take(&mut state.done), leftovers);
                drop(state);
                drop_caught(rest);
                if self.state().leftovers.is_empty() {
                    return;
                }
                continue;
            }
            let job = state.queue.pop_front();
            drop(state);
            drop_caught(leftovers);
            if let Some(Job { op, work }) = job {
                let result = kvtier_result::new(op, caught(|| work(plugin)));
                let mut state = self.state();
                state.done.push_back(result);
                let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
            }
        }
    }

    /// Has the thread end after the call that it is making.
    pub(crate) fn end(&self) {
        self.state().ends = true;
        self.wake.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops something; a panic in that ends here.
fn drop_caught(something: impl Sized) {
    let _ = caught(|| {
        drop(something);
        Ok(())
    });
}

/// The client's part of it, for handles that outlive it.
pub(crate) type SharedWorker = Arc<Worker>;

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::mpsc;
    use std::time::Duration;

    use kvtier_sdk::client::ClientSettings;
    use kvtier_sdk::plugin::{Identity, Plugin, RopeStated};
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    fn plugin() -> SharedPlugin {
        let identity = Identity {
            weights: [0; 32],
            architecture: String::new(),
            dtype: String::new(),
            block_tokens: 1,
            layers: 1,
            kv_heads: 1,
            head_dim: 1,
            ranks: cache_core::manifest::HeadSlice::WHOLE,
            rope: RopeStated::default(),
            adapter: String::new(),
            numerics: String::new(),
            layer_bytes: 8,
            layout: String::new(),
            lossy: None,
            salt: None,
        };
        let settings = ClientSettings {
            socket: PathBuf::from("/nonexistent/kvtier.sock"),
            name: "test".to_owned(),
            deadline: Duration::from_secs(1),
        };
        SharedPlugin::new(Plugin::open(settings, &identity).unwrap())
    }

    /// Waits until there is something to poll.
    fn wait(worker: &Worker) {
        poll(&mut [PollFd::new(&worker.event, PollFlags::IN)], None).unwrap();
    }

    fn is_readable(worker: &Worker) -> bool {
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(&worker.event, PollFlags::IN)], Some(&now)).unwrap() == 1
    }

    #[test]
    fn a_planted_panic_is_a_result_and_the_next_call_is_made() {
        let (plugin, worker) = (plugin(), Worker::new(4).unwrap());
        std::thread::scope(|scope| {
            scope.spawn(|| worker.run(&plugin));
            worker.submit(Box::new(|_| panic!("planted"))).unwrap();
            worker.submit(Box::new(|_| Ok(Done::Nothing))).unwrap();
            let mut codes = Vec::new();
            while codes.len() < 2 {
                wait(&worker);
                codes.extend(worker.poll(1).iter().map(|result| (result.op(), result.code())));
            }
            assert_eq!(codes, [(1, kvtier_code::KVTIER_PANIC), (2, kvtier_code::KVTIER_OK)]);
            assert!(!is_readable(&worker));
            worker.end();
        });
    }

    #[test]
    fn calls_beyond_the_limit_are_refused_until_results_are_polled() {
        let (plugin, worker) = (plugin(), Worker::new(2).unwrap());
        let (go, gate) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(|| worker.run(&plugin));
            worker
                .submit(Box::new(move |_| {
                    let _ = gate.recv();
                    Ok(Done::Nothing)
                }))
                .unwrap();
            worker.submit(Box::new(|_| Ok(Done::Nothing))).unwrap();
            let refused = worker.submit(Box::new(|_| Ok(Done::Nothing))).unwrap_err();
            assert_eq!(refused.code, kvtier_code::KVTIER_BUSY);
            assert!(worker.poll(9).is_empty() && !is_readable(&worker));
            go.send(()).unwrap();
            let mut polled = 0;
            while polled < 2 {
                // Done, and not polled: still no room.
                wait(&worker);
                assert!(polled > 0 || worker.submit(Box::new(|_| Ok(Done::Nothing))).is_err());
                polled += worker.poll(1).len();
            }
            assert_eq!(worker.submit(Box::new(|_| Ok(Done::Nothing))).unwrap(), 3);
            wait(&worker);
            worker.end();
        });
    }
}
