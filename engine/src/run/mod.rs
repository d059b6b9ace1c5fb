//! Running sequences: what a step needs, how it is computed, and how blocks are paged in for it.

pub mod area;
mod close;
pub mod closing;
pub mod device;
pub mod engine;
pub mod forced;
mod generate;
mod load;
mod paging;
pub mod policy;
mod repair;
pub mod request;
pub mod sampler;
pub mod score;
mod sequence;
mod step;
mod tables;

pub use cache_core::form::Form;
pub use cache_core::hash::WeightsId;
pub use cache_core::miss::MissReason;
pub use gpu_tier::cpu::Link;
pub use gpu_tier::cpu::isa::Isa;
pub use load::LoadPolicy;
pub use paging::LoadedBytes;
