//! `ptrace`, by its request. The third argument is an address in the traced process, except where the rules use it.

use crate::visit::Visit;

/// `struct user_regs_struct`, `struct user_i387_struct`.
const REGISTERS: u64 = 216;
const FLOATING: u64 = 512;
const SIGINFO: u64 = 128;

pub(crate) fn ptrace(visit: &mut Visit<'_>) {
    let (addr, data) = (visit.arg(2), visit.arg(3));
    match visit.arg(0) {
        // The call itself, unlike the C library's function, writes the word that it read.
        1..=3 => visit.whole("ptrace(peek)", data, 8),
        12 => visit.whole("ptrace(getregs)", data, REGISTERS),
        13 => visit.input("ptrace(setregs)", data, REGISTERS),
        14 => visit.whole("ptrace(getfpregs)", data, FLOATING),
        15 => visit.input("ptrace(setfpregs)", data, FLOATING),
        25 => visit.whole("ptrace(get_thread_area)", data, 16),
        26 => visit.input("ptrace(set_thread_area)", data, 16),
        // ARCH_PRCTL has its own two arguments the other way round; only the getters write.
        30 if matches!(data, 0x1003 | 0x1004) => visit.whole("ptrace(arch_prctl)", addr, 8),
        0x4201 => visit.whole("ptrace(geteventmsg)", data, 8),
        0x4202 => visit.whole("ptrace(getsiginfo)", data, SIGINFO),
        0x4203 => visit.input("ptrace(setsiginfo)", data, 48),
        0x4204 => get_register_set(visit, data),
        0x4205 => set_register_set(visit, data),
        0x4209 => {
            visit.input("ptrace(peeksiginfo)", addr, 16);
            let room = visit.u32_or_0(addr.wrapping_add(12));
            let room = if room as i32 > 0 { room } else { 0 };
            visit.output("ptrace(peeksiginfo, siginfo)", data, room * SIGINFO, visit.returned().min(room) * SIGINFO);
        }
        0x420a => visit.whole("ptrace(getsigmask)", data, addr.min(8)),
        0x420b => visit.input("ptrace(setsigmask)", data, addr.min(8)),
        // SECCOMP_GET_FILTER returns how many instructions there are.
        0x420c if data != 0 => visit.output("ptrace(seccomp_get_filter)", data, 8, visit.returned() * 8),
        0x420d => {
            visit.input("ptrace(seccomp_get_metadata)", data, 8);
            visit.output("ptrace(seccomp_get_metadata)", data, addr, visit.returned());
        }
        // GET_SYSCALL_INFO returns how much there is; GET_RSEQ_CONFIGURATION likewise.
        0x420e => visit.output("ptrace(get_syscall_info)", data, addr, visit.returned()),
        0x420f => visit.output("ptrace(get_rseq_configuration)", data, addr, visit.returned()),
        0x4210 => visit.input("ptrace(set_syscall_user_dispatch_config)", data, addr.min(4096)),
        0x4211 => visit.whole("ptrace(get_syscall_user_dispatch_config)", data, addr.min(32)),
        0x4212 => visit.input("ptrace(set_syscall_info)", data, addr.min(4096)),
        _ => {}
    }
}

/// A vector of one element, whose length becomes what was written.
fn get_register_set(visit: &mut Visit<'_>, vector: u64) {
    visit.input("ptrace(getregset iovec->iov_base)", vector, 8);
    visit.input("ptrace(getregset iovec->iov_len)", vector.wrapping_add(8), 8);
    let (base, now) = (visit.u64_or_0(vector), visit.u64_or_0(vector.wrapping_add(8)));
    let room = visit.keep(0, now);
    visit.output("ptrace(getregset *(iovec->iov_base))", base, room, now);
    if !visit.is_before() {
        visit.whole("ptrace(getregset iovec->iov_len)", vector.wrapping_add(8), 8);
    }
}

fn set_register_set(visit: &mut Visit<'_>, vector: u64) {
    visit.input("ptrace(setregset iovec->iov_base)", vector, 8);
    visit.input("ptrace(setregset iovec->iov_len)", vector.wrapping_add(8), 8);
    let (base, length) = (visit.u64_or_0(vector), visit.u64_or_0(vector.wrapping_add(8)));
    visit.input("ptrace(setregset *(iovec->iov_base))", base, length);
    if !visit.is_before() {
        visit.whole("ptrace(setregset iovec->iov_len)", vector.wrapping_add(8), 8);
    }
}
