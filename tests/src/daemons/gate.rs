//! A disk whose reads wait until they are let through.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use disk_tier::io::{FileId, FileInfo, Kind, Medium, Operation, Sink};

/// Over another medium: some reads pass, the others are kept until [`Gate::open`].
pub struct Gate {
    inner: Arc<dyn Medium>,
    state: Mutex<State>,
}

struct State {
    /// Reads that may still pass; `None`: all.
    passes: Option<u64>,
    kept: Vec<Operation>,
}

impl Gate {
    /// Lets so many reads pass.
    pub fn new(inner: Arc<dyn Medium>, passes: u64) -> Arc<Gate> {
        Arc::new(Gate { inner, state: Mutex::new(State { passes: Some(passes), kept: Vec::new() }) })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads that wait.
    pub fn waiting(&self) -> usize {
        self.state().kept.len()
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        let mut state = self.state();
        state.passes = None;
        let kept = std::mem::take(&mut state.kept);
        drop(state);
        if !kept.is_empty() {
            self.inner.submit(kept);
        }
    }
}

impl Medium for Gate {
    fn files(&self) -> io::Result<Vec<(FileId, FileInfo)>> {
        self.inner.files()
    }

    fn create(&self, file: FileId, bytes: u64) -> io::Result<()> {
        self.inner.create(file, bytes)
    }

    fn remove(&self, file: FileId) -> io::Result<()> {
        self.inner.remove(file)
    }

    fn connect(&self, sink: Arc<dyn Sink>) {
        self.inner.connect(sink);
    }

    fn submit(&self, batch: Vec<Operation>) {
        let mut passed = Vec::with_capacity(batch.len());
        let mut state = self.state();
        for op in batch {
            match &mut state.passes {
                Some(0) if op.kind == Kind::Read => state.kept.push(op),
                Some(passes) if op.kind == Kind::Read => {
                    *passes -= 1;
                    passed.push(op);
                }
                _ => passed.push(op),
            }
        }
        drop(state);
        if !passed.is_empty() {
            self.inner.submit(passed);
        }
    }

    fn depth(&self) -> usize {
        self.inner.depth()
    }

    fn describe(&self) -> String {
        format!("{}, behind a gate", self.inner.describe())
    }

    fn close(&self, millis: u64) {
        self.open();
        self.inner.close(millis);
    }
}
