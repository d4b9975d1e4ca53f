//! Signals.

use crate::rule::{by, bytes, count_of, input, output};
use crate::shape::{SIGSET, TIMESPEC};
use crate::table::syscalls;
use crate::visit::Visit;

/// `siginfo_t`: the kernel writes all of it, zeros behind what it knows.
const SIGINFO: u32 = 128;
/// What the kernel keeps of a `siginfo_t`, and reads.
const SIGINFO_READ: u64 = 48;

syscalls! {
    /// Signals.
    SIGNAL:
    13 rt_sigaction(signum: int, act: ptr, oldact: ptr, sigsetsize: ulong) [by(rt_sigaction)] is SIGNALS | ENGINE;
    14 rt_sigprocmask(how: int, set: ptr, oldset: ptr, sigsetsize: ulong)
        [input(set, bytes(SIGSET)).or_null(), output(oldset, bytes(SIGSET)).or_null()] is SIGNALS | ENGINE;
    15 rt_sigreturn() is SIGNALS | ENGINE | LEAVES;
    34 pause() is BLOCKS;
    62 kill(pid: int, signal: int);
    127 rt_sigpending(set: ptr, sigsetsize: ulong) [output(set, count_of(sigsetsize))];
    128 rt_sigtimedwait(set: ptr, info: ptr, timeout: ptr, sigsetsize: ulong)
        [input(set, bytes(SIGSET)), output(info, bytes(SIGINFO)).or_null(), input(timeout, bytes(TIMESPEC)).or_null()]
        is BLOCKS;
    129 rt_sigqueueinfo(pid: int, sig: int, uinfo: ptr) [by(rt_sigqueueinfo)];
    130 rt_sigsuspend(mask: ptr, size: ulong) [input(mask, bytes(SIGSET))] is BLOCKS | SIGNALS | ENGINE;
    131 sigaltstack(ss: ptr, oss: ptr) [by(sigaltstack)] is SIGNALS | ENGINE;
    200 tkill(tid: int, sig: int);
    219 restart_syscall() is BLOCKS | ENGINE;
    234 tgkill(tgid: int, tid: int, sig: int);
    282 signalfd as "sys_signalfd"(fd: int, sigmask: ptr, sigsetsize: ulong)
        [input(sigmask, bytes(SIGSET)).called("signalfd(sigmask)")] is OPENS;
    289 signalfd4 as "sys_signalfd4"(fd: int, sigmask: ptr, sigsetsize: ulong, flags: int)
        [input(sigmask, bytes(SIGSET)).called("signalfd(sigmask)")] is OPENS;
    297 rt_tgsigqueueinfo(tgid: int, pid: int, sig: int, uinfo: ptr) [by(rt_tgsigqueueinfo)];
    424 pidfd_send_signal(pidfd: int, sig: int, info: ptr, flags: uint) [by(pidfd_send_signal)];
}

/// The kernel's `struct sigaction`: handler, flags, restorer, mask.
fn rt_sigaction(visit: &mut Visit<'_>) {
    const SA_RESTORER: u64 = 0x0400_0000;
    const SIGACTION: u64 = 32;
    let (act, old) = (visit.arg(1), visit.arg(2));
    if act != 0 {
        visit.input("rt_sigaction(act->sa_handler)", act, 8);
        visit.input("rt_sigaction(act->sa_mask)", act.wrapping_add(24), 8);
        visit.input("rt_sigaction(act->sa_flags)", act.wrapping_add(8), 8);
        let restorer = act.wrapping_add(16);
        match visit.u64_at(act.wrapping_add(8)) {
            Some(flags) if flags & SA_RESTORER != 0 => visit.input("rt_sigaction(act->sa_restorer)", restorer, 8),
            _ => visit.copied("rt_sigaction(act->sa_restorer)", restorer, 8),
        }
    }
    if old != 0 {
        visit.whole("rt_sigaction(oldact)", old, SIGACTION);
    }
}

/// The number, error and code, then what the code brings; four bytes of padding stand between them.
fn queued(visit: &mut Visit<'_>, name: &'static str, address: u64) {
    visit.input(name, address, 12);
    visit.input(name, address.wrapping_add(16), 16);
    visit.copied(name, address, SIGINFO_READ);
}

fn rt_sigqueueinfo(visit: &mut Visit<'_>) {
    queued(visit, "rt_sigqueueinfo(uinfo)", visit.arg(2));
}

fn rt_tgsigqueueinfo(visit: &mut Visit<'_>) {
    queued(visit, "rt_tgsigqueueinfo(uinfo)", visit.arg(3));
}

fn pidfd_send_signal(visit: &mut Visit<'_>) {
    if visit.arg(2) != 0 {
        queued(visit, "pidfd_send_signal(info)", visit.arg(2));
    }
}

fn sigaltstack(visit: &mut Visit<'_>) {
    let (new, old) = (visit.arg(0), visit.arg(1));
    if new != 0 {
        visit.input("sigaltstack(ss)", new, 8);
        visit.input("sigaltstack(ss)", new.wrapping_add(8), 4);
        visit.input("sigaltstack(ss)", new.wrapping_add(16), 8);
    }
    if old != 0 {
        visit.whole("sigaltstack(oss)", old, 24);
    }
}
