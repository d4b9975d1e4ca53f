//! Names the library as programs that clang links ask for it. Those of gcc ask for `libasan.so.8`: a link of that name
//! is enough, as the loader looks for files.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libclang_rt.asan-x86_64.so");
    // A program may define malloc in front of ours: what we call ours stays ours.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-Bsymbolic-functions");
}
