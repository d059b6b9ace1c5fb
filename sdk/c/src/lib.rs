//! kvtier's C ABI. The header is `include/kvtier.h`, the page for authors `docs/sdk-c.md`.
//!
//! | file | part |
//! |---|---|
//! | `codes` | numbers: codes of errors, tiers, outcomes, and their names |
//! | `guard` | the boundary: no panic crosses it, the last error of each thread |
//! | `input` | what callers pass: versioned structs, texts, hashes |
//! | `client` | open, close, namespace, eventfd, poll |
//! | `worker` | the thread that makes the calls, behind a bounded queue |
//! | `submit` | calls that wait: lookup, load, store, acquire, reserve, commit, stats |
//! | `result` | what became of one of them |
//! | `slabs`, `leases`, `places` | an engine's memory; blocks read and written in place |
//!
//! **Handles** are pointers to boxes that this library made; null is refused, any other wrong pointer is the caller's end.
//!
//! **Structs** that callers fill begin with their size. A shorter one is from an older header: what it lacks is zero, which
//! always means the default. A longer
//! one is from a newer header, and is taken as long as what is not known here is zero.
#![expect(unsafe_code, reason = "a C ABI is made of pointers")]
#![expect(non_camel_case_types, reason = "names as C has them")]

mod client;
mod codes;
mod guard;
mod input;
mod leases;
mod places;
mod result;
mod slabs;
mod submit;
mod worker;
