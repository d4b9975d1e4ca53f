//! From the engine's own start to the target's first instruction.

use std::ffi::{CStr, CString};
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;

use leakscope_ledger::events::{self, Event};
use leakscope_ledger::wire::{Hello, WIRE_VERSION, Welcome};
use leakscope_translate::{Config, Engine, GUEST_END, Gpr, Guest, SHADOW_OFFSET, StackMarking};

use crate::engine::{HEAP, Memcheck, Program, clock, monotonic_ns, shadow};
use crate::loader::{self, LoadError, Loaded, Stack, StackContents};
use crate::options::Options;
use crate::output::Output;
use crate::tool::{RETURN_FROM_CALL, RETURN_FROM_FREERES};
use leakscope_guest::{Backing, Mapping, Process, Setup};

const PAGE: u64 = 4096;
/// The stack of a target whose limit says "unlimited", and the most that is marked beforehand: what is marked takes memory.
/// Accesses below the stack pointer of a deeper stack are not noticed.
const LARGEST_STACK: u64 = 64 << 20;
const MOST_MARKED: u64 = 1 << 20;
/// The end of the first thread's stack.
const STACK_END: u64 = 0x2f00_0000_0000;
/// Where programs go that may lie anywhere, if there is room: code runs fastest below 2 GB.
const PROGRAM_BASE: u64 = 0x40_0000;
const PROGRAM_END: u64 = 0x1000_0000;

/// The engine's words: where to connect, the program's path, and its arguments with its name.
pub struct Start {
    /// Socket and token.
    pub connect: Vec<u8>,
    /// What to execute.
    pub path: CString,
    /// Its arguments, name first.
    pub arguments: Vec<CString>,
    /// Its environment.
    pub environment: Vec<CString>,
}

/// Asks the process outside for a file; `None` when it does not answer. `origin` is one of the ledger's.
pub fn connect(address: &[u8], origin: u32) -> Option<Output> {
    let text = std::str::from_utf8(address).ok()?;
    let (name, token) = text.split_once(':')?;
    let mut hello = Hello {
        version: WIRE_VERSION,
        origin,
        token: [0; 16],
        pid: std::process::id(),
        // SAFETY: a plain call.
        parent_pid: unsafe { libc::getppid() } as u32,
    };
    for (at, byte) in hello.token.iter_mut().enumerate() {
        *byte = u8::from_str_radix(token.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    let socket = open_socket(name)?;
    let fd = exchange(socket, &hello.encode());
    // SAFETY: both descriptors are ours alone; the map keeps the file.
    unsafe {
        libc::close(socket);
        let output = Output::map(fd?, name);
        libc::close(fd?);
        output
    }
}

/// Connects to the outside.
pub fn open_socket(name: &str) -> Option<RawFd> {
    // SAFETY: a zeroed address is one, and as long as said.
    unsafe {
        let socket = libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0);
        if socket < 0 {
            return None;
        }
        let mut address: libc::sockaddr_un = std::mem::zeroed();
        address.sun_family = libc::AF_UNIX as u16;
        // An abstract name begins with a zero byte.
        for (to, &from) in address.sun_path[1..].iter_mut().zip(name.as_bytes()) {
            *to = from as libc::c_char;
        }
        let length = std::mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len();
        let connected = libc::connect(socket, (&raw const address).cast(), length as libc::socklen_t) == 0;
        if !connected {
            libc::close(socket);
            return None;
        }
        Some(socket)
    }
}

/// Sends the greeting; gives the descriptor that comes with the answer.
fn exchange(socket: RawFd, hello: &[u8]) -> Option<RawFd> {
    let mut answer = [0u8; Welcome::BYTES];
    let mut control = [0u64; 8];
    // SAFETY: all buffers live as long as the calls and are as long as said; the header is checked before it is read.
    unsafe {
        if libc::send(socket, hello.as_ptr().cast(), hello.len(), libc::MSG_NOSIGNAL) != hello.len() as isize {
            return None;
        }
        let mut part = libc::iovec { iov_base: answer.as_mut_ptr().cast(), iov_len: answer.len() };
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        let received = libc::recvmsg(socket, &raw mut message, libc::MSG_CMSG_CLOEXEC);
        let welcome = Welcome::decode(answer.get(..usize::try_from(received).ok()?)?)?;
        if welcome.status != 0 || welcome.version != WIRE_VERSION {
            return None;
        }
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null() || (*header).cmsg_type != libc::SCM_RIGHTS {
            return None;
        }
        Some(libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned())
    }
}

/// Who this process is.
pub fn process_event(program: &Program, origin: u32) -> Event {
    Event::Process(events::Process {
        pid: std::process::id(),
        // SAFETY: a plain call.
        parent_pid: unsafe { libc::getppid() } as u32,
        origin,
        realtime_ns: clock(libc::CLOCK_REALTIME),
        monotonic_ns: monotonic_ns(),
        executable: program.path.clone(),
        command_line: program.arguments.clone(),
    })
}

/// Whether a file can be executed, as far as that is known without doing it.
///
/// # Errors
/// Why not.
pub fn check(path: &CStr) -> Result<(), LoadError> {
    // SAFETY: a C string.
    if unsafe { libc::access(path.as_ptr(), libc::X_OK) } != 0 {
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::ENOENT);
        return Err(LoadError::File { path: path.to_owned(), errno });
    }
    let resolved = loader::resolve(path, vec![path.to_owned()], loader::head)?;
    let bytes = loader::head(&resolved.path).map_err(|errno| LoadError::File { path: resolved.path.clone(), errno })?;
    match loader::Headers::decode(&bytes) {
        Ok(_) => Ok(()),
        Err(why) => Err(LoadError::NotRunnable { path: resolved.path, why }),
    }
}

/// Runs a program to its end.
pub fn run(start: Start) -> ! {
    leakscope_guest::lift_limits();
    let Some(output) = connect(&start.connect, 0) else {
        match address_space_limit() {
            Some(limit) => {
                eprintln!("leakscope: there is no address space for the engine (48 TB, not of memory): {limit}")
            }
            None => eprintln!("leakscope-memcheck: nobody answers; `leakscope memcheck` starts this program"),
        }
        crate::engine::exit(2);
    };
    let options = Options::parse(&output.config());
    output.set_state(events::state::RUNNING);
    let mut memcheck = Memcheck::new(options, output);
    memcheck.program.connect = start.connect.clone();
    let why = match prepare(&mut memcheck, start) {
        // The engine goes with the process; who says why it stopped is what it left in the file.
        Ok((engine, process, guest)) => match process.run(engine, memcheck, &guest) {
            Ok(never) => match never {},
            Err(error) => {
                eprintln!("leakscope-memcheck: {error}");
                crate::engine::exit(127)
            }
        },
        Err(why) => why,
    };
    memcheck.output.tell(&Event::Failed(why));
    memcheck.output.wait();
    crate::engine::exit(127)
}

/// Everything up to the first instruction.
fn prepare(memcheck: &mut Memcheck, start: Start) -> Result<(Engine, Process, Guest), String> {
    let words = |error: LoadError| error.to_string();
    let resolved = loader::resolve_command(&start.path, start.arguments.clone(), loader::head).map_err(words)?;
    let mut process = Process::new(Setup::default()).map_err(|error| error.to_string())?;
    // The heap lies outside of the windows that the guest kernel places mappings in. It is not reserved there: programs
    // change the protection of memory that they allocated.
    const { assert!(HEAP.end <= STACK_END - LARGEST_STACK) };
    process.space_mut().lend(HEAP);
    map_shadow()?;
    // Go's stacks are blocks of its own heap, which it moves and uses again: what lies below a stack pointer of its is not
    // free for that.
    let is_go = crate::elf_symbols::SymbolFile::open(&resolved.path).is_some_and(|file| file.facts().is_go);
    memcheck.options.stack_marks &= !is_go;
    let config = Config {
        stack: if memcheck.options.stack_marks { StackMarking::Exact } else { StackMarking::Off },
        ..Config::default()
    };
    let mut engine = Engine::new(config).map_err(|error| error.to_string())?;
    engine.set_quick_code(crate::strings::quick::range());
    engine.hook(RETURN_FROM_FREERES, RETURN_FROM_FREERES);
    engine.hook(RETURN_FROM_CALL, RETURN_FROM_CALL);

    let path = real_path(&resolved.path);
    memcheck.program.path = path.clone();
    memcheck.program.arguments = resolved.arguments.iter().map(|word| word.as_bytes().to_vec()).collect();
    let origin = memcheck.output.get(events::Field::Origin) as u32;
    let event = process_event(&memcheck.program, origin);
    memcheck.output.tell(&event);
    name_process(&path);

    let program = load(&mut process, &resolved.path, &path, true).map_err(words)?;
    let interpreter = match &program.interpreter {
        Some(name) => Some(load(&mut process, name, &real_path(name), false).map_err(|error| match error {
            LoadError::File { errno: libc::ENOENT, .. } => {
                LoadError::NoInterpreter { path: resolved.path.clone(), interpreter: name.clone() }.to_string()
            }
            other => other.to_string(),
        })?),
        None => None,
    };
    memcheck.program.interpreter = interpreter.as_ref().map_or(0..0, |interpreter| interpreter.start..interpreter.end);
    let pointer = make_stack(memcheck, &mut process, &start, &resolved, &program, interpreter.as_ref())?;
    let setup = process.setup_mut();
    setup.program = path;
    setup.interpreter = memcheck.program.interpreter.clone();
    setup.arguments.clone_from(&memcheck.program.arguments);
    setup.environment = start.environment.iter().map(|word| word.as_bytes().to_vec()).collect();
    let mut guest = Guest::new();
    guest.rip = interpreter.as_ref().map_or(program.entry, |interpreter| interpreter.entry);
    guest.set_gpr(Gpr::Rsp, pointer);
    Ok((engine, process, guest))
}

fn map_shadow() -> Result<(), String> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: fails if anything is there.
    let at = unsafe { libc::mmap(SHADOW_OFFSET as *mut _, GUEST_END as usize, protection, flags, -1, 0) };
    if at as u64 == SHADOW_OFFSET {
        return Ok(());
    }
    let error = std::io::Error::last_os_error();
    Err(format!(
        "cannot map shadow memory: {error}; it takes 48 TB of address space (not of memory): {}",
        what_is_in_the_way()
    ))
}

/// What to change, so that address space can be had.
fn what_is_in_the_way() -> String {
    if let Some(limit) = address_space_limit() {
        return limit;
    }
    match std::fs::read_to_string("/proc/sys/vm/overcommit_memory") {
        Ok(mode) if mode.trim() == "2" => {
            "set vm.overcommit_memory to 0 or 1, it is 2 (`sysctl vm.overcommit_memory=0`)".to_owned()
        }
        _ => "look at the limits of the container".to_owned(),
    }
}

/// Which limit of the process there is, and how to lift it.
fn address_space_limit() -> Option<String> {
    [(libc::RLIMIT_AS, "ulimit -v"), (libc::RLIMIT_DATA, "ulimit -d")].into_iter().find_map(|(resource, name)| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: a live structure.
        let known = unsafe { libc::getrlimit(resource, &mut limit) } == 0;
        (known && limit.rlim_max != libc::RLIM_INFINITY)
            .then(|| format!("lift the limit with `{name} unlimited`, it is {} KB", limit.rlim_max / 1024))
    })
}

fn real_path(path: &CStr) -> Vec<u8> {
    let given = std::path::Path::new(std::ffi::OsStr::from_bytes(path.to_bytes()));
    let real = std::fs::canonicalize(given).unwrap_or_else(|_| given.to_owned());
    real.as_os_str().as_bytes().to_vec()
}

fn name_process(path: &[u8]) {
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    if let Ok(name) = CString::new(&name[..name.len().min(15)]) {
        // SAFETY: a C string.
        unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    }
}

/// Maps a program or its interpreter.
fn load(process: &mut Process, path: &CStr, real: &[u8], is_program: bool) -> Result<Loaded, LoadError> {
    let space = process.space_mut();
    let refused = || LoadError::NotRunnable {
        path: path.to_owned(),
        why: "it is linked for addresses that the simulated CPU needs itself; link it as a position-independent executable (-pie)",
    };
    let head = loader::head(path).map_err(|errno| LoadError::File { path: path.to_owned(), errno })?;
    let headers =
        loader::Headers::decode(&head).map_err(|why| LoadError::NotRunnable { path: path.to_owned(), why })?;
    let (low, high) = headers.extent();
    if headers.kind == loader::Kind::Fixed && !space.is_free(low, high) {
        return Err(refused());
    }
    let fits = is_program && space.is_free(PROGRAM_BASE, PROGRAM_BASE + (high - low)) && high - low < PROGRAM_END / 2;
    let place = if fits { Some(PROGRAM_BASE) } else { space.place(high - low, true) };
    let place = place.ok_or_else(refused)?;
    let mut maps = Vec::new();
    let loaded = loader::load(
        path,
        |low, _| place.wrapping_sub(low),
        |start, bytes, protection, offset| maps.push((start, bytes, protection, offset)),
    )?;
    let name: std::sync::Arc<[u8]> = real.into();
    for (start, bytes, protection, offset) in maps {
        let backing = offset.map_or(Backing::Anonymous, |offset| Backing::File { path: name.clone(), offset });
        space.record(Mapping { start, end: start + bytes, protection, shared: false, backing });
    }
    Ok(loaded)
}

/// Maps the stack and fills it; gives the stack pointer.
fn make_stack(
    memcheck: &Memcheck,
    process: &mut Process,
    start: &Start,
    resolved: &loader::Resolved,
    program: &Loaded,
    interpreter: Option<&Loaded>,
) -> Result<u64, String> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a live structure.
    unsafe { libc::getrlimit(libc::RLIMIT_STACK, &mut limit) };
    let wanted = match memcheck.options.main_stack_bytes {
        0 => limit.rlim_cur,
        bytes => bytes,
    };
    let bytes = wanted.clamp(1 << 20, LARGEST_STACK).next_multiple_of(PAGE);
    let top = STACK_END;
    let execute = if program.headers.executable_stack { libc::PROT_EXEC } else { 0 };
    let protection = libc::PROT_READ | libc::PROT_WRITE | execute;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: fails if anything is there.
    let at = unsafe { libc::mmap((top - bytes) as *mut _, bytes as usize, protection, flags, -1, 0) };
    if at as u64 != top - bytes {
        return Err(format!("cannot map the stack: {}", std::io::Error::last_os_error()));
    }
    process.space_mut().record(Mapping {
        start: top - bytes,
        end: top,
        protection,
        shared: false,
        backing: Backing::Stack,
    });

    let auxiliary = auxiliary_vector(program, interpreter);
    let mut random = [0u8; 16];
    // SAFETY: a buffer as long as said.
    unsafe { libc::getrandom(random.as_mut_ptr().cast(), random.len(), 0) };
    let contents = StackContents {
        arguments: &resolved.arguments,
        environment: &start.environment,
        executable: &start.path,
        auxiliary: &auxiliary,
        random,
    };
    let stack = Stack::build(top, &contents);
    if stack.bytes.len() as u64 > bytes / 2 {
        return Err("arguments and environment are too long for the stack; raise `ulimit -s`".to_owned());
    }
    // SAFETY: the top of the new stack.
    unsafe { std::ptr::copy_nonoverlapping(stack.bytes.as_ptr(), stack.pointer as *mut u8, stack.bytes.len()) };
    let vector = (stack.auxiliary - stack.pointer) as usize;
    process.setup_mut().auxiliary = stack.bytes[vector..vector + 16 * (auxiliary.len() + 1)].to_vec();
    if memcheck.options.stack_marks {
        let end = stack.pointer - 128;
        let marked = (end - (top - bytes)).min(MOST_MARKED);
        shadow().forbid(end - marked, marked);
    }
    Ok(stack.pointer)
}

/// As the kernel makes it, but without the vDSO and restartable sequences.
fn auxiliary_vector(program: &Loaded, interpreter: Option<&Loaded>) -> Vec<(u64, u64)> {
    const PASSED_ON: [u64; 11] = [
        libc::AT_HWCAP,
        libc::AT_PAGESZ,
        libc::AT_CLKTCK,
        libc::AT_FLAGS,
        libc::AT_UID,
        libc::AT_EUID,
        libc::AT_GID,
        libc::AT_EGID,
        libc::AT_SECURE,
        libc::AT_HWCAP2,
        51, // AT_MINSIGSTKSZ
    ];
    // SAFETY: a plain call.
    let passed = PASSED_ON.map(|kind| (kind, unsafe { libc::getauxval(kind) }));
    let mut vector: Vec<(u64, u64)> = passed.to_vec();
    vector.extend([
        (libc::AT_PHDR, program.header_address),
        (libc::AT_PHENT, 56),
        (libc::AT_PHNUM, program.headers.header_count.into()),
        (libc::AT_BASE, interpreter.map_or(0, |interpreter| interpreter.bias)),
        (libc::AT_ENTRY, program.entry),
        (loader::AT_RANDOM, 0),
        (loader::AT_EXECFN, 0),
        (loader::AT_PLATFORM, 0),
    ]);
    vector
}
