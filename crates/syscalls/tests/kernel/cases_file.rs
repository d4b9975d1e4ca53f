//! Files, their attributes, mounts.

use libc::*;

use crate::world::{World, raw};
use crate::{Case, case};

const HERE: u64 = AT_FDCWD as u64;
const EMPTY: u64 = AT_EMPTY_PATH as u64;

/// A link to a file of the scratch folder; its name as an object.
fn link_name(world: &mut World) -> u64 {
    std::os::unix::fs::symlink("the target of it", world.folder.join("link")).expect("symlink");
    world.name("link")
}

fn folder_name(world: &mut World) -> u64 {
    std::fs::create_dir(world.folder.join("folder")).expect("folder");
    world.name("folder")
}

/// A file with an attribute; its name and its descriptor.
fn attributed(world: &mut World) -> (u64, u64) {
    let name = world.file_name("file");
    let descriptor = world.file_again();
    let attribute = std::ffi::CString::new("user.colour").expect("no zero");
    let args = [descriptor, attribute.as_ptr() as u64, b"green".as_ptr() as u64, 5, 0, 0];
    world.prepare(SYS_fsetxattr, args);
    (name, descriptor)
}

impl World {
    /// A descriptor of the file of the scratch folder.
    fn file_again(&mut self) -> u64 {
        let path = self.folder.join("file");
        self.open(path.to_str().expect("utf-8"), O_RDWR)
    }
}

/// `struct flock`: a read lock of the whole file.
fn lock(world: &mut World, kind: i32) -> u64 {
    let lock = world.room(32);
    world.put(lock, &[kind as u8, 0, 0, 0]);
    world.put(lock + 8, &[0; 20]);
    lock
}

/// A file that another description has locked.
fn locked(world: &mut World) -> u64 {
    let file = world.file();
    let other = world.file_again();
    let region = [F_WRLCK as u64, 0, 0, 0];
    assert_eq!(raw(SYS_fcntl, [other, F_OFD_SETLK as u64, region.as_ptr() as u64, 0, 0, 0]), 0);
    file
}

/// A copy of the root's mount that nobody sees.
fn tree(world: &mut World) -> u64 {
    let root = std::ffi::CString::new("/proc").expect("no zero");
    world.native(SYS_open_tree, [HERE, root.as_ptr() as u64, 1, 0, 0, 0])
}

fn file_system(world: &mut World) -> u64 {
    let kind = std::ffi::CString::new("tmpfs").expect("no zero");
    world.native(SYS_fsopen, [kind.as_ptr() as u64, 0, 0, 0, 0, 0])
}

fn handle(world: &mut World) -> u64 {
    let name = world.file_name("file");
    let mut handle = [0_u8; 136];
    handle[0] = 128;
    let mut mount = 0_i32;
    let args = [HERE, name, handle.as_mut_ptr() as u64, &raw mut mount as u64, 0, 0];
    world.prepare(SYS_name_to_handle_at, args);
    let size = 8 + usize::from(handle[0]);
    world.bytes(&handle[..size])
}

/// The mount of the root, by the number that only lives once.
fn root_mount() -> u64 {
    let mut buffer = [0_u8; 256];
    let root = std::ffi::CString::new("/").expect("no zero");
    let args = [HERE, root.as_ptr() as u64, 0, 0x4000, buffer.as_mut_ptr() as u64, 0];
    assert_eq!(raw(SYS_statx, args), 0);
    u64::from_le_bytes(buffer[144..152].try_into().expect("eight bytes"))
}

pub const CASES: &[Case] = &[
    case("open", SYS_open, |w| [w.file_name("file"), 0, 0, 0, 0, 0]),
    case("openat", SYS_openat, |w| [HERE, w.file_name("file"), 0, 0, 0, 0]),
    case("openat2", SYS_openat2, |w| [HERE, w.file_name("file"), w.words(&[0, 0, 0]), 24, 0, 0]),
    case("creat", SYS_creat, |w| [w.name("new"), 0o600, 0, 0, 0, 0]),
    case("stat", SYS_stat, |w| [w.file_name("file"), w.room(144), 0, 0, 0, 0]),
    case("fstat", SYS_fstat, |w| [w.file(), w.room(144), 0, 0, 0, 0]),
    case("lstat", SYS_lstat, |w| [w.file_name("file"), w.room(144), 0, 0, 0, 0]),
    case("newfstatat", SYS_newfstatat, |w| [HERE, w.file_name("file"), w.room(144), 0, 0, 0]),
    case("newfstatat, empty", SYS_newfstatat, |w| [w.file(), w.text(""), w.room(144), EMPTY, 0, 0]),
    case("statx", SYS_statx, |w| [HERE, w.file_name("file"), 0, 0xfff, w.room(256), 0]),
    case("statx, null", SYS_statx, |w| [w.file(), 0, EMPTY, 0xfff, w.room(256), 0]),
    case("statfs", SYS_statfs, |w| [w.file_name("file"), w.room(120), 0, 0, 0, 0]),
    case("fstatfs", SYS_fstatfs, |w| [w.file(), w.room(120), 0, 0, 0, 0]),
    case("ustat", SYS_ustat, |w| {
        let device = std::os::unix::fs::MetadataExt::dev(&std::fs::metadata(&w.folder).expect("folder"));
        [device, w.room(32), 0, 0, 0, 0]
    }),
    case("access", SYS_access, |w| [w.file_name("file"), 0, 0, 0, 0, 0]),
    case("faccessat", SYS_faccessat, |w| [HERE, w.file_name("file"), 0, 0, 0, 0]),
    case("faccessat2", SYS_faccessat2, |w| [HERE, w.file_name("file"), 0, 0, 0, 0]),
    case("truncate", SYS_truncate, |w| [w.file_name("file"), 10, 0, 0, 0, 0]),
    case("getdents", SYS_getdents, |w| {
        w.file();
        [w.directory(), w.room(500), 500, 0, 0, 0]
    })
    .loose()
    .uncut(),
    case("getdents64", SYS_getdents64, |w| {
        w.file();
        [w.directory(), w.room(500), 500, 0, 0, 0]
    })
    .loose()
    .uncut(),
    case("getcwd", SYS_getcwd, |w| [w.room(4000), 4000, 0, 0, 0, 0]),
    case("chdir", SYS_chdir, |w| [w.text("."), 0, 0, 0, 0, 0]),
    case("chroot", SYS_chroot, |w| [w.text("/"), 0, 0, 0, 0, 0]),
    case("rename", SYS_rename, |w| [w.file_name("file"), w.name("new"), 0, 0, 0, 0]),
    case("renameat", SYS_renameat, |w| [HERE, w.file_name("file"), HERE, w.name("new"), 0, 0]),
    case("renameat2", SYS_renameat2, |w| [HERE, w.file_name("file"), HERE, w.name("new"), 0, 0]),
    case("mkdir", SYS_mkdir, |w| [w.name("new"), 0o700, 0, 0, 0, 0]),
    case("mkdirat", SYS_mkdirat, |w| [HERE, w.name("new"), 0o700, 0, 0, 0]),
    case("rmdir", SYS_rmdir, |w| [folder_name(w), 0, 0, 0, 0, 0]),
    case("mknod", SYS_mknod, |w| [w.name("new"), u64::from(S_IFIFO) | 0o600, 0, 0, 0, 0]),
    case("mknodat", SYS_mknodat, |w| [HERE, w.name("new"), u64::from(S_IFIFO) | 0o600, 0, 0, 0]),
    case("link", SYS_link, |w| [w.file_name("file"), w.name("new"), 0, 0, 0, 0]),
    case("linkat", SYS_linkat, |w| [HERE, w.file_name("file"), HERE, w.name("new"), 0, 0]),
    case("symlink", SYS_symlink, |w| [w.text("somewhere"), w.name("new"), 0, 0, 0, 0]),
    case("symlinkat", SYS_symlinkat, |w| [w.text("somewhere"), HERE, w.name("new"), 0, 0, 0]),
    case("unlink", SYS_unlink, |w| [w.file_name("file"), 0, 0, 0, 0, 0]),
    case("unlinkat", SYS_unlinkat, |w| [HERE, w.file_name("file"), 0, 0, 0, 0]),
    case("readlink", SYS_readlink, |w| [link_name(w), w.room(100), 100, 0, 0, 0]),
    case("readlinkat", SYS_readlinkat, |w| [HERE, link_name(w), w.room(100), 100, 0, 0]),
    case("chmod", SYS_chmod, |w| [w.file_name("file"), 0o600, 0, 0, 0, 0]),
    case("fchmodat", SYS_fchmodat, |w| [HERE, w.file_name("file"), 0o600, 0, 0, 0]),
    case("fchmodat2", 452, |w| [HERE, w.file_name("file"), 0o600, 0, 0, 0]),
    case("chown", SYS_chown, |w| [w.file_name("file"), u64::MAX, u64::MAX, 0, 0, 0]),
    case("lchown", SYS_lchown, |w| [w.file_name("file"), u64::MAX, u64::MAX, 0, 0, 0]),
    case("fchownat", SYS_fchownat, |w| [HERE, w.file_name("file"), u64::MAX, u64::MAX, 0, 0]),
    case("utime", SYS_utime, |w| [w.file_name("file"), w.words(&[1, 2]), 0, 0, 0, 0]),
    case("utimes", SYS_utimes, |w| [w.file_name("file"), w.words(&[1, 2, 3, 4]), 0, 0, 0, 0]),
    case("futimesat", SYS_futimesat, |w| [HERE, w.file_name("file"), w.words(&[1, 2, 3, 4]), 0, 0, 0]),
    case("utimensat", SYS_utimensat, |w| [HERE, w.file_name("file"), w.words(&[1, 2, 3, 4]), 0, 0, 0]),
    case("utimensat, now", SYS_utimensat, |w| {
        let times = w.room(32);
        w.put(times + 8, &0x3fff_ffff_u64.to_le_bytes());
        w.put(times + 24, &0x3fff_fffe_u64.to_le_bytes());
        [w.file(), 0, times, 0, 0, 0]
    }),
    case("inotify_add_watch", SYS_inotify_add_watch, |w| {
        [w.native(SYS_inotify_init1, [0; 6]), w.file_name("file"), 1, 0, 0, 0]
    }),
    case("fanotify_mark", SYS_fanotify_mark, |w| {
        [w.native(SYS_fanotify_init, [0; 6]), 1, 1, HERE, w.file_name("file"), 0]
    }),
    case("name_to_handle_at", SYS_name_to_handle_at, |w| {
        let handle = w.room(136);
        w.put(handle, &[128, 0, 0, 0]);
        [HERE, w.file_name("file"), handle, w.room(4), 0, 0]
    }),
    case("name_to_handle_at, too small", SYS_name_to_handle_at, |w| {
        let handle = w.room(8);
        w.put(handle, &[0; 4]);
        [HERE, w.file_name("file"), handle, w.room(4), 0, 0]
    })
    .fails(EOVERFLOW)
    .loose()
    .uncut(),
    case("name_to_handle_at, unique", SYS_name_to_handle_at, |w| {
        let handle = w.room(136);
        w.put(handle, &[128, 0, 0, 0]);
        [HERE, w.file_name("file"), handle, w.room(8), 1, 0]
    }),
    case("open_by_handle_at", SYS_open_by_handle_at, |w| [w.directory(), handle(w), 0, 0, 0, 0]),
    case("cachestat", 451, |w| [w.file(), w.words(&[0, 4096]), w.room(40), 0, 0, 0]),
    case("file_getattr", 468, |w| [HERE, w.file_name("file"), w.room(24), 24, 0, 0]),
    case("file_setattr", 469, |w| [HERE, w.file_name("file"), w.words(&[0, 0, 0]), 24, 0, 0]),
    case("setxattr", SYS_setxattr, |w| [w.file_name("file"), w.text("user.a"), w.bytes(b"value"), 5, 0, 0]),
    case("lsetxattr", SYS_lsetxattr, |w| [w.file_name("file"), w.text("user.a"), w.bytes(b"value"), 5, 0, 0]),
    case("fsetxattr", SYS_fsetxattr, |w| [w.file(), w.text("user.a"), w.bytes(b"value"), 5, 0, 0]),
    case("getxattr", SYS_getxattr, |w| [attributed(w).0, w.text("user.colour"), w.room(50), 50, 0, 0]),
    case("lgetxattr", SYS_lgetxattr, |w| [attributed(w).0, w.text("user.colour"), w.room(50), 50, 0, 0]),
    case("fgetxattr", SYS_fgetxattr, |w| [attributed(w).1, w.text("user.colour"), w.room(50), 50, 0, 0]),
    case("getxattr, size", SYS_getxattr, |w| [attributed(w).0, w.text("user.colour"), w.room(50), 0, 0, 0]),
    case("listxattr", SYS_listxattr, |w| [attributed(w).0, w.room(50), 50, 0, 0, 0]),
    case("llistxattr", SYS_llistxattr, |w| [attributed(w).0, w.room(50), 50, 0, 0, 0]),
    case("flistxattr", SYS_flistxattr, |w| [attributed(w).1, w.room(50), 50, 0, 0, 0]),
    case("removexattr", SYS_removexattr, |w| [attributed(w).0, w.text("user.colour"), 0, 0, 0, 0]),
    case("lremovexattr", SYS_lremovexattr, |w| [attributed(w).0, w.text("user.colour"), 0, 0, 0, 0]),
    case("fremovexattr", SYS_fremovexattr, |w| [attributed(w).1, w.text("user.colour"), 0, 0, 0, 0]),
    case("setxattrat", 463, |w| {
        let value = w.bytes(b"value");
        [HERE, w.file_name("file"), 0, w.text("user.a"), w.words(&[value, 5]), 16]
    }),
    case("getxattrat", 464, |w| {
        let value = w.room(50);
        [HERE, attributed(w).0, 0, w.text("user.colour"), w.words(&[value, 50]), 16]
    }),
    case("listxattrat", 465, |w| [HERE, attributed(w).0, 0, w.room(50), 50, 0]),
    case("removexattrat", 466, |w| [HERE, attributed(w).0, 0, w.text("user.colour"), 0, 0]),
    case("fcntl, getlk", SYS_fcntl, |w| [locked(w), F_GETLK as u64, lock(w, F_WRLCK), 0, 0, 0]).loose(),
    case("fcntl, getlk, free", SYS_fcntl, |w| [w.file(), F_GETLK as u64, lock(w, F_WRLCK), 0, 0, 0]).loose(),
    case("fcntl, setlk", SYS_fcntl, |w| [w.file(), F_SETLK as u64, lock(w, F_RDLCK), 0, 0, 0]),
    case("fcntl, ofd_getlk", SYS_fcntl, |w| [locked(w), F_OFD_GETLK as u64, lock(w, F_WRLCK), 0, 0, 0]).loose(),
    case("fcntl, ofd_setlk", SYS_fcntl, |w| [w.file(), F_OFD_SETLK as u64, lock(w, F_RDLCK), 0, 0, 0]),
    case("fcntl, getown_ex", SYS_fcntl, |w| [w.pipe().0, 16, w.room(8), 0, 0, 0]),
    case("fcntl, setown_ex", SYS_fcntl, |w| [w.pipe().0, 15, w.halves(&[1, 0]), 0, 0, 0]),
    case("fcntl, getowner_uids", SYS_fcntl, |w| [w.pipe().0, 17, w.room(8), 0, 0, 0]),
    case("fcntl, get_rw_hint", SYS_fcntl, |w| [w.file(), 1035, w.room(8), 0, 0, 0]),
    case("fcntl, set_rw_hint", SYS_fcntl, |w| [w.file(), 1036, w.words(&[1]), 0, 0, 0]),
    case("mount", SYS_mount, |w| [w.text("none"), w.text("/no/such/folder"), w.text("tmpfs"), 0, 0, 0]).fails(ENOENT),
    case("umount2", SYS_umount2, |w| [w.text("/no/such/folder"), 0, 0, 0, 0, 0]).fails(ENOENT),
    case("pivot_root", SYS_pivot_root, |w| [w.text("/no/such/folder"), w.text("/no"), 0, 0, 0, 0])
        .fails(ENOENT)
        .uncut(),
    case("swapon", SYS_swapon, |w| [w.text("/no/such/file"), 0, 0, 0, 0, 0]).fails(ENOENT),
    case("swapoff", SYS_swapoff, |w| [w.text("/no/such/file"), 0, 0, 0, 0, 0]).fails(ENOENT),
    case("quotactl", SYS_quotactl, |w| [0x8000_0400, w.text("/no/such/device"), 0, w.room(4), 0, 0])
        .fails(ENOENT)
        .uncut(),
    case("open_tree", SYS_open_tree, |w| [HERE, w.text("/proc"), 0, 0, 0, 0]),
    case("open_tree_attr", 467, |w| [HERE, w.text("/proc"), 1, w.words(&[1, 0, 0, 0]), 32, 0]),
    case("move_mount", SYS_move_mount, |w| {
        // The second name is looked for before the first is read.
        [tree(w), w.text(""), HERE, w.text("/no/such/folder"), 4, 0]
    })
    .fails(ENOENT)
    .uncut(),
    case("fsopen", SYS_fsopen, |w| [w.text("tmpfs"), 0, 0, 0, 0, 0]),
    case("fsconfig, string", SYS_fsconfig, |w| [file_system(w), 1, w.text("size"), w.text("1m"), 0, 0]),
    case("fsconfig, flag", SYS_fsconfig, |w| [file_system(w), 0, w.text("noswap"), 0, 0, 0]),
    case("fspick", SYS_fspick, |w| [HERE, w.text("/proc"), 0, 0, 0, 0]),
    case("mount_setattr", SYS_mount_setattr, |w| [tree(w), w.text(""), EMPTY, w.words(&[1, 0, 0, 0]), 32, 0]),
    case("statmount", 457, |w| [w.words(&[24, root_mount(), 3]), w.room(1024), 1024, 0, 0, 0]),
    case("statmount, strings", 457, |w| [w.words(&[24, root_mount(), 0x3f]), w.room(1024), 1024, 0, 0, 0]),
    case("listmount", 458, |w| [w.words(&[24, u64::MAX, 0]), w.room(80), 10, 0, 0, 0]),
    case("acct", SYS_acct, |w| [w.text("/no/such/file"), 0, 0, 0, 0, 0]).fails(ENOENT),
];
