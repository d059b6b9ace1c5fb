//! The engine's scenarios over the cache in its own process.

mod scenarios;

use kvtier_engine::run::engine::{Engine, EngineOptions};
use kvtier_tests::{disk, fixture};

/// An engine with tiers of its own.
fn open(options: EngineOptions) -> Engine {
    if options.disk.is_some() { disk::open(options) } else { fixture().engine(options) }
}

/// Everything of an engine with a disk is on it afterwards.
fn close(engine: Engine) {
    disk::close(engine);
}
