//! The Python package's parts in pure Python, by their own tests: no vLLM, no torch and no extension module.

use std::path::Path;
use std::process::Command;

#[test]
fn python_units_pass() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("sdk").join("python");
    let path = std::env::join_paths([package.join("python"), package.join("tests")]).unwrap();
    let mut python = Command::new("python3");
    python.args(["-m", "unittest", "discover", "-t", ".", "-s", "units"]).current_dir(package.join("tests"));
    python.env("PYTHONPATH", path).env("PYTHONDONTWRITEBYTECODE", "1");
    let output = python.output().expect("python3 runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    let ran = told.lines().find_map(|line| line.strip_prefix("Ran ")?.split(' ').next()?.parse::<u32>().ok());
    assert!(ran.is_some_and(|tests| tests > 0), "no test was found: {told}");
}
