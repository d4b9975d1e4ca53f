//! Compiles the BPF programs with clang and makes their bytes available to `src/object.rs`.
//!
//! Without a clang that has the BPF target the objects are empty: everything else is built, cargo prints why, and the
//! tracers say at run time that this build has none. `CLANG` names another compiler.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// The objects, and the headers that each of them includes.
const OBJECTS: [&str; 2] = ["kmem", "umem"];
const HEADERS: [&str; 4] = ["bpf/calls.h", "bpf/blocks.h", "bpf/stacks.h", "bpf/table.h"];

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo::rerun-if-env-changed=CLANG");
    for header in HEADERS {
        println!("cargo::rerun-if-changed={header}");
    }
    let compiler = find_clang();
    let mut absent = String::new();
    for name in OBJECTS {
        let source = format!("bpf/{name}.bpf.c");
        println!("cargo::rerun-if-changed={source}");
        let object = out.join(format!("{name}.bpf.o"));
        match &compiler {
            Ok(clang) => compile(clang, &source, &object),
            Err(why) => {
                absent.clone_from(why);
                fs::write(&object, []).expect("OUT_DIR is writable");
            }
        }
    }
    if !absent.is_empty() {
        println!("cargo::warning=`kernel trace` and `trace` are left out: {absent}");
    }
    println!("cargo::rustc-env=LEAKSCOPE_EBPF_ABSENT={absent}");
}

/// The first clang that compiles for BPF.
fn find_clang() -> Result<String, String> {
    let mut names: Vec<String> = env::var("CLANG").into_iter().collect();
    names.push("clang".to_owned());
    names.extend((11..=24).rev().map(|version| format!("clang-{version}")));
    let works = |name: &String| {
        let output = Command::new(name).arg("--print-targets").output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("bpf"))
    };
    let found = names.into_iter().find(works);
    found.ok_or_else(|| {
        "no clang with the BPF target was found; install clang (11 or later, Debian: `apt-get install clang`), or set CLANG"
            .to_owned()
    })
}

fn compile(clang: &str, source: &str, object: &Path) {
    let output = Command::new(clang)
        // Version 2 of the instruction set is what kernels of 5.8 take.
        .args(["-target", "bpf", "-mcpu=v2", "-O2", "-g", "-Wall", "-Werror", "-fno-ident"])
        // The verifier of 6.1 refuses a loop whose end stands before its beginning and falls into it.
        .args(["-mllvm", "-disable-block-placement", "-c", source, "-o"])
        .arg(object)
        .output()
        .unwrap_or_else(|error| panic!("cannot start {clang}: {error}"));
    assert!(
        output.status.success(),
        "{clang} cannot compile crates/ebpf/{source}; set CLANG to another version:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
