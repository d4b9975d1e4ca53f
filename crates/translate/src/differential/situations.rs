//! What random sequences do not reach: code that changes itself, interruptions at every instruction of the cache, hooks,
//! requests, and the edges of executable memory.

use super::machine::{CODE, DATA, HIGH_CODE, HIGH_DATA, Machine};
use super::stepping;
use crate::signal::HandlerScope;
use crate::{AccessKind, Action, CodeKind, Config, Gpr, Guest, Tool, signal};

fn guest_at(start: u64) -> Guest {
    let mut guest = Guest::new();
    guest.rip = start;
    guest.set_gpr(Gpr::Rbx, DATA + 0x1000);
    guest.set_gpr(Gpr::Rsp, DATA + 0x6000);
    guest.fs_base = DATA + 0x4000;
    guest.gs_base = DATA + 0x5000;
    guest
}

fn machine(kind: CodeKind) -> Machine {
    let mut machine = Machine::new(Config::default());
    machine.tool.kind = Some(kind);
    machine
}

/// `mov byte [rip+n], imm8` before the instruction that it changes, in the same block and in a loop:
/// writes 1, 2, 3 into the immediate of `add eax, imm8` and runs it each time.
const REWRITES_ITSELF: [u8; 25] = [
    0x31, 0xc0, // xor eax, eax
    0xb9, 0x03, 0x00, 0x00, 0x00, // mov ecx, 3
    0x88, 0x0d, 0x02, 0x00, 0x00, 0x00, // mov [rip+2], cl: the immediate
    0x83, 0xc0, 0x7f, // add eax, 127
    0xff, 0xc9, // dec ecx
    0x75, 0xf3, // jne to the mov
    0x90, 0x90, 0x90, 0x90, 0x90,
];

#[test]
fn code_may_rewrite_what_follows_it() {
    let mut machine = machine(CodeKind::Writable);
    for start in [CODE, HIGH_CODE] {
        machine.put_code(start, &REWRITES_ITSELF);
        let native = machine.run_native(&guest_at(start));
        machine.put_code(start, &REWRITES_ITSELF);
        let translated = machine.run_translated(&guest_at(start));
        assert_eq!(native.gpr[0], 6, "3 + 2 + 1");
        assert_eq!(translated.gpr, native.gpr);
        machine.engine.before_write(start, start + 0x1000);
    }
}

/// After enough faults the page's blocks compare their bytes instead, from block to block.
#[test]
fn code_that_is_rewritten_all_the_time_stays_right() {
    let mut machine = machine(CodeKind::Writable);
    // mov ecx, 500; loop: mov [rip+to imm], cl; jmp next; next: add eax, 127; movzx edx, al...; dec ecx; jne
    let code = [
        0x31, 0xc0, 0xb9, 0xf4, 0x01, 0x00, 0x00, 0x88, 0x0d, 0x04, 0x00, 0x00, 0x00, 0xeb, 0x00, 0x83, 0xc0, 0x7f,
        0xff, 0xc9, 0x75, 0xf1,
    ];
    machine.put_code(CODE, &code);
    let native = machine.run_native(&guest_at(CODE));
    machine.put_code(CODE, &code);
    let translated = machine.run_translated(&guest_at(CODE));
    assert_eq!(translated.gpr, native.gpr);
}

/// Code that is written through another mapping of the same memory shows no fault.
#[test]
fn code_behind_an_alias_is_compared() {
    let mut machine = machine(CodeKind::Aliased);
    // add eax, 1; add eax, 1; (end)
    for start in [CODE, HIGH_CODE] {
        machine.put_code(start, &[0x83, 0xc0, 0x01, 0x83, 0xc0, 0x01]);
        let first = machine.run_translated(&guest_at(start));
        assert_eq!(first.gpr[0], 2);
        let again = machine.run_translated(&guest_at(start));
        assert_eq!(again.gpr[0], 2);
        // SAFETY: mapped; the engine is not told.
        unsafe { crate::memory::put(start + 5, &[0x20]) };
        let changed = machine.run_translated(&guest_at(start));
        assert_eq!(changed.gpr[0], 0x21);
    }
}

#[test]
fn a_hook_stands_in_for_code_and_for_pseudo_addresses() {
    unsafe extern "C" fn light(tool: *mut (), guest: *mut Guest, cookie: u64) {
        // SAFETY: the engine gives its tool and the state page.
        unsafe {
            (*tool.cast::<super::machine::Recorder>()).calls.push(cookie);
            let argument = (*guest).gpr(Gpr::Rdi);
            (*guest).set_gpr(Gpr::Rax, argument * 2);
        }
    }
    let mut machine = machine(CodeKind::Fixed);
    let pseudo = crate::layout::PSEUDO.start + 16;
    // mov edi, 21; call +11 (hooked); mov edx, eax; mov eax, PSEUDO; call rax; (end) ... ud2 where the hook stands
    let mut code = vec![0xbf, 21, 0, 0, 0, 0xe8, 9, 0, 0, 0, 0x89, 0xc2, 0xb8];
    code.extend_from_slice(&(pseudo as u32).to_le_bytes());
    code.extend_from_slice(&[0xff, 0xd0]);
    assert_eq!(code.len(), 19);
    code.extend_from_slice(&[0xcc, 0x0f, 0x0b]);
    code[6] = (20 - 10) as u8;
    for start in [CODE, HIGH_CODE] {
        machine.put_code(start, &code);
        machine.tool.calls.clear();
        machine.engine.hook_light(start + 20, light, 7);
        machine.engine.hook(pseudo, 8);
        let outcome = machine.run_translated(&guest_at(start));
        assert_eq!(outcome.fault.signal, libc::SIGTRAP);
        assert_eq!((outcome.gpr[2], machine.tool.calls.as_slice()), (42, &[7, 8][..]));
        assert_eq!(outcome.gpr[4], DATA + 0x6000, "both returned");
        machine.engine.unhook(start + 20);
        let outcome = machine.run_translated(&guest_at(start));
        assert_eq!((outcome.fault.signal, outcome.rip), (libc::SIGILL, start + 20), "the code is back");
    }
}

#[test]
fn requests_system_calls_and_cpuid_reach_the_tool() {
    let mut machine = machine(CodeKind::Fixed);
    let mut code = vec![
        0x48, 0xc1, 0xc7, 0x03, 0x48, 0xc1, 0xc7, 0x0d, 0x48, 0xc1, 0xc7, 0x3d, 0x48, 0xc1, 0xc7, 0x33, 0x48, 0x87,
        0xdb,
    ];
    code.extend_from_slice(&[0xb8, 77, 0, 0, 0, 0x0f, 0x05, 0x89, 0xc6, 0x31, 0xc0, 0x31, 0xc9, 0x0f, 0xa2]);
    machine.put_code(CODE, &code);
    let outcome = machine.run_translated(&guest_at(CODE));
    assert_eq!((machine.tool.requests, machine.tool.calls.as_slice()), (1, &[77][..]));
    assert_eq!(outcome.gpr[6], 78, "the system call's result");
    assert_eq!(outcome.gpr[11] & 0x202, 0x202, "r11 holds the flags");
    let native = std::arch::x86_64::__cpuid_count(0, 0);
    assert_eq!((outcome.gpr[0], outcome.gpr[3]), (u64::from(native.eax), u64::from(native.ebx)));
}

/// What the processor keeps as the last x87 instruction's address is the target's, or nothing where it keeps none: a switch
/// of contexts may drop it.
#[test]
fn the_last_x87_instruction_is_the_targets() {
    // fld1 at +0; fnstenv [rbx]; fld1 at +4; fxsave64 [rbx+0x100]; fld1 at +13; fnsave [rbx+0x400]
    let code =
        [0xd9, 0xe8, 0xd9, 0x33, 0xd9, 0xe8, 0x48, 0x0f, 0xae, 0x83, 0, 1, 0, 0, 0xd9, 0xe8, 0xdd, 0xb3, 0, 4, 0, 0];
    let (mut kept, mut machine) = (0, machine(CodeKind::Fixed));
    machine.put_code(CODE, &code);
    for is_native in [true, false] {
        machine.put_data(&[0; 0x2000]);
        let guest = guest_at(CODE);
        let outcome = if is_native { machine.run_native(&guest) } else { machine.run_translated(&guest) };
        for (offset, at) in [(12, 0), (0x108, 4), (0x40c, 14)] {
            let field = &outcome.data[0x1000 + offset..][..4];
            let address = u64::from(u32::from_le_bytes([field[0], field[1], field[2], field[3]]));
            assert!(address == 0 || address == CODE + at, "native: {is_native}, at {offset:#x}: {address:#x}");
            kept += u32::from(is_native && address != 0);
        }
    }
    eprintln!("{kept} of 3 addresses were kept by the processor");
}

#[test]
fn segment_bases_are_the_targets_own() {
    let mut machine = machine(CodeKind::Fixed);
    // wrfsbase rdi; wrgsbase rsi; rdfsbase rax; rdgsbase rcx; mov edx, fs:[8]; mov ebp, gs:[8]
    let code = [
        0xf3, 0x48, 0x0f, 0xae, 0xd7, 0xf3, 0x48, 0x0f, 0xae, 0xde, 0xf3, 0x48, 0x0f, 0xae, 0xc0, 0xf3, 0x48, 0x0f,
        0xae, 0xc9, 0x64, 0x8b, 0x14, 0x25, 8, 0, 0, 0, 0x65, 0x8b, 0x2c, 0x25, 8, 0, 0, 0,
    ];
    machine.put_code(CODE, &code);
    machine.put_data(&(0..0x8000u32 / 4).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
    let mut guest = guest_at(CODE);
    guest.set_gpr(Gpr::Rdi, DATA + 0x700);
    guest.set_gpr(Gpr::Rsi, DATA + 0x900);
    let outcome = machine.run_translated(&guest);
    assert_eq!((outcome.gpr[0], outcome.gpr[1]), (DATA + 0x700, DATA + 0x900));
    assert_eq!((outcome.gpr[2], outcome.gpr[5]), (0x708 / 4, 0x908 / 4));
}

#[test]
fn what_is_not_executable_is_reported_and_faults() {
    let mut machine = machine(CodeKind::Fixed);
    // jmp rbx, into the data
    machine.put_code(CODE, &[0xff, 0xe3]);
    for target in [DATA + 0x1000, 0, super::machine::NOWHERE] {
        let mut guest = guest_at(CODE);
        guest.set_gpr(Gpr::Rbx, target);
        let native = machine.run_native(&guest);
        let translated = machine.run_translated(&guest);
        assert_eq!(super::machine::difference(&native, &translated, 0xcd5), None);
        assert_eq!(machine.tool.bad.last().map(|bad| (bad.kind, bad.address)), Some((AccessKind::Execute, target)));
    }
    // Where no address can be, processors differ in which instruction faults.
    let mut guest = guest_at(CODE);
    guest.set_gpr(Gpr::Rbx, 0xdead_beef_dead_beef);
    let outcome = machine.run_translated(&guest);
    assert_eq!((outcome.fault.signal, outcome.rip), (libc::SIGSEGV, 0xdead_beef_dead_beef));
}

/// Every kind of operand over poisoned memory: what is reported, byte for byte.
#[test]
fn bad_accesses_are_exact() {
    let at = DATA + 0x1000;
    let cases: [(&[u8], u64, AccessKind, u64, u64); 9] = [
        // mov eax, [rbx]: bytes 0..4
        (&[0x8b, 0x03], 3, AccessKind::Read, at, 4),
        // mov [rbx+8], al
        (&[0x88, 0x43, 0x08], 8, AccessKind::Write, at + 8, 1),
        // movups xmm0, [rbx]
        (&[0x0f, 0x10, 0x03], 15, AccessKind::Read, at, 16),
        // vmovups zmm0, [rbx]
        (&[0x62, 0xf1, 0x7c, 0x48, 0x10, 0x03], 63, AccessKind::Read, at, 64),
        // fld tbyte [rbx]
        (&[0xdb, 0x2b], 9, AccessKind::Read, at, 10),
        // rep stosb with rdi = rbx, rcx = 5
        (&[0x48, 0x89, 0xdf, 0xb9, 5, 0, 0, 0, 0xf3, 0xaa], 4, AccessKind::Write, at, 5),
        // lock cmpxchg16b [rbx]
        (&[0xf0, 0x48, 0x0f, 0xc7, 0x0b], 12, AccessKind::Write, at, 16),
        // bts [rbx], ecx with ecx = 70: the byte 8 bytes further
        (&[0xb9, 70, 0, 0, 0, 0x0f, 0xab, 0x0b], 8, AccessKind::Write, at + 8, 1),
        // kmovb k1: 0b10; vmovdqu32 zmm0{k1}{z}, [rbx]: lane 1 alone
        (
            &[0xb8, 2, 0, 0, 0, 0xc5, 0xf8, 0x92, 0xc8, 0x62, 0xf1, 0x7e, 0xc9, 0x6f, 0x03],
            4,
            AccessKind::Read,
            at + 4,
            4,
        ),
    ];
    let mut machine = machine(CodeKind::Fixed);
    for (code, bad_byte, kind, address, bytes) in cases {
        machine.put_code(CODE, code);
        machine.put_shadow(at + bad_byte, &[0xff]);
        machine.tool.bad.clear();
        machine.run_translated(&guest_at(CODE));
        machine.put_shadow(at + bad_byte, &[0]);
        let found: Vec<_> = machine.tool.bad.iter().map(|bad| (bad.kind, bad.address, bad.size_bytes)).collect();
        assert_eq!(found, [(kind, address, bytes)], "{code:02x?}");
        machine.put_shadow(at + bad_byte + bytes, &[0xff]);
        machine.tool.bad.clear();
        if bytes > 1 && bad_byte + bytes > address - at + bytes - 1 {
            machine.run_translated(&guest_at(CODE));
            assert_eq!(machine.tool.bad, [], "{code:02x?} reads nothing behind its operand");
        }
        machine.put_shadow(at + bad_byte + bytes, &[0]);
    }
}

/// A program with every construct that borrows registers, single-stepped by the trap flag: at each instruction of the
/// cache, what `recover` says must be a state that the native run passes through, in the same order.
#[test]
fn every_instruction_of_the_cache_recovers_to_a_state_of_the_guest() {
    for start in [CODE, HIGH_CODE] {
        let code = borrowing_program(start);
        let mut machine = machine(CodeKind::Fixed);
        machine.put_code(start, &code);
        let native = stepping::native_states(&mut machine, &guest_at(start));
        // The first run makes the blocks, the second is linked and does not leave the cache.
        for _ in 0..2 {
            let translated = stepping::translated_states(&mut machine, &guest_at(start));
            assert_eq!(stepping::compare(&native, &translated), Ok(()));
        }
        drop(machine);
    }
}

/// A loop over: live flags across a check, calls and returns, indirect branches by register and memory, TLS and GS
/// operands, far RIP-relative operands, `loop`.
fn borrowing_program(start: u64) -> Vec<u8> {
    let mut code: Vec<u8> = Vec::new();
    let put = |code: &mut Vec<u8>, bytes: &[u8]| code.extend_from_slice(bytes);
    put(&mut code, &[0x41, 0xbc, 3, 0, 0, 0]); // mov r12d, 3
    let top = code.len();
    put(&mut code, &[0x83, 0xf8, 0x05]); // cmp eax, 5
    put(&mut code, &[0x48, 0x8b, 0x0b]); // mov rcx, [rbx]: flags live
    put(&mut code, &[0x48, 0x8b, 0x44, 0x0b, 0x08]); // mov rax, [rbx+rcx+8]: with rcx, flags live
    put(&mut code, &[0x0f, 0x92, 0xc2]); // setb dl
    put(&mut code, &[0x64, 0x48, 0x8b, 0x04, 0x25, 0x00, 0x01, 0, 0]); // mov rax, fs:[0x100]
    put(&mut code, &[0x65, 0x48, 0x8b, 0x04, 0x25, 0x08, 0x01, 0, 0]); // mov rax, gs:[0x108]
    put(&mut code, &[0x4c, 0x8d, 0x1d, 3, 0, 0, 0, 0x41, 0xff, 0xe3]); // lea r11, [rip+3]; jmp r11
    put(&mut code, &[0xe8, 5, 0, 0, 0]); // call the function
    put(&mut code, &[0xe9, 11, 0, 0, 0]); // jmp over it
    put(&mut code, &[0x48, 0xff, 0xc6, 0xc3]); // inc rsi; ret
    put(&mut code, &[0x90; 7]);
    let near = if start == CODE { DATA + 0x2000 } else { HIGH_DATA };
    put(&mut code, &[0x48, 0x8b, 0x05]); // mov rax, [rip+..]
    let end = start + code.len() as u64 + 4;
    put(&mut code, &(near.wrapping_sub(end) as u32).to_le_bytes());
    put(&mut code, &[0x4c, 0x8d, 0x1d, 12, 0, 0, 0]); // lea r11, [rip+12]: behind the indirect jump
    put(&mut code, &[0x4c, 0x89, 0x5b, 0x40]); // mov [rbx+0x40], r11
    put(&mut code, &[0xb9, 2, 0, 0, 0]); // mov ecx, 2
    put(&mut code, &[0xff, 0x63, 0x40]); // jmp [rbx+0x40]
    let counted = code.len();
    put(&mut code, &[0x48, 0xff, 0xc7]); // inc rdi
    let back = (counted as i64 - code.len() as i64 - 2) as u8;
    put(&mut code, &[0xe2, back]); // loop
    put(&mut code, &[0x41, 0xff, 0xcc]); // dec r12d
    let distance = (top as i64 - code.len() as i64 - 6) as u32;
    put(&mut code, &[0x0f, 0x85]); // jne to the top
    put(&mut code, &distance.to_le_bytes());
    code
}

/// A timer that interrupts all the time must not change what a program computes.
#[test]
fn interruptions_change_nothing() {
    unsafe extern "C" fn on_timer(_number: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        // SAFETY: a handler on the machine's thread.
        unsafe {
            let _scope = HandlerScope::enter();
            signal::interrupt(context.cast());
        }
    }
    let mut machine = machine(CodeKind::Fixed);
    let mut code = borrowing_program(CODE);
    code[2..6].copy_from_slice(&200_000u32.to_le_bytes());
    machine.put_code(CODE, &code);
    let native = machine.run_native(&guest_at(CODE));
    // SAFETY: a timer for this thread alone; the handler is put back to what it was.
    let translated = unsafe {
        let mut old: libc::sigaction = std::mem::zeroed();
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        action.sa_sigaction = on_timer as *const () as usize;
        libc::sigaction(libc::SIGUSR2, &action, &mut old);
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = libc::SIGUSR2;
        event.sigev_notify_thread_id = libc::gettid();
        let mut timer: libc::timer_t = std::mem::zeroed();
        assert_eq!(libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer), 0);
        let every = libc::timespec { tv_sec: 0, tv_nsec: 50_000 };
        libc::timer_settime(timer, 0, &libc::itimerspec { it_interval: every, it_value: every }, std::ptr::null_mut());
        let outcome = machine.run_translated(&guest_at(CODE));
        libc::timer_delete(timer);
        libc::sigaction(libc::SIGUSR2, &old, std::ptr::null_mut());
        outcome
    };
    assert!(machine.tool.stops > 0, "the timer never came");
    // The carry, which `dec` keeps, is from before an indirect jump.
    assert_eq!(super::machine::difference(&native, &translated, 0xcd4), None);
}

/// A light hook that touches bad memory is given up, and the fault is the guest's at the hooked function.
#[test]
fn a_fault_in_a_light_hook_is_the_guests() {
    unsafe extern "C" fn touches_nothing(_tool: *mut (), _guest: *mut Guest, cookie: u64) {
        // SAFETY: faults, which is what the test is about.
        unsafe { (cookie as *mut u8).write_volatile(1) };
    }
    let mut machine = machine(CodeKind::Fixed);
    machine.put_code(CODE, &[0xe8, 0x0b, 0, 0, 0]);
    machine.engine.hook_light(CODE + 16, touches_nothing, 0x1230);
    let outcome = machine.run_translated(&guest_at(CODE));
    assert_eq!((outcome.fault.signal, outcome.fault.address, outcome.rip), (libc::SIGSEGV, 0x1230, CODE + 16));
    assert_eq!(outcome.gpr[4], DATA + 0x6000 - 8, "the return address is still on the stack");
    let _ = Action::Continue;
}

#[test]
fn a_requested_stop_comes_before_the_next_block() {
    struct Stopper(u32);
    impl Tool for Stopper {
        fn syscall(&mut self, _engine: &mut crate::Engine) -> Action {
            crate::Engine::request_stop();
            Action::Continue
        }
        fn bad_access(&mut self, _engine: &mut crate::Engine, _access: crate::BadAccess) -> Action {
            Action::Leave(1)
        }
        fn fault(&mut self, _engine: &mut crate::Engine, _fault: crate::Fault) -> Action {
            Action::Leave(2)
        }
        fn stopped(&mut self, engine: &mut crate::Engine) -> Action {
            self.0 += 1;
            assert_eq!(engine.guest().rip, CODE + 2);
            Action::Leave(3)
        }
        fn replaced(&mut self, _engine: &mut crate::Engine, _cookie: u64) -> Action {
            Action::Leave(4)
        }
        fn client_request(&mut self, _engine: &mut crate::Engine) -> Action {
            Action::Leave(5)
        }
        fn code_region(&mut self, _address: u64) -> Option<crate::CodeRegion> {
            Some(crate::CodeRegion { start: CODE, end: CODE + 0x4000, kind: CodeKind::Fixed, protection: 5 })
        }
    }
    let mut machine = machine(CodeKind::Fixed);
    machine.put_code(CODE, &[0x0f, 0x05]);
    machine.engine.guest_mut().copy_from(&guest_at(CODE));
    let mut stopper = Stopper(0);
    assert_eq!(machine.engine.run(&mut stopper), Ok(3));
    assert_eq!(stopper.0, 1);
}
