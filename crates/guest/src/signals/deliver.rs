//! From a signal that came to the target's handler, and back.

use leakscope_translate::{AccessKind, Fault, Gpr};

use super::frame::{self, AltStack, Content, Extended, FRAME_BYTES, Place};
use super::{
    ALL_BLOCKED, Action, DefaultAction, Disposition, INFO_BYTES, Info, SYNCHRONOUS, Set, UNTOUCHABLE, bit,
    default_action, handler,
};
use crate::task::Task;
use crate::{Cpu, Ending, Monitor, raw};

/// Flags that a handler starts without: direction, trap, resume.
const CLEARED_FLAGS: u64 = 0x400 | 0x100 | 0x1_0000;

impl<C: Cpu, M: Monitor<C> + 'static> Task<C, M> {
    /// Gives the kernel the thread's mask. `false` if a signal is pending, which has to be delivered first.
    pub(crate) fn set_kernel_mask(&mut self, mask: Set) -> bool {
        let mask = mask & ALL_BLOCKED;
        let arguments = [libc::SIG_SETMASK as u64, (&raw const mask) as u64, 0, 8, 0, 0];
        // SAFETY: the mask is read only; the handler is prepared for every signal.
        unsafe {
            raw::interruptible(libc::SYS_rt_sigprocmask as u64, arguments, self.thread().pending_word()) != raw::RESTART
        }
    }

    /// Whether a call that the pending signal interrupted is made again after it.
    pub(crate) fn restarts_call(&mut self) -> bool {
        let Some(info) = self.thread().peek_pending() else { return true };
        let actions = &self.process().actions;
        match actions.disposition(info.signal()) {
            Disposition::Handler => actions.get(info.signal()).has(libc::SA_RESTART),
            Disposition::Default | Disposition::Ignore => true,
        }
    }

    /// Delivers what is pending; afterwards the kernel's mask is the thread's.
    pub(crate) fn deliver_pending(&mut self, cpu: &mut C) {
        loop {
            if let Some(info) = self.thread().take_pending() {
                self.deliver(cpu, &info);
                while !self.set_kernel_mask(self.thread().mask()) {
                    // One that cannot be blocked came meanwhile.
                    if let Some(info) = self.thread().take_pending() {
                        self.deliver(cpu, &info);
                    }
                }
            } else if let Some(info) = self.thread().take_deferred(self.thread().mask()) {
                self.deliver(cpu, &info);
            } else {
                return;
            }
        }
    }

    fn deliver(&mut self, cpu: &mut C, info: &Info) {
        let signal = info.signal();
        match self.process().actions.disposition(signal) {
            Disposition::Ignore => {}
            Disposition::Default => match default_action(signal) {
                DefaultAction::Ignore | DefaultAction::Continue => {}
                // The kernel stops processes by itself; here the disposition changed after the signal came.
                DefaultAction::Stop => {
                    // SAFETY: stops the process, as asked.
                    unsafe { raw::syscall(libc::SYS_kill, [raw::getpid() as u64, libc::SIGSTOP as u64, 0, 0, 0, 0]) };
                }
                DefaultAction::Terminate => self.die(cpu, signal, info.sender(), None),
            },
            Disposition::Handler => self.push_frame(cpu, info, [0; 3]),
        }
    }

    /// An instruction raised a signal: `force_sig` of the kernel.
    pub(crate) fn deliver_fault(&mut self, cpu: &mut C, fault: &Fault) {
        let is_blocked = self.thread().mask() & bit(fault.signal) != 0;
        if is_blocked || self.process().actions.disposition(fault.signal) != Disposition::Handler {
            self.die(cpu, fault.signal, 0, Some(*fault));
        }
        let info = Info::new(fault.signal, fault.code, fault.address);
        // What signals of the processor leave in the frame; the address for page faults alone.
        let address = if fault.trap == 14 { fault.address } else { 0 };
        self.push_frame(cpu, &info, [fault.error, fault.trap, address]);
    }

    fn push_frame(&mut self, cpu: &mut C, info: &Info, trap: [u64; 3]) {
        let signal = info.signal();
        let action = self.process().actions.get(signal);
        let altstack = self.local().altstack;
        let extended = Extended::of_guest();
        let rsp = cpu.guest().gpr(Gpr::Rsp);
        let uses_altstack = action.has(libc::SA_ONSTACK) && altstack.bytes != 0;
        let place = Place::new(rsp, uses_altstack.then_some(&altstack), &extended);
        let mask = self.thread().mask();
        let written = place.is_some_and(|place| {
            let content = Content { info, mask, altstack, restorer: action.restorer, trap };
            let state = frame::encode_extended(&cpu.guest().xsave, &extended);
            let bytes = frame::encode(cpu.guest(), &place, &content);
            cpu.before_write(place.frame, place.end);
            raw::write_bytes(place.extended, &state).is_ok() && raw::write_bytes(place.frame, &bytes).is_ok()
        });
        let Some(place) = place.filter(|_| written && action.flags & super::action::RESTORER != 0) else {
            return self.stack_is_bad(cpu, signal, rsp);
        };
        if altstack.flags & frame::AUTODISARM != 0 {
            self.local().altstack = AltStack::NONE;
        }
        let guest = cpu.guest_mut();
        guest.set_gpr(Gpr::Rdi, signal as u64);
        guest.set_gpr(Gpr::Rsi, place.frame + frame::INFO_AT);
        guest.set_gpr(Gpr::Rdx, place.frame + frame::CONTEXT_AT);
        guest.set_gpr(Gpr::Rax, 0);
        guest.set_gpr(Gpr::Rsp, place.frame);
        guest.rip = action.handler;
        guest.rflags &= !CLEARED_FLAGS;
        guest.reset_vectors();
        self.enter_handler(signal, &action);
        self.monitor().frame_pushed(cpu, signal, place.frame, place.end);
    }

    /// Mask and disposition as they are while a handler runs. The kernel is told of the mask by the caller.
    fn enter_handler(&mut self, signal: i32, action: &Action) {
        let itself = if action.has(libc::SA_NODEFER) { 0 } else { bit(signal) };
        let thread = self.thread();
        thread.set_mask(thread.mask() | action.mask | itself);
        if action.has(libc::SA_RESETHAND) {
            self.process().actions.set(signal, Action { handler: 0, ..*action });
            handler::install::<C>(&self.process().actions, signal);
        }
    }

    /// There is no room for a frame: as `force_sigsegv` of the kernel.
    fn stack_is_bad(&mut self, cpu: &mut C, signal: i32, rsp: u64) {
        self.monitor().unusable(cpu, rsp.wrapping_sub(FRAME_BYTES), FRAME_BYTES, AccessKind::Write);
        let fault = Fault { signal: libc::SIGSEGV, code: libc::SI_KERNEL, address: 0, trap: 0, error: 0 };
        if signal == libc::SIGSEGV {
            self.die(cpu, signal, 0, Some(fault));
        }
        self.deliver_fault(cpu, &fault);
    }

    /// `rt_sigreturn`: the registers are those of the frame afterwards.
    pub(crate) fn signal_return(&mut self, cpu: &mut C) {
        // The handler's `ret` took the first word of the frame.
        let start = cpu.guest().gpr(Gpr::Rsp).wrapping_sub(8);
        let mut bytes = [0; FRAME_BYTES as usize];
        // The part behind the siginfo is not needed, but it is there.
        if raw::read_bytes(start, &mut bytes[..FRAME_BYTES as usize - INFO_BYTES]).is_err() {
            return self.bad_return(cpu, start);
        }
        let returned = frame::decode(&bytes, cpu.guest_mut());
        if returned.extended == 0 {
            cpu.guest_mut().reset_vectors();
        } else if self.restore_extended(cpu, returned.extended).is_err() {
            return self.bad_return(cpu, start);
        }
        let rsp = cpu.guest().gpr(Gpr::Rsp);
        // As the kernel does: errors are ignored.
        let _ = self.set_altstack(returned.altstack, rsp);
        self.thread().set_mask(returned.mask);
        // If a signal is pending, it is delivered next, and the mask is set after it.
        self.set_kernel_mask(returned.mask);
        self.monitor().frame_popped(cpu, start);
    }

    fn restore_extended(&mut self, cpu: &mut C, address: u64) -> Result<(), raw::BadAddress> {
        let extended = Extended::of_guest();
        let mut legacy = [0; 512];
        raw::read_bytes(address, &mut legacy)?;
        let mut state = vec![0; frame::extended_length(&legacy, &extended)];
        raw::read_bytes(address, &mut state)?;
        frame::decode_extended(&state, cpu.guest_mut(), &extended);
        Ok(())
    }

    fn bad_return(&mut self, cpu: &mut C, start: u64) {
        self.monitor().unusable(cpu, start, FRAME_BYTES, AccessKind::Read);
        let fault = Fault { signal: libc::SIGSEGV, code: libc::SI_KERNEL, address: 0, trap: 0, error: 0 };
        self.deliver_fault(cpu, &fault);
    }

    /// The process dies of a signal, for real: the parent sees it.
    pub(crate) fn die(&mut self, cpu: &mut C, signal: i32, sender: i32, fault: Option<Fault>) -> ! {
        self.monitor().ending(cpu, &Ending::Signal { signal, sender, fault });
        self.finish_vfork();
        handler::set_default(signal);
        let open = !(bit(signal) | UNTOUCHABLE);
        let arguments = [libc::SIG_SETMASK as u64, (&raw const open) as u64, 0, 8, 0, 0];
        loop {
            // SAFETY: the process ends here. The other threads cannot run the target: this one has the baton.
            unsafe {
                let target = [raw::getpid() as u64, raw::gettid() as u64, signal as u64, 0, 0, 0];
                raw::syscall(libc::SYS_tgkill, target);
                raw::syscall(libc::SYS_rt_sigprocmask, arguments);
                // The first process of a namespace outlives signals.
                raw::syscall(libc::SYS_exit_group, [128 + signal as u64, 0, 0, 0, 0, 0]);
            }
        }
    }

    /// Signals that are pending in our own slots, for `rt_sigpending`.
    pub(crate) fn own_pending(&self) -> Set {
        self.thread().deferred() & (SYNCHRONOUS | bit(super::PREEMPT))
    }
}
