//! Kinds of programs, on real files of the compilers and on headers made by hand.

use std::path::{Path, PathBuf};
use std::process::Command;

use leakscope_process::elf::{CLibrary, Class, ElfError, Linkage, ProgramKind, read_program_kind};

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn compile(compiler: &str, options: &[&str], out: &Path) {
    let source = out.with_extension("c");
    std::fs::write(&source, "int main(void) { return 0; }\n").unwrap();
    let status =
        Command::new(compiler).args(options).arg(&source).arg("-o").arg(out).status().unwrap_or_else(|error| {
            panic!("{compiler}: {error}; apt-get install gcc musl-tools");
        });
    assert!(status.success());
}

fn linkage(path: &Path) -> Linkage {
    match read_program_kind(path).unwrap() {
        ProgramKind::Elf(facts) => {
            assert_eq!((facts.class, facts.little_endian), (Class::Bits64, true));
            facts.linkage
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn programs_by_linkage() {
    let directory = scratch();
    let path = |name: &str| directory.path().join(name);
    compile("gcc", &["-static"], &path("static"));
    compile("gcc", &["-static-pie"], &path("static-pie"));
    compile("gcc", &["-no-pie"], &path("fixed"));
    compile("gcc", &["-pie"], &path("pie"));
    compile("gcc", &["-shared", "-fPIC"], &path("library.so"));
    compile("gcc", &["-c"], &path("object.o"));
    compile("musl-gcc", &[], &path("musl"));
    assert_eq!(linkage(&path("static")), Linkage::Static);
    assert_eq!(linkage(&path("static-pie")), Linkage::StaticPie);
    assert_eq!(linkage(&path("library.so")), Linkage::SharedLibrary);
    assert_eq!(linkage(&path("object.o")), Linkage::NotAProgram);
    let loader = PathBuf::from("/lib64/ld-linux-x86-64.so.2");
    assert_eq!(linkage(&loader), Linkage::Loader);
    for name in ["fixed", "pie"] {
        assert_eq!(linkage(&path(name)), Linkage::Dynamic { interpreter: loader.clone() }, "{name}");
    }
    for (name, library) in [("pie", CLibrary::Glibc), ("musl", CLibrary::Musl)] {
        let ProgramKind::Elf(facts) = read_program_kind(&path(name)).unwrap() else { panic!() };
        assert_eq!(facts.c_library(), Some(library), "{name}");
    }
}

/// The 52 bytes of a 32-bit header, and one PT_LOAD.
fn header32(machine: u16) -> Vec<u8> {
    let mut bytes = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for half in [2u16, machine] {
        bytes.extend(half.to_le_bytes());
    }
    for word in [1u32, 0x1000, 52, 0, 0] {
        bytes.extend(word.to_le_bytes());
    }
    for half in [52u16, 32, 1, 40, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    bytes.extend([1u32, 0, 0x1000, 0x1000, 84, 84, 5, 0x1000].iter().flat_map(|word| word.to_le_bytes()));
    bytes
}

#[test]
fn other_machines_by_their_header() {
    let directory = scratch();
    let path = directory.path().join("program");
    for (machine, name) in [(3, "x86 (32-bit)"), (40, "ARM (32-bit)"), (62, "x86-64 x32"), (999, "machine number 999")]
    {
        std::fs::write(&path, header32(machine)).unwrap();
        let ProgramKind::Elf(facts) = read_program_kind(&path).unwrap() else { panic!() };
        assert_eq!((facts.class, facts.linkage.clone()), (Class::Bits32, Linkage::Static));
        assert_eq!(facts.machine_name(), name);
    }
}

#[test]
fn scripts_and_texts() {
    let directory = scratch();
    let path = directory.path().join("program");
    let script = |interpreter: &str, argument: Option<&str>| ProgramKind::Script {
        interpreter: interpreter.into(),
        argument: argument.map(Into::into),
    };
    for (text, expected) in [
        ("#!/bin/sh\necho", script("/bin/sh", None)),
        ("#! /usr/bin/env  python3 -u \n", script("/usr/bin/env", Some("python3 -u"))),
        ("#!/bin/sh", script("/bin/sh", None)),
        ("#!\n", ProgramKind::ShellText),
        ("", ProgramKind::ShellText),
        ("echo hello\n\0\0", ProgramKind::ShellText),
        ("PK\x03\x04\0\0", ProgramKind::Unknown),
    ] {
        std::fs::write(&path, text).unwrap();
        assert_eq!(read_program_kind(&path).unwrap(), expected, "{text:?}");
    }
}

#[test]
fn damaged_files_are_errors_and_never_panics() {
    let directory = scratch();
    let good = directory.path().join("good");
    let bad = directory.path().join("bad");
    compile("gcc", &["-pie", "-s"], &good);
    let bytes = std::fs::read(&good).unwrap();
    // The program headers end well below 2000.
    let mut corrupt = 0;
    for cut in (4..2000.min(bytes.len())).step_by(7) {
        std::fs::write(&bad, &bytes[..cut]).unwrap();
        match read_program_kind(&bad) {
            Err(ElfError::Corrupt(_)) => corrupt += 1,
            Err(ElfError::Io(error)) => panic!("{error}"),
            Ok(_) => {}
        }
    }
    assert!(corrupt > 50, "{corrupt}");
    for at in 4..600 {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut changed = bytes[..2000].to_vec();
            changed[at] = value;
            std::fs::write(&bad, &changed).unwrap();
            let _ = read_program_kind(&bad);
        }
    }
}
