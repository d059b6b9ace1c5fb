//! What an engine has below its device, a disk of its own or a daemon: from the command line, and what a person is told about it.

use std::path::Path;
use std::time::{Duration, Instant};

use kvtier_engine::run::engine::{DaemonOptions, DiskOptions, Engine};
use kvtier_sdk::embedded::{Admission, ByteStage, DiskState, DiskStatus, DiskTier, IoChoice};

use crate::args::{AdmissionArg, DiskArgs, StageArg};
use crate::failure::Failure;
use crate::output;
use crate::size::Size;

/// What a store may take where nothing is said.
const DEFAULT_SIZE: Size = Size(8 << 30);
/// How long a call to a daemon may take where nothing is said.
const DAEMON_DEADLINE_MILLIS: u64 = 2000;
/// How long the first lookup waits for the store's index.
const WAIT: Duration = Duration::from_secs(10);
/// A shorter wait is not worth a line.
const QUIET: Duration = Duration::from_millis(700);

/// The disk that the options ask for; `None` without `--disk`. Errors: exit code 2.
fn options(args: &DiskArgs) -> Result<Option<DiskOptions>, Failure> {
    let Some(directory) = args.disk.as_deref() else {
        return Ok(None);
    };
    let admission = match args.disk_admission {
        None | Some(AdmissionArg::Always) => Admission::Always,
        Some(AdmissionArg::SecondHit) => Admission::SecondHit,
    };
    let stage = stage(args.disk_stage.unwrap_or_default());
    Ok(Some(DiskOptions { admission, stage, ..at(directory, args.disk_size.unwrap_or(DEFAULT_SIZE))? }))
}

/// What an engine has below its device.
#[derive(Clone, Debug, Default)]
pub struct Below {
    /// A disk of its own.
    pub disk: Option<DiskOptions>,
    /// A daemon.
    pub daemon: Option<DaemonOptions>,
}

impl From<Option<DiskOptions>> for Below {
    fn from(disk: Option<DiskOptions>) -> Below {
        Below { disk, daemon: None }
    }
}

/// What the arguments put below the device. Errors: as [`options`].
pub fn below(args: &DiskArgs) -> Result<Below, Failure> {
    let deadline_millis = args.daemon_deadline.unwrap_or(DAEMON_DEADLINE_MILLIS);
    let daemon = args.daemon.clone().map(|socket| DaemonOptions { socket, deadline_millis });
    Ok(Below { disk: options(args)?, daemon })
}

/// The byte stage of that name.
pub fn stage(name: StageArg) -> ByteStage {
    match name {
        StageArg::Off => ByteStage::Off,
        StageArg::Auto => ByteStage::Auto,
        StageArg::Sx12 => ByteStage::Sx12,
        StageArg::Lz4 => ByteStage::Lz4,
        StageArg::Zstd => ByteStage::Zstd,
    }
}

/// A store in `directory` that takes every block. Errors: exit code 2 for less than a store needs, and for a bad `KVTIER_DISK_IO`.
pub fn at(directory: &Path, size: Size) -> Result<DiskOptions, Failure> {
    let least = Size(DiskTier::minimum_bytes());
    if size.0 < least.0 {
        return Err(Failure::input(format!("--disk-size is {size}; a store needs at least {least}")));
    }
    let directory = directory.to_path_buf();
    let (admission, stage) = (Admission::Always, ByteStage::Auto);
    Ok(DiskOptions { directory, budget_bytes: size.0, admission, io: io()?, stage })
}

/// The way to the disk that `KVTIER_DISK_IO` names. Errors: exit code 2.
pub fn io() -> Result<IoChoice, Failure> {
    let choice = IoChoice::from_env().map_err(|error| Failure::from_error(&error, 2))?;
    Ok(choice.unwrap_or_default())
}

/// Tells a person once about each thing that goes wrong with a disk. The cache works without it.
#[derive(Default)]
pub struct Told(Option<String>);

impl Told {
    /// Waits for the index of the engine's disk, and says where it is not to be had.
    pub fn opened(&mut self, engine: &Engine) {
        let started = Instant::now();
        let Some(tier) = engine.cache().disk_tier() else {
            return self.look(engine);
        };
        let mut is_said = false;
        while let DiskState::Recovering { done_segments, segments } = tier.wait_ready(QUIET.as_millis() as u64) {
            if started.elapsed() >= WAIT {
                let text = "its index is not read after 10 s, what is missing yet counts as not there";
                note(&format!("the disk is slow: {text}"));
                break;
            }
            if !is_said {
                note(&format!("reading the disk's index: {done_segments} of {segments} segments"));
                is_said = true;
            }
        }
        if tier.counters().reformatted > 0 {
            note("the store on the disk was damaged beyond use: it begins anew");
        }
        self.look(engine);
    }

    /// Says what is wrong now, unless that was said.
    pub fn look(&mut self, engine: &Engine) {
        let wrong = match engine.disk_status() {
            DiskStatus::Absent { reason } => format!("going on without the disk: {reason}"),
            DiskStatus::Open(DiskState::Offline { reason }) => {
                format!("going on without the disk, which is offline: {reason}")
            }
            _ if engine.cache().is_daemon_connected() == Some(false) => {
                "going on without the daemon, which does not answer".to_owned()
            }
            _ => return,
        };
        if self.0.as_ref() != Some(&wrong) {
            note(&wrong);
            self.0 = Some(wrong);
        }
    }
}

fn note(text: &str) {
    output::note(&format!("kvtier: {text}\n"));
}
