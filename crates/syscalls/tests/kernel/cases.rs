//! Bytes through descriptors, waiting, time, signals, inter-process communication, rings.

use libc::*;

use crate::world::{World, raw};
use crate::{Case, case};

/// A signal that is blocked and pending for this thread, and taken away in the end.
fn pending_signal(world: &mut World) {
    // What is sent to the process may meet a thread that does not block it.
    handle(SIGUSR1);
    let set = 1_u64 << (SIGUSR1 - 1);
    raw(SYS_rt_sigprocmask, [SIG_BLOCK as u64, &raw const set as u64, 0, 8, 0, 0]);
    let (me, thread) = (raw(SYS_getpid, [0; 6]) as u64, raw(SYS_gettid, [0; 6]) as u64);
    raw(SYS_tgkill, [me, thread, SIGUSR1 as u64, 0, 0, 0]);
    world.finally(take_signal);
}

/// Lets a signal do nothing, but interrupt.
fn handle(signal: c_int) {
    extern "C" fn nothing(_: c_int) {}
    let handler = nothing as extern "C" fn(c_int) as usize;
    // SAFETY: a handler that does nothing, in a zeroed structure.
    unsafe {
        let mut action: sigaction = std::mem::zeroed();
        action.sa_sigaction = handler;
        sigaction(signal, &raw const action, std::ptr::null_mut());
    }
}

fn take_signal() {
    let (set, none) = (1_u64 << (SIGUSR1 - 1), [0_u64; 2]);
    while raw(SYS_rt_sigtimedwait, [&raw const set as u64, 0, none.as_ptr() as u64, 8, 0, 0]) > 0 {}
}

/// An alarm in a moment, for calls that are to be interrupted.
fn alarm_soon(world: &mut World) {
    handle(SIGALRM);
    // To this thread, and again and again: the first may come before the call has begun.
    let thread = raw(SYS_gettid, [0; 6]) as u64;
    let event = [0_u64, SIGALRM as u64 | (SIGEV_THREAD_ID as u64) << 32, thread, 0, 0, 0, 0, 0];
    let (mut timer, soon) = (-1_i32, [0_u64, 2_000_000, 0, 2_000_000]);
    let args = [CLOCK_MONOTONIC as u64, event.as_ptr() as u64, &raw mut timer as u64, 0, 0, 0];
    assert_eq!(raw(SYS_timer_create, args), 0);
    raw(SYS_timer_settime, [timer as u64, 0, soon.as_ptr() as u64, 0, 0, 0]);
    world.finally(move || {
        raw(SYS_timer_delete, [timer as u64, 0, 0, 0, 0, 0]);
    });
}

fn timer(world: &mut World) -> u64 {
    let mut timer = -1_i32;
    let event = [0_u64, (SIGEV_NONE as u64) << 32, 0, 0, 0, 0, 0, 0];
    let args = [CLOCK_MONOTONIC as u64, event.as_ptr() as u64, &raw mut timer as u64, 0, 0, 0];
    assert_eq!(raw(SYS_timer_create, args), 0);
    world.finally(move || {
        raw(SYS_timer_delete, [timer as u64, 0, 0, 0, 0, 0]);
    });
    timer as u64
}

fn removed_later(world: &mut World, number: i64, result: i64, command: [u64; 2]) -> u64 {
    assert!(result >= 0);
    world.finally(move || {
        let args =
            if number == SYS_semctl { [result as u64, 0, 0, 0, 0, 0] } else { [result as u64, command[0], 0, 0, 0, 0] };
        raw(number, args);
    });
    result as u64
}

fn shared_memory(world: &mut World) -> u64 {
    let id = raw(SYS_shmget, [0, 8192, 0o600 | IPC_CREAT as u64, 0, 0, 0]);
    removed_later(world, SYS_shmctl, id, [0; 2])
}

fn semaphores(world: &mut World) -> u64 {
    let id = raw(SYS_semget, [0, 3, 0o600 | IPC_CREAT as u64, 0, 0, 0]);
    removed_later(world, SYS_semctl, id, [0; 2])
}

fn messages(world: &mut World) -> u64 {
    let id = raw(SYS_msgget, [0, 0o600 | IPC_CREAT as u64, 0, 0, 0, 0]);
    let queue = removed_later(world, SYS_msgctl, id, [0; 2]);
    let message = [7_u64, 0x6162_6364_6566_6768];
    assert_eq!(raw(SYS_msgsnd, [queue, message.as_ptr() as u64, 8, 0, 0, 0]), 0);
    queue
}

const QUEUE: &str = "leakscope-syscalls-queue";

fn queue(world: &mut World) -> u64 {
    let name = std::ffi::CString::new(QUEUE).expect("no zero");
    let attributes = [0_u64, 4, 64, 0, 0, 0, 0, 0];
    let flags = (O_CREAT | O_RDWR | O_NONBLOCK) as u64;
    let fd = world.native(SYS_mq_open, [name.as_ptr() as u64, flags, 0o600, attributes.as_ptr() as u64, 0, 0]);
    raw(SYS_mq_unlink, [name.as_ptr() as u64, 0, 0, 0, 0, 0]);
    fd
}

fn filled_queue(world: &mut World) -> u64 {
    let fd = queue(world);
    world.prepare(SYS_mq_timedsend, [fd, b"hello".as_ptr() as u64, 5, 3, 0, 0]);
    fd
}

/// A polling set that watches the writing end of a pipe.
fn watched(world: &mut World) -> u64 {
    let (_, write) = world.pipe();
    let set = world.native(SYS_epoll_create1, [0; 6]);
    let event = [EPOLLOUT as u32, 1, 2];
    assert_eq!(raw(SYS_epoll_ctl, [set, EPOLL_CTL_ADD as u64, write, event.as_ptr() as u64, 0, 0]), 0);
    set
}

fn aio_context(world: &mut World) -> u64 {
    let mut context = 0_u64;
    world.prepare(SYS_io_setup, [4, &raw mut context as u64, 0, 0, 0, 0]);
    world.finally(move || {
        raw(SYS_io_destroy, [context, 0, 0, 0, 0, 0]);
    });
    context
}

/// A control block, and the array of its one address.
fn control_block(world: &mut World, operation: u16, buffer: u64, size: u64) -> (u64, u64) {
    let file = world.file();
    let block = world.words(&[9, 0, u64::from(operation) | file << 32, buffer, size, 0, 0, 0]);
    (block, world.words(&[block]))
}

/// An operation that has ended; its buffer is still as the table knows it.
fn ended_operation(world: &mut World, size: u64) -> u64 {
    let context = aio_context(world);
    let buffer = world.room(size as usize);
    let (_, blocks) = control_block(world, 0, buffer, size);
    // The file is in memory: the operation ends before the call that submits it.
    world.prepare(SYS_io_submit, [context, 1, blocks, 0, 0, 0]);
    context
}

fn ring(world: &mut World) -> u64 {
    let parameters = [0_u64; 15];
    world.native(SYS_io_uring_setup, [4, parameters.as_ptr() as u64, 0, 0, 0, 0])
}

pub const CASES: &[Case] = &[
    case("read", SYS_read, |w| [w.file(), w.room(100), 100, 0, 0, 0]),
    case("read, short", SYS_read, |w| [w.filled_pipe().0, w.room(100), 100, 0, 0, 0]),
    case("write", SYS_write, |w| [w.file(), w.bytes(&[1; 100]), 100, 0, 0, 0]),
    case("pread64", SYS_pread64, |w| [w.file(), w.room(100), 100, 50, 0, 0]),
    case("pwrite64", SYS_pwrite64, |w| [w.file(), w.bytes(&[1; 100]), 100, 50, 0, 0]),
    case("readv", SYS_readv, |w| [w.filled_pipe().0, w.vector(&[(3, None), (5, None), (90, None)]), 3, 0, 0, 0]),
    case("writev", SYS_writev, |w| [w.file(), w.vector(&[(3, Some(1)), (5, Some(2))]), 2, 0, 0, 0]),
    case("preadv", SYS_preadv, |w| [w.file(), w.vector(&[(3, None), (5, None)]), 2, 10, 0, 0]),
    case("pwritev", SYS_pwritev, |w| [w.file(), w.vector(&[(3, Some(1)), (5, Some(2))]), 2, 10, 0, 0]),
    case("preadv2", SYS_preadv2, |w| [w.file(), w.vector(&[(3, None), (5, None)]), 2, 10, 0, 0]),
    case("pwritev2", SYS_pwritev2, |w| [w.file(), w.vector(&[(3, Some(1)), (5, Some(2))]), 2, 10, 0, 0]),
    case("sendfile", SYS_sendfile, |w| [w.pipe().1, w.file(), w.words(&[10]), 100, 0, 0]),
    case("splice", SYS_splice, |w| [w.file(), w.words(&[10]), w.pipe().1, 0, 100, 0]),
    case("vmsplice, from us", SYS_vmsplice, |w| [w.pipe().1, w.vector(&[(3, Some(1)), (5, Some(2))]), 2, 0, 0, 0]),
    case("vmsplice, to us", SYS_vmsplice, |w| [w.filled_pipe().0, w.vector(&[(3, None), (50, None)]), 2, 0, 0, 0]),
    case("copy_file_range", SYS_copy_file_range, |w| [w.file(), w.words(&[0]), w.file(), w.words(&[4096]), 100, 0]),
    case("getrandom", SYS_getrandom, |w| [w.room(200), 200, 0, 0, 0, 0]).loose(),
    case("poll", SYS_poll, |w| {
        let (read, write) = w.pipe();
        let fds = w.room(16);
        w.put(fds, &(read as u32).to_le_bytes());
        w.put(fds + 4, &[1, 0]);
        w.put(fds + 8, &(write as u32).to_le_bytes());
        w.put(fds + 12, &[4, 0]);
        [fds, 2, 0, 0, 0, 0]
    }),
    case("ppoll", SYS_ppoll, |w| {
        let fds = w.room(8);
        w.put(fds, &[0xff, 0xff, 0xff, 0xff]);
        [fds, 1, w.words(&[0, 1000]), w.words(&[0]), 8, 0]
    }),
    case("select", SYS_select, |w| {
        let (read, write) = w.pipe();
        // Whole words are written, although the last descriptors' bits decide only part of them.
        let sets = [w.words(&[1 << read]), w.words(&[1 << write]), w.words(&[0])];
        [write + 1, sets[0], sets[1], sets[2], w.words(&[1, 0]), 0]
    }),
    case("pselect6", SYS_pselect6, |w| {
        let mask = w.words(&[0]);
        [60, w.words(&[0]), 0, 0, w.words(&[0, 1000]), w.words(&[mask, 8])]
    }),
    case("epoll_ctl, add", SYS_epoll_ctl, |w| {
        [w.native(SYS_epoll_create1, [0; 6]), EPOLL_CTL_ADD as u64, w.pipe().0, w.halves(&[1, 2, 3]), 0, 0]
    }),
    case("epoll_wait", SYS_epoll_wait, |w| [watched(w), w.room(36), 3, 0, 0, 0]),
    case("epoll_pwait", SYS_epoll_pwait, |w| [watched(w), w.room(36), 3, 0, w.words(&[0]), 8]),
    case("epoll_pwait2", SYS_epoll_pwait2, |w| [watched(w), w.room(36), 3, w.words(&[0, 1]), w.words(&[0]), 8]),
    case("dup", SYS_dup, |w| [w.pipe().0, 0, 0, 0, 0, 0]),
    case("dup2", SYS_dup2, |w| [w.pipe().0, w.file(), 0, 0, 0, 0]),
    case("dup2, new", SYS_dup2, |w| [w.pipe().0, 350, 0, 0, 0, 0]),
    case("dup3", SYS_dup3, |w| [w.pipe().0, 350, 0, 0, 0, 0]),
    case("fcntl, dupfd", SYS_fcntl, |w| [w.pipe().0, F_DUPFD as u64, 340, 0, 0, 0]),
    case("fcntl, getfd", SYS_fcntl, |w| [w.pipe().0, F_GETFD as u64, 0, 0, 0, 0]),
    case("close", SYS_close, |w| [w.pipe().0, 0, 0, 0, 0, 0]),
    case("close, not open", SYS_close, |_| [350, 0, 0, 0, 0, 0]).fails(EBADF),
    case("close_range", SYS_close_range, |w| {
        let (read, write) = w.pipe();
        [read, write, 0, 0, 0, 0]
    }),
    case("close_range, at exec", SYS_close_range, |w| {
        let (read, write) = w.pipe();
        [read, write, 4, 0, 0, 0]
    }),
    case("eventfd", SYS_eventfd, |_| [0; 6]),
    case("eventfd2", SYS_eventfd2, |_| [0; 6]),
    case("epoll_create", SYS_epoll_create, |_| [1, 0, 0, 0, 0, 0]),
    case("epoll_create1", SYS_epoll_create1, |_| [0; 6]),
    case("timerfd_create", SYS_timerfd_create, |_| [1, 0, 0, 0, 0, 0]),
    case("inotify_init", SYS_inotify_init, |_| [0; 6]),
    case("inotify_init1", SYS_inotify_init1, |_| [0; 6]),
    case("fanotify_init", SYS_fanotify_init, |_| [0; 6]),
    case("userfaultfd", SYS_userfaultfd, |_| [1, 0, 0, 0, 0, 0]),
    case("memfd_secret", 447, |_| [0; 6]),
    case("pidfd_open", SYS_pidfd_open, |_| [raw(SYS_getpid, [0; 6]) as u64, 0, 0, 0, 0, 0]),
    case("pidfd_getfd", SYS_pidfd_getfd, |w| {
        let me = raw(SYS_getpid, [0; 6]) as u64;
        [w.native(SYS_pidfd_open, [me, 0, 0, 0, 0, 0]), w.pipe().0, 0, 0, 0, 0]
    }),
    case("fsmount", SYS_fsmount, |w| {
        let kind = std::ffi::CString::new("tmpfs").expect("no zero");
        let system = w.native(SYS_fsopen, [kind.as_ptr() as u64, 0, 0, 0, 0, 0]);
        w.prepare(SYS_fsconfig, [system, 6, 0, 0, 0, 0]);
        [system, 0, 0, 0, 0, 0]
    }),
    case("landlock_create_ruleset, version", 444, |_| [0, 0, 1, 0, 0, 0]),
    case("signalfd4, again", SYS_signalfd4, |w| {
        let set = 1_u64;
        let old = w.native(SYS_signalfd4, [u64::MAX, &raw const set as u64, 8, 0, 0, 0]);
        [old, w.words(&[2]), 8, 0, 0, 0]
    }),
    case("pipe", SYS_pipe, |w| [w.room(8), 0, 0, 0, 0, 0]),
    case("pipe2", SYS_pipe2, |w| [w.room(8), 0, 0, 0, 0, 0]),
    case("memfd_create", SYS_memfd_create, |w| [w.text("name"), 0, 0, 0, 0, 0]),
    case("nanosleep", SYS_nanosleep, |w| [w.words(&[0, 1]), w.room(16), 0, 0, 0, 0]),
    case("nanosleep, interrupted", SYS_nanosleep, |w| {
        let args = [w.words(&[50, 0]), w.room(16), 0, 0, 0, 0];
        alarm_soon(w);
        args
    })
    .fails(EINTR),
    case("clock_nanosleep", SYS_clock_nanosleep, |w| [1, 0, w.words(&[0, 1]), w.room(16), 0, 0]),
    case("clock_nanosleep, interrupted", SYS_clock_nanosleep, |w| {
        let args = [1, 0, w.words(&[50, 0]), w.room(16), 0, 0];
        alarm_soon(w);
        args
    })
    .fails(EINTR),
    case("clock_nanosleep, interrupted, absolute", SYS_clock_nanosleep, |w| {
        let args = [1, TIMER_ABSTIME as u64, w.words(&[1 << 40, 0]), w.room(16), 0, 0];
        alarm_soon(w);
        args
    })
    .fails(EINTR),
    case("getitimer", SYS_getitimer, |w| [0, w.room(32), 0, 0, 0, 0]),
    case("setitimer", SYS_setitimer, |w| [ITIMER_VIRTUAL as u64, w.words(&[0; 4]), w.room(32), 0, 0, 0]),
    case("gettimeofday", SYS_gettimeofday, |w| [w.room(16), w.room(8), 0, 0, 0, 0]),
    case("times", SYS_times, |w| [w.room(32), 0, 0, 0, 0, 0]),
    case("time", SYS_time, |w| [w.room(8), 0, 0, 0, 0, 0]),
    case("adjtimex", SYS_adjtimex, |w| {
        let timex = w.room(208);
        w.put(timex, &[0; 4]);
        [timex, 0, 0, 0, 0, 0]
    })
    .loose(),
    case("clock_adjtime", SYS_clock_adjtime, |w| {
        let timex = w.room(208);
        w.put(timex, &[0; 4]);
        [CLOCK_REALTIME as u64, timex, 0, 0, 0, 0]
    })
    .loose(),
    case("timer_create", SYS_timer_create, |w| {
        let event = w.room(64);
        w.put(event + 8, &[0, 0, 0, 0, SIGEV_NONE as u8, 0, 0, 0]);
        [CLOCK_MONOTONIC as u64, event, w.room(4), 0, 0, 0]
    }),
    case("timer_settime", SYS_timer_settime, |w| [timer(w), 0, w.words(&[0, 0, 100, 0]), w.room(32), 0, 0]),
    case("timer_gettime", SYS_timer_gettime, |w| [timer(w), w.room(32), 0, 0, 0, 0]),
    case("clock_gettime", SYS_clock_gettime, |w| [1, w.room(16), 0, 0, 0, 0]),
    case("clock_getres", SYS_clock_getres, |w| [1, w.room(16), 0, 0, 0, 0]),
    case("timerfd_settime", SYS_timerfd_settime, |w| {
        [w.native(SYS_timerfd_create, [1, 0, 0, 0, 0, 0]), 0, w.words(&[0, 0, 100, 0]), w.room(32), 0, 0]
    }),
    case("timerfd_gettime", SYS_timerfd_gettime, |w| {
        [w.native(SYS_timerfd_create, [1, 0, 0, 0, 0, 0]), w.room(32), 0, 0, 0, 0]
    }),
    case("rt_sigaction", SYS_rt_sigaction, |w| {
        [SIGUSR2 as u64, w.words(&[0, 0x0400_0000, 0x1000, 0]), w.room(32), 8, 0, 0]
    }),
    case("rt_sigprocmask", SYS_rt_sigprocmask, |w| [SIG_BLOCK as u64, w.words(&[0]), w.room(8), 8, 0, 0]),
    case("rt_sigpending", SYS_rt_sigpending, |w| [w.room(8), 8, 0, 0, 0, 0]),
    case("rt_sigtimedwait", SYS_rt_sigtimedwait, |w| {
        pending_signal(w);
        [w.words(&[1 << (SIGUSR1 - 1)]), w.room(128), w.words(&[1, 0]), 8, 0, 0]
    }),
    case("rt_sigqueueinfo", SYS_rt_sigqueueinfo, |w| {
        pending_signal(w);
        let info = w.room(48);
        w.put(info, &[SIGUSR1 as u8, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        w.put(info + 16, &[0; 16]);
        [raw(SYS_getpid, [0; 6]) as u64, SIGUSR1 as u64, info, 0, 0, 0]
    }),
    case("rt_tgsigqueueinfo", SYS_rt_tgsigqueueinfo, |w| {
        pending_signal(w);
        let info = w.room(48);
        w.put(info, &[SIGUSR1 as u8, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        w.put(info + 16, &[0; 16]);
        [raw(SYS_getpid, [0; 6]) as u64, raw(SYS_gettid, [0; 6]) as u64, SIGUSR1 as u64, info, 0, 0]
    }),
    case("pidfd_send_signal", SYS_pidfd_send_signal, |w| {
        pending_signal(w);
        let me = raw(SYS_getpid, [0; 6]) as u64;
        let info = w.room(48);
        w.put(info, &[SIGUSR1 as u8, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        w.put(info + 16, &[0; 16]);
        [w.native(SYS_pidfd_open, [me, 0, 0, 0, 0, 0]), SIGUSR1 as u64, info, 0, 0, 0]
    }),
    case("sigaltstack", SYS_sigaltstack, |w| {
        let stack = w.room(24);
        w.put(stack + 8, &(SS_DISABLE as u32).to_le_bytes());
        [stack, w.room(24), 0, 0, 0, 0]
    })
    .loose(),
    case("signalfd4", SYS_signalfd4, |w| [u64::MAX, w.words(&[1]), 8, 0, 0, 0]),
    case("signalfd", SYS_signalfd, |w| [u64::MAX, w.words(&[1]), 8, 0, 0, 0]),
    case("shmctl, stat", SYS_shmctl, |w| [shared_memory(w), IPC_STAT as u64, w.room(112), 0, 0, 0]),
    case("shmctl, info", SYS_shmctl, |w| [0, IPC_INFO as u64, w.room(72), 0, 0, 0]),
    case("shmctl, shm_info", SYS_shmctl, |w| [0, 14, w.room(48), 0, 0, 0]).loose(),
    case("shmctl, set", SYS_shmctl, |w| [shared_memory(w), IPC_SET as u64, w.bytes(&[0; 112]), 0, 0, 0]),
    case("semop", SYS_semop, |w| [semaphores(w), w.bytes(&[0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0]), 2, 0, 0, 0]),
    case("semtimedop", SYS_semtimedop, |w| [semaphores(w), w.bytes(&[0, 0, 1, 0, 0, 0]), 1, w.words(&[1, 0]), 0, 0]),
    case("semctl, stat", SYS_semctl, |w| [semaphores(w), 0, IPC_STAT as u64, w.room(104), 0, 0]),
    case("semctl, info", SYS_semctl, |w| [0, 0, IPC_INFO as u64, w.room(40), 0, 0]),
    case("semctl, getall", SYS_semctl, |w| [semaphores(w), 0, 13, w.room(6), 0, 0]),
    case("semctl, setall", SYS_semctl, |w| [semaphores(w), 0, 17, w.bytes(&[1, 0, 2, 0, 3, 0]), 0, 0]),
    case("semctl, set", SYS_semctl, |w| [semaphores(w), 0, IPC_SET as u64, w.bytes(&[0; 104]), 0, 0]),
    case("msgsnd", SYS_msgsnd, |w| [messages(w), w.words(&[7, 1, 2]), 16, 0, 0, 0]),
    case("msgrcv", SYS_msgrcv, |w| [messages(w), w.room(40), 32, 0, 0, 0]),
    case("msgctl, stat", SYS_msgctl, |w| [messages(w), IPC_STAT as u64, w.room(120), 0, 0, 0]),
    case("msgctl, info", SYS_msgctl, |w| [0, IPC_INFO as u64, w.room(32), 0, 0, 0]).loose(),
    case("msgctl, set", SYS_msgctl, |w| {
        let state = w.bytes(&[0; 120]);
        w.put(state + 88, &[0, 1]);
        [messages(w), IPC_SET as u64, state, 0, 0, 0]
    }),
    case("mq_open", SYS_mq_open, |w| {
        w.finally(|| {
            let name = std::ffi::CString::new(QUEUE).expect("no zero");
            raw(SYS_mq_unlink, [name.as_ptr() as u64, 0, 0, 0, 0, 0]);
        });
        let attributes = w.room(64);
        w.put(attributes + 8, &[4, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0]);
        [w.text(QUEUE), (O_CREAT | O_RDWR) as u64, 0o600, attributes, 0, 0]
    }),
    case("mq_unlink", SYS_mq_unlink, |w| [w.text("no-such-queue"), 0, 0, 0, 0, 0]).fails(ENOENT),
    case("mq_timedsend", SYS_mq_timedsend, |w| [queue(w), w.bytes(b"hello"), 5, 1, w.words(&[1, 0]), 0]),
    case("mq_timedreceive", SYS_mq_timedreceive, |w| [filled_queue(w), w.room(64), 64, w.room(4), w.words(&[1, 0]), 0]),
    case("mq_notify", SYS_mq_notify, |w| {
        let event = w.room(64);
        w.put(event + 8, &[0, 0, 0, 0, SIGEV_NONE as u8, 0, 0, 0]);
        [queue(w), event, 0, 0, 0, 0]
    }),
    case("mq_getsetattr", SYS_mq_getsetattr, |w| {
        let attributes = w.room(64);
        w.put(attributes, &[0; 8]);
        [queue(w), attributes, w.room(64), 0, 0, 0]
    }),
    case("futex, wait", SYS_futex, |w| [w.halves(&[5]), 0, 6, w.words(&[1, 0]), 0, 0]).fails(EAGAIN).uncut(),
    case("futex_waitv", SYS_futex_waitv, |w| {
        let word = w.halves(&[5]);
        [w.words(&[6, word, 2]), 1, 0, 0, 0, 0]
    })
    .fails(EAGAIN)
    .uncut(),
    case("futex_wait", 455, |w| [w.halves(&[5]), 6, 0xffff_ffff, 2, w.words(&[1, 0]), 1]).fails(EAGAIN).uncut(),
    case("get_robust_list", SYS_get_robust_list, |w| [0, w.room(8), w.room(8), 0, 0, 0]),
    case("io_setup", SYS_io_setup, |w| {
        let context = w.words(&[0]);
        w.finally(move || {
            // SAFETY: the object lives until the world's end.
            raw(SYS_io_destroy, [unsafe { *(context as *const u64) }, 0, 0, 0, 0, 0]);
        });
        [4, context, 0, 0, 0, 0]
    })
    .uncut(),
    case("io_submit, write", SYS_io_submit, |w| {
        let buffer = w.bytes(&[1; 50]);
        [aio_context(w), 1, control_block(w, 1, buffer, 50).1, 0, 0, 0]
    })
    .uncut(),
    case("io_getevents", SYS_io_getevents, |w| [ended_operation(w, 50), 1, 2, w.room(64), w.words(&[1, 0]), 0])
        .uncut()
        .loose()
        .late(),
    case("io_pgetevents", 333, |w| {
        let mask = w.words(&[0]);
        [ended_operation(w, 50), 1, 2, w.room(64), w.words(&[1, 0]), w.words(&[mask, 8])]
    })
    .uncut()
    .loose()
    .late(),
    case("io_uring_setup", SYS_io_uring_setup, |w| {
        let parameters = w.room(120);
        w.put(parameters, &[0; 40]);
        w.put(parameters + 72, &[0; 8]);
        w.put(parameters + 112, &[0; 8]);
        [4, parameters, 0, 0, 0, 0]
    }),
    case("io_uring_register, probe", SYS_io_uring_register, |w| [ring(w), 8, w.bytes(&[0; 16 + 40 * 8]), 40, 0, 0]),
    case("io_uring_register, files", SYS_io_uring_register, |w| {
        let file = w.file() as u32;
        [ring(w), 2, w.halves(&[file, file]), 2, 0, 0]
    }),
    case("io_uring_register, buffers", SYS_io_uring_register, |w| {
        let buffer = w.room(4096);
        [ring(w), 0, w.words(&[buffer, 4096]), 1, 0, 0]
    })
    .late(),
    case("io_uring_register, eventfd", SYS_io_uring_register, |w| {
        let event = w.native(SYS_eventfd2, [0; 6]) as u32;
        [ring(w), 4, w.halves(&[event]), 1, 0, 0]
    }),
    case("io_uring_register, workers", SYS_io_uring_register, |w| [ring(w), 19, w.halves(&[0, 0]), 2, 0, 0]),
];
