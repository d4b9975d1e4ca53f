//! What the guest kernel tells: mappings, system calls, threads, faults, the end.

use std::ffi::CString;

use leakscope_guest::{Backing, Call, Ending, ExecPlan, ExecRequest, Mapping, Monitor, Region, ThreadStart, View};
use leakscope_ledger::events::{self, Event, asked};
use leakscope_model::{CheckTrigger, ErrorKind};
use leakscope_translate::{AccessKind, Action, BadAccess, Engine, Fault, GUEST_END, Gpr};

use crate::engine::{HEAP, Memcheck, forget_shadow, shadow};
use crate::errors::grouped;
use crate::functions::matches;
use crate::probe;
use crate::tool;

/// `si_code`: mapped, but not for this.
const SEGV_ACCERR: i32 = 2;
/// `si_code`: the kernel knows no address.
const SI_KERNEL: i32 = 0x80;

/// The first byte of a range that is not mapped or not addressable.
pub fn first_bad(address: u64, bytes: u64) -> Option<u64> {
    const PAGE: u64 = 4096;
    if bytes > 0 && address >= GUEST_END {
        return Some(address);
    }
    let end = address.saturating_add(bytes);
    let mut at = address;
    while at < end {
        let next = ((at | (PAGE - 1)) + 1).min(end);
        if at >= GUEST_END || !probe::can_read(at) {
            return Some(at);
        }
        if let Some(first) = shadow().first_forbidden(at, next - at) {
            return Some(at + first);
        }
        at = next;
    }
    None
}

impl Memcheck {
    /// Code of a file was mapped: whoever is to be replaced in it is.
    fn code_mapped(&mut self, engine: &mut Engine, mapping: &Mapping) {
        if let Backing::File { path, offset } = &mapping.backing
            && mapping.protection & libc::PROT_EXEC != 0
        {
            let found = self.module_mapped(path, mapping.start, *offset);
            self.install(engine, found);
            if let Some(module) = self.modules.find(mapping.start).cloned() {
                self.wrap_module(engine, &module);
            }
        }
    }

    fn gone(&mut self, engine: &mut Engine, start: u64, end: u64) {
        if self.modules_unmapped(start, end) {
            self.unhook_range(engine, start, end);
            self.unwrap_range(engine, start, end);
            self.arrays.forget(start, end);
        }
    }

    /// A loader's own vector loads, loads of which a part is addressable, and what the options leave out.
    fn is_fine(&self, access: &BadAccess, rsp: u64) -> bool {
        let (address, bytes) = (access.address, access.size_bytes);
        let is_partial = self.options.partial_loads_ok
            && access.kind == AccessKind::Read
            && (self.is_loaders(access)
                || matches!(bytes, 8 | 16 | 32 | 64)
                    && address.is_multiple_of(bytes)
                    && shadow().first_allowed(address, bytes).is_some());
        let is_below_sp = self.options.ignored_below_sp.is_some_and(|(far, near)| {
            let distance = rsp.wrapping_sub(address);
            near <= distance && distance <= far
        });
        let is_probe = access.kind == AccessKind::Write && tool::is_stack_probe(access.pc);
        is_partial || is_below_sp || is_probe || self.is_ignored(address, bytes)
    }

    /// The dynamic loader's own string functions read whole vectors and halves of them, and are not in its table of
    /// symbols, so that they cannot be replaced. What it reads are names that it copied itself.
    fn is_loaders(&self, access: &BadAccess) -> bool {
        access.size_bytes >= 8 && self.program.interpreter.contains(&access.pc)
    }

    fn end_of_descriptors(&mut self) {
        if self.options.track_fds {
            self.tell_descriptors();
        }
    }

    /// What `-v` asks for.
    fn tell_statistics(&mut self, engine: &Engine) {
        if self.options.statistics {
            let done = engine.statistics();
            self.say(format!(
                "simulated CPU: {} blocks of {} instructions translated, {} KB of code",
                grouped(done.blocks),
                grouped(done.instructions),
                grouped(done.code_bytes / 1024),
            ));
            self.say(format!(
                "simulated CPU: {} exits, cache flushed {} times",
                grouped(done.exits),
                grouped(done.flushes)
            ));
        }
    }

    fn end_with(&mut self, engine: &Engine, trigger: CheckTrigger, status: u32) {
        if self.options.leak_check {
            self.check_leaks(engine, trigger, status, asked::BY_OPTIONS);
        }
    }
}

impl Monitor<Engine> for Memcheck {
    fn started(&mut self, engine: &mut Engine, view: View) {
        self.view = Some(view);
        tool::set_instance(self);
        self.threads.begin(std::process::id(), engine.guest().gpr(Gpr::Rsp), Some(&view));
        let stack = self.threads.current().stack.clone();
        engine.guest_mut().stack = [stack.start, stack.end];
        let mappings: Vec<Mapping> = view.space().iter().cloned().collect();
        for mapping in &mappings {
            self.code_mapped(engine, mapping);
        }
    }

    fn mapped(&mut self, engine: &mut Engine, mapping: &Mapping) {
        self.gone(engine, mapping.start, mapping.end);
        forget_shadow(mapping.start, mapping.end - mapping.start);
        self.code_mapped(engine, mapping);
    }

    fn unmapped(&mut self, engine: &mut Engine, start: u64, end: u64) {
        self.gone(engine, start, end);
        forget_shadow(start, end - start);
    }

    fn protected(&mut self, engine: &mut Engine, start: u64, end: u64, protection: i32) {
        if protection & libc::PROT_EXEC == 0 {
            return;
        }
        let Some(view) = self.view else { return };
        let mappings: Vec<Mapping> = view.space().within(start, end).cloned().collect();
        for mapping in &mappings {
            self.code_mapped(engine, mapping);
        }
    }

    fn moved(&mut self, _engine: &mut Engine, from: u64, to: u64, bytes: u64) {
        shadow().copy(from, to, bytes);
    }

    fn call_arguments(&mut self, _engine: &mut Engine, call: &Call, _used: u8) {
        if call.number as i64 == libc::SYS_clone3 {
            self.keep_given_stack(call.arguments[0]);
        }
        if matches!(call.number as i64, libc::SYS_fork | libc::SYS_vfork | libc::SYS_clone | libc::SYS_clone3) {
            self.program.tid_of_forking = call.tid as u32;
            // What is told before is the parent's, and taken; the child begins with a copy.
            self.output.wait();
        }
    }

    fn before_call(&mut self, engine: &mut Engine, _call: &Call, region: &Region) {
        let Some(bad) = first_bad(region.address, region.length) else {
            if self.options.check_arrays {
                let guest = engine.guest().clone();
                let (rip, name) = (guest.rip.wrapping_sub(2), region.param.to_string());
                self.check_region(&guest, rip, region.address, region.length, &name);
            }
            return;
        };
        let name = region.param.to_string();
        let message = format!("Syscall param {name} points to unaddressable byte(s)");
        let guest = engine.guest().clone();
        // The instruction itself, two bytes back.
        self.walk_here(&guest, guest.rip.wrapping_sub(2));
        self.report(&guest, ErrorKind::SyscallParam, &name, message, Some(bad));
    }

    fn thread_started(&mut self, engine: &mut Engine, start: &ThreadStart) {
        self.threads.begin(start.tid as u32, start.stack_pointer, self.view.as_ref());
        self.begin_stack(engine.guest_mut(), start.stack_pointer);
    }

    fn thread_ended(&mut self, _engine: &mut Engine, tid: i32) {
        if let Some(thread) = self.threads.end(tid as u32) {
            forget_shadow(thread.unused.start, thread.unused.end - thread.unused.start);
        }
    }

    fn forking(&mut self, _engine: &mut Engine) {
        self.output.child_begins();
    }

    fn fork_failed(&mut self, _engine: &mut Engine) {
        self.output.child_arrived();
    }

    fn forked(&mut self, _engine: &mut Engine) {
        let parent = self.program.tid_of_forking;
        self.threads.keep_current(parent);
        let output = if self.options.child_silent { None } else { crate::start::connect(&self.program.connect, 1) };
        self.output.child_arrived();
        match output {
            Some(mut output) => {
                output.inherit(&self.output);
                output.set_state(events::state::RUNNING);
                self.output = output;
                let process = crate::start::process_event(&self.program, 1);
                self.output.tell(&process);
            }
            None => self.output.be_private(),
        }
    }

    fn frame_pushed(&mut self, _engine: &mut Engine, _signal: i32, start: u64, end: u64) {
        shadow().allow(start - 128, end - start + 128);
    }

    fn ending(&mut self, engine: &mut Engine, ending: &Ending) -> i32 {
        match *ending {
            Ending::Exit(status) => {
                self.end_of_descriptors();
                if self.options.freeres && self.options.leak_check {
                    self.free_libraries(engine);
                }
                self.end_with(engine, CheckTrigger::Exit, status as u32);
                self.tell_statistics(engine);
                self.tell_end(status)
            }
            Ending::Signal { signal, fault, .. } => {
                let (code, address) = fault.map_or((0, 0), |fault| (fault.code, fault.address));
                let guest = engine.guest().clone();
                self.tell_signal(&guest, signal, code, address);
                self.end_of_descriptors();
                self.end_with(engine, CheckTrigger::FatalSignal, signal as u32);
                self.tell_statistics(engine);
                self.tell_end(-signal)
            }
            Ending::Exec => {
                self.tell_counts();
                self.output.tell(&Event::Exec);
                self.output.wait();
                0
            }
        }
    }

    fn exec(&mut self, _engine: &mut Engine, request: &ExecRequest<'_>) -> ExecPlan {
        let path = CString::new(request.path).ok();
        let any = |patterns: &[String], text: &[u8]| patterns.iter().any(|pattern| matches(pattern.as_bytes(), text));
        let arguments = request.arguments.iter().skip(1);
        let is_skipped = any(&self.options.skipped_programs, request.path)
            || arguments.into_iter().any(|argument| any(&self.options.skipped_arguments, argument));
        if !self.options.trace_children || is_skipped || path.is_none_or(|path| crate::start::check(&path).is_err()) {
            return ExecPlan::Native;
        }
        let mut arguments = vec![b"leakscope-memcheck".to_vec(), self.program.connect.clone(), request.path.to_vec()];
        arguments.extend_from_slice(request.arguments);
        if request.arguments.is_empty() {
            arguments.push(request.path.to_vec());
        }
        let path = b"/proc/self/exe".to_vec();
        ExecPlan::Instead { path, arguments, environment: request.environment.to_vec() }
    }

    fn exec_failed(&mut self, _engine: &mut Engine, _errno: i32) {
        self.output.tell(&Event::ExecFailed);
    }

    fn warn(&mut self, text: &str) {
        self.say(format!("warning: {text}"));
    }

    fn bad_access(&mut self, engine: &mut Engine, access: BadAccess) -> Action {
        let guest = engine.guest().clone();
        if access.kind == AccessKind::Execute {
            self.walk_here(&guest, access.address);
            self.report_jump(&guest, access.address);
        } else if !self.is_fine(&access, guest.gpr(Gpr::Rsp)) {
            self.walk_here(&guest, access.pc);
            self.report_access(&guest, access.address, access.size_bytes, access.kind == AccessKind::Write);
        }
        Action::Continue
    }

    fn faulted(&mut self, engine: &mut Engine, fault: &Fault) {
        let guest = engine.guest().clone();
        let is_access = matches!(fault.signal, libc::SIGSEGV | libc::SIGBUS);
        // Of forbidden bytes, and of jumps to nowhere, `bad_access` has told.
        let is_forbidden = fault.address < GUEST_END && shadow().get(fault.address) != 0;
        // What is mapped and protected is addressable, to Memcheck as to us; but not the heap's freed memory.
        let is_protected = fault.code == SEGV_ACCERR && !HEAP.contains(&fault.address);
        // Without an address (not canonical, misaligned) there is no access to tell of.
        let has_address = fault.code > 0 && fault.code != SI_KERNEL;
        if is_access && !is_forbidden && !is_protected && has_address && fault.address != guest.rip {
            let (bytes, write) = tool::faulting_access(&guest, fault.error);
            self.walk_here(&guest, guest.rip);
            self.report_access(&guest, fault.address, bytes, write);
        }
    }

    fn descriptors(&mut self, engine: &mut Engine, change: leakscope_syscalls::Descriptor) {
        if self.options.track_fds {
            if matches!(change, leakscope_syscalls::Descriptor::Opened(_)) {
                let guest = engine.guest().clone();
                // The instruction itself, two bytes back.
                self.walk_here(&guest, guest.rip.wrapping_sub(2));
            }
            self.descriptors_changed(change);
        }
    }

    fn replaced(&mut self, engine: &mut Engine, cookie: u64) -> Action {
        if cookie == tool::RETURN_FROM_CALL {
            self.returned_from_call(engine);
        } else {
            self.call_wrapper(engine, cookie);
        }
        Action::Continue
    }

    fn client_request(&mut self, engine: &mut Engine) -> Action {
        Memcheck::client_request(self, engine)
    }
}
