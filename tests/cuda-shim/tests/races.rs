//! The kernels under ThreadSanitizer: each CUDA thread is a fiber that the sanitizer takes for a thread, barriers are the only order
//! among them, blocks have none. The program is C++ (Rust's own standard library is not built for the sanitizer here): `shim/races.cpp`.
#![cfg(target_arch = "x86_64")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

const HERE: &str = env!("CARGO_MANIFEST_DIR");

/// Changes the text of a kernel file.
type Change = fn(&str) -> String;

/// Compiles a C++ source in the tests' folder.
fn compile(folder: &Path, source: &Path, object: &str, flags: &[&str]) -> PathBuf {
    let object = folder.join(object);
    let done = Command::new("g++")
        .args(["-x", "c++", "-std=c++17", "-O1", "-g1", "-ffp-contract=off", "-mf16c", "-mfma", "-Wno-unknown-pragmas"])
        .args(flags)
        .args(["-I", &format!("{HERE}/../../gpu-tier/kernels"), "-I", &format!("{HERE}/shim"), "-c"])
        .arg(source)
        .arg("-o")
        .arg(&object)
        .output()
        .expect("g++ can be started: the crate's build has used it");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    object
}

/// Compiles a kernel file, changed, for the sanitizer.
fn kernel(folder: &Path, file: &str, change: Change) -> PathBuf {
    let text = std::fs::read_to_string(format!("{HERE}/../../gpu-tier/kernels/{file}")).unwrap();
    let changed = change(&text);
    let source = folder.join(file);
    std::fs::write(&source, changed).unwrap();
    compile(folder, &source, &format!("{file}.o"), &["-fsanitize=thread"])
}

/// The kernels of attention differ in sizes only: one of them is enough.
fn one_attention(text: &str) -> String {
    text.lines()
        .filter(|line| !line.starts_with("KV_ATTEND") || line.contains("(8, 1)"))
        .map(|line| format!("{line}\n"))
        .collect()
}

const KERNELS: [&str; 10] = [
    "append.cu",
    "attend.cu",
    "attend_mma.cu",
    "finish.cu",
    "gather.cu",
    "i8h.cu",
    "kc4vt4.cu",
    "rate.cu",
    "sx12.cu",
    "xxh3.cu",
];

fn scratch(name: &str) -> PathBuf {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("races").join(name);
    std::fs::create_dir_all(&scratch).unwrap();
    scratch
}

/// Objects of the unchanged kernels, then of the rest.
fn objects() -> &'static [PathBuf] {
    static OBJECTS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    OBJECTS.get_or_init(|| {
        let folder = scratch("none");
        let mut all: Vec<_> = KERNELS.iter().map(|file| kernel(&folder, file, one_attention)).collect();
        all.push(compile(&folder, &Path::new(HERE).join("shim/fibers.cpp"), "fibers.o", &["-DKV_TSAN"]));
        all.push(compile(&folder, &Path::new(HERE).join("shim/races.cpp"), "races.o", &[]));
        all
    })
}

/// Links and runs the program, with one kernel file changed.
fn run(name: &str, plant: Option<(&str, Change)>) -> Output {
    let folder = scratch(name);
    let mut objects = objects().to_vec();
    if let Some((file, change)) = plant {
        let text = std::fs::read_to_string(format!("{HERE}/../../gpu-tier/kernels/{file}")).unwrap();
        assert_ne!(text, change(&text), "the plant fits {file}");
        let at = KERNELS.iter().position(|kernel| *kernel == file).unwrap();
        objects[at] = kernel(&folder, file, change);
    }
    let program = folder.join("races");
    let linked = Command::new("g++").arg("-fsanitize=thread").args(&objects).arg("-o").arg(&program).output().unwrap();
    assert!(linked.status.success(), "{}", String::from_utf8_lossy(&linked.stderr));
    // The sanitizer's map of memory does not go with every random layout.
    Command::new("setarch")
        .arg("-R")
        .arg(&program)
        .env("TSAN_OPTIONS", "exitcode=66 report_signal_unsafe=0")
        .output()
        .expect("setarch can be started")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn no_kernel_has_a_race() {
    let output = run("races-none", None);
    let said = said(&output);
    assert!(output.status.success() && said.contains("all kernels ran"), "{said}");
}

/// Without the barrier between what threads wrote to shared memory and what others read of it.
#[test]
fn a_missing_barrier_is_told_with_both_lines() {
    let plant = |text: &str| text.replacen("    __syncthreads();\n    u16 scale[8];", "    u16 scale[8];", 1);
    let output = run("races-barrier", Some(("i8h.cu", plant)));
    let said = said(&output);
    assert_eq!(output.status.code(), Some(66), "{said}");
    let lines = said.lines().filter(|line| line.contains("i8h.cu:")).count();
    assert!(said.contains("data race") && lines >= 2, "{said}");
}

/// Two blocks that add to one word of global memory without atomics.
#[test]
fn a_race_between_blocks_is_told() {
    let plant = |text: &str| {
        text.replacen(
            "if (odd) tell(part.verdict, non_finite);",
            "*at<u32>(part.verdict) += threadIdx.x == 0 ? 1 : 0;",
            1,
        )
    };
    let output = run("races-blocks", Some(("kc4vt4.cu", plant)));
    let said = said(&output);
    assert_eq!(output.status.code(), Some(66), "{said}");
    assert!(said.contains("data race") && said.contains("kc4vt4.cu:"), "{said}");
}
