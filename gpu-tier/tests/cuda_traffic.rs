//! What compiled attention moves through global memory, by the counts of the driver double: no more than the formula says, and in accesses of
//! 16 bytes. What the other kernels move is in the table that `cuda_counts.rs` checks.

#[path = "cuda_double/double.rs"]
#[expect(dead_code, reason = "tests of the double use the rest")]
mod double;
mod scene;

use double::{Double, KernelCounts};
use gpu_tier::attention::Element;
use gpu_tier::cuda::{CudaConfig, CudaDevice, KernelSource};
use gpu_tier::device::Device;
use scene::{ALL_CLOSED, Scene, Stage, WHOLE};

const ATTEND: [&str; 6] = [
    "kvtier_attend_v4_c1",
    "kvtier_attend_v4_c2",
    "kvtier_attend_v4_c4",
    "kvtier_attend_v8_c1",
    "kvtier_attend_v8_c2",
    "kvtier_attend_v8_c4",
];

const FINISH: [&str; 1] = ["kvtier_finish"];

/// What kernels have moved since the double was taken.
#[derive(Clone, Copy, Debug, Default)]
struct Moved {
    /// Bytes of the sectors that warps touch, 32 each: a value that a warp's threads share counts once.
    bytes: u64,
    /// Bytes stored by threads.
    stored: u64,
    /// Bytes in accesses of 16 bytes a thread that touch no sector in vain.
    by_16: u64,
    /// Bytes of local memory: spills.
    local: u64,
}

fn moved(double: &Double, kernels: &[&str]) -> Moved {
    kernels.iter().map(|kernel| double.kernel_counts(kernel)).fold(Moved::default(), |sum, counts: KernelCounts| {
        Moved {
            bytes: sum.bytes + 32 * counts.global_sectors,
            stored: sum.stored + counts.global_store_bytes,
            by_16: sum.by_16 + counts.global_coalesced16_bytes,
            local: sum.local + counts.local_bytes,
        }
    })
}

impl Moved {
    fn since(self, before: Moved) -> Moved {
        Moved {
            bytes: self.bytes - before.bytes,
            stored: self.stored - before.stored,
            by_16: self.by_16 - before.by_16,
            local: self.local - before.local,
        }
    }

    fn by_16_share(&self) -> f64 {
        self.by_16 as f64 / self.bytes as f64
    }
}

fn open() -> CudaDevice {
    let config = CudaConfig { ordinal: 0, budget_bytes: 64 << 20, kernels: KernelSource::Embedded };
    CudaDevice::open(config).unwrap()
}

/// One token is decoded: attention over every block, exact and closed, then the merging of what each span gave.
#[test]
fn a_decoded_token_reads_its_keys_and_values_once() {
    let Some(double) = Double::take_hooks() else { return };
    for tokens in [1, 64, 512, 1536] {
        let forms = [None].into_iter().chain(ALL_CLOSED.map(Some));
        for (closed, (group, head_dim)) in forms.flat_map(|form| [(form, (3, 64)), (form, (4, 128)), (form, (1, 256))])
        {
            let device = open();
            let element = Element::Bf16;
            let scene =
                Scene { group, kv_heads: 2, head_dim, block_tokens: 64, element, closed, tokens, rows: 1, seed: 9 };
            let stage = Stage::new(&device, scene).unwrap();
            let attended = device.traffic().attended_device_bytes;
            let before = [&ATTEND[..], &FINISH].map(|kernels| moved(&double, kernels));
            stage.attend(&WHOLE).unwrap();
            let [attend, finish] = [&ATTEND[..], &FINISH].map(|kernels| moved(&double, kernels));
            let (attend, finish) = (attend.since(before[0]), finish.since(before[1]));
            let (spans, heads) = (tokens.div_ceil(64) as u64, u64::from(2 * group));
            // Each span has the row's queries, and partials of its own.
            let kv_bytes = device.traffic().attended_device_bytes - attended;
            let row = heads * u64::from(head_dim) * 4;
            let partials = spans * heads * scene.geometry().partial_bytes();
            let all = [(attend, kv_bytes + spans * row + partials), (finish, partials + row)];
            let ratios = all.map(|(moved, formula)| moved.bytes as f64 / formula as f64);
            println!("{tokens} {closed:?} {head_dim}: {ratios:.4?} of {:?} bytes", all.map(|(_, formula)| formula));
            let stored = scene.geometry().accumulator_bytes(1, spans as u32);
            assert_eq!((attend.stored, finish.stored), (stored, row), "{scene:?}");
            for ((moved, _), ratio) in all.into_iter().zip(ratios) {
                assert_eq!(moved.local, 0);
                assert!((1.0..1.05).contains(&ratio), "{ratio}, {scene:?}");
                assert!(moved.by_16_share() >= 0.99, "{moved:?}, {scene:?}");
            }
        }
    }
    double.assert_nothing_left();
}
