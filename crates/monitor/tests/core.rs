//! A core of a running program, read by gdb; the program goes on.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use leakscope_monitor::cores::{CoreError, take};

/// Adds up what it is told, in one thread; another one waits for ever.
const PROGRAM: &str = r#"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int answer = 42424242;
char *kept;

static void *sleeps_here(void *unused) {
    for (;;) pause();
    return unused;
}

__attribute__((noinline)) static long adds_here(long sum, int number) { return sum + number; }

int main(void) {
    pthread_t thread;
    long sum = 0;
    int number;
    pthread_create(&thread, NULL, sleeps_here, NULL);
    kept = malloc(40 << 20);
    memset(kept, 'x', 40 << 20);
    strcpy(kept + (20 << 20), "deep in the heap");
    /* Reserved and never touched: it must cost nothing. */
    mmap(NULL, 1L << 33, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    puts("ready");
    fflush(stdout);
    while (scanf("%d", &number) == 1) {
        sum = adds_here(sum, number);
        printf("%ld\n", sum);
        fflush(stdout);
    }
    return 0;
}
"#;

fn gdb(program: &Path, core: &Path) -> String {
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch"]);
    for command in
        ["set debuginfod enabled off", "print answer", "print kept + (20 << 20)", "thread apply all backtrace"]
    {
        gdb.args(["-ex", command]);
    }
    let output = gdb.arg(program).arg(core).output().expect("gdb is installed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_core_is_taken_and_the_program_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("adds.c"), PROGRAM).unwrap();
    let gcc = Command::new("gcc").args(["-g", "-O0", "-pthread", "-o"]).arg(at("adds")).arg(at("adds.c")).status();
    assert!(gcc.expect("gcc is installed").success());
    let mut child = Command::new(at("adds")).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut lines = BufReader::new(output).lines();
    let mut hear = || lines.next().unwrap().unwrap();
    assert_eq!(hear(), "ready");
    writeln!(input, "5").unwrap();
    assert_eq!(hear(), "5");

    let whole = take(child.id(), &at("whole"), 1 << 30).unwrap();
    assert_eq!((whole.threads, whole.left_out_bytes), (2, 0), "{whole:?}");
    assert!((40 << 20..60 << 20).contains(&whole.bytes), "{whole:?}");
    let file = std::fs::metadata(at("whole")).unwrap();
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    assert!(file.blocks() * 512 < 64 << 20, "what was never touched takes no room: {}", file.blocks() * 512);
    writeln!(input, "7").unwrap();
    assert_eq!(hear(), "12", "it goes on");

    let said = gdb(&at("adds"), &at("whole"));
    for expected in ["= 42424242", "deep in the heap", "sleeps_here", "main ()"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }

    // The small parts come first, so that a debugger has its stacks.
    let small = take(child.id(), &at("small"), 4 << 20).unwrap();
    assert!(small.bytes <= 4 << 20 && small.left_out_bytes > 36 << 20, "{small:?}");
    let said = gdb(&at("adds"), &at("small"));
    assert!(said.contains("= 42424242") && said.contains("main ()") && !said.contains("deep in the heap"), "{said}");

    assert!(matches!(take(child.id(), &at("small"), 1 << 30), Err(CoreError::File { .. })), "nothing is written over");
    assert!(matches!(
        take(child.id(), Path::new("/proc/core"), 1 << 30),
        Err(CoreError::Room { .. } | CoreError::File { .. })
    ));
    writeln!(input, "1").unwrap();
    assert_eq!(hear(), "13", "nor does a refusal stop it");
    // A stop or a trace that was left behind would be seen here.
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    assert!(status.contains("TracerPid:\t0\n"), "{status}");
    drop(input);
    assert!(child.wait().unwrap().success());
    assert!(matches!(take(child.id(), &at("gone"), 1 << 30), Err(CoreError::Process { .. })));
}
