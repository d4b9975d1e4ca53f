//! Deadly signals: what the program did, as far as the registers tell.

use super::scariness::Scariness;
use super::{Report, stack};
use crate::options::{has_gcc_words, options};
use crate::output::Address;
use crate::{thread, unwind};
use alloc::string::String;
use core::fmt::Write;

/// What the handler got.
#[derive(Clone, Copy)]
pub struct Signal {
    /// Its number.
    pub number: i32,
    /// The address of the fault, if it is one.
    pub address: usize,
    /// Whether the address is known.
    pub has_address: bool,
    /// The interrupted context.
    pub context: *const libc::ucontext_t,
}

impl Signal {
    fn register(&self, index: i32) -> usize {
        // SAFETY: the kernel's context, valid while the handler runs.
        unsafe { (*self.context).uc_mcontext.gregs.get(index as usize).map_or(0, |&word| word as usize) }
    }

    /// Whether a page fault was a write; `None` when it was no page fault.
    fn is_write(&self) -> Option<bool> {
        const PAGE_FAULT: usize = 14;
        const WRITE: usize = 2;
        (self.register(libc::REG_TRAPNO) == PAGE_FAULT).then(|| self.register(libc::REG_ERR) & WRITE != 0)
    }

    fn name(&self) -> &'static str {
        match self.number {
            libc::SIGFPE => "FPE",
            libc::SIGILL => "ILL",
            libc::SIGABRT => "ABRT",
            libc::SIGSEGV => "SEGV",
            libc::SIGBUS => "BUS",
            libc::SIGTRAP => "TRAP",
            _ => "UNKNOWN SIGNAL",
        }
    }

    /// Whether the fault is right at the stack pointer, near the end of the stack.
    fn is_stack_overflow(&self) -> bool {
        if self.number != libc::SIGSEGV || !self.has_address {
            return false;
        }
        let sp = self.register(libc::REG_RSP);
        let near = self.address.wrapping_add(512) > sp && self.address < sp.wrapping_add(0xFFFF);
        // SEGV_MAPERR is 1, SEGV_ACCERR is 2: the guard page, or nothing at all.
        near
    }
}

/// Reports a deadly signal and ends the process.
pub fn report(signal: &Signal) -> ! {
    let (pc, bp, sp) = (signal.register(libc::REG_RIP), signal.register(libc::REG_RBP), signal.register(libc::REG_RSP));
    // SAFETY: in the handler.
    let frames = unsafe { unwind::interrupted(signal.context) };
    let report = Report::begin(true);
    let thread = thread::current_number();
    let registers = alloc::format!("(pc {} bp {} sp {} T{thread})", Address(pc), Address(bp), Address(sp));
    if signal.is_stack_overflow() {
        report.headline(format_args!("stack-overflow on address {} {registers}", Address(signal.address)));
        Scariness::of(10, "stack-overflow").print();
        stack::print(&frames);
        stack::summary("stack-overflow", &frames);
    } else {
        unknown(signal, &report, &registers, pc, &frames);
    }
    report.finish();
    super::die()
}

fn unknown(signal: &Signal, report: &Report, registers: &str, pc: usize, frames: &[u64]) {
    let name = signal.name();
    const GENERAL_PROTECTION: usize = 13;
    let is_high = signal.number == libc::SIGSEGV && signal.register(libc::REG_TRAPNO) == GENERAL_PROTECTION;
    if signal.has_address && !is_high {
        report.headline(format_args!("{name} on unknown address {} {registers}", Address(signal.address)));
    } else {
        report.headline(format_args!("{name} on unknown address {registers}"));
    }
    let is_wild_jump = pc < crate::sys::PAGE || !is_executable(pc);
    if pc < crate::sys::PAGE {
        crate::out_pid!("Hint: pc points to the zero page.\n");
    }
    let write = signal.is_write();
    if signal.number == libc::SIGSEGV || signal.number == libc::SIGBUS {
        let access = match write {
            Some(true) => "WRITE",
            Some(false) => "READ",
            None => "UNKNOWN",
        };
        // A general protection fault has no address: an address that is none caused it.
        let access = if is_high { "READ" } else { access };
        crate::out_pid!("The signal is caused by a {access} memory access.\n");
        if is_high {
            crate::out_pid!(
                "Hint: this fault was caused by a dereference of a high value address (see register values below).  \
                 Disassemble the provided pc to learn which register was used.\n"
            );
        } else if signal.address < crate::sys::PAGE {
            crate::out_pid!("Hint: address points to the zero page.\n");
        }
    }
    scariness(signal, is_wild_jump, write);
    if !is_executable(pc) && pc >= crate::sys::PAGE {
        crate::out_pid!("Hint: PC is at a non-executable region. Maybe a wild jump?\n");
    }
    stack::print(frames);
    if options().dump_instruction_bytes {
        instruction_bytes(pc);
    }
    // gcc 12's library is older than this.
    if options().dump_registers && !has_gcc_words() {
        dump_registers(signal);
    }
    crate::out!("AddressSanitizer can not provide additional info.\n");
    stack::summary(name, frames);
}

fn scariness(signal: &Signal, is_wild_jump: bool, write: Option<bool>) {
    let mut sum = Scariness::default();
    if signal.number != libc::SIGSEGV {
        sum.add(10, "signal");
    } else if is_wild_jump && signal.register(libc::REG_RIP) == signal.address {
        sum.add(60, "wild-jump");
    } else if signal.register(libc::REG_TRAPNO) == 13 {
        // A general protection fault: an address that is none.
        sum.add(20, "wild-addr-read");
    } else if signal.address < crate::sys::PAGE {
        sum.add(10, "null-deref");
    } else if write == Some(true) {
        sum.add(30, "wild-addr-write");
    } else if write == Some(false) {
        sum.add(20, "wild-addr-read");
    } else {
        sum.add(25, "wild-addr");
    }
    sum.print();
}

fn is_executable(pc: usize) -> bool {
    let mut found = false;
    leakscope_rt::proc_maps::for_each(|line| {
        found |= line.executable && (line.start as usize..line.end as usize).contains(&pc);
    });
    found
}

fn instruction_bytes(pc: usize) {
    let mut text = String::from("First 16 instruction bytes at pc: ");
    let mut bytes = [0u8; 16];
    if pc >= crate::sys::PAGE && crate::sys::peek(pc, &mut bytes) {
        for byte in bytes {
            let _ = write!(text, "{byte:02x} ");
        }
    } else {
        text.push_str("unaccessible");
    }
    crate::out_pid!("{text}\n");
}

fn dump_registers(signal: &Signal) {
    let rows = [
        [("rax", libc::REG_RAX), ("rbx", libc::REG_RBX), ("rcx", libc::REG_RCX), ("rdx", libc::REG_RDX)],
        [("rdi", libc::REG_RDI), ("rsi", libc::REG_RSI), ("rbp", libc::REG_RBP), ("rsp", libc::REG_RSP)],
        [(" r8", libc::REG_R8), (" r9", libc::REG_R9), ("r10", libc::REG_R10), ("r11", libc::REG_R11)],
        [("r12", libc::REG_R12), ("r13", libc::REG_R13), ("r14", libc::REG_R14), ("r15", libc::REG_R15)],
    ];
    crate::out_pid!("Register values:\n");
    let mut text = String::new();
    for row in rows {
        for (name, index) in row {
            let _ = write!(text, "{name} = 0x{:016x}  ", signal.register(index));
        }
        text.push('\n');
    }
    crate::output::print(&text);
}
