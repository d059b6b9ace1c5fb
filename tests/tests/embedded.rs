//! The engine's scenarios over the cache in its own process.

mod scenarios;

use kvtier_engine::run::engine::{Engine, EngineOptions};

/// An engine with tiers of its own.
fn open(options: EngineOptions) -> Engine {
    kvtier_tests::fixture().engine(options)
}
