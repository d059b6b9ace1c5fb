//! What the daemon is and has done, at one moment: the answer of `/stats`. `docs/stats.schema.json` describes it for other programs.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::AddAssign;

use cache_core::payload::BlockShape;
use serde::{Deserialize, Serialize};

use crate::stats::histogram::{AGE_BOUNDS_US, Histogram};
use crate::stats::process::Process;

/// The version of the format. Fields may be added under one version, and a reader has their defaults from a daemon that does not know them; none is
/// removed or gets another meaning.
pub const VERSION: u32 = 1;

/// A name out of a fixed list.
pub type Name = Cow<'static, str>;
/// Counts by such a name; every name is there, also with 0.
pub type ByName = BTreeMap<Name, u64>;

/// What the daemon is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Making its tiers.
    #[default]
    Starting,
    /// Serving, while the disk's index is still read.
    Recovering,
    /// Serving.
    Ready,
    /// Ending; nothing new is accepted.
    Draining,
}

impl State {
    /// All states.
    pub const ALL: [State; 4] = [State::Starting, State::Recovering, State::Ready, State::Draining];

    /// Name in JSON and metrics.
    pub fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Recovering => "recovering",
            State::Ready => "ready",
            State::Draining => "draining",
        }
    }
}

/// The whole answer. Counters count since the daemon was started.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// [`VERSION`].
    pub version: u32,
    /// Names this run of the daemon: 32 hexadecimal digits.
    pub daemon: String,
    /// Milliseconds since it was started.
    pub uptime_ms: u64,
    /// What it is doing.
    pub state: State,
    /// Each tier's use.
    pub tiers: Tiers,
    /// What clients asked to lease. Looking without leasing counts as no request: who looks asks again, to lease the same blocks or to store them.
    pub requested: Amount,
    /// What was found, by tier.
    pub hits: TierAmounts,
    /// Blocks that were not there, by reason. A request stops at its first miss, so that block has the reason of all that follow.
    pub misses: ByName,
    /// Blocks offered.
    pub stores: Stores,
    /// Read from the disk into the host arena.
    pub loads: Amount,
    /// Copies dropped to make room, by tier.
    pub evictions: ByName,
    /// Their bytes.
    pub evicted_bytes: ByName,
    /// How old copies in the host arena get.
    pub ages: Ages,
    /// Bytes that were not needed.
    pub saved: Saved,
    /// How long operations took.
    pub latency: Latencies,
    /// Who is connected.
    pub clients: Clients,
    /// Leases that stand now, what they hold, and how they ended.
    pub leases: Leases,
    /// Slots that are being filled now.
    pub reservations: u64,
    /// Copies that did not verify, by tier. Never served.
    pub integrity_failures: ByName,
    /// What clients did that the protocol forbids, by kind. Refused.
    pub protocol_errors: ByName,
    /// Bytes of blocks that the daemon copied to answer a call: those brought back from the daemon before it. What is in the arena is read in place.
    pub copied_bytes: u64,
    /// Bytes in memory that the scrubber has checked again.
    pub scrubbed_bytes: u64,
    /// The daemon's process.
    pub process: Process,
}

/// The tiers of the daemon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tiers {
    /// The host arena.
    pub host: TierUse,
    /// The disk; absent without one.
    pub disk: Option<DiskUse>,
}

/// How full a tier is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TierUse {
    /// Bytes in use, metadata included.
    pub used_bytes: u64,
    /// The hard limit in bytes.
    pub budget_bytes: u64,
    /// Blocks that can be found.
    pub blocks: u64,
    /// `used_bytes / budget_bytes`, from 0 to 1.
    pub fill: f64,
}

impl TierUse {
    /// A tier's use; a tier without a budget is empty.
    pub fn new(used_bytes: u64, budget_bytes: u64, blocks: u64) -> TierUse {
        let fill = if budget_bytes == 0 { 0.0 } else { used_bytes as f64 / budget_bytes as f64 };
        TierUse { used_bytes, budget_bytes, blocks, fill }
    }
}

/// The disk's use and health.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskUse {
    /// How full it is.
    #[serde(flatten)]
    pub usage: TierUse,
    /// `recovering`, `ready`, `offline` or `closed`.
    pub state: Name,
    /// Why it is offline, or how far recovery is.
    pub reason: Option<String>,
    /// Bytes read from it.
    pub read_bytes: u64,
    /// Bytes written to it in all: records, footers, superblocks, snapshots.
    pub written_bytes: u64,
    /// Operations that failed or were not ended in time.
    pub io_errors: u64,
    /// Operations under way.
    pub io_inflight: u64,
}

/// So much of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// Blocks.
    pub blocks: u64,
    /// Tokens.
    pub tokens: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Amount {
    /// So many blocks of this shape.
    pub fn of(blocks: u64, shape: &BlockShape) -> Amount {
        Amount { blocks, tokens: blocks * u64::from(shape.block_tokens), bytes: blocks * shape.slot_bytes() }
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Amount) {
        self.blocks += other.blocks;
        self.tokens += other.tokens;
        self.bytes += other.bytes;
    }
}

/// So much of something in each tier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierAmounts {
    /// The host arena.
    pub host: Amount,
    /// The disk.
    pub disk: Amount,
}

/// What became of offered blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stores {
    /// Taken and visible.
    pub accepted: Amount,
    /// There already.
    pub present: Amount,
    /// Blocks that were not taken, by reason.
    pub refused: ByName,
}

/// Bytes that were not needed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Bytes of blocks that were offered when they were there already.
    pub sharing_bytes: u64,
    /// Bytes that accepted blocks would have had more as 16-bit values, by the form that they came in.
    pub form_bytes: ByName,
}

/// Durations by operation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latencies {
    /// Upper ends of the buckets in microseconds; a last bucket has none.
    pub bounds_us: Vec<u64>,
    /// Each operation's.
    pub operations: BTreeMap<Name, Latency>,
}

/// How old copies in the host arena get: of one in 64, told by its hash.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ages {
    /// Upper ends of the buckets in microseconds; a last bucket has none.
    pub bounds_us: Vec<u64>,
    /// From a copy's coming until it was evicted.
    pub lifetime: Latency,
    /// From the last time that it was leased, or its coming, until it was evicted.
    pub idle_before_evict: Latency,
    /// From one time that it was leased, or its coming, to the next.
    pub reuse_gap: Latency,
}

/// Nothing seen so far.
impl Default for Ages {
    fn default() -> Ages {
        let [lifetime, idle_before_evict, reuse_gap] = [(); 3].map(|()| Histogram::new(&AGE_BOUNDS_US).read());
        Ages { bounds_us: AGE_BOUNDS_US.to_vec(), lifetime, idle_before_evict, reuse_gap }
    }
}

/// Durations of one operation, or of one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Operations.
    pub count: u64,
    /// Microseconds that they took together.
    pub sum_us: f64,
    /// Operations in each bucket.
    pub counts: Vec<u64>,
    /// Median in microseconds, estimated inside its bucket; none without operations.
    pub p50_us: Option<f64>,
    /// 90th percentile.
    pub p90_us: Option<f64>,
    /// 99th percentile.
    pub p99_us: Option<f64>,
}

/// Who is connected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clients {
    /// Connections now.
    pub count: u64,
    /// Connections at once, at most.
    pub limit: u64,
    /// Connections that were refused or ended by the daemon, by reason.
    pub rejected: ByName,
    /// Each of them.
    pub connected: Vec<Client>,
}

/// One client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// As it calls itself.
    pub name: String,
    /// Its process, as the kernel told when it connected; 0 for one that the daemon's PID namespace does not see.
    pub pid: u32,
    /// Leases that it holds.
    pub leases: u64,
    /// Slots that it is filling.
    pub reservations: u64,
    /// Bytes of its staging memory.
    pub staging_bytes: u64,
}

/// Leases.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leases {
    /// That stand now.
    pub count: u64,
    /// Bytes of the slots that they hold.
    pub bytes: u64,
    /// Found lost by their holder: the slot had changed hands.
    pub lost: u64,
    /// Ended by the daemon, by reason.
    pub reclaimed: ByName,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_daemon_tells_less_under_the_same_version() {
        let disk = Some(DiskUse { io_errors: 7, io_inflight: 3, ..DiskUse::default() });
        let told = Snapshot { uptime_ms: 5, tiers: Tiers { disk, ..Tiers::default() }, ..Snapshot::default() };
        let mut value = serde_json::to_value(&told).unwrap();
        for added in ["evicted_bytes", "ages", "process"] {
            assert!(value.as_object_mut().unwrap().remove(added).is_some(), "{added}");
        }
        assert!(value["tiers"]["disk"].as_object_mut().unwrap().remove("io_inflight").is_some());
        let read: Snapshot = serde_json::from_value(value).unwrap();
        let disk = Some(DiskUse { io_errors: 7, ..DiskUse::default() });
        assert_eq!(read, Snapshot { tiers: Tiers { disk, ..Tiers::default() }, ..told });
    }
}
