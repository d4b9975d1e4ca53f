//! Descriptors as such: made, copied, closed, controlled.

use crate::fcntl::{fcntl, fcntl_names, fcntl_registers};
use crate::ioctl::{ioctl, ioctl_registers};
use crate::rule::{by, bytes, output, text_of};
use crate::table::syscalls;

/// The longest name of a memfd: what fits a file's name beside `memfd:`, and the zero.
const MEMFD_NAME: u32 = 250;

syscalls! {
    /// Descriptors as such.
    DESCRIPTOR:
    3 close(fd: uint) is CLOSES;
    16 ioctl(fd: uint, request: uint, arg: ulong) [by(ioctl)] registers ioctl_registers is BLOCKS | OPENS;
    22 pipe(filedes: ptr) [output(filedes, bytes(8))] is OPENS;
    32 dup(oldfd: uint) is OPENS;
    33 dup2(oldfd: uint, newfd: uint) is OPENS | CLOSES;
    72 fcntl(fd: uint, cmd: uint, arg: ulong) [by(fcntl)] registers fcntl_registers names fcntl_names
        is BLOCKS | OPENS;
    73 flock(fd: uint, operation: uint) is BLOCKS;
    74 fsync(fd: uint) is BLOCKS;
    75 fdatasync(fd: uint) is BLOCKS;
    77 ftruncate(fd: uint, length: ulong) is BLOCKS;
    221 fadvise64(fd: int, offset: long, len: ulong, advice: int);
    277 sync_file_range(fd: int, offset: long, nbytes: long, flags: uint) is BLOCKS;
    284 eventfd as "sys_eventfd"(count: uint) is OPENS;
    285 fallocate(fd: int, mode: int, offset: long, len: long) is BLOCKS;
    290 eventfd2 as "sys_eventfd2"(count: uint, flags: int) is OPENS;
    292 dup3(oldfd: uint, newfd: uint, flags: int) is OPENS | CLOSES;
    293 pipe2 as "pipe"(filedes: ptr, flags: int) [output(filedes, bytes(8)).called("pipe2(filedes)")] is OPENS;
    306 syncfs(fd: uint) is BLOCKS;
    319 memfd_create(uname: ptr, flags: uint) [text_of(uname, MEMFD_NAME)] is OPENS;
    436 close_range(first: uint, last: uint, flags: uint) is CLOSES;
}
