//! A test double of libcuda: the driver calls that kvtier makes, carried out by threads over guarded host memory.
//!
//! What it keeps from the hardware, because host code goes wrong there:
//! - each stream is a thread with a queue; events count records and completions; nothing else orders two streams;
//! - copies from pinned memory really are asynchronous, pageable ones are staged at call time or wait;
//! - device memory starts as 0xFB, is never mapped twice, and has addresses that the host cannot dereference;
//! - every copy is range-checked when it is enqueued and again when it runs; a failed job is sticky for the context;
//! - calls without a current context fail.
//!
//! A module is PTX, whose kernels run on the ladder ([`launch`]): every address is checked when a thread uses it, and a kernel that
//! does wrong ends the context as on hardware (700, 716, 719), with its text on stderr. Or a kernel is a host function registered
//! under its name ([`module`]). [`control`], [`report`] and [`log`] hold the symbols that a real driver lacks: faults, gates,
//! jitter, limits, schedules, counters, and what went on side by side. Not imitated: the null stream, several devices, timing.

mod card;
mod context;
mod control;
mod copy;
mod event;
mod launch;
mod log;
mod memory;
mod module;
mod report;
mod status;
mod stream;
