//! One step of a developer command: a header, a child process, the seconds it took.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// The workspace's root folder. Cargo names it at run time too, which holds when checkouts share a target folder.
pub fn root() -> PathBuf {
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&xtask).parent().expect("xtask is a folder of the workspace").to_owned()
}

/// Where cargo puts what it builds.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// `cargo`, started in the workspace's root.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs `command` under a header; its output goes where ours goes. Fails when it can't start or doesn't exit with 0.
pub fn run(title: &str, command: &mut Command) -> Result<(), String> {
    timed(title, || {
        let status = command.status().map_err(|error| format!("{title}: start {command:?}: {error}"))?;
        if status.success() { Ok(()) } else { Err(format!("{title}: {status}")) }
    })
}

/// Like [`run`], with standard output and standard error joined in order and handed to `each_line`.
pub fn read(title: &str, command: &mut Command, mut each_line: impl FnMut(&str)) -> Result<(), String> {
    timed(title, || {
        let failed = |error: std::io::Error| format!("{title}: {error}");
        let (reader, writer) = std::io::pipe().map_err(failed)?;
        command.stdout(writer.try_clone().map_err(failed)?).stderr(writer);
        let mut child = command.spawn().map_err(failed)?;
        // The command still holds the pipe's writing end; without this the loop below never sees its end.
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        for line in BufReader::new(reader).split(b'\n') {
            each_line(&String::from_utf8_lossy(&line.map_err(failed)?));
        }
        let status = child.wait().map_err(failed)?;
        if status.success() { Ok(()) } else { Err(format!("{title}: {status}")) }
    })
}

fn timed(title: &str, body: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    println!("== {title}");
    let start = Instant::now();
    let done = body();
    let outcome = if done.is_ok() { "ok" } else { "FAILED" };
    println!("== {title}: {outcome} after {:.1} s\n", start.elapsed().as_secs_f64());
    done
}
