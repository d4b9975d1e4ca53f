//! Hooks in the target's code, and code of the target that the engine itself runs at the end.

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use leakscope_ledger::events::Event;
use leakscope_model::AllocFn;
use leakscope_translate::{Action, BadAccess, CodeRegion, Engine, Fault, Gpr, Guest, Hook, Quick, Tool, layout};

use crate::engine::{Memcheck, Replaced, shadow};
use crate::functions::Function;
use crate::modules::Found;
use crate::probe;
use crate::strings;

/// Where functions that the engine makes the target call return to.
pub const RETURN_FROM_FREERES: u64 = layout::PSEUDO.start;
/// See [`RETURN_FROM_FREERES`].
pub const RETURN_FROM_CALL: u64 = layout::PSEUDO.start + 16;
/// Pseudo-addresses of functions begin here.
const FUNCTIONS: u64 = layout::PSEUDO.start + 4096;

/// The one engine: hooks are called by whatever runs the translator.
static INSTANCE: AtomicPtr<Memcheck> = AtomicPtr::new(ptr::null_mut());

/// Says where the engine is; it does not move any more.
pub fn set_instance(memcheck: &mut Memcheck) {
    INSTANCE.store(memcheck, Ordering::Release);
}

/// What a hook works on.
///
/// # Safety
/// From hooks only: their thread runs alone, and no other reference to the engine is used meanwhile.
unsafe fn in_hook<'a>(guest: *mut Guest) -> Option<(&'a mut Memcheck, &'a mut Guest)> {
    // SAFETY: set once, to an engine that is never dropped; the guest is the translator's, for the hook's time.
    unsafe { Some((INSTANCE.load(Ordering::Acquire).as_mut()?, guest.as_mut()?)) }
}

/// A replaced function is called.
unsafe extern "C" fn called(_: *mut (), guest: *mut Guest, cookie: u64) {
    // SAFETY: a hook.
    let Some((memcheck, guest)) = (unsafe { in_hook(guest) }) else { return };
    let Some(&replaced) = memcheck.replaced.get(cookie as usize) else { return };
    leakscope_translate::settle_stack();
    let value = match replaced.function {
        Function::Text(text) => memcheck.call_text(guest, replaced, text),
        _ => memcheck.call_allocator(guest, replaced),
    };
    guest.set_gpr(Gpr::Rax, value);
    if let Some(fault) = memcheck.pending_fault.take() {
        memcheck.fault_in_hook(guest, replaced, fault);
    }
}

/// The same, tried before: what needs no word to anybody. See [`leakscope_translate::QuickHook`].
unsafe extern "C" fn called_quickly(guest: *mut Guest, cookie: u64) -> u32 {
    // SAFETY: a hook.
    let Some((memcheck, guest)) = (unsafe { in_hook(guest) }) else { return 0 };
    let Some(&replaced) = memcheck.replaced.get(cookie as usize) else { return 0 };
    let Some(value) = memcheck.call_allocator_quickly(guest, replaced) else { return 0 };
    guest.set_gpr(Gpr::Rax, value);
    1
}

/// A function that is chosen at run time is asked for: the answer is its pseudo-address.
unsafe extern "C" fn resolved(_: *mut (), guest: *mut Guest, cookie: u64) {
    // SAFETY: a hook.
    let Some((memcheck, guest)) = (unsafe { in_hook(guest) }) else { return };
    if let Some(replaced) = memcheck.replaced.get(cookie as usize) {
        guest.set_gpr(Gpr::Rax, replaced.pseudo);
    }
}

impl Memcheck {
    /// Hooks functions of a module.
    pub fn install(&mut self, engine: &mut Engine, found: Vec<Found>) {
        let allocators: Vec<(AllocFn, u64)> = found
            .iter()
            .filter_map(|found| match found.function {
                Function::Alloc(function) => Some((function, found.address)),
                _ => None,
            })
            .collect();
        if !allocators.is_empty() {
            self.output.tell(&Event::Functions(allocators));
        }
        let texts: Vec<(String, u64)> = found
            .iter()
            .filter_map(|found| match found.function {
                Function::Text(text) => Some((text.name().to_owned(), found.address)),
                _ => None,
            })
            .collect();
        if !texts.is_empty() {
            self.output.tell(&Event::StringFunctions(texts));
        }
        for Found { address, function, is_indirect } in found {
            let cookie = self.replaced.len() as u64;
            let pseudo = if is_indirect { FUNCTIONS + 16 * cookie } else { 0 };
            self.replaced.push(Replaced { function, symbol: address, pseudo });
            let quick = match function {
                // Each call is looked at.
                Function::Text(_) if self.options.check_arrays => Quick::None,
                Function::Text(text) => strings::quick::code(text).map_or(Quick::None, Quick::Code),
                Function::Alloc(_) => Quick::Function(called_quickly),
                Function::UsableSize => Quick::None,
            };
            let hook = Hook { function: called, quick, cookie };
            if is_indirect {
                engine.hook_light(address, resolved, cookie);
                engine.hook_quick(pseudo, hook);
            } else {
                engine.hook_quick(address, hook);
            }
        }
    }

    /// Takes the hooks of a range away that is no longer mapped.
    pub fn unhook_range(&mut self, engine: &mut Engine, start: u64, end: u64) {
        for replaced in &self.replaced {
            if (start..end).contains(&replaced.symbol) {
                engine.unhook(replaced.symbol);
            }
        }
    }

    /// A replaced function met memory that cannot be used: it is told, and raised where the caller goes on.
    pub(crate) fn fault_in_hook(&mut self, guest: &mut Guest, replaced: Replaced, fault: strings::Fault) {
        self.walk_hook(guest, replaced.symbol);
        self.report_access(guest, fault.address, 1, fault.write);
        // The target's own access, at the first instruction after the call, raises the signal with all that belongs to it.
        guest.set_gpr(Gpr::Rax, fault.address);
        // SAFETY: signals this very thread; the guest kernel delivers it at the next boundary.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), libc::SIGSEGV) };
    }

    /// Tells which signal ends the process, and where.
    pub fn tell_signal(&mut self, guest: &Guest, signal: i32, code: i32, address: u64) {
        self.walk_here(guest, guest.rip);
        let stack = self.walk.clone();
        self.output.tell(&Event::FatalSignal { signal, code, address, stack });
        self.output.wait();
    }

    /// Runs the functions by which libraries free what is their own.
    pub fn free_libraries(&mut self, engine: &mut Engine) {
        if std::mem::replace(&mut self.has_freed_libraries, true) {
            return;
        }
        let saved = engine.guest().clone();
        for function in std::mem::take(&mut self.freeres) {
            let guest = engine.guest_mut();
            // Below the red zone, aligned as at a call.
            let rsp = (saved.gpr(Gpr::Rsp).wrapping_sub(256) & !15).wrapping_sub(8);
            if !probe::can_write(rsp) || !probe::can_write(rsp + 7) {
                break;
            }
            shadow().allow(rsp - 128, 256 + 128);
            // SAFETY: just found to be writable, and below all that the target uses of its stack.
            unsafe { (rsp as *mut u64).write(RETURN_FROM_FREERES) };
            guest.set_gpr(Gpr::Rsp, rsp);
            guest.rip = function;
            self.threads.current().errors_disabled += 1;
            let result = engine.run(&mut Alone { memcheck: self });
            self.threads.current().errors_disabled -= 1;
            if result != Ok(0) {
                break;
            }
        }
        engine.guest_mut().copy_from(&saved);
    }
}

/// Runs code of the target without the guest kernel: nothing that it does outlives the process by long.
struct Alone<'a> {
    memcheck: &'a mut Memcheck,
}

impl Tool for Alone<'_> {
    fn syscall(&mut self, engine: &mut Engine) -> Action {
        let guest = engine.guest();
        let number = guest.gpr(Gpr::Rax) as i64;
        let arguments = [Gpr::Rdi, Gpr::Rsi, Gpr::Rdx, Gpr::R10, Gpr::R8, Gpr::R9].map(|register| guest.gpr(register));
        let is_harmless = matches!(
            number,
            libc::SYS_munmap | libc::SYS_close | libc::SYS_futex | libc::SYS_madvise | libc::SYS_write
        );
        let result = if is_harmless {
            // SAFETY: what a library frees of its own; nobody needs it any more.
            let result = unsafe { leakscope_guest::raw::syscall(number, arguments) };
            if number == libc::SYS_munmap && result == 0 {
                self.memcheck.unmapped_at_end.push(arguments[0]..arguments[0].saturating_add(arguments[1]));
            }
            result
        } else {
            -i64::from(libc::ENOSYS)
        };
        engine.guest_mut().set_gpr(Gpr::Rax, result as u64);
        Action::Continue
    }

    fn bad_access(&mut self, _engine: &mut Engine, _access: BadAccess) -> Action {
        Action::Continue
    }

    fn fault(&mut self, _engine: &mut Engine, _fault: Fault) -> Action {
        Action::Leave(1)
    }

    fn stopped(&mut self, _engine: &mut Engine) -> Action {
        Action::Continue
    }

    fn replaced(&mut self, _engine: &mut Engine, cookie: u64) -> Action {
        Action::Leave(i32::from(cookie != RETURN_FROM_FREERES))
    }

    fn client_request(&mut self, _engine: &mut Engine) -> Action {
        Action::Continue
    }

    fn code_region(&mut self, address: u64) -> Option<CodeRegion> {
        self.memcheck.view?.space().code_region(address)
    }
}

/// The instruction at an address.
fn instruction_at(pc: u64) -> iced_x86::Instruction {
    let mut code = [0u8; 15];
    let length = (1..=15).rev().find(|&length| probe::read(pc, &mut code[..length])).unwrap_or(0);
    iced_x86::Decoder::with_ip(64, &code[..length], pc, iced_x86::DecoderOptions::NONE).decode()
}

/// Whether an instruction touches the stack at a constant distance: what is below the stack pointer is written so by those who
/// want to know whether there is room (Java, `-fstack-check`), and by nobody else.
pub fn is_stack_probe(pc: u64) -> bool {
    let instruction = instruction_at(pc);
    instruction.memory_base() == iced_x86::Register::RSP && instruction.memory_index() == iced_x86::Register::None
}

/// Size and direction of the access that faulted.
pub fn faulting_access(guest: &Guest, error: u64) -> (u64, bool) {
    let bytes = match instruction_at(guest.rip).memory_size().size() as u64 {
        0 => 8,
        bytes => bytes,
    };
    (bytes, error & 2 != 0)
}
