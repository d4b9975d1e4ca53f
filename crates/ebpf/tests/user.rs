//! The tracer of programs, on Python, which calls malloc as it is told. Where programs may not be loaded, the tests say so
//! and pass.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use leakscope_ebpf::user::{Config, Tracer};
use leakscope_ebpf::{Limits, Snapshot, Watch};

/// Sizes that nobody else asks for.
const LEAKED: u64 = 123_457;
const GROWN: u64 = 234_571;
const FREED: u64 = 345_679;
const ALIGNED: u64 = 456_832;

const SCRIPT: &str = "\
import ctypes,sys\n\
libc=ctypes.CDLL(None)\n\
for name in 'malloc','realloc','calloc','aligned_alloc': getattr(libc,name).restype=ctypes.c_void_p\n\
libc.realloc.argtypes=[ctypes.c_void_p,ctypes.c_size_t]\n\
libc.free.argtypes=[ctypes.c_void_p]\n\
print('ready',flush=True)\n\
sys.stdin.readline()\n\
for i in range(50): libc.malloc(123457)\n\
for i in range(20): libc.realloc(libc.malloc(77),234571)\n\
for i in range(30): libc.free(libc.malloc(345679))\n\
for i in range(10): libc.aligned_alloc(64,456832)\n\
for i in range(10): libc.realloc(libc.malloc(345679),1<<62)\n\
print('held',flush=True)\n\
sys.stdin.readline()\n";

struct Python {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Python {
    fn new() -> Self {
        Self::spawn(Command::new("python3").args(["-c", SCRIPT]))
    }

    /// Another program that answers alike.
    fn spawn(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program");
        let out = BufReader::new(child.stdout.take().expect("piped"));
        let mut python = Self { child, out };
        python.wait("ready");
        python
    }

    fn wait(&mut self, word: &str) {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("it answers");
        assert_eq!(line.trim_end(), word);
    }

    fn run(&mut self) {
        self.child.stdin.as_mut().expect("piped").write_all(b"\n").expect("it reads");
        self.wait("held");
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start(python: &Python, by_frame_pointers: bool) -> Option<Tracer> {
    let config = Config {
        pids: vec![python.child.id()],
        limits: Limits { sample_bytes: 0, blocks: 1 << 17, sites: 8192, events_per_second: 0 },
        by_frame_pointers,
    };
    match Tracer::start(&config) {
        Ok(tracer) => Some(tracer),
        Err(error) if error.to_string().contains("does not take") => panic!("{error}"),
        Err(error) => {
            eprintln!("not run here: {error}");
            None
        }
    }
}

/// Outstanding blocks of a size: whole sites, since Python's own blocks come from other places.
fn blocks_of(snapshot: &Snapshot, bytes: u64) -> f64 {
    let of_size = snapshot.sites.iter().filter(|site| site.live.bytes.value == site.live.blocks.value * bytes as f64);
    of_size.map(|site| site.live.blocks.value).sum()
}

/// What the table says, whichever way stacks are walked.
fn judge(snapshot: &Snapshot) {
    let bytes = snapshot.all.values().map(|owner| owner.bytes.value).sum::<f64>();
    let seeded = (50 * LEAKED + 20 * GROWN + 10 * ALIGNED + 10 * FREED) as f64;
    assert!(bytes >= seeded, "{bytes} of {seeded}");
    // Python's own blocks of that moment are small beside it.
    assert!(bytes < seeded * 1.05, "{bytes} of {seeded}");
}

#[test]
fn every_block_of_a_running_program_with_its_stack() {
    let mut python = Python::new();
    let Some(mut tracer) = start(&python, false) else { return };
    python.run();
    // Copies of stacks are unwound beside; each block gets its stack when its copy is through.
    let mut snapshot = tracer.snapshot(0).unwrap();
    for _ in 0..500 {
        if snapshot.sites.iter().all(|site| !site.site.addresses.is_empty()) {
            break;
        }
        snapshot = tracer.snapshot(0).unwrap();
    }
    judge(&snapshot);
    // malloc, realloc and aligned_alloc are called from different lines of ctypes only by size: one stack of ffi for all.
    let deepest = snapshot.sites.iter().map(|site| site.site.addresses.len()).max().unwrap_or(0);
    assert!(deepest >= 6, "Python's loop, ctypes, libffi, main, the C library's start: {deepest} frames");
    let lost = tracer.counters().unwrap().lost;
    assert_eq!((lost.blocks_full, lost.stacks_failed, lost.calls), (0, 0, 0), "{lost:?}");
    assert_eq!(blocks_of(&snapshot, FREED).rem_euclid(10.0), 0.0, "what was freed is gone");
}

#[test]
fn frame_pointers_need_no_copies() {
    let mut python = Python::new();
    let Some(mut tracer) = start(&python, true) else { return };
    python.run();
    judge(&tracer.snapshot(0).unwrap());
    let lost = tracer.counters().unwrap().lost;
    assert_eq!((lost.blocks_full, lost.stacks_full, lost.calls), (0, 0, 0), "{lost:?}");
}

#[test]
fn who_is_not_there_is_told() {
    let config = Config {
        pids: vec![u32::MAX >> 2],
        limits: Limits { sample_bytes: 0, blocks: 1024, sites: 64, events_per_second: 0 },
        by_frame_pointers: false,
    };
    let Err(error) = Tracer::start(&config) else { panic!("there is no such process") };
    let words = error.to_string();
    assert!(words.contains("is process") || words.contains("sudo") || words.contains("without its BPF"), "{words}");
}

#[test]
fn allocators_that_are_preloaded_are_watched() {
    for library in ["libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libmimalloc.so.2"] {
        let path = format!("/usr/lib/x86_64-linux-gnu/{library}");
        if !std::path::Path::new(&path).exists() {
            eprintln!("not run here: {path} is not installed");
            continue;
        }
        let mut script = Command::new("python3");
        script.args(["-c", SCRIPT]).env("LD_PRELOAD", &path).stderr(Stdio::null());
        let mut python = Python::spawn(&mut script);
        let Some(mut tracer) = start(&python, true) else { return };
        python.run();
        eprintln!("{library}: {:?}", tracer.functions());
        judge(&tracer.snapshot(0).unwrap());
        let lost = tracer.counters().unwrap().lost;
        // mimalloc's realloc jumps to its malloc, which looks like a call whose return was not seen; it is counted.
        assert_eq!(lost.blocks_full, 0, "{library}: {lost:?}");
    }
}

/// The same blocks as those of the script, and nothing else.
const PROGRAM: &str = "\
#include <stdio.h>\n#include <stdlib.h>\n\
int main(void) {\n\
  char line[8];\n\
  setvbuf(stdout, NULL, _IONBF, 0); setvbuf(stdin, NULL, _IONBF, 0);\n\
  puts(\"ready\"); fgets(line, 8, stdin);\n\
  for (int i = 0; i < 50; i++) *(void *volatile *)line = malloc(123457);\n\
  for (int i = 0; i < 20; i++) *(void *volatile *)line = realloc(malloc(77), 234571);\n\
  for (int i = 0; i < 30; i++) free(malloc(345679));\n\
  for (int i = 0; i < 10; i++) *(void *volatile *)line = aligned_alloc(64, 456832);\n\
  for (int i = 0; i < 10; i++) *(void *volatile *)line = calloc(1, 345679);\n\
  puts(\"held\"); fgets(line, 8, stdin);\n\
  return 0;\n}\n";

fn compile(folder: &std::path::Path, flags: &[&str]) -> std::path::PathBuf {
    let (source, program) = (folder.join("program.c"), folder.join("program"));
    std::fs::write(&source, PROGRAM).expect("it is ours");
    let mut compiler = Command::new("cc");
    compiler.args(["-O1", "-w", "-g"]).args(flags).arg(&source).arg("-o").arg(&program);
    assert!(compiler.status().expect("cc").success());
    program
}

/// Blocks and bytes are exactly those of the program.
fn judge_exactly(mut program: Python) {
    let Some(mut tracer) = start(&program, false) else { return };
    program.run();
    let snapshot = tracer.snapshot(0).unwrap();
    let blocks: f64 = snapshot.all.values().map(|owner| owner.blocks.value).sum();
    let bytes: f64 = snapshot.all.values().map(|owner| owner.bytes.value).sum();
    let seeded = 50 * LEAKED + 20 * GROWN + 10 * ALIGNED + 10 * FREED;
    assert_eq!((blocks, bytes), (90.0, seeded as f64), "{:?}", tracer.functions());
}

#[test]
fn a_static_program_is_watched_by_its_symbols() {
    let folder = tempfile::tempdir().unwrap();
    judge_exactly(Python::spawn(&mut Command::new(compile(folder.path(), &["-static"]))));
}

#[test]
fn a_program_with_other_files_is_watched_in_its_own_libraries() {
    let folder = tempfile::tempdir().unwrap();
    let program = compile(folder.path(), &[]);
    let listed = Command::new("ldd").arg(&program).output().expect("ldd");
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    for library in text.split_whitespace().filter(|word| word.starts_with('/')) {
        let place = folder.path().join(library.trim_start_matches('/'));
        std::fs::create_dir_all(place.parent().expect("it has one")).unwrap();
        std::fs::copy(library, place).unwrap();
    }
    // A file system of its own, and mounts that nobody else sees.
    let probe = Command::new("unshare").args(["-m", "true"]).status();
    if !probe.is_ok_and(|status| status.success()) {
        eprintln!("not run here: no mount namespace for this user");
        return;
    }
    let mut command = Command::new("unshare");
    judge_exactly(Python::spawn(command.args(["-m", "chroot"]).arg(folder.path()).arg("/program")));
}
