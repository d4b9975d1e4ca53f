//! What few programs need: a heap that sleeps until an instrumented library comes, memory that is written and executed, a
//! definition whose place another took, comparisons that a fuzzer hears of.

use std::path::Path;

use crate::library::Library;
use leakscope_e2e::{Ending, Finished, Run, fixtures_dir};

fn build(words: &[&str], source: &Path, out: &Path) {
    let run = Run::new(words[0]).args(&words[1..]).arg(source).arg("-o").arg(out).args(["-ldl"]);
    let built = run.finish().unwrap();
    assert_eq!(built.ending, Ending::Exit(0), "{}\n{}", run.shown(), built.stderr);
}

fn run(program: &Path, words: &[&str], options: &str, more: &str) -> Finished {
    let run = Run::new(program).args(words).env("LD_LIBRARY_PATH", Library::ours().folder());
    run.env("ASAN_OPTIONS", options).env("ASAN_ACTIVATION_OPTIONS", more).finish().unwrap()
}

#[test]
fn a_heap_that_starts_deactivated_wakes_with_the_first_instrumented_library() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let source = fixtures_dir().join("asan/late.c");
    build(&["gcc", "-g", "-c", "-fPIE"], &source, &at("late.o"));
    build(&["gcc", "-fsanitize=address", "-pthread"], &at("late.o"), &at("late"));
    build(&["gcc", "-g", "-fsanitize=address", "-DPLUGIN", "-shared", "-fPIC"], &source, &at("plugin.so"));
    let plugin = at("plugin.so");
    let plugin = plugin.to_str().unwrap();
    for (options, threads, said) in [
        ("detect_leaks=0", "0", "before 101\nafter 101\nfresh 101\n0 wrong, 0 bare\n"),
        ("detect_leaks=0:start_deactivated=1", "0", "before 000\nafter 101\nfresh 101\n0 wrong, 0 bare\n"),
        ("detect_leaks=0:start_deactivated=1", "4", "before 000\nafter 101\nfresh 101\n0 wrong, 0 bare\n"),
    ] {
        let found = run(&at("late"), &[plugin, threads], options, "");
        assert_eq!(String::from_utf8_lossy(&found.stdout), said, "{options}: {}", found.stderr);
        assert_eq!(found.ending, Ending::Exit(1), "{options}: {}", found.stderr);
        for words in ["heap-buffer-overflow", "0 bytes after 100-byte region", "in late ", "in main "] {
            assert!(found.stderr.contains(words), "{options}, {words}: {}", found.stderr);
        }
    }
    let asleep =
        run(&at("late"), &[plugin], "detect_leaks=0:start_deactivated=1", "poison_heap=0:handle_segv=0:verbosity=1");
    assert_eq!(String::from_utf8_lossy(&asleep.stdout), "before 000\nafter 000\nfresh 000\n0 wrong, 0 bare\n");
    for words in ["found 1 unrecognized flag(s)", "handle_segv", "activated"] {
        assert!(asleep.stderr.contains(words), "{words}: {}", asleep.stderr);
    }
}

#[test]
fn memory_that_can_be_written_and_executed_is_told_when_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("both.c"), folder.path().join("both"));
    let text = "#include <sys/mman.h>\n\
                int main() {\n\
                    int how = MAP_PRIVATE | MAP_ANONYMOUS;\n\
                    mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, how, -1, 0);\n\
                    char *page = mmap(0, 4096, PROT_READ | PROT_WRITE, how, -1, 0);\n\
                    mprotect(page, 4096, PROT_WRITE | PROT_EXEC);\n\
                    return mprotect(page, 4096, PROT_READ | PROT_EXEC);\n\
                }\n";
    std::fs::write(&source, text).unwrap();
    build(&["gcc", "-g", "-fsanitize=address"], &source, &program);
    assert_eq!(run(&program, &[], "", "").stderr, "");
    let told = run(&program, &[], "detect_write_exec=1", "");
    assert_eq!(told.ending, Ending::Exit(0));
    assert_eq!(told.stderr.matches("WARNING: AddressSanitizer: writable-executable page usage").count(), 2);
    let lines: Vec<&str> = told.stderr.lines().filter(|line| line.starts_with("SUMMARY")).collect();
    assert!(lines[0].contains("w-and-x-usage") && lines[0].contains("both.c:4"), "{}", told.stderr);
    assert!(lines[1].contains("both.c:6") && lines.len() == 2, "{}", told.stderr);
}

#[test]
fn a_definition_whose_place_another_took_is_told_with_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    // At an odd address no compiler would put an int: the definition is not instrumented.
    let first = ".data\n.balign 8\n.byte 0\n.globl shared\n.type shared,@object\n.size shared,100\nshared: .zero 100\n";
    std::fs::write(at("first.s"), first).unwrap();
    std::fs::write(at("second.c"), "int shared = 1;\n").unwrap();
    std::fs::write(at("main.c"), "extern int shared;\nint *where = &shared;\nint main() { return 0; }\n").unwrap();
    build(&["gcc", "-shared"], &at("first.s"), &at("libfirst.so"));
    let clang = ["clang-19", "-g", "-fsanitize=address", "-shared-libasan"];
    let alias = ["-shared", "-fPIC", "-mllvm", "-asan-use-private-alias=0"];
    build(&[&clang[..], &alias].concat(), &at("second.c"), &at("libsecond.so"));
    let (one, two) = (at("libfirst.so"), at("libsecond.so"));
    let libraries = ["-fPIE", "-Wl,--no-as-needed", one.to_str().unwrap(), two.to_str().unwrap()];
    build(&[&clang[..], &libraries].concat(), &at("main.c"), &at("main"));
    let told = run(&at("main"), &[], "", "");
    assert_eq!(told.ending, Ending::Exit(1), "{}", told.stderr);
    let line_with = |words: &str| told.stderr.lines().find(|line| line.contains(words)).unwrap_or_default();
    assert!(!line_with("ERROR: AddressSanitizer: odr-violation").is_empty(), "{}", told.stderr);
    assert!(line_with("[1] size=4 'shared'").ends_with("libsecond.so"), "{}", told.stderr);
    assert!(line_with("[2] size=100 'shared'").ends_with("libfirst.so"), "{}", told.stderr);
    assert_eq!(run(&at("main"), &[], "detect_odr_violation=0", "").ending, Ending::Exit(0));
}

#[test]
fn fuzzers_hear_of_comparisons() {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("heard.c"), folder.path().join("heard"));
    let two = "const void *pc, const void *a, const void *b";
    let mut text = String::from(
        "#define _GNU_SOURCE\n#include <stdio.h>\n#include <string.h>\n\
         static const char *text = \"abcCDE\", *part = \"CDE\";\n\
         static int is_here(const void *pc) { extern int main(); return pc > (void *)main && pc < (void *)main + 4096; }\n\
         static void tell(const char *name, const void *pc, const void *a, const void *b, long n, long m, long result) {\n\
         printf(\"%s %d%d%d %ld %ld %ld\\n\", name, is_here(pc), a == text, b == part, n, m, result); }\n",
    );
    for name in ["strcmp", "strcasecmp"] {
        text += &format!(
            "void __sanitizer_weak_hook_{name}({two}, int r) {{ tell(\"{name}\", pc, a, b, 0, 0, (r > 0) - (r < 0)); }}\n"
        );
    }
    for name in ["memcmp", "strncmp", "strncasecmp"] {
        text += &format!(
            "void __sanitizer_weak_hook_{name}({two}, size_t n, int r) {{ tell(\"{name}\", pc, a, b, n, 0, (r > 0) - (r < 0)); }}\n"
        );
    }
    for name in ["strstr", "strcasestr"] {
        text += &format!(
            "void __sanitizer_weak_hook_{name}({two}, char *r) {{ tell(\"{name}\", pc, a, b, 0, 0, r - text); }}\n"
        );
    }
    text += "void __sanitizer_weak_hook_memmem(const void *pc, const void *a, size_t n, const void *b, size_t m, char *r) {\n\
             tell(\"memmem\", pc, a, b, n, m, r - text); }\n\
             int main() { volatile long sink;\n\
             sink = memcmp(text, part, 3); sink = bcmp(text, part, 2); sink = strcmp(text, part); sink = strcasecmp(text, part);\n\
             sink = strncmp(text, part, 3); sink = strncasecmp(text, part, 1);\n\
             sink = (long)strstr(text, part); sink = (long)strcasestr(text, part); sink = (long)memmem(text, 6, part, 3);\n\
             return 0; }\n";
    std::fs::write(&source, text).unwrap();
    build(&["gcc", "-w", "-g", "-fno-builtin", "-fsanitize=address"], &source, &program);
    let told = run(&program, &[], "", "");
    let expected = "memcmp 111 3 0 1\nmemcmp 111 2 0 1\nstrcmp 111 0 0 1\nstrcasecmp 111 0 0 -1\nstrncmp 111 3 0 1\n\
                    strncasecmp 111 1 0 -1\nstrstr 111 0 0 3\nstrcasestr 111 0 0 3\nmemmem 111 6 3 3\n";
    assert_eq!(String::from_utf8_lossy(&told.stdout), expected, "{}", told.stderr);
}
