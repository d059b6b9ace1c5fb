//! The cache manager: shards of plain state, events in, actions out.
//!
//! A [`Shard`] knows which blocks there are, in which tiers, who reads them and what goes next. It performs nothing: a driver feeds it
//! [`Event`]s with the time, performs the [`Action`]s **in their order**, and feeds completions back. It manages device, host and disk
//! of one process; slots of the first two are counts to it, their addresses belong to the tiers; what the disk has is in the disk's own
//! index, and the shard knows of it what it needs for the blocks that it has entries for. Without a disk
//! ([`Budgets::below_entries`] = 0, no `below` in [`Event::Acquire`]) no action names it.
//!
//! | file | part |
//! |---|---|
//! | `shard` | the state, its budgets, and the way in |
//! | `entry`, `eviction`, `ghost`, `counters` | blocks, lists of what may go, what is gone, figures |
//! | `acquire` | what readers get |
//! | `copies`, `disk` | a block's copies: books, losses, demotion; records, spills, pins |
//! | `room`, `victim`, `promotion` | requests for slots, who goes for them, and the way back up |
//! | `census` | how much each namespace has |
//! | `audit` | the books checked against each other |
//! | `rates`, `meeting` | load or compute: what each takes, and where the two meet |
//!
//! The last row is apart from the shards: plain functions of figures, for whoever computes blocks.

mod acquire;
mod action;
mod audit;
mod census;
mod copies;
mod counters;
mod disk;
mod entry;
mod event;
mod eviction;
mod ghost;
mod meeting;
mod promotion;
mod rates;
mod room;
mod route;
mod shard;
mod victim;

pub use action::{Action, Actions, Shortage};
pub use census::Census;
pub use counters::Counters;
pub use entry::{CopyState, EntryId, EntryView};
pub use event::{Below, CopyEnd, Event, Owner, Ticket};
pub use ghost::{Ghost, GhostTable};
pub use meeting::{Lies, Meeting, Next, Plan, Prefix, Rates, plan};
pub use rates::{ComputeRate, LoadRate};
pub use route::CacheManager;
pub use shard::{Budgets, Shard};
