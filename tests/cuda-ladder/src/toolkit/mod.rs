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
    ///
    /// Whoever else asks for the same folder meanwhile waits.
    pub fn install(folder: &Path) -> Result<Toolkit, String> {
        let fail = |error: std::io::Error| format!("{}: {error}", folder.display());
        fs::create_dir_all(folder).map_err(fail)?;
        let lock = File::create(folder.with_extension("lock")).map_err(fail)?;
        lock.lock().map_err(fail)?;
        let stamp = folder.join("wheels.txt");
        let wanted = WHEELS.join("\n");
        let found = || Toolkit::find(folder);
        if fs::read_to_string(&stamp).is_ok_and(|text| text == wanted)
            && let Some(toolkit) = found()
        {
            return Ok(toolkit);
        }
        run(Command::new("python3").args(["-m", "venv"]).arg(folder))?;
        run(Command::new(folder.join("bin/python")).args(["-m", "pip", "install", "--quiet"]).args(WHEELS))?;
        let toolkit = found().ok_or("the wheels have no nvidia/cu13")?;
        fs::write(&stamp, wanted).map_err(fail)?;
        Ok(toolkit)
    }

    fn find(folder: &Path) -> Option<Toolkit> {
        // lib/python3.x/site-packages/nvidia/cu13
        let versions = fs::read_dir(folder.join("lib")).ok()?;
        let roots = versions.flatten().map(|version| version.path().join("site-packages/nvidia/cu13"));
        let root = roots.into_iter().find(|root| root.join("bin/nvcc").exists())?;
        Some(Toolkit { environment: folder.to_owned(), root })
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

/// Compilers that have nothing to say say nothing.
fn quiet(name: &str, output: &Output) -> Result<(), String> {
    let said = [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat();
    if said.trim().is_empty() { Ok(()) } else { Err(format!("{name}: {said}")) }
}
