//! The compilers, over the kernels of the ladder's own tests; and faults planted in sources and in what is checked in.

use std::fs;
use std::path::{Path, PathBuf};

use cuda_ladder::toolkit::{Folder, Toolkit};

/// Kernels of the tests, their PTX beside them.
fn kernels() -> Folder {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels");
    let table = sources.join("resources.tsv");
    Folder {
        ptx: sources.clone(),
        table,
        sources,
        nvrtc: true,
        exact: |kernel| kernel == "axpy",
        stack: |kernel| kernel == "odds",
    }
}

/// The toolkit in the target folder; `None`, said aloud, where it cannot be had outside of CI.
fn toolkit() -> Option<Toolkit> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    match Toolkit::install(&target.join("cuda-toolkit")) {
        Ok(toolkit) => Some(toolkit),
        Err(reason) => {
            assert!(!std::env::var("CI").is_ok_and(|value| value == "true"), "no CUDA toolkit: {reason}");
            println!("no CUDA toolkit, so only checked-in PTX is executed: {reason}");
            None
        }
    }
}

fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda-ladder-cache")
}

#[test]
fn checked_in_ptx_is_complete_and_executable() {
    let report = kernels().check_ptx();
    assert!(report.failures.is_empty(), "{}", report.failures.join("\n"));
}

#[test]
fn kernels_compile_everywhere_and_what_is_checked_in_is_fresh() {
    let Some(toolkit) = toolkit() else {
        return;
    };
    let report = kernels().check(&toolkit, &cache());
    assert!(report.failures.is_empty(), "{}", report.failures.join("\n"));
    assert_eq!((report.compiled, report.resources.len()), (3, 15));
}

/// A folder with one source of its own; what is wrong with it.
fn planted(name: &str, source: &str) -> Vec<String> {
    let Some(toolkit) = toolkit() else {
        return Vec::new();
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("planted.cu"), source).unwrap();
    let table = folder.join("resources.tsv");
    let kernels =
        Folder { ptx: folder.clone(), table, sources: folder, nvrtc: true, exact: |_| true, stack: |_| false };
    let failures = kernels.check(&toolkit, &cache()).failures;
    assert!(!failures.is_empty());
    failures
}

fn has(failures: &[String], words: &str) {
    // Nothing was compiled without a toolkit, and `toolkit` has said so.
    if !failures.is_empty() {
        assert!(failures.iter().any(|failure| failure.contains(words)), "{words}: {failures:#?}");
    }
}

#[test]
fn planted_stale_ptx_is_caught() {
    has(&planted("stale", "extern \"C\" __global__ void k(int* x) { x[0] = 1; }"), "is stale");
}

#[test]
fn planted_warning_is_an_error() {
    let source = "extern \"C\" __global__ void k(int* x) { int unused; x[0] = 1; }";
    has(&planted("warning", source), "unused");
}

#[test]
fn planted_approximation_is_caught() {
    let source = "extern \"C\" __global__ void k(float* x) { x[0] = __fdividef(x[1], x[2]); }";
    has(&planted("approximation", source), "must be exact: div.approx.f32");
}

#[test]
fn planted_spill_is_caught() {
    // More live values than the registers that the bounds leave.
    let source = "extern \"C\" __global__ void __launch_bounds__(1024, 2) k(float* x) {\n\
        float v[96];\n\
        _Pragma(\"unroll\") for (int i = 0; i < 96; ++i) v[i] = x[i * 1024 + threadIdx.x];\n\
        __syncthreads();\n\
        _Pragma(\"unroll\") for (int i = 0; i < 96; ++i) x[i * 1024 + threadIdx.x] = v[95 - i] * v[(i * 7) % 96];\n}";
    has(&planted("spill", source), "spill");
}

#[test]
fn planted_opcode_that_is_not_executed_is_caught() {
    let source = "extern \"C\" __global__ void k(unsigned* x) { x[0] = clock(); }";
    has(&planted("opcode", source), "unknown name %clock");
}
