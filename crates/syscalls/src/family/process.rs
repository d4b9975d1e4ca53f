//! Processes and threads: made, ended, waited for, scheduled, limited, identified.

use crate::prctl::{arch_prctl, prctl, prctl_names, prctl_registers};
use crate::ptrace::ptrace;
use crate::rule::{by, bytes, count_of, inout, input, output, text, times};
use crate::shape::{RUSAGE, TIMESPEC};
use crate::table::syscalls;
use crate::visit::Visit;

/// `struct rlimit`, and `struct rlimit64`.
const RLIMIT: u32 = 16;

syscalls! {
    /// Processes and threads.
    PROCESS:
    24 sched_yield as "sys_sched_yield"() is BLOCKS;
    39 getpid();
    56 clone(flags: ulong, child_stack: ptr, parent_tidptr: ptr, child_tidptr: ptr, tlsinfo: ulong) [by(clone)]
        registers clone_registers is FORKS | ENGINE | OPENS;
    57 fork() is FORKS | ENGINE;
    58 vfork() is FORKS | ENGINE;
    59 execve(filename: ptr, argv: ptr, envp: ptr) [text(filename), by(execve)] is LEAVES | ENGINE | CLOSES;
    60 exit(status: int) is LEAVES | ENGINE;
    61 wait4(pid: int, status: ptr, options: int, rusage: ptr)
        [output(status, bytes(4)).or_null().if_positive(), output(rusage, bytes(RUSAGE)).or_null().if_positive()]
        is BLOCKS;
    97 getrlimit(resource: uint, rlim: ptr) [output(rlim, bytes(RLIMIT))];
    98 getrusage(who: int, usage: ptr) [output(usage, bytes(RUSAGE))];
    101 ptrace(request: long, pid: long, addr: long, data: long) [by(ptrace)] is ENGINE;
    102 getuid();
    104 getgid();
    105 setuid(uid: uint);
    106 setgid(gid: uint);
    107 geteuid();
    108 getegid();
    109 setpgid(pid: int, pgid: int);
    110 getppid();
    111 getpgrp();
    112 setsid();
    113 setreuid(ruid: uint, euid: uint);
    114 setregid(rgid: uint, egid: uint);
    115 getgroups(size: int, list: ptr) [output(list, times(size, 4)).results(4)];
    116 setgroups(size: int, list: ptr) [input(list, times(size, 4))];
    117 setresuid(ruid: uint, euid: uint, suid: uint);
    118 getresuid(ruid: ptr, euid: ptr, suid: ptr)
        [output(ruid, bytes(4)), output(euid, bytes(4)), output(suid, bytes(4))];
    119 setresgid(rgid: uint, egid: uint, sgid: uint);
    120 getresgid(rgid: ptr, egid: ptr, sgid: ptr)
        [output(rgid, bytes(4)), output(egid, bytes(4)), output(sgid, bytes(4))];
    121 getpgid(pid: int);
    122 setfsuid(uid: uint);
    123 setfsgid(gid: uint);
    124 getsid(pid: int);
    125 capget(header: ptr, data: ptr) [by(capget)];
    126 capset(header: ptr, data: ptr) [by(capset)];
    135 personality(persona: uint);
    140 getpriority(which: int, who: int);
    141 setpriority(which: int, who: int, prio: int);
    142 sched_setparam(pid: int, p: ptr) [input(p, bytes(4))];
    143 sched_getparam(pid: int, p: ptr) [output(p, bytes(4))];
    144 sched_setscheduler(pid: int, policy: int, p: ptr) [input(p, bytes(4))];
    145 sched_getscheduler(pid: int);
    146 sched_get_priority_max(policy: int);
    147 sched_get_priority_min(policy: int);
    148 sched_rr_get_interval(pid: int, tp: ptr)
        [output(tp, bytes(TIMESPEC)).called("sched_rr_get_interval(timespec)")];
    154 modify_ldt(func: int, ptr: ptr, bytecount: ulong) [by(modify_ldt)] is ENGINE;
    157 prctl(option: int, arg2: ulong, arg3: ulong, arg4: ulong, arg5: ulong) [by(prctl)] registers prctl_registers
        names prctl_names is ENGINE;
    158 arch_prctl(option: int, arg2: ulong) [by(arch_prctl)] is ENGINE;
    160 setrlimit(resource: uint, rlim: ptr) [input(rlim, bytes(RLIMIT))];
    186 gettid();
    203 sched_setaffinity(pid: int, len: uint, mask: ptr) [input(mask, count_of(len))];
    204 sched_getaffinity(pid: int, len: uint, mask: ptr) [output(mask, count_of(len)).result()];
    205 set_thread_area(u_info: ptr) [inout(u_info, bytes(16))] is ENGINE | REMOVED;
    211 get_thread_area(u_info: ptr) [inout(u_info, bytes(16))] is ENGINE | REMOVED;
    218 set_tid_address(tidptr: ptr) is ENGINE;
    231 exit_group(status: int) is LEAVES | ENGINE;
    247 waitid as "sys_waitid"(which: int, pid: int, infop: ptr, options: int, ru: ptr) [by(waitid)] is BLOCKS;
    251 ioprio_set(which: int, who: int, ioprio: int);
    252 ioprio_get(which: int, who: int);
    302 prlimit64(pid: int, resource: uint, new_rlim: ptr, old_rlim: ptr)
        [input(new_rlim, bytes(RLIMIT)).or_null().called("rlimit64(new_rlim)"),
         output(old_rlim, bytes(RLIMIT)).or_null().called("rlimit64(old_rlim)")];
    309 getcpu(cpu: ptr, node: ptr, tcache: ptr) [output(cpu, bytes(4)).or_null(), output(node, bytes(4)).or_null()];
    312 kcmp(pid1: int, pid2: int, r#type: int, idx1: ulong, idx2: ulong) [by(kcmp)] registers kcmp_registers;
    314 sched_setattr(pid: int, p: ptr, flags: uint) [by(sched_setattr)];
    315 sched_getattr(pid: int, p: ptr, size: uint, flags: uint)
        [output(p, count_of(size)).called("sched_getattr(attr)")];
    322 execveat(fd: int, filename: ptr, argv: ptr, envp: ptr, flags: int)
        [text(filename), by(execveat)] is LEAVES | ENGINE | CLOSES;
    434 pidfd_open(pid: int, flags: uint) is OPENS;
    435 clone3(cl_args: ptr, size: ulong) [by(clone3)] is FORKS | ENGINE | OPENS;
    438 pidfd_getfd(pidfd: int, targetfd: int, flags: uint) is OPENS;
    448 process_mrelease(pidfd: int, flags: uint);
}

const CLONE_VM: u64 = 0x100;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_SETTLS: u64 = 0x8_0000;
const CLONE_PARENT_SETTID: u64 = 0x10_0000;
const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
const CLONE_CHILD_SETTID: u64 = 0x100_0000;

fn clone_registers(args: &[u64; 6]) -> u8 {
    let flags = args[0];
    let when = |mask: u64, bit: u8| if flags & mask == 0 { 0 } else { bit };
    0b00011
        | when(CLONE_PARENT_SETTID | CLONE_PIDFD, 0b00100)
        | when(CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID, 0b01000)
        | when(CLONE_SETTLS, 0b10000)
}

/// The child's own number appears in the child (which sees 0), and here too if the memory is the same.
fn child_number(visit: &mut Visit<'_>, name: &'static str, address: u64, flags: u64) {
    let is_here = visit.returned() == 0 || flags & CLONE_VM != 0;
    let written = if flags & CLONE_CHILD_SETTID != 0 && is_here { 4 } else { 0 };
    visit.output(name, address, 4, written);
}

/// What the parent is told: the child of a fork, which sees 0, has a copy of the memory from before that.
fn parent_number(visit: &mut Visit<'_>, name: &'static str, address: u64, flags: u64) {
    let is_here = visit.returned() > 0 || flags & CLONE_VM != 0;
    visit.output(name, address, 4, if is_here { 4 } else { 0 });
}

fn clone(visit: &mut Visit<'_>) {
    let flags = visit.arg(0);
    if flags & (CLONE_PARENT_SETTID | CLONE_PIDFD) != 0 {
        parent_number(visit, "clone(parent_tidptr)", visit.arg(2), flags);
    }
    if flags & (CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID) != 0 {
        child_number(visit, "clone(child_tidptr)", visit.arg(3), flags);
    }
}

/// `struct clone_args` grows at its end; each version's size is known by `size`.
fn clone3(visit: &mut Visit<'_>) {
    const SMALLEST: u64 = 64;
    let (args, size) = (visit.arg(0), visit.arg(1));
    if !(SMALLEST..=4096).contains(&size) {
        return;
    }
    visit.input("clone3(cl_args)", args, size);
    let flags = visit.u64_or_0(args);
    let field = |visit: &Visit<'_>, offset: u64| visit.u64_or_0(args.wrapping_add(offset));
    if flags & CLONE_PIDFD != 0 {
        parent_number(visit, "clone3(pidfd)", field(visit, 8), flags);
    }
    if flags & (CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID) != 0 {
        child_number(visit, "clone3(child_tid)", field(visit, 16), flags);
    }
    if flags & CLONE_PARENT_SETTID != 0 {
        parent_number(visit, "clone3(parent_tid)", field(visit, 24), flags);
    }
    if size >= 80 {
        // At most one number for each level of nested namespaces.
        let count = field(visit, 72).min(32);
        visit.input("clone3(set_tid)", field(visit, 64), count * 4);
    }
}

/// Pointers to strings, up to a null pointer; `first` names the first string if it has a name of its own.
fn strings(visit: &mut Visit<'_>, array: &'static str, first: &'static str, other: &'static str, address: u64) {
    const MAX_ARG_STRLEN: u64 = 131_072;
    let mut at = address;
    let mut name = first;
    while visit.step() {
        visit.input(array, at, 8);
        match visit.u64_at(at) {
            Some(string) if string != 0 => visit.text(name, string, MAX_ARG_STRLEN),
            _ => return,
        }
        name = other;
        let Some(next) = at.checked_add(8) else { return };
        at = next;
    }
}

/// A null vector is an empty one; Memcheck reports a null `argv` all the same, and so do we.
fn execve(visit: &mut Visit<'_>) {
    let (argv, envp) = (visit.arg(1), visit.arg(2));
    strings(visit, "execve(argv)", "execve(argv[0])", "execve(argv[i])", argv);
    if envp != 0 {
        strings(visit, "execve(envp)", "execve(envp[i])", "execve(envp[i])", envp);
    }
}

fn execveat(visit: &mut Visit<'_>) {
    let (argv, envp) = (visit.arg(2), visit.arg(3));
    strings(visit, "execveat(argv)", "execveat(argv[0])", "execveat(argv[i])", argv);
    if envp != 0 {
        strings(visit, "execveat(envp)", "execveat(envp[i])", "execveat(envp[i])", envp);
    }
}

/// The kernel writes six fields of the `siginfo_t`, with padding after the third, however the call ends.
fn waitid(visit: &mut Visit<'_>) {
    const EFAULT: i64 = 14;
    const WNOHANG: u64 = 1;
    const SIGCHLD: u64 = 17;
    let (info, usage) = (visit.arg(2), visit.arg(4));
    if info != 0 {
        let happened = !visit.is_before() && visit.error() != EFAULT;
        visit.output_if("waitid(infop)", info, 12, happened);
        visit.output_if("waitid(infop)", info.wrapping_add(16), 12, happened);
    }
    if usage != 0 {
        // 0 is returned whether or not there was a child.
        let waited = if info == 0 { visit.arg(3) & WNOHANG == 0 } else { visit.u32_at(info) == Some(SIGCHLD) };
        visit.output("waitid(ru)", usage, u64::from(RUSAGE), if waited { u64::from(RUSAGE) } else { 0 });
    }
}

/// The sets of capabilities take 12 bytes in the first version of the call, twice that since.
fn capability_bytes(visit: &Visit<'_>) -> u64 {
    const VERSION_1: u64 = 0x1998_0330;
    const VERSION_2: u64 = 0x2007_1026;
    const VERSION_3: u64 = 0x2008_0522;
    match visit.u32_at(visit.arg(0)) {
        Some(VERSION_1) | None => 12,
        Some(VERSION_2 | VERSION_3) => 24,
        Some(_) => 0,
    }
}

fn capget(visit: &mut Visit<'_>) {
    const EINVAL: i64 = 22;
    visit.input("capget(header)", visit.arg(0), 8);
    let size = capability_bytes(visit);
    let size = visit.keep(0, size);
    if visit.arg(1) != 0 {
        visit.whole("capget(data)", visit.arg(1), size);
    }
    // A version that the kernel does not know is replaced by the one that it prefers.
    if !visit.is_before() && size == 0 {
        let told = visit.error() == EINVAL || visit.error() == 0;
        visit.output_if("capget(header)", visit.arg(0), 4, told);
    }
}

fn capset(visit: &mut Visit<'_>) {
    visit.input("capset(header)", visit.arg(0), 8);
    visit.input("capset(data)", visit.arg(1), capability_bytes(visit));
}

fn modify_ldt(visit: &mut Visit<'_>) {
    match visit.int(0) {
        // Read the table, read the default one: as many bytes as are returned.
        0 | 2 => visit.output("modify_ldt(ptr)", visit.arg(1), visit.arg(2), visit.returned()),
        1 | 0x11 => visit.input("modify_ldt(ptr)", visit.arg(1), 16),
        _ => {}
    }
}

const KCMP_FILE: u64 = 0;
const KCMP_EPOLL_TFD: i64 = 7;

fn kcmp_registers(args: &[u64; 6]) -> u8 {
    let kind = args[2] & 0xffff_ffff;
    if kind == KCMP_FILE || kind >= KCMP_EPOLL_TFD as u64 { 0b1_1111 } else { 0b0_0111 }
}

fn kcmp(visit: &mut Visit<'_>) {
    if visit.int(2) == KCMP_EPOLL_TFD {
        visit.input("kcmp(idx2)", visit.arg(4), 12);
    }
}

/// A size that is too large comes back as the one that the kernel knows.
fn sched_setattr(visit: &mut Visit<'_>) {
    const E2BIG: i64 = 7;
    let attr = visit.arg(1);
    crate::shape::sized(visit, ("sched_setattr(attr->size)", "sched_setattr(attr)"), attr, 0, 48);
    if !visit.is_before() {
        visit.output_if("sched_setattr(attr->size)", attr, 4, visit.error() == E2BIG);
    }
}
