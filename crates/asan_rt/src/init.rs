//! The start: in the first allocation (often the dynamic linker's) or in `__asan_init`, whatever comes first.

use crate::options::{self, Complaints, Options, Origin, options};
use crate::{fake_stack, heap, originals, shadow_map, signals, suppressions, sys, thread, unwind};
use alloc::ffi::CString;
use alloc::string::String;
use core::ffi::{CStr, c_char};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicU32};
use leakscope_rt::unwind::{ObjectFinder, StackRange, stack_of};

const NOT_STARTED: u32 = 0;
const STARTING: u32 = 1;
/// The heap serves, options are not read yet.
const SERVING: u32 = 2;
const READY: u32 = 3;

static PHASE: AtomicU32 = AtomicU32::new(NOT_STARTED);
static IS_COMPLETE: AtomicBool = AtomicBool::new(false);

/// Whether hooks may check and record.
#[inline(always)]
#[must_use]
pub fn is_ready() -> bool {
    PHASE.load(Relaxed) == READY
}

/// Whether the heap may be used.
#[inline(always)]
#[must_use]
pub fn is_serving() -> bool {
    PHASE.load(Relaxed) >= SERVING
}

fn fail(text: &str) -> ! {
    sys::write_all(2, text.as_bytes());
    sys::exit_now(1)
}

/// Starts if that has not been done: after this the heap and the checks work.
#[inline(always)]
pub fn ensure() {
    if PHASE.load(Relaxed) < SERVING {
        begin();
    }
}

#[cold]
#[inline(never)]
fn begin() {
    if PHASE.compare_exchange(NOT_STARTED, STARTING, Acquire, Relaxed).is_err() {
        return;
    }
    if !is_only_runtime() {
        fail("Your application is linked against incompatible ASan runtimes.\n");
    }
    if shadow_map::map().is_err() {
        fail(
            "==0==Shadow memory range interleaves with an existing memory mapping. ASan cannot proceed correctly. \
             ABORTING.\n",
        );
    }
    if !heap::start() {
        fail("AddressSanitizer: the address space for the heap is not free\n");
    }
    let context = thread::new_context(thread::NO_THREAD, 0);
    if !thread::begin(context, main_stack()) {
        fail("AddressSanitizer: out of memory for the main thread's record\n");
    }
    PHASE.store(SERVING, Release);
    originals::find_copies();
    let symbol = |name: &CStr| originals::lookup(name) as *mut core::ffi::c_void;
    // SAFETY: null, or the loader's functions of these names.
    unwind::UNWINDER.install(unsafe { ObjectFinder::new(symbol(c"_dl_find_object"), symbol(c"dl_iterate_phdr")) });
    read_options();
    let gap = if options().protect_shadow_gap { shadow_map::protect_gap() } else { shadow_map::open_gap() };
    if gap.is_err() {
        fail("ERROR: Failed to protect the shadow gap. AddressSanitizer cannot proceed correctly. ABORTING.\n");
    }
    PHASE.store(READY, Release);
}

/// Whether no other run-time is in the process: then its entry would be found before ours.
fn is_only_runtime() -> bool {
    let entry = originals::lookup(c"__asan_init");
    entry == 0 || crate::modules::is_own_code(entry)
}

/// We have to be the first library that symbols are looked for in: otherwise libc's functions come before ours.
fn check_order() {
    if !options().verify_asan_link_order {
        return;
    }
    let own = ensure as *const () as usize;
    let first = crate::modules::all()
        .into_iter()
        .skip(1)
        .find(|module| !module.path.contains("linux-vdso") && !module.path.is_empty());
    if first.is_some_and(|module| !module.contains(own)) {
        crate::out_pid!(
            "ASan runtime does not come first in initial library list; you should either link runtime to your \
             application or manually preload it with LD_PRELOAD.\n"
        );
        crate::report::die();
    }
}

fn main_stack() -> StackRange {
    let here = 0u8;
    let mut range = stack_of(&raw const here as u64).unwrap_or_default();
    // It grows downwards as far as the limit allows.
    let mut limit = libc::rlimit { rlim_cur: 8 << 20, rlim_max: 0 };
    // SAFETY: the kernel writes the structure.
    unsafe { libc::getrlimit(libc::RLIMIT_STACK, &raw mut limit) };
    const MOST: u64 = 1 << 30;
    range.low = range.high.saturating_sub(limit.rlim_cur.min(MOST)).min(range.low);
    range
}

/// The value of a variable in the environment that the process was started with: libc may not have one yet.
pub(crate) fn environment(name: &str) -> Option<String> {
    let all = sys::read_file(c"/proc/self/environ", 1 << 22)?;
    all.split(|&byte| byte == 0).find_map(|entry| {
        let entry = core::str::from_utf8(entry).ok()?;
        entry.strip_prefix(name)?.strip_prefix('=').map(String::from)
    })
}

/// What the program's function of a name returns: its options.
fn from_program(name: &CStr) -> String {
    let function = originals::lookup(name);
    if function == 0 {
        return String::new();
    }
    // SAFETY: the interface says that functions of these names have this type.
    let text = unsafe {
        let function: extern "C" fn() -> *const c_char = core::mem::transmute(function);
        function()
    };
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the interface says that it is a C string.
    String::from_utf8_lossy(unsafe { CStr::from_ptr(text) }.to_bytes()).into_owned()
}

/// The last part of the program's first word, which the program can change.
fn process_name() -> String {
    let words = sys::read_file(c"/proc/self/cmdline", 1 << 16).unwrap_or_default();
    let first = words.split(|&byte| byte == 0 || byte == b'\n').next().unwrap_or(&[]);
    let name = first.rsplit(|&byte| byte == b'/').next().unwrap_or(&[]);
    String::from_utf8_lossy(name).into_owned()
}

fn read_option_file(name: &str) -> Option<String> {
    let name = name.replace("%p", &alloc::format!("{}", sys::getpid()));
    let name = if name.contains("%b") { name.replace("%b", &process_name()) } else { name };
    let path = CString::new(name).ok()?;
    sys::read_file(&path, 1 << 20).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

fn read_options() {
    let mut read = Options::DEFAULT;
    let mut complaints = Complaints::default();
    let sources = [
        (from_program(c"__asan_default_options"), Origin::Asan),
        (from_program(c"__lsan_default_options"), Origin::Lsan),
        (environment("ASAN_OPTIONS").unwrap_or_default(), Origin::Asan),
        (environment("LSAN_OPTIONS").unwrap_or_default(), Origin::Lsan),
    ];
    for (text, origin) in &sources {
        read.decode(text, *origin, &mut complaints, &mut read_option_file);
        end_if_fatal(&complaints);
    }
    if read.strict_init_order {
        read.check_initialization_order = true;
    }
    options::change(|options| *options = read);
    if !read.log_path.is_empty() {
        crate::output::set_path(read.log_path);
    }
    tell_unknown(&complaints, &read);
    if let Some(prefix) = environment("LEAKSCOPE_ASAN_COPY") {
        crate::output::set_copy(&prefix);
    }
    if read.verbosity >= 2 {
        crate::out_pid!("Using internal symbolizer.\n");
    }
    if read.help {
        crate::out!("{}", read.help(&complaints));
    }
    check_options(&read);
    fake_stack::IS_ON.store(u8::from(read.detect_stack_use_after_return), Relaxed);
    if read.start_deactivated {
        heap::dormant::begin();
    }
}

fn end_if_fatal(complaints: &Complaints) {
    if let Some(sentence) = &complaints.fatal {
        fail(&alloc::format!("AddressSanitizer: ERROR: {sentence}\n"));
    }
}

fn tell_unknown(complaints: &Complaints, read: &Options) {
    if read.verbosity > 0 && !complaints.unknown.is_empty() {
        crate::out!("WARNING: found {} unrecognized flag(s):\n", complaints.unknown.len());
        for name in &complaints.unknown {
            crate::out!("    {name}\n");
        }
    }
}

/// An instrumented object starts. After `start_deactivated` the first one that comes when the start is over wakes the heap,
/// with what `ASAN_ACTIVATION_OPTIONS` says besides.
pub fn wake() {
    if !heap::dormant::is_dormant() || !IS_COMPLETE.load(Relaxed) {
        return;
    }
    let mut read = heap::dormant::asked();
    let mut complaints = Complaints { only: options::ON_WAKING, ..Complaints::default() };
    // That was shown at the start, where it was asked for.
    read.help = false;
    let text = environment("ASAN_ACTIVATION_OPTIONS").unwrap_or_default();
    read.decode(&text, Origin::Asan, &mut complaints, &mut read_option_file);
    end_if_fatal(&complaints);
    tell_unknown(&complaints, &read);
    if read.help {
        crate::out!("{}", read.help(&complaints));
    }
    check_options(&read);
    heap::dormant::wake(&read);
    if read.verbosity > 0 {
        crate::out_pid!("AddressSanitizer: activated\n");
    }
}

fn check_options(read: &Options) {
    if read.quarantine_size >= 0 && read.quarantine_size_mb >= 0 {
        fail(
            "AddressSanitizer: please use either 'quarantine_size' (deprecated) or quarantine_size_mb, but not both\n",
        );
    }
    if read.thread_local_quarantine_size_kb == 0 && read.quarantine_size_mb != 0 {
        fail(
            "AddressSanitizer: thread_local_quarantine_size_kb can be set to 0 only when quarantine_size_mb is set to 0\n",
        );
    }
    let is_redzone = |bytes: i64| (16..=2048).contains(&bytes) && bytes & (bytes - 1) == 0;
    if !is_redzone(read.redzone) || !is_redzone(read.max_redzone) || read.redzone > read.max_redzone {
        fail("AddressSanitizer: redzone and max_redzone must be powers of two from 16 to 2048, in this order\n");
    }
}

/// The rest, from `__asan_init`: libc is there. Calls `register_end` once to have the leak check run at the end.
pub fn complete(register_end: fn()) {
    ensure();
    if IS_COMPLETE.swap(true, Relaxed) {
        return;
    }
    if options().sleep_before_init > 0 {
        crate::out!("Sleeping for {} second(s) before init\n", options().sleep_before_init);
        sys::sleep_seconds(options().sleep_before_init as u64);
    }
    check_order();
    read_suppressions();
    signals::set_signal_stack();
    signals::install();
    leakscope_rt::stop::install(|_| {});
    register_end();
    if options().disable_coredump {
        let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the kernel reads the structure.
        unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) };
    }
    if options().verbosity > 0 {
        tell_settings();
        crate::out_pid!("AddressSanitizer Init done\n");
    }
    if options().sleep_after_init > 0 {
        crate::out!("Sleeping for {} second(s) after init\n", options().sleep_after_init);
        sys::sleep_seconds(options().sleep_after_init as u64);
    }
}

/// What `verbosity` shows of the layout and the limits.
fn tell_settings() {
    crate::out!(
        "redzone={}\nmax_redzone={}\nquarantine_size_mb={}M\nthread_local_quarantine_size_kb={}K\n\
         malloc_context_size={}\nSHADOW_SCALE: {}\nSHADOW_GRANULARITY: 8\nSHADOW_OFFSET: 0x{:x}\n",
        options().redzone,
        options().max_redzone,
        heap::quarantine_limit() >> 20,
        heap::local_quarantine_limit() >> 10,
        options().malloc_context_size,
        shadow_map::SCALE,
        shadow_map::OFFSET
    );
}

fn add_rules(text: &str, kinds: &[&str]) {
    match suppressions::decode(text, kinds) {
        Ok(rules) => suppressions::add(rules),
        Err(sentence) => fail(&alloc::format!("AddressSanitizer: {sentence}\n")),
    }
}

fn read_suppressions() {
    add_rules(&from_program(c"__asan_default_suppressions"), suppressions::KINDS);
    add_rules(&from_program(c"__lsan_default_suppressions"), suppressions::LEAK_KINDS);
    for (name, kinds) in
        [(options().suppressions, suppressions::KINDS), (options().leak_suppressions, suppressions::LEAK_KINDS)]
    {
        if name.is_empty() {
            continue;
        }
        let beside = {
            let exe = crate::modules::executable();
            let folder = exe.rsplit_once('/').map_or("", |(folder, _)| folder);
            alloc::format!("{folder}/{name}")
        };
        match read_option_file(name).or_else(|| read_option_file(&beside)) {
            Some(text) => add_rules(&text, kinds),
            None => fail(&alloc::format!("AddressSanitizer: failed to read suppressions file '{name}'\n")),
        }
    }
}
