//! The demo's restart: a second process that has nothing but the first one's disk.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use kvtier_engine::run::engine::DiskOptions;
use tempfile::TempDir;

use super::{Shown, Stage, Task, document, engine_args, request, tasks, verdict};
use crate::args::DemoArgs;
use crate::disk;
use crate::failure::Failure;
use crate::load;
use crate::output;
use crate::session::Session;
use crate::signals::Signals;
use crate::size::Size;

/// The folder of the demo's store; removed at the end, whatever end it is.
pub struct Store(TempDir);

impl Store {
    /// Makes it, where that can be done. Errors: exit code 2 for settings that no store can have.
    pub fn new(args: &DemoArgs, signals: &Signals) -> Result<Option<Store>, Failure> {
        let folder = args.disk.clone().or_else(load::cache_folder).unwrap_or_else(std::env::temp_dir);
        disk::at(&folder, args.disk_size)?;
        let made = std::fs::create_dir_all(&folder)
            .and_then(|()| tempfile::Builder::new().prefix("demo-").tempdir_in(&folder));
        match made {
            Ok(made) => {
                let path: PathBuf = made.path().to_path_buf();
                // Files that are still being written go with it.
                signals.at_end(move || drop(std::fs::remove_dir_all(path)));
                Ok(Some(Store(made)))
            }
            Err(error) => {
                let text = "going on without a disk, and so without a restart: make a folder in";
                output::note(&format!("kvtier: {text} {}: {error}\n", folder.display()));
                Ok(None)
            }
        }
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The disk of the demo's engine.
    pub fn options(&self, args: &DemoArgs) -> Result<DiskOptions, Failure> {
        options(self.path(), args)
    }
}

fn options(path: &Path, args: &DemoArgs) -> Result<DiskOptions, Failure> {
    Ok(DiskOptions { stage: disk::stage(args.disk_stage), ..disk::at(path, args.disk_size)? })
}

/// Ends the first process's part; says what it leaves behind.
pub fn end(session: Session) -> String {
    let started = Instant::now();
    session.close();
    let Some(tier) = session.engine().cache().disk_tier() else {
        return String::new();
    };
    let capacity = tier.capacity();
    format!(
        "{} blocks, {:.0} MiB, are there ({}); the last were written and the index saved in {}",
        capacity.records,
        capacity.record_bytes as f64 / (1 << 20) as f64,
        tier.describe(),
        output::time(started.elapsed())
    )
}

/// Starts the second process and shows its answer.
pub fn ask(args: &DemoArgs, store: &Store, task: &Task, signals: &Signals, stage: &Stage) -> Result<Shown, Failure> {
    let started = Instant::now();
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["demo", "--json", "--from-store"]).arg(store.path());
    for (option, value) in [
        ("--device-mem", exact(args.device_mem)),
        ("--host-mem", exact(args.host_mem)),
        ("--link", args.link.to_string()),
        ("--disk-size", exact(args.disk_size)),
        ("--disk-stage", args.disk_stage.name()),
    ] {
        command.args([option, &value]);
    }
    if let Some(threads) = args.threads {
        command.args(["--threads", &threads.to_string()]);
    }
    let object = output_of(command.stdout(Stdio::piped()).stdin(Stdio::null()), signals)?;
    let shown = stage.show(object)?;
    if !stage.json {
        output::print_line(&format!("  {}", shown.text))?;
    }
    stage.say(&verdict(task, &shown))?;
    stage.say(&format!("  from the start of the new process to its end: {}", output::time(started.elapsed())))?;
    Ok(shown)
}

/// A size without the rounding that is there for people.
fn exact(size: Size) -> String {
    format!("{}KiB", size.0 >> 10)
}

/// The one JSON line of a process that does not outlive this one.
fn output_of(command: &mut Command, signals: &Signals) -> Result<serde_json::Value, Failure> {
    let failed = |what: String| Failure { code: 3, message: format!("answer in a new process: {what}") };
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    let mut out = child.stdout.take().expect("its output is piped");
    let child = Arc::new(Mutex::new(child));
    let for_signals = Arc::clone(&child);
    signals.at_end(move || {
        let mut child = for_signals.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have ended by itself.
        let _ = child.kill();
        let _ = child.wait();
    });
    let mut text = String::new();
    std::io::Read::read_to_string(&mut out, &mut text)?;
    let status = child.lock().unwrap_or_else(PoisonError::into_inner).wait()?;
    signals.wait_for_the_end();
    if !status.success() {
        return Err(failed(status.to_string()));
    }
    serde_json::from_str(text.trim()).map_err(|error| failed(error.to_string()))
}

/// The second process: answers the last question from the store, one JSON object on stdout.
pub fn answer(args: &DemoArgs, store: &Path, signals: &Signals) -> Result<(), Failure> {
    let engine_args = engine_args(args);
    let loaded = load::load(&engine_args)?;
    let options = options(store, args)?;
    let mut session = Session::open(&loaded, &engine_args, Some(options), true, signals)?;
    let task = tasks().pop().expect("there are tasks");
    let answer = session.answer(&loaded.tokenizer, request(&loaded, &document(), &task)?, false)?;
    session.close();
    output::print_line(&output::answer_json(&answer, &loaded.tokenizer, session.engine()).to_string())
}
