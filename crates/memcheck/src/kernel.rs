//! System calls of the target: checked, passed on, and answered here where the kernel would answer for the engine.
//!
//! What each call reads and writes stands in crate `syscalls`. Here is what calls do to the engine's own picture: the
//! address space, the program's name, new processes, and the end.

mod files;
mod maps;
mod process;

use leakscope_model::ErrorKind;
use leakscope_syscalls::{self as table, Access, Region};
use leakscope_translate::{Action, Engine, Gpr};

use crate::engine::{Memcheck, shadow};
use crate::probe;

/// A signal's action as the target set it: handler, flags, restorer, mask.
pub type SignalAction = [u64; 4];

/// What the kernel keeps for a process, as far as it is kept here.
#[derive(Clone, Debug)]
pub struct KernelState {
    /// Actions by signal number.
    pub actions: [SignalAction; 65],
    /// Where descriptors were opened, for `--track-fds`.
    pub opened: std::collections::BTreeMap<i32, crate::stacks::StackId>,
    /// Room for the regions of a call.
    regions: Vec<Region>,
}

impl Default for KernelState {
    fn default() -> Self {
        Self { actions: [[0; 4]; 65], opened: std::collections::BTreeMap::new(), regions: Vec::new() }
    }
}

/// A system call.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Its number.
    pub number: u64,
    /// Its arguments.
    pub arguments: [u64; 6],
}

impl Call {
    fn of(engine: &Engine) -> Self {
        let guest = engine.guest();
        let arguments = [Gpr::Rdi, Gpr::Rsi, Gpr::Rdx, Gpr::R10, Gpr::R8, Gpr::R9].map(|register| guest.gpr(register));
        Self { number: guest.gpr(Gpr::Rax), arguments }
    }

    /// Lets the kernel do it.
    pub fn perform(&self) -> i64 {
        let [a, b, c, d, e, f] = self.arguments;
        // SAFETY: what the target asks for; calls that would harm the engine do not come here.
        unsafe { raw(self.number, a, b, c, d, e, f) }
    }
}

/// A system call without anything of the C library's: the result may be an error number below zero.
///
/// # Safety
/// As the system call's.
pub unsafe fn raw(number: u64, a: u64, b: u64, c: u64, d: u64, e: u64, f: u64) -> i64 {
    let result: i64;
    // SAFETY: the caller's promise; the instruction changes rax, rcx, r11 and what the call says.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            out("rcx") _, out("r11") _,
            options(nostack)
        );
    }
    result
}

/// How the evaluator of the table sees the target.
struct View;

impl table::Memory for View {
    fn read_bytes(&self, address: u64, into: &mut [u8]) -> bool {
        address < crate::space::END && probe::read(address, into)
    }
}

/// What became of a call.
enum Done {
    /// It returns this.
    Result(i64),
    /// The callback returns this, and has set what there is to set.
    Action(Action),
}

impl Memcheck {
    /// Carries out the system call that the guest stands behind.
    pub fn system_call(&mut self, engine: &mut Engine) -> Action {
        let call = Call::of(engine);
        let mut regions = std::mem::take(&mut self.kernel.regions);
        table::check(call.number, &call.arguments, &View, &mut |region| regions.push(region));
        for region in regions.drain(..) {
            self.check_region(engine, &region);
        }
        self.kernel.regions = regions;
        let result = match self.special(engine, call) {
            Some(Done::Action(action)) => return action,
            Some(Done::Result(result)) => result,
            None => call.perform(),
        };
        if self.options.track_fds {
            self.note_descriptors(engine, call, result);
        }
        engine.guest_mut().set_gpr(Gpr::Rax, result as u64);
        Action::Continue
    }

    /// Says when a parameter of a system call points to what the target may not use.
    fn check_region(&mut self, engine: &mut Engine, region: &Region) {
        if region.access == Access::Write {
            engine.before_write(region.address, region.address.saturating_add(region.length).min(crate::space::END));
        }
        let Some(bad) = first_bad(region.address, region.length) else { return };
        let name = region.param.to_string();
        let message = format!("Syscall param {name} points to unaddressable byte(s)");
        let (guest, rip) = (engine.guest().clone(), engine.guest().rip);
        // The instruction itself, two bytes back.
        self.walk_here(&guest, rip.wrapping_sub(2));
        self.report(&guest, ErrorKind::SyscallParam, &name, message, Some(bad));
    }

    /// Calls that are not the kernel's alone.
    fn special(&mut self, engine: &mut Engine, call: Call) -> Option<Done> {
        const ENOSYS: i64 = -(libc::ENOSYS as i64);
        let arguments = call.arguments;
        let result = match call.number as i64 {
            libc::SYS_mmap => self.map(engine, arguments),
            libc::SYS_munmap => self.unmap(engine, arguments),
            libc::SYS_mprotect | libc::SYS_pkey_mprotect => self.protect(engine, call),
            libc::SYS_brk => self.brk(engine, arguments[0]),
            libc::SYS_mremap => self.remap(engine, arguments),
            libc::SYS_shmat => self.attach_shared(engine, arguments),
            libc::SYS_shmdt => self.detach_shared(engine, arguments),
            libc::SYS_madvise => self.advise(engine, call),
            libc::SYS_arch_prctl => return Some(thread_pointer(engine, call)),
            libc::SYS_exit | libc::SYS_exit_group => return Some(Done::Action(self.exit_called(engine, arguments[0]))),
            libc::SYS_fork | libc::SYS_vfork | libc::SYS_clone => return Some(self.new_process(engine, call)),
            libc::SYS_clone3 | libc::SYS_rseq | libc::SYS_io_uring_setup => ENOSYS,
            libc::SYS_execve | libc::SYS_execveat => return self.execute(engine, call),
            libc::SYS_rt_sigaction => self.signal_action(call)?,
            libc::SYS_kill | libc::SYS_tkill | libc::SYS_tgkill => return self.raise(engine, call),
            libc::SYS_readlink | libc::SYS_readlinkat => self.read_link(call)?,
            libc::SYS_open | libc::SYS_openat => self.open(call)?,
            libc::SYS_prctl => {
                self.note_name(arguments);
                return None;
            }
            _ => return None,
        };
        Some(Done::Result(result))
    }
}

/// The first byte of a range that is not mapped or not addressable.
pub fn first_bad(address: u64, bytes: u64) -> Option<u64> {
    const PAGE: u64 = 4096;
    let end = address.saturating_add(bytes);
    let mut at = address;
    while at < end {
        let next = ((at | (PAGE - 1)) + 1).min(end);
        if at >= crate::space::END || !probe::can_read(at) {
            return Some(at);
        }
        if let Some(first) = shadow().first_forbidden(at, next - at) {
            return Some(at + first);
        }
        at = next;
    }
    None
}

/// `arch_prctl`: the thread pointers are the engine's to keep.
fn thread_pointer(engine: &mut Engine, call: Call) -> Done {
    const SET_GS: u64 = 0x1001;
    const SET_FS: u64 = 0x1002;
    const GET_FS: u64 = 0x1003;
    const GET_GS: u64 = 0x1004;
    let (code, value) = (call.arguments[0], call.arguments[1]);
    let guest = engine.guest_mut();
    let store = |base: u64| {
        if !probe::can_write(value) || !probe::can_write(value + 7) {
            return -i64::from(libc::EFAULT);
        }
        // SAFETY: just found to be writable.
        unsafe { (value as *mut u64).write_unaligned(base) };
        0
    };
    Done::Result(match code {
        SET_FS | SET_GS if value >= 1 << 47 => -i64::from(libc::EPERM),
        SET_FS => {
            guest.fs_base = value;
            0
        }
        SET_GS => {
            guest.gs_base = value;
            0
        }
        GET_FS => store(guest.fs_base),
        GET_GS => store(guest.gs_base),
        // Shadow stacks, cpuid faulting: not for a target that is translated.
        _ => -i64::from(libc::EINVAL),
    })
}
