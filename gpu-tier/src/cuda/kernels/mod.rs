//! Loaded kernels and their launchers: one file a kernel file of `gpu-tier/kernels`, of the same name. Only a launcher knows its
//! kernel's parameters and the records of its table; both files state the layout.
//!
//! Kernels take a table: an array of records with bare addresses, built here and copied to the device ahead of the launch. Callers
//! check every range, keep it live until the launch is enqueued, and order other work through the stream.

pub(super) mod append;
pub(super) mod attend;
pub(super) mod attend_mma;
pub(super) mod finish;
pub(super) mod gather;
pub(super) mod grid;
pub(super) mod i8h;
pub(super) mod image;
pub(super) mod kc4vt4;
pub(super) mod rate;
pub(super) mod sx12;
pub(super) mod table;
pub(super) mod xxh3;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaStream, DriverError, LaunchConfig, PushKernelArg};

use super::health::{Health, describe, is_out_of_memory};
use super::staging::Staging;
use crate::error::DeviceError;

/// Every kernel that a launcher asks for.
const NAMES: [&str; 24] = [
    append::NAME,
    attend::NAMES[0][0],
    attend::NAMES[0][1],
    attend::NAMES[0][2],
    attend::NAMES[1][0],
    attend::NAMES[1][1],
    attend::NAMES[1][2],
    attend_mma::NAMES[0],
    attend_mma::NAMES[1],
    attend_mma::NAMES[2],
    attend_mma::WIDE[0],
    attend_mma::WIDE[1],
    finish::NAME,
    gather::NAME,
    gather::CLEAR,
    i8h::ENCODE,
    i8h::DECODE,
    kc4vt4::ENCODE,
    kc4vt4::DECODE,
    rate::NAME,
    sx12::ENCODE,
    sx12::ESCAPES,
    sx12::DECODE,
    xxh3::NAME,
];

/// The kernels of the loaded modules. A module may lack some: what needs them fails, the rest works.
#[derive(Default)]
pub(super) struct Kernels(HashMap<&'static str, CudaFunction>);

impl Kernels {
    /// Takes the kernels of some modules.
    pub(super) fn of(modules: &[Arc<CudaModule>]) -> Result<Kernels, DriverError> {
        let mut all = HashMap::new();
        for module in modules {
            for name in NAMES {
                match module.load_function(name) {
                    Ok(function) => drop(all.insert(name, function)),
                    Err(DriverError(CUresult::CUDA_ERROR_NOT_FOUND)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Kernels(all))
    }

    pub(super) fn get(&self, name: &str) -> Option<&CudaFunction> {
        self.0.get(name)
    }
}

/// What a launcher works with.
#[derive(Clone, Copy)]
pub(super) struct Launcher<'a> {
    pub(super) kernels: &'a Kernels,
    pub(super) stream: &'a Arc<CudaStream>,
    pub(super) staging: &'a Mutex<Staging>,
    pub(super) health: &'a Health,
    /// The operation, in errors.
    pub(super) what: &'static str,
}

/// A parameter of a kernel that follows its table's address.
pub(super) enum Parameter {
    /// 32 bits.
    Word(u32),
    /// Address of a byte of the table, counted from its start.
    Within(u64),
}

impl Launcher<'_> {
    /// Launches a kernel over `blocks` thread blocks of `threads`, with a copy of `table` in device memory as its first parameter.
    fn launch(
        &self,
        name: &'static str,
        blocks: (u32, u32),
        threads: u32,
        table: &[u8],
        parameters: &[Parameter],
    ) -> Result<(), DeviceError> {
        let Some(function) = self.kernels.get(name) else {
            let reason = format!("its modules have no kernel {name}");
            return Err(DeviceError::Unavailable { kind: "cuda", reason });
        };
        if blocks.0 == 0 || blocks.1 == 0 {
            return Ok(());
        }
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let launched = staging.with_table(self.stream, table, |start| {
            let table = start.raw();
            let values: Vec<(u32, u64)> = parameters
                .iter()
                .map(|parameter| match parameter {
                    Parameter::Word(word) => (*word, 0),
                    Parameter::Within(byte) => (0, start.add(*byte).raw()),
                })
                .collect();
            let config =
                LaunchConfig { grid_dim: (blocks.0, blocks.1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 };
            let mut launch = self.stream.launch_builder(function);
            launch.arg(&table);
            for (parameter, value) in parameters.iter().zip(&values) {
                match parameter {
                    Parameter::Word(_) => launch.arg(&value.0),
                    Parameter::Within(_) => launch.arg(&value.1),
                };
            }
            // SAFETY: the arguments are those of the kernel of this name (its launcher's file and the kernel's state them); the
            // table stays as it is until the launch is done, and the caller vouches for the addresses in it.
            unsafe { launch.launch(config) }.map(|_| ())
        });
        match launched {
            // The table's place could not be allocated: nothing was enqueued, the device works.
            Err(error) if is_out_of_memory(error) => Err(describe(self.what, error)),
            other => self.health.told(self.what, other),
        }
    }
}

/// Loads modules: embedded ones for this device, or a given image.
pub(super) fn load(
    context: &Arc<CudaContext>,
    source: &image::KernelSource,
) -> Result<Vec<Arc<CudaModule>>, image::LoadError> {
    image::load(context, source)
}
