//! The suites of the log once more, with a byte stage: blocks whose slot images have three pages and whose records have two. That the
//! records are staged is `stage.rs`'s to show; here they live, crash and are damaged as the others do.
#![expect(clippy::duplicate_mod, reason = "each suite brings what it needs of the support, here as in its own binary")]

#[path = "crash.rs"]
mod crash;
#[path = "faults.rs"]
mod faults;
#[path = "flips.rs"]
mod flips;
#[path = "life.rs"]
mod life;
#[path = "model.rs"]
mod model;
