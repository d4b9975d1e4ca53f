//! Runs an unmodified single-threaded program from the code cache, system calls passed through: for measuring and for
//! comparing outputs. No heap, no reports, no threads, no delivery of signals. Build with `examples/build.sh`, run with
//! `setarch -R translate [-n] [-0|-1|-2] [-k] [-p] [-s] [-v] PROGRAM ARGS`: `-n` without checks, `-0` to `-2`
//! shorter superblocks, `-k` with the stack's shadow, `-p`
//! interrupted every millisecond, `-s` statistics, `-v` names bad accesses.
#![allow(missing_docs, clippy::undocumented_unsafe_blocks, reason = "a development tool that is all system calls")]

mod loader;

use std::collections::BTreeMap;
use std::ffi::CStr;

use leakscope_translate::signal::{HandlerScope, Taken};
use leakscope_translate::{
    Action, BadAccess, CodeKind, CodeRegion, Config, Engine, Fault, GUEST_END, Gpr, SHADOW_OFFSET, StackMarking, Tool,
    signal,
};

const LOW: u64 = 0x5000_0000;
const HIGH: u64 = 0x1000_0000_0000;
const BRK: u64 = 0x0f00_0000_0000;
const STACK_END: u64 = 0x2000_0000_0000;
const STACK_BYTES: u64 = 8 << 20;
const PAGE: u64 = 0x1000;

struct Runner {
    low: u64,
    high: u64,
    brk: u64,
    executable: String,
    /// Executable mappings: start to end and protection.
    code: BTreeMap<u64, (u64, i32)>,
    verbose: bool,
    bad: u64,
    stops: u64,
    statistics: bool,
    shadow: bool,
}

fn page_up(value: u64) -> u64 {
    value.next_multiple_of(PAGE)
}

fn raw(number: i64, a: [u64; 6]) -> i64 {
    let result: i64;
    unsafe {
        std::arch::asm!("syscall", inlateout("rax") number => result, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
            in("r10") a[3], in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

fn map_fixed(start: u64, bytes: u64, protection: i32) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
    let got = raw(libc::SYS_mmap, [start, bytes, protection as u64, flags as u64, u64::MAX, 0]);
    assert_eq!(got as u64, start, "map {bytes:#x} bytes at {start:#x}");
}

impl Runner {
    /// Notes what a system call did to executable memory.
    fn mapped(&mut self, engine: &mut Engine, start: u64, end: u64, protection: i32) {
        let touched: Vec<(u64, (u64, i32))> =
            self.code.range(..end).filter(|(_, region)| region.0 > start).map(|(&s, &r)| (s, r)).collect();
        for (old_start, (old_end, old_protection)) in touched {
            self.code.remove(&old_start);
            if old_start < start {
                self.code.insert(old_start, (start, old_protection));
            }
            if old_end > end {
                self.code.insert(end, (old_end, old_protection));
            }
        }
        if protection & libc::PROT_EXEC != 0 {
            self.code.insert(start, (end, protection));
        }
        engine.mapping_changed(start, end);
    }

    /// New memory is all right to touch: the shadow of what was there before goes.
    fn fresh(&self, start: u64, bytes: u64) {
        if self.shadow {
            let at = start + SHADOW_OFFSET;
            raw(libc::SYS_madvise, [at, bytes, libc::MADV_DONTNEED as u64, 0, 0, 0]);
        }
    }

    fn mmap(&mut self, engine: &mut Engine, a: [u64; 6]) -> i64 {
        let bytes = page_up(a[1]);
        let (protection, flags) = (a[2] as i32, a[3] as i32);
        let is_fixed = flags & (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE) != 0;
        let mut address = a[0];
        let mut extra = 0;
        let is_code = a[4] as i32 >= 0 || protection & libc::PROT_EXEC != 0;
        let low = is_code && bytes <= 0x800_0000 && self.low + bytes < 0x7f00_0000;
        if !is_fixed {
            address = if low { self.low } else { self.high };
            extra = libc::MAP_FIXED_NOREPLACE as u64;
        }
        let got = raw(libc::SYS_mmap, [address, bytes, a[2], a[3] | extra, a[4], a[5]]);
        if got > 0 {
            if !is_fixed {
                let next = if low { &mut self.low } else { &mut self.high };
                *next += bytes + PAGE;
            }
            self.mapped(engine, got as u64, got as u64 + bytes, protection);
            self.fresh(got as u64, bytes);
        }
        got
    }

    fn set_brk(&mut self, wanted: u64) -> i64 {
        if (BRK..BRK + (8 << 30)).contains(&wanted) {
            let (old, new) = (page_up(self.brk), page_up(wanted));
            if new > old {
                map_fixed(old, new - old, libc::PROT_READ | libc::PROT_WRITE);
            } else if new < old {
                raw(libc::SYS_munmap, [new, old - new, 0, 0, 0, 0]);
            }
            self.brk = wanted;
        }
        self.brk as i64
    }

    fn remap(&mut self, engine: &mut Engine, a: [u64; 6]) -> i64 {
        let in_place = raw(libc::SYS_mremap, [a[0], a[1], a[2], 0, 0, 0]);
        if in_place != -i64::from(libc::ENOMEM) || a[3] & libc::MREMAP_MAYMOVE as u64 == 0 {
            return in_place;
        }
        let to = self.high;
        self.high += page_up(a[2]) + PAGE;
        let moved = raw(libc::SYS_mremap, [a[0], a[1], a[2], 3, to, 0]);
        self.mapped(engine, a[0], a[0] + page_up(a[1]), 0);
        moved
    }

    fn fork(&mut self, engine: &mut Engine, number: i64, a: [u64; 6]) -> i64 {
        let flags = if number == libc::SYS_clone { a[0] } else { libc::SIGCHLD as u64 };
        if flags & libc::CLONE_THREAD as u64 != 0 {
            return -i64::from(libc::EAGAIN);
        }
        let flags = flags & !((libc::CLONE_VM | libc::CLONE_VFORK) as u64);
        let child = raw(libc::SYS_clone, [flags, 0, a[2], a[3], a[4], 0]);
        if child == 0 && number == libc::SYS_clone && a[1] != 0 {
            engine.guest_mut().set_gpr(Gpr::Rsp, a[1]);
        }
        child
    }

    fn read_link(&self, path: u64, buffer: u64, bytes: u64) -> Option<i64> {
        let name = unsafe { CStr::from_ptr(path as *const i8) };
        if name.to_bytes() != b"/proc/self/exe" {
            return None;
        }
        let length = self.executable.len().min(bytes as usize);
        unsafe { std::ptr::copy_nonoverlapping(self.executable.as_ptr(), buffer as *mut u8, length) };
        Some(length as i64)
    }

    fn call(&mut self, engine: &mut Engine, number: i64, a: [u64; 6]) -> i64 {
        match number {
            libc::SYS_mmap => self.mmap(engine, a),
            libc::SYS_mprotect => {
                let result = raw(number, a);
                self.mapped(engine, a[0], a[0] + page_up(a[1]), a[2] as i32);
                result
            }
            libc::SYS_munmap => {
                let result = raw(number, a);
                self.mapped(engine, a[0], a[0] + page_up(a[1]), 0);
                result
            }
            libc::SYS_mremap => self.remap(engine, a),
            libc::SYS_brk => self.set_brk(a[0]),
            libc::SYS_rt_sigaction | libc::SYS_sigaltstack => 0,
            libc::SYS_rt_sigprocmask => 0,
            libc::SYS_arch_prctl => match a[0] {
                0x1002 => {
                    engine.guest_mut().fs_base = a[1];
                    0
                }
                _ => -i64::from(libc::EINVAL),
            },
            libc::SYS_rseq | libc::SYS_clone3 => -i64::from(libc::ENOSYS),
            libc::SYS_clone | libc::SYS_fork | libc::SYS_vfork => self.fork(engine, number, a),
            libc::SYS_readlink => self.read_link(a[0], a[1], a[2]).unwrap_or_else(|| raw(number, a)),
            libc::SYS_readlinkat => self.read_link(a[1], a[2], a[3]).unwrap_or_else(|| raw(number, a)),
            libc::SYS_exit | libc::SYS_exit_group => {
                if self.statistics {
                    eprintln!("{:?} bad={} stops={}", engine.statistics(), self.bad, self.stops);
                }
                raw(number, a)
            }
            _ => raw(number, a),
        }
    }
}

impl Tool for Runner {
    fn syscall(&mut self, engine: &mut Engine) -> Action {
        let guest = engine.guest();
        let number = guest.gpr(Gpr::Rax) as i64;
        let a = [Gpr::Rdi, Gpr::Rsi, Gpr::Rdx, Gpr::R10, Gpr::R8, Gpr::R9].map(|register| guest.gpr(register));
        loop {
            let result = self.call(engine, number, a);
            // Our own timer interrupts them.
            if result == -i64::from(libc::EINTR) && self.stops > 0 {
                continue;
            }
            engine.guest_mut().set_gpr(Gpr::Rax, result as u64);
            return Action::Continue;
        }
    }

    fn bad_access(&mut self, engine: &mut Engine, access: BadAccess) -> Action {
        self.bad += 1;
        if self.verbose {
            eprintln!("bad access {access:x?} rsp {:x}", engine.guest().gpr(Gpr::Rsp));
        }
        Action::Continue
    }

    fn fault(&mut self, engine: &mut Engine, fault: Fault) -> Action {
        eprintln!("fault {fault:x?} at {:x} with {:x?}", engine.guest().rip, engine.guest().gpr);
        Action::Leave(128 + fault.signal)
    }

    fn stopped(&mut self, _engine: &mut Engine) -> Action {
        self.stops += 1;
        Action::Continue
    }

    fn replaced(&mut self, _engine: &mut Engine, _cookie: u64) -> Action {
        Action::Leave(99)
    }

    fn client_request(&mut self, _engine: &mut Engine) -> Action {
        Action::Continue
    }

    fn code_region(&mut self, address: u64) -> Option<CodeRegion> {
        let (&start, &(end, protection)) = self.code.range(..=address).next_back()?;
        let kind = if protection & libc::PROT_WRITE != 0 { CodeKind::Writable } else { CodeKind::Fixed };
        (address < end).then_some(CodeRegion { start, end, kind, protection })
    }
}

unsafe extern "C" fn on_fault(number: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    unsafe {
        let _scope = HandlerScope::enter();
        if signal::take(number, info, context.cast()) == Taken::NotGuest {
            let frame = &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
            eprintln!(
                "signal {number} in the engine at {:x}, address {:p}",
                frame[libc::REG_RIP as usize],
                (*info).si_addr()
            );
            libc::_exit(70);
        }
    }
}

unsafe extern "C" fn on_timer(_number: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    unsafe {
        let _scope = HandlerScope::enter();
        signal::interrupt(context.cast());
    }
}

fn install_handlers(timer: bool) {
    unsafe {
        let stack = Box::leak(vec![0u8; 1 << 16].into_boxed_slice());
        let alternate = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
        libc::sigaltstack(&alternate, std::ptr::null_mut());
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        action.sa_sigaction = on_fault as *const () as usize;
        for number in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
            libc::sigaction(number, &action, std::ptr::null_mut());
        }
        if timer {
            action.sa_sigaction = on_timer as *const () as usize;
            libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut());
            let every = libc::timeval { tv_sec: 0, tv_usec: 1000 };
            let timer = libc::itimerval { it_interval: every, it_value: every };
            libc::syscall(libc::SYS_setitimer, libc::ITIMER_REAL, &timer, 0);
        }
    }
}

fn main() {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut config = Config::default();
    let (mut statistics, mut verbose, mut timer) = (false, false, false);
    while let Some(flag) = arguments.first().filter(|word| word.starts_with('-')).cloned() {
        arguments.remove(0);
        match flag.as_str() {
            "-n" => config.checks = false,
            "-0" | "-1" | "-2" => config.superblock_branches = flag.as_bytes()[1] - b'0',
            "-k" => config.stack = StackMarking::Exact,
            "-p" => timer = true,
            "-s" => statistics = true,
            "-v" => verbose = true,
            other => panic!("unknown option {other}"),
        }
    }
    let mut engine = Engine::new(config).unwrap_or_else(|error| panic!("{error}"));
    let path = loader::find(&arguments[0]);
    let program = loader::load(&path, 0x4000_0000);
    let interpreter = program.interpreter.as_ref().map(|name| loader::load(name, 0x4800_0000));
    let mut code: BTreeMap<u64, (u64, i32)> = program.code.iter().copied().collect();
    code.extend(interpreter.iter().flat_map(|image| image.code.iter().copied()));
    map_fixed(STACK_END - STACK_BYTES, STACK_BYTES, libc::PROT_READ | libc::PROT_WRITE);
    if config.checks {
        map_fixed(SHADOW_OFFSET & !0xfff, GUEST_END + 0x1000, libc::PROT_READ | libc::PROT_WRITE);
        raw(libc::SYS_madvise, [SHADOW_OFFSET & !0xfff, GUEST_END, libc::MADV_NOHUGEPAGE as u64, 0, 0, 0]);
    }
    let stack = loader::fill_stack(STACK_END, &path, &arguments, &program, interpreter.as_ref());
    if config.stack == StackMarking::Exact {
        let bytes = stack - 128 - (STACK_END - STACK_BYTES);
        unsafe { std::ptr::write_bytes((STACK_END - STACK_BYTES + SHADOW_OFFSET) as *mut u8, 0xff, bytes as usize) };
    }
    let guest = engine.guest_mut();
    guest.set_gpr(Gpr::Rsp, stack);
    guest.rip = interpreter.as_ref().map_or(program.entry, |image| image.entry);
    install_handlers(timer);
    let executable = std::fs::canonicalize(&path).expect("the program's path").to_string_lossy().into_owned();
    let mut runner = Runner {
        low: LOW,
        high: HIGH,
        brk: BRK,
        executable,
        code,
        verbose,
        bad: 0,
        stops: 0,
        statistics,
        shadow: config.checks,
    };
    let status = engine.run(&mut runner).unwrap_or_else(|error| panic!("{error}"));
    std::process::exit(status);
}
