//! An engine with what surrounds it: its disk, and an orderly end whether it comes by itself or by a signal.

use std::sync::Arc;
use std::time::Duration;

use kvtier_engine::EngineError;
use kvtier_engine::run::engine::Engine;
use kvtier_engine::run::request::{Answer, Request};
use kvtier_engine::tokenizer::Tokenizer;

use crate::args::EngineArgs;
use crate::disk::{Below, Told};
use crate::failure::Failure;
use crate::load::{self, Loaded};
use crate::output::{self, Watcher};
use crate::signals::Signals;

/// How long an end may take.
const END: Duration = Duration::from_secs(10);

/// An open engine.
pub struct Session {
    engine: Engine,
    told: Told,
    signals: Signals,
}

impl Session {
    /// Opens an engine and waits until its disk can be looked up.
    pub fn open(
        loaded: &Loaded,
        args: &EngineArgs,
        below: impl Into<Below>,
        use_cache: bool,
        signals: &Signals,
    ) -> Result<Session, Failure> {
        let mut engine = load::open(loaded, args, below.into(), use_cache)?;
        engine.stop_when(Arc::clone(signals.stop()));
        if engine.cache().disk_tier().is_some() {
            let disk = engine.disk_closer();
            signals.at_end(move || {
                disk.close(END);
            });
        }
        let mut told = Told::default();
        told.opened(&engine);
        Ok(Session { engine, told, signals: signals.clone() })
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// True when blocks may come from a disk.
    pub fn has_disk(&self) -> bool {
        self.engine.cache().disk_tier().is_some()
    }

    /// Answers one request, showing it as it comes when `stream`. A signal meanwhile ends the process before this returns.
    pub fn answer(&mut self, tokenizer: &Tokenizer, request: Request, stream: bool) -> Result<Answer, Failure> {
        let busy = self.signals.busy();
        let mut watcher = Watcher::new(tokenizer, stream);
        let result = self.engine.generate(vec![request], &mut |progress| watcher.show(progress)).pop();
        let finished = watcher.finish();
        drop(busy);
        let result = result.expect("one request, one result");
        if matches!(result, Err(EngineError::Stopped)) {
            self.signals.wait_for_the_end();
        }
        self.told.look(&self.engine);
        finished?;
        Ok(result?)
    }

    /// The orderly end of the disk: what waits to be written is written and the index is saved.
    pub fn close(&self) {
        let _busy = self.signals.busy();
        if self.has_disk() && !self.engine.close_disk(END) {
            output::note("kvtier: the disk did not take every block within 10 s; what it has is sound\n");
        }
    }
}
