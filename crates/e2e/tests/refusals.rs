//! Bad input: each gives one clear sentence on standard error and exit code 2, and never a panic.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use leakscope_e2e::{Ending, Fixture, Run, Tool, compile, fixtures_dir, leakscope_bin};

/// Runs leakscope with these words and holds the refusal: exit 2, at most one message, all words of `expected` in it.
fn refused(words: &[&str], expected: &[&str]) {
    if Tool::from_env().unwrap() != Tool::Leakscope {
        return;
    }
    let finished = Run::new(leakscope_bin()).args(words).finish().unwrap();
    let said = &finished.stderr;
    assert_eq!(finished.ending, Ending::Exit(2), "{words:?} said: {said}");
    assert!(!said.contains("panicked"), "{words:?} panicked: {said}");
    let lower = said.to_lowercase();
    for word in expected {
        assert!(lower.contains(&word.to_lowercase()), "{words:?}: expected `{word}` in: {said}");
    }
    let lines = said.lines().filter(|line| !line.trim().is_empty()).count();
    assert!(lines <= 4, "{words:?}: expected one sentence and its help: {said}");
    assert!(finished.stdout.is_empty(), "{words:?} printed to standard output");
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn write(dir: &Path, name: &str, content: &[u8], mode: u32) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path
}

/// A small dynamic program that is certainly there.
fn some_program() -> PathBuf {
    let fixture = Fixture::read(&fixtures_dir().join("c/registers.c")).unwrap();
    compile(&fixture).unwrap().remove(0).path
}

/// The start of a copy of a real program, with some bytes of the ELF header changed.
fn changed_program(dir: &Path, changes: &[(usize, u8)]) -> PathBuf {
    let mut bytes = std::fs::read("/bin/true").unwrap();
    for (offset, value) in changes {
        bytes[*offset] = *value;
    }
    write(dir, "changed", &bytes, 0o755)
}

#[test]
fn no_such_program() {
    for command in ["run", "memcheck"] {
        refused(&[command, "--", "/nonexistent/program"], &["/nonexistent/program", "no such"]);
        let name = "certainly-not-a-program-of-this-system";
        refused(&[command, "--", name], &[name]);
    }
}

#[test]
fn no_program_at_all() {
    refused(&["run"], &["program"]);
    refused(&["memcheck"], &["program"]);
}

#[test]
fn not_executable() {
    let dir = scratch();
    let path = write(dir.path(), "data", b"text\n", 0o644);
    refused(&["run", "--", text(&path)], &[text(&path), "execut"]);
    refused(&["memcheck", "--", text(&path)], &[text(&path), "execut"]);
}

#[test]
fn a_directory() {
    refused(&["run", "--", "/tmp"], &["/tmp", "directory"]);
    refused(&["memcheck", "--", "/tmp"], &["/tmp", "directory"]);
}

#[test]
fn a_static_program() {
    let dir = scratch();
    let source = write(dir.path(), "s.c", b"int main(void) { return 0; }\n", 0o644);
    let program = dir.path().join("static");
    let build = Run::new("gcc").args(["-static", "-o"]).arg(&program).arg(&source).finish().unwrap();
    assert_eq!(build.ending, Ending::Exit(0), "{}", build.stderr);
    refused(&["run", "--", text(&program)], &[text(&program), "static"]);
}

#[test]
fn a_set_user_id_program() {
    let dir = scratch();
    let path = write(dir.path(), "raised", &std::fs::read("/bin/true").unwrap(), 0o4755);
    if rustix::process::geteuid().is_root() {
        // For root a program of root raises nothing; another owner makes it so.
        std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o4755)).unwrap();
    }
    refused(&["run", "--", text(&path)], &[text(&path), "set-user-id"]);
    refused(&["memcheck", "--", text(&path)], &[text(&path), "set-user-id", "copy"]);
}

#[test]
fn another_architecture() {
    let dir = scratch();
    // e_machine: 183 is AArch64.
    let changed = changed_program(dir.path(), &[(18, 183), (19, 0)]);
    for command in ["run", "memcheck"] {
        refused(&[command, "--", text(&changed)], &["changed", "aarch64"]);
    }
}

#[test]
fn a_32_bit_program() {
    let dir = scratch();
    let source = write(dir.path(), "small.s", b".globl _start\n_start: movl $1, %eax\n int $0x80\n", 0o644);
    let (object, program) = (dir.path().join("small.o"), dir.path().join("small"));
    for (tool, mode, input, output) in [("as", "--32", &source, &object), ("ld", "-melf_i386", &object, &program)] {
        let build = Run::new(tool).arg(mode).arg("-o").arg(output).arg(input).finish().unwrap();
        assert_eq!(build.ending, Ending::Exit(0), "{}", build.stderr);
    }
    refused(&["run", "--", text(&program)], &["small", "32-bit"]);
    refused(&["memcheck", "--", text(&program)], &["small", "32-bit"]);
}

#[test]
fn a_missing_dynamic_loader() {
    let dir = scratch();
    let mut bytes = std::fs::read("/bin/true").unwrap();
    let name = b"/lib64/ld-linux-x86-64.so.2";
    let at = bytes.windows(name.len()).position(|part| part == name).unwrap();
    bytes[at + name.len() - 1] = b'9';
    let program = write(dir.path(), "lonely", &bytes, 0o755);
    refused(&["memcheck", "--", text(&program)], &["lonely", "ld-linux-x86-64.so.9", "install"]);
}

#[test]
fn no_program_but_bytes() {
    let dir = scratch();
    let program = write(dir.path(), "archive", b"PK\x03\x04\0\0\0\0", 0o755);
    refused(&["memcheck", "--", text(&program)], &["archive", "neither an elf program nor a script"]);
    let cut = write(dir.path(), "cut", &std::fs::read("/bin/true").unwrap()[..100], 0o755);
    refused(&["memcheck", "--", text(&cut)], &["cut", "damaged elf file"]);
    let script = write(dir.path(), "script", b"#!/nowhere/interpreter\n", 0o755);
    refused(&["memcheck", "--", text(&script)], &["/nowhere/interpreter", "does not exist"]);
}

#[test]
fn too_little_address_space() {
    let limited = |limit: &str, leakscope: &str| {
        let command = format!("{limit}; exec {leakscope} /bin/echo lives");
        Run::new("bash").args(["-c", &command]).finish().unwrap()
    };
    let memcheck = format!("{} memcheck -q --leak-check=no --", leakscope_bin().display());
    for (limit, name) in [("ulimit -v 4000000", "ulimit -v"), ("ulimit -d 400000", "ulimit -d")] {
        let finished = limited(limit, &memcheck);
        assert_ne!(finished.ending, Ending::Exit(0), "{}", finished.stderr);
        let said = &finished.stderr;
        assert!(
            said.contains("48 TB") && said.contains("address space") && said.contains(&format!("{name} unlimited")),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    // A soft limit is the program's own: the engine takes none of it.
    let finished = limited("ulimit -S -v 4000000; ulimit -S -d 400000", &memcheck);
    assert_eq!((finished.ending, &finished.stdout[..]), (Ending::Exit(0), &b"lives\n"[..]), "{}", finished.stderr);
    let reading = format!(
        "{} memcheck -q --leak-check=no -- /bin/bash -c 'ulimit -v; ulimit -d; bash -c \"ulimit -v\"'; :",
        leakscope_bin().display()
    );
    let finished = Run::new("bash")
        .args(["-c", &format!("ulimit -S -v 4000000; ulimit -S -d 400000; {reading}")])
        .finish()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&finished.stdout), "4000000\n400000\n4000000\n", "{}", finished.stderr);
}

/// Text without a `#!` line is the shell's, as a shell and Valgrind have it.
#[test]
fn text_is_run_by_the_shell() {
    let dir = scratch();
    let program = write(dir.path(), "text", b"echo \"$# $1\"\nexit 4\n", 0o755);
    let run = Run::new(leakscope_bin()).args(["memcheck", "-q", "--leak-check=no", "--", text(&program), "a b", "c"]);
    let finished = run.finish().unwrap();
    assert_eq!((finished.ending, &finished.stdout[..]), (Ending::Exit(4), &b"2 a b\n"[..]), "{}", finished.stderr);
}

#[test]
fn a_musl_program() {
    let dir = scratch();
    let source = write(dir.path(), "m.c", b"int main(void) { return 0; }\n", 0o644);
    let program = dir.path().join("with-musl");
    let build = Run::new("musl-gcc").arg("-o").arg(&program).arg(&source).finish();
    let build = build.expect("musl-gcc is not installed; next: cargo xtask setup");
    assert_eq!(build.ending, Ending::Exit(0), "{}", build.stderr);
    refused(&["run", "--", text(&program)], &["with-musl", "musl"]);
}

#[test]
fn a_foreign_recording() {
    let dir = scratch();
    let path = write(dir.path(), "foreign.leak", b"this is no recording\n", 0o644);
    refused(&["report", text(&path)], &["foreign.leak"]);
    let empty = write(dir.path(), "empty.leak", b"", 0o644);
    refused(&["report", text(&empty)], &["empty.leak"]);
    refused(&["report", "/nonexistent.leak"], &["/nonexistent.leak"]);
}

#[test]
fn a_full_disk() {
    let program = some_program();
    let program = text(&program);
    refused(&["run", "-q", "-o", "/dev/full", "--", program], &["/dev/full", "no space"]);
}

#[test]
fn a_folder_that_does_not_exist() {
    let program = some_program();
    refused(&["run", "-o", "/nonexistent/report.txt", "--", text(&program)], &["/nonexistent/report.txt"]);
}

#[test]
fn a_mistake_in_a_suppression_file() {
    let dir = scratch();
    let rules = b"{\n   my-rule\n   Memcheck:Leak\n   fun:malloc\n   nonsense:here\n}\n";
    let path = write(dir.path(), "rules.supp", rules, 0o644);
    let option = format!("--suppressions={}", path.display());
    refused(&["run", &option, "--", "/bin/true"], &["rules.supp:5", "expected"]);
    refused(&["run", "--suppressions=/nonexistent.supp", "--", "/bin/true"], &["/nonexistent.supp"]);
}

#[test]
fn wrong_options() {
    refused(&["run", "--no-such-option", "--", "/bin/true"], &["--no-such-option"]);
    refused(&["run", "--show-leak-kinds=some", "--", "/bin/true"], &["--show-leak-kinds", "some"]);
    refused(&["run", "--num-callers=many", "--", "/bin/true"], &["--num-callers", "many"]);
    refused(&["snapshot", "1"], &["1"]);
}
