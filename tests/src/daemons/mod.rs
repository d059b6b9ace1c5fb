//! Daemons and clients: as processes, and how they die; and a daemon on a thread, where nothing has to die.
//!
//! | file | part |
//! |---|---|
//! | `process` | a daemon in a process of its own: started, killed, stopped, told to end |
//! | `in_process` | a daemon on a thread of the test's own process, and engines over it |
//! | `figures` | what it holds: its own statistics, and what the kernel says of its process |
//! | `blocks` | blocks of a small shape whose bytes everybody knows |
//! | `raw` | the protocol by hand: frames, halves of frames, calls that the client does not have |
//! | `dying` | client processes that are killed at every step of the protocol |
//! | `deaths` | daemons that die under clients and under an engine |
//! | `churn` | clients that come, work and go, for as long as one likes |

pub mod blocks;

pub mod deaths;
pub mod dying;
pub mod figures;
pub mod in_process;
pub mod process;
pub mod raw;
