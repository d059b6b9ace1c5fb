//! The driver double as a library on disk.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the library with the cargo that runs this test; nothing to do when it is fresh. Cargo does not hold the build folder's
/// lock while tests run.
pub fn build() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("cargo's folder for tests has a parent");
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| env!("CARGO").into()))
        .args(["build", "--package", "cuda-driver-double", "--message-format", "json", "--target-dir"])
        .arg(target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo can be started");
    assert!(output.status.success(), "build the driver double: {}", String::from_utf8_lossy(&output.stderr));
    let messages = String::from_utf8(output.stdout).expect("cargo writes UTF-8");
    let mut files = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let ours = message["target"]["name"] == "cuda_mock" && message["reason"] == "compiler-artifact";
        ours.then(|| message["filenames"][0].as_str().map(PathBuf::from))?
    });
    files.next().expect("cargo names the library it built")
}
