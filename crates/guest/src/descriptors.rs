//! Descriptors of the engine, which are not there for the target.

use crate::dispatch::{EBADF, EINVAL};
use crate::raw;
use crate::task::Task;
use crate::{Cpu, Monitor};

/// The engine's descriptors, sorted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Hidden {
    list: Vec<i32>,
}

impl Hidden {
    pub fn new(list: &[i32]) -> Self {
        let mut hidden = Self { list: list.to_vec() };
        hidden.list.sort_unstable();
        hidden
    }

    pub fn add(&mut self, descriptor: i32) {
        if let Err(at) = self.list.binary_search(&descriptor) {
            self.list.insert(at, descriptor);
        }
    }

    pub fn contains(&self, descriptor: i32) -> bool {
        self.list.binary_search(&descriptor).is_ok()
    }

    /// The parts of `first..=last` that are not hidden.
    pub fn gaps(&self, first: u32, last: u32) -> Vec<(u32, u32)> {
        let mut gaps = Vec::new();
        let mut at = Some(first);
        for &descriptor in &self.list {
            let descriptor = descriptor as u32;
            let Some(start) = at else { break };
            if descriptor < start || descriptor > last {
                continue;
            }
            if start < descriptor {
                gaps.push((start, descriptor - 1));
            }
            at = descriptor.checked_add(1);
        }
        if let Some(start) = at.filter(|&start| start <= last) {
            gaps.push((start, last));
        }
        gaps
    }
}

impl<C: Cpu, M: Monitor<C> + 'static> Task<C, M> {
    /// `dup2` and `dup3`. The limit on open files makes such numbers fail natively, too.
    pub(crate) fn duplicate_onto(&mut self, cpu: &mut C, number: u64, a: [u64; 6]) -> i64 {
        if self.process().hidden.contains(a[1] as i32) {
            return EBADF;
        }
        self.pass(cpu, number, a)
    }

    pub(crate) fn close_range(&mut self, a: [u64; 6]) -> i64 {
        let (first, last) = (a[0] as u32, a[1] as u32);
        if first > last {
            return EINVAL;
        }
        let mut flags = a[2];
        for (first, last) in self.process().hidden.gaps(first, last) {
            let arguments = [first.into(), last.into(), flags, 0, 0, 0];
            // SAFETY: none of them is the engine's.
            let result = unsafe { raw::syscall(libc::SYS_close_range, arguments) };
            if result < 0 {
                return result;
            }
            // The table of descriptors is this thread's own after the first call.
            flags &= !u64::from(libc::CLOSE_RANGE_UNSHARE);
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_leave_out_what_is_hidden() {
        let hidden = Hidden::new(&[900, 5, 901]);
        assert_eq!(hidden.gaps(3, u32::MAX), [(3, 4), (6, 899), (902, u32::MAX)]);
        assert_eq!(hidden.gaps(5, 5), []);
        assert_eq!(hidden.gaps(6, 900), [(6, 899)]);
        assert_eq!(hidden.gaps(0, 4), [(0, 4)]);
        assert_eq!(Hidden::default().gaps(0, u32::MAX), [(0, u32::MAX)]);
    }
}
