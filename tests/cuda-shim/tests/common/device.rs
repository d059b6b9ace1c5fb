//! The `cuda` device over the driver double, its kernels run by the host build or as PTX.

use cuda_shim::Argument::{Address, Word};
use cuda_shim::{Argument, Schedule, launch};
use gpu_tier::attention::Products;
use gpu_tier::cpu::isa::Isa;
use gpu_tier::cpu::workers::Workers;
use gpu_tier::cpu::{CpuConfig, CpuDevice, Link};
use gpu_tier::cuda::{CudaConfig, CudaDevice, KernelSource};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::double::{Double, IMAGE, LAUNCH_FAILED, Launch};

/// What executes the kernels of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The sources, compiled for the host.
    Host,
    /// nvcc's PTX for a compute capability, as embedded; the double interprets it.
    Ptx(u32),
}

/// Every engine.
pub const ENGINES: [Engine; 4] = [Engine::Host, Engine::Ptx(80), Engine::Ptx(90), Engine::Ptx(100)];

/// Grids run on the host so far: each is drawn another order of threads.
static GRIDS: AtomicU64 = AtomicU64::new(1);

fn run(name: &str, launch_at: *const Launch, arguments: &[Argument]) -> u32 {
    let seed = GRIDS.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the double passes a launch that is valid during the call.
    let (grid, block) = unsafe { ((*launch_at).grid, (*launch_at).block) };
    // SAFETY: the device has checked the ranges behind every address of its tables, and the double keeps them live during the call.
    match unsafe { launch(name, grid, block, arguments, Schedule::Random(seed)) } {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("host build: {error}");
            LAUNCH_FAILED
        }
    }
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
    kvtier_attend_v4_c1(a, a, w, w, w, w, w, w, w),
    kvtier_attend_v4_c2(a, a, w, w, w, w, w, w, w),
    kvtier_attend_v4_c4(a, a, w, w, w, w, w, w, w),
    kvtier_attend_v8_c1(a, a, w, w, w, w, w, w, w),
    kvtier_attend_v8_c2(a, a, w, w, w, w, w, w, w),
    kvtier_attend_v8_c4(a, a, w, w, w, w, w, w, w),
    kvtier_attend_mma_v8_c1(a, a, w, w, w, w, w, w, w),
    kvtier_attend_mma_v8_c2(a, a, w, w, w, w, w, w, w),
    kvtier_attend_mma_v8_c4(a, a, w, w, w, w, w, w, w),
    kvtier_attend_mma_v16_c1(a, a, w, w, w, w, w, w, w),
    kvtier_attend_mma_v16_c2(a, a, w, w, w, w, w, w, w),
    kvtier_finish(a, w, w, w, w),
    kvtier_gather(a, w),
    kvtier_clear(a, w),
    kvtier_i8h_encode(a, w, w),
    kvtier_i8h_decode(a, w),
    kvtier_kc4vt4_encode(a, w, w),
    kvtier_kc4vt4_decode(a, w),
    kvtier_rate(a, w),
    kvtier_sx12_encode(a, w),
    kvtier_sx12_escapes(a, w),
    kvtier_sx12_decode(a, w, w),
    kvtier_xxh3(a),
}

/// The device, its kernels run by `engine`; the double must outlive it.
pub fn cuda(double: &Double, engine: Engine) -> CudaDevice {
    cuda_within(double, engine, 512 << 20)
}

/// The same with attention on matrix instructions.
pub fn cuda_matrix(double: &Double, engine: Engine) -> CudaDevice {
    open(double, engine, 512 << 20, Products::Matrix)
}

/// The same under a budget.
pub fn cuda_within(double: &Double, engine: Engine, budget_bytes: u64) -> CudaDevice {
    open(double, engine, budget_bytes, Products::Canonical)
}

fn open(double: &Double, engine: Engine, budget_bytes: u64, products: Products) -> CudaDevice {
    let kernels = match engine {
        Engine::Host => {
            register(double);
            KernelSource::Image(IMAGE.to_owned())
        }
        Engine::Ptx(capability) => {
            double.set_capability(capability);
            double.shuffle(u64::from(capability));
            KernelSource::Embedded
        }
    };
    CudaDevice::open_with(CudaConfig { ordinal: 0, budget_bytes, kernels }, products).unwrap()
}

/// The device without a GPU, scalar or as fast as the processor allows.
pub fn cpu(isa: Isa) -> CpuDevice {
    let workers = Arc::new(Workers::new(2));
    CpuDevice::open(CpuConfig { budget_bytes: 512 << 20, link: Link::InPlace, workers, isa }).unwrap()
}
