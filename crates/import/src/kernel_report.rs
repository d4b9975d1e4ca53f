//! What the kernel's own checkers write into its log: KASAN, KFENCE, and SLUB's checks (`slub_debug`).
//!
//! Sources: Linux `mm/kasan/report.c`, `mm/kasan/report_generic.c`, `mm/kfence/report.c`, `mm/slub.c`, 4.4 to 6.18. All
//! three begin with a line `BUG`, show the stack of what went wrong, and those of the block's allocation and release;
//! KASAN and KFENCE end with a line of `=`, SLUB with a line `FIX` or the end of a warning. In front of a stack stand
//! functions of the checker and of the allocator, which are taken off.

use leakscope_findings::recording::{Access, AuxiliaryStack};
use leakscope_kernel::alloc::{allocator, is_entry, split_frames};
use leakscope_kernel::dump::{Frame, decode_frame, without_prefix};
use leakscope_model::{AllocFn, ErrorKind, MisuseKind, Tool};

use crate::kmemleak::{KERNEL, plain_stack};
use crate::lines::{hex, leading_decimal};
use crate::sink::{Base, ErrorHandle, ErrorText, Front, MOST_AUXILIARY, Process, Sink};

/// Frames of one stack that are kept.
const MOST_FRAMES: usize = 128;
/// Bytes of the words that are kept of a report.
const LONGEST_WORDS: usize = 512;

/// Reads the lines of reports.
#[derive(Default)]
pub(crate) struct KernelReport {
    open: Option<Box<Open>>,
    /// What SLUB says before its report since 6.12: `[Poison overwritten] ...`.
    before: String,
}

/// Which stack the next frames belong to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Part {
    /// None that is kept.
    #[default]
    None,
    Error,
    Allocation,
    Release,
    /// A stack that only explains.
    Other(usize),
}

#[derive(Default)]
struct Open {
    tool: Option<Tool>,
    /// What is wrong, in the checker's words.
    what: String,
    /// Where, as the first line says it.
    place: Option<Frame>,
    words: Vec<String>,
    access: Access,
    access_bytes: u64,
    address: u64,
    block: (u64, u64),
    part: Part,
    error: Vec<Frame>,
    /// The error's stack is complete: what follows is the same with the checker's own frames.
    has_error: bool,
    allocation: Vec<Frame>,
    release: Vec<Frame>,
    others: Vec<(String, Vec<Frame>)>,
}

/// `BUG: KASAN: slab-use-after-free in f+0x1/0x2 [m]`, `BUG kmalloc-64 (Not tainted): Poison overwritten`.
fn head(text: &str) -> Option<Open> {
    for (front, tool) in [("BUG: KASAN: ", Tool::Kasan), ("BUG: KFENCE: ", Tool::Kfence)] {
        if let Some(rest) = text.strip_prefix(front) {
            let (what, place) = rest.rsplit_once(" in ").unwrap_or((rest, ""));
            let (what, place) = (what.to_owned(), decode_frame(place));
            return Some(Open { tool: Some(tool), what, place, ..Open::default() });
        }
    }
    let (cache, rest) = text.strip_prefix("BUG ")?.split_once(" (")?;
    let (_, what) = rest.rsplit_once("): ").filter(|(taint, _)| taint.to_ascii_lowercase().contains("tainted"))?;
    let is_name = !cache.is_empty() && !cache.contains([' ', ':']);
    let words = vec![format!("cache {cache}")];
    let block = (0, cache_bytes(cache));
    is_name.then(|| Open { tool: Some(Tool::SlubDebug), what: what.trim().to_owned(), words, block, ..Open::default() })
}

/// Bytes of the objects of `kmalloc-64`, `kmalloc-cg-1k`; 0 of other caches.
fn cache_bytes(cache: &str) -> u64 {
    let size = cache.strip_prefix("kmalloc-").and_then(|rest| rest.rsplit('-').next()).unwrap_or_default();
    match size.strip_suffix('k') {
        Some(kilobytes) => kilobytes.parse::<u64>().map_or(0, |kilobytes| kilobytes.saturating_mul(1024)),
        None => size.parse().unwrap_or(0),
    }
}

/// Whether a text has the head of a report in it.
pub(crate) fn is_report(text: &str) -> bool {
    text.lines().any(|line| head(without_prefix(line)).is_some())
}

/// Functions of the checkers, and those that release.
fn is_checker(function: &str) -> bool {
    const FRONTS: &[&str] = &[
        "dump_stack",
        "__dump_stack",
        "show_stack",
        "print_",
        "kasan_",
        "__kasan_",
        "__asan_",
        "__hwasan_",
        "asan.",
        "check_memory_region",
        "check_region_inline",
        "kfence_",
        "__kfence_",
        "end_report",
        "report_",
        "object_err",
        "slab_err",
        "__slab_err",
        "slab_pad_check",
        "check_bytes_and_report",
        "check_object",
        "check_slab",
        "on_freelist",
        "free_to_partial_list",
        "free_debug_processing",
        "free_consistency_checks",
        "alloc_debug_processing",
        "alloc_consistency_checks",
        "slab_free",
        "__slab_free",
        "do_slab_free",
        "poison_slab_object",
        "kfree",
        "__kfree",
        "kmem_cache_free",
        "__kmem_cache_free",
        "kvfree",
        "vfree",
        "kzfree",
        "save_stack",
        "__warn",
    ];
    FRONTS.iter().any(|front| function.starts_with(front))
}

impl Open {
    fn stack(&mut self) -> Option<&mut Vec<Frame>> {
        match self.part {
            Part::None => None,
            Part::Error => Some(&mut self.error),
            Part::Allocation => Some(&mut self.allocation),
            Part::Release => Some(&mut self.release),
            Part::Other(number) => self.others.get_mut(number).map(|(_, frames)| frames),
        }
    }

    fn note(&mut self, words: &str) {
        let length: usize = self.words.iter().map(String::len).sum();
        if length + words.len() >= LONGEST_WORDS || words.is_empty() {
            return;
        }
        match self.words.last_mut().filter(|last| last.ends_with(" of")) {
            // KASAN breaks its sentence there.
            Some(last) => *last += &format!(" a {words}"),
            None => self.words.push(words.to_owned()),
        }
    }

    /// Reads a line that is no frame; `None` for what says nothing that is kept.
    fn line(&mut self, text: &str) -> Option<()> {
        let lower = text.strip_prefix("INFO: ").unwrap_or(text);
        if lower.starts_with("Call Trace:") || lower.starts_with("Call trace:") || lower.starts_with("Stack:") {
            self.part = if self.has_error { Part::None } else { Part::Error };
        } else if let Some((_, rest)) =
            lower.split_once("llocated by task ").or_else(|| lower.split_once("llocated in "))
        {
            self.begin(Part::Allocation, lower.contains(" age=").then_some(rest));
        } else if let Some((_, rest)) = lower.split_once("reed by task ").or_else(|| lower.split_once("reed in ")) {
            self.begin(Part::Release, lower.contains(" age=").then_some(rest));
        } else if lower.ends_with("work creation:") || lower.ends_with("aux stack:") {
            self.has_error |= !self.error.is_empty();
            if self.others.len() < MOST_AUXILIARY {
                self.others.push((lower.trim_end_matches(':').to_owned(), Vec::new()));
                self.part = Part::Other(self.others.len() - 1);
            }
        } else if let Some(access) = ["Read", "Write", "read", "write"].iter().find(|word| lower.starts_with(**word)) {
            self.accessed(if access.eq_ignore_ascii_case("read") { Access::Read } else { Access::Write }, lower)?;
        } else if let Some(rest) = lower.strip_prefix("Free of addr ") {
            self.address = hex(rest.split(' ').next()?)?;
        } else if self.tool == Some(Tool::Kfence) {
            self.kfence_line(lower)?;
        } else if let Some(rest) = lower.strip_prefix("The buggy address belongs to the object at ") {
            self.block.0 = hex(rest.split(' ').next()?)?;
        } else if lower.starts_with("The buggy address is located") || lower.contains("-byte region [") {
            self.region(lower);
        } else if let Some(rest) = lower.strip_prefix("which belongs to the cache ") {
            self.note(&format!("cache {}", rest.split(' ').next().unwrap_or_default()));
        } else if lower.starts_with("Slab 0x") || lower.starts_with("Memory state around") {
            self.part = Part::None;
        } else if let Some(rest) = lower.strip_prefix("Object 0x")
            && self.tool == Some(Tool::SlubDebug)
        {
            self.part = Part::None;
            self.block.0 = hex(rest.split(' ').next()?)?;
        } else if self.tool == Some(Tool::SlubDebug) && lower.contains(". First byte 0x") {
            self.note(lower);
        } else if lower.is_empty() || lower.starts_with("CPU: ") || lower.starts_with("RIP: ") {
            // A blank line ends a stack; registers follow the others.
            self.has_error |= self.part == Part::Error && !self.error.is_empty();
            self.part = Part::None;
        }
        Some(())
    }

    fn begin(&mut self, part: Part, place: Option<&str>) {
        self.has_error |= !self.error.is_empty();
        self.part = part;
        // Without a stack depot only the caller is there; with one it comes again as the first frame.
        let place = place.and_then(|place| place.split(" age=").next()).and_then(decode_frame);
        if let (Some(stack), Some(place)) = (self.stack(), place) {
            stack.clear();
            stack.push(place);
        }
    }

    /// `Read of size 8 at addr ffff88 by task echo/57`, and without an address until 4.5.
    fn accessed(&mut self, access: Access, text: &str) -> Option<()> {
        let (_, rest) = text.split_once(" of size ")?;
        let (bytes, rest) = leading_decimal(rest)?;
        (self.access, self.access_bytes) = (access, bytes);
        self.note(&format!("{} of size {bytes}", if access == Access::Read { "read" } else { "write" }));
        if let Some((_, rest)) = rest.split_once("at addr ") {
            self.address = hex(rest.split(' ').next()?)?;
        }
        if let Some((_, task)) = rest.split_once("by task ") {
            self.note(&format!("by {task}"));
        }
        Some(())
    }

    /// `The buggy address is located 0 bytes to the right of` and `allocated 64-byte region [ffff88, ffff89)`.
    fn region(&mut self, text: &str) {
        if let Some((_, rest)) = text.split_once("is located ") {
            self.note(rest);
        }
        if let Some((front, rest)) = text.split_once("-byte region [") {
            self.note(&format!("{front}-byte region"));
            let bytes = front.rsplit(' ').next().and_then(|digits| digits.parse().ok());
            self.block.1 = bytes.unwrap_or(self.block.1);
            self.block.0 = rest.split(',').next().and_then(hex).unwrap_or(self.block.0);
        }
    }

    /// `Use-after-free read at 0xff (in kfence-#97):`, `kfence-#97: 0xff-0xff, size=64, cache=kmalloc-64`.
    fn kfence_line(&mut self, text: &str) -> Option<()> {
        const BEGINNINGS: [&str; 5] =
            ["Out-of-bounds ", "Use-after-free ", "Corrupted memory ", "Invalid ", "Invalid free "];
        if BEGINNINGS.iter().any(|front| text.starts_with(front)) && self.error.is_empty() {
            let (_, address) = text.split_once("0x")?;
            self.address = hex(address.split([' ', ':']).next()?)?;
            self.access = match () {
                () if text.contains(" read at ") => Access::Read,
                () if text.contains(" write at ") => Access::Write,
                () => Access::None,
            };
            if let Some((_, place)) = text.split_once(" (").filter(|(_, place)| place.contains(" of kfence")) {
                self.note(place.split(" of kfence").next().unwrap_or_default());
            }
            self.part = Part::Error;
        } else if text.starts_with("kfence-#") {
            self.has_error |= !self.error.is_empty();
            self.part = Part::None;
            let (_, range) = text.split_once("0x")?;
            self.block.0 = hex(range.split('-').next()?)?;
            let (_, size) = text.split_once("size=")?;
            self.block.1 = leading_decimal(size)?.0;
            if let Some((_, cache)) = text.split_once("cache=") {
                self.note(&format!("cache {}", cache.split([' ', ']']).next().unwrap_or_default()));
            }
        } else if text.is_empty() || text.starts_with("CPU: ") {
            self.has_error |= !self.error.is_empty();
            self.part = Part::None;
        }
        Some(())
    }

    /// What is wrong, for us; a wrong call to the allocator or a wrong access.
    fn kind(&self) -> Result<MisuseKind, ErrorKind> {
        let what = self.what.to_ascii_lowercase();
        let says = |words: &str| what.contains(words) || self.words.iter().any(|text| text.contains(words));
        let is_freed = !self.release.is_empty();
        match () {
            // The block was the last of its slab: SLUB counts before it looks.
            () if says("double-free") || says("already free") || says("allocated objects but") => {
                Ok(MisuseKind::DoubleFree)
            }
            () if what.starts_with("invalid-free") || what.starts_with("invalid free") => {
                Ok(if is_freed { MisuseKind::DoubleFree } else { MisuseKind::InvalidFree })
            }
            () if says("invalid object pointer") || says("attempt to free object") || says("invalid freelist") => {
                Ok(MisuseKind::InvalidFree)
            }
            () if says("Left Redzone overwritten") || says("left redzone overwritten") => Err(ErrorKind::InvalidWrite),
            () if says("Redzone overwritten") || says("redzone overwritten") => Ok(MisuseKind::Overrun),
            () if what.starts_with("memory corruption") => Ok(MisuseKind::Overrun),
            () if says("Poison overwritten") || says("poison overwritten") => Err(ErrorKind::InvalidWrite),
            () => Err(match self.access {
                Access::Read => ErrorKind::InvalidRead,
                Access::Write => ErrorKind::InvalidWrite,
                Access::None => ErrorKind::Other,
            }),
        }
    }

    /// The error's own frames: from the function on that the first line names, or without the checker's.
    fn error_frames(&self) -> &[Frame] {
        let named = self.place.as_ref().and_then(|place| {
            self.error.iter().position(|frame| (&frame.function, &frame.module) == (&place.function, &place.module))
        });
        let first =
            named.unwrap_or_else(|| fronts(&self.error, |function| is_checker(function) || is_allocator(function)));
        if self.error.is_empty() { self.place.as_slice() } else { until_entry(&self.error[first..]) }
    }
}

fn is_allocator(function: &str) -> bool {
    allocator(function).is_some()
}

/// Frames in front that are of a kind; of a stack of nothing else all but the last.
fn fronts(frames: &[Frame], is_of: impl Fn(&str) -> bool) -> usize {
    let count = frames.iter().take_while(|frame| frame.module.is_empty() && is_of(&frame.function)).count();
    if count == frames.len() { count.saturating_sub(1) } else { count }
}

fn until_entry(frames: &[Frame]) -> &[Frame] {
    let end = frames.iter().position(|frame| is_entry(&frame.function)).unwrap_or(frames.len());
    &frames[..end]
}

impl KernelReport {
    /// Reads a line if it belongs to a report.
    pub(crate) fn line(&mut self, sink: &mut Sink, line: &str) -> bool {
        let text = without_prefix(line);
        if let Some(mut open) = head(text) {
            self.close(sink);
            if open.tool == Some(Tool::SlubDebug) {
                open.note(&std::mem::take(&mut self.before));
            }
            self.open = Some(Box::new(open));
            return true;
        }
        let Some(open) = &mut self.open else {
            if text.starts_with('[') && text.contains(". First byte 0x") && text.len() < LONGEST_WORDS {
                self.before = text.to_owned();
                return true;
            }
            return false;
        };
        let trimmed = text.trim();
        let is_end = match open.tool {
            Some(Tool::SlubDebug) => trimmed.starts_with("FIX ") || trimmed.starts_with("---[ end trace"),
            _ => trimmed.len() > 32 && trimmed.bytes().all(|byte| byte == b'='),
        };
        if is_end {
            self.close(sink);
            return true;
        }
        // A frame that the unwinder is not sure of is left over from another call.
        if !trimmed.starts_with('?')
            && let Some(frame) = decode_frame(trimmed).filter(|_| text.starts_with([' ', '[']))
        {
            if let Some(stack) = open.stack().filter(|stack| stack.len() < MOST_FRAMES && stack.last() != Some(&frame))
            {
                stack.push(frame);
            }
            return true;
        }
        // What cannot be read leaves out one detail, not the report.
        let _ = open.line(trimmed);
        true
    }

    /// The end of the log.
    pub(crate) fn finish(&mut self, sink: &mut Sink) {
        self.close(sink);
    }

    fn close(&mut self, sink: &mut Sink) {
        let Some(open) = self.open.take() else { return };
        let Some(tool) = open.tool else { return };
        let number = sink.process(0, tool);
        let process = &mut sink[number];
        process.out.process.executable = "the kernel".to_owned();
        process.out.process.command_line = vec!["the kernel".to_owned()];
        let kernel = process.module(KERNEL, Base::LinkTime, 0, None);
        process.out.hook_module = kernel.checked_sub(1);
        keep(process, &open);
    }
}

fn keep(process: &mut Process, open: &Open) {
    let leaf = plain_stack(process, open.error_frames());
    let (front, function) = split_frames(&open.allocation);
    let allocation = plain_stack(process, until_entry(&open.allocation[front..]));
    let released = fronts(&open.release, |function| is_checker(function) || is_allocator(function));
    let release = plain_stack(process, until_entry(&open.release[released..]));
    let mut words = vec![open.what.clone()];
    words.extend(open.words.iter().cloned());
    let text = ErrorText {
        access: open.access,
        access_bytes: open.access_bytes,
        address: open.address,
        message: words.join(", "),
        leaf,
        count: 1,
        block_start: open.block.0,
        block_bytes: open.block.1,
        ..ErrorText::default()
    };
    match open.kind() {
        Ok(kind) => {
            let ErrorHandle::Misuse(at) = process.misuse(kind, Front::Absent(AllocFn::Kfree), &text) else { return };
            let mut site =
                |leaf: u32, function| if leaf == 0 { 0 } else { process.site(leaf, Front::Absent(function)) };
            let (made, released) = (site(allocation, function), site(release, AllocFn::Kfree));
            if let Some(misuse) = process.out.misuses.get_mut(at) {
                (misuse.allocation_site, misuse.free_site) = (made, released);
            }
        }
        Err(kind) => {
            let mut auxiliary = Vec::new();
            let mut note = |label: &str, leaf: u32| {
                if leaf != 0 {
                    auxiliary.push(AuxiliaryStack { label: label.to_owned(), leaf });
                }
            };
            note("Block was freed at", release);
            note("Block was alloc'd at", allocation);
            for (label, frames) in &open.others {
                let leaf = plain_stack(process, until_entry(frames));
                note(label, leaf);
            }
            process.error(kind, ErrorText { auxiliary, ..text });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_by_table() {
        let of = |text: &str| head(text).map(|open| (open.tool, open.what, open.block.1));
        assert_eq!(
            of("BUG: KASAN: slab-out-of-bounds in f+0x1/0x2 [m]"),
            Some((Some(Tool::Kasan), "slab-out-of-bounds".to_owned(), 0))
        );
        assert_eq!(
            of("BUG: KFENCE: use-after-free read in f+0x1/0x2"),
            Some((Some(Tool::Kfence), "use-after-free read".to_owned(), 0))
        );
        let poison = Some((Some(Tool::SlubDebug), "Poison overwritten".to_owned(), 1024));
        assert_eq!(of("BUG kmalloc-cg-1k (Not tainted): Poison overwritten"), poison);
        assert_eq!(of("BUG dentry (Tainted: G B): Object already free").map(|found| found.2), Some(0));
        for text in ["BUG: unable to handle page fault", "BUG x", "DEBUG a (tainted): b", "BUG: Bad page state in x"] {
            assert_eq!(of(text), None, "{text}");
        }
    }

    #[test]
    fn kinds_by_table() {
        let kind = |what: &str, access, freed: bool| {
            let release = if freed { vec![Frame::default()] } else { Vec::new() };
            Open { what: what.to_owned(), access, release, ..Open::default() }.kind()
        };
        for (what, access, freed, expected) in [
            ("double-free", Access::None, true, Ok(MisuseKind::DoubleFree)),
            ("invalid-free", Access::None, false, Ok(MisuseKind::InvalidFree)),
            ("invalid free", Access::None, true, Ok(MisuseKind::DoubleFree)),
            ("memory corruption", Access::None, true, Ok(MisuseKind::Overrun)),
            ("Right Redzone overwritten", Access::None, false, Ok(MisuseKind::Overrun)),
            ("Left Redzone overwritten", Access::None, false, Err(ErrorKind::InvalidWrite)),
            ("Poison overwritten", Access::None, true, Err(ErrorKind::InvalidWrite)),
            ("Object already free", Access::None, true, Ok(MisuseKind::DoubleFree)),
            ("Slab has 0 allocated objects but 1 are to be freed", Access::None, false, Ok(MisuseKind::DoubleFree)),
            ("slab-use-after-free", Access::Read, true, Err(ErrorKind::InvalidRead)),
            ("stack-out-of-bounds", Access::Write, false, Err(ErrorKind::InvalidWrite)),
            ("Padding overwritten", Access::None, false, Err(ErrorKind::Other)),
        ] {
            assert_eq!(kind(what, access, freed), expected, "{what}");
        }
    }
}
