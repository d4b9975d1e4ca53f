//! One system call from the target's registers to its result: what is done here, what is passed to the kernel.

use leakscope_syscalls::Effects;
use leakscope_translate::{Action, Gpr};

use crate::raw::{self, RESTART};
use crate::task::Task;
use crate::{Call, Cpu, Monitor, limits};

/// What became of a call.
pub(crate) enum Outcome {
    /// Its result, or [`RESTART`].
    Result(i64),
    /// The registers are set already.
    Registers,
    /// The thread ended with this status.
    Ended(i32),
}

pub(crate) const EBADF: i64 = -(libc::EBADF as i64);
pub(crate) const EFAULT: i64 = -(libc::EFAULT as i64);
pub(crate) const EINTR: i64 = -(libc::EINTR as i64);
pub(crate) const EINVAL: i64 = -(libc::EINVAL as i64);
pub(crate) const ENOMEM: i64 = -(libc::ENOMEM as i64);
pub(crate) const ENOSYS: i64 = -(libc::ENOSYS as i64);
pub(crate) const EPERM: i64 = -(libc::EPERM as i64);

/// `arch_prctl`'s codes, which libc does not name.
const ARCH_SET_GS: u64 = 0x1001;
const ARCH_SET_FS: u64 = 0x1002;
const ARCH_GET_FS: u64 = 0x1003;
const ARCH_GET_GS: u64 = 0x1004;

impl<C: Cpu, M: Monitor<C> + 'static> Task<C, M> {
    pub(crate) fn dispatch(&mut self, cpu: &mut C) -> Action {
        let (number, arguments) = Self::call_registers(cpu);
        if self.thread().has_pending() && rewind(cpu) {
            // The signal came before the call.
            self.deliver_pending(cpu);
            return Action::Continue;
        }
        let call = Call { number, arguments, tid: self.thread().tid() };
        let before = self.report_before(cpu, &call);
        match self.perform(cpu, number, arguments) {
            Outcome::Ended(status) => return Action::Leave(status),
            Outcome::Registers => {}
            Outcome::Result(RESTART) => {
                if self.restarts_call() && rewind(cpu) {
                    cpu.guest_mut().set_gpr(Gpr::Rax, number);
                } else {
                    cpu.guest_mut().set_gpr(Gpr::Rax, EINTR as u64);
                }
            }
            Outcome::Result(result) => {
                cpu.guest_mut().set_gpr(Gpr::Rax, result as u64);
                self.report_after(cpu, &call, &before, result);
            }
        }
        self.deliver_pending(cpu);
        Action::Continue
    }

    fn perform(&mut self, cpu: &mut C, number: u64, arguments: [u64; 6]) -> Outcome {
        let a = arguments;
        let result = match number as i64 {
            libc::SYS_mmap => self.mmap(cpu, a),
            libc::SYS_munmap => self.munmap(cpu, a),
            libc::SYS_mprotect | libc::SYS_pkey_mprotect => self.mprotect(cpu, number, a),
            libc::SYS_mremap => self.mremap(cpu, a),
            libc::SYS_brk => self.brk(cpu, a),
            libc::SYS_madvise => self.madvise(cpu, a),
            libc::SYS_shmat => self.shmat(cpu, a),
            libc::SYS_shmdt => self.shmdt(cpu, a),
            libc::SYS_remap_file_pages => self.remap_file_pages(cpu, a),
            // The shadow would be locked as well, and there is more of it than memory.
            libc::SYS_mlockall | libc::SYS_munlockall => 0,
            libc::SYS_rt_sigaction => self.rt_sigaction(cpu, a),
            libc::SYS_rt_sigprocmask => self.rt_sigprocmask(cpu, a),
            libc::SYS_rt_sigpending => self.rt_sigpending(cpu, a),
            libc::SYS_sigaltstack => self.sigaltstack(cpu, a),
            libc::SYS_rt_sigreturn => {
                self.signal_return(cpu);
                return Outcome::Registers;
            }
            libc::SYS_clone => self.clone_call(cpu, a),
            libc::SYS_clone3 => self.clone3(cpu, a),
            libc::SYS_fork => self.fork(cpu),
            libc::SYS_vfork => self.vfork(cpu),
            libc::SYS_execve => self.execve(cpu, a),
            libc::SYS_execveat => self.execveat(cpu, a),
            libc::SYS_exit => return self.exit_thread(cpu, a[0] as i32),
            libc::SYS_exit_group => self.exit_process(cpu, a[0] as i32),
            libc::SYS_set_tid_address => {
                self.local().clear_child_tid = a[0];
                i64::from(self.thread().tid())
            }
            libc::SYS_arch_prctl => arch_prctl(cpu, a),
            // Restartable sequences are aborted by the kernel at addresses in the target's code, which never run.
            libc::SYS_rseq => ENOSYS,
            // The kernel would write to the target's memory at times that nobody tells.
            libc::SYS_io_uring_setup | libc::SYS_io_uring_enter | libc::SYS_io_uring_register => ENOSYS,
            // Segments other than the flat ones do not exist on this CPU; sealed memory could not be watched.
            libc::SYS_modify_ldt | MSEAL | MAP_SHADOW_STACK => ENOSYS,
            libc::SYS_prctl => return Outcome::Result(self.prctl(cpu, a)),
            libc::SYS_seccomp => self.seccomp(cpu, a),
            libc::SYS_close
            | libc::SYS_read
            | libc::SYS_write
            | libc::SYS_fstat
            | libc::SYS_fcntl
            | libc::SYS_dup
            | libc::SYS_ioctl
            | libc::SYS_lseek
                if self.process().hidden.contains(a[0] as i32) =>
            {
                EBADF
            }
            libc::SYS_dup2 | libc::SYS_dup3 => self.duplicate_onto(cpu, number, a),
            libc::SYS_close_range => self.close_range(a),
            libc::SYS_getrlimit | libc::SYS_setrlimit | libc::SYS_prlimit64 => self.resource_limit(cpu, number, a),
            libc::SYS_sched_yield => {
                self.give_way(cpu);
                self.pass(cpu, number, a)
            }
            libc::SYS_open | libc::SYS_openat | libc::SYS_openat2 => self.open(cpu, number, a),
            libc::SYS_readlink | libc::SYS_readlinkat => self.readlink(cpu, number, a),
            _ => self.pass_with_path(cpu, number, a),
        };
        Outcome::Result(result)
    }

    /// Makes the call as it is.
    pub(crate) fn pass(&mut self, cpu: &mut C, number: u64, arguments: [u64; 6]) -> i64 {
        let entry = leakscope_syscalls::lookup(number);
        if entry.is_none() && self.process().warned.insert(number) {
            let text = format!("system call {number} is unknown to leakscope; what it writes is not tracked");
            self.monitor().warn(&text);
        }
        if entry.is_none_or(|entry| entry.effects.has(Effects::BLOCKS)) {
            // SAFETY: the target's own call; those that would harm the engine are not passed.
            return unsafe { self.blocking(cpu, number, arguments) };
        }
        // SAFETY: as above.
        unsafe { raw::syscall(number as i64, arguments) }
    }

    fn prctl(&mut self, cpu: &mut C, a: [u64; 6]) -> i64 {
        const PR_SET_SYSCALL_USER_DISPATCH: i32 = 59;
        const PR_SET_MDWE: i32 = 65;
        match a[0] as i32 {
            libc::PR_SET_SECCOMP => self.ignore_filter(),
            // The engine's own calls come from elsewhere, and its code is written and executed. Memory's borders
            // are those of the engine.
            PR_SET_SYSCALL_USER_DISPATCH | PR_SET_MDWE | libc::PR_SET_MM => EINVAL,
            libc::PR_GET_TID_ADDRESS => {
                let address = self.local().clear_child_tid;
                cpu.before_write(a[1], a[1].saturating_add(8));
                if raw::write_u64(a[1], address).is_ok() { 0 } else { EFAULT }
            }
            _ => self.pass(cpu, libc::SYS_prctl as u64, a),
        }
    }

    fn seccomp(&mut self, cpu: &mut C, a: [u64; 6]) -> i64 {
        match a[0] as u32 {
            libc::SECCOMP_SET_MODE_STRICT | libc::SECCOMP_SET_MODE_FILTER => {
                const NEW_LISTENER: u64 = 1 << 3;
                if a[1] & NEW_LISTENER != 0 { ENOSYS } else { self.ignore_filter() }
            }
            _ => self.pass(cpu, libc::SYS_seccomp as u64, a),
        }
    }

    /// A filter would judge the engine's calls, and kill the process for them.
    fn ignore_filter(&mut self) -> i64 {
        if self.process().warned.insert(libc::SYS_seccomp as u64) {
            self.monitor().warn("the program's seccomp filter is not installed: it would stop leakscope's own calls");
        }
        0
    }

    fn resource_limit(&mut self, cpu: &mut C, number: u64, a: [u64; 6]) -> i64 {
        let (resource, new, old) = match number as i64 {
            libc::SYS_getrlimit => (a[0], 0, a[1]),
            libc::SYS_setrlimit => (a[0], a[1], 0),
            _ => (a[1], a[2], a[3]),
        };
        let is_self = number as i64 != libc::SYS_prlimit64 || a[0] as i32 == 0 || a[0] as i32 == raw::getpid();
        if !is_self || !limits::is_virtual(resource as u32) {
            return self.pass(cpu, number, a);
        }
        let wanted = if new == 0 {
            None
        } else {
            match (raw::read_u64(new), raw::read_u64(new.wrapping_add(8))) {
                (Ok(soft), Ok(hard)) => Some((soft, hard)),
                _ => return EFAULT,
            }
        };
        let previous = self.process().limits.get(resource as u32);
        if let Some(wanted) = wanted
            && let Err(error) = self.process().limits.set(resource as u32, wanted)
        {
            return error;
        }
        if old != 0 {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&previous.0.to_ne_bytes());
            bytes[8..].copy_from_slice(&previous.1.to_ne_bytes());
            cpu.before_write(old, old.saturating_add(16));
            if raw::write_bytes(old, &bytes).is_err() {
                return EFAULT;
            }
        }
        0
    }
}

/// Sets `rip` back to the call. `false` if it was none: the page of vsyscalls ends up here as well.
fn rewind<C: Cpu>(cpu: &mut C) -> bool {
    let at = cpu.guest().rip.wrapping_sub(2);
    let mut bytes = [0; 2];
    if raw::read_bytes(at, &mut bytes).is_err() || bytes != [0x0f, 0x05] {
        return false;
    }
    cpu.guest_mut().rip = at;
    true
}

fn arch_prctl<C: Cpu>(cpu: &mut C, [code, address, ..]: [u64; 6]) -> i64 {
    /// Addresses of user space, with 47 bits.
    const LIMIT: u64 = 0x7fff_ffff_f000;
    let guest = cpu.guest_mut();
    let value = match code {
        ARCH_SET_FS | ARCH_SET_GS if address >= LIMIT => return EPERM,
        ARCH_SET_FS => {
            guest.fs_base = address;
            return 0;
        }
        ARCH_SET_GS => {
            guest.gs_base = address;
            return 0;
        }
        ARCH_GET_FS => guest.fs_base,
        ARCH_GET_GS => guest.gs_base,
        // Shadow stacks, more state, address masking: not on this CPU.
        _ => return EINVAL,
    };
    cpu.before_write(address, address.saturating_add(8));
    if raw::write_u64(address, value).is_ok() { 0 } else { EFAULT }
}

/// Numbers that libc does not have yet.
const MSEAL: i64 = 462;
const MAP_SHADOW_STACK: i64 = 453;
