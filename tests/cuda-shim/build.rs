//! Compiles gpu-tier/kernels for the host, each thread of a block a fiber (shim/).

use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=shim");
    println!("cargo:rerun-if-changed=../../gpu-tier/kernels");
    // Fibers switch stacks in x86-64 assembly; elsewhere the crate is empty.
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("x86_64") {
        return;
    }
    let kernels = Path::new("../../gpu-tier/kernels");
    let mut files: Vec<_> = std::fs::read_dir(kernels)
        .expect("the kernels' folder")
        .map(|entry| entry.expect("an entry of the kernels' folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    files.sort();
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .include(kernels)
        .include("shim")
        // No fused operation that the source does not ask for; f16 and fma as the processor has them.
        .flags(["-O2", "-ffp-contract=off", "-mf16c", "-mfma", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-x", "c++"])
        .files(files)
        .file("shim/fibers.cpp")
        // Kernels are reached through static registration only.
        .link_lib_modifier("+whole-archive")
        .compile("kvtier_kernels_host");
}
