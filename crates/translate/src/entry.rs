//! The border between Rust and the cache: what saves and loads the guest's registers.
//!
//! `leakscope_translate_enter` loads them and jumps into the cache; code in the cache sets `exit_record` and jumps to
//! `leakscope_translate_exit`, which saves them and returns from `enter`. A light hook calls a C function in between and
//! saves no vectors. A signal that comes between `enter_begin` and `enter_end`, or `hook_begin` and `hook_end`, finds the
//! guest complete in the state page (these ranges only load), so [`crate::signal`] sends it to `enter_abort` or
//! `hook_abort`. Elsewhere in here the next look at `stop` is ahead.

use std::arch::global_asm;

use crate::layout;
use crate::state::slot;

/// A stack pointer that moves further goes to another stack. Source: Memcheck's `--max-stackframe`.
const STACK_SWITCH_BYTES: u64 = 2_000_000;

/// Longer strings are looked at in Rust.
const SCAN_ELEMENTS: u64 = 1 << 16;

global_asm!(
    ".globl leakscope_translate_enter",
    "leakscope_translate_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "push qword ptr [{engine_rsp}]",
    "mov qword ptr [{engine_rsp}], rsp",
    "mov qword ptr [{entry_target}], rdi",
    "rdfsbase rax",
    "mov qword ptr [{engine_fs}], rax",
    ".globl leakscope_translate_enter_begin",
    "leakscope_translate_enter_begin:",
    "cmp dword ptr [{stop}], 0",
    "jne leakscope_translate_enter_abort",
    "mov eax, dword ptr [{mask}]",
    "xor edx, edx",
    "xrstor64 [{xsave}]",
    "mov rax, qword ptr [{fs}]",
    "wrfsbase rax",
    "push qword ptr [{rflags}]",
    "popfq",
    "mov rax, qword ptr [{gpr}]",
    "mov rcx, qword ptr [{gpr} + 8]",
    "mov rdx, qword ptr [{gpr} + 16]",
    "mov rbx, qword ptr [{gpr} + 24]",
    "mov rsp, qword ptr [{gpr} + 32]",
    "mov rbp, qword ptr [{gpr} + 40]",
    "mov rsi, qword ptr [{gpr} + 48]",
    "mov rdi, qword ptr [{gpr} + 56]",
    "mov r8, qword ptr [{gpr} + 64]",
    "mov r9, qword ptr [{gpr} + 72]",
    "mov r10, qword ptr [{gpr} + 80]",
    "mov r11, qword ptr [{gpr} + 88]",
    "mov r12, qword ptr [{gpr} + 96]",
    "mov r13, qword ptr [{gpr} + 104]",
    "mov r14, qword ptr [{gpr} + 112]",
    "mov r15, qword ptr [{gpr} + 120]",
    "jmp qword ptr [{entry_target}]",
    ".globl leakscope_translate_enter_end",
    "leakscope_translate_enter_end:",
    // The guest is in the state page; its vectors as well.
    ".globl leakscope_translate_enter_abort",
    "leakscope_translate_enter_abort:",
    "mov rsp, qword ptr [{engine_rsp}]",
    "push 0x202",
    "popfq",
    "mov dword ptr [{record}], {stopped}",
    "jmp 3f",
    // A miss in the table of indirect branches: rcx is the guest's again, then as every exit.
    ".globl leakscope_translate_miss",
    "leakscope_translate_miss:",
    "mov rcx, qword ptr [{saved_rcx}]",
    "mov dword ptr [{record}], {indirect}",
    ".globl leakscope_translate_exit",
    "leakscope_translate_exit:",
    "mov qword ptr [{gpr} + 32], rsp",
    "mov rsp, qword ptr [{engine_rsp}]",
    "pushfq",
    "pop qword ptr [{rflags}]",
    "push 0x202",
    "popfq",
    "mov qword ptr [{gpr}], rax",
    "mov qword ptr [{gpr} + 8], rcx",
    "mov qword ptr [{gpr} + 16], rdx",
    "mov qword ptr [{gpr} + 24], rbx",
    "mov qword ptr [{gpr} + 40], rbp",
    "mov qword ptr [{gpr} + 48], rsi",
    "mov qword ptr [{gpr} + 56], rdi",
    "mov qword ptr [{gpr} + 64], r8",
    "mov qword ptr [{gpr} + 72], r9",
    "mov qword ptr [{gpr} + 80], r10",
    "mov qword ptr [{gpr} + 88], r11",
    "mov qword ptr [{gpr} + 96], r12",
    "mov qword ptr [{gpr} + 104], r13",
    "mov qword ptr [{gpr} + 112], r14",
    "mov qword ptr [{gpr} + 120], r15",
    "2:",
    "mov eax, dword ptr [{mask}]",
    "xor edx, edx",
    "xsave64 [{xsave}]",
    "3:",
    "mov rax, qword ptr [{engine_fs}]",
    "wrfsbase rax",
    "ldmxcsr dword ptr [{mxcsr}]",
    "pop qword ptr [{engine_rsp}]",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    // A replaced function: `hook_function(hook_tool, guest, hook_cookie)`, then the guest returns to its caller.
    ".globl leakscope_translate_hook",
    "leakscope_translate_hook:",
    "mov qword ptr [{gpr}], rax",
    "mov qword ptr [{gpr} + 8], rcx",
    "mov qword ptr [{gpr} + 16], rdx",
    "mov qword ptr [{gpr} + 24], rbx",
    "mov qword ptr [{gpr} + 32], rsp",
    "mov qword ptr [{gpr} + 40], rbp",
    "mov qword ptr [{gpr} + 48], rsi",
    "mov qword ptr [{gpr} + 56], rdi",
    "mov qword ptr [{gpr} + 64], r8",
    "mov qword ptr [{gpr} + 72], r9",
    "mov qword ptr [{gpr} + 80], r10",
    "mov qword ptr [{gpr} + 88], r11",
    "mov qword ptr [{gpr} + 96], r12",
    "mov qword ptr [{gpr} + 104], r13",
    "mov qword ptr [{gpr} + 112], r14",
    "mov qword ptr [{gpr} + 120], r15",
    "mov rsp, qword ptr [{engine_rsp}]",
    "sub rsp, 16",
    "and rsp, -16",
    "mov rax, qword ptr [{engine_fs}]",
    "wrfsbase rax",
    "mov dword ptr [{in_hook}], 1",
    "mov rdi, qword ptr [{hook_tool}]",
    "mov esi, {guest}",
    "mov rdx, qword ptr [{hook_cookie}]",
    "call qword ptr [{hook_function}]",
    "mov rax, qword ptr [{fs}]",
    "wrfsbase rax",
    "mov rax, qword ptr [{gpr} + 32]",
    "mov rcx, qword ptr [rax]",
    "mov dword ptr [{in_hook}], 0",
    "mov qword ptr [{rip}], rcx",
    "mov qword ptr [{target}], rcx",
    "add rax, 8",
    "mov qword ptr [{gpr} + 32], rax",
    ".globl leakscope_translate_hook_begin",
    "leakscope_translate_hook_begin:",
    "cmp dword ptr [{stop}], 0",
    "jne leakscope_translate_hook_abort",
    "mov rcx, qword ptr [{gpr} + 8]",
    "mov qword ptr [{saved_rcx}], rcx",
    "mov rax, qword ptr [{gpr}]",
    "mov rdx, qword ptr [{gpr} + 16]",
    "mov rbx, qword ptr [{gpr} + 24]",
    "mov rsp, qword ptr [{gpr} + 32]",
    "mov rbp, qword ptr [{gpr} + 40]",
    "mov rsi, qword ptr [{gpr} + 48]",
    "mov rdi, qword ptr [{gpr} + 56]",
    "mov r8, qword ptr [{gpr} + 64]",
    "mov r9, qword ptr [{gpr} + 72]",
    "mov r10, qword ptr [{gpr} + 80]",
    "mov r11, qword ptr [{gpr} + 88]",
    "mov r12, qword ptr [{gpr} + 96]",
    "mov r13, qword ptr [{gpr} + 104]",
    "mov r14, qword ptr [{gpr} + 112]",
    "mov r15, qword ptr [{gpr} + 120]",
    "movzx ecx, word ptr [{target}]",
    "jmp qword ptr [rcx*8 + {table}]",
    ".globl leakscope_translate_hook_end",
    "leakscope_translate_hook_end:",
    // The guest is in the state page, its vectors are in the processor.
    ".globl leakscope_translate_hook_abort",
    "leakscope_translate_hook_abort:",
    "mov rsp, qword ptr [{engine_rsp}]",
    "push 0x202",
    "popfq",
    "mov dword ptr [{in_hook}], 0",
    "mov dword ptr [{record}], {stopped}",
    "jmp 2b",
    // The same after a fault inside of the hook's function, which is given up.
    ".globl leakscope_translate_hook_fault",
    "leakscope_translate_hook_fault:",
    "mov rsp, qword ptr [{engine_rsp}]",
    "push 0x202",
    "popfq",
    "mov dword ptr [{in_hook}], 0",
    "mov dword ptr [{record}], {fault}",
    "jmp 2b",
    // Marks the stack between rsp and `new_rsp & new_rsp_mask`, less the red zone, then goes on at `mark_return`. Nothing
    // of the guest's changes; the guest is at `rip`, which begins anew when a stop is asked for.
    ".globl leakscope_translate_mark",
    "leakscope_translate_mark:",
    "mov qword ptr [{saved}], rax",
    "lahf",
    "seto al",
    "mov qword ptr [{saved} + 8], rax",
    "mov qword ptr [{saved} + 16], rcx",
    "mov qword ptr [{saved} + 24], rdi",
    "mov rcx, qword ptr [{new_rsp}]",
    "and rcx, qword ptr [{new_rsp_mask}]",
    "mov rdi, rsp",
    "mov rax, {guest_end}",
    "cmp rdi, rax",
    "jae leakscope_translate_mark_check",
    "sub rcx, rdi",
    "jg 4f",
    // Taken: all right from the new border to the old one.
    "neg rcx",
    "xor eax, eax",
    "sub rdi, rcx",
    "jmp 5f",
    // Given back: bad from the old border to the new one.
    "4:",
    "mov rax, -1",
    "5:",
    "cmp rcx, {far}",
    "ja leakscope_translate_mark_check",
    "cmp rcx, 8",
    "jb 7f",
    "6:",
    "mov qword ptr gs:[rdi - 128], rax",
    "add rdi, 8",
    "sub rcx, 8",
    "cmp rcx, 8",
    "jae 6b",
    "7:",
    "test rcx, rcx",
    "jz leakscope_translate_mark_check",
    "mov byte ptr gs:[rdi - 128], al",
    "inc rdi",
    "dec rcx",
    "jmp 7b",
    "jmp leakscope_translate_mark_check",
    // Looks at the shadow of what a repeated string instruction will touch (`scan`), then goes on at `mark_return`, or
    // at `scan_bad`. Backward and very long ones go to `scan_bad` at once.
    ".globl leakscope_translate_scan",
    "leakscope_translate_scan:",
    "mov qword ptr [{saved}], rax",
    "lahf",
    "seto al",
    "mov qword ptr [{saved} + 8], rax",
    "mov qword ptr [{saved} + 16], rcx",
    "mov qword ptr [{saved} + 24], rdi",
    "mov qword ptr [{saved} + 32], rdx",
    "mov qword ptr [{saved} + 40], rsp",
    "mov rsp, qword ptr [{engine_rsp}]",
    "pushfq",
    "pop rdx",
    "mov rsp, qword ptr [{saved} + 40]",
    "test edx, 0x400",
    "jnz 15f",
    "mov rdx, rcx",
    "test rdx, rdx",
    "jz 16f",
    "cmp rdx, {scan_elements}",
    "ja 15f",
    "mov ecx, dword ptr [{scan}]",
    "mov eax, ecx",
    "and ecx, 3",
    "shl rdx, cl",
    "test eax, 8",
    "jnz 11f",
    "10:",
    "mov rdi, rsi",
    "and eax, -5",
    "11:",
    "mov rcx, {scan_end}",
    "cmp rdi, rcx",
    "jae 15f",
    "mov rcx, rdx",
    "cmp rcx, 8",
    "jb 13f",
    "12:",
    "cmp qword ptr gs:[rdi], 0",
    "jne 15f",
    "add rdi, 8",
    "sub rcx, 8",
    "cmp rcx, 8",
    "jae 12b",
    "13:",
    "jrcxz 14f",
    "cmp byte ptr gs:[rdi], 0",
    "jne 15f",
    "inc rdi",
    "dec rcx",
    "jmp 13b",
    "14:",
    "test eax, 4",
    "jnz 10b",
    "jmp 16f",
    "15:",
    "mov rax, qword ptr [{scan_bad}]",
    "mov qword ptr [{mark_return}], rax",
    "16:",
    "mov rdx, qword ptr [{saved} + 32]",
    ".globl leakscope_translate_mark_check",
    "leakscope_translate_mark_check:",
    "mov ecx, dword ptr [{stop}]",
    "jrcxz 8f",
    "mov dword ptr [{record}], {stopped}",
    "mov rax, qword ptr [{exit_code}]",
    "mov qword ptr [{mark_return}], rax",
    "8:",
    "mov rdi, qword ptr [{saved} + 24]",
    "mov rcx, qword ptr [{saved} + 16]",
    "mov rax, qword ptr [{saved} + 8]",
    "add al, 0x7f",
    "sahf",
    "mov rax, qword ptr [{saved}]",
    "jmp qword ptr [{mark_return}]",
    ".globl leakscope_translate_mark_end",
    "leakscope_translate_mark_end:",
    engine_rsp = const slot!(engine_rsp),
    saved = const slot!(mark_saved),
    new_rsp = const slot!(new_rsp),
    new_rsp_mask = const slot!(new_rsp_mask),
    mark_return = const slot!(mark_return),
    guest_end = const crate::GUEST_END,
    far = const STACK_SWITCH_BYTES,
    scan = const slot!(scan),
    scan_bad = const slot!(scan_bad),
    scan_elements = const SCAN_ELEMENTS,
    scan_end = const crate::GUEST_END - (SCAN_ELEMENTS << 4),
    exit_code = const slot!(exit_code),
    entry_target = const slot!(entry_target),
    engine_fs = const slot!(engine_fs),
    stop = const slot!(stop),
    mask = const slot!(xsave_mask),
    xsave = const slot!(guest.xsave),
    fs = const slot!(guest.fs_base),
    rflags = const slot!(guest.rflags),
    rip = const slot!(guest.rip),
    gpr = const slot!(guest.gpr),
    guest = const slot!(guest),
    record = const slot!(exit_record),
    saved_rcx = const slot!(saved_rcx),
    target = const slot!(target),
    mxcsr = const slot!(default_mxcsr),
    in_hook = const slot!(in_hook),
    hook_tool = const slot!(hook_tool),
    hook_cookie = const slot!(hook_cookie),
    hook_function = const slot!(hook_function),
    table = const layout::TABLES,
    stopped = const crate::exits::STOPPED,
    fault = const crate::exits::FAULT,
    indirect = const crate::exits::INDIRECT,
);

unsafe extern "C" {
    fn leakscope_translate_enter(code: u64);
    fn leakscope_translate_enter_begin();
    fn leakscope_translate_enter_end();
    fn leakscope_translate_enter_abort();
    fn leakscope_translate_miss();
    fn leakscope_translate_exit();
    fn leakscope_translate_hook();
    fn leakscope_translate_hook_begin();
    fn leakscope_translate_hook_end();
    fn leakscope_translate_hook_abort();
    fn leakscope_translate_hook_fault();
    fn leakscope_translate_mark();
    fn leakscope_translate_scan();
    fn leakscope_translate_mark_check();
    fn leakscope_translate_mark_end();
}

/// Runs translated code until it exits.
///
/// # Safety
/// `code` is the start of a block in the cache (or a hook's stub), the state page is filled, GS base is the shadow's.
pub(crate) unsafe fn enter(code: u64) {
    // SAFETY: the caller's promise; the assembly keeps the callee-saved registers and the stack.
    unsafe { leakscope_translate_enter(code) }
}

/// The addresses in this file that code in the cache jumps to.
pub(crate) struct Labels {
    pub exit: u64,
    pub miss: u64,
    pub hook: u64,
    pub mark: u64,
    pub scan: u64,
}

pub(crate) fn labels() -> Labels {
    Labels {
        exit: leakscope_translate_exit as *const () as u64,
        miss: leakscope_translate_miss as *const () as u64,
        hook: leakscope_translate_hook as *const () as u64,
        mark: leakscope_translate_mark as *const () as u64,
        scan: leakscope_translate_scan as *const () as u64,
    }
}

/// Where a signal that came outside of the cache may send the thread, by where it was.
pub(crate) enum Border {
    /// The guest is complete in the state page: go to this address to leave.
    Resumable(u64),
    /// The next look at `stop` is ahead.
    Ahead,
}

pub(crate) fn border(host_pc: u64) -> Border {
    let between = |begin: unsafe extern "C" fn(), end: unsafe extern "C" fn()| {
        (begin as *const () as u64..end as *const () as u64).contains(&host_pc)
    };
    if between(leakscope_translate_enter_begin, leakscope_translate_enter_end) {
        Border::Resumable(leakscope_translate_enter_abort as *const () as u64)
    } else if between(leakscope_translate_hook_begin, leakscope_translate_hook_end) {
        Border::Resumable(leakscope_translate_hook_abort as *const () as u64)
    } else if between(leakscope_translate_mark_check, leakscope_translate_mark_end) {
        // What the rest restores is still saved: look at `stop` again.
        Border::Resumable(leakscope_translate_mark_check as *const () as u64)
    } else {
        Border::Ahead
    }
}

/// Where a fault inside of a light hook goes.
pub(crate) fn hook_fault() -> u64 {
    leakscope_translate_hook_fault as *const () as u64
}

/// Whether an address is in this file's assembly.
#[cfg(test)]
pub(crate) fn is_here(host_pc: u64) -> bool {
    (leakscope_translate_enter as *const () as u64..leakscope_translate_mark_end as *const () as u64).contains(&host_pc)
}
