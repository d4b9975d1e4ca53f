//! Resource limits that count the engine's memory if the kernel had them: kept here, and set for the next program.

use std::sync::OnceLock;

use crate::dispatch::{EINVAL, EPERM};
use crate::raw;

/// `RLIM_INFINITY` as the kernel has it.
pub(crate) const INFINITY: u64 = u64::MAX;

const VIRTUAL: [u32; 3] = [libc::RLIMIT_AS, libc::RLIMIT_DATA, libc::RLIMIT_STACK];

/// Whether a limit is kept here.
pub(crate) fn is_virtual(resource: u32) -> bool {
    VIRTUAL.contains(&resource)
}

/// Soft and hard limits of [`VIRTUAL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    values: [(u64, u64); 3],
    is_changed: bool,
}

fn place(resource: u32) -> usize {
    VIRTUAL.iter().position(|&other| other == resource).unwrap_or(0)
}

/// `prlimit64` of this process.
fn kernel_limit(resource: u32, new: Option<(u64, u64)>) -> Result<(u64, u64), i64> {
    let mut old = [0_u64; 2];
    let new = new.map(|(soft, hard)| [soft, hard]);
    let pointer = new.as_ref().map_or(0, |new| new.as_ptr() as u64);
    // SAFETY: reads and writes two words each.
    let result =
        unsafe { raw::syscall(libc::SYS_prlimit64, [0, resource.into(), pointer, old.as_mut_ptr() as u64, 0, 0]) };
    if result < 0 { Err(result) } else { Ok((old[0], old[1])) }
}

/// What the process was started with, when [`lift_limits`] changed it.
static GIVEN: OnceLock<Limits> = OnceLock::new();

/// Takes the soft limits of address space and data away, in which the engine's own memory would count. The target goes on
/// with those that there were. To be called before the engine maps anything large; once is enough.
pub fn lift_limits() {
    GIVEN.get_or_init(|| {
        let mut given = Limits::from_kernel();
        for resource in [libc::RLIMIT_AS, libc::RLIMIT_DATA] {
            let (soft, hard) = given.get(resource);
            given.is_changed |= soft < hard && kernel_limit(resource, Some((hard, hard))).is_ok();
        }
        given
    });
}

impl Limits {
    /// What the process was started with.
    pub fn given() -> Self {
        GIVEN.get().copied().unwrap_or_else(Self::from_kernel)
    }

    /// What the kernel has now.
    fn from_kernel() -> Self {
        let values = VIRTUAL.map(|resource| kernel_limit(resource, None).unwrap_or((INFINITY, INFINITY)));
        Self { values, is_changed: false }
    }

    pub fn get(&self, resource: u32) -> (u64, u64) {
        self.values[place(resource)]
    }

    /// Sets a limit as an unprivileged process may: the hard one only goes down, unless the process is root.
    pub fn set(&mut self, resource: u32, (soft, hard): (u64, u64)) -> Result<(), i64> {
        if soft > hard {
            return Err(EINVAL);
        }
        // SAFETY: it changes nothing.
        let is_root = unsafe { raw::syscall(libc::SYS_geteuid, [0; 6]) } == 0;
        if hard > self.get(resource).1 && !is_root {
            return Err(EPERM);
        }
        self.values[place(resource)] = (soft, hard);
        self.is_changed = true;
        Ok(())
    }

    /// The soft limit of address space.
    pub fn address_space(&self) -> u64 {
        self.get(libc::RLIMIT_AS).0
    }

    /// The soft limit of data.
    pub fn data(&self) -> u64 {
        self.get(libc::RLIMIT_DATA).0
    }

    /// Makes them the kernel's, before `execve`; returns what was there.
    pub fn enforce(&self) -> Option<Self> {
        if !self.is_changed {
            return None;
        }
        let before = Self::from_kernel();
        for (resource, value) in VIRTUAL.into_iter().zip(self.values) {
            // The hard limit stays the kernel's: it could not be raised again if the call fails.
            let hard = before.get(resource).1;
            let _ = kernel_limit(resource, Some((value.0.min(hard), hard)));
        }
        Some(before)
    }

    /// After an `execve` that failed.
    pub fn restore(before: Option<Self>) {
        for (resource, value) in VIRTUAL.into_iter().zip(before.iter().flat_map(|before| before.values)) {
            let _ = kernel_limit(resource, Some(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_soft_limit_stays_below_the_hard_one() {
        let mut limits = Limits { values: [(10, 20); 3], is_changed: false };
        assert_eq!(limits.set(libc::RLIMIT_AS, (21, 20)), Err(EINVAL));
        assert_eq!(limits.set(libc::RLIMIT_AS, (5, 15)), Ok(()));
        assert_eq!(limits.get(libc::RLIMIT_AS), (5, 15));
        assert_eq!(limits.address_space(), 5);
        assert_eq!(limits.get(libc::RLIMIT_STACK), (10, 20));
    }
}
