//! Waiting for descriptors: `poll`, `select`, `epoll`, and what is told by them.

use crate::rule::{by, bytes, input, output, times};
use crate::shape::{SIGSET, TIMESPEC};
use crate::table::syscalls;
use crate::visit::Visit;

/// `struct epoll_event` is packed on x86-64.
const EPOLL_EVENT: u32 = 12;

syscalls! {
    /// Waiting for descriptors.
    POLL:
    7 poll(ufds: ptr, nfds: uint, timeout: int) [by(poll)] is BLOCKS;
    23 select(n: int, readfds: ptr, writefds: ptr, exceptfds: ptr, timeout: ptr) [by(select)] is BLOCKS;
    213 epoll_create(size: int) is OPENS;
    232 epoll_wait(epfd: int, events: ptr, maxevents: int, timeout: int)
        [output(events, times(maxevents, EPOLL_EVENT)).results(EPOLL_EVENT)] is BLOCKS;
    233 epoll_ctl(epfd: int, op: int, fd: int, event: ptr) [by(epoll_ctl)];
    270 pselect6(n: int, readfds: ptr, writefds: ptr, exceptfds: ptr, timeout: ptr, sig: ptr) [by(pselect6)] is BLOCKS;
    271 ppoll(ufds: ptr, nfds: uint, tsp: ptr, sigmask: ptr, sigsetsize: ulong) [by(ppoll)] is BLOCKS;
    281 epoll_pwait(epfd: int, events: ptr, maxevents: int, timeout: int, sigmask: ptr, sigsetsize: ulong)
        [output(events, times(maxevents, EPOLL_EVENT)).results(EPOLL_EVENT), input(sigmask, bytes(SIGSET)).or_null()]
        is BLOCKS;
    291 epoll_create1(flags: int) is OPENS;
    441 epoll_pwait2(epfd: int, events: ptr, maxevents: int, timeout: ptr, sigmask: ptr, sigsetsize: ulong)
        [output(events, times(maxevents, EPOLL_EVENT)).results(EPOLL_EVENT), input(timeout, bytes(TIMESPEC)).or_null(),
         input(sigmask, bytes(SIGSET)).or_null()] is BLOCKS;
}

const POLLFD: u64 = 8;

/// The kernel copies all of each element and writes all of its `revents`, also if a signal ends the wait.
fn pollfds(visit: &mut Visit<'_>, [fd, events, revents]: [&'static str; 3]) {
    let address = visit.arg(0);
    for index in 0..visit.arg(1) {
        let at = address.wrapping_add(index.wrapping_mul(POLLFD));
        if !visit.step() {
            return;
        }
        // The first element that is not there says it for all behind it.
        let value = visit.u32_at(at);
        visit.input(fd, at, 4);
        if value.is_none_or(|value| value as i32 >= 0) {
            visit.input(events, at.wrapping_add(4), 2);
        }
        let happened = visit.error() == 0 || visit.was_interrupted();
        visit.output_if(revents, at.wrapping_add(6), 2, happened);
        if value.is_none() {
            return;
        }
    }
}

fn poll(visit: &mut Visit<'_>) {
    pollfds(visit, ["poll(ufds.fd)", "poll(ufds.events)", "poll(ufds.revents)"]);
}

fn ppoll(visit: &mut Visit<'_>) {
    pollfds(visit, ["ppoll(ufds.fd)", "ppoll(ufds.events)", "ppoll(ufds.revents)"]);
    remaining(visit, "ppoll(tsp)", 2);
    if visit.arg(3) != 0 {
        visit.input("ppoll(sigmask)", visit.arg(3), visit.arg(4).min(u64::from(SIGSET)));
    }
}

/// A time-out that the kernel reads, and in which it leaves what remains of it, however the wait ends.
fn remaining(visit: &mut Visit<'_>, name: &'static str, index: usize) {
    let address = visit.arg(index);
    if address == 0 {
        return;
    }
    visit.input(name, address, u64::from(TIMESPEC));
    // No time is no wait: nothing is written back.
    let seconds = visit.u64_or_0(address);
    let fraction = visit.u64_or_0(address.wrapping_add(8));
    let waits = visit.keep(0, u64::from(seconds != 0 || fraction != 0)) != 0;
    const EINVAL: i64 = 22;
    if !visit.is_before() && waits && visit.error() != EINVAL {
        visit.output_if(name, address, u64::from(TIMESPEC), true);
    }
}

/// The sets are read and written in whole words, but only the bits of the first `n` descriptors count.
fn sets(visit: &mut Visit<'_>, names: [&'static str; 3]) {
    let bits = visit.count(0);
    for (name, index) in names.into_iter().zip(1..) {
        let address = visit.arg(index);
        if address != 0 {
            visit.input(name, address, bits.div_ceil(8));
            visit.whole(name, address, bits.div_ceil(64) * 8);
        }
    }
}

fn select(visit: &mut Visit<'_>) {
    sets(visit, ["select(readfds)", "select(writefds)", "select(exceptfds)"]);
    remaining(visit, "select(timeout)", 4);
}

fn pselect6(visit: &mut Visit<'_>) {
    sets(visit, ["pselect6(readfds)", "pselect6(writefds)", "pselect6(exceptfds)"]);
    remaining(visit, "pselect6(timeout)", 4);
    let pair = visit.arg(5);
    if pair != 0 {
        visit.input("pselect6(sig)", pair, 16);
        let (mask, size) = (visit.u64_or_0(pair), visit.u64_or_0(pair.wrapping_add(8)));
        if mask != 0 {
            visit.input("pselect6(sig->ss)", mask, size.min(u64::from(SIGSET)));
        }
    }
}

/// The data of an event goes back to the target as it came: it may be partly undefined (the union's `fd` alone is set).
fn epoll_ctl(visit: &mut Visit<'_>) {
    const EPOLL_CTL_DEL: i64 = 2;
    if visit.int(1) != EPOLL_CTL_DEL {
        visit.input("epoll_ctl(event)", visit.arg(3), 4);
        visit.copied("epoll_ctl(event)", visit.arg(3), u64::from(EPOLL_EVENT));
    }
}
