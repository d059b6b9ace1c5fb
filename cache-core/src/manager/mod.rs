//! The cache manager: shards of plain state, events in, actions out.
//!
//! A [`Shard`] knows which blocks there are, in which tiers, who reads them and what goes next. It performs nothing: a driver feeds it
//! [`Event`]s with the time, performs the [`Action`]s **in their order**, and feeds completions back. It manages the fused pair
//! [device, host] of one process; slots of both tiers are counts to it, their addresses belong to the tiers.

mod action;
mod audit;
mod counters;
mod entry;
mod event;
mod eviction;
mod ghost;
mod room;
mod route;
mod shard;

pub use action::{Action, Actions, Shortage};
pub use counters::Counters;
pub use entry::{CopyState, EntryId, EntryView};
pub use event::{CopyEnd, Event, Owner, Ticket};
pub use ghost::{Ghost, GhostTable};
pub use route::CacheManager;
pub use shard::{Budgets, Shard};
