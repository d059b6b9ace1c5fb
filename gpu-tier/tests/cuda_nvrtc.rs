//! A driver that is older than the embedded PTX: the kernels are compiled by the run-time compiler of its own toolkit, from the embedded
//! sources, and give the bits of the `cpu` device.

#[path = "cuda_double/double.rs"]
#[expect(dead_code, reason = "tests of the double use the rest")]
mod double;
mod scene;

use std::path::Path;
use std::sync::Arc;

use cuda_ladder::toolkit::old_nvrtc;
use double::Double;
use gpu_tier::DeviceError;
use gpu_tier::attention::Element;
use gpu_tier::attention::closed::Closed;
use gpu_tier::cpu::isa::Isa;
use gpu_tier::cpu::workers::Workers;
use gpu_tier::cpu::{CpuConfig, CpuDevice, Link};
use gpu_tier::cuda::{CudaConfig, CudaDevice, KernelSource};
use scene::{Scene, Stage, WHOLE};

/// A driver that reads PTX 8.7.
const CUDA_12_8: u32 = 12080;
const BUDGET: u64 = 64 << 20;

fn open() -> Result<CudaDevice, DeviceError> {
    CudaDevice::open(CudaConfig { ordinal: 0, budget_bytes: BUDGET, kernels: KernelSource::Embedded })
}

#[test]
fn an_older_driver_gets_kernels_from_its_own_compiler() {
    let Some(double) = Double::take_hooks() else { return };
    double.set_driver(CUDA_12_8);
    match open() {
        Err(error) => {
            let said = error.to_string();
            assert!(matches!(error, DeviceError::Driver { .. }) && said.contains("unsupported toolchain"), "{said}");
        }
        Ok(_) => println!("this machine has an NVRTC of its own"),
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let libraries = match old_nvrtc(&target.join("cuda-nvrtc-12.8")) {
        Ok(libraries) => libraries,
        Err(reason) => {
            println!("SKIP: no CUDA toolkit: {reason}");
            return;
        }
    };
    for library in libraries {
        // SAFETY: NVIDIA's own library. It stays loaded, so whoever opens it by its soname finds it.
        std::mem::forget(unsafe { libloading::Library::new(library) }.unwrap());
    }
    let workers = Arc::new(Workers::new(2));
    let cpu =
        CpuDevice::open(CpuConfig { budget_bytes: BUDGET, link: Link::InPlace, workers, isa: Isa::detect() }).unwrap();
    for capability in [80, 90, 100] {
        double.set_capability(capability);
        let cuda = open().unwrap();
        for closed in [Closed::I8H, Closed::KC4VT4] {
            let scene = Scene {
                group: 2,
                kv_heads: 1,
                head_dim: 64,
                block_tokens: 64,
                element: Element::Bf16,
                closed: Some(closed),
                tokens: 200,
                rows: 2,
                seed: 3,
            };
            let (ours, twin) = (Stage::new(&cuda, scene).unwrap(), Stage::new(&cpu, scene).unwrap());
            assert_eq!(ours.written().unwrap(), twin.written().unwrap(), "{capability} {closed:?}");
            let [found, expected] = [ours.attend(&WHOLE).unwrap(), twin.attend(&WHOLE).unwrap()]
                .map(|floats| floats.into_iter().map(f32::to_bits).collect::<Vec<_>>());
            assert_eq!(found, expected, "{capability} {closed:?}");
        }
        assert!(double.kernel_counts("kvtier_finish").launches > 0, "the double has run PTX");
        drop(cuda);
    }
    double.assert_nothing_left();
}
