//! Where kernels come from: PTX made ahead by `cargo xtask kernels` and embedded, or compiled by NVRTC from the embedded sources when
//! the driver is older than that PTX.

use std::sync::Arc;

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, CudaModule, DriverError};
use cudarc::nvrtc::{CompileOptions, Ptx, compile_ptx_with_opts};

/// Which kernels a device loads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum KernelSource {
    /// None: the driver's copies stand in for the gather, attention and codecs are not available.
    None,
    /// Those embedded in this program, for the device's architecture.
    #[default]
    Embedded,
    /// One module image (PTX text). What it lacks is not available.
    Image(String),
}

/// Why kernels could not be loaded.
pub(in super::super) enum LoadError {
    /// The driver refused them.
    Driver(DriverError),
    /// There are none for this device.
    Unavailable(String),
}

impl From<DriverError> for LoadError {
    fn from(error: DriverError) -> LoadError {
        LoadError::Driver(error)
    }
}

/// Sources and PTX of one kernel file.
struct File {
    name: &'static str,
    source: &'static str,
    /// For compute capability 8.x, 9.0, and 10.0 or later.
    ptx: [&'static str; 3],
}

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        [$(File {
            name: $name,
            source: include_str!(concat!("../../../kernels/", $name, ".cu")),
            ptx: [
                include_str!(concat!("../../../kernels/ptx/", $name, ".compute_80.ptx")),
                include_str!(concat!("../../../kernels/ptx/", $name, ".compute_90a.ptx")),
                include_str!(concat!("../../../kernels/ptx/", $name, ".compute_100.ptx")),
            ],
        }),*]
    };
}

macro_rules! header {
    ($name:literal) => {
        (concat!($name, ".cuh"), include_str!(concat!("../../../kernels/", $name, ".cuh")))
    };
}

const FILES: [File; 10] =
    files!["append", "attend", "attend_mma", "finish", "gather", "i8h", "kc4vt4", "rate", "sx12", "xxh3"];

/// Headers by the name that sources include them under.
const HEADERS: [(&str, &str); 10] = [
    header!("attend_closed"),
    header!("attend_exact"),
    header!("attention"),
    header!("grid"),
    header!("kv"),
    header!("matrix"),
    header!("plain"),
    header!("ring"),
    header!("span"),
    header!("tile"),
];

/// Loads the modules of a source.
pub(super) fn load(context: &Arc<CudaContext>, source: &KernelSource) -> Result<Vec<Arc<CudaModule>>, LoadError> {
    match source {
        KernelSource::None => Ok(Vec::new()),
        KernelSource::Image(image) => Ok(vec![context.load_module(Ptx::from_src(image))?]),
        KernelSource::Embedded => embedded(context),
    }
}

fn embedded(context: &Arc<CudaContext>) -> Result<Vec<Arc<CudaModule>>, LoadError> {
    let (index, architecture) = match context.compute_capability()? {
        (8, _) => (0, "compute_80"),
        (9, _) => (1, "compute_90a"),
        (10.., _) => (2, "compute_100"),
        (major, minor) => {
            let reason = format!("its compute capability is {major}.{minor}, the kernels need 8.0");
            return Err(LoadError::Unavailable(reason));
        }
    };
    FILES
        .iter()
        .map(|file| match context.load_module(Ptx::from_src(file.ptx[index])) {
            Err(error) if is_too_new(error) => compile(context, file, architecture, error),
            other => Ok(other?),
        })
        .collect()
}

/// Whether a driver says that it cannot read the PTX, rather than that it cannot work.
fn is_too_new(error: DriverError) -> bool {
    matches!(
        error.0,
        CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | CUresult::CUDA_ERROR_INVALID_PTX
            | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
    )
}

/// Compiles a file with the NVRTC of this machine, which is as old as its driver or older.
fn compile(
    context: &Arc<CudaContext>,
    file: &File,
    architecture: &'static str,
    refused: DriverError,
) -> Result<Arc<CudaModule>, LoadError> {
    // SAFETY: only opens and closes libraries by NVRTC's names; their constructors run, as in any use of NVRTC.
    if !unsafe { cudarc::nvrtc::sys::is_culib_present() } {
        return Err(LoadError::Driver(refused));
    }
    let options = CompileOptions {
        options: vec!["--std=c++17".to_owned()],
        arch: Some(architecture),
        name: Some(format!("{}.cu", file.name)),
        ..CompileOptions::default()
    };
    let ptx = compile_ptx_with_opts(one_text(file.source), options)
        .map_err(|error| LoadError::Unavailable(format!("NVRTC refuses kernel file {}: {error:?}", file.name)))?;
    Ok(context.load_module(ptx)?)
}

/// A source with its headers in place, each once: NVRTC is given no folder to look for them.
fn one_text(source: &str) -> String {
    let mut seen = Vec::new();
    let mut text = String::new();
    inline(source, &mut seen, &mut text);
    text
}

fn inline(source: &str, seen: &mut Vec<&'static str>, text: &mut String) {
    for line in source.lines() {
        let included = line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"'));
        match included.and_then(|name| HEADERS.iter().find(|(header, _)| *header == name)) {
            Some((header, body)) => {
                if !seen.contains(header) {
                    seen.push(header);
                    inline(body, seen, text);
                }
            }
            None if line == "#pragma once" => {}
            None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
}
