//! Files by name: opened, made, removed, asked about.

use crate::rule::{by, bytes, count_of, input, output, text};
use crate::shape::{STAT, STATFS, STATX, TIMEVAL};
use crate::table::syscalls;
use crate::visit::Visit;

const AT_EMPTY_PATH: u64 = 0x1000;

syscalls! {
    /// Files by name.
    FILE:
    2 open(filename: ptr, flags: int, mode: int) [text(filename)] registers open_registers is OPENS | BLOCKS;
    4 stat(file_name: ptr, buf: ptr) [text(file_name), output(buf, bytes(STAT))];
    5 fstat(fd: uint, buf: ptr) [output(buf, bytes(STAT))];
    6 lstat(file_name: ptr, buf: ptr) [text(file_name), output(buf, bytes(STAT))];
    21 access(pathname: ptr, mode: int) [text(pathname)];
    76 truncate(path: ptr, length: ulong) [text(path)] is BLOCKS;
    78 getdents(fd: uint, dirp: ptr, count: uint) [output(dirp, count_of(count)).result()];
    79 getcwd(buf: ptr, size: ulong) [output(buf, count_of(size)).result()];
    80 chdir(path: ptr) [text(path)];
    81 fchdir(fd: uint);
    82 rename(oldpath: ptr, newpath: ptr) [text(oldpath), text(newpath)];
    83 mkdir(pathname: ptr, mode: int) [text(pathname)];
    84 rmdir(pathname: ptr) [text(pathname)];
    85 creat(pathname: ptr, mode: int) [text(pathname)] is OPENS | BLOCKS;
    86 link(oldpath: ptr, newpath: ptr) [text(oldpath), text(newpath)];
    87 unlink(pathname: ptr) [text(pathname)];
    88 symlink(oldpath: ptr, newpath: ptr) [text(oldpath), text(newpath)];
    89 readlink(path: ptr, buf: ptr, bufsiz: int) [text(path), output(buf, count_of(bufsiz)).result()];
    90 chmod(path: ptr, mode: uint) [text(path)];
    91 fchmod(fildes: uint, mode: uint);
    92 chown(path: ptr, owner: uint, group: uint) [text(path)];
    93 fchown(fd: uint, owner: uint, group: uint);
    94 lchown(path: ptr, owner: uint, group: uint) [text(path)];
    95 umask(mask: int);
    132 utime(filename: ptr, buf: ptr) [text(filename), input(buf, bytes(16)).or_null()];
    133 mknod(pathname: ptr, mode: int, dev: uint) [text(pathname)];
    136 ustat(dev: uint, ubuf: ptr) [output(ubuf, bytes(32))];
    137 statfs(path: ptr, buf: ptr) [text(path), output(buf, bytes(STATFS))];
    138 fstatfs(fd: uint, buf: ptr) [output(buf, bytes(STATFS))];
    161 chroot(path: ptr) [text(path)];
    162 sync() is BLOCKS;
    217 getdents64(fd: uint, dirp: ptr, count: uint) [output(dirp, count_of(count)).result()];
    235 utimes(filename: ptr, tvp: ptr) [text(filename), by(utimes)];
    253 inotify_init() is OPENS;
    254 inotify_add_watch(fd: int, path: ptr, mask: int) [text(path)];
    255 inotify_rm_watch(fd: int, wd: int);
    257 openat(dfd: int, filename: ptr, flags: int, mode: int) [text(filename)] registers openat_registers
        is OPENS | BLOCKS;
    258 mkdirat(dfd: int, pathname: ptr, mode: int) [text(pathname)];
    259 mknodat(dfd: int, pathname: ptr, mode: int, dev: uint) [text(pathname)];
    260 fchownat(dfd: int, path: ptr, owner: uint, group: uint, flag: int) [text(path).or_null_if(flag, AT_EMPTY_PATH)];
    261 futimesat(dfd: int, filename: ptr, tvp: ptr)
        [text(filename).or_null(), input(tvp, bytes(2 * TIMEVAL)).or_null()];
    262 newfstatat as "fstatat"(dfd: int, file_name: ptr, buf: ptr, flag: int)
        [text(file_name).or_null_if(flag, AT_EMPTY_PATH), output(buf, bytes(STAT))];
    263 unlinkat(dfd: int, pathname: ptr, flag: int) [text(pathname)];
    264 renameat(olddfd: int, oldpath: ptr, newdfd: int, newpath: ptr) [text(oldpath), text(newpath)];
    265 linkat(olddfd: int, oldpath: ptr, newdfd: int, newpath: ptr, flags: int) [text(oldpath), text(newpath)];
    266 symlinkat(oldpath: ptr, newdfd: int, newpath: ptr) [text(oldpath), text(newpath)];
    267 readlinkat(dfd: int, path: ptr, buf: ptr, bufsiz: int) [text(path), output(buf, count_of(bufsiz)).result()];
    268 fchmodat(dfd: int, path: ptr, mode: uint) [text(path)];
    269 faccessat(dfd: int, pathname: ptr, mode: int) [text(pathname)];
    280 utimensat(dfd: int, filename: ptr, utimes: ptr, flags: int) [text(filename).or_null(), by(utimensat)];
    294 inotify_init1 as "inotify_init"(flag: int) is OPENS;
    300 fanotify_init(flags: uint, event_f_flags: uint) is OPENS;
    301 fanotify_mark as "sys_fanotify_mark"(fanotify_fd: int, flags: uint, mask: ulong, dfd: int, pathname: ptr)
        [text(pathname).or_null().called("fanotify_mark(path)")];
    303 name_to_handle_at(dfd: int, name: ptr, handle: ptr, mnt_id: ptr, flag: int) [text(name), by(name_to_handle_at)];
    304 open_by_handle_at(mountdirfd: int, handle: ptr, flags: int) [by(open_by_handle_at)] is OPENS | BLOCKS;
    316 renameat2(olddfd: int, oldpath: ptr, newdfd: int, newpath: ptr, flags: uint) [text(oldpath), text(newpath)];
    332 statx(dirfd: int, filename: ptr, flags: int, mask: uint, buf: ptr)
        [by(statx)];
    437 openat2(dfd: int, filename: ptr, how: ptr, usize: ulong) [text(filename), input(how, count_of(usize))]
        is OPENS | BLOCKS;
    439 faccessat2(dfd: int, pathname: ptr, mode: int, flags: int) [text(pathname).or_null_if(flags, AT_EMPTY_PATH)];
    451 cachestat(fd: uint, cstat_range: ptr, cstat: ptr, flags: uint)
        [input(cstat_range, bytes(16)), output(cstat, bytes(40))];
    452 fchmodat2(dfd: int, path: ptr, mode: uint, flags: uint) [text(path).or_null_if(flags, AT_EMPTY_PATH)];
    468 file_getattr(dfd: int, filename: ptr, ufattr: ptr, usize: ulong, at_flags: uint)
        [text(filename).or_null_if(at_flags, AT_EMPTY_PATH), output(ufattr, count_of(usize))];
    469 file_setattr(dfd: int, filename: ptr, ufattr: ptr, usize: ulong, at_flags: uint)
        [text(filename).or_null_if(at_flags, AT_EMPTY_PATH), input(ufattr, count_of(usize))];
}

const O_CREAT: u64 = 0o100;
/// `O_TMPFILE` without the bit of `O_DIRECTORY`.
const O_TMPFILE: u64 = 0o20_000_000;

fn open_registers(args: &[u64; 6]) -> u8 {
    if args[1] & (O_CREAT | O_TMPFILE) == 0 { 0b011 } else { 0b111 }
}

fn openat_registers(args: &[u64; 6]) -> u8 {
    if args[2] & (O_CREAT | O_TMPFILE) == 0 { 0b0111 } else { 0b1111 }
}

/// Two null pointers ask whether the kernel has the call at all, as Rust's standard library does; Memcheck says nothing either.
fn statx(visit: &mut Visit<'_>) {
    const PATH_MAX: u64 = 4096;
    let (filename, flags, buf) = (visit.arg(1), visit.arg(2), visit.arg(4));
    if filename == 0 && buf == 0 {
        return;
    }
    if filename != 0 || flags & AT_EMPTY_PATH == 0 {
        visit.text(visit.argument(1), filename, PATH_MAX);
    }
    visit.output(visit.argument(4), buf, STATX.into(), STATX.into());
}

fn utimes(visit: &mut Visit<'_>) {
    let address = visit.arg(1);
    if address != 0 {
        visit.input("utimes(tvp[0])", address, u64::from(TIMEVAL));
        visit.input("utimes(tvp[1])", address.wrapping_add(u64::from(TIMEVAL)), u64::from(TIMEVAL));
    }
}

/// Where `tv_nsec` says "now" or "leave it", `tv_sec` decides nothing.
fn utimensat(visit: &mut Visit<'_>) {
    const UTIME_NOW: u64 = (1 << 30) - 1;
    const UTIME_OMIT: u64 = (1 << 30) - 2;
    let address = visit.arg(2);
    if address == 0 {
        return;
    }
    let fractions = [address.wrapping_add(8), address.wrapping_add(24)];
    visit.input("utimensat(times[0].tv_nsec)", fractions[0], 8);
    visit.input("utimensat(times[1].tv_nsec)", fractions[1], 8);
    let names = ["utimensat(times[0].tv_sec)", "utimensat(times[1].tv_sec)"];
    for ((name, at), seconds) in names.into_iter().zip(fractions).zip([address, address.wrapping_add(16)]) {
        match visit.u64_at(at) {
            Some(UTIME_NOW | UTIME_OMIT) => visit.copied(name, seconds, 8),
            Some(_) => visit.input(name, seconds, 8),
            None => {}
        }
    }
}

/// `struct file_handle`: the bytes that fit, a type, the bytes.
const HANDLE_HEAD: u64 = 8;
/// `MAX_HANDLE_SZ`: more is refused.
const MOST_HANDLE: u64 = 128;

/// The handle is written if it fits; if not, its head says how much would have been needed. The mount's number is
/// written in both cases, in 8 bytes if that is asked for.
fn name_to_handle_at(visit: &mut Visit<'_>) {
    const EOVERFLOW: i64 = 75;
    const AT_HANDLE_MNT_ID_UNIQUE: u64 = 1;
    let (handle, mount) = (visit.arg(2), visit.arg(3));
    visit.input("name_to_handle_at(handle)", handle, 4);
    let now = visit.u32_or_0(handle);
    let room = visit.keep(0, now);
    if room > MOST_HANDLE {
        return;
    }
    let does_not_fit = visit.error() == EOVERFLOW;
    visit.output("name_to_handle_at(handle)", handle, HANDLE_HEAD + room, HANDLE_HEAD + now);
    if !visit.is_before() && does_not_fit {
        visit.output_if("name_to_handle_at(handle)", handle, HANDLE_HEAD, true);
    }
    let size = if visit.arg(4) & AT_HANDLE_MNT_ID_UNIQUE == 0 { 4 } else { 8 };
    visit.output_if("name_to_handle_at(mnt_id)", mount, size, does_not_fit || visit.error() == 0);
}

fn open_by_handle_at(visit: &mut Visit<'_>) {
    let handle = visit.arg(1);
    let size = visit.u32_or_0(handle).min(MOST_HANDLE);
    visit.input("open_by_handle_at(handle)", handle, HANDLE_HEAD + size);
}
