//! Bytes through descriptors: `read`, `write`, their vectors, and what moves bytes inside the kernel.

use crate::region::Param;
use crate::rule::{by, bytes, count_of, inout, input, output};
use crate::shape::{IOVEC, Moves, iovecs};
use crate::table::syscalls;
use crate::visit::Visit;

syscalls! {
    /// Bytes through descriptors.
    STREAM:
    0 read(fd: uint, buf: ptr, count: ulong) [output(buf, count_of(count)).result()] is BLOCKS;
    1 write(fd: uint, buf: ptr, count: ulong) [input(buf, count_of(count))] is BLOCKS;
    8 lseek(fd: uint, offset: long, whence: uint);
    17 pread64(fd: uint, buf: ptr, count: ulong, offset: long) [output(buf, count_of(count)).result()] is BLOCKS;
    18 pwrite64(fd: uint, buf: ptr, count: ulong, offset: long) [input(buf, count_of(count))] is BLOCKS;
    19 readv(fd: ulong, vector: ptr, count: ulong) [by(readv)] is BLOCKS;
    20 writev(fd: ulong, vector: ptr, count: ulong) [by(writev)] is BLOCKS;
    40 sendfile(out_fd: int, in_fd: int, offset: ptr, count: ulong) [inout(offset, bytes(8)).or_null()] is BLOCKS;
    187 readahead(fd: int, offset: long, count: ulong) is BLOCKS;
    275 splice(fd_in: int, off_in: ptr, fd_out: int, off_out: ptr, len: ulong, flags: uint)
        [inout(off_in, bytes(8)).or_null(), inout(off_out, bytes(8)).or_null()] is BLOCKS;
    276 tee(fd_in: int, fd_out: int, len: ulong, flags: uint) is BLOCKS;
    278 vmsplice(fd: int, iov: ptr, nr_segs: ulong, flags: uint) [by(vmsplice)] is BLOCKS;
    295 preadv(fd: ulong, vector: ptr, count: ulong, offset: long) [by(preadv)] is BLOCKS;
    296 pwritev(fd: ulong, vector: ptr, count: ulong, offset: long) [by(pwritev)] is BLOCKS;
    318 getrandom(buf: ptr, count: ulong, flags: uint)
        [output(buf, count_of(count)).result().called("getrandom(cpu)")] is BLOCKS;
    326 copy_file_range(fd_in: int, off_in: ptr, fd_out: int, off_out: ptr, len: ulong, flags: uint)
        [inout(off_in, bytes(8)).or_null(), inout(off_out, bytes(8)).or_null()] is BLOCKS;
    327 preadv2(fd: ulong, vector: ptr, count: ulong, offset: long, offset_high: long, flags: uint) [by(preadv2)]
        registers all_but_high is BLOCKS;
    328 pwritev2(fd: ulong, vector: ptr, count: ulong, offset: long, offset_high: long, flags: uint) [by(pwritev2)]
        registers all_but_high is BLOCKS;
}

/// Half an offset for machines on which it takes two registers; nobody looks at it here.
fn all_but_high(_: &[u64; 6]) -> u8 {
    0b10_1111
}

/// A vector in arguments 1 and 2. Memcheck numbers the elements of some of the calls' vectors.
fn vector(visit: &mut Visit<'_>, array: &'static str, element: &'static str, moves: Moves) {
    let at = (visit.arg(1), visit.arg(2));
    iovecs(visit, array, |index| Param::indexed(element, [index, 0]), at, moves);
}

fn readv(visit: &mut Visit<'_>) {
    let returned = visit.returned();
    vector(visit, "readv(vector)", "readv(vector[...])", Moves::ToTarget(returned));
}

fn writev(visit: &mut Visit<'_>) {
    vector(visit, "writev(vector)", "writev(vector[...])", Moves::FromTarget);
}

fn preadv(visit: &mut Visit<'_>) {
    let returned = visit.returned();
    vector(visit, "preadv(vector)", "preadv(vector[#])", Moves::ToTarget(returned));
}

fn pwritev(visit: &mut Visit<'_>) {
    vector(visit, "pwritev(vector)", "pwritev(vector[#])", Moves::FromTarget);
}

fn preadv2(visit: &mut Visit<'_>) {
    let returned = visit.returned();
    vector(visit, "preadv2(vector)", "preadv2(vector[#])", Moves::ToTarget(returned));
}

fn pwritev2(visit: &mut Visit<'_>) {
    vector(visit, "pwritev2(vector)", "pwritev2(vector[#])", Moves::FromTarget);
}

/// Into a pipe's writing end the target's bytes go, from its reading end they come: only the descriptor tells.
fn vmsplice(visit: &mut Visit<'_>) {
    let moves = match visit.memory().is_writable(visit.int(0) as i32) {
        Some(true) => Moves::FromTarget,
        Some(false) => Moves::ToTarget(visit.returned()),
        None => return visit.input("vmsplice(iov)", visit.arg(1), visit.arg(2).min(1024) * IOVEC),
    };
    vector(visit, "vmsplice(iov)", "vmsplice(iov[...])", moves);
}
