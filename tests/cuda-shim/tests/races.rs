//! The kernels under ThreadSanitizer: each CUDA thread is a fiber that the sanitizer takes for a thread, barriers are the only order
//! among them, blocks have none. The program is C++ (Rust's own standard library is not built for the sanitizer here): `shim/races.cpp`.
#![cfg(target_arch = "x86_64")]

use cuda_ladder::Module;
use std::collections::BTreeSet;
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

/// The kernel files, in order of their names.
fn kernels() -> Vec<String> {
    let entries = Path::new(HERE).join("../../gpu-tier/kernels").read_dir().unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut files: Vec<_> = names.filter(|name| name.ends_with(".cu")).collect();
    files.sort();
    files
}

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
        let mut all: Vec<_> = kernels().iter().map(|file| kernel(&folder, file, str::to_owned)).collect();
        all.push(compile(&folder, &Path::new(HERE).join("shim/fibers.cpp"), "fibers.o", &["-DKV_TSAN"]));
        all.push(compile(&folder, &Path::new(HERE).join("shim/races.cpp"), "races.o", &[]));
        all
    })
}

/// Links the program with one kernel file changed, and runs it with arguments.
fn run(name: &str, plant: Option<(&str, Change)>, arguments: &[&str]) -> Output {
    let folder = scratch(name);
    let mut objects = objects().to_vec();
    if let Some((file, change)) = plant {
        let text = std::fs::read_to_string(format!("{HERE}/../../gpu-tier/kernels/{file}")).unwrap();
        assert_ne!(text, change(&text), "the plant fits {file}");
        let at = kernels().iter().position(|kernel| kernel == file).unwrap();
        objects[at] = kernel(&folder, file, change);
    }
    let program = folder.join("races");
    let linked = Command::new("g++").arg("-fsanitize=thread").args(&objects).arg("-o").arg(&program).output().unwrap();
    assert!(linked.status.success(), "{}", String::from_utf8_lossy(&linked.stderr));
    // The sanitizer's map of memory does not go with every random layout.
    Command::new("setarch")
        .arg("-R")
        .arg(&program)
        .args(arguments)
        .env("TSAN_OPTIONS", "exitcode=66 report_signal_unsafe=0")
        .output()
        .expect("setarch can be started")
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn no_kernel_has_a_race() {
    let output = run("races-none", None, &["all", "0", "1", "2"]);
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    let ran: BTreeSet<&str> = said.lines().filter_map(|line| line.strip_prefix("ran ")).collect();
    let mut all = BTreeSet::new();
    for file in kernels() {
        // What nvcc has compiled from it.
        let ptx = format!("{HERE}/../../gpu-tier/kernels/ptx/{}", file.replace(".cu", ".compute_80.ptx"));
        let module = Module::parse(&std::fs::read_to_string(ptx).unwrap()).unwrap();
        all.extend(module.entries().map(|entry| entry.name().to_owned()));
    }
    assert_eq!(ran, all.iter().map(String::as_str).collect());
}

/// Without the barrier between what threads wrote to shared memory and what others read of it.
#[test]
fn a_missing_barrier_is_told_with_both_lines() {
    let plant = |text: &str| text.replacen("    __syncthreads();\n    u16 scale[8];", "    u16 scale[8];", 1);
    let output = run("races-barrier", Some(("i8h.cu", plant)), &["grids", "0"]);
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
    let output = run("races-blocks", Some(("kc4vt4.cu", plant)), &["grids", "0"]);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(66), "{said}");
    assert!(said.contains("data race") && said.contains("kc4vt4.cu:"), "{said}");
}
