//! The beginning: at the first hook that is called, often long before `main`, and again in the constructor.

use crate::{connect, ending, environment, fork_exec, mtrace, originals, signals};
use core::ffi::{CStr, c_char, c_int, c_void};
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use leakscope_ledger::layout::{flags, origin, state};
use leakscope_ledger::writer::Ledger;
use leakscope_rt::check::Surroundings;
use leakscope_rt::modules::IteratePhdr;
use leakscope_rt::unwind::ObjectFinder;
use leakscope_rt::{event_log, memory, raw, roots, runtime, stop};

const NOT_STARTED: u32 = 0;
const STARTING: u32 = 1;
const STARTED: u32 = 2;
/// The program runs untraced.
const GIVEN_UP: u32 = 3;
static PHASE: AtomicU32 = AtomicU32::new(NOT_STARTED);
static PID: AtomicU32 = AtomicU32::new(0);

/// What a hook does that found no ledger: start, if nobody has, then `body`.
#[cold]
#[inline(never)]
pub fn late<R>(body: impl FnOnce() -> R) -> R {
    if PHASE.load(Acquire) == NOT_STARTED {
        begin();
    }
    body()
}

/// The process whose memory this is. A child of `vfork` has another process id: nothing ends for us when it ends.
pub fn is_own_process() -> bool {
    PID.load(Relaxed) == raw::getpid()
}

/// In a forked child: the process is another one now.
pub fn set_own_process() {
    PID.store(raw::getpid(), Relaxed);
}

fn begin() {
    if PHASE.compare_exchange(NOT_STARTED, STARTING, AcqRel, Acquire).is_err() {
        return;
    }
    let started = originals::find_all() && open_ledger().is_some();
    PHASE.store(if started { STARTED } else { GIVEN_UP }, Release);
}

/// Looks up a function that may not exist.
pub fn symbol(name: &CStr) -> *mut c_void {
    // SAFETY: the name is a C string.
    unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }
}

fn open_ledger() -> Option<()> {
    let answer = environment::with_ctl(|value| {
        fork_exec::keep_ctl(value);
        connect::ask(value, origin::START)
    });
    let (fd, bytes) = match answer? {
        Ok(answer) => answer,
        Err(_) => {
            raw::complain("no ledger from `leakscope run`; the program runs untraced");
            return None;
        }
    };
    let mapped = memory::map_shared(fd, bytes as usize);
    raw::close(fd);
    let Ok(base) = mapped else {
        raw::complain("the ledger does not fit the address-space limit; raise `ulimit -v` by 4 GB; running untraced");
        return None;
    };
    // SAFETY: mapped just now, for `bytes`, and never unmapped.
    let Some(ledger) = (unsafe { Ledger::attach(base, bytes) }) else {
        raw::complain("the ledger is of another version of leakscope; the program runs untraced");
        return None;
    };
    set_own_process();
    describe_process(&ledger);
    let iterate = symbol(c"dl_iterate_phdr");
    // SAFETY: null, or the functions of these names.
    runtime::UNWINDER.install(unsafe { ObjectFinder::new(symbol(c"_dl_find_object"), iterate) });
    if !iterate.is_null() {
        // SAFETY: dl_iterate_phdr has this type.
        runtime::MODULES.start(unsafe { core::mem::transmute::<*mut c_void, IteratePhdr>(iterate) });
    }
    runtime::MODULES.refresh(&ledger);
    let module_of = |address: usize| runtime::MODULES.read(&ledger).find(address as u64).map(|module| module.start);
    let libc_code = symbol(c"gnu_get_libc_version") as usize;
    let malloc_code = originals::malloc::ORIGINAL.address();
    let glibc_chunks = module_of(malloc_code).is_some() && module_of(malloc_code) == module_of(libc_code);
    ending::keep_surroundings(Surroundings {
        allocator_code: [libc_code as u64, malloc_code as u64],
        own_code: begin as *const () as u64,
        freeres: [None, None],
    });
    stop::install(ending::on_request);
    runtime::on_wanted(ending::on_wanted);
    // glibc's own memory is known by its layout.
    let code = runtime::MODULES.read(&ledger).find(malloc_code as u64).map(|module| (module.start, module.end));
    roots::allocator_is(code.filter(|_| !glibc_chunks).unwrap_or((0, 0)));
    if !runtime::start(ledger, glibc_chunks) {
        raw::complain("not enough memory to record; the program runs untraced");
        ledger.header().state.store(state::FAILED, Release);
        return None;
    }
    ledger.header().state.store(state::RUNNING, Release);
    event_log::begin_with_process(&ledger);
    Some(())
}

/// Writes the facts of this process into a ledger.
pub fn describe_process(ledger: &Ledger) {
    let header = ledger.header();
    header.pid.store(raw::getpid(), Relaxed);
    header.parent_pid.store(raw::getppid(), Relaxed);
    header.start_realtime_ns.store(raw::clock_ns(0), Relaxed);
    header.start_monotonic_ns.store(raw::clock_ns(1), Relaxed);
    header.start_tsc.store(raw::tsc(), Relaxed);
}

/// Runs after the libraries that we need are initialised, before those that need nothing of us have to be.
extern "C" fn constructor(argc: c_int, argv: *const *const c_char, _environment: *const *const c_char) {
    if PHASE.load(Acquire) == NOT_STARTED {
        begin();
    }
    let Some(ledger) = runtime::ledger() else { return };
    if ledger.header().command_line.load(Relaxed) == 0 {
        // SAFETY: the dynamic linker passes main's arguments.
        unsafe { describe_command(ledger, argc, argv) };
    }
    if !runtime::flag(flags::TRACE_CHILDREN) {
        environment::scrub();
    }
    mtrace::note_wish();
    fork_exec::register();
    signals::install();
    ending::register();
}

/// Stores the executable's path and the arguments.
///
/// # Safety
/// `argv` holds `argc` C strings.
unsafe fn describe_command(ledger: &Ledger, argc: c_int, argv: *const *const c_char) {
    let header = ledger.header();
    let mut path = [0u8; 4096];
    let length = leakscope_rt::modules::read_link(c"/proc/self/exe", &mut path);
    header.executable.store(ledger.store_string(path.get(..length).unwrap_or(&[])), Relaxed);
    let mut text = [0u8; 16384];
    let mut used = 0;
    for i in 0..argc.max(0) as usize {
        // SAFETY: the caller vouches for `argv`.
        let argument = unsafe { CStr::from_ptr(*argv.add(i)) }.to_bytes_with_nul();
        let Some(room) = text.get_mut(used..used + argument.len()) else { break };
        room.copy_from_slice(argument);
        used += argument.len();
    }
    header.command_line.store(ledger.store_string(text.get(..used).unwrap_or(&[])), Relaxed);
}

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = constructor;

#[used]
#[unsafe(link_section = ".fini_array")]
static DESTRUCTOR: extern "C" fn() = ending::destructor;
