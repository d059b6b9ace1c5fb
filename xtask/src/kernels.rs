//! `cargo xtask kernels`: makes what is checked in of the CUDA kernels (PTX, table of resources) anew. That it is fresh is a test of `gpu-tier`, and
//! this is that test, which writes instead of comparing.

use crate::stage;

/// Writes the files. Errors: what the compilers say, or that they cannot be installed.
pub fn run() -> Result<(), String> {
    let mut command = stage::cargo();
    command.args(["test", "-p", "gpu-tier", "--test", "cuda_toolkit"]).env("CUDA_LADDER_UPDATE", "1");
    stage::run("kernels", &mut command)
}
