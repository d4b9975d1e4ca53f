//! A CPU that is the processor itself: the target's instructions run as they are, and the kernel turns each of their system
//! calls into a SIGSYS (`PR_SET_SYSCALL_USER_DISPATCH`). Shows whether an error is the interface's or the engine's.

use std::arch::global_asm;
use std::mem::offset_of;

use leakscope_guest::{Cpu, Monitor, Task};
use leakscope_translate::signal::Taken;
use leakscope_translate::{Action, Error, Fault, Guest};

/// What the assembly reaches; one thread uses it at a time.
#[repr(C, align(64))]
struct Slots {
    guest: std::mem::MaybeUninit<Guest>,
    engine_rsp: u64,
    engine_fs: u64,
    stop: u32,
    kind: u32,
    mask: u32,
    mxcsr: u32,
    fault: Fault,
}

const NO_FAULT: Fault = Fault { signal: 0, code: 0, address: 0, trap: 0, error: 0 };

#[unsafe(no_mangle)]
static mut GUEST_RUN_SLOTS: Slots = Slots {
    guest: std::mem::MaybeUninit::zeroed(),
    engine_rsp: 0,
    engine_fs: 0,
    stop: 0,
    kind: 0,
    mask: 0,
    mxcsr: 0x1f80,
    fault: NO_FAULT,
};

const STOPPED: u32 = 0;
const SYSCALL: u32 = 1;
const FAULT: u32 = 2;

global_asm!(
    ".globl guest_run_enter",
    "guest_run_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "mov [rip + GUEST_RUN_SLOTS + {engine_rsp}], rsp",
    "rdfsbase rax",
    "mov [rip + GUEST_RUN_SLOTS + {engine_fs}], rax",
    ".globl guest_run_enter_begin",
    "guest_run_enter_begin:",
    "cmp dword ptr [rip + GUEST_RUN_SLOTS + {stop}], 0",
    "jne guest_run_abort",
    "mov eax, [rip + GUEST_RUN_SLOTS + {mask}]",
    "xor edx, edx",
    "xrstor64 [rip + GUEST_RUN_SLOTS + {xsave}]",
    "mov rax, [rip + GUEST_RUN_SLOTS + {fs}]",
    "wrfsbase rax",
    "push qword ptr [rip + GUEST_RUN_SLOTS + {rflags}]",
    "popfq",
    "mov rax, [rip + GUEST_RUN_SLOTS + {gpr}]",
    "mov rcx, [rip + GUEST_RUN_SLOTS + {gpr} + 8]",
    "mov rdx, [rip + GUEST_RUN_SLOTS + {gpr} + 16]",
    "mov rbx, [rip + GUEST_RUN_SLOTS + {gpr} + 24]",
    "mov rsp, [rip + GUEST_RUN_SLOTS + {gpr} + 32]",
    "mov rbp, [rip + GUEST_RUN_SLOTS + {gpr} + 40]",
    "mov rsi, [rip + GUEST_RUN_SLOTS + {gpr} + 48]",
    "mov rdi, [rip + GUEST_RUN_SLOTS + {gpr} + 56]",
    "mov r8, [rip + GUEST_RUN_SLOTS + {gpr} + 64]",
    "mov r9, [rip + GUEST_RUN_SLOTS + {gpr} + 72]",
    "mov r10, [rip + GUEST_RUN_SLOTS + {gpr} + 80]",
    "mov r11, [rip + GUEST_RUN_SLOTS + {gpr} + 88]",
    "mov r12, [rip + GUEST_RUN_SLOTS + {gpr} + 96]",
    "mov r13, [rip + GUEST_RUN_SLOTS + {gpr} + 104]",
    "mov r14, [rip + GUEST_RUN_SLOTS + {gpr} + 112]",
    "mov r15, [rip + GUEST_RUN_SLOTS + {gpr} + 120]",
    "jmp qword ptr [rip + GUEST_RUN_SLOTS + {rip}]",
    ".globl guest_run_enter_end",
    "guest_run_enter_end:",
    ".globl guest_run_abort",
    "guest_run_abort:",
    "mov dword ptr [rip + GUEST_RUN_SLOTS + {kind}], 0",
    ".globl guest_run_exit",
    "guest_run_exit:",
    "mov rsp, [rip + GUEST_RUN_SLOTS + {engine_rsp}]",
    "push 0x202",
    "popfq",
    "mov rax, [rip + GUEST_RUN_SLOTS + {engine_fs}]",
    "wrfsbase rax",
    "fninit",
    "ldmxcsr [rip + GUEST_RUN_SLOTS + {mxcsr}]",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    engine_rsp = const offset_of!(Slots, engine_rsp),
    engine_fs = const offset_of!(Slots, engine_fs),
    stop = const offset_of!(Slots, stop),
    kind = const offset_of!(Slots, kind),
    mask = const offset_of!(Slots, mask),
    mxcsr = const offset_of!(Slots, mxcsr),
    xsave = const offset_of!(Guest, xsave),
    fs = const offset_of!(Guest, fs_base),
    rflags = const offset_of!(Guest, rflags),
    rip = const offset_of!(Guest, rip),
    gpr = const offset_of!(Guest, gpr),
);

unsafe extern "C" {
    fn guest_run_enter();
    fn guest_run_enter_begin();
    fn guest_run_enter_end();
    fn guest_run_abort();
    fn guest_run_exit();
    static __executable_start: u8;
    static etext: u8;
}

fn slots() -> *mut Slots {
    &raw mut GUEST_RUN_SLOTS
}

fn guest() -> *mut Guest {
    slots().cast()
}

/// The processor.
pub struct Native;

/// Whether an address is of this executable.
fn is_own(address: u64) -> bool {
    let range = &raw const __executable_start as u64..&raw const etext as u64;
    range.contains(&address)
}

const FRAME: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// Takes the target's registers from a context and makes it go on in the loop.
///
/// # Safety
/// The kernel's context, in a handler.
unsafe fn leave_with(context: *mut libc::ucontext_t, kind: u32) {
    // SAFETY: the caller's promise; the extended state in the frame has the standard format.
    unsafe {
        let registers = &mut (*context).uc_mcontext.gregs;
        let guest = &mut *guest();
        for (value, index) in guest.gpr.iter_mut().zip(FRAME) {
            *value = registers[index as usize] as u64;
        }
        guest.rip = registers[libc::REG_RIP as usize] as u64;
        guest.rflags = registers[libc::REG_EFL as usize] as u64 & !0x1_0000;
        let from = (*context).uc_mcontext.fpregs.cast::<u8>();
        let bytes = from.add(464 + 16).cast::<u32>().read_unaligned() as usize;
        let xsave = &mut guest.xsave;
        let bytes = bytes.min(xsave.len()).min(0xa80);
        std::ptr::copy_nonoverlapping(from, xsave.as_mut_ptr(), bytes);
        xsave[464..512].fill(0);
        let present = from.add(512).cast::<u64>().read_unaligned() & Guest::xsave_mask();
        xsave[512..520].copy_from_slice(&present.to_ne_bytes());
        xsave[520..576].fill(0);
        (*slots()).kind = kind;
        registers[libc::REG_RIP as usize] = guest_run_exit as *const () as i64;
    }
}

impl Native {
    pub fn new() -> Self {
        // SAFETY: nobody else uses it yet.
        unsafe {
            guest().write(Guest::new());
            (*slots()).mask = Guest::xsave_mask() as u32;
        }
        Self
    }
}

impl Cpu for Native {
    /// The thread pointer to go back to.
    type HandlerScope = Scope;

    fn guest(&self) -> &Guest {
        // SAFETY: made by `new`; borrowed as `self` is.
        unsafe { &*guest() }
    }

    fn guest_mut(&mut self) -> &mut Guest {
        // SAFETY: as above.
        unsafe { &mut *guest() }
    }

    fn mapping_changed(&mut self, _: u64, _: u64) {}

    fn before_write(&mut self, _: u64, _: u64) {}

    fn attach_thread(&mut self) {
        // SAFETY: the range is this executable's code.
        let result = unsafe {
            let start = &raw const __executable_start as u64;
            libc::prctl(59, 1, start, &raw const etext as u64 - start, 0)
        };
        assert_eq!(result, 0, "the kernel has no PR_SET_SYSCALL_USER_DISPATCH");
    }

    fn run<M: Monitor<Self> + 'static>(&mut self, task: &mut Task<Self, M>) -> Result<i32, Error> {
        loop {
            // SAFETY: only the thread with the baton is here.
            let (stop, kind, fault) = unsafe {
                let stop = std::mem::take(&mut (*slots()).stop);
                if stop == 0 {
                    guest_run_enter();
                }
                (stop, (*slots()).kind, (*slots()).fault)
            };
            let action = match kind {
                _ if stop != 0 => task.on_stopped(self),
                STOPPED => task.on_stopped(self),
                SYSCALL => task.on_syscall(self),
                _ => task.on_fault(self, fault),
            };
            if let Action::Leave(status) = action {
                return Ok(status);
            }
        }
    }

    unsafe fn enter_handler() -> Scope {
        let fs: u64;
        // SAFETY: the kernel lets user programs do this, or `Guest` could not be run at all.
        unsafe {
            std::arch::asm!("rdfsbase {}", out(reg) fs, options(nomem, nostack));
            if fs == (*guest()).fs_base {
                std::arch::asm!("wrfsbase {}", in(reg) (*slots()).engine_fs, options(nostack));
            }
        }
        Scope(fs)
    }

    unsafe fn take(number: i32, info: *const libc::siginfo_t, context: *mut libc::ucontext_t) -> Taken {
        // SAFETY: the kernel's pointers.
        unsafe {
            let registers = &(*context).uc_mcontext.gregs;
            if is_own(registers[libc::REG_RIP as usize] as u64) {
                return Taken::NotGuest;
            }
            let code = (*info).si_code;
            if number == libc::SIGSYS && code == 2 {
                leave_with(context, SYSCALL);
                return Taken::Resumed;
            }
            (*slots()).fault = Fault {
                signal: number,
                code,
                address: (*info).si_addr() as u64,
                trap: registers[libc::REG_TRAPNO as usize] as u64,
                error: registers[libc::REG_ERR as usize] as u64,
            };
            leave_with(context, FAULT);
            Taken::Resumed
        }
    }

    unsafe fn interrupt(context: *mut libc::ucontext_t) {
        // SAFETY: the kernel's context.
        unsafe {
            let pc = (*context).uc_mcontext.gregs[libc::REG_RIP as usize] as u64;
            (*slots()).stop = 1;
            let begin = guest_run_enter_begin as *const () as u64;
            if !is_own(pc) {
                leave_with(context, STOPPED);
            } else if (begin..guest_run_enter_end as *const () as u64).contains(&pc) {
                (*context).uc_mcontext.gregs[libc::REG_RIP as usize] = guest_run_abort as *const () as i64;
            }
        }
    }
}

/// Puts the thread pointer back.
pub struct Scope(u64);

impl Drop for Scope {
    fn drop(&mut self) {
        // SAFETY: what `enter_handler` read.
        unsafe { std::arch::asm!("wrfsbase {}", in(reg) self.0, options(nostack)) };
    }
}
