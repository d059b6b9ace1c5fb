//! The `cuda` device over the driver double, its kernels those of the host build.

use cuda_ladder::{Memory, Module};
use cuda_shim::Argument::{Address, Word};
use cuda_shim::{Argument, Schedule, launch};
use gpu_tier::cpu::isa::Isa;
use gpu_tier::cpu::workers::Workers;
use gpu_tier::cpu::{CpuConfig, CpuDevice, Link};
use gpu_tier::cuda::{CudaConfig, CudaDevice, KernelSource};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::double::{Double, IMAGE, LAUNCH_FAILED, Launch};

/// What executes the kernels of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The sources, compiled for the host.
    Host,
    /// nvcc's PTX for an architecture, interpreted.
    Ptx(&'static str),
}

static ENGINE: Mutex<Engine> = Mutex::new(Engine::Host);

/// Grids run so far: each is drawn another order of threads.
static GRIDS: AtomicU64 = AtomicU64::new(1);

fn run(name: &str, launch_at: *const Launch, arguments: &[Argument]) -> u32 {
    let seed = GRIDS.fetch_add(1, Ordering::Relaxed);
    let engine = *ENGINE.lock().unwrap_or_else(PoisonError::into_inner);
    let done = match engine {
        Engine::Host => run_host(name, launch_at, arguments, seed),
        Engine::Ptx(architecture) => run_ptx(architecture, name, launch_at, arguments, seed),
    };
    match done {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("{engine:?}: {error}");
            LAUNCH_FAILED
        }
    }
}

fn run_host(name: &str, launch_at: *const Launch, arguments: &[Argument], seed: u64) -> Result<(), String> {
    // SAFETY: the double passes a launch that is valid during the call.
    let (grid, block) = unsafe { ((*launch_at).grid, (*launch_at).block) };
    // SAFETY: the device has checked the ranges behind every address of its tables, and the double keeps them live during the call.
    unsafe { launch(name, grid, block, arguments, Schedule::Random(seed)) }.map_err(|error| error.to_string())
}

/// The modules of an architecture, parsed once.
fn modules(architecture: &'static str) -> &'static [Module] {
    static ALL: Mutex<BTreeMap<&str, &[Module]>> = Mutex::new(BTreeMap::new());
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    all.entry(architecture).or_insert_with(|| {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../gpu-tier/kernels/ptx");
        let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.to_str().unwrap().ends_with(&format!(".{architecture}.ptx")));
        assert!(!files.is_empty(), "no PTX for {architecture}");
        let parse = |path| Module::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
        Vec::leak(files.iter().map(parse).collect())
    })
}

/// The double's memory as the interpreter sees it.
struct Behind(*const Launch);

impl Behind {
    fn resolve(&self, address: u64, bytes: usize) -> Option<*mut u8> {
        // SAFETY: the double's launch is valid during the call, and so is its function.
        let found = unsafe { ((*self.0).resolve)(self.0, address, bytes) };
        (!found.is_null()).then_some(found)
    }
}

impl Memory for Behind {
    fn bytes(&self, address: u64, bytes: usize) -> Option<&[u8]> {
        // SAFETY: the double resolves to that many bytes of one live block, kept during the call; nothing else runs meanwhile.
        self.resolve(address, bytes).map(|found| unsafe { std::slice::from_raw_parts(found, bytes) })
    }

    fn bytes_mut(&mut self, address: u64, bytes: usize) -> Option<&mut [u8]> {
        // SAFETY: as above.
        self.resolve(address, bytes).map(|found| unsafe { std::slice::from_raw_parts_mut(found, bytes) })
    }
}

fn run_ptx(
    architecture: &'static str,
    name: &str,
    launch_at: *const Launch,
    arguments: &[Argument],
    seed: u64,
) -> Result<(), String> {
    // SAFETY: the double passes a launch that is valid during the call.
    let (grid, block) = unsafe { ((*launch_at).grid, (*launch_at).block) };
    let found = modules(architecture).iter().find_map(|module| Some((module, module.entry(name)?)));
    let (module, entry) = found.ok_or_else(|| format!("there is no {name}"))?;
    let values: Vec<Vec<u8>> = arguments
        .iter()
        .map(|argument| match argument {
            Address(value) => value.to_le_bytes().to_vec(),
            Word(value) => value.to_le_bytes().to_vec(),
            Argument::Float(value) => value.to_le_bytes().to_vec(),
        })
        .collect();
    let values: Vec<&[u8]> = values.iter().map(Vec::as_slice).collect();
    let params = entry.pack(&values).map_err(|error| format!("{error:?}"))?;
    let launch = cuda_ladder::Launch {
        schedule: cuda_ladder::Schedule::Random(seed),
        ..cuda_ladder::Launch::new(grid, block, &params)
    };
    module.run(entry, &launch, &mut Behind(launch_at)).map(|_| ()).map_err(|fault| format!("{fault}"))
}

/// Defines a host function that runs a kernel of the host build with the parameters of a launch: `a` for an address, `w` for a word.
macro_rules! kernels {
    ($($name:ident($($kind:ident),*)),* $(,)?) => {
        $(unsafe extern "C" fn $name(launch: *const Launch) -> u32 {
            // SAFETY: the double passes a launch that is valid during the call.
            let mut parameters = (0..).map(|i| unsafe { *(*launch).parameters.add(i) });
            let arguments = [$({
                let parameter = parameters.next().expect("as many as were registered below");
                // SAFETY: the double passes a pointer for each parameter that was registered, to a value of its size.
                unsafe { kernels!(@read $kind, parameter) }
            }),*];
            run(stringify!($name), launch, &arguments)
        })*

        fn register(double: &Double) {
            $(double.register(stringify!($name), $name, &[$(kernels!(@size $kind)),*]);)*
        }
    };
    (@read a, $parameter:ident) => { Address($parameter.cast::<u64>().read()) };
    (@read w, $parameter:ident) => { Word($parameter.cast::<u32>().read()) };
    (@size a) => { 8 };
    (@size w) => { 4 };
}

kernels! {
    kvtier_append(a),
    kvtier_attend_v4_c1(a, a, a, w),
    kvtier_attend_v4_c2(a, a, a, w),
    kvtier_attend_v4_c4(a, a, a, w),
    kvtier_attend_v8_c1(a, a, a, w),
    kvtier_attend_v8_c2(a, a, a, w),
    kvtier_attend_v8_c4(a, a, a, w),
    kvtier_finish(a, w),
    kvtier_gather(a, w),
    kvtier_clear(a, w),
    kvtier_i8h_encode(a, w, w),
    kvtier_i8h_decode(a, w),
    kvtier_kc4vt4_encode(a, w, w),
    kvtier_kc4vt4_decode(a, w),
    kvtier_sx12_windows(a, w),
    kvtier_sx12_encode(a, w),
    kvtier_sx12_decode(a, w, w),
    kvtier_xxh3(a),
}

/// The device, its kernels run by `engine`; the double must outlive it.
pub fn cuda(double: &Double, engine: Engine) -> CudaDevice {
    cuda_within(double, engine, 512 << 20)
}

/// The same under a budget.
pub fn cuda_within(double: &Double, engine: Engine, budget_bytes: u64) -> CudaDevice {
    *ENGINE.lock().unwrap_or_else(PoisonError::into_inner) = engine;
    register(double);
    let kernels = KernelSource::Image(IMAGE.to_owned());
    CudaDevice::open(CudaConfig { ordinal: 0, budget_bytes, kernels }).unwrap()
}

/// The device without a GPU, scalar or as fast as the processor allows.
pub fn cpu(isa: Isa) -> CpuDevice {
    let workers = Arc::new(Workers::new(2));
    CpuDevice::open(CpuConfig { budget_bytes: 512 << 20, link: Link::InPlace, workers, isa }).unwrap()
}
