//! Daemons and clients: as processes, and how they die; and a daemon on a thread, where nothing has to die.
//!
//! | file | part |
//! |---|---|
//! | `process` | a daemon in a process of its own: started, killed, stopped, told to end |
//! | `in_process` | a daemon on a thread of the test's own process, and engines over it |
//! | `figures` | what it holds: its own statistics, and what the kernel says of its process |
//! | `blocks` | blocks of a small shape whose bytes everybody knows |
//! | `raw` | the protocol by hand: frames, halves of frames, calls that the client does not have |
//! | `gate` | a disk whose reads wait until they are let through |
//! | `manager` | a service manager in small, which keeps descriptors over a daemon's end |
//! | `dying` | client processes that are killed at every step of the protocol |
//! | `deaths` | daemons that die under clients and under an engine |
//! | `churn` | clients that come, work and go, for as long as one likes |
//! | `late` | deadlines over slow disks and disks that never answer, beside a thread that sleeps |

pub mod blocks;
pub mod churn;
pub mod deaths;
pub mod dying;
pub mod figures;
pub mod gate;
pub mod in_process;
pub mod late;
pub mod manager;
pub mod process;
pub mod raw;
