//! Tells the monitor what each call reads and writes, from the table in `leakscope-syscalls`.

use leakscope_syscalls::{Access, Before, Memory, Region};

use crate::task::Task;
use crate::{Call, Cpu, Monitor, raw};

/// The target's memory for the table's evaluator.
struct Target;

impl Memory for Target {
    fn read_bytes(&self, address: u64, into: &mut [u8]) -> bool {
        raw::read_bytes(address, into).is_ok()
    }

    fn semaphores(&self, id: i32) -> Option<u32> {
        /// Where `sem_nsems` is in `struct semid64_ds`.
        const COUNT_AT: usize = 80;
        let mut state = [0_u8; 256];
        let arguments = [id as u64, 0, libc::IPC_STAT as u64, state.as_mut_ptr() as u64, 0, 0];
        // SAFETY: the kernel writes a `struct semid64_ds`, which has 104 bytes.
        let result = unsafe { raw::syscall(libc::SYS_semctl, arguments) };
        let mut count = [0; 4];
        count.copy_from_slice(&state[COUNT_AT..COUNT_AT + 4]);
        (result >= 0).then(|| u32::from_ne_bytes(count))
    }

    fn is_writable(&self, fd: i32) -> Option<bool> {
        // SAFETY: asks for flags.
        let flags = unsafe { raw::syscall(libc::SYS_fcntl, [fd as u64, libc::F_GETFL as u64, 0, 0, 0, 0]) };
        (flags >= 0).then_some(flags as i32 & libc::O_ACCMODE != libc::O_RDONLY)
    }
}

impl<C: Cpu, M: Monitor<C> + 'static> Task<C, M> {
    /// Before a call. What it returns is for [`Task::report_after`].
    pub(crate) fn report_before(&mut self, cpu: &mut C, call: &Call) -> Before {
        if let Some(entry) = leakscope_syscalls::lookup(call.number) {
            self.monitor().call_arguments(cpu, call, entry.registers(&call.arguments));
        }
        leakscope_syscalls::check(call.number, &call.arguments, &Target, &mut |region: Region| {
            if region.access == Access::Write {
                cpu.before_write(region.address, region.address.saturating_add(region.length));
            }
            self.monitor().before_call(cpu, call, &region);
        })
    }

    /// After a call.
    pub(crate) fn report_after(&mut self, cpu: &mut C, call: &Call, before: &Before, result: i64) {
        leakscope_syscalls::written(call.number, &call.arguments, result, before, &Target, &mut |region: Region| {
            self.monitor().after_call(cpu, call, result, &region);
        });
        leakscope_syscalls::descriptors(call.number, &call.arguments, result, &Target, &mut |change| {
            self.monitor().descriptors(cpu, change);
        });
    }
}
