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
        let mut child = Command::new("python3")
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3");
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
