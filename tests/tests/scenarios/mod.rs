//! What an engine must do over any cache. The test program that takes them in says what `crate::open` opens.

mod numerics;
mod sharing;
