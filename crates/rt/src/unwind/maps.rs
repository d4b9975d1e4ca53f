//! The stack of a thread, from `/proc/self/maps`: for a thread that nobody knows the bounds of.
//!
//! No allocation and no libc calls; about 50 microseconds. May run in any thread and in signal handlers.

use core::arch::asm;

use super::stack::StackRange;

/// The mapping that holds `address`, or `None` if `/proc` cannot tell.
///
/// For a thread's stack that is the stack, plus whatever lies directly above it with the same permissions.
#[must_use]
pub fn stack_of(address: u64) -> Option<StackRange> {
    let path = c"/proc/self/maps";
    let fd = syscall3(libc::SYS_open, path.as_ptr() as u64, (libc::O_RDONLY | libc::O_CLOEXEC) as u64, 0);
    if fd < 0 {
        return None;
    }
    let found = search(fd as u64, address);
    syscall3(libc::SYS_close, fd as u64, 0, 0);
    found
}

/// Bound on the reads of one search: 16 MiB of text, more than the kernel's limit of mappings makes by default.
const MAX_READS: usize = 1 << 14;

fn search(fd: u64, address: u64) -> Option<StackRange> {
    let mut buffer = [0u8; 1024];
    let mut parser = Parser::default();
    for _ in 0..MAX_READS {
        let got = syscall3(libc::SYS_read, fd, buffer.as_mut_ptr() as u64, buffer.len() as u64);
        if got == -i64::from(libc::EINTR) {
            continue;
        }
        let bytes = buffer.get(..usize::try_from(got).ok()?)?;
        if bytes.is_empty() {
            return None;
        }
        for &byte in bytes {
            if let Some(range) = parser.feed(byte)
                && range.contains(address)
            {
                return Some(range);
            }
        }
    }
    None
}

/// Reads `low-high perms ...` line by line, one byte at a time.
#[derive(Default)]
struct Parser {
    field: u32,
    low: u64,
    high: u64,
}

impl Parser {
    fn feed(&mut self, byte: u8) -> Option<StackRange> {
        let digit = u64::from(match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => 0,
        });
        match (byte, self.field) {
            (b'\n', _) => *self = Self::default(),
            (b'-', 0) => self.field = 1,
            (b' ', 1) => {
                self.field = 2;
                return Some(StackRange { low: self.low, high: self.high });
            }
            (_, 0) => self.low = self.low << 4 | digit,
            (_, 1) => self.high = self.high << 4 | digit,
            _ => {}
        }
        None
    }
}

fn syscall3(number: i64, a: u64, b: u64, c: u64) -> i64 {
    let result;
    // SAFETY: open, read and close with a path, a buffer and a descriptor that the callers above own.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a,
            in("rsi") b,
            in("rdx") c,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_mapping_that_std_also_finds() {
        let local = 0u64;
        let address = &raw const local as u64;
        let range = stack_of(address).expect("a mapping");
        let text = std::fs::read_to_string("/proc/self/maps").expect("maps");
        let line = format!("{:x}-{:x} rw-p", range.low, range.high);
        assert!(range.contains(address));
        assert!(text.lines().any(|l| l.starts_with(&line)), "{line} not in\n{text}");
        assert_eq!(stack_of(8), None);
    }
}
