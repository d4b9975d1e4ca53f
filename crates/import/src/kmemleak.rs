//! Dumps of the kernel's kmemleak (`/sys/kernel/debug/kmemleak`), plain or out of the kernel's log.
//!
//! Source: Linux `mm/kmemleak.c`, `print_unreferenced`, from 4.4 to 6.18: `(age ...)` went with 6.11, `(crc ...)` came
//! with 6.8, `(percpu)` with 6.13, and the bracketed address of a frame is hashed, `<0>`, or gone.
//!
//! kmemleak follows interior pointers and reports what nothing that it scans points to; what only a lost object points
//! to is in its list as well, and is not told apart. So every object is taken for definitely lost. Frames are functions
//! of the kernel and its modules; those of its allocator are taken off.

use leakscope_model::{AllocFn, LeakKind, Tool};

use crate::lines::{hex, leading_decimal};
use crate::sink::{Base, FrameText, Front, Sink};

/// Reads the lines of dumps.
#[derive(Default)]
pub(crate) struct Kmemleak {
    open: Option<Open>,
}

struct Open {
    bytes: u64,
    frames: Vec<u32>,
    in_backtrace: bool,
    /// Frames of the allocator come first.
    in_front: bool,
}

/// A line without the time that the kernel's log puts in front, and without kmemleak's name.
fn without_stamp(line: &str) -> &str {
    let line = match line.trim_start().strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((stamp, rest)) if stamp.trim().bytes().all(|b| b.is_ascii_digit() || b == b'.') && stamp.contains('.') => {
            rest.strip_prefix(' ').unwrap_or(rest)
        }
        _ => line,
    };
    line.strip_prefix("kmemleak: ").unwrap_or(line)
}

/// Whether a text has an object of a dump in it.
pub(crate) fn is_dump(text: &str) -> bool {
    text.lines().any(|line| without_stamp(line).starts_with("unreferenced object"))
}

/// The functions that allocate, and those that note it.
fn allocates(function: &str) -> bool {
    const FRONTS: [&str; 21] = [
        "kmem_cache_alloc",
        "__kmem_cache_alloc",
        "kmem_cache_",
        "kmalloc",
        "__kmalloc",
        "__do_kmalloc",
        "krealloc",
        "kvmalloc",
        "__kvmalloc",
        "kzalloc",
        "vmalloc",
        "__vmalloc",
        "vzalloc",
        "pcpu_alloc",
        "__alloc_percpu",
        "kmemleak_alloc",
        "create_object",
        "slab_post_alloc_hook",
        "slab_alloc",
        "__alloc_pages",
        "kmemleak_",
    ];
    FRONTS.iter().any(|front| function.starts_with(front))
}

/// `[<00000000c3a5d3c8>] kmem_cache_alloc+0x1a/0x20 [ext4]`: function, offset in it, module.
fn frame(text: &str) -> Option<(&str, u64, &str)> {
    let text = text.trim();
    let text = match text.strip_prefix("[<").and_then(|rest| rest.split_once(">]")) {
        Some((_, rest)) => rest.trim_start(),
        None => text,
    };
    let (symbol, rest) = text.split_once(' ').unwrap_or((text, ""));
    let module = rest.trim().strip_prefix('[').and_then(|rest| rest.split([']', ' ']).next()).unwrap_or("");
    let (function, offset) = match symbol.split_once("+0x") {
        Some((function, offset)) => (function, hex(offset.split('/').next()?)?),
        // Without kallsyms only an address is there.
        None => ("", hex(symbol.strip_prefix("0x")?)?),
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_.$:".contains(c);
    function.chars().all(is_name).then_some((function, offset, module))
}

impl Kmemleak {
    /// Reads a line if it belongs to a dump.
    pub(crate) fn line(&mut self, sink: &mut Sink, number: u64, line: &str) -> bool {
        let text = without_stamp(line);
        if let Some(rest) = text.strip_prefix("unreferenced object") {
            self.close(sink);
            let size = rest.split("(size ").nth(1).and_then(leading_decimal);
            match size {
                Some((bytes, _)) => {
                    self.open = Some(Open { bytes, frames: Vec::new(), in_backtrace: false, in_front: true });
                }
                None => sink.unread(number, line),
            }
            return true;
        }
        let Some(open) = &mut self.open else { return false };
        let indent = text.len() - text.trim_start().len();
        if indent < 2 {
            self.close(sink);
            return false;
        }
        let trimmed = text.trim();
        if trimmed.starts_with("backtrace") {
            open.in_backtrace = true;
            return true;
        }
        if trimmed.starts_with("comm \"") || trimmed.starts_with("hex dump") {
            return true;
        }
        if !open.in_backtrace {
            // The hex dump; a line of it that is cut off shows nothing that we need.
            return true;
        }
        let Some((function, offset, module)) = frame(trimmed) else {
            sink.unread(number, line);
            return true;
        };
        if open.in_front && allocates(function) {
            return true;
        }
        open.in_front = false;
        let process = sink.process(0, Tool::Kmemleak);
        let process = &mut sink[process];
        let module = process.module(if module.is_empty() { "vmlinux" } else { module }, Base::LinkTime, 0, None);
        let frame = process.frame(&FrameText { pc: offset, function, module, ..FrameText::default() });
        if open.frames.len() < crate::sink::DEEPEST {
            open.frames.push(frame);
        }
        true
    }

    fn close(&mut self, sink: &mut Sink) {
        let Some(open) = self.open.take() else { return };
        let process = sink.process(0, Tool::Kmemleak);
        let process = &mut sink[process];
        process.out.process.executable = "the kernel".to_owned();
        process.out.process.command_line = vec!["the kernel".to_owned()];
        let leaf = process.stack(&open.frames);
        let site = process.site(leaf, Front::Absent(AllocFn::Malloc));
        process.leak(site, LeakKind::DefinitelyLost, (open.bytes, 1), (0, 0));
    }

    /// The end of the log.
    pub(crate) fn finish(&mut self, sink: &mut Sink) {
        self.close(sink);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_by_table() {
        for (text, expected) in [
            ("[<00000000c3a5d3c8>] kmem_cache_alloc+0x1a/0x20", Some(("kmem_cache_alloc", 0x1a, ""))),
            ("[<ffffffffa0001234>] f+0x10/0x40 [ext4]", Some(("f", 0x10, "ext4"))),
            ("do_one_initcall+0x58/0x300", Some(("do_one_initcall", 0x58, ""))),
            ("[<0>] g.constprop.0+0x1/0x2 [m 12ab]", Some(("g.constprop.0", 1, "m"))),
            ("[<00000000c3a5d3c8>] 0xffffffffc0000123", Some(("", 0xffff_ffff_c000_0123, ""))),
            ("[<00000000c3a5", None),
            ("00 01 02", None),
        ] {
            assert_eq!(frame(text), expected, "{text}");
        }
    }
}
