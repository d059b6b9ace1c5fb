//! Gives the library the driver's soname: once it is loaded, `dlopen("libcuda.so")` in the same process finds it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
}
