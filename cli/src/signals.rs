//! An orderly end on SIGINT and SIGTERM: the step under way ends, what waits for the disk is written, and the exit code says which signal
//! it was. A second signal ends the process at once.
//!
//! One thread takes the signals and ends the process. It does so between two uses of the engine: [`Signals::busy`] is held while the
//! engine works, and whoever gets an answer that was stopped waits for the end in [`Signals::wait_for_the_end`].

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals as Incoming;

use crate::failure::Failure;

type Ending = Box<dyn FnOnce() + Send>;

/// The signals of this process, taken over.
#[derive(Clone)]
pub struct Signals(Arc<Shared>);

struct Shared {
    /// Set by the first signal.
    stop: Arc<AtomicBool>,
    /// Lock order: before `endings`.
    busy: Mutex<()>,
    endings: Mutex<Vec<Ending>>,
}

impl Signals {
    /// Takes SIGINT and SIGTERM over. Once in a process.
    pub fn install() -> Result<Signals, Failure> {
        Ok(Signals::try_install()?)
    }

    fn try_install() -> io::Result<Signals> {
        let shared = Arc::new(Shared { stop: Arc::default(), busy: Mutex::default(), endings: Mutex::default() });
        for signal in [SIGINT, SIGTERM] {
            // The order counts: the first signal finds the flag clear and sets it, the second finds it set.
            signal_hook::flag::register_conditional_shutdown(signal, exit_code(signal), Arc::clone(&shared.stop))?;
            signal_hook::flag::register(signal, Arc::clone(&shared.stop))?;
        }
        let mut incoming = Incoming::new([SIGINT, SIGTERM])?;
        let on_thread = Arc::clone(&shared);
        std::thread::Builder::new().name("signals-0".to_owned()).spawn(move || {
            if let Some(signal) = incoming.forever().next() {
                on_thread.end(signal);
            }
        })?;
        Ok(Signals(shared))
    }

    /// Set by the first signal.
    pub fn stop(&self) -> &Arc<AtomicBool> {
        &self.0.stop
    }

    /// While this is held, a signal sets the flag and waits.
    pub fn busy(&self) -> MutexGuard<'_, ()> {
        lock(&self.0.busy)
    }

    /// What is to be done before a signal ends the process; the last first.
    pub fn at_end(&self, ending: impl FnOnce() + Send + 'static) {
        lock(&self.0.endings).push(Box::new(ending));
    }

    /// Returns unless a signal has come; then the process ends, and this does not return. Not to be called with [`Signals::busy`] held.
    pub fn wait_for_the_end(&self) {
        while self.0.stop.load(Ordering::Relaxed) {
            std::thread::park();
        }
    }
}

impl Shared {
    fn end(&self, signal: i32) {
        let _busy = lock(&self.busy);
        loop {
            let ending = lock(&self.endings).pop();
            match ending {
                Some(ending) => ending(),
                None => break,
            }
        }
        // A line that is being written is written whole.
        let _out = io::stdout().lock();
        std::process::exit(exit_code(signal));
    }
}

/// As a shell counts it.
fn exit_code(signal: i32) -> i32 {
    128 + signal
}

/// Nothing is behind these locks that a panic could leave half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
