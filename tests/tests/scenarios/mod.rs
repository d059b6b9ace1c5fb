//! What an engine must do over any cache. The test program that takes them in says what `crate::open` opens and `crate::close` ends: with a disk in the
//! options, one that outlives them.

mod closing;
mod loading;
mod numerics;
mod sharing;
