//! What the daemon tells about itself: counted by the server as it works, composed into one snapshot, explained request by request.
//!
//! | file | part |
//! |---|---|
//! | `counters` | what the server counts, and the snapshot made of it |
//! | `histogram` | durations in fixed buckets |
//! | `process` | what the kernel tells of the process |
//! | `snapshot` | the answer of `/stats` |
//! | `explanation` | the answer of `/explain` |
//!
//! Nothing here knows a token id, a salt or a key. Labels come from fixed lists; a client's name is shown in the snapshot alone.

mod counters;
mod explanation;
mod histogram;
mod process;
mod snapshot;

pub use counters::{Counters, Disk, Gauges, Operation, ProtocolError, Reclaim, Rejection, StoreRefusal};
pub use explanation::{BlockStory, Explanation};
pub use histogram::{AGE_BOUNDS_US, BOUNDS_US, Histogram};
pub use process::Process;
pub use snapshot::{
    Ages, Amount, ByName, Client, Clients, DiskUse, Latencies, Latency, Leases, Name, Saved, Snapshot, State, Stores,
    TierAmounts, TierUse, Tiers, VERSION,
};

/// Who can be asked: the server, from the threads that answer HTTP. None of these may wait for anything that a client can hold up.
pub trait Source: Send + Sync {
    /// Everything, now.
    fn snapshot(&self) -> Snapshot;
    /// What became of a request's blocks; `None` for a request that is not known, or not any more.
    fn explain(&self, request: &str) -> Option<Explanation>;
    /// Whether clients are served. Errors: why not, in sentences.
    fn ready(&self) -> Result<(), Vec<String>>;
}
