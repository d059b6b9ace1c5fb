//! NVIDIA's compilers from their wheels, and what is checked with them: kernels compile without warnings, for every architecture, with
//! nvcc and NVRTC, within their table of resources; checked-in PTX is fresh.
//!
//! Nothing needs to be installed but Python 3 with pip: the wheels go into a folder of their own (some 500 MB).

mod check;
mod resources;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub use check::{Folder, Report};
pub use resources::Resources;

/// Everything is pinned: wheels of a newer toolkit write PTX that older drivers do not read.
const WHEELS: [&str; 6] = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
    "nvidia-cuda-nvrtc==13.0.88",
];
/// The run-time compiler of an older toolkit, which writes PTX 8.7: what goes with a driver that does not read [`PTX_VERSION`].
const OLD_NVRTC: [&str; 1] = ["nvidia-cuda-nvrtc-cu12==12.8.93"];
/// The PTX that these compilers write, and the oldest driver that reads it (CUDA 13.0 release notes, "CUDA Driver").
pub const PTX_VERSION: (u32, u32) = (9, 0);
/// The oldest driver that reads [`PTX_VERSION`].
pub const OLDEST_DRIVER: &str = "580";
/// Architectures that kernels are compiled for, as `compute_` and `sm_` name them.
pub const ARCHITECTURES: [&str; 3] = ["80", "90a", "100"];

/// Compiles a program with NVRTC: library, source, architecture, include folder.
const NVRTC: &str = include_str!("nvrtc.py");

/// Installed compilers.
#[derive(Clone, Debug)]
pub struct Toolkit {
    /// The virtual environment.
    environment: PathBuf,
    /// `nvidia/cu13` in it.
    root: PathBuf,
}

fn run(command: &mut Command) -> Result<Output, String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|error| format!("{name}: {error}"))?;
    if output.status.success() {
        return Ok(output);
    }
    let text = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    let end: Vec<&str> = text.lines().rev().take(20).collect();
    Err(format!("{name}: {}\n{}", output.status, end.into_iter().rev().collect::<Vec<_>>().join("\n")))
}

impl Toolkit {
    /// The toolkit in `folder`, installed there first if it is not. Errors: no Python, no pip, no network, in words.
    pub fn install(folder: &Path) -> Result<Toolkit, String> {
        let root = environment(folder, &WHEELS, "cu13", "bin/nvcc")?;
        Ok(Toolkit { environment: folder.to_owned(), root })
    }

    /// Compiles a source to PTX; a warning is an error.
    pub fn ptx(&self, source: &Path, include: &Path, architecture: &str, target: &Path) -> Result<(), String> {
        let mut nvcc = Command::new(self.root.join("bin/nvcc"));
        nvcc.args(["-O3", "-std=c++17", "-Werror", "all-warnings", "-ptx"]);
        nvcc.arg(format!("-arch=compute_{architecture}")).arg("-I").arg(include).arg("-o").arg(target).arg(source);
        let output = run(&mut nvcc)?;
        quiet("nvcc", &output)
    }

    /// Assembles PTX for its architecture and says what each kernel needs; a spill or any other warning is an error.
    pub fn cubin(&self, ptx: &Path, architecture: &str, target: &Path) -> Result<Vec<Resources>, String> {
        let mut ptxas = Command::new(self.root.join("bin/ptxas"));
        ptxas.args(["-O3", "-v", "-Werror", "-warn-spills"]);
        let output = run(ptxas.arg(format!("-arch=sm_{architecture}")).arg("-o").arg(target).arg(ptx))?;
        resources::read(&String::from_utf8_lossy(&output.stderr), architecture)
    }

    /// Compiles a source as the driver's own compiler would; a warning is an error.
    pub fn nvrtc(&self, source: &Path, include: &Path, architecture: &str) -> Result<String, String> {
        let mut python = Command::new(self.environment.join("bin/python"));
        // NVRTC opens its own second library by name alone.
        python.env("LD_LIBRARY_PATH", self.root.join("lib"));
        python.args(["-c", NVRTC]).arg(self.root.join("lib/libnvrtc.so.13"));
        python.arg(source).arg(format!("compute_{architecture}")).arg(include).arg(self.root.join("include"));
        let output = run(&mut python)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// The libraries of NVRTC 12.8, what it loads by name first, installed in `folder` if they are not. Errors: as [`Toolkit::install`].
pub fn old_nvrtc(folder: &Path) -> Result<[PathBuf; 2], String> {
    let root = environment(folder, &OLD_NVRTC, "cuda_nvrtc", "lib/libnvrtc.so.12")?;
    Ok(["libnvrtc-builtins.so.12.8", "libnvrtc.so.12"].map(|name| root.join("lib").join(name)))
}

/// A virtual environment with some wheels, made unless it is there; `nvidia/PART` in it, which has `file`. Whoever else asks for the same
/// folder meanwhile waits.
fn environment(folder: &Path, wheels: &[&str], part: &str, file: &str) -> Result<PathBuf, String> {
    let fail = |error: std::io::Error| format!("{}: {error}", folder.display());
    fs::create_dir_all(folder).map_err(fail)?;
    let lock = File::create(folder.with_extension("lock")).map_err(fail)?;
    lock.lock().map_err(fail)?;
    let stamp = folder.join("wheels.txt");
    let wanted = wheels.join("\n");
    let found = || {
        // lib/python3.x/site-packages/nvidia/PART
        let versions = fs::read_dir(folder.join("lib")).ok()?;
        let mut roots = versions.flatten().map(|version| version.path().join("site-packages/nvidia").join(part));
        roots.find(|root| root.join(file).exists())
    };
    if fs::read_to_string(&stamp).is_ok_and(|text| text == wanted)
        && let Some(root) = found()
    {
        return Ok(root);
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
    run(Command::new(folder.join("bin/python")).args(["-m", "pip", "install", "--quiet"]).args(wheels))?;
    let root = found().ok_or_else(|| format!("the wheels have no nvidia/{part}/{file}"))?;
    fs::write(&stamp, wanted).map_err(fail)?;
    Ok(root)
}

/// Compilers that have nothing to say say nothing.
fn quiet(name: &str, output: &Output) -> Result<(), String> {
    let said = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    if said.trim().is_empty() { Ok(()) } else { Err(format!("{name}: {said}")) }
}
