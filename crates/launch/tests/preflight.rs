//! Programs that cannot be traced, each with its sentence.

use std::ffi::OsStr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use leakscope_launch::preflight::check;

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn executable(path: &Path, content: &[u8]) {
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn refusal(path: &Path) -> String {
    match check(path.as_os_str()) {
        Err(error) => error.to_string(),
        Ok(checked) => panic!("{checked:?}"),
    }
}

#[test]
fn sentences_by_table() {
    let directory = scratch();
    let at = |name: &str| directory.path().join(name);
    let compile = |compiler: &str, options: &[&str], name: &str| {
        std::fs::write(at("p.c"), "int main(void) { return 0; }\n").unwrap();
        let status = Command::new(compiler).args(options).arg(at("p.c")).arg("-o").arg(at(name)).status();
        assert!(status.unwrap_or_else(|error| panic!("{compiler}: {error}; apt-get install gcc musl-tools")).success());
    };
    compile("gcc", &["-static"], "static");
    compile("gcc", &["-static-pie"], "static-pie");
    compile("gcc", &["-shared", "-fPIC"], "library");
    compile("gcc", &["-Wl,--dynamic-linker=/nowhere/ld-linux.so"], "no-loader");
    compile("musl-gcc", &[], "musl");
    let whole = std::fs::read("/bin/true").unwrap();
    executable(&at("cut"), &whole[..100]);
    let mut arm = whole.clone();
    arm[18] = 183;
    executable(&at("arm"), &arm);
    let mut bits32 = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 3, 0];
    bits32.extend([1u32, 0x1000, 52, 0, 0].iter().flat_map(|word| word.to_le_bytes()));
    bits32.extend([52u16, 32, 1, 40, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    bits32.extend([1u32, 0, 0x1000, 0x1000, 84, 84, 5, 0x1000].iter().flat_map(|word| word.to_le_bytes()));
    executable(&at("bits32"), &bits32);
    std::fs::write(at("text"), "hello").unwrap();
    executable(&at("zip"), b"PK\x03\x04\0\0\0");
    executable(&at("script"), b"#!/nowhere/python\n");
    executable(&at("loop"), format!("#!{}\n", at("loop").display()).as_bytes());
    symlink("/nowhere", at("dangling")).unwrap();
    executable(&at("script-for-static"), format!("#!{}\n", at("static").display()).as_bytes());

    for (name, expected) in [
        ("nothing", "no such program"),
        ("dangling", "points nowhere"),
        ("", "it is a directory"),
        ("text", "it is not executable"),
        ("static", "statically linked"),
        ("static", "link it dynamically"),
        ("static-pie", "static-pie"),
        ("script-for-static", "statically linked"),
        ("library", "a shared library"),
        ("no-loader", "/nowhere/ld-linux.so does not exist"),
        ("musl", "musl"),
        ("cut", "damaged ELF file"),
        ("arm", "AArch64"),
        ("bits32", "32-bit"),
        ("zip", "neither an ELF program nor a script"),
        ("script", "/nowhere/python"),
        ("loop", "too often"),
    ] {
        let sentence = refusal(&at(name));
        assert!(sentence.contains(expected), "{name}: {sentence}");
        assert!(!sentence.contains('\n'), "{name}: {sentence}");
    }
    let sentence = check(OsStr::new("no-such-program-anywhere")).unwrap_err().to_string();
    assert!(sentence.contains("in PATH"), "{sentence}");
    assert!(check(OsStr::new("")).is_err());
}

#[test]
fn raised_privileges() {
    if !is_root() {
        // Only root can give a file to another user.
        return;
    }
    let directory = scratch();
    let path = directory.path().join("true");
    let with = |owner: u32, group: u32, mode: u32| {
        std::fs::copy("/bin/true", &path).unwrap();
        std::os::unix::fs::chown(&path, Some(owner), Some(group)).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    with(1234, 0, 0o4755);
    assert!(refusal(&path).contains("set-user-ID (to user 1234)"));
    with(0, 1234, 0o2755);
    assert!(refusal(&path).contains("set-group-ID (to group 1234)"));
    // These raise nothing: our own user, and mandatory locking.
    for (owner, group, mode) in [(0, 0, 0o6755), (0, 1234, 0o2745), (1234, 1234, 0o755)] {
        with(owner, group, mode);
        check(path.as_os_str()).unwrap();
    }
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|metadata| std::os::unix::fs::MetadataExt::uid(&metadata) == 0)
}

#[test]
fn programs_that_are_fine() {
    let directory = scratch();
    let script = directory.path().join("script");
    executable(&script, b"#!/bin/sh -e\ntrue\n");
    assert_eq!(check(script.as_os_str()).unwrap().image, Path::new("/bin/sh"));
    let text = directory.path().join("text");
    executable(&text, b"true\n");
    assert_eq!(check(text.as_os_str()).unwrap().image, Path::new("/bin/sh"));
    let nested = directory.path().join("nested");
    executable(&nested, format!("#!{}\n", script.display()).as_bytes());
    assert_eq!(check(nested.as_os_str()).unwrap().image, Path::new("/bin/sh"));
    let by_name = check(OsStr::new("true")).unwrap();
    assert!(by_name.program.is_absolute() && by_name.program.ends_with("true"));
    check(OsStr::new("/lib64/ld-linux-x86-64.so.2")).unwrap();
}

/// A loader of our own folder with a C library beside it that is older than what the injected library needs.
#[test]
fn an_older_c_library_is_refused() {
    let directory = scratch();
    let at = |name: &str| directory.path().join(name);
    let gcc = |arguments: &[&str]| {
        let status = Command::new("gcc").current_dir(directory.path()).args(arguments).status();
        assert!(status.unwrap_or_else(|error| panic!("gcc: {error}; apt-get install gcc")).success());
    };
    std::fs::copy(std::fs::canonicalize("/lib64/ld-linux-x86-64.so.2").unwrap(), at("ld-linux-x86-64.so.2")).unwrap();
    std::fs::write(at("p.c"), "int main(void) { return 0; }\n").unwrap();
    std::fs::write(at("libc.c"), "void a(void) {}\nvoid b(void) {}\nvoid c(void) {}\n").unwrap();
    let library = |newest: &str, out: &str| {
        let old = "GLIBC_2.2.5 { a; };\nGLIBC_2.3.2 {} GLIBC_2.2.5;\nGLIBC_2.10 {} GLIBC_2.3.2;\n";
        std::fs::write(at("map"), format!("{old}GLIBC_2.14 {{ b; }} GLIBC_2.10;\n{newest} {{ c; }} GLIBC_2.14;\n"))
            .unwrap();
        gcc(&[
            "-shared",
            "-fPIC",
            "-nostdlib",
            "-Wl,--version-script=map",
            "-Wl,-soname,libc.so.6",
            "libc.c",
            "-o",
            out,
        ]);
    };
    let loader = format!("-Wl,--dynamic-linker={}", at("ld-linux-x86-64.so.2").display());
    gcc(&["p.c", &loader, "-o", "beside"]);
    // Nothing beside the loader: not known, so not refused.
    check(at("beside").as_os_str()).unwrap();
    library("GLIBC_2.31", "libc.so.6");
    let sentence = refusal(&at("beside"));
    for part in [at("libc.so.6").to_str().unwrap(), "is glibc 2.31", "needs glibc 2.34 or later", "; build leakscope"] {
        assert!(sentence.contains(part), "{part}: {sentence}");
    }
    assert!(!sentence.contains('\n'), "{sentence}");
    assert!(refusal(&at("ld-linux-x86-64.so.2")).contains("glibc 2.31"), "the loader itself as the program");
    library("GLIBC_2.34", "libc.so.6");
    check(at("beside").as_os_str()).unwrap();
    // A run path comes before the loader's folder.
    std::fs::create_dir(at("old")).unwrap();
    library("GLIBC_2.17", "old/libc.so.6");
    gcc(&["p.c", &loader, "-Wl,--enable-new-dtags,-rpath,$ORIGIN/old", "-o", "runpath"]);
    gcc(&["p.c", &loader, "-Wl,--disable-new-dtags,-rpath,${ORIGIN}/old", "-o", "rpath"]);
    assert!(refusal(&at("runpath")).contains("is glibc 2.17"));
    assert!(refusal(&at("rpath")).contains("old/libc.so.6 is glibc 2.17"));
    // What is no library for this machine is passed over, as the loader does.
    std::fs::write(at("old/libc.so.6"), "GROUP ( libc.so.6 )").unwrap();
    check(at("runpath").as_os_str()).unwrap();
}
