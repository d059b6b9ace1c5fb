//! When the tier goes offline, and what is counted on the way.

use crate::error::DiskEnd;
use crate::io::{IoError, Kind};
use crate::log::Log;

/// Failed reads in a row that take the tier offline. One bad sector costs its record, not the tier.
const FAILED_READS_MAX: u32 = 3;

/// Whether the medium can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    Good {
        failed_reads: u32,
    },
    /// Nothing is started but the probe.
    Offline {
        reason: String,
        /// When the next probe is due, in nanoseconds since the tier was opened.
        probe_at: u64,
    },
}

impl Log {
    /// Notes how an operation of the medium ended. A failed write or sync takes the tier offline, as does anything that was not ended in
    /// time, and a row of failed reads.
    pub(crate) fn note(&mut self, kind: Kind, what: &str, result: &Result<(), IoError>, now_nanos: u64) {
        let error = match result {
            Ok(()) => {
                if let (Kind::Read, Health::Good { failed_reads }) = (kind, &mut self.health) {
                    *failed_reads = 0;
                }
                return;
            }
            Err(error) => error,
        };
        self.counters.io_errors += 1;
        if matches!(error, IoError::Closed) && self.is_closing {
            return;
        }
        let is_timeout = matches!(error, IoError::TimedOut { .. });
        self.counters.timeouts += u64::from(is_timeout);
        if let (Kind::Read, false, Health::Good { failed_reads }) = (kind, is_timeout, &mut self.health) {
            *failed_reads += 1;
            if *failed_reads < FAILED_READS_MAX {
                return;
            }
        }
        self.go_offline(format!("{what}: {}", reason(error)), now_nanos);
    }

    pub(crate) fn go_offline(&mut self, reason: String, now_nanos: u64) {
        if let Health::Good { .. } = self.health {
            self.counters.offline += 1;
            let probe_at = now_nanos.saturating_add(self.probe_millis.max(1).saturating_mul(1_000_000));
            self.health = Health::Offline { reason, probe_at };
            self.refuse_waiting(DiskEnd::Offline);
        }
    }
}

/// An error in the words of a reason: without "use the disk".
fn reason(error: &IoError) -> String {
    let text = error.to_string();
    text.strip_prefix("use the disk: ").map_or(text.clone(), str::to_owned)
}
