//! The calls that set dispositions, masks and alternate stacks.

use leakscope_translate::Gpr;

use super::frame::{AUTODISARM, AltStack};
use super::{Action, UNTOUCHABLE, bit, handler};
use crate::raw::{self, RESTART};
use crate::task::Task;
use crate::{Cpu, Monitor};

const EFAULT: i64 = -(libc::EFAULT as i64);
const EINVAL: i64 = -(libc::EINVAL as i64);
const ENOMEM: i64 = -(libc::ENOMEM as i64);
const EPERM: i64 = -(libc::EPERM as i64);

/// Bytes of a signal set for the kernel.
const SET_BYTES: u64 = 8;

/// The smallest alternate stack that the kernel takes.
const SMALLEST_STACK: u64 = libc::MINSIGSTKSZ as u64;

impl<C: Cpu, M: Monitor<C> + 'static> Task<C, M> {
    pub(crate) fn rt_sigaction(&mut self, cpu: &mut C, [signal, new, old, size, ..]: [u64; 6]) -> i64 {
        let signal = signal as i32;
        if size != SET_BYTES || !(1..=64).contains(&signal) {
            return EINVAL;
        }
        let action = if new == 0 {
            None
        } else {
            let mut bytes = [0; 32];
            if raw::read_bytes(new, &mut bytes).is_err() {
                return EFAULT;
            }
            if UNTOUCHABLE & bit(signal) != 0 {
                return EINVAL;
            }
            Some(Action::decode(&bytes))
        };
        let previous = self.process().actions.get(signal);
        if let Some(action) = action {
            let actions = &mut self.process().actions;
            actions.set(signal, action);
            handler::install::<C>(actions, signal);
        }
        if old != 0 {
            cpu.before_write(old, old.saturating_add(32));
            if raw::write_bytes(old, &previous.encode()).is_err() {
                return EFAULT;
            }
        }
        0
    }

    pub(crate) fn rt_sigprocmask(&mut self, cpu: &mut C, [how, new, old, size, ..]: [u64; 6]) -> i64 {
        if size != SET_BYTES {
            return EINVAL;
        }
        let previous = self.thread().mask();
        if new != 0 {
            let Ok(set) = raw::read_u64(new) else { return EFAULT };
            let mask = match how as i32 {
                libc::SIG_BLOCK => previous | set,
                libc::SIG_UNBLOCK => previous & !set,
                libc::SIG_SETMASK => set,
                _ => return EINVAL,
            };
            // A signal that came under the old mask is delivered under it.
            if !self.set_kernel_mask(mask) {
                return RESTART;
            }
            self.thread().set_mask(mask);
        }
        if old != 0 {
            cpu.before_write(old, old.saturating_add(SET_BYTES));
            if raw::write_u64(old, previous).is_err() {
                return EFAULT;
            }
        }
        0
    }

    pub(crate) fn rt_sigpending(&mut self, cpu: &mut C, [set, size, ..]: [u64; 6]) -> i64 {
        if size > SET_BYTES {
            return EINVAL;
        }
        let mut pending = 0_u64;
        // SAFETY: writes eight bytes of ours.
        let result =
            unsafe { raw::syscall(libc::SYS_rt_sigpending, [(&raw mut pending) as u64, SET_BYTES, 0, 0, 0, 0]) };
        if result < 0 {
            return result;
        }
        pending |= self.own_pending();
        cpu.before_write(set, set.saturating_add(size));
        if raw::write_bytes(set, &pending.to_ne_bytes()[..size as usize]).is_err() {
            return EFAULT;
        }
        0
    }

    pub(crate) fn sigaltstack(&mut self, cpu: &mut C, [new, old, ..]: [u64; 6]) -> i64 {
        let rsp = cpu.guest().gpr(Gpr::Rsp);
        let previous = self.local().altstack;
        if new != 0 {
            let mut bytes = [0; 24];
            if raw::read_bytes(new, &mut bytes).is_err() {
                return EFAULT;
            }
            if let Err(error) = self.set_altstack(AltStack::decode(&bytes), rsp) {
                return error;
            }
        }
        if old != 0 {
            let state = if previous.bytes == 0 {
                libc::SS_DISABLE
            } else if previous.is_on(rsp) {
                libc::SS_ONSTACK
            } else {
                0
            };
            let shown = AltStack { flags: state | previous.flags & AUTODISARM, ..previous };
            cpu.before_write(old, old.saturating_add(24));
            if raw::write_bytes(old, &shown.encode()).is_err() {
                return EFAULT;
            }
        }
        0
    }

    /// `do_sigaltstack` of the kernel.
    pub(crate) fn set_altstack(&mut self, mut stack: AltStack, rsp: u64) -> Result<(), i64> {
        if self.local().altstack.is_on(rsp) {
            return Err(EPERM);
        }
        match stack.flags & !AUTODISARM {
            libc::SS_DISABLE => {
                stack.start = 0;
                stack.bytes = 0;
            }
            0 | libc::SS_ONSTACK => {
                if stack.bytes < SMALLEST_STACK {
                    return Err(ENOMEM);
                }
            }
            _ => return Err(EINVAL),
        }
        self.local().altstack = stack;
        Ok(())
    }
}
