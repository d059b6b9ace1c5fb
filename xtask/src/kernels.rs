//! `cargo xtask kernels`: makes what is checked in of the CUDA kernels (PTX, tables of resources and of traffic) anew. That they are
//! fresh are tests of `gpu-tier`, and these are run so that they write instead of comparing.

use crate::stage;

/// Writes the files. Errors: what the compilers say, or that they cannot be installed.
pub fn run() -> Result<(), String> {
    // PTX is embedded when the crate is compiled, so it is there before its counts are.
    for (target, test) in [("cuda_toolkit", "kernels_compile_everywhere"), ("cuda_counts", "kernels_do_what")] {
        let mut command = stage::cargo();
        command.args(["test", "-p", "gpu-tier", "--test", target, "--", test]).env("CUDA_LADDER_UPDATE", "1");
        stage::run(target, &mut command)?;
    }
    Ok(())
}
