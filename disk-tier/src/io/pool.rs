//! A fixed pool of threads that perform operations one by one, and a watchdog that ends overdue ones.
//!
//! An operation is queued, running on one thread, or gone. The running thread owns it, memory included; the table only knows its name. A
//! running operation past its deadline is told as timed out by the watchdog, and marked, so that the thread drops it in silence when it comes
//! back; until then it occupies the thread. One in the queue is dropped, since nothing has its memory.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::ends::{Ends, ended, lock};
use super::{Done, IoError, Operation, Sink, check};

/// Performs one operation, blocking.
pub(super) trait Act: Send + Sync {
    fn act(&self, op: &mut Operation) -> Result<(), IoError>;
}

/// The queue takes so many times the depth; an operation beyond is EAGAIN at once. A caller that keeps to the depth never sees it.
pub(super) const QUEUE_PER_DEPTH: usize = 4;

struct Entry {
    id: u64,
    due: Option<Instant>,
    /// Ended to the sink, still on its thread.
    told: bool,
}

struct State {
    /// By token; every token is in `entries`.
    queue: VecDeque<(u64, Operation)>,
    /// Queued and running operations. Tokens rise with the time of submission, and so do deadlines.
    entries: BTreeMap<u64, Entry>,
    /// Ends of operations that were refused; told by a worker.
    refused: Vec<Done>,
    token_next: u64,
    closing: bool,
    workers: usize,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    /// The watchdog has something new to watch, or to stop for; also told when a worker ends.
    watch: Condvar,
    ends: Arc<Ends>,
    act: Arc<dyn Act>,
    deadline_millis: u64,
}

pub(super) struct Pool {
    shared: Arc<Shared>,
    threads: usize,
    depth: usize,
    handles: Mutex<Vec<JoinHandle<()>>>,
}

impl Pool {
    /// Starts the threads; a deadline of 0 is none. Errors: the system's word on starting a thread.
    pub(super) fn start(act: Arc<dyn Act>, threads: usize, depth: usize, deadline_millis: u64) -> io::Result<Pool> {
        let state = State {
            queue: VecDeque::new(),
            entries: BTreeMap::new(),
            refused: Vec::new(),
            token_next: 0,
            closing: false,
            workers: 0,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
            watch: Condvar::new(),
            ends: Arc::new(Ends::new()),
            act,
            deadline_millis,
        });
        let pool = Pool { shared, threads, depth, handles: Mutex::default() };
        for index in 0..threads {
            let shared = Arc::clone(&pool.shared);
            lock(&pool.shared.state).workers += 1;
            let worker = Builder::new().name(format!("disk-io-{index}")).spawn(move || work(&shared));
            let worker = worker.inspect_err(|_| lock(&pool.shared.state).workers -= 1)?;
            lock(&pool.handles).push(worker);
        }
        if deadline_millis > 0 {
            let shared = Arc::clone(&pool.shared);
            let watchdog = Builder::new().name("disk-watchdog".into()).spawn(move || watch(&shared))?;
            lock(&pool.handles).push(watchdog);
        }
        Ok(pool)
    }

    pub(super) fn connect(&self, sink: Arc<dyn Sink>) {
        self.shared.ends.connect(sink);
    }

    pub(super) fn threads(&self) -> usize {
        self.threads
    }

    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    pub(super) fn submit(&self, batch: Vec<Operation>) {
        let mut state = lock(&self.shared.state);
        if state.closing {
            drop(state);
            return self.shared.ends.refuse(batch);
        }
        let due = (self.shared.deadline_millis > 0)
            .then(|| Instant::now() + Duration::from_millis(self.shared.deadline_millis));
        for op in batch {
            if state.queue.len() >= self.depth * QUEUE_PER_DEPTH {
                state.refused.push(ended(op, Err(check::errno(Errno::AGAIN))));
                self.shared.work.notify_one();
                continue;
            }
            let token = state.token_next;
            state.token_next += 1;
            state.entries.insert(token, Entry { id: op.id, due, told: false });
            state.queue.push_back((token, op));
            self.shared.work.notify_one();
        }
        drop(state);
        self.shared.watch.notify_all();
    }

    /// Ends what is queued, waits for what is running, at most so long. A thread stuck in the kernel keeps its operation and what else it
    /// needs until it comes back; a later close waits for it again.
    pub(super) fn close(&self, millis: u64) {
        let limit = Instant::now() + Duration::from_millis(millis);
        let mut state = lock(&self.shared.state);
        state.closing = true;
        let queued: Vec<(u64, Operation)> = state.queue.drain(..).collect();
        for (token, op) in queued {
            state.entries.remove(&token);
            state.refused.push(ended(op, Err(IoError::Closed)));
        }
        self.shared.work.notify_all();
        self.shared.watch.notify_all();
        while state.workers > 0 {
            let left = limit.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.shared.watch.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let stopped = state.workers == 0;
        // Every thread is stuck: nobody else tells of these.
        self.shared.ends.tell_elsewhere(std::mem::take(&mut state.refused));
        drop(state);
        if stopped {
            let handles = std::mem::take(&mut *lock(&self.handles));
            let own = std::thread::current().id();
            for handle in handles.into_iter().filter(|handle| handle.thread().id() != own) {
                // A worker does not panic: `act` is ours, and sinks are caught.
                let _ = handle.join();
            }
        }
        self.shared.ends.close();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.close(0);
    }
}

fn work(shared: &Shared) {
    loop {
        let mut state = lock(&shared.state);
        let (token, mut op) = loop {
            if !state.refused.is_empty() {
                let refused = std::mem::take(&mut state.refused);
                drop(state);
                shared.ends.tell(refused);
                state = lock(&shared.state);
            } else if let Some(next) = state.queue.pop_front() {
                break next;
            } else if state.closing {
                state.workers -= 1;
                drop(state);
                shared.watch.notify_all();
                return;
            } else {
                state = shared.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        };
        drop(state);
        let result = shared.act.act(&mut op);
        let entry = lock(&shared.state).entries.remove(&token);
        if entry.is_some_and(|entry| !entry.told) {
            shared.ends.tell(vec![ended(op, result)]);
        }
    }
}

/// Ends overdue operations; returns when the pool has closed and nothing is left to watch.
fn watch(shared: &Shared) {
    let mut state = lock(&shared.state);
    loop {
        let now = Instant::now();
        let next = state.entries.values().find(|entry| !entry.told).and_then(|entry| entry.due);
        state = match next {
            Some(due) if due <= now => {
                let (late, dropped) = overdue(&mut state, now, shared.deadline_millis);
                drop(state);
                shared.ends.tell(late);
                drop(dropped);
                lock(&shared.state)
            }
            Some(due) => shared.watch.wait_timeout(state, due - now).unwrap_or_else(PoisonError::into_inner).0,
            None if state.closing => return,
            None => shared.watch.wait(state).unwrap_or_else(PoisonError::into_inner),
        };
    }
}

/// Marks what is overdue. Returns its ends, and the operations that were still queued.
fn overdue(state: &mut MutexGuard<'_, State>, now: Instant, millis: u64) -> (Vec<Done>, Vec<Operation>) {
    let state = &mut **state;
    let (mut late, mut dropped) = (Vec::new(), Vec::new());
    for (token, entry) in state.entries.iter_mut().filter(|(_, entry)| !entry.told) {
        if entry.due.is_none_or(|due| due > now) {
            break;
        }
        entry.told = true;
        late.push((*token, Done { id: entry.id, memory: None, result: Err(IoError::TimedOut { millis }) }));
    }
    let mut queue = VecDeque::with_capacity(state.queue.len());
    for (token, op) in state.queue.drain(..) {
        if late.iter().any(|(overdue, _)| *overdue == token) {
            state.entries.remove(&token);
            dropped.push(op);
        } else {
            queue.push_back((token, op));
        }
    }
    state.queue = queue;
    (late.into_iter().map(|(_, done)| done).collect(), dropped)
}
