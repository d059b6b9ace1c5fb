//! Sections of blocks that are on the disk only, read into bounce memory for one step.

use std::sync::Arc;

use cache_core::miss::MissReason;
use cache_core::payload::Section;
use cache_core::store::OpId;
use disk_tier::{DiskEnd, DiskOk, Pin};
use gpu_tier::device::HostRange;

use crate::cache::Stage;
use crate::embedded::disk::bounce::Bounce;
use crate::embedded::disk::port::Port;
use crate::embedded::disk::{Disk, PATIENCE};

/// Reads under way or arrived. Dropping it gives the bounce memory back, as soon as the disk has.
pub(crate) struct Reads {
    port: Arc<Port>,
    parts: Vec<Part>,
}

struct Part {
    op: OpId,
    host: HostRange,
    section_bytes: u64,
    state: State,
}

enum State {
    UnderWay,
    /// The section's bytes, and the memory that holds them.
    Arrived(HostRange, #[expect(dead_code, reason = "kept for its drop")] Option<disk_tier::io::Memory>),
    Lost(MissReason),
}

impl Disk {
    /// Starts to read one section of each pinned record; `None` when there is not enough bounce memory free just now.
    pub(crate) fn stage(&self, wanted: &[(&Pin, Section)]) -> Option<Reads> {
        let bounces = self.pieces.take_all(wanted.len()).or_else(|| {
            // Reads that nobody waits for any more give their memory back when their ends are collected.
            self.port.collect();
            self.pieces.take_all(wanted.len())
        })?;
        let read = |(bounce, (pin, section)): (Bounce, &(&Pin, Section))| {
            let host = bounce.host();
            let op = self.tier().read_section(pin, self.shape, *section, bounce.memory(host.bytes));
            Part { op, host, section_bytes: section.bytes, state: State::UnderWay }
        };
        let parts = bounces.into_iter().zip(wanted).map(read).collect();
        Some(Reads { port: Arc::clone(&self.port), parts })
    }

    /// Sections that can be staged at once.
    pub(crate) fn pieces(&self) -> u32 {
        u32::try_from(self.pieces.pieces()).unwrap_or(u32::MAX)
    }
}

impl Stage for Reads {
    fn is_done(&self) -> bool {
        self.parts.iter().all(|part| !matches!(part.state, State::UnderWay) || self.port.is_done(part.op))
    }

    fn wait(&mut self) -> Vec<Result<HostRange, MissReason>> {
        for part in &mut self.parts {
            if !matches!(part.state, State::UnderWay) {
                continue;
            }
            let done = self.port.wait(part.op, PATIENCE);
            part.state = match done.map(|done| (done.result, done.memory)) {
                Some((Ok(DiskOk::Section { start }), memory)) => {
                    let offset = part.host.offset + start;
                    State::Arrived(HostRange { offset, bytes: part.section_bytes, ..part.host }, memory)
                }
                Some((Err(DiskEnd::Miss(reason)), _)) => State::Lost(reason),
                Some((Err(DiskEnd::Offline), _)) => State::Lost(MissReason::TierOffline),
                Some(_) => State::Lost(MissReason::FailedCheck),
                None => State::Lost(MissReason::Deadline),
            };
        }
        let found = |part: &Part| match part.state {
            State::Arrived(range, _) => Ok(range),
            State::Lost(reason) => Err(reason),
            State::UnderWay => unreachable!("it was waited for"),
        };
        self.parts.iter().map(found).collect()
    }
}

impl Drop for Reads {
    fn drop(&mut self) {
        for part in &self.parts {
            if matches!(part.state, State::UnderWay) {
                self.port.forget(part.op);
            }
        }
    }
}
