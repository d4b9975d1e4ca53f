//! Calls on files that would show the engine where the target looks for itself.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;

use leakscope_ledger::events::{Descriptor, Event};
use leakscope_translate::Engine;

use super::Call;
use crate::engine::Memcheck;
use crate::probe;
use crate::stacks::StackId;

/// The longest path.
const PATH: usize = 4096;

/// What the target looks at.
enum Own {
    Executable,
    Auxiliary,
    CommandLine,
}

/// Which file of `/proc` about this process a path names.
fn own(path: &[u8]) -> Option<Own> {
    let rest = path.strip_prefix(b"/proc/")?;
    let rest = match rest.strip_prefix(b"self/").or_else(|| rest.strip_prefix(b"thread-self/")) {
        Some(rest) => rest,
        None => {
            let own = std::process::id().to_string();
            rest.strip_prefix(own.as_bytes())?.strip_prefix(b"/")?
        }
    };
    match rest {
        b"exe" => Some(Own::Executable),
        b"auxv" => Some(Own::Auxiliary),
        b"cmdline" => Some(Own::CommandLine),
        _ => None,
    }
}

impl Memcheck {
    /// Path argument of a call of the plain or the `at` form.
    fn path_argument(call: Call, is_at: bool) -> Option<Vec<u8>> {
        probe::text(call.arguments[usize::from(is_at)], PATH)
    }

    /// `readlink` of `/proc/self/exe` is the program.
    pub(super) fn read_link(&self, call: Call) -> Option<i64> {
        let is_at = call.number as i64 == libc::SYS_readlinkat;
        let path = Self::path_argument(call, is_at)?;
        let Own::Executable = own(&path)? else { return None };
        let [_, buffer, bytes, ..] = if is_at {
            let [_, a, b, c, d, e] = call.arguments;
            [a, b, c, d, e, 0]
        } else {
            let [a, b, c, d, e, f] = call.arguments;
            [a, b, c, d, e, f]
        };
        if bytes as i64 <= 0 {
            return Some(-i64::from(libc::EINVAL));
        }
        let length = self.program.path.len().min(bytes as usize);
        for at in [buffer, buffer + length as u64 - 1] {
            if !probe::can_write(at) {
                return Some(-i64::from(libc::EFAULT));
            }
        }
        // SAFETY: both ends can be written, and no path is longer than a page.
        unsafe { std::ptr::copy_nonoverlapping(self.program.path.as_ptr(), buffer as *mut u8, length) };
        Some(length as i64)
    }

    /// `open` of files that would be the engine's.
    pub(super) fn open(&self, call: Call) -> Option<i64> {
        let is_at = call.number as i64 == libc::SYS_openat;
        let path = Self::path_argument(call, is_at)?;
        let shift = usize::from(is_at);
        match own(&path)? {
            Own::Executable => {
                let path = CString::new(self.program.path.clone()).ok()?;
                let mut changed = call;
                changed.arguments[shift] = path.as_ptr() as u64;
                Some(changed.perform())
            }
            Own::Auxiliary => Some(file_with(&self.program.auxiliary)),
            Own::CommandLine => {
                let mut text = Vec::new();
                for argument in &self.program.arguments {
                    text.extend_from_slice(argument);
                    text.push(0);
                }
                Some(file_with(&text))
            }
        }
    }

    /// Remembers where descriptors are opened.
    pub(super) fn note_descriptors(&mut self, engine: &Engine, call: Call, result: i64) {
        let guest = engine.guest().clone();
        let mut opened: Vec<i32> = Vec::new();
        match call.number as i64 {
            libc::SYS_close if result == 0 => {
                self.kernel.opened.remove(&(call.arguments[0] as i32));
            }
            libc::SYS_pipe | libc::SYS_pipe2 if result == 0 => {
                if let Some(pair) = probe::word(call.arguments[0]) {
                    opened.extend([pair as i32, (pair >> 32) as i32]);
                }
            }
            libc::SYS_socketpair if result == 0 => {
                if let Some(pair) = probe::word(call.arguments[3]) {
                    opened.extend([pair as i32, (pair >> 32) as i32]);
                }
            }
            libc::SYS_open
            | libc::SYS_openat
            | libc::SYS_openat2
            | libc::SYS_creat
            | libc::SYS_dup
            | libc::SYS_dup2
            | libc::SYS_dup3
            | libc::SYS_socket
            | libc::SYS_accept
            | libc::SYS_accept4
            | libc::SYS_eventfd2
            | libc::SYS_epoll_create1
            | libc::SYS_timerfd_create
            | libc::SYS_signalfd4
            | libc::SYS_inotify_init1
            | libc::SYS_memfd_create
                if result >= 0 =>
            {
                opened.push(result as i32);
            }
            libc::SYS_fcntl
                if result >= 0 && matches!(call.arguments[1] as i32, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) =>
            {
                opened.push(result as i32);
            }
            _ => {}
        }
        if !opened.is_empty() {
            self.walk_here(&guest, guest.rip.wrapping_sub(2));
            let stack = self.stacks.intern(&self.walk);
            self.kernel.opened.extend(opened.into_iter().map(|fd| (fd, stack)));
        }
    }

    /// Tells which descriptors are open.
    pub fn tell_descriptors(&mut self) {
        let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
        let mut list: Vec<Descriptor> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let number: i32 = entry.file_name().to_str()?.parse().ok()?;
                // The directory itself is among them, and gone when this is read.
                let target = std::fs::read_link(entry.path()).ok()?.as_os_str().as_bytes().to_vec();
                let stack = self.kernel.opened.get(&number).copied().unwrap_or(StackId::NONE);
                (!target.starts_with(b"/proc/") || stack != StackId::NONE)
                    .then(|| Descriptor { number, target, stack: self.stacks.get(stack).to_vec() })
            })
            .collect();
        list.sort_by_key(|descriptor| descriptor.number);
        self.output.tell(&Event::Descriptors(list));
    }
}

/// A descriptor from which these bytes can be read.
fn file_with(bytes: &[u8]) -> i64 {
    // SAFETY: plain calls; the buffer is as long as said.
    unsafe {
        let fd = libc::memfd_create(c"proc".as_ptr(), libc::MFD_CLOEXEC);
        if fd >= 0 {
            let written = libc::write(fd, bytes.as_ptr().cast(), bytes.len());
            libc::lseek(fd, 0, libc::SEEK_SET);
            if written != bytes.len() as isize {
                libc::close(fd);
                return -i64::from(libc::ENOMEM);
            }
        }
        i64::from(fd)
    }
}
