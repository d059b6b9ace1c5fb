//! `cargo xtask peer llama`: llama.cpp, built from a pinned source package, as a peer to measure and an oracle.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::ValueEnum;
use sha2::{Digest, Sha256};

use crate::stage;

/// A system that we compare with.
#[derive(Clone, Copy, ValueEnum)]
pub enum Peer {
    /// llama.cpp, for this machine's CPU (`GGML_NATIVE`).
    Llama,
    /// LMCache, in a Python environment of some 6 GB.
    Lmcache,
}

/// LMCache as its index has it, and what installs it faster than pip does.
const LMCACHE: &str = "lmcache==0.5.6";
const INSTALLER: &str = "uv";

/// The source package that carries llama.cpp's tree.
const PACKAGE: &str = "llama-cpp-python==0.3.36";
/// Its source archive without `.tar.gz`, which is also the folder inside.
const ARCHIVE: &str = "llama_cpp_python-0.3.36";
const ARCHIVE_SHA256: &str = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e";
/// Build tools, from the same package index.
const TOOLS: [&str; 2] = ["cmake==4.4.5", "ninja==1.13.2"];
const CONFIGURE: [&str; 6] = [
    "-GNinja",
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_UI=OFF",
];
/// What is built; all of it lands in one folder with the shared libraries.
const PROGRAMS: [&str; 5] = ["llama-bench", "llama-perplexity", "llama-tokenize", "llama-completion", "llama-quantize"];

/// Builds the peer where it isn't built yet and prints the paths of its programs.
pub fn run(peer: Peer) -> Result<(), String> {
    match peer {
        Peer::Llama => llama(&llama_base()),
        Peer::Lmcache => lmcache(),
    }
}

/// LMCache's program, once installed.
pub fn lmcache_program() -> PathBuf {
    stage::target().join("peer").join("lmcache").join("venv").join("bin").join("lmcache")
}

fn lmcache() -> Result<(), String> {
    let program = lmcache_program();
    let bin = program.parent().expect("a program is in a folder");
    if !program.is_file() {
        let environment = bin.parent().expect("so is the folder");
        stage::run("python environment", Command::new("python3").args(["-m", "venv"]).arg(environment))?;
        let python = bin.join("python");
        stage::run("installer", Command::new(&python).args(["-m", "pip", "install", "--quiet", INSTALLER]))?;
        let mut install = Command::new(bin.join("uv"));
        stage::run(LMCACHE, install.args(["pip", "install", "--quiet", "--python"]).arg(&python).arg(LMCACHE))?;
    }
    println!("{}", program.display());
    Ok(())
}

/// The folder with llama.cpp's programs, once built.
pub fn llama_programs() -> PathBuf {
    llama_base().join("build").join("bin")
}

fn llama_base() -> PathBuf {
    stage::target().join("peer").join("llama")
}

/// Folders below `base`: `download` (the archive), `source`, `tools` (a Python environment), `build`.
fn llama(base: &Path) -> Result<(), String> {
    let bin = llama_programs();
    if !PROGRAMS.iter().all(|program| bin.join(program).is_file()) {
        let source = unpack(base)?;
        let tools = tools(base)?;
        build(base, &source, &tools)?;
    }
    for program in PROGRAMS {
        println!("{}", bin.join(program).display());
    }
    Ok(())
}

/// Downloads, checks and unpacks the archive; returns llama.cpp's tree in it.
fn unpack(base: &Path) -> Result<PathBuf, String> {
    let download = folder(&base.join("download"))?;
    let archive = download.join(format!("{ARCHIVE}.tar.gz"));
    if !archive.is_file() {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=llama-cpp-python", "--dest"]);
        stage::run(&format!("download {PACKAGE}"), pip.arg(&download).arg(PACKAGE))?;
    }
    let bytes = fs::read(&archive).map_err(|error| format!("read {}: {error}", archive.display()))?;
    let found: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    if found != ARCHIVE_SHA256 {
        let path = archive.display();
        return Err(format!("{path} has sha256 {found}, expected {ARCHIVE_SHA256}; delete it and try again"));
    }
    let source = folder(&base.join("source"))?;
    let tree = source.join(ARCHIVE).join("vendor").join("llama.cpp");
    if !tree.join("CMakeLists.txt").is_file() {
        let mut tar = Command::new("tar");
        stage::run("unpack", tar.arg("-xzf").arg(&archive).arg("-C").arg(&source))?;
    }
    Ok(tree)
}

/// A Python environment with the build tools; returns its folder of programs.
fn tools(base: &Path) -> Result<PathBuf, String> {
    let environment = base.join("tools");
    let bin = environment.join("bin");
    if !bin.join("ninja").is_file() || !bin.join("cmake").is_file() {
        let mut venv = Command::new("python3");
        stage::run("python environment", venv.args(["-m", "venv"]).arg(&environment))?;
        let mut pip = Command::new(bin.join("python"));
        stage::run("build tools", pip.args(["-m", "pip", "install", "--quiet"]).args(TOOLS))?;
    }
    Ok(bin)
}

fn build(base: &Path, source: &Path, tools: &Path) -> Result<(), String> {
    let build = base.join("build");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(tools.to_owned()).chain(std::env::split_paths(&path)))
        .map_err(|error| format!("PATH: {error}"))?;
    let cmake = || {
        let mut command = Command::new("nice");
        command.args(["-n", "19"]).arg(tools.join("cmake")).env("PATH", &path);
        command
    };
    stage::run("configure", cmake().arg("-S").arg(source).arg("-B").arg(&build).args(CONFIGURE))?;
    stage::run("build (minutes)", cmake().arg("--build").arg(&build).arg("--target").args(PROGRAMS))
}

fn folder(path: &Path) -> Result<PathBuf, String> {
    fs::create_dir_all(path).map_err(|error| format!("create {}: {error}", path.display()))?;
    Ok(path.to_owned())
}
