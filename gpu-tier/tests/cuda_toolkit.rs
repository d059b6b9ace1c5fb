//! The kernels under NVIDIA's compilers: nvcc, NVRTC and ptxas for every architecture, without a warning, a spill or an inexact operation;
//! and what is checked in of them is fresh.

#[path = "../../tests/cuda-ladder/tests/opcodes/mod.rs"]
#[expect(dead_code, reason = "the cases themselves are run by the ladder's tests")]
mod cases;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use cuda_ladder::Module;
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

/// An opcode that has no case from the manual (tests/cuda-ladder/tests/opcodes) may be executed wrongly without any test noticing.
#[test]
fn every_opcode_of_the_kernels_has_a_case() {
    let used = RefCell::new(BTreeSet::new());
    let mut files = 0;
    for entry in kernels().ptx.read_dir().unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let note = |opcode: &str| {
            used.borrow_mut().insert(opcode.to_owned());
            None
        };
        Module::parse_variant(&text, &note).unwrap();
        files += 1;
    }
    let (used, cases) = (used.into_inner(), cases::opcodes());
    let missing: Vec<_> = used.iter().filter(|opcode| !cases.contains(opcode.as_str())).collect();
    println!("{} opcodes in {files} files, {} with a case", used.len(), cases.len());
    assert!(files > 0 && used.len() > 100);
    assert!(missing.is_empty(), "opcodes without a case: {missing:?}");
}

#[test]
fn kernels_compile_everywhere_and_what_is_checked_in_is_fresh() {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let toolkit = match Toolkit::install(&target.join("cuda-toolkit")) {
        Ok(toolkit) => toolkit,
        Err(reason) => {
            assert!(!std::env::var("CI").is_ok_and(|value| value == "true"), "no CUDA toolkit: {reason}");
            println!("SKIP: no CUDA toolkit, so only checked-in PTX is executed: {reason}");
            return;
        }
    };
    let report = kernels().check(&toolkit, &Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda-kernels"));
    assert!(report.failures.is_empty(), "{}", report.failures.join("\n"));
    assert!(report.compiled > 0 && report.compiled.is_multiple_of(ARCHITECTURES.len()));
}
