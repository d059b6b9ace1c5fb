//! Settings of a disk tier.

use std::sync::Arc;

use cache_core::codec::Scalar;

use crate::io::{IoChoice, Region};
use crate::stage::{ByteStage, SectionCodec};

/// Which writes are let in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Admission {
    /// Every one.
    #[default]
    Always,
    /// A key that was offered before, as far as a compact sketch remembers; the first offer is refused.
    SecondHit,
}

/// Settings of a disk tier.
#[derive(Clone)]
pub struct DiskConfig {
    /// Hard limit in bytes: allocated blocks of all files, superblocks and snapshot included. At least [`crate::DiskTier::minimum_bytes`].
    pub budget_bytes: u64,
    /// Which writes are let in. Live writes are never refused by it.
    pub admission: Admission,
    /// Most bytes written per second, over one second's burst; `None` = no limit. Live writes are never refused by it.
    pub write_limit_bytes_s: Option<u64>,
    /// Which back end [`crate::DiskTier::open`] takes.
    pub io: IoChoice,
    /// Operations under way at once, at most.
    pub depth: usize,
    /// How long an operation may take, in milliseconds, queues included.
    pub deadline_millis: u64,
    /// Memory that operations are lent parts of, for registration with the kernel.
    pub regions: Vec<Arc<dyn Region>>,
    /// Size of a usual record in bytes: the index is allocated for `budget_bytes / record_bytes` records (and no fewer than 4096). Smaller
    /// records fill the index before the disk, and reclaim then goes by index room.
    pub record_bytes: u64,
    /// How often the superblocks are looked at, and how often an offline tier is probed, in milliseconds.
    pub probe_millis: u64,
    /// How sections are encoded in records to be written.
    pub stage: ByteStage,
    /// Who encodes and decodes `sx12`. All give the same bytes.
    pub codec: SectionCodec,
    /// Memory of the tier's own for staged records on their way, in bytes, allocated as it is needed: two thirds for reads, a third for
    /// writes. One record at a time goes each way however small it is.
    pub bounce_bytes: u64,
}

impl DiskConfig {
    /// Admits always, no write limit, io_uring where it is to be had, 64 operations under way, deadline 5 s, no regions, records of 1 MiB, a look at the
    /// superblocks every second, records written without a stage and staged ones read by the scalar reference, in 12 MiB of bounce memory.
    pub fn new(budget_bytes: u64) -> DiskConfig {
        DiskConfig {
            budget_bytes,
            admission: Admission::Always,
            write_limit_bytes_s: None,
            io: IoChoice::default(),
            depth: 64,
            deadline_millis: 5000,
            regions: Vec::new(),
            record_bytes: 1 << 20,
            probe_millis: 1000,
            stage: ByteStage::Off,
            codec: Arc::new(Scalar),
            bounce_bytes: 12 << 20,
        }
    }
}

impl std::fmt::Debug for DiskConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiskConfig")
            .field("budget_bytes", &self.budget_bytes)
            .field("admission", &self.admission)
            .field("write_limit_bytes_s", &self.write_limit_bytes_s)
            .field("io", &self.io)
            .field("depth", &self.depth)
            .field("deadline_millis", &self.deadline_millis)
            .field("regions", &self.regions.len())
            .field("record_bytes", &self.record_bytes)
            .field("probe_millis", &self.probe_millis)
            .field("stage", &self.stage)
            .field("bounce_bytes", &self.bounce_bytes)
            .finish()
    }
}
