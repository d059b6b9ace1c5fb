//! The package as its users get it: built into a wheel, installed into a clean environment, and its tests run there with the
//! interpreter's own `unittest`, each against
//! daemons that it starts with `python -m kvtier serve`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// The interpreter of an environment with the package in it.
fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("wheel");
        let _ = std::fs::remove_dir_all(&folder);
        succeed(Command::new("python3").args(["-m", "venv"]).arg(&folder), "make an environment");
        let python = folder.join("bin").join("python");
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "install", "--disable-pip-version-check", "--quiet", "numpy", "mypy"]).arg(package());
        // The profile of these tests, so that most of what the wheel is made of is there already.
        pip.env("MATURIN_PEP517_ARGS", "--profile dev");
        // What cargo tells its tests is not for the cargo that builds the wheel.
        let is_ours = |name: &str| {
            name.starts_with("CARGO_PKG") || name.starts_with("CARGO_MANIFEST") || name.starts_with("CARGO_BIN")
        };
        let ours = std::env::vars().map(|(name, _)| name).filter(|name| is_ours(name));
        ours.chain(["LD_LIBRARY_PATH", "CARGO", "CARGO_CRATE_NAME", "CARGO_TARGET_TMPDIR"].map(str::to_owned))
            .for_each(|name| _ = pip.env_remove(name));
        succeed(&mut pip, "build and install the package");
        python
    })
}

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn succeed(command: &mut Command, what: &str) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{what}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{what}: {}\n{out}\n{err}", output.status);
    output
}

/// Runs the tests of one file; there must be so many.
fn run(module: &str, count: usize) {
    let mut command = Command::new(python());
    command.args(["-B", "-X", "dev", "-W", "error", "-m", "unittest", module]).current_dir(package().join("tests"));
    let output = succeed(&mut command, module);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains(&format!("Ran {count} tests in ")) && !told.contains("skipped"), "{told}");
}

#[test]
fn whole_blocks_between_slabs_and_a_daemon() {
    run("test_transfer", 9);
}

#[test]
fn blocks_in_lossy_forms() {
    run("test_lossy", 4);
}

#[test]
fn blocks_read_and_written_in_place() {
    run("test_in_place", 9);
}

#[test]
fn daemons_that_come_and_go() {
    run("test_daemon", 10);
}

#[test]
fn the_package_is_typed_and_light_and_its_quick_start_runs() {
    run("test_package", 5);
}

#[test]
fn llama_sessions_in_pieces() {
    run("engines.test_llama_cpp", 6);
}

/// As an author of a plugin runs it, in the folder of the plugin: our connector, and one with a mistake.
#[test]
fn the_conformance_kit_is_in_the_wheel() {
    for (connector, code, found) in [
        ("kvtier.vllm.connector:KvtierConnector", 0, "\nconforms\n"),
        ("units.planted:StoresTooEarly", 1, "garbage-stored: "),
    ] {
        let mut command = Command::new(python());
        command.args(["-B", "-m", "kvtier.conformance", connector, "--seeds", "1"]);
        let output = command.current_dir(package().join("tests")).env_remove("PYTHONPATH").output().expect("it runs");
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{connector}: {out}\n{err}");
        assert!(out.contains(found), "{connector}: {out}\n{err}");
    }
}
