//! `fcntl`, by its command.

use crate::visit::Visit;

const F_GETLK: u64 = 5;
const F_SETLK: u64 = 6;
const F_SETLKW: u64 = 7;
const F_SETOWN_EX: u64 = 15;
const F_GETOWN_EX: u64 = 16;
const F_GETOWNER_UIDS: u64 = 17;
const F_OFD_GETLK: u64 = 36;
const F_OFD_SETLK: u64 = 37;
const F_OFD_SETLKW: u64 = 38;
const F_GET_RW_HINT: u64 = 1035;
const F_SET_RW_HINT: u64 = 1036;
const F_GET_FILE_RW_HINT: u64 = 1037;
const F_SET_FILE_RW_HINT: u64 = 1038;

/// Commands that take no argument: `F_GETFD`, `F_GETFL`, `F_GETOWN`, `F_GETSIG`, `F_GETLEASE`, `F_GETPIPE_SZ`,
/// `F_GET_SEALS`.
const WITHOUT_ARGUMENT: [u64; 7] = [1, 3, 9, 11, 1025, 1032, 1034];

pub(crate) fn fcntl_registers(args: &[u64; 6]) -> u8 {
    if WITHOUT_ARGUMENT.contains(&u64::from(args[1] as u32)) { 0b011 } else { 0b111 }
}

/// Memcheck calls the argument of the commands about locks by what it is.
pub(crate) fn fcntl_names(args: &[u64; 6], index: usize) -> &'static str {
    let is_lock =
        [F_GETLK, F_SETLK, F_SETLKW, F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW].contains(&u64::from(args[1] as u32));
    if index == 2 && is_lock { "lock" } else { "" }
}

pub(crate) fn fcntl(visit: &mut Visit<'_>) {
    let arg = visit.arg(2);
    match visit.arg(1) {
        command @ (F_GETLK | F_SETLK | F_SETLKW | F_OFD_GETLK | F_OFD_SETLK | F_OFD_SETLKW) => {
            lock(visit, arg, command);
        }
        F_SETOWN_EX => visit.input("fcntl(F_SETOWN_EX)", arg, 8),
        F_GETOWN_EX => visit.whole("fcntl(F_GETOWN_EX)", arg, 8),
        F_GETOWNER_UIDS => visit.whole("fcntl(F_GETOWNER_UIDS)", arg, 8),
        F_GET_RW_HINT | F_GET_FILE_RW_HINT => visit.whole("fcntl(F_GET_RW_HINT)", arg, 8),
        F_SET_RW_HINT | F_SET_FILE_RW_HINT => visit.input("fcntl(F_SET_RW_HINT)", arg, 8),
        _ => {}
    }
}

/// `struct flock`: type and whence of two bytes, padding, start and length, the process, padding.
fn lock(visit: &mut Visit<'_>, at: u64, command: u64) {
    const FLOCK: u64 = 32;
    let field = |offset| at.wrapping_add(offset);
    visit.input("fcntl(lock->l_type)", field(0), 2);
    visit.input("fcntl(lock->l_whence)", field(2), 2);
    visit.input("fcntl(lock->l_start)", field(8), 8);
    visit.input("fcntl(lock->l_len)", field(16), 8);
    if matches!(command, F_GETLK | F_OFD_GETLK) {
        visit.whole("fcntl(lock->l_pid)", field(24), 4);
        if !visit.is_before() {
            visit.whole("fcntl(lock)", field(0), 4);
            visit.whole("fcntl(lock)", field(8), 16);
        }
    }
    if command >= F_OFD_GETLK {
        // Locks of open files belong to no process: the field must be 0.
        visit.input("fcntl(lock->l_pid)", field(24), 4);
    }
    visit.copied("fcntl(lock)", at, FLOCK);
}
