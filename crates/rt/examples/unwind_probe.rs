//! An interposer that does nothing but unwind at every malloc, calloc and realloc: for tests and measurements.
//!
//! `PROBE_MODE` (environment) chooses:
//! - `forward`: call the original, nothing else (the baseline of a measurement);
//! - `record`: signature, table of sites, walk on a miss, as a real hook does (what is measured);
//! - `check`: as `record`, and each record is compared with a walk from nothing, each 64th with glibc's `backtrace`.
//!
//! `PROBE_ALL` compares every record with `backtrace`; `PROBE_OLD_GLIBC` looks objects up by `dl_iterate_phdr`.
//! A target may call `unwind_probe_event()`: a record without an allocation, which a signal handler may interrupt.
//!
//! But for `forward`, one line of `name=value` counts is appended to the file `PROBE_OUT` when the process ends, and the
//! first mismatches before it. Built with the `injected` profile; see `tests/unwind.rs`.
#![allow(missing_docs)]

use std::arch::{asm, global_asm, naked_asm, x86_64::_rdtsc};
use std::ffi::{c_char, c_int, c_void};
use std::fmt::Write as _;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU16, AtomicU64, Ordering::Relaxed};

use leakscope_rt::unwind::{MAX_FRAMES, ObjectFinder, Registers, ThreadCache, Unwinder, WalkEnd, Walked, stack_of};

unsafe extern "C" {
    fn __libc_malloc(size: usize) -> *mut c_void;
    fn __libc_calloc(count: usize, size: usize) -> *mut c_void;
    fn __libc_realloc(old: *mut c_void, size: usize) -> *mut c_void;
    fn backtrace(buffer: *mut u64, size: c_int) -> c_int;
}

static UNWINDER: Unwinder = Unwinder::new();
/// Each which record is compared with `backtrace`.
static EVERY: AtomicU64 = AtomicU64::new(64);
static MODE: AtomicI32 = AtomicI32::new(FORWARD);
const FORWARD: i32 = 0;
const RECORD: i32 = 1;
const CHECK: i32 = 2;

// Initial-exec TLS without `__tls_get_addr`, which may allocate.
global_asm!(
    ".section .tbss.unwind_probe,\"awT\",@nobits",
    ".balign 64",
    ".hidden unwind_probe_tls",
    ".globl unwind_probe_tls",
    ".type unwind_probe_tls,@object",
    "unwind_probe_tls: .zero 64",
    ".size unwind_probe_tls,64",
    ".text"
);

#[repr(C)]
struct Tls {
    cache: *const ThreadCache,
    busy: u64,
}

#[inline(always)]
fn tls() -> *mut Tls {
    let address: *mut Tls;
    // SAFETY: reads the thread pointer and a GOT entry.
    unsafe {
        asm!(
            "mov {0}, qword ptr [rip + unwind_probe_tls@GOTTPOFF]",
            "add {0}, qword ptr fs:[0]",
            out(reg) address,
            options(pure, nomem, nostack)
        );
    }
    address
}

fn map(bytes: usize) -> *mut c_void {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new anonymous mapping.
    unsafe { libc::mmap(null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) }
}

/// Signature to the hash of the frames that it stands for.
struct Site {
    signature: AtomicU64,
    stack_hash: AtomicU64,
}

const SITES: usize = 1 << 21;
static SITE_TABLE: AtomicPtr<Site> = AtomicPtr::new(null_mut());

#[inline(always)]
fn find_site(signature: u64) -> Option<u64> {
    let table = SITE_TABLE.load(Relaxed);
    let mut k = (signature >> 43) as usize;
    for _ in 0..SITES {
        // SAFETY: masked below.
        let site = unsafe { &*table.add(k) };
        match site.signature.load(Relaxed) {
            0 => return None,
            s if s == signature => {
                return Some(site.stack_hash.load(Relaxed)).filter(|hash| *hash != 0);
            }
            _ => k = (k + 1) & (SITES - 1),
        }
    }
    None
}

fn enter_site(signature: u64, stack_hash: u64) {
    let table = SITE_TABLE.load(Relaxed);
    let mut k = (signature >> 43) as usize;
    for _ in 0..SITES {
        // SAFETY: masked below.
        let site = unsafe { &*table.add(k) };
        let old = match site.signature.compare_exchange(0, signature, Relaxed, Relaxed) {
            Ok(_) => {
                site.stack_hash.store(stack_hash, Relaxed);
                COUNTS.new_sites.add(1);
                return;
            }
            Err(old) => old,
        };
        if old == signature {
            let known = site.stack_hash.swap(stack_hash, Relaxed);
            COUNTS.wrong.add(u64::from(known != 0 && known != stack_hash));
            return;
        }
        k = (k + 1) & (SITES - 1);
    }
}

struct Count(AtomicU64);

impl Count {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }
    fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }
}

macro_rules! counts {
    ($($name:ident),*) => {
        struct Counts { $($name: Count),* }
        static COUNTS: Counts = Counts { $($name: Count::new()),* };
        fn write_counts(line: &mut Line) {
            $(let _ = write!(line, "{}={} ", stringify!($name), COUNTS.$name.0.load(Relaxed));)*
        }
    };
}
counts!(
    records,
    frames,
    signatures,
    hits,
    no_layout,
    new_signature,
    wrong,
    too_deep,
    no_rule,
    bad_stack,
    sampled,
    equal,
    walk_cycles,
    timed_walks,
    unremembered,
    new_sites
);

#[inline(always)]
unsafe fn record(rsp: u64, rbp: u64) {
    let mode = MODE.load(Relaxed);
    if mode == FORWARD {
        return;
    }
    let tls = tls();
    // SAFETY: this thread's own.
    unsafe {
        if (*tls).busy != 0 {
            return;
        }
        if (*tls).cache.is_null() {
            new_thread(tls, rsp);
        }
        let cache = (*tls).cache;
        let regs = Registers { rsp, rbp };
        let hit = UNWINDER.recall(cache, regs, |s| {
            if mode == CHECK {
                COUNTS.signatures.add(1);
            }
            find_site(s.get())
        });
        if hit.is_none() {
            if mode == CHECK {
                let layout_known = UNWINDER.signature(cache, regs).is_some();
                COUNTS.no_layout.add(u64::from(!layout_known));
                COUNTS.new_signature.add(u64::from(layout_known));
            }
            miss(cache, regs);
        }
        if mode == CHECK {
            COUNTS.hits.add(u64::from(hit.is_some()));
            check(tls, regs, hit);
        }
    }
}

#[cold]
#[inline(never)]
unsafe fn new_thread(tls: *mut Tls, rsp: u64) {
    let cache = map(ThreadCache::SIZE_BYTES).cast::<ThreadCache>();
    // SAFETY: zeroed pages are a valid cache; the slot is this thread's.
    unsafe {
        if let Some(range) = stack_of(rsp) {
            (*cache).set_stack(range);
        }
        (*tls).cache = cache;
    }
}

#[cold]
#[inline(never)]
unsafe fn miss(cache: *const ThreadCache, regs: Registers) {
    let enter = |walked: Walked<'_>| {
        if let Some(signature) = walked.signature {
            enter_site(signature.get(), walked.stack_hash);
        }
        COUNTS.unremembered.add(u64::from(walked.signature.is_none()));
    };
    // SAFETY: a counter; and `record`'s contract.
    let cycles = unsafe {
        let start = _rdtsc();
        UNWINDER.walk(cache, regs, enter);
        _rdtsc() - start
    };
    // Longer ones were preempted.
    if cycles < 20_000 {
        COUNTS.walk_cycles.add(cycles);
        COUNTS.timed_walks.add(1);
    }
}

#[cold]
#[inline(never)]
unsafe fn check(tls: *mut Tls, regs: Registers, hit: Option<u64>) {
    // SAFETY: `record`'s contract.
    unsafe { UNWINDER.walk_afresh((*tls).cache, regs, |walked| compare(tls, walked, hit)) }
}

unsafe fn compare(tls: *mut Tls, walked: Walked<'_>, hit: Option<u64>) {
    let ours = walked.frames;
    COUNTS.records.add(1);
    COUNTS.frames.add(ours.len() as u64);
    match walked.end {
        WalkEnd::Complete => {}
        WalkEnd::TooDeep => COUNTS.too_deep.add(1),
        WalkEnd::NoRule => COUNTS.no_rule.add(1),
        WalkEnd::BadStack => COUNTS.bad_stack.add(1),
    }
    if walked.end == WalkEnd::NoRule || walked.end == WalkEnd::BadStack {
        show("TRUNCATED", ours, &[]);
    }
    if hit.is_some_and(|hash| hash != walked.stack_hash) {
        COUNTS.wrong.add(1);
        show("WRONG HIT", ours, &[]);
    }
    if !COUNTS.records.0.load(Relaxed).is_multiple_of(EVERY.load(Relaxed)) {
        return;
    }
    let mut oracle = [0u64; MAX_FRAMES + 64];
    // SAFETY: the buffer has that many entries; `busy` hides its own allocations. It may be a handler's turn meanwhile.
    let got = unsafe {
        (*tls).busy = 1;
        let got = backtrace(oracle.as_mut_ptr(), oracle.len() as c_int);
        (*tls).busy = 0;
        usize::try_from(got).unwrap_or(0)
    };
    let oracle = oracle.get(..got).unwrap_or_default();
    let start = oracle.iter().position(|f| Some(f) == ours.first()).unwrap_or(got);
    let theirs: Vec64 = oracle[start..].iter().copied().take(MAX_FRAMES).collect();
    COUNTS.sampled.add(1);
    // An interrupted frame is stored as pc + 1.
    let same = theirs.len == ours.len() && ours.iter().zip(&theirs.items).all(|(o, t)| o == t || *o == t + 1);
    if same {
        COUNTS.equal.add(1);
    } else {
        show("UNLIKE BACKTRACE", ours, &theirs.items[..theirs.len]);
    }
}

/// A vector that does not allocate.
struct Vec64 {
    items: [u64; MAX_FRAMES],
    len: usize,
}

impl FromIterator<u64> for Vec64 {
    fn from_iter<I: IntoIterator<Item = u64>>(iter: I) -> Self {
        let mut v = Self { items: [0; MAX_FRAMES], len: 0 };
        for (slot, item) in v.items.iter_mut().zip(iter) {
            *slot = item;
            v.len += 1;
        }
        v
    }
}

struct Line {
    bytes: [u8; 8192],
    len: usize,
}

impl std::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for (slot, byte) in self.bytes.iter_mut().skip(self.len).zip(text.bytes()) {
            *slot = byte;
            self.len += 1;
        }
        Ok(())
    }
}

impl Line {
    fn append(&self) {
        // SAFETY: plain calls; the path comes from the environment and lives as long as the process.
        unsafe {
            let path = libc::getenv(c"PROBE_OUT".as_ptr());
            if !path.is_null() {
                let fd = libc::open(path, libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT | libc::O_CLOEXEC, 0o600);
                libc::write(fd, self.bytes.as_ptr().cast(), self.len);
                libc::close(fd);
            }
        }
    }
}

fn show(what: &str, ours: &[u64], theirs: &[u64]) {
    static SHOWN: AtomicI32 = AtomicI32::new(0);
    if SHOWN.fetch_add(1, Relaxed) >= 4 {
        return;
    }
    let mut line = Line { bytes: [0; 8192], len: 0 };
    let _ = writeln!(line, "{what}: ours {} {ours:x?} theirs {} {theirs:x?}", ours.len(), theirs.len());
    for &frame in ours.iter().chain(theirs) {
        // SAFETY: plain call with an out parameter.
        unsafe {
            let mut info = std::mem::zeroed::<libc::Dl_info>();
            if libc::dladdr((frame - 1) as *const c_void, &raw mut info) != 0 && !info.dli_fname.is_null() {
                let name = std::ffi::CStr::from_ptr(info.dli_fname).to_str().unwrap_or("?");
                let _ = writeln!(line, "  {frame:x} {name}+{:x}", frame - info.dli_fbase as u64);
            }
        }
    }
    line.append();
}

#[used]
#[unsafe(link_section = ".init_array")]
static INIT: extern "C" fn() = init;
#[used]
#[unsafe(link_section = ".fini_array")]
static FINI: extern "C" fn() = fini;

extern "C" fn init() {
    // SAFETY: plain libc calls, before other threads exist.
    unsafe {
        let mode = libc::getenv(c"PROBE_MODE".as_ptr());
        let mode = match if mode.is_null() { 0 } else { *mode.cast::<u8>() } {
            b'r' => RECORD,
            b'c' => CHECK,
            _ => return,
        };
        if !libc::getenv(c"PROBE_ALL".as_ptr()).is_null() {
            EVERY.store(1, Relaxed);
        }
        let old = !libc::getenv(c"PROBE_OLD_GLIBC".as_ptr()).is_null();
        let find = libc::dlsym(libc::RTLD_DEFAULT, c"_dl_find_object".as_ptr());
        let iterate = libc::dlsym(libc::RTLD_DEFAULT, c"dl_iterate_phdr".as_ptr());
        UNWINDER.install(ObjectFinder::new(if old { null_mut() } else { find }, iterate));
        SITE_TABLE.store(map(SITES * size_of::<Site>()).cast(), Relaxed);
        if mode == CHECK {
            // Loads libgcc now, rather than inside a hook.
            backtrace([0u64; 4].as_mut_ptr(), 4);
        }
        MODE.store(mode, Relaxed);
    }
}

extern "C" fn fini() {
    if MODE.load(Relaxed) != FORWARD {
        let mut line = Line { bytes: [0; 8192], len: 0 };
        write_counts(&mut line);
        let c = UNWINDER.counters();
        let _ = writeln!(
            line,
            "walks={} rules={} evicted={} reused={} cache_bytes={}",
            c.walks,
            c.rules_computed,
            c.rules_evicted,
            c.reused_frames,
            ThreadCache::SIZE_BYTES
        );
        line.append();
    }
}

unsafe extern "C" fn malloc_hook(size: usize, rsp: u64, rbp: u64) -> *mut c_void {
    // SAFETY: the naked hook passes its own registers.
    unsafe {
        let block = __libc_malloc(size);
        record(rsp, rbp);
        block
    }
}

unsafe extern "C" fn calloc_hook(count: usize, size: usize, rsp: u64, rbp: u64) -> *mut c_void {
    // SAFETY: as above.
    unsafe {
        let block = __libc_calloc(count, size);
        record(rsp, rbp);
        block
    }
}

unsafe extern "C" fn realloc_hook(old: *mut c_void, size: usize, rsp: u64, rbp: u64) -> *mut c_void {
    // SAFETY: as above.
    unsafe {
        let block = __libc_realloc(old, size);
        record(rsp, rbp);
        block
    }
}

unsafe extern "C" fn event_hook(rsp: u64, rbp: u64) {
    // SAFETY: as above.
    unsafe { record(rsp, rbp) }
}

#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn unwind_probe_event() {
    naked_asm!(".cfi_startproc", "mov rdi, rsp", "mov rsi, rbp", "jmp {}", ".cfi_endproc", sym event_hook)
}

#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn malloc(_size: usize) -> *mut c_void {
    naked_asm!(".cfi_startproc", "mov rsi, rsp", "mov rdx, rbp", "jmp {}", ".cfi_endproc", sym malloc_hook)
}

#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn calloc(_count: usize, _size: usize) -> *mut c_void {
    naked_asm!(".cfi_startproc", "mov rdx, rsp", "mov rcx, rbp", "jmp {}", ".cfi_endproc", sym calloc_hook)
}

#[unsafe(naked)]
#[unsafe(no_mangle)]
unsafe extern "C" fn realloc(_old: *mut c_void, _size: usize) -> *mut c_void {
    naked_asm!(".cfi_startproc", "mov rdx, rsp", "mov rcx, rbp", "jmp {}", ".cfi_endproc", sym realloc_hook)
}

/// Code goes away: nothing that was learnt of it may be used again.
#[unsafe(no_mangle)]
unsafe extern "C" fn dlclose(handle: *mut c_void) -> c_int {
    static EPOCH: AtomicU16 = AtomicU16::new(0);
    static ORIGINAL: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
    // SAFETY: the original has this signature.
    unsafe {
        if ORIGINAL.load(Relaxed).is_null() {
            ORIGINAL.store(libc::dlsym(libc::RTLD_NEXT, c"dlclose".as_ptr().cast::<c_char>()), Relaxed);
        }
        let original: unsafe extern "C" fn(*mut c_void) -> c_int = std::mem::transmute(ORIGINAL.load(Relaxed));
        let result = original(handle);
        UNWINDER.set_epoch(EPOCH.fetch_add(1, Relaxed).wrapping_add(1));
        result
    }
}
