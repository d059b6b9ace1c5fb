//! The cuda device where there is no driver, or a library that only looks like one.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use gpu_tier::DeviceError;
use gpu_tier::cuda::{CudaConfig, CudaDevice, KernelSource};

/// Tells a copy of this program to report what opening a device says.
const REPORT: &str = "KVTIER_TEST_REPORT_CUDA";

fn open() -> Result<(), DeviceError> {
    CudaDevice::open(CudaConfig { ordinal: 0, budget_bytes: 1 << 20, kernels: KernelSource::Embedded }).map(drop)
}

/// Runs `child` alone in a new process with `folder` first on the loader's path; what it printed.
fn report(folder: &Path) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(REPORT, "1")
        .env("LD_LIBRARY_PATH", folder)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn empty_folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Not a test of its own: the process that `report` starts.
#[test]
fn child() {
    if std::env::var_os(REPORT).is_some() {
        println!("opened: {:?}", open());
    }
}

#[test]
fn no_driver_is_unavailable_and_no_panic() {
    let said = report(&empty_folder("no-driver"));
    if said.contains("opened: Ok") {
        println!("SKIP: a GPU is there");
        return;
    }
    // A driver without a device (a build image) has words of its own; every other machine has no libcuda.
    assert!(said.contains(r#"opened: Err(Unavailable { kind: "cuda", reason: ""#), "{said}");
}

#[test]
fn stub_library_without_the_drivers_symbols_is_unavailable() {
    let folder = empty_folder("stub-driver");
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let libc = maps.lines().filter_map(|line| line.split_whitespace().last()).find(|path| path.ends_with("/libc.so.6"));
    symlink(libc.expect("the test is linked against the C library"), folder.join("libcuda.so")).unwrap();
    let said = report(&folder);
    assert!(said.contains(r#"opened: Err(Unavailable { kind: "cuda", reason: "the libcuda that was found"#), "{said}");
}
