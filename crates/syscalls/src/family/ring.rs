//! Asynchronous input and output: `io_submit` and its like, and `io_uring`.
//!
//! What `io_uring` moves is told by entries in shared memory, which the kernel may read at any time: no call's rules
//! can describe it. An engine either follows the rings or answers ENOSYS to `io_uring_setup`, as programs expect of
//! older kernels.

use crate::rule::{by, bytes, inout, input, output, times};
use crate::shape::{IOVEC, Moves, TIMESPEC, iovecs};
use crate::table::syscalls;
use crate::visit::Visit;

const IO_EVENT: u32 = 32;
const IOCB: u64 = 64;

syscalls! {
    /// Asynchronous input and output.
    RING:
    206 io_setup(nr_events: uint, ctxp: ptr) [inout(ctxp, bytes(8))] is ADDRESS_SPACE;
    207 io_destroy(ctx: ulong) is ADDRESS_SPACE | BLOCKS;
    208 io_getevents(ctx_id: ulong, min_nr: long, nr: long, events: ptr, timeout: ptr)
        [output(events, times(nr, IO_EVENT)).results(IO_EVENT), input(timeout, bytes(TIMESPEC)).or_null(),
         by(completed)] is BLOCKS;
    209 io_submit(ctx_id: ulong, nr: long, iocbpp: ptr) [input(iocbpp, times(nr, 8)), by(io_submit)] is BLOCKS | LATER;
    210 io_cancel(ctx_id: ulong, iocb: ptr, result: ptr) [input(iocb, bytes(64)), output(result, bytes(IO_EVENT))];
    333 io_pgetevents(ctx_id: ulong, min_nr: long, nr: long, events: ptr, timeout: ptr, usig: ptr)
        [output(events, times(nr, IO_EVENT)).results(IO_EVENT), input(timeout, bytes(TIMESPEC)).or_null(),
         by(completed), by(event_signals)] is BLOCKS;
    425 io_uring_setup(entries: uint, p: ptr) [by(io_uring_setup)] is OPENS | LATER | ENGINE;
    426 io_uring_enter(fd: uint, to_submit: uint, min_complete: uint, flags: uint, sig: ptr, sigsz: ulong)
        [by(io_uring_enter)] is BLOCKS | LATER | ENGINE;
    427 io_uring_register(fd: uint, opcode: uint, arg: ptr, nr_args: uint) [by(io_uring_register)]
        is BLOCKS | LATER | ENGINE;
}

const PREAD: u64 = 0;
const PWRITE: u64 = 1;
const PREADV: u64 = 7;
const PWRITEV: u64 = 8;

/// `struct iocb`: operation, buffer, bytes.
fn control_block(visit: &Visit<'_>, at: u64) -> Option<(u64, u64, u64)> {
    let word = |offset| visit.u64_at(at.wrapping_add(offset));
    Some((visit.u16_at(at.wrapping_add(16))?, word(24)?, word(32)?))
}

/// Each control block is read, and its key is written. Buffers are written when the operation has ended: [`completed`].
fn io_submit(visit: &mut Visit<'_>) {
    let count = if visit.is_before() { visit.count(1) } else { visit.returned() };
    for index in 0..count {
        let place = visit.arg(2).wrapping_add(index.wrapping_mul(8));
        let Some(at) = visit.u64_at(place) else { return };
        if !visit.step() {
            return;
        }
        visit.input("io_submit(iocb)", at, IOCB);
        if !visit.is_before() {
            visit.whole("io_submit(iocb)", at.wrapping_add(8), 4);
        }
        let Some((operation, buffer, size)) = control_block(visit, at) else { continue };
        let vector = (buffer, size);
        match operation {
            PREAD => visit.output("io_submit(PREAD)", buffer, size, 0),
            PWRITE => visit.input("io_submit(PWRITE)", buffer, size),
            PREADV if visit.is_before() => {
                iovecs(visit, "io_submit(PREADV)", |_| "io_submit(PREADV(iov[i]))".into(), vector, Moves::ToTarget(0));
            }
            PWRITEV => {
                iovecs(visit, "io_submit(PWRITEV)", |_| "io_submit(PWRITEV(iov[i]))".into(), vector, Moves::FromTarget);
            }
            _ => {}
        }
    }
}

/// The events name the control blocks that have ended, and how many bytes each moved.
fn completed(visit: &mut Visit<'_>) {
    for index in 0..visit.returned() {
        let event = visit.arg(3).wrapping_add(index.wrapping_mul(u64::from(IO_EVENT)));
        let (Some(at), Some(moved)) = (visit.u64_at(event.wrapping_add(8)), visit.u64_at(event.wrapping_add(16)))
        else {
            return;
        };
        if !visit.step() {
            return;
        }
        let Ok(moved) = u64::try_from(moved as i64) else { continue };
        match control_block(visit, at) {
            Some((PREAD, buffer, size)) => visit.output("io_submit(PREAD)", buffer, size, moved),
            Some((PREADV, vector, count)) => {
                let name = |_| "io_submit(PREADV(iov[i]))".into();
                iovecs(visit, "io_submit(PREADV)", name, (vector, count), Moves::ToTarget(moved));
            }
            _ => {}
        }
    }
}

/// `struct __aio_sigset`: a mask's address and size.
fn event_signals(visit: &mut Visit<'_>) {
    let pair = visit.arg(5);
    if pair != 0 {
        visit.input("io_pgetevents(usig)", pair, 16);
        let mask = visit.u64_or_0(pair);
        if mask != 0 {
            visit.input("io_pgetevents(usig->sigmask)", mask, 8);
        }
    }
}

/// The first ten words are read; the offsets of the rings behind them are only written, but for their last words.
fn io_uring_setup(visit: &mut Visit<'_>) {
    const PARAMS: u64 = 120;
    visit.input("io_uring_setup(p)", visit.arg(1), 40);
    visit.whole("io_uring_setup(p)", visit.arg(1), PARAMS);
}

fn io_uring_enter(visit: &mut Visit<'_>) {
    const EXT_ARG: u64 = 8;
    const EXT_ARG_REG: u64 = 64;
    let (flags, sig, size) = (visit.arg(3), visit.arg(4), visit.arg(5));
    if sig == 0 || flags & EXT_ARG_REG != 0 {
        return;
    }
    if flags & EXT_ARG == 0 {
        return visit.input("io_uring_enter(sig)", sig, size.min(8));
    }
    // `struct io_uring_getevents_arg`: mask, its size, the shortest wait, a time.
    visit.input("io_uring_enter(sig)", sig, size.min(24));
    let (mask, time) = (visit.u64_or_0(sig), visit.u64_or_0(sig.wrapping_add(16)));
    if mask != 0 {
        visit.input("io_uring_enter(sig->sigmask)", mask, 8);
    }
    if time != 0 {
        visit.input("io_uring_enter(sig->ts)", time, 16);
    }
}

/// All entries must be zero; as many as there are operations are written, and their number is in the second byte.
fn probe(visit: &mut Visit<'_>, name: &'static str, address: u64, count: u64) {
    let size = 16 + count * 8;
    visit.input(name, address, size);
    let mut operations = [0];
    if visit.is_before() || visit.memory().read_bytes(address.wrapping_add(1), &mut operations) {
        visit.output(name, address, size, 16 + u64::from(operations[0]) * 8);
    }
}

/// By opcode; the highest bit only says that the ring is named by its registered index.
fn io_uring_register(visit: &mut Visit<'_>) {
    let (arg, count) = (visit.arg(2), visit.arg(3));
    let name = "io_uring_register(arg)";
    match visit.arg(1) & 0x7fff_ffff {
        // BUFFERS.
        0 => visit.input(name, arg, count.min(1 << 14) * IOVEC),
        // FILES, FILES_UPDATE and its descriptors, EVENTFD, EVENTFD_ASYNC.
        2 => visit.input(name, arg, count * 4),
        4 | 7 => visit.input(name, arg, 4),
        6 => {
            visit.input(name, arg, 16);
            let descriptors = visit.u64_or_0(arg.wrapping_add(8));
            visit.input("io_uring_register(arg->fds)", descriptors, count * 4);
        }
        // PROBE.
        8 => probe(visit, name, arg, count.min(256)),
        // RESTRICTIONS, FILES2, FILES_UPDATE2, BUFFERS2, BUFFERS_UPDATE.
        11 => visit.input(name, arg, count * 16),
        13..=16 => visit.input(name, arg, 32),
        // IOWQ_AFF, IOWQ_MAX_WORKERS, RING_FDS, UNREGISTER_RING_FDS.
        17 => visit.input(name, arg, count),
        19 => visit.inout(name, arg, 8),
        20 => visit.inout(name, arg, count.min(16) * 16),
        21 => visit.input(name, arg, count.min(16) * 16),
        // PBUF_RING, UNREGISTER_PBUF_RING, SYNC_CANCEL, FILE_ALLOC_RANGE, PBUF_STATUS.
        22 | 23 => visit.input(name, arg, 40),
        24 => visit.input(name, arg, 64),
        25 => visit.input(name, arg, 16),
        26 => visit.inout(name, arg, 40),
        // NAPI, UNREGISTER_NAPI, CLOCK, CLONE_BUFFERS, RESIZE_RINGS.
        27 => visit.inout(name, arg, 16),
        28 => visit.whole(name, arg, 16),
        29 => visit.input(name, arg, 16),
        30 => visit.input(name, arg, 32),
        33 => visit.inout(name, arg, 120),
        // MEM_REGION: a structure that names another.
        34 => {
            visit.input(name, arg, 32);
            let region = visit.u64_or_0(arg);
            visit.inout("io_uring_register(arg->region_uptr)", region, 64);
        }
        _ => {}
    }
}
