//! The way from a medium to its sink.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;

use super::{Done, IoError, Operation, Sink};

/// Locks, also after a panic elsewhere: every critical section of this module leaves its data whole.
pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Link {
    None,
    Open(Arc<dyn Sink>),
    /// After close: a log that holds its medium and is held as its sink can go.
    Closed(Weak<dyn Sink>),
}

/// Where ends are told. Never while a lock of the medium is held.
pub(super) struct Ends {
    link: Mutex<Link>,
    /// Threads of [`Ends::tell_elsewhere`].
    elsewhere: Mutex<Vec<JoinHandle<()>>>,
}

impl Ends {
    pub(super) fn new() -> Ends {
        Ends { link: Mutex::new(Link::None), elsewhere: Mutex::default() }
    }

    pub(super) fn connect(&self, sink: Arc<dyn Sink>) {
        *lock(&self.link) = Link::Open(sink);
    }

    /// Waits for the threads that tell: one of them may hold the log, and with it the medium, when its owner has let go of both. From here on
    /// the sink is only told while somebody else keeps it.
    pub(super) fn close(&self) {
        let own = std::thread::current().id();
        // What the sink hears may make it submit more, which is refused on another thread.
        loop {
            let threads = std::mem::take(&mut *lock(&self.elsewhere));
            if threads.is_empty() {
                break;
            }
            for thread in threads.into_iter().filter(|thread| thread.thread().id() != own) {
                // A sink's panic is caught where it is told.
                let _ = thread.join();
            }
        }
        let mut link = lock(&self.link);
        if let Link::Open(sink) = &*link {
            let weak = Arc::downgrade(sink);
            *link = Link::Closed(weak);
        }
    }

    /// Tells the sink. A sink that panics does not take the medium's thread, and with it the operations under way, along.
    pub(super) fn tell(&self, ended: Vec<Done>) {
        if ended.is_empty() {
            return;
        }
        let sink = match &*lock(&self.link) {
            Link::None => None,
            Link::Open(sink) => Some(Arc::clone(sink)),
            Link::Closed(sink) => sink.upgrade(),
        };
        let Some(sink) = sink else { return };
        // The panic's message has been printed by the hook; there is nobody here to whom it could be returned.
        let _ = catch_unwind(AssertUnwindSafe(|| sink.done(ended)));
    }

    /// Tells from a thread of its own, since a sink is never called from inside a call of the medium. Without a thread the ends are lost with
    /// the process's last resources; the memory is dropped all the same.
    pub(super) fn tell_elsewhere(self: &Arc<Ends>, told: Vec<Done>) {
        if told.is_empty() {
            return;
        }
        let ends = Arc::clone(self);
        let thread = std::thread::Builder::new().name("disk-ends".into()).spawn(move || ends.tell(told));
        lock(&self.elsewhere).extend(thread);
    }

    /// Ends a batch that came after the close.
    pub(super) fn refuse(self: &Arc<Ends>, batch: Vec<Operation>) {
        self.tell_elsewhere(batch.into_iter().map(|op| ended(op, Err(IoError::Closed))).collect());
    }
}

/// The end of an operation that gives its memory back.
pub(super) fn ended(op: Operation, result: Result<(), IoError>) -> Done {
    Done { id: op.id, memory: Some(op.memory), result }
}
