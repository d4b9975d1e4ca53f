//! Numbers that the kernel keeps for calls which it no longer has, or never had: it answers ENOSYS. What those that
//! once worked read and wrote stands here for older kernels.

use crate::rule::{by, bytes, count_of, output, text};
use crate::table::syscalls;
use crate::visit::Visit;

syscalls! {
    /// Calls that are gone. Kernels since: 2.6 module calls, 3.1 `nfsservctl`, 5.5 `_sysctl`, 6.7 `lookup_dcookie`,
    /// 6.16 `uselib`; the others were only ever numbers.
    REMOVED:
    134 uselib(library: ptr) [text(library)] is REMOVED;
    156 _sysctl as "sysctl"(args: ptr) [by(sysctl)] is REMOVED;
    174 create_module(name: ptr, size: ulong) is REMOVED;
    177 get_kernel_syms(table: ptr) is REMOVED;
    178 query_module(name: ptr, which: int, buf: ptr, bufsize: ulong, ret: ptr) is REMOVED;
    180 nfsservctl(cmd: int, argp: ptr, resp: ptr) is REMOVED;
    181 getpmsg(fd: int, ctrl: ptr, data: ptr, bandp: ptr, flagsp: ptr)
        [output(bandp, bytes(4)).or_null(), output(flagsp, bytes(4)).or_null()] is REMOVED;
    182 putpmsg(fd: int, ctrl: ptr, data: ptr, band: int, flags: int) is REMOVED;
    183 afs_syscall() is REMOVED;
    184 tuxcall() is REMOVED;
    185 security() is REMOVED;
    212 lookup_dcookie(cookie: ulong, buf: ptr, len: ulong)
        [output(buf, count_of(len)).result().called("sys_lookup_dcookie(buf)")] is REMOVED;
    214 epoll_ctl_old(epfd: int, op: int, fd: int, event: ptr) is REMOVED;
    215 epoll_wait_old(epfd: int, events: ptr, maxevents: int) is REMOVED;
    236 vserver() is REMOVED;
}

/// `struct __sysctl_args`: name, its length, old value and its length's address, new value and its length.
fn sysctl(visit: &mut Visit<'_>) {
    let args = visit.arg(0);
    visit.input("sysctl(args)", args, 48);
    let word = |visit: &Visit<'_>, offset: u64| visit.u64_or_0(args.wrapping_add(offset));
    let names = visit.u32_or_0(args.wrapping_add(8));
    visit.input("sysctl(name)", word(visit, 0), names.min(10) * 4);
    visit.input("sysctl(newval)", word(visit, 32), word(visit, 40));
    let (old, length_at) = (word(visit, 16), word(visit, 24));
    if length_at != 0 {
        visit.input("sysctl(oldlenp)", length_at, 8);
        let now = visit.u64_or_0(length_at);
        let room = visit.keep(0, now);
        visit.output("sysctl(oldval)", old, room, now);
    }
}
