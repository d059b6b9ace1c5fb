//! The disk tier: blocks in a log of preallocated segments on NVMe, bounded, crash-safe, verified on every read.
//!
//! | module | part |
//! |---|---|
//! | `io` | the medium: files, operations, completions; io_uring and its pread twin |
//! | `format`, `superblock`, `segment`, `footer`, `snapshot`, `record` | what stands on disk (`docs/disk-format.md`) |
//! | `stage`, `staging`, `bounce` | the byte stage: codings of sections, the thread that encodes, the memory on the way |
//! | `layout`, `index`, `admission` | how a budget is divided, where records lie, which are let in |
//! | `log`, `write`, `read`, `health`, `traffic` | the state machine: plain changes under one lock |
//! | `inner`, `keeper`, `copies`, `recovery`, `reclaim`, `open`, `close` | the lock, the medium and the log's slow work |
//! | `tier`, `pin`, `store`, `verify` | what users see |
//! | `bench` | how fast a disk is through the tier, beside the medium alone |

#![deny(unsafe_code)]

pub mod bench;
pub mod io;

mod admission;
mod bounce;
mod close;
mod config;
mod copies;
mod error;
mod footer;
mod format;
mod health;
mod index;
mod inner;
mod keeper;
mod layout;
mod log;
mod open;
mod pin;
mod read;
mod reclaim;
mod record;
mod recovery;
mod report;
mod segment;
mod snapshot;
mod stage;
mod staging;
mod store;
mod superblock;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(not(feature = "testing"))]
mod testing;
mod tier;
mod traffic;
mod verify;
mod write;

pub use config::{Admission, DiskConfig};
pub use error::{DiskEnd, DiskError, Refusal};
pub use format::VERSION;
pub use pin::Pin;
pub use read::{SectionSpan, section_span};
pub use report::{DiskCapacity, DiskCounters, DiskDone, DiskOk, DiskState, RecordInfo};
pub use stage::{ByteStage, SectionCodec};
pub use store::DiskStore;
pub use tier::DiskTier;
pub use verify::{Damage, VerifyReport};
pub use write::WriteRequest;
