//! What the translator asks and tells: hooks, bad accesses, faults.

use leakscope_ledger::events::Event;
use leakscope_translate::{
    AccessKind, Action, BadAccess, CodeKind, CodeRegion, Engine, Fault, Gpr, Guest, Tool, layout,
};

use crate::engine::{Ending, Memcheck, Replaced, shadow};
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

/// A replaced function is called.
unsafe extern "C" fn called(tool: *mut (), guest: *mut Guest, cookie: u64) {
    // SAFETY: the translator gives the tool that `run` was given, and the guest; nobody else uses them meanwhile.
    let (tool, guest) = unsafe { (&mut *tool.cast::<Memcheck>(), &mut *guest) };
    let Some(&replaced) = tool.replaced.get(cookie as usize) else { return };
    let value = match replaced.function {
        Function::Text(text) => tool.call_text(guest, replaced, text),
        _ => tool.call_allocator(guest, replaced),
    };
    guest.set_gpr(Gpr::Rax, value);
    if let Some(fault) = tool.pending_fault.take() {
        tool.fault_in_hook(guest, replaced, fault);
    }
}

/// A function that is chosen at run time is asked for: the answer is its pseudo-address.
unsafe extern "C" fn resolved(tool: *mut (), guest: *mut Guest, cookie: u64) {
    // SAFETY: as in `called`.
    let (tool, guest) = unsafe { (&mut *tool.cast::<Memcheck>(), &mut *guest) };
    if let Some(replaced) = tool.replaced.get(cookie as usize) {
        guest.set_gpr(Gpr::Rax, replaced.pseudo);
    }
}

impl Memcheck {
    /// Hooks functions of a module.
    pub fn install(&mut self, engine: &mut Engine, found: Vec<Found>) {
        for Found { address, function, is_indirect } in found {
            let cookie = self.replaced.len() as u64;
            let pseudo = if is_indirect { FUNCTIONS + 16 * cookie } else { 0 };
            self.replaced.push(Replaced { function, symbol: address, pseudo });
            if is_indirect {
                engine.hook_light(address, resolved, cookie);
                engine.hook_light(pseudo, called, cookie);
            } else {
                engine.hook_light(address, called, cookie);
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

    /// A replaced function met memory that cannot be used.
    fn fault_in_hook(&mut self, guest: &mut Guest, replaced: Replaced, fault: strings::Fault) {
        self.walk_hook(guest, replaced.symbol);
        self.report_access(guest, fault.address, 1, fault.write);
        let code = if self.space.find(fault.address).is_some() { 2 } else { 1 };
        guest.rip = replaced.symbol;
        let ending = Ending::Signal { signal: libc::SIGSEGV, code, address: fault.address };
        self.finish_as(&guest.clone(), ending)
    }

    /// Tells which signal ends the process, and where.
    pub fn tell_signal(&mut self, guest: &Guest, signal: i32, code: i32, address: u64) {
        self.walk_here(guest, guest.rip);
        let stack = self.walk.clone();
        self.output.tell(&Event::FatalSignal { signal, code, address, stack });
        self.output.wait();
    }

    /// Whether a load may be so: aligned, of a word or a vector, and some of its bytes are addressable.
    fn is_partial_load(&self, access: &BadAccess) -> bool {
        self.options.partial_loads_ok
            && access.kind == AccessKind::Read
            && matches!(access.size_bytes, 8 | 16 | 32 | 64)
            && access.address.is_multiple_of(access.size_bytes)
            && shadow().first_allowed(access.address, access.size_bytes).is_some()
    }

    fn is_ignored_below_sp(&self, address: u64, rsp: u64) -> bool {
        self.options.ignored_below_sp.is_some_and(|(far, near)| {
            let distance = rsp.wrapping_sub(address);
            near <= distance && distance <= far
        })
    }
}

impl Tool for Memcheck {
    fn syscall(&mut self, engine: &mut Engine) -> Action {
        self.system_call(engine)
    }

    fn bad_access(&mut self, engine: &mut Engine, access: BadAccess) -> Action {
        let guest = engine.guest().clone();
        if access.kind == AccessKind::Execute {
            self.walk_here(&guest, access.address);
            self.report_jump(&guest, access.address);
            return Action::Continue;
        }
        let (address, bytes) = (access.address, access.size_bytes);
        let is_fine = self.is_partial_load(&access)
            || self.is_ignored(address, bytes)
            || self.is_ignored_below_sp(address, guest.gpr(Gpr::Rsp));
        if !is_fine {
            self.walk_here(&guest, access.pc);
            self.report_access(&guest, address, bytes, access.kind == AccessKind::Write);
        }
        Action::Continue
    }

    fn fault(&mut self, engine: &mut Engine, fault: Fault) -> Action {
        let guest = engine.guest().clone();
        let is_access = matches!(fault.signal, libc::SIGSEGV | libc::SIGBUS);
        // Of forbidden bytes, and of jumps to nowhere, `bad_access` has told.
        let was_told = fault.address == guest.rip || fault.address < crate::space::END && probe::can_read(fault.address)
            && shadow().get(fault.address) != 0;
        // Without an address (not canonical, misaligned) there is no access to tell of.
        if is_access && !was_told && fault.code > 0 && fault.code != 128 {
            let (bytes, write) = self.faulting_access(&guest, fault.error);
            self.walk_here(&guest, guest.rip);
            self.report_access(&guest, fault.address, bytes, write);
        }
        let Fault { signal, code, address, .. } = fault;
        self.finish(engine, Ending::Signal { signal, code, address })
    }

    fn stopped(&mut self, _engine: &mut Engine) -> Action {
        Action::Continue
    }

    fn replaced(&mut self, engine: &mut Engine, cookie: u64) -> Action {
        match cookie {
            RETURN_FROM_FREERES => self.next_freeres(engine),
            _ => {
                self.returned_from_call(engine);
                Action::Continue
            }
        }
    }

    fn client_request(&mut self, engine: &mut Engine) -> Action {
        Memcheck::client_request(self, engine)
    }

    fn code_region(&mut self, address: u64) -> Option<CodeRegion> {
        let mapping = self.space.find(address)?;
        if mapping.protection & libc::PROT_EXEC == 0 {
            return None;
        }
        let writable = mapping.protection & libc::PROT_WRITE != 0;
        let kind = match (writable, mapping.shared) {
            (true, _) => CodeKind::Writable,
            (false, true) => CodeKind::Aliased,
            (false, false) => CodeKind::Fixed,
        };
        Some(CodeRegion { start: mapping.start, end: mapping.end, kind, protection: mapping.protection })
    }
}

impl Memcheck {
    /// Size and direction of the access that faulted.
    fn faulting_access(&self, guest: &Guest, error: u64) -> (u64, bool) {
        let mut code = [0u8; 15];
        let length = (1..=15).rev().find(|&length| probe::read(guest.rip, &mut code[..length])).unwrap_or(0);
        let mut decoder = iced_x86::Decoder::with_ip(64, &code[..length], guest.rip, iced_x86::DecoderOptions::NONE);
        let instruction = decoder.decode();
        let bytes = match instruction.memory_size().size() as u64 {
            0 => 8,
            bytes => bytes,
        };
        (bytes, error & 2 != 0)
    }
}
