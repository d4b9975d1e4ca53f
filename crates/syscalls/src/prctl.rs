//! `prctl` and `arch_prctl`, by their option.

use crate::family::filter_program;
use crate::visit::Visit;

/// What an option's second argument is.
#[derive(Clone, Copy)]
enum Second {
    /// It takes none.
    Absent,
    /// A number.
    Value,
    /// The kernel writes so many bytes to its address.
    Out(&'static str, u64),
}

/// The options that only these shapes are needed for; all others take five registers, and are below.
fn second(option: u64) -> Option<Second> {
    Some(match option {
        // PDEATHSIG, DUMPABLE, UNALIGN, KEEPCAPS, FPEMU, FPEXC, TIMING: set, get.
        1 | 4 | 6 | 8 | 10 | 12 | 14 => Second::Value,
        2 => Second::Out("prctl(get-death-signal)", 4),
        5 => Second::Out("prctl(get-unalign)", 4),
        9 => Second::Out("prctl(get-fpemu)", 4),
        11 => Second::Out("prctl(get-fpexc)", 4),
        3 | 7 | 13 => Second::Absent,
        // NAME: see below. ENDIAN, SECCOMP, CAPBSET, TSC, SECUREBITS, TIMERSLACK.
        16 => Second::Out("prctl(get-name)", 16),
        19 => Second::Out("prctl(get-endian)", 4),
        20 | 23 | 24 | 26 | 28 | 29 => Second::Value,
        21 | 27 | 30 | 31 | 32 => Second::Absent,
        25 => Second::Out("prctl(get-tsc)", 4),
        // CHILD_SUBREAPER, TID_ADDRESS.
        36 => Second::Value,
        37 => Second::Out("prctl(get-child-subreaper)", 4),
        40 => Second::Out("prctl(get-tid-address)", 8),
        // SHADOW_STACK_STATUS.
        74 => Second::Out("prctl(get-shadow-stack-status)", 8),
        // PR_SET_PTRACER.
        0x5961_6d61 => Second::Value,
        _ => return None,
    })
}

const SET_NAME: u64 = 15;
const SET_SECCOMP: u64 = 22;
const SET_MM: u64 = 35;
const SYSCALL_USER_DISPATCH: u64 = 59;
const SCHED_CORE: u64 = 62;
const SET_VMA: u64 = 0x5356_4d41;
const GET_AUXV: u64 = 0x4155_5856;
const SECCOMP_FILTER: u64 = 2;

pub(crate) fn prctl_registers(args: &[u64; 6]) -> u8 {
    let option = u64::from(args[0] as u32);
    match (option, second(option)) {
        (_, Some(Second::Absent)) => 0b0_0001,
        (_, Some(_)) | (SET_NAME, _) => 0b0_0011,
        (SET_SECCOMP, _) if args[1] != SECCOMP_FILTER => 0b0_0011,
        (SET_SECCOMP, _) => 0b0_0111,
        _ => 0b1_1111,
    }
}

/// Memcheck's names of the second argument, and of the third that a filter has.
pub(crate) fn prctl_names(args: &[u64; 6], index: usize) -> &'static str {
    match (u64::from(args[0] as u32), index) {
        (1 | 2, 1) => "signal",
        (4, 1) => "dump",
        (5 | 6 | 9..=12 | 19 | 20, 1) => "value",
        (8, 1) => "keepcaps",
        (14, 1) => "timing",
        (SET_NAME | 16, 1) => "name",
        (SET_SECCOMP, 1) => "mode",
        (SET_SECCOMP, 2) => "filter",
        (23 | 24, 1) => "capability",
        (0x5961_6d61, 1) => "ptracer_process_ID",
        _ => "",
    }
}

pub(crate) fn prctl(visit: &mut Visit<'_>) {
    let option = visit.arg(0) & 0xffff_ffff;
    if let Some(Second::Out(name, size)) = second(option) {
        return visit.whole(name, visit.arg(1), size);
    }
    let [a2, a3, a4, a5] = [1, 2, 3, 4].map(|index| visit.arg(index));
    match option {
        SET_NAME => visit.text("prctl(set-name)", a2, 15),
        SET_SECCOMP if a2 == SECCOMP_FILTER => {
            let names = [
                "prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filter)",
                "prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filter->filter)",
            ];
            filter_program(visit, names[0], names[1], a3);
        }
        SET_MM => memory_map(visit, a2, a3, a4),
        SYSCALL_USER_DISPATCH if a5 != 0 => visit.copied("prctl(set-syscall-user-dispatch, selector)", a5, 1),
        // The cookie of a scheduling group is only given out.
        SCHED_CORE if a2 == 0 => visit.whole("prctl(sched-core-get)", a5, 8),
        SET_VMA if a2 == 0 && a5 != 0 => visit.text("prctl(set-vma-anon-name)", a5, 80),
        GET_AUXV => visit.output("prctl(get-auxv)", a2, a3, visit.returned()),
        _ => {}
    }
}

/// `PR_SET_MM`: most fields are addresses as such.
fn memory_map(visit: &mut Visit<'_>, field: u64, address: u64, size: u64) {
    const AUXV: u64 = 12;
    const MAP: u64 = 14;
    const MAP_SIZE: u64 = 15;
    match field {
        AUXV => visit.input("prctl(set-mm-auxv)", address, size),
        MAP => {
            visit.input("prctl(set-mm-map)", address, size.min(4096));
            let auxv = visit.u64_or_0(address.wrapping_add(88));
            visit.input("prctl(set-mm-map, auxv)", auxv, visit.u32_or_0(address.wrapping_add(96)));
        }
        MAP_SIZE => visit.whole("prctl(set-mm-map-size)", address, 4),
        _ => {}
    }
}

pub(crate) fn arch_prctl(visit: &mut Visit<'_>) {
    match visit.arg(0) & 0xffff_ffff {
        // GET_FS, GET_GS; GET_XCOMP_SUPP, _PERM, _GUEST_PERM; GET_UNTAG_MASK, GET_MAX_TAG_BITS; SHSTK_STATUS.
        0x1003 | 0x1004 | 0x1021 | 0x1022 | 0x1024 | 0x4001 | 0x4003 | 0x5005 => {
            visit.whole("arch_prctl(addr)", visit.arg(1), 8);
        }
        _ => {}
    }
}
