//! Mounts, namespaces, quotas.

use crate::rule::{by, count_of, input, output, text, times};
use crate::table::syscalls;
use crate::visit::Visit;

const AT_EMPTY_PATH: u64 = 0x1000;

syscalls! {
    /// Mounts and namespaces.
    MOUNT:
    155 pivot_root(new_root: ptr, old_root: ptr) [text(new_root), text(old_root)];
    165 mount(source: ptr, target: ptr, r#type: ptr, flags: ulong, data: ptr) [by(mount)] is BLOCKS;
    166 umount2(path: ptr, flags: int) [text(path)] is BLOCKS;
    167 swapon(specialfile: ptr, swap_flags: int) [text(specialfile)] is BLOCKS;
    168 swapoff(specialfile: ptr) [text(specialfile)] is BLOCKS;
    179 quotactl(cmd: uint, special: ptr, id: uint, addr: ptr) [text(special).or_null(), by(quotactl)];
    272 unshare(flags: ulong);
    308 setns(fd: int, nstype: int);
    428 open_tree(dfd: int, filename: ptr, flags: uint) [text(filename).or_null_if(flags, AT_EMPTY_PATH)] is OPENS;
    429 move_mount(from_dfd: int, from_pathname: ptr, to_dfd: int, to_pathname: ptr, flags: uint) [by(move_mount)];
    430 fsopen(fs_name: ptr, flags: uint) [text(fs_name)] is OPENS;
    431 fsconfig(fd: int, cmd: uint, key: ptr, value: ptr, aux: int) [by(fsconfig)] is BLOCKS;
    432 fsmount(fs_fd: int, flags: uint, attr_flags: uint) is OPENS | BLOCKS;
    433 fspick(dfd: int, path: ptr, flags: uint) [text(path)] is OPENS;
    442 mount_setattr(dfd: int, path: ptr, flags: uint, uattr: ptr, usize: ulong)
        [text(path).or_null_if(flags, AT_EMPTY_PATH), input(uattr, count_of(usize))];
    443 quotactl_fd(fd: uint, cmd: uint, id: uint, addr: ptr) [by(quotactl_fd)];
    457 statmount(req: ptr, buf: ptr, bufsize: ulong, flags: uint) [by(statmount)];
    458 listmount(req: ptr, mnt_ids: ptr, nr_mnt_ids: ulong, flags: uint)
        [by(listmount), output(mnt_ids, times(nr_mnt_ids, 8)).results(8)];
    467 open_tree_attr(dfd: int, filename: ptr, flags: uint, uattr: ptr, usize: ulong)
        [text(filename).or_null_if(flags, AT_EMPTY_PATH), input(uattr, count_of(usize)).or_null()] is OPENS;
}

/// The data of a mount are up to a page that each filesystem reads as it likes, most as a string: not checked.
fn mount(visit: &mut Visit<'_>) {
    const MS_REMOUNT_OR_CHANGE: u64 = 0x20 | 0x1000 | 0x2000 | 0x1_e0000;
    let flags = visit.arg(3);
    if visit.arg(0) != 0 {
        visit.text("mount(source)", visit.arg(0), 4096);
    }
    visit.text("mount(target)", visit.arg(1), 4096);
    if flags & MS_REMOUNT_OR_CHANGE == 0 || visit.arg(2) != 0 {
        visit.text("mount(type)", visit.arg(2), 4096);
    }
}

fn move_mount(visit: &mut Visit<'_>) {
    const F_EMPTY_PATH: u64 = 4;
    const T_EMPTY_PATH: u64 = 0x40;
    let flags = visit.arg(4);
    if visit.arg(1) != 0 || flags & F_EMPTY_PATH == 0 {
        visit.text("move_mount(from_pathname)", visit.arg(1), 4096);
    }
    if visit.arg(3) != 0 || flags & T_EMPTY_PATH == 0 {
        visit.text("move_mount(to_pathname)", visit.arg(3), 4096);
    }
}

fn fsconfig(visit: &mut Visit<'_>) {
    const KEY: u64 = 256;
    let (key, value, aux) = (visit.arg(2), visit.arg(3), visit.count(4));
    match visit.arg(1) {
        // FLAG, STRING, BINARY, PATH, PATH_EMPTY, FD: the other commands take neither key nor value.
        0 | 5 => visit.text("fsconfig(key)", key, KEY),
        1 => {
            visit.text("fsconfig(key)", key, KEY);
            visit.text("fsconfig(value)", value, KEY);
        }
        2 => {
            visit.text("fsconfig(key)", key, KEY);
            visit.input("fsconfig(value)", value, aux);
        }
        3 | 4 => {
            visit.text("fsconfig(key)", key, KEY);
            visit.text("fsconfig(value)", value, 4096);
        }
        _ => {}
    }
}

fn quotactl(visit: &mut Visit<'_>) {
    quota(visit, 0);
}

fn quotactl_fd(visit: &mut Visit<'_>) {
    quota(visit, 1);
}

/// The subcommand stands above the type of quota in `cmd`. Structures: `linux/quota.h`, `linux/dqblk_xfs.h`.
fn quota(visit: &mut Visit<'_>, command: usize) {
    let address = visit.arg(3);
    let name = visit.argument(3);
    match visit.arg(command) >> 8 {
        // Q_QUOTAON: a path.
        0x80_0002 => visit.text(name, address, 4096),
        // Q_GETFMT, Q_GETINFO, Q_SETINFO, Q_GETQUOTA, Q_SETQUOTA, Q_GETNEXTQUOTA.
        0x80_0004 => visit.whole(name, address, 4),
        0x80_0005 => visit.whole(name, address, 24),
        0x80_0006 => visit.input(name, address, 24),
        0x80_0007 => visit.whole(name, address, 72),
        0x80_0008 => visit.input(name, address, 72),
        0x80_0009 => visit.whole(name, address, 72),
        // Q_XQUOTAON, Q_XQUOTAOFF, Q_XGETQUOTA, Q_XSETQLIM, Q_XGETQSTAT, Q_XQUOTARM, Q_XGETQSTATV, Q_XGETNEXTQUOTA.
        0x58_01 | 0x58_02 | 0x58_06 => visit.input(name, address, 4),
        0x58_03 | 0x58_09 => visit.whole(name, address, 112),
        0x58_04 => visit.input(name, address, 112),
        0x58_05 => visit.whole(name, address, 80),
        0x58_08 => {
            visit.input(name, address, 1);
            visit.whole(name, address, 160);
        }
        _ => {}
    }
}

/// `struct mnt_id_req` begins with its size.
fn request(visit: &mut Visit<'_>, names: (&'static str, &'static str)) {
    crate::shape::sized(visit, names, visit.arg(0), 0, 24);
}

fn listmount(visit: &mut Visit<'_>) {
    request(visit, ("listmount(req->size)", "listmount(req)"));
}

/// What is written begins with its size.
fn statmount(visit: &mut Visit<'_>) {
    request(visit, ("statmount(req->size)", "statmount(req)"));
    let written = visit.u32_or_0(visit.arg(1));
    visit.output("statmount(buf)", visit.arg(1), visit.arg(2), written);
}
