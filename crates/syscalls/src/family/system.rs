//! The machine as a whole, its modules, and the kernel's own programs and rules.

use crate::bpf::bpf;
use crate::rule::{by, bytes, count_of, input, output, text, text_of};
use crate::shape::sized;
use crate::table::syscalls;
use crate::visit::Visit;

/// `struct new_utsname`: six names of 65 bytes.
const UTSNAME: u32 = 390;
/// Arguments of a module are cut at this.
const MODULE_ARGUMENTS: u32 = 1 << 17;
/// `struct kexec_segment`.
const SEGMENT: u32 = 32;

syscalls! {
    /// The machine and the kernel.
    SYSTEM:
    63 uname(buf: ptr) [output(buf, bytes(UTSNAME))];
    99 sysinfo(info: ptr) [output(info, bytes(112))];
    103 syslog(r#type: int, bufp: ptr, len: int) [by(syslog)] is BLOCKS;
    139 sysfs(option: int, arg1: ulong, arg2: ulong) [by(sysfs)];
    153 vhangup();
    163 acct(filename: ptr) [text(filename).or_null()];
    169 reboot(magic1: int, magic2: int, cmd: uint, arg: ptr) [by(reboot)];
    170 sethostname(name: ptr, len: int) [input(name, count_of(len))];
    171 setdomainname(name: ptr, len: int) [input(name, count_of(len))];
    172 iopl(level: uint);
    173 ioperm(from: ulong, num: ulong, turn_on: int);
    175 init_module(umod: ptr, len: ulong, uargs: ptr) [input(umod, count_of(len)), text_of(uargs, MODULE_ARGUMENTS)]
        is BLOCKS;
    176 delete_module(name_user: ptr, flags: uint) [text_of(name_user, 56)] is BLOCKS;
    246 kexec_load(entry: ulong, nr_segments: ulong, segments: ptr, flags: ulong) [by(kexec_load)];
    298 perf_event_open(attr: ptr, pid: int, cpu: int, group_fd: int, flags: ulong) [by(perf_event_open)] is OPENS;
    313 finit_module(fd: int, params: ptr, flags: int) [text_of(params, MODULE_ARGUMENTS)] is BLOCKS;
    317 seccomp(op: uint, flags: uint, uargs: ptr) [by(seccomp)] is OPENS | ENGINE;
    320 kexec_file_load(kernel_fd: int, initrd_fd: int, cmdline_len: ulong, cmdline_ptr: ptr, flags: ulong)
        [input(cmdline_ptr, count_of(cmdline_len))] is BLOCKS;
    321 bpf(cmd: int, attr: ptr, size: uint) [by(bpf)] is OPENS | LATER;
    335 uretprobe() is ENGINE;
    336 uprobe() is ENGINE;
    444 landlock_create_ruleset(attr: ptr, size: ulong, flags: uint) [input(attr, count_of(size)).or_null()] is OPENS;
    445 landlock_add_rule(ruleset_fd: int, rule_type: int, rule_attr: ptr, flags: uint) [by(landlock_add_rule)];
    446 landlock_restrict_self(ruleset_fd: int, flags: uint);
    459 lsm_get_self_attr(attr: uint, ctx: ptr, size: ptr, flags: uint) [by(lsm_get_self_attr)];
    460 lsm_set_self_attr(attr: uint, ctx: ptr, size: uint, flags: uint) [input(ctx, count_of(size))];
    461 lsm_list_modules(ids: ptr, size: ptr, flags: uint) [by(lsm_list_modules)];
}

/// Three of the commands fill the buffer; how far is what they return.
fn syslog(visit: &mut Visit<'_>) {
    if (2..=4).contains(&visit.int(0)) {
        visit.output("syslog(bufp)", visit.arg(1), visit.count(2), visit.returned());
    }
}

/// 1: a name to a number. 2: a number to a name, into a buffer that must be long enough; the longest name has 31 bytes.
fn sysfs(visit: &mut Visit<'_>) {
    match visit.int(0) {
        1 => visit.text("sysfs(fsname)", visit.arg(1), 4096),
        2 => visit.output_text("sysfs(buf)", visit.arg(2), 1, 32),
        _ => {}
    }
}

fn reboot(visit: &mut Visit<'_>) {
    const RESTART2: u64 = 0xa1b2_c3d4;
    if visit.arg(2) == RESTART2 {
        visit.text("reboot(arg)", visit.arg(3), 256);
    }
}

/// `struct kexec_segment`: a buffer, its bytes, and where they go.
fn kexec_load(visit: &mut Visit<'_>) {
    const MOST_SEGMENTS: u64 = 16;
    let count = visit.arg(1);
    if count > MOST_SEGMENTS {
        return;
    }
    visit.input("kexec_load(segments)", visit.arg(2), count * u64::from(SEGMENT));
    for index in 0..count {
        let at = visit.arg(2).wrapping_add(index * u64::from(SEGMENT));
        let (buffer, size) = (visit.u64_or_0(at), visit.u64_or_0(at.wrapping_add(8)));
        visit.input("kexec_load(segments[...].buf)", buffer, size);
    }
}

/// A size that is too large comes back as the one that the kernel knows.
fn perf_event_open(visit: &mut Visit<'_>) {
    const E2BIG: i64 = 7;
    const FIRST_SIZE: u64 = 64;
    let attr = visit.arg(0);
    sized(visit, ("perf_event_open(attr->size)", "perf_event_open(attr)"), attr, 4, FIRST_SIZE);
    if !visit.is_before() {
        visit.output_if("perf_event_open(attr->size)", attr.wrapping_add(4), 4, visit.error() == E2BIG);
    }
}

fn seccomp(visit: &mut Visit<'_>) {
    let args = visit.arg(2);
    match visit.arg(0) {
        // SET_MODE_FILTER, GET_ACTION_AVAIL, GET_NOTIF_SIZES.
        1 => super::net::filter_program(visit, "seccomp(uargs)", "seccomp(uargs->filter)", args),
        2 => visit.input("seccomp(uargs)", args, 4),
        3 => visit.whole("seccomp(uargs)", args, 6),
        _ => {}
    }
}

/// Rules about what lies beneath a path, and about ports.
fn landlock_add_rule(visit: &mut Visit<'_>) {
    match visit.int(1) {
        1 => visit.input("landlock_add_rule(rule_attr)", visit.arg(2), 12),
        2 => visit.input("landlock_add_rule(rule_attr)", visit.arg(2), 16),
        _ => {}
    }
}

/// What is written is as long as the size says afterwards; it also tells what would have been needed.
fn lsm_get_self_attr(visit: &mut Visit<'_>) {
    const E2BIG: i64 = 7;
    let (context, size) = (visit.arg(1), visit.arg(2));
    visit.input("lsm_get_self_attr(size)", size, 4);
    let now = visit.u32_or_0(size);
    let room = visit.keep(0, now);
    if context != 0 {
        visit.output("lsm_get_self_attr(ctx)", context, room, now);
    }
    if !visit.is_before() {
        let told = visit.error() == 0 || visit.error() == E2BIG;
        visit.output_if("lsm_get_self_attr(size)", size, 4, told);
    }
}

fn lsm_list_modules(visit: &mut Visit<'_>) {
    const E2BIG: i64 = 7;
    let size = visit.arg(1);
    visit.input("lsm_list_modules(size)", size, 4);
    let now = visit.u32_or_0(size);
    let room = visit.keep(0, now);
    visit.output("lsm_list_modules(ids)", visit.arg(0), room, visit.returned() * 8);
    if !visit.is_before() {
        let told = visit.error() == 0 || visit.error() == E2BIG;
        visit.output_if("lsm_list_modules(size)", size, 4, told);
    }
}
