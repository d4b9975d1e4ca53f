//! Programs with an allocator in themselves, and programs that only look so.

use std::path::Path;
use std::process::Command;

use leakscope_process::allocator::{OwnAllocator, read_own_allocator};

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn compile(directory: &Path, text: &str, options: &[&str]) -> std::path::PathBuf {
    let (source, out) = (directory.join("p.c"), directory.join("p"));
    std::fs::write(&source, text).unwrap();
    let status = Command::new("gcc").arg(&source).args(options).arg("-o").arg(&out).status();
    assert!(status.unwrap_or_else(|error| panic!("gcc: {error}; apt-get install gcc")).success());
    out
}

const BUMP: &str = "\
    #include <stddef.h>\n\
    static char room[1 << 16];\n\
    static size_t used;\n\
    void *malloc(size_t bytes) { void *block = room + used; used += (bytes + 15) & ~15ul; return block; }\n\
    void free(void *block) { (void)block; }\n\
    int main(void) { free(malloc(1)); return 0; }\n";

#[test]
fn programs_by_table() {
    let directory = scratch();
    let plain = OwnAllocator { name: None, allocates: "malloc", releases: "free" };
    let known = |name, allocates, releases| OwnAllocator { name: Some(name), allocates, releases };
    let prefixed = |allocates: &str, releases: &str| {
        format!(
            "static char room[99];\n\
             __attribute__((used)) static void *{allocates}(unsigned long n) {{ return room + n; }}\n\
             __attribute__((used)) static void {releases}(void *p) {{ (void)p; }}\n\
             int main(void) {{ return 0; }}\n"
        )
    };
    let wrapper = BUMP.replace("return block; }", "(void)block; return dlsym((void *)-1, \"malloc\"); }");
    let wrapper = format!("void *dlsym(void *, const char *);\n{wrapper}");
    let inner = BUMP.replace("return block; }", "(void)block; return __libc_malloc(bytes); }");
    let inner = format!("void *__libc_malloc(unsigned long);\n{inner}");
    let uses = "#include <stdlib.h>\nint main(void) { free(malloc(1)); return 0; }\n".to_owned();
    let half = uses.clone() + "void *mi_malloc(unsigned long n) { return malloc(n); }\n";
    for (text, options, expected) in [
        (BUMP.to_owned(), &["-fno-builtin"][..], Some(plain)),
        // Without a symbol table nobody knows.
        (BUMP.to_owned(), &["-fno-builtin", "-s"], None),
        (prefixed("je_malloc", "je_free"), &[], Some(known("jemalloc", "je_malloc", "je_free"))),
        (prefixed("tc_malloc", "tc_free"), &[], Some(known("tcmalloc", "tc_malloc", "tc_free"))),
        (prefixed("mi_malloc", "mi_free"), &[], Some(known("mimalloc", "mi_malloc", "mi_free"))),
        // What may pass calls on to the C library.
        (wrapper, &["-fno-builtin"], None),
        (inner, &["-fno-builtin"], None),
        // Users of malloc, and half an allocator.
        (uses, &[], None),
        (half, &[], None),
    ] {
        let program = compile(directory.path(), &text, options);
        assert_eq!(read_own_allocator(&program).unwrap(), expected, "{options:?}\n{text}");
    }
    for program in ["/bin/true", "/bin/bash", "/usr/bin/gcc"] {
        assert_eq!(read_own_allocator(Path::new(program)).unwrap(), None, "{program}");
    }
}

#[test]
fn damaged_tables_are_errors_and_never_panics() {
    let directory = scratch();
    let program = compile(directory.path(), BUMP, &["-fno-builtin"]);
    let bytes = std::fs::read(&program).unwrap();
    let bad = directory.path().join("bad");
    let mut other = 0;
    let table = bytes.len() - 64 * 40;
    for at in (0..64).chain((table..bytes.len()).step_by(5)) {
        for value in [0, 1, 0x7f, 0xff] {
            let mut changed = bytes.clone();
            changed[at] = value;
            std::fs::write(&bad, &changed).unwrap();
            other += usize::from(!matches!(read_own_allocator(&bad), Ok(Some(_))));
        }
    }
    assert!(other > 20, "{other}");
}
