//! What this machine's ceilings are measured with.

pub use gpu_tier::cpu::bandwidth;
pub use gpu_tier::cpu::codec::{Simd, bench as forms, bench_attention as attention};
pub use gpu_tier::cuda::{bench as cuda, counts as cuda_counts, probe as cuda_devices};
