//! Builds the libraries that are injected into targets and the engine that targets run in, and makes their bytes available
//! to `src/cache.rs`, `src/asan.rs` and `src/memcheck/program.rs`.
//!
//! Each is built by a second cargo with its own target directory: the outer cargo holds the lock of the usual
//! one. Always with the optimised `injected` profile (an unoptimised interposer is unusably slow, and a
//! target dies of an undefined `rust_eh_personality` without `panic = "abort"` and fat LTO), and for the
//! plain x86-64 baseline whatever flags this build has: the binary may be copied to an older machine.
//!
//! The engine is a static executable at a fixed address, out of the way of what it loads.
//!
//! `LEAKSCOPE_PRELOAD_SO=/path`, `LEAKSCOPE_ASAN_SO=/path` and `LEAKSCOPE_MEMCHECK=/path` at build time embed these files
//! instead.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

/// What the preloaded library is made of; a change in one of them builds it again.
const INJECTED_CRATES: [&str; 5] = ["preload", "rt", "ledger", "model", "reach"];

/// What the address sanitizer's library is made of besides.
const ASAN_CRATES: [&str; 2] = ["asan", "asan_rt"];

/// Flags of both libraries.
const LIBRARY_FLAGS: [&str; 1] = ["-Ctarget-cpu=x86-64"];

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
    let preload = embed(&out, &PRELOAD, true);
    fs::write(out.join("preload.so"), &preload).expect("OUT_DIR is writable");
    println!("cargo::rustc-env=LEAKSCOPE_PRELOAD_SHA256={}", hex(&preload));
    // Elsewhere nothing: its shadow lies where x86-64 has room for it.
    let is_x86 = env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|architecture| architecture == "x86_64");
    let asan = embed(&out, &ASAN, is_x86);
    fs::write(out.join("asan.so"), &asan).expect("OUT_DIR is writable");
    println!("cargo::rustc-env=LEAKSCOPE_ASAN_SHA256={}", hex(&asan));
    fs::write(out.join("memcheck"), embed(&out, &ENGINE, is_x86)).expect("OUT_DIR is writable");
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file that this crate carries.
struct Part {
    /// Names another file to embed in its place.
    variable: &'static str,
    package: &'static str,
    flags: &'static [&'static str],
    profile: &'static str,
    file: &'static str,
}

const PRELOAD: Part = Part {
    variable: "LEAKSCOPE_PRELOAD_SO",
    package: "leakscope-preload",
    flags: &LIBRARY_FLAGS,
    profile: "injected",
    file: "libleakscope_preload.so",
};

const ASAN: Part = Part {
    variable: "LEAKSCOPE_ASAN_SO",
    package: "leakscope-asan",
    flags: &LIBRARY_FLAGS,
    profile: "injected",
    file: "libleakscope_asan.so",
};

const ENGINE: Part = Part {
    variable: "LEAKSCOPE_MEMCHECK",
    package: "leakscope-memcheck",
    flags: &ENGINE_FLAGS,
    profile: "engine",
    file: "leakscope-memcheck",
};

/// The bytes of a part: those of the file that its variable names, or as it is built; nothing where it is not supported.
fn embed(out: &Path, part: &Part, is_supported: bool) -> Vec<u8> {
    println!("cargo::rerun-if-env-changed={}", part.variable);
    let path = match env::var_os(part.variable) {
        Some(path) => PathBuf::from(path),
        None if is_supported => build(out, part),
        None => return Vec::new(),
    };
    println!("cargo::rerun-if-changed={}", path.display());
    fs::read(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// Builds a part, in a target directory of its profile's name, and gives the path of the file.
fn build(out: &Path, part: &Part) -> PathBuf {
    let Part { package, flags, profile, file, .. } = *part;
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let workspace = manifest.ancestors().nth(2).expect("this crate lies in <workspace>/crates/launch");
    for name in INJECTED_CRATES.iter().chain(&ASAN_CRATES).chain(&ENGINE_CRATES) {
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
