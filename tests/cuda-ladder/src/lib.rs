//! Checks CUDA kernels without a GPU: executes the PTX that nvcc emitted, on the CPU, and watches every access.
//!
//! [`Module::parse`] reads PTX and decodes every instruction; an opcode or modifier that is not executed here is an error with its
//! line. [`Module::run`] runs a kernel over a [`Memory`] of live allocations and returns what it did as [`Counts`], or the first
//! [`Fault`]: an access out of bounds or misaligned, a race in shared memory, threads that wait at different barriers, a value
//! that was never written, a `cp.async` that nobody waited for.
//!
//! ```
//! use cuda_ladder::{Arena, Launch, Module};
//!
//! let module = Module::parse(
//!     ".version 9.0\n.target sm_80\n.address_size 64\n
//!      .visible .entry twice(.param .u64 data) {
//!         .reg .b64 %rd<4>; .reg .b32 %r<4>;
//!         ld.param.u64 %rd1, [data];
//!         mov.u32 %r1, %tid.x;
//!         mul.wide.u32 %rd2, %r1, 4;
//!         add.s64 %rd3, %rd1, %rd2;
//!         ld.global.u32 %r2, [%rd3];
//!         add.s32 %r3, %r2, %r2;
//!         st.global.u32 [%rd3], %r3;
//!         ret;
//!      }",
//! )?;
//! let mut memory = Arena::new();
//! let data = memory.upload(&[1u32, 2, 3, 4].map(u32::to_le_bytes).concat());
//! let entry = module.entry("twice").expect("the module has it");
//! let params = entry.pack(&[&data.to_le_bytes()])?;
//! module.run(entry, &Launch::new([1, 1, 1], [4, 1, 1], &params), &mut memory)?;
//! assert_eq!(memory.download(data, 16), [2u32, 4, 6, 8].map(u32::to_le_bytes).concat());
//! // One thread more than there is data:
//! let fault = module.run(entry, &Launch::new([1, 1, 1], [5, 1, 1], &params), &mut memory).unwrap_err();
//! assert_eq!(fault.thread, [4, 0, 0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod counts;
mod decode;
mod fault;
mod instruction;
mod memory;
mod module;
mod number;
mod read;
mod run;
pub mod toolkit;

pub use counts::{Counts, KINDS, Kind};
pub use fault::{Fault, FaultKind};
pub use memory::{ALIGNMENT, Arena, Memory};
pub use module::{Entry, Module, Parameter, ParseError, Variant};
pub use run::{Approximation, Launch, Schedule};
