//! Processes, memory, the machine.

use libc::*;

use crate::world::{World, raw};
use crate::{Case, case};

fn ended_child(world: &mut World) -> u64 {
    world.child(|| {}) as u64
}

fn key(world: &mut World) -> u64 {
    let (kind, name) =
        (std::ffi::CString::new("user").expect("no zero"), std::ffi::CString::new("leakscope").expect("no zero"));
    // The process's own ring.
    let ring = -2_i64 as u64;
    let id = raw(SYS_add_key, [kind.as_ptr() as u64, name.as_ptr() as u64, b"secret".as_ptr() as u64, 6, ring, 0]);
    assert!(id > 0);
    world.finally(move || {
        raw(SYS_keyctl, [3, id as u64, 0, 0, 0, 0]);
    });
    id as u64
}

/// A vector of one element, for register sets.
fn register_vector(world: &mut World, size: usize) -> u64 {
    let room = world.room(size);
    world.words(&[room, size as u64])
}

/// Reads a traced child's registers as they are.
fn registers(world: &mut World, child: u64, request: u64, size: usize) -> u64 {
    let mut registers = vec![0_u8; size];
    assert_eq!(raw(SYS_ptrace, [request, child, 0, registers.as_mut_ptr() as u64, 0, 0]), 0);
    world.bytes(&registers)
}

fn me() -> u64 {
    raw(SYS_getpid, [0; 6]) as u64
}

/// Attributes of a counter of the kernel's own.
fn counter(world: &mut World) -> u64 {
    let mut attributes = [0_u8; 128];
    attributes[0] = 1;
    attributes[4] = 128;
    attributes[40] = 0x20;
    world.bytes(&attributes)
}

/// `union bpf_attr` of an array of four values of eight bytes.
fn bpf_array(world: &mut World) -> u64 {
    world.halves(&[2, 4, 8, 4, 0, 0, 0, 0])
}

pub const CASES: &[Case] = &[
    case("wait4", SYS_wait4, |w| [ended_child(w), w.room(4), 0, w.room(144), 0, 0]).uncut(),
    case("wait4, nobody", SYS_wait4, |w| {
        let child = w.stopped_child();
        [child, w.room(4), WNOHANG as u64, w.room(144), 0, 0]
    }),
    case("waitid", SYS_waitid, |w| [P_PID as u64, ended_child(w), w.room(128), WEXITED as u64, w.room(144), 0]).uncut(),
    case("waitid, nobody", SYS_waitid, |w| {
        let child = w.stopped_child();
        [P_PID as u64, child, w.room(128), (WEXITED | WNOHANG) as u64, w.room(144), 0]
    }),
    case("waitid, no child", SYS_waitid, |w| [P_PID as u64, 0x3fff_fff0, w.room(128), WEXITED as u64, w.room(144), 0])
        .fails(ECHILD),
    case("clone", SYS_clone, |w| {
        let flags = CLONE_PARENT_SETTID | CLONE_CHILD_SETTID | SIGCHLD;
        [flags as u64, 0, w.room(4), w.room(4), 0, 0]
    })
    .uncut(),
    case("clone3", SYS_clone3, |w| {
        let (descriptor, parent) = (w.room(4), w.room(4));
        let flags = (CLONE_PARENT_SETTID | CLONE_PIDFD) as u64;
        [w.words(&[flags, descriptor, 0, parent, SIGCHLD as u64, 0, 0, 0, 0, 0, 0]), 88, 0, 0, 0, 0]
    })
    .uncut(),
    case("execve", SYS_execve, |w| {
        let strings = [w.text("program"), w.text("argument"), w.text("A=b")];
        [w.text("/no/such/file"), w.words(&[strings[0], strings[1], 0]), w.words(&[strings[2], 0]), 0, 0, 0]
    })
    .fails(ENOENT)
    .uncut(),
    case("getrlimit", SYS_getrlimit, |w| [RLIMIT_NOFILE as u64, w.room(16), 0, 0, 0, 0]),
    case("setrlimit", SYS_setrlimit, |w| [RLIMIT_CORE as u64, w.words(&[0, u64::MAX]), 0, 0, 0, 0]),
    case("prlimit64", SYS_prlimit64, |w| [0, RLIMIT_CORE as u64, w.words(&[0, u64::MAX]), w.room(16), 0, 0]),
    case("getrusage", SYS_getrusage, |w| [0, w.room(144), 0, 0, 0, 0]),
    case("getgroups", SYS_getgroups, |w| [1000, w.room(4000), 0, 0, 0, 0]),
    case("getresuid", SYS_getresuid, |w| [w.room(4), w.room(4), w.room(4), 0, 0, 0]),
    case("getresgid", SYS_getresgid, |w| [w.room(4), w.room(4), w.room(4), 0, 0, 0]),
    case("capget", SYS_capget, |w| [w.halves(&[0x2008_0522, 0]), w.room(24), 0, 0, 0, 0]),
    case("capget, old", SYS_capget, |w| [w.halves(&[0x1998_0330, 0]), w.room(12), 0, 0, 0, 0]),
    case("capget, version", SYS_capget, |w| [w.halves(&[1, 0]), 0, 0, 0, 0, 0]).uncut(),
    case("capset", SYS_capset, |w| {
        let mut sets = [0_u32; 6];
        let header = [0x2008_0522_u32, 0];
        raw(SYS_capget, [header.as_ptr() as u64, sets.as_mut_ptr() as u64, 0, 0, 0, 0]);
        [w.halves(&header), w.halves(&sets), 0, 0, 0, 0]
    }),
    case("sched_getparam", SYS_sched_getparam, |w| [0, w.room(4), 0, 0, 0, 0]),
    case("sched_setparam", SYS_sched_setparam, |w| [0, w.halves(&[0]), 0, 0, 0, 0]),
    case("sched_setscheduler", SYS_sched_setscheduler, |w| [0, 0, w.halves(&[0]), 0, 0, 0]),
    case("sched_rr_get_interval", SYS_sched_rr_get_interval, |w| [0, w.room(16), 0, 0, 0, 0]),
    case("sched_getaffinity", SYS_sched_getaffinity, |w| [0, 2048, w.room(2048), 0, 0, 0]),
    case("sched_setaffinity", SYS_sched_setaffinity, |w| [0, 8, w.words(&[u64::MAX]), 0, 0, 0]),
    case("sched_getattr", SYS_sched_getattr, |w| [0, w.room(56), 56, 0, 0, 0]),
    case("sched_getattr, short", SYS_sched_getattr, |w| [0, w.room(48), 48, 0, 0, 0]),
    case("sched_setattr", SYS_sched_setattr, |w| {
        let mut attributes = [0_u32; 14];
        attributes[0] = 56;
        [0, w.halves(&attributes), 0, 0, 0, 0]
    }),
    case("getcpu", SYS_getcpu, |w| [w.room(4), w.room(4), 0, 0, 0, 0]),
    case("kcmp", SYS_kcmp, |w| [me(), me(), 7, w.pipe().0, w.halves(&[0, 0, 0]), 0]).fails(EINVAL),
    case("prctl, death signal", SYS_prctl, |w| [2, w.room(4), 0, 0, 0, 0]),
    case("prctl, get name", SYS_prctl, |w| [16, w.room(16), 0, 0, 0, 0]),
    case("prctl, set name", SYS_prctl, |w| [15, w.text("a name"), 0, 0, 0, 0]),
    case("prctl, set long name", SYS_prctl, |w| [15, w.bytes(&[b'n'; 15]), 0, 0, 0, 0]),
    case("prctl, time stamp counter", SYS_prctl, |w| [25, w.room(4), 0, 0, 0, 0]),
    case("prctl, subreaper", SYS_prctl, |w| [37, w.room(4), 0, 0, 0, 0]),
    case("prctl, thread id address", SYS_prctl, |w| [40, w.room(8), 0, 0, 0, 0]),
    case("prctl, auxiliary vector", SYS_prctl, |w| [0x4155_5856, w.room(100), 100, 0, 0, 0]),
    case("prctl, map size", SYS_prctl, |w| [35, 15, w.room(4), 0, 0, 0]),
    case("arch_prctl, get_fs", SYS_arch_prctl, |w| [0x1003, w.room(8), 0, 0, 0, 0]),
    case("arch_prctl, get_gs", SYS_arch_prctl, |w| [0x1004, w.room(8), 0, 0, 0, 0]),
    case("arch_prctl, features", SYS_arch_prctl, |w| [0x1021, w.room(8), 0, 0, 0, 0]),
    case("arch_prctl, permitted", SYS_arch_prctl, |w| [0x1022, w.room(8), 0, 0, 0, 0]),
    case("modify_ldt, default", SYS_modify_ldt, |w| [2, w.room(100), 100, 0, 0, 0]),
    case("modify_ldt, write", SYS_modify_ldt, |w| [0x11, w.halves(&[1, 0, 0, 0x28]), 16, 0, 0, 0]),
    case("ptrace, peek", SYS_ptrace, |w| {
        let seen = w.words(&[7]);
        let child = w.stopped_child();
        [PTRACE_PEEKDATA as u64, child, seen & !7, w.room(8), 0, 0]
    }),
    case("ptrace, getregs", SYS_ptrace, |w| [12, w.stopped_child(), 0, w.room(216), 0, 0]).loose(),
    case("ptrace, setregs", SYS_ptrace, |w| {
        let child = w.stopped_child();
        [13, child, 0, registers(w, child, 12, 216), 0, 0]
    }),
    case("ptrace, getfpregs", SYS_ptrace, |w| [14, w.stopped_child(), 0, w.room(512), 0, 0]),
    case("ptrace, setfpregs", SYS_ptrace, |w| {
        let child = w.stopped_child();
        [15, child, 0, registers(w, child, 14, 512), 0, 0]
    }),
    case("ptrace, geteventmsg", SYS_ptrace, |w| [0x4201, w.stopped_child(), 0, w.room(8), 0, 0]),
    case("ptrace, getsiginfo", SYS_ptrace, |w| [0x4202, w.stopped_child(), 0, w.room(128), 0, 0]),
    case("ptrace, setsiginfo", SYS_ptrace, |w| {
        let child = w.stopped_child();
        let mut info = [0_u8; 128];
        raw(SYS_ptrace, [0x4202, child, 0, info.as_mut_ptr() as u64, 0, 0]);
        [0x4203, child, 0, w.bytes(&info[..48]), 0, 0]
    }),
    case("ptrace, getregset", SYS_ptrace, |w| [0x4204, w.stopped_child(), 1, register_vector(w, 216), 0, 0]).loose(),
    case("ptrace, getregset, larger", SYS_ptrace, |w| [0x4204, w.stopped_child(), 1, register_vector(w, 304), 0, 0])
        .loose(),
    case("ptrace, setregset", SYS_ptrace, |w| {
        let child = w.stopped_child();
        let old = registers(w, child, 12, 216);
        [0x4205, child, 1, w.words(&[old, 216]), 0, 0]
    }),
    case("ptrace, peeksiginfo", SYS_ptrace, |w| {
        [0x4209, w.stopped_child(), w.halves(&[0, 0, 0, 2]), w.room(256), 0, 0]
    }),
    case("ptrace, getsigmask", SYS_ptrace, |w| [0x420a, w.stopped_child(), 8, w.room(8), 0, 0]),
    case("ptrace, setsigmask", SYS_ptrace, |w| [0x420b, w.stopped_child(), 8, w.words(&[0]), 0, 0]),
    case("ptrace, get_syscall_info", SYS_ptrace, |w| [0x420e, w.stopped_child(), 200, w.room(200), 0, 0]),
    case("ptrace, get_rseq_configuration", SYS_ptrace, |w| [0x420f, w.stopped_child(), 24, w.room(24), 0, 0]),
    case("mincore", SYS_mincore, |w| {
        let seen = w.room(4096 * 3) & !4095;
        [seen, 4096 * 3, w.room(3), 0, 0, 0]
    }),
    case("mbind", SYS_mbind, |w| {
        let seen = w.room(4096) & !4095;
        [seen, 4096, 1, w.words(&[1]), 64, 0]
    })
    .uncut(),
    case("set_mempolicy", SYS_set_mempolicy, |w| [1, w.words(&[1]), 64, 0, 0, 0]),
    case("set_mempolicy, default", SYS_set_mempolicy, |_| [0; 6]),
    case("get_mempolicy", SYS_get_mempolicy, |w| [w.room(4), w.room(128), 1024, 0, 0, 0]),
    case("migrate_pages", SYS_migrate_pages, |w| [0, 64, w.words(&[1]), w.words(&[1]), 0, 0]),
    case("move_pages", SYS_move_pages, |w| {
        let seen = w.room(4096) & !4095;
        [0, 1, w.words(&[seen]), 0, w.room(4), 0]
    }),
    case("move_pages, to nodes", SYS_move_pages, |w| {
        let seen = w.room(4096) & !4095;
        [0, 1, w.words(&[seen]), w.halves(&[0]), w.room(4), 0]
    }),
    case("process_vm_readv", SYS_process_vm_readv, |w| {
        let seen = w.bytes(&[3; 40]);
        [me(), w.vector(&[(5, None), (50, None)]), 2, w.words(&[seen, 40]), 1, 0]
    })
    .uncut()
    .late(),
    case("process_vm_writev", SYS_process_vm_writev, |w| {
        let seen = w.room(40);
        let child = w.stopped_child();
        [child, w.vector(&[(5, Some(1)), (10, Some(2))]), 2, w.words(&[seen, 40]), 1, 0]
    })
    .uncut()
    .late(),
    case("process_madvise", SYS_process_madvise, |w| {
        let seen = w.room(4096) & !4095;
        [w.native(SYS_pidfd_open, [me(), 0, 0, 0, 0, 0]), w.words(&[seen, 4096]), 1, MADV_WILLNEED as u64, 0, 0]
    }),
    case("uname", SYS_uname, |w| [w.room(390), 0, 0, 0, 0, 0]),
    case("sysinfo", SYS_sysinfo, |w| [w.room(112), 0, 0, 0, 0, 0]),
    case("syslog", SYS_syslog, |w| [3, w.room(300), 300, 0, 0, 0]).uncut(),
    case("sysfs, name", SYS_sysfs, |w| [1, w.text("proc"), 0, 0, 0, 0]),
    case("sysfs, number", SYS_sysfs, |w| [2, 0, w.room(32), 0, 0, 0]).late(),
    case("delete_module", SYS_delete_module, |w| [w.text("no_such_module"), 0, 0, 0, 0, 0]).fails(ENOENT),
    case("perf_event_open", SYS_perf_event_open, |w| [counter(w), 0, u64::MAX, u64::MAX, 0, 0]),
    case("perf_event_open, too big", SYS_perf_event_open, |w| {
        let attributes = w.bytes(&[0xff; 2000]);
        w.put(attributes + 4, &2000_u32.to_le_bytes());
        [attributes, 0, u64::MAX, u64::MAX, 0, 0]
    })
    .fails(E2BIG)
    .uncut(),
    case("seccomp, action", SYS_seccomp, |w| [2, 0, w.halves(&[0x7fff_0000]), 0, 0, 0]),
    case("seccomp, sizes", SYS_seccomp, |w| [3, 0, w.room(6), 0, 0, 0]),
    case("landlock_create_ruleset", 444, |w| [w.words(&[1]), 8, 0, 0, 0, 0]),
    case("landlock_add_rule, path", 445, |w| {
        let set = 1_u64;
        let ruleset = w.native(444, [&raw const set as u64, 8, 0, 0, 0, 0]);
        let folder = w.directory() as u32;
        [ruleset, 1, w.halves(&[1, 0, folder]), 0, 0, 0]
    }),
    case("lsm_list_modules", 461, |w| [w.room(80), w.halves(&[80]), 0, 0, 0, 0]),
    case("lsm_list_modules, too small", 461, |w| [w.room(1), w.halves(&[1]), 0, 0, 0, 0]).fails(E2BIG).loose().uncut(),
    case("bpf, map", SYS_bpf, |w| [0, bpf_array(w), 32, 0, 0, 0]),
    case("bpf, program", SYS_bpf, |w| {
        // r0 = 0; exit
        let instructions = w.words(&[0xb7, 0x95]);
        let (licence, log) = (w.text("GPL"), w.room(400));
        [5, w.words(&[1 | 2 << 32, instructions, licence, 1 | 400 << 32, log]), 40, 0, 0, 0]
    })
    .uncut(),
    case("bpf, information", SYS_bpf, |w| {
        let array = bpf_array(w);
        let map = w.native(SYS_bpf, [0, array, 32, 0, 0, 0]);
        let room = w.room(100);
        // What the structure holds before is read too, and must be zero beyond what the kernel knows.
        w.put(room, &[0; 100]);
        [15, w.words(&[map | 100 << 32, room]), 16, 0, 0, 0]
    }),
    case("bpf, next map", SYS_bpf, |w| {
        let array = bpf_array(w);
        w.native(SYS_bpf, [0, array, 32, 0, 0, 0]);
        [12, w.halves(&[0, 0, 0]), 12, 0, 0, 0]
    }),
    case("add_key", SYS_add_key, |w| {
        key(w);
        [w.text("user"), w.text("leakscope"), w.bytes(b"value"), 5, -2_i64 as u64, 0]
    }),
    case("request_key", SYS_request_key, |w| {
        key(w);
        [w.text("user"), w.text("leakscope"), 0, 0, 0, 0]
    }),
    case("keyctl, describe", SYS_keyctl, |w| [6, key(w), w.room(100), 100, 0, 0]),
    case("keyctl, describe, too small", SYS_keyctl, |w| [6, key(w), w.room(3), 3, 0, 0]),
    case("keyctl, read", SYS_keyctl, |w| [11, key(w), w.room(100), 100, 0, 0]),
    case("keyctl, search", SYS_keyctl, |w| {
        key(w);
        [10, -2_i64 as u64, w.text("user"), w.text("leakscope"), 0, 0]
    }),
    case("keyctl, update", SYS_keyctl, |w| [2, key(w), w.bytes(b"other"), 5, 0, 0]),
    case("keyctl, security", SYS_keyctl, |w| [17, key(w), w.room(100), 100, 0, 0]),
    case("keyctl, capabilities", SYS_keyctl, |w| [31, w.room(20), 20, 0, 0, 0]),
];
