//! The kernels under NVIDIA's compilers: nvcc, NVRTC and ptxas for every architecture, without a warning, a spill or an inexact operation;
//! and what is checked in of them is fresh.

use std::path::Path;

use cuda_ladder::toolkit::{ARCHITECTURES, Folder, Toolkit};

fn kernels() -> Folder {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let (ptx, table) = (sources.join("ptx"), sources.join("resources.tsv"));
    // All of them promise their bits, attention too.
    Folder { sources, ptx, table, nvrtc: true, exact: |_| true, stack: |_| false }
}

#[test]
fn checked_in_ptx_is_complete_exact_and_executable() {
    let report = kernels().check_ptx();
    assert!(report.failures.is_empty(), "{}", report.failures.join("\n"));
}

#[test]
fn kernels_compile_everywhere_and_what_is_checked_in_is_fresh() {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let toolkit = match Toolkit::install(&target.join("cuda-toolkit")) {
        Ok(toolkit) => toolkit,
        Err(reason) => {
            assert!(!std::env::var("CI").is_ok_and(|value| value == "true"), "no CUDA toolkit: {reason}");
            println!("no CUDA toolkit, so only checked-in PTX is executed: {reason}");
            return;
        }
    };
    let report = kernels().check(&toolkit, &Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda-kernels"));
    assert!(report.failures.is_empty(), "{}", report.failures.join("\n"));
    assert!(report.compiled > 0 && report.compiled.is_multiple_of(ARCHITECTURES.len()));
}
