//! System V and POSIX inter-process communication.

use crate::rule::{by, bytes, count_of, input, output, text_of, times};
use crate::shape::{TIMESPEC, sigevent};
use crate::table::syscalls;
use crate::visit::Visit;

/// `struct sembuf`: three numbers of two bytes.
const SEMBUF: u32 = 6;
const MQ_ATTR: u32 = 64;
/// A queue's name: `NAME_MAX`, a slash, the zero.
const QUEUE_NAME: u32 = 4096;

syscalls! {
    /// Shared memory, semaphores, message queues.
    IPC:
    29 shmget(key: int, size: ulong, shmflg: int);
    30 shmat(shmid: int, shmaddr: ptr, shmflg: int) is ADDRESS_SPACE;
    31 shmctl(shmid: int, cmd: int, buf: ptr) [by(shmctl)];
    64 semget(key: int, nsems: int, semflg: int);
    65 semop(semid: int, sops: ptr, nsoops: uint) [input(sops, times(nsoops, SEMBUF))] is BLOCKS;
    66 semctl(semid: int, semnum: int, cmd: int, arg: ulong) [by(semctl)] registers semctl_registers;
    67 shmdt(shmaddr: ptr) is ADDRESS_SPACE;
    68 msgget(key: int, msgflg: int);
    69 msgsnd(msqid: int, msgp: ptr, msgsz: ulong, msgflg: int) [by(msgsnd)] is BLOCKS;
    70 msgrcv(msqid: int, msgp: ptr, msgsz: ulong, msgytp: long, msgflg: int) [by(msgrcv)] is BLOCKS;
    71 msgctl(msqid: int, cmd: int, buf: ptr) [by(msgctl)];
    220 semtimedop(semid: int, sops: ptr, nsoops: uint, timeout: ptr)
        [input(sops, times(nsoops, SEMBUF)), input(timeout, bytes(TIMESPEC)).or_null()] is BLOCKS;
    240 mq_open(name: ptr, oflag: int, mode: uint, attr: ptr) [text_of(name, QUEUE_NAME), by(mq_open)]
        registers mq_open_registers is OPENS;
    241 mq_unlink(name: ptr) [text_of(name, QUEUE_NAME)];
    242 mq_timedsend(mqdes: int, msg_ptr: ptr, msg_len: ulong, msg_prio: uint, abs_timeout: ptr)
        [input(msg_ptr, count_of(msg_len)), input(abs_timeout, bytes(TIMESPEC)).or_null()] is BLOCKS;
    243 mq_timedreceive(mqdes: int, msg_ptr: ptr, msg_len: ulong, msg_prio: ptr, abs_timeout: ptr)
        [output(msg_ptr, count_of(msg_len)).result(), output(msg_prio, bytes(4)).or_null(),
         input(abs_timeout, bytes(TIMESPEC)).or_null()] is BLOCKS;
    244 mq_notify(mqdes: int, notification: ptr) [by(mq_notify)];
    245 mq_getsetattr(mqdes: int, mqstat: ptr, omqstat: ptr) [by(mq_set), output(omqstat, bytes(MQ_ATTR)).or_null()];
}

/// Commands of all three `...ctl` calls; old programs add `IPC_64`.
const IPC_SET: i64 = 1;
const IPC_STAT: i64 = 2;
const IPC_INFO: i64 = 3;
const IPC_64: i64 = 0x100;

/// What `IPC_SET` looks at in the `struct ipc64_perm` that each of the structures begins with: uid and gid, mode.
fn permissions(visit: &mut Visit<'_>, name: &'static str, address: u64, size: u64) {
    visit.input(name, address.wrapping_add(4), 8);
    visit.input(name, address.wrapping_add(20), 4);
    visit.copied(name, address, size);
}

const SHMID_DS: u64 = 112;

fn shmctl(visit: &mut Visit<'_>) {
    const SHM_STAT: i64 = 13;
    const SHM_INFO: i64 = 14;
    const SHM_STAT_ANY: i64 = 15;
    let buf = visit.arg(2);
    match visit.int(1) & !IPC_64 {
        IPC_INFO => visit.whole("shmctl(IPC_INFO, buf)", buf, 72),
        SHM_INFO => visit.whole("shmctl(SHM_INFO, buf)", buf, 48),
        IPC_STAT | SHM_STAT | SHM_STAT_ANY => visit.whole("shmctl(IPC_STAT, buf)", buf, SHMID_DS),
        IPC_SET => permissions(visit, "shmctl(IPC_SET, arg.buf)", buf, SHMID_DS),
        _ => {}
    }
}

const GETALL: i64 = 13;
const SETVAL: i64 = 16;
const SETALL: i64 = 17;
const SEM_STAT: i64 = 18;
const SEM_INFO: i64 = 19;
const SEM_STAT_ANY: i64 = 20;
const SEMID_DS: u64 = 104;

fn semctl_registers(args: &[u64; 6]) -> u8 {
    let command = i64::from(args[2] as i32) & !IPC_64;
    let takes_argument = [IPC_SET, IPC_STAT, IPC_INFO, GETALL, SETVAL, SETALL, SEM_STAT, SEM_INFO, SEM_STAT_ANY];
    if takes_argument.contains(&command) { 0b1111 } else { 0b0111 }
}

fn semctl(visit: &mut Visit<'_>) {
    let arg = visit.arg(3);
    match visit.int(2) & !IPC_64 {
        IPC_INFO | SEM_INFO => visit.whole("semctl(IPC_INFO, arg.buf)", arg, 40),
        IPC_STAT | SEM_STAT | SEM_STAT_ANY => visit.whole("semctl(IPC_STAT, arg.buf)", arg, SEMID_DS),
        IPC_SET => permissions(visit, "semctl(IPC_SET, arg.buf)", arg, SEMID_DS),
        GETALL => {
            let size = array_bytes(visit);
            visit.whole("semctl(IPC_GETALL, arg.array)", arg, size);
        }
        SETALL => {
            let size = array_bytes(visit);
            visit.input("semctl(IPC_SETALL, arg.array)", arg, size);
        }
        _ => {}
    }
}

fn array_bytes(visit: &Visit<'_>) -> u64 {
    visit.memory().semaphores(visit.int(0) as i32).map_or(0, |count| u64::from(count) * 2)
}

fn msgsnd(visit: &mut Visit<'_>) {
    let at = visit.arg(1);
    visit.input("msgsnd(msgp->mtype)", at, 8);
    visit.input("msgsnd(msgp->mtext)", at.wrapping_add(8), visit.arg(2));
}

fn msgrcv(visit: &mut Visit<'_>) {
    let at = visit.arg(1);
    visit.whole("msgrcv(msgp->mtype)", at, 8);
    visit.output("msgrcv(msgp->mtext)", at.wrapping_add(8), visit.arg(2), visit.returned());
}

const MSQID_DS: u64 = 120;

fn msgctl(visit: &mut Visit<'_>) {
    const MSG_STAT: i64 = 11;
    const MSG_INFO: i64 = 12;
    const MSG_STAT_ANY: i64 = 13;
    let buf = visit.arg(2);
    match visit.int(1) & !IPC_64 {
        IPC_INFO | MSG_INFO => visit.whole("msgctl(IPC_INFO, buf)", buf, 32),
        IPC_STAT | MSG_STAT | MSG_STAT_ANY => visit.whole("msgctl(IPC_STAT, buf)", buf, MSQID_DS),
        IPC_SET => {
            permissions(visit, "msgctl(IPC_SET, arg.buf)", buf, MSQID_DS);
            // The greatest size of the queue.
            visit.input("msgctl(IPC_SET, arg.buf)", buf.wrapping_add(88), 8);
        }
        _ => {}
    }
}

const O_CREAT: u64 = 0o100;

fn mq_open_registers(args: &[u64; 6]) -> u8 {
    if args[1] & O_CREAT == 0 { 0b0011 } else { 0b1111 }
}

fn mq_open(visit: &mut Visit<'_>) {
    let attr = visit.arg(3);
    if visit.arg(1) & O_CREAT != 0 && attr != 0 {
        visit.input("mq_open(attr->mq_maxmsg)", attr.wrapping_add(8), 8);
        visit.input("mq_open(attr->mq_msgsize)", attr.wrapping_add(16), 8);
        visit.copied("mq_open(attr)", attr, u64::from(MQ_ATTR));
    }
}

fn mq_notify(visit: &mut Visit<'_>) {
    const SIGEV_THREAD: u64 = 2;
    const COOKIE: u64 = 32;
    let at = visit.arg(1);
    if at != 0 {
        sigevent(visit, ["mq_notify(notification)"; 4], at);
        if visit.u32_at(at.wrapping_add(12)) == Some(SIGEV_THREAD) {
            let cookie = visit.u64_or_0(at);
            visit.input("mq_notify(notification->sigev_value)", cookie, COOKIE);
        }
    }
}

fn mq_set(visit: &mut Visit<'_>) {
    let at = visit.arg(1);
    if at != 0 {
        visit.input("mq_getsetattr(mqstat->mq_flags)", at, 8);
        visit.copied("mq_getsetattr(mqstat)", at, u64::from(MQ_ATTR));
    }
}
