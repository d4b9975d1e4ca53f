//! The engine: what the tool holds, and the loop between translated code and callbacks.

use std::arch::x86_64::__cpuid_count;

use iced_x86::{Decoder, DecoderOptions};

use crate::cache::BlockKey;
use crate::exits::Exit;
use crate::indirect::Table;
use crate::state::{State, state};
use crate::translate::{Extent, Hook, Translator, Watch};
use crate::{
    AccessKind, Action, BadAccess, Config, Error, Fault, GUEST_END, Gpr, Guest, LightHook, Quick, Tool, Version, cpuid,
    entry, examine, indirect, layout, memory, stack, x87,
};

/// The simulated CPU; one in a process, as it lives at fixed addresses.
pub struct Engine {
    translator: Box<Translator>,
    exits: u64,
    /// Where the next instruction is to run although a hook stands there.
    unhooked: Option<u64>,
}

/// What the engine did, for `--stats` and tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Blocks translated, again after a flush included.
    pub blocks: u64,
    /// Instructions in them.
    pub instructions: u64,
    /// Bytes of translated code now.
    pub code_bytes: u64,
    /// Bytes of the table from addresses in the cache to guest states now.
    pub recovery_bytes: u64,
    /// Times that everything was thrown away.
    pub flushes: u64,
    /// Times that code left the cache for the run loop.
    pub exits: u64,
}

/// SSE's control word as Rust code expects it: all exceptions masked.
const DEFAULT_MXCSR: u32 = 0x1f80;
/// x86's page fault.
const TRAP_PAGE_FAULT: u64 = 14;
/// The page fault's error code for a fetch in user mode from a mapped page.
const ERROR_FETCH: u64 = 0x15;
const SEGV_MAPERR: i32 = 1;
const SEGV_ACCERR: i32 = 2;

impl Engine {
    /// Maps the engine's memory.
    ///
    /// # Errors
    /// The addresses are taken, or the machine lacks XSAVE or FSGSBASE.
    pub fn new(config: Config) -> Result<Self, Error> {
        cpuid::require()?;
        let data = libc::PROT_READ | libc::PROT_WRITE;
        memory::map("the guest's state", layout::STATE, layout::STATE_BYTES + layout::TABLES_BYTES, data)?;
        let cache_bytes = (layout::COLD_END - layout::HOT) as usize;
        if let Err(error) = memory::map("translated code", layout::HOT, cache_bytes, data | libc::PROT_EXEC) {
            memory::unmap(layout::STATE, layout::STATE_BYTES + layout::TABLES_BYTES);
            return Err(error);
        }
        // The first one is made when it is half full: most programs are short.
        let second = layout::HOT + memory::LARGE_PAGE;
        memory::prefer_large_pages(second, (layout::COLD - second) as usize);
        indirect::reset_table();
        let labels = entry::labels();
        // SAFETY: just mapped, zeroed, and large enough; zeros are a valid `State`.
        unsafe {
            let state: &mut State = &mut *state();
            state.guest = Guest::new();
            state.xsave_mask = Guest::xsave_mask();
            state.default_mxcsr = DEFAULT_MXCSR;
            state.exit_code = labels.exit;
            state.hook_code = labels.hook;
            state.miss_code = labels.miss;
            state.miss_return_code = labels.miss_return;
            state.mark_code = labels.mark;
            state.scan_code = labels.scan;
            state.settle_code = labels.settle;
            state.release_code = labels.release;
            state.release_return_code = labels.release_return;
        }
        let translator = Box::new(Translator::new(config));
        Ok(Self { translator, exits: 0, unhooked: None })
    }

    /// What the engine was made with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.translator.config
    }

    /// The running thread's state.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        // SAFETY: mapped as long as the engine lives; `&self` keeps `guest_mut` away, and no code runs in the cache.
        unsafe { &(*state()).guest }
    }

    /// The running thread's state, to change.
    pub fn guest_mut(&mut self) -> &mut Guest {
        // SAFETY: as above, exclusively.
        unsafe { &mut (*state()).guest }
    }

    /// Runs the target from `guest().rip` until a callback leaves. May be called again inside of a callback.
    ///
    /// # Errors
    /// An instruction cannot be translated: an error of the engine.
    pub fn run<T: Tool>(&mut self, tool: &mut T) -> Result<i32, Error> {
        memory::set_gs_to_shadow();
        let mut next = None;
        loop {
            // SAFETY: the state page is mapped; only this thread uses it.
            let asked = unsafe { std::mem::take(&mut (*state()).stop) };
            if asked != 0 {
                if let Action::Leave(status) = tool.stopped(self) {
                    return Ok(status);
                }
                next = None;
            }
            let rip = self.guest().rip;
            if next.is_none() && rip >= GUEST_END {
                match self.not_executable(rip, tool) {
                    Action::Leave(status) => return Ok(status),
                    Action::Continue => continue,
                }
            }
            let code = match next.take() {
                Some(code) => code,
                None if self.unhooked == Some(rip) => {
                    self.unhooked = None;
                    self.solo(rip, Watch::Yes, tool)?
                }
                None => self.block(rip, tool)?,
            };
            self.exits += 1;
            let record = self.enter(code, tool);
            let exit = self.translator.cache.exits.get(record);
            let action = match exit {
                Exit::Stopped => {
                    // SAFETY: as above.
                    unsafe { (*state()).stop = 1 };
                    continue;
                }
                Exit::Link { pc, site } => {
                    let flushes = self.translator.cache.flushes;
                    self.guest_mut().rip = pc;
                    if pc >= GUEST_END {
                        continue;
                    }
                    let host = self.block(pc, tool)?;
                    if flushes == self.translator.cache.flushes {
                        self.translator.cache.link(site, host);
                    }
                    next = Some(host);
                    continue;
                }
                Exit::Indirect | Exit::Return => {
                    // SAFETY: as above.
                    let pc = unsafe { (*state()).target };
                    self.guest_mut().rip = pc;
                    if let Some(action) = self.vsyscall(pc, tool) {
                        action
                    } else if pc >= GUEST_END {
                        continue;
                    } else {
                        let table = if exit == Exit::Return { Table::Returns } else { Table::Jumps };
                        next = Some(self.target_block(pc, table, tool)?);
                        continue;
                    }
                }
                exit => self.handle(exit, tool)?,
            };
            match action {
                Next::Action(Action::Leave(status)) => return Ok(status),
                Next::Action(Action::Continue) => {}
                Next::Code(code) => next = Some(code),
            }
        }
    }

    /// Runs translated code until it leaves the cache; gives the index of the exit.
    fn enter<T: Tool>(&mut self, code: u64, tool: &mut T) -> u32 {
        let translator: *mut Translator = &raw mut *self.translator;
        // SAFETY: `code` is a block's start, made since the last flush. What the hooks and handlers need is put into
        // the state page; both pointers outlive the call, and neither object is used here while the cache runs.
        unsafe {
            (*state()).engine = translator.expose_provenance() as u64;
            (*state()).hook_tool = (&raw mut *tool).expose_provenance() as u64;
            memory::set_gs_to_shadow();
            if self.translator.config.marks_stack() {
                (*state()).settled = (*state()).guest.gpr(Gpr::Rsp);
            }
            entry::enter(code);
            x87::correct_state(&mut (*state()).guest, &self.translator.cache.recovery);
            stack::settle((*state()).guest.gpr(Gpr::Rsp));
            (*state()).exit_record
        }
    }

    /// The code for an address; asks the tool for its region first.
    fn block<T: Tool>(&mut self, pc: u64, tool: &mut T) -> Result<u64, Error> {
        let key = BlockKey::new(pc, Version::Fast);
        if let Some(host) = self.translator.cache.find(key) {
            return Ok(host);
        }
        self.ask_for_region(pc, tool);
        self.translator.make(key, Extent::Block, Watch::Yes)
    }

    /// The code for the target of an indirect branch, which will find it by itself from now on.
    fn target_block<T: Tool>(&mut self, pc: u64, table: Table, tool: &mut T) -> Result<u64, Error> {
        let has_room = self.translator.cache.has_room();
        let known = self.translator.cache.find(BlockKey::new(pc, Version::Fast));
        if known.is_none() {
            self.ask_for_region(pc, tool);
        }
        if has_room {
            // A new block is put right behind its stub.
            indirect::add_stub(&mut self.translator.cache, table, pc, known);
        }
        match known {
            Some(host) => Ok(host),
            None => self.block(pc, tool),
        }
    }

    fn ask_for_region<T: Tool>(&mut self, pc: u64, tool: &mut T) {
        if self.translator.hooks.contains_key(&pc) || self.translator.regions.find(pc).is_some() {
            return;
        }
        if let Some(region) = tool.code_region(pc)
            && (region.start..region.end).contains(&pc)
        {
            self.translator.regions.put(region);
        }
    }

    /// Code that runs one instruction unchecked and goes on behind it.
    fn solo<T: Tool>(&mut self, pc: u64, watch: Watch, tool: &mut T) -> Result<u64, Error> {
        let key = BlockKey::solo(pc);
        match self.translator.cache.find(key) {
            Some(host) if watch == Watch::Yes => Ok(host),
            _ => {
                self.ask_for_region(pc, tool);
                self.translator.make(key, Extent::Solo, watch)
            }
        }
    }

    fn handle<T: Tool>(&mut self, exit: Exit, tool: &mut T) -> Result<Next, Error> {
        let action = match exit {
            Exit::Syscall { pc } => {
                let guest = self.guest_mut();
                guest.rip = pc;
                guest.set_gpr(Gpr::Rcx, pc);
                guest.set_gpr(Gpr::R11, guest.rflags);
                tool.syscall(self)
            }
            Exit::SetFsBase { pc, register, wide } => {
                // Not in the cache: a handler tells the target's FS from the engine's by what the state says.
                let guest = self.guest_mut();
                let value = guest.gpr[usize::from(register)];
                guest.fs_base = if wide { value } else { value & 0xffff_ffff };
                guest.rip = pc;
                Action::Continue
            }
            Exit::Cpuid { pc } => {
                self.cpuid(pc, tool);
                Action::Continue
            }
            Exit::Examine { pc } => return self.examine(pc, tool),
            Exit::StoredX87 { pc, next } => {
                self.guest_mut().rip = next;
                self.stored_x87(pc);
                Action::Continue
            }
            Exit::Replaced { pc, cookie } => {
                self.guest_mut().rip = pc;
                tool.replaced(self, cookie)
            }
            Exit::ClientRequest { pc } => {
                self.guest_mut().rip = pc;
                tool.client_request(self)
            }
            Exit::Trap { pc, signal, code, address, trap } => {
                self.guest_mut().rip = pc;
                tool.fault(self, Fault { signal, code, address, trap, error: 0 })
            }
            Exit::Stale { pc } => {
                self.guest_mut().rip = pc;
                self.translator.forget_block(pc);
                Action::Continue
            }
            Exit::Retarget { pc, block } => {
                self.guest_mut().rip = pc;
                self.translator.retarget(pc, block);
                Action::Continue
            }
            Exit::NotExecutable { pc } => self.not_executable(pc, tool),
            Exit::Fault => return self.fault(tool),
            Exit::Stopped | Exit::Indirect | Exit::Return | Exit::Link { .. } => Action::Continue,
        };
        Ok(Next::Action(action))
    }

    fn cpuid<T: Tool>(&mut self, pc: u64, tool: &mut T) {
        let (leaf, subleaf) = (self.guest().gpr(Gpr::Rax) as u32, self.guest().gpr(Gpr::Rcx) as u32);
        let native = cpuid::runnable(leaf, subleaf, __cpuid_count(leaf, subleaf), self.config().avx512);
        let shown = tool.cpuid(leaf, subleaf, native);
        let guest = self.guest_mut();
        guest.set_gpr(Gpr::Rax, u64::from(shown.eax));
        guest.set_gpr(Gpr::Rbx, u64::from(shown.ebx));
        guest.set_gpr(Gpr::Rcx, u64::from(shown.ecx));
        guest.set_gpr(Gpr::Rdx, u64::from(shown.edx));
        guest.rip = pc;
    }

    /// Looks at everything that the instruction touches, reports what is bad, and lets it run alone.
    fn examine<T: Tool>(&mut self, pc: u64, tool: &mut T) -> Result<Next, Error> {
        self.guest_mut().rip = pc;
        let Some(region) = self.translator.regions.find(pc) else {
            return Ok(Next::Action(Action::Continue));
        };
        // SAFETY: the region is mapped; see `Translator::make`.
        let bytes = unsafe { memory::code(pc, region.end) };
        let instruction = Decoder::with_ip(64, bytes, pc, DecoderOptions::NONE).decode();
        let is_bad = memory::shadow_is_set;
        let touched = examine::touches(&instruction, self.guest(), is_bad);
        for touch in touched.into_iter().filter(|touch| is_bad(touch.address, touch.bytes)) {
            let access = BadAccess { pc, address: touch.address, size_bytes: touch.bytes, kind: touch.kind };
            match tool.bad_access(self, access) {
                Action::Continue if self.guest().rip == pc => {}
                action => return Ok(Next::Action(action)),
            }
        }
        self.solo(pc, Watch::Yes, tool).map(Next::Code)
    }

    /// Corrects what the instruction at `pc` stored.
    fn stored_x87(&mut self, pc: u64) {
        let Some(region) = self.translator.regions.find(pc) else { return };
        // SAFETY: the region is mapped; see `Translator::make`.
        let bytes = unsafe { memory::code(pc, region.end) };
        let instruction = Decoder::with_ip(64, bytes, pc, DecoderOptions::NONE).decode();
        if let Some(address) = examine::operand_address(&instruction, self.guest()) {
            // SAFETY: the instruction has just written there.
            unsafe { x87::correct_memory(&instruction, self.guest(), address, &self.translator.cache.recovery) };
        }
    }

    fn fault<T: Tool>(&mut self, tool: &mut T) -> Result<Next, Error> {
        // SAFETY: the handler filled it before it sent us here.
        let slot = unsafe { (*state()).fault };
        let pc = self.guest().rip;
        let in_cache = (layout::HOT..layout::COLD_END).contains(&slot.host_pc);
        if in_cache && slot.signal == libc::SIGSEGV {
            if slot.trap == TRAP_PAGE_FAULT
                && self.translator.regions.unprotect(slot.address, slot.address.saturating_add(1), true)
            {
                let page = slot.address & !0xfff;
                self.translator.forget(page, page + 1);
                return self.solo(pc, Watch::No, tool).map(Next::Code);
            }
            // A check of an address that has no shadow: let the access itself fault.
            // SAFETY: the address is in the cache, which is mapped.
            let host = unsafe { memory::code(slot.host_pc, (slot.host_pc + 2).min(layout::COLD_END)) };
            if host.contains(&0x65) && host[0] != 0x64 {
                self.ask_for_region(pc, tool);
                return self.translator.make(BlockKey::solo(pc), Extent::Bare, Watch::No).map(Next::Code);
            }
        }
        // SIGFPE, SIGILL and SIGTRAP give the instruction's address.
        let address = if slot.address == slot.host_pc { pc } else { slot.address };
        let fault = Fault { signal: slot.signal, code: slot.code, address, trap: slot.trap, error: slot.error };
        Ok(Next::Action(tool.fault(self, fault)))
    }

    fn not_executable<T: Tool>(&mut self, pc: u64, tool: &mut T) -> Action {
        self.guest_mut().rip = pc;
        // The region may have appeared meanwhile; the block must not say otherwise for ever.
        self.translator.forget_block(pc);
        // Or it has grown, and the instruction that was cut off at its end is whole: just-in-time compilers map page by page.
        let known = self.translator.regions.find(pc);
        if let (Some(known), Some(now)) = (known, tool.code_region(pc))
            && now.end > known.end
        {
            self.translator.regions.put(now);
            return Action::Continue;
        }
        let access = BadAccess { pc, address: pc, size_bytes: 1, kind: AccessKind::Execute };
        let action = tool.bad_access(self, access);
        if action != Action::Continue || self.guest().rip != pc {
            return action;
        }
        let is_mapped = pc < GUEST_END && crate::probe::read(pc, 1).is_some();
        let (code, error) = if is_mapped { (SEGV_ACCERR, ERROR_FETCH) } else { (SEGV_MAPERR, ERROR_FETCH & !1) };
        let fault = Fault { signal: libc::SIGSEGV, code, address: pc, trap: TRAP_PAGE_FAULT, error };
        tool.fault(self, fault)
    }

    /// The three functions of the vsyscall page, as the system calls that they stand for. Source: Linux,
    /// `arch/x86/entry/vsyscall`.
    fn vsyscall<T: Tool>(&mut self, pc: u64, tool: &mut T) -> Option<Next> {
        let number = match pc {
            0xffff_ffff_ff60_0000 => libc::SYS_gettimeofday,
            0xffff_ffff_ff60_0400 => libc::SYS_time,
            0xffff_ffff_ff60_0800 => libc::SYS_getcpu,
            _ => return None,
        };
        let guest = self.guest_mut();
        // SAFETY: the target just called, so its stack is there.
        unsafe { guest.return_to_caller() };
        guest.set_gpr(Gpr::Rax, number as u64);
        Some(Next::Action(tool.syscall(self)))
    }

    /// From now on, a call or jump to `address` calls [`Tool::replaced`] instead. The address may be of the target's code
    /// or in [`crate::layout::PSEUDO`].
    pub fn hook(&mut self, address: u64, cookie: u64) {
        self.set_hook(address, Some(Hook::Full { cookie }));
    }

    /// As [`Engine::hook`], but calls `hook` directly.
    pub fn hook_light(&mut self, address: u64, hook: LightHook, cookie: u64) {
        self.set_hook(address, Some(Hook::Light { function: hook, quick: Quick::None, cookie }));
    }

    /// The next instruction, at `guest().rip`, runs as if no hook stood there. From callbacks.
    pub fn pass_hook(&mut self) {
        self.unhooked = Some(self.guest().rip);
    }

    /// As [`Engine::hook_light`], with something to be tried before.
    pub fn hook_quick(&mut self, address: u64, hook: crate::Hook) {
        let crate::Hook { function, quick, cookie } = hook;
        self.set_hook(address, Some(Hook::Light { function, quick, cookie }));
    }

    /// Where the code of [`Quick::Code`] lies.
    pub fn set_quick_code(&mut self, range: std::ops::Range<u64>) {
        // SAFETY: the state page is mapped, and no code runs in the cache.
        unsafe {
            (*state()).quick_start = range.start;
            (*state()).quick_end = range.end;
        }
    }

    /// Takes a hook of either kind away.
    pub fn unhook(&mut self, address: u64) {
        self.set_hook(address, None);
    }

    fn set_hook(&mut self, address: u64, hook: Option<Hook>) {
        match hook {
            Some(hook) => self.translator.hooks.insert(address, hook),
            None => self.translator.hooks.remove(&address),
        };
        // Blocks that begin there or run across it.
        self.translator.forget(address, address + 1);
    }

    /// Memory of the target was mapped, unmapped or got another protection: forgets what was translated from it and asks
    /// [`Tool::code_region`] again. To be called before the target goes on.
    pub fn mapping_changed(&mut self, start: u64, end: u64) {
        self.translator.regions.forget(start, end);
        if self.translator.cache.covers(start, end) {
            self.translator.forget(start, end);
        }
    }

    /// The tool, or the kernel for it, is about to write to memory of the target, where translated pages may be
    /// write-protected: makes them writable and forgets their blocks. Cheap when there are none.
    pub fn before_write(&mut self, start: u64, end: u64) {
        if self.translator.regions.unprotect(start, end, false) {
            self.translator.forget(start, end);
        }
    }

    /// As [`Engine::before_write`], from a light hook, which has no engine at hand.
    ///
    /// # Safety
    /// Called by a [`LightHook`] only: `run` waits for it outside of Rust, and goes back to the cache by the tables that
    /// this may empty.
    pub unsafe fn before_write_in_hook(start: u64, end: u64) {
        // SAFETY: `run` put its own translator there and uses it again after the hook alone.
        let translator =
            unsafe { std::ptr::with_exposed_provenance_mut::<Translator>((*state()).engine as usize).as_mut() };
        if let Some(translator) = translator
            && translator.regions.unprotect(start, end, false)
        {
            translator.forget(start, end);
        }
    }

    /// Makes `run` call [`Tool::stopped`] before the guest goes on. From callbacks and light hooks; signal handlers use
    /// [`crate::signal::interrupt`].
    pub fn request_stop() {
        // SAFETY: the state page is mapped while an engine lives; the flag is only set.
        unsafe { (*state()).stop = 1 };
    }

    /// What was done so far.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        Statistics {
            blocks: self.translator.blocks_made,
            instructions: self.translator.instructions_made,
            code_bytes: self.translator.cache.code_bytes(),
            recovery_bytes: self.translator.cache.recovery.bytes() as u64,
            flushes: self.translator.cache.flushes,
            exits: self.exits,
        }
    }
}

/// How the loop goes on.
enum Next {
    Action(Action),
    Code(u64),
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("config", self.config()).field("statistics", &self.statistics()).finish()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        memory::unmap(layout::HOT, (layout::COLD_END - layout::HOT) as usize);
        memory::unmap(layout::STATE, layout::STATE_BYTES + layout::TABLES_BYTES);
    }
}
