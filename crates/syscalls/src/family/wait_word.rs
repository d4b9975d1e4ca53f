//! Futexes and what belongs to threads' locks.

use crate::rule::{by, bytes, input, output};
use crate::shape::TIMESPEC;
use crate::table::syscalls;
use crate::visit::Visit;

syscalls! {
    /// Futexes and what belongs to threads' locks.
    WAIT_WORD:
    202 futex(futex: ptr, op: int, val: int, utime: ptr, uaddr2: ptr, val3: int) [by(futex_word)]
        registers futex_registers is BLOCKS;
    273 set_robust_list(head: ptr, len: ulong) [input(head, bytes(24))] is ENGINE;
    274 get_robust_list(pid: int, head_ptr: ptr, len_ptr: ptr) [output(head_ptr, bytes(8)), output(len_ptr, bytes(8))];
    334 rseq(rseq: ptr, rseq_len: uint, flags: int, sig: uint) is ENGINE | LATER;
    449 futex_waitv(waiters: ptr, nr_futexes: uint, flags: uint, timeout: ptr, clockid: int)
        [by(futex_waitv), input(timeout, bytes(TIMESPEC)).or_null()] is BLOCKS;
    454 futex_wake(uaddr: ptr, mask: ulong, nr: int, flags: uint);
    455 futex_wait(uaddr: ptr, val: ulong, mask: ulong, flags: uint, timeout: ptr, clockid: int)
        [by(futex_wait), input(timeout, bytes(TIMESPEC)).or_null()] is BLOCKS;
    456 futex_requeue(waiters: ptr, flags: uint, nr_wake: int, nr_requeue: int) [by(futex_requeue)];
}

const WAIT: u64 = 0;
const WAKE: u64 = 1;
const REQUEUE: u64 = 3;
const CMP_REQUEUE: u64 = 4;
const WAKE_OP: u64 = 5;
const LOCK_PI: u64 = 6;
const UNLOCK_PI: u64 = 7;
const TRYLOCK_PI: u64 = 8;
const WAIT_BITSET: u64 = 9;
const WAKE_BITSET: u64 = 10;
const WAIT_REQUEUE_PI: u64 = 11;
const CMP_REQUEUE_PI: u64 = 12;
const LOCK_PI2: u64 = 13;
/// Without `FUTEX_PRIVATE_FLAG` and `FUTEX_CLOCK_REALTIME`.
const OPERATION: u64 = 0x7f;

fn futex_registers(args: &[u64; 6]) -> u8 {
    match args[1] & OPERATION {
        CMP_REQUEUE | WAKE_OP | CMP_REQUEUE_PI => 0b11_1111,
        REQUEUE => 0b01_1111,
        WAIT_BITSET => 0b10_1111,
        WAIT_REQUEUE_PI => 0b01_1111,
        WAIT | LOCK_PI | LOCK_PI2 => 0b00_1111,
        WAKE => 0b00_0111,
        WAKE_BITSET => 0b10_0111,
        _ => 0b00_0011,
    }
}

/// The kernel looks at a futex's value where it waits, compares or takes a lock, and changes it where it gives one.
/// To wake, the address is enough; Memcheck reads the word there too, and an undefined one is worth a word.
fn futex_word(visit: &mut Visit<'_>) {
    let (word, time, second) = (visit.arg(0), visit.arg(3), visit.arg(4));
    let operation = visit.arg(1) & OPERATION;
    match operation {
        WAIT | WAIT_BITSET | WAKE | WAKE_BITSET => visit.input("futex(futex)", word, 4),
        LOCK_PI | LOCK_PI2 | TRYLOCK_PI | UNLOCK_PI => visit.inout("futex(futex)", word, 4),
        REQUEUE | CMP_REQUEUE => {
            visit.input("futex(futex)", word, 4);
            visit.input("futex(futex2)", second, 4);
        }
        WAKE_OP | CMP_REQUEUE_PI | WAIT_REQUEUE_PI => {
            visit.input("futex(futex)", word, 4);
            visit.inout("futex(futex2)", second, 4);
        }
        _ => {}
    }
    let waits = [WAIT, WAIT_BITSET, WAIT_REQUEUE_PI, LOCK_PI, LOCK_PI2].contains(&operation);
    if waits && time != 0 {
        visit.input("futex(timeout)", time, u64::from(TIMESPEC));
    }
}

/// Bytes of a futex of the newer calls.
fn word_bytes(flags: u64) -> u64 {
    1 << (flags & 3)
}

fn futex_wait(visit: &mut Visit<'_>) {
    visit.input("futex_wait(uaddr)", visit.arg(0), word_bytes(visit.arg(3)));
}

/// `struct futex_waitv`: value, address, flags, nothing.
fn waiters(visit: &mut Visit<'_>, array: &'static str, word: &'static str, count: u64) {
    const WAITER: u64 = 24;
    const MOST: u64 = 128;
    if count > MOST {
        return;
    }
    visit.input(array, visit.arg(0), count * WAITER);
    for index in 0..count {
        let at = visit.arg(0).wrapping_add(index * WAITER);
        let (Some(address), Some(flags)) = (visit.u64_at(at.wrapping_add(8)), visit.u32_at(at.wrapping_add(16))) else {
            return;
        };
        visit.input(word, address, word_bytes(flags));
    }
}

fn futex_waitv(visit: &mut Visit<'_>) {
    waiters(visit, "futex_waitv(waiters)", "futex_waitv(waiters[...].uaddr)", visit.arg(1));
}

fn futex_requeue(visit: &mut Visit<'_>) {
    waiters(visit, "futex_requeue(waiters)", "futex_requeue(waiters[...].uaddr)", 2);
}
