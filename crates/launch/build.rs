//! Builds the library that is injected into targets and the engine that targets run in, and makes their bytes available
//! to `src/cache.rs` and `src/memcheck/program.rs`.
//!
//! It is built by a second cargo with its own target directory: the outer cargo holds the lock of the usual
//! one. Always with the optimised `injected` profile (an unoptimised interposer is unusably slow, and a
//! target dies of an undefined `rust_eh_personality` without `panic = "abort"` and fat LTO), and for the
//! plain x86-64 baseline whatever flags this build has: the binary may be copied to an older machine.
//!
//! The engine is a static executable at a fixed address, out of the way of what it loads.
//!
//! `LEAKSCOPE_PRELOAD_SO=/path` and `LEAKSCOPE_MEMCHECK=/path` at build time embed these files instead.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

/// What the injected library is made of; a change in one of them builds it again.
const INJECTED_CRATES: [&str; 5] = ["preload", "rt", "ledger", "model", "reach"];

/// What the engine is made of besides.
const ENGINE_CRATES: [&str; 5] = ["memcheck", "guest", "translate", "syscalls", "shadow"];

/// Where the engine is linked to lie; `leakscope_translate::layout::ENGINE_BASE`.
const ENGINE_FLAGS: [&str; 5] = [
    "-Ctarget-cpu=x86-64",
    "-Ctarget-feature=+crt-static",
    "-Crelocation-model=static",
    "-Clink-arg=-no-pie",
    "-Clink-arg=-Wl,--image-base=0x30000000",
];

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo::rerun-if-env-changed=LEAKSCOPE_PRELOAD_SO");
    let built = match env::var_os("LEAKSCOPE_PRELOAD_SO") {
        Some(path) => PathBuf::from(path),
        None => build(&out, "leakscope-preload", &["-Ctarget-cpu=x86-64"], "injected", "libleakscope_preload.so"),
    };
    println!("cargo::rerun-if-changed={}", built.display());
    let bytes = fs::read(&built).unwrap_or_else(|error| panic!("cannot read {}: {error}", built.display()));
    let hash: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(out.join("preload.so"), bytes).expect("OUT_DIR is writable");
    println!("cargo::rustc-env=LEAKSCOPE_PRELOAD_SHA256={hash}");
    engine(&out);
}

/// The engine, on the architecture that it is for; elsewhere nothing.
fn engine(out: &Path) {
    println!("cargo::rerun-if-env-changed=LEAKSCOPE_MEMCHECK");
    let is_supported = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|architecture| architecture == "x86_64");
    let bytes = match env::var_os("LEAKSCOPE_MEMCHECK") {
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo::rerun-if-changed={}", path.display());
            fs::read(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
        }
        None if is_supported => {
            let path = build(out, "leakscope-memcheck", &ENGINE_FLAGS, "engine", "leakscope-memcheck");
            fs::read(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
        }
        None => Vec::new(),
    };
    fs::write(out.join("memcheck"), bytes).expect("OUT_DIR is writable");
}

/// Builds a crate with these flags and this profile, in a target directory of its name, and gives the path of the file
/// that it makes.
fn build(out: &Path, package: &str, flags: &[&str], profile: &str, file: &str) -> PathBuf {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let workspace = manifest.ancestors().nth(2).expect("this crate lies in <workspace>/crates/launch");
    for name in INJECTED_CRATES.iter().chain(&ENGINE_CRATES) {
        println!("cargo::rerun-if-changed={}", workspace.join("crates").join(name).display());
    }
    println!("cargo::rerun-if-changed={}", workspace.join("Cargo.toml").display());

    // Targets run with glibc, also when this build is for the musl target.
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    let triple = format!("{architecture}-unknown-linux-gnu");
    // OUT_DIR is <target>/[triple/]<profile>/build/<crate>/out. One directory for all profiles: the same library.
    let nested = out.ancestors().nth(4).expect("OUT_DIR is four levels deep").join(profile);
    let mut cargo = Command::new(env::var_os("CARGO").expect("cargo sets CARGO"));
    for (name, _) in env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        let kept = matches!(text, "CARGO_HOME" | "CARGO_NET_OFFLINE")
            || text.starts_with("CARGO_REGISTR")
            || text.starts_with("CARGO_HTTP")
            || text.starts_with("CARGO_SOURCE");
        let foreign = text.starts_with("CARGO")
            || text.starts_with("RUSTFLAGS")
            || text.starts_with("RUSTC")
            || matches!(
                text,
                "RUSTDOCFLAGS"
                    | "TARGET"
                    | "HOST"
                    | "PROFILE"
                    | "OUT_DIR"
                    | "OPT_LEVEL"
                    | "DEBUG"
                    | "NUM_JOBS"
                    | "MAKEFLAGS"
                    | "MFLAGS"
            );
        if foreign && !kept {
            cargo.env_remove(&name);
        }
    }
    let status = cargo
        .current_dir(workspace)
        .args(["build", "--quiet", "--package", package, "--profile", profile, "--target", &triple])
        .arg("--target-dir")
        .arg(&nested)
        // Also overrides flags from the user's cargo configuration.
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .env("CARGO_PROFILE_INJECTED_STRIP", "debuginfo")
        .env("CARGO_PROFILE_ENGINE_STRIP", "debuginfo")
        .status();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("building the injected code (cargo build -p {package}) failed: {status}"),
        Err(error) => panic!("cannot start cargo to build {package}: {error}"),
    }
    nested.join(triple).join(profile).join(file)
}
