//! The dump of kmemleak (`/sys/kernel/debug/kmemleak`), plain or out of the kernel's log.
//!
//! Source: Linux `mm/kmemleak.c`, `print_unreferenced` and `hex_dump_object`, from 4.4 to 6.18:
//!
//! ```text
//! unreferenced object 0xffff8881087ee300 (size 192):           6.13 on: "object (percpu) 0x607f..."
//!   comm "modprobe", pid 2013, jiffies 4294907416 (age 25.484s)    the age until 6.10
//!   hex dump (first 32 bytes):                                 of percpu objects "on cpu 1", from 6.11 on
//!     6b 6b ...  kkkk
//!   backtrace (crc 9e4ec2ad):                                  the checksum from 6.8 on
//!     [<00000000f2c4d8ab>] make_object+0x2b/0x60 [leaky]       the bracketed address is plain until 4.14, hashed
//!     make_object+0x2b/0x60 [leaky 5d1c...]                    until 6.5, and gone since; a build id may follow
//! ```
//!
//! Tens of thousands of objects share few backtraces, and the kernel writes equal ones alike: a backtrace is looked up
//! by its text, and parsed when it is new.

use std::collections::HashMap;
use std::io::{self, BufRead};

use foldhash::fast::RandomState;

/// Frames of a backtrace that are kept; kmemleak keeps 16.
const MOST_FRAMES: usize = 64;
/// Bytes of a line that are kept.
const LONGEST: usize = 4096;
/// Bytes of a backtrace that are kept.
const LONGEST_BACKTRACE: usize = 64 << 10;
/// A task's name has 15 bytes.
const LONGEST_COMM: usize = 64;

/// A frame of a backtrace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Frame {
    /// The function; empty when the kernel has no names.
    pub function: String,
    /// Bytes from its begin to the return address; without a function the return address itself.
    pub offset: u64,
    /// Bytes of the function, 0 when unknown.
    pub size: u64,
    /// The module; empty for the kernel itself.
    pub module: String,
}

/// An object that kmemleak reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// Where it is; for a percpu object what is added to the base of each processor.
    pub address: u64,
    /// Its bytes (of a percpu object: on one processor).
    pub bytes: u64,
    /// Whether every processor has one.
    pub is_percpu: bool,
    /// The task that allocated it; 0 in interrupts, and when unknown.
    pub pid: u32,
    /// Number of that task's name in [`Dump::comms`].
    pub comm: u32,
    /// When it was allocated.
    pub jiffies: u64,
    /// How long ago that was, if the kernel says it.
    pub age_ms: Option<u64>,
    /// The checksum of its contents, if the kernel says it.
    pub crc: Option<u32>,
    /// Number of its backtrace in [`Dump::backtraces`].
    pub backtrace: u32,
}

/// What identifies an object from scan to scan.
pub type ObjectKey = (u64, u64, u64);

impl Object {
    /// Address, time of allocation and size: an address that was freed and allocated again is another object.
    pub fn key(&self) -> ObjectKey {
        (self.address, self.jiffies, self.bytes)
    }
}

/// A backtrace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backtrace {
    /// Innermost first.
    pub frames: Vec<Frame>,
}

/// The objects of one or more dumps.
#[derive(Clone, Debug, Default)]
pub struct Dump {
    /// In the order of the dump.
    pub objects: Vec<Object>,
    /// By number.
    pub backtraces: Vec<Backtrace>,
    /// Names of tasks by number.
    pub comms: Vec<String>,
    /// Objects whose dump is cut off before their backtrace.
    pub cut_objects: u64,
    /// Lines that make no sense where they stand, and the first of them with its number.
    pub unread: (u64, Option<(u64, String)>),
}

/// What became of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// It belongs to a dump.
    Taken,
    /// It belongs to a dump, and makes no sense there.
    Unread,
    /// It belongs to no dump.
    Foreign,
}

struct Open {
    object: Object,
    in_backtrace: bool,
    has_backtrace: bool,
}

/// Reads the lines of dumps.
#[derive(Default)]
pub struct Decoder {
    dump: Dump,
    open: Option<Open>,
    text: String,
    by_text: HashMap<Box<str>, u32, RandomState>,
    comm_numbers: HashMap<Box<str>, u32, RandomState>,
    line_number: u64,
}

/// A line without what a log puts in front: the journal's date and host, time, task, and kmemleak's name.
///
/// Sources: Linux `kernel/printk/printk.c` (`print_prefix`, with and without CONFIG_PRINTK_CALLER), dmesg(1), journalctl(1).
pub fn without_prefix(line: &str) -> &str {
    let mut rest = line;
    if !rest.starts_with(['[', ' ', '\t', '<'])
        && let Some((head, text)) = rest.split_once(" kernel: ")
        && head.len() < 64
    {
        rest = text;
    }
    // A level, as the console shows it with `ignore_loglevel` and old `dmesg -r` do.
    if let Some((level, text)) = rest.strip_prefix('<').and_then(|rest| rest.split_once('>'))
        && level.len() < 4
        && level.bytes().all(|byte| byte.is_ascii_digit())
    {
        rest = text;
    }
    let mut is_stamped = false;
    while let Some((stamp, text)) = rest.trim_start().strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        if !is_stamp(stamp) {
            break;
        }
        is_stamped = true;
        rest = text;
    }
    if is_stamped {
        rest = rest.strip_prefix(' ').or_else(|| rest.strip_prefix(": ")).unwrap_or(rest);
    }
    rest.strip_prefix("kmemleak: ").unwrap_or(rest)
}

/// `  312.501234`, `T123`, `    C1`, `Mon Nov 23 07:40:11 2026`: not the address in front of a frame.
fn is_stamp(text: &str) -> bool {
    let trimmed = text.trim();
    let (first, rest) = trimmed.split_at_checked(1).unwrap_or_default();
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_caller = matches!(first, "T" | "C") && is_digits(rest);
    let is_time = trimmed.split_once('.').is_some_and(|(whole, part)| is_digits(whole) && is_digits(part));
    is_caller || is_time || trimmed.len() == 24 && trimmed.matches(':').count() == 2
}

/// `0x` and hex digits at the begin of a text.
fn leading_hex(text: &str) -> Option<(u64, &str)> {
    let digits = text.strip_prefix("0x")?;
    let end = digits.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digits.len());
    Some((u64::from_str_radix(&digits[..end], 16).ok()?, &digits[end..]))
}

fn leading_decimal(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

/// `unreferenced object (percpu) 0x607f3e0a1b40 (size 8):` behind its first two words.
fn decode_head(rest: &str) -> Option<Object> {
    let mut rest = rest.trim_start();
    let mut is_percpu = false;
    if let Some((kind, behind)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
        is_percpu = kind == "percpu";
        rest = behind.trim_start();
    }
    let (address, rest) = leading_hex(rest)?;
    let (bytes, _) = leading_decimal(rest.split_once("(size ")?.1)?;
    Some(Object { address, bytes, is_percpu, pid: 0, comm: 0, jiffies: 0, age_ms: None, crc: None, backtrace: 0 })
}

/// `comm "modprobe", pid 2013, jiffies 4294907416 (age 25.484s)`: a name may hold quotes and commas itself.
fn decode_comm(text: &str) -> Option<(&str, u32, u64, Option<u64>)> {
    let (comm, rest) = text.strip_prefix("comm \"")?.rsplit_once("\", pid ")?;
    let (pid, rest) = leading_decimal(rest.trim_start_matches('-'))?;
    let (jiffies, rest) = leading_decimal(rest.strip_prefix(", jiffies ")?)?;
    let age_ms = rest.trim_start().strip_prefix("(age ").and_then(|rest| {
        let (seconds, rest) = leading_decimal(rest)?;
        let (milliseconds, _) = leading_decimal(rest.strip_prefix('.')?)?;
        seconds.checked_mul(1000)?.checked_add(milliseconds.min(999))
    });
    Some((comm, u32::try_from(pid).ok()?, jiffies, age_ms))
}

/// `[<00000000c3a5d3c8>] kmem_cache_alloc+0x1a/0x20 [ext4 5d1c]`, as `%pS` prints it; `None` for what is none.
pub fn decode_frame(text: &str) -> Option<Frame> {
    let text = text.trim();
    let text = match text.strip_prefix("[<").and_then(|rest| rest.split_once(">]")) {
        Some((_, rest)) => rest.trim_start(),
        None => text,
    };
    // An address that the unwinder is not sure of.
    let text = text.strip_prefix("? ").unwrap_or(text);
    let (symbol, rest) = text.split_once(' ').unwrap_or((text, ""));
    let module = rest.trim().strip_prefix('[').and_then(|rest| rest.split([']', ' ']).next()).unwrap_or_default();
    let number = |text: &str| u64::from_str_radix(text, 16).ok().filter(|_| !text.starts_with('+'));
    let (function, offset, size) = match symbol.split_once("+0x") {
        Some((function, offset)) => {
            let (offset, size) = offset.split_once("/0x").unwrap_or((offset.trim_end_matches('/'), "0"));
            (function, number(offset)?, number(size).unwrap_or(0))
        }
        // Without kallsyms only an address is there.
        None => ("", number(symbol.strip_prefix("0x")?)?, 0),
    };
    let is_name = |c: char| c.is_ascii_alphanumeric() || "_.$:".contains(c);
    let is_function = symbol.starts_with("0x") || !function.is_empty();
    (is_function && function.chars().all(is_name) && module.chars().all(|c| is_name(c) || c == '-')).then(|| Frame {
        function: function.to_owned(),
        offset,
        size,
        module: module.to_owned(),
    })
}

impl Decoder {
    /// Whether an object is open, so that indented lines belong to it.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Reads a line if it belongs to a dump; `number` is its number in the file.
    pub fn line(&mut self, number: u64, line: &str) -> Line {
        let text = without_prefix(line);
        if let Some(rest) = text.strip_prefix("unreferenced object") {
            self.close();
            return match decode_head(rest) {
                Some(object) => {
                    self.open = Some(Open { object, in_backtrace: false, has_backtrace: false });
                    Line::Taken
                }
                None => self.unread(number, line),
            };
        }
        if self.open.is_none() {
            return Line::Foreign;
        }
        if text.len() - text.trim_start().len() < 2 {
            self.close();
            return Line::Foreign;
        }
        let trimmed = text.trim();
        let Some(open) = &mut self.open else { return Line::Foreign };
        if let Some(rest) = trimmed.strip_prefix("backtrace") {
            (open.in_backtrace, open.has_backtrace) = (true, true);
            let crc = rest.trim_start().strip_prefix("(crc ").and_then(|rest| rest.split_once(')'));
            open.object.crc = crc.and_then(|(crc, _)| u32::from_str_radix(crc, 16).ok());
            return Line::Taken;
        }
        if open.in_backtrace {
            // What is cut off or damaged is told from a frame when it comes, so that its line is known.
            if self.text.len() + trimmed.len() >= LONGEST_BACKTRACE || !may_be_frame(trimmed) {
                return self.unread(number, line);
            }
            self.text.push_str(trimmed);
            self.text.push('\n');
            return Line::Taken;
        }
        if let Some((comm, pid, jiffies, age_ms)) = decode_comm(trimmed) {
            (open.object.pid, open.object.jiffies, open.object.age_ms) = (pid, jiffies, age_ms);
            let comm: &str = comm.get(..LONGEST_COMM).unwrap_or(comm);
            let number = match self.comm_numbers.get(comm) {
                Some(&number) => number,
                None => {
                    let number = self.dump.comms.len() as u32;
                    self.dump.comms.push(comm.to_owned());
                    self.comm_numbers.insert(comm.into(), number);
                    number
                }
            };
            open.object.comm = number;
        } else if trimmed.starts_with("hex dump") {
            // Until 6.12 only this tells that an object is one of each processor.
            open.object.is_percpu |= trimmed.contains(" on cpu ");
        }
        // The hex dump itself shows nothing that we need, also when a line of it is cut off.
        Line::Taken
    }

    fn unread(&mut self, number: u64, line: &str) -> Line {
        const SHOWN: usize = 120;
        self.dump.unread.0 += 1;
        self.dump.unread.1.get_or_insert_with(|| (number, line.chars().take(SHOWN).collect()));
        Line::Unread
    }

    fn close(&mut self) {
        let Some(mut open) = self.open.take() else { return };
        if self.dump.comms.is_empty() {
            self.dump.comms.push(String::new());
            self.comm_numbers.insert("".into(), 0);
        }
        self.dump.cut_objects += u64::from(!open.has_backtrace);
        open.object.backtrace = match self.by_text.get(self.text.as_str()) {
            Some(&number) => number,
            None => {
                let number = self.dump.backtraces.len() as u32;
                let frames = self.text.lines().filter_map(decode_frame).take(MOST_FRAMES).collect();
                self.dump.backtraces.push(Backtrace { frames });
                self.by_text.insert(self.text.as_str().into(), number);
                number
            }
        };
        self.text.clear();
        self.dump.objects.push(open.object);
    }

    /// Reads all lines of a dump.
    ///
    /// # Errors
    /// Those of `input`.
    pub fn read(&mut self, input: &mut dyn BufRead) -> io::Result<()> {
        let mut line = Vec::new();
        loop {
            line.clear();
            if io::Read::take(&mut *input, LONGEST as u64).read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            self.line_number += 1;
            let end = line.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |at| at + 1);
            self.line(self.line_number, &String::from_utf8_lossy(&line[..end]));
        }
    }

    /// The end of the input: what was read. Of objects that are there several times the last one counts.
    pub fn finish(mut self) -> Dump {
        self.close();
        let mut last: HashMap<ObjectKey, usize, RandomState> = HashMap::default();
        for (number, object) in self.dump.objects.iter().enumerate() {
            last.insert(object.key(), number);
        }
        if last.len() < self.dump.objects.len() {
            let mut number = 0;
            self.dump.objects.retain(|object| {
                number += 1;
                last[&object.key()] == number - 1
            });
        }
        self.dump
    }
}

/// Whether [`decode_frame`] can read it, without doing so: the text of most backtraces is known.
fn may_be_frame(text: &str) -> bool {
    let has_digit = |at: usize| text.as_bytes().get(at + 3).is_some_and(u8::is_ascii_hexdigit);
    text.find("+0x").is_some_and(has_digit)
        || text.starts_with("0x")
        || text.contains(">] 0x")
        || text.contains(">] ? 0x")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dump(text: &str) -> Dump {
        let mut decoder = Decoder::default();
        decoder.read(&mut text.as_bytes()).unwrap();
        decoder.finish()
    }

    #[test]
    fn frames_by_table() {
        let frame = |function: &str, offset, size, module: &str| {
            Some(Frame { function: function.into(), offset, size, module: module.into() })
        };
        for (text, expected) in [
            ("[<00000000c3a5d3c8>] kmem_cache_alloc+0x1a/0x20", frame("kmem_cache_alloc", 0x1a, 0x20, "")),
            ("[<ffffffffa0001234>] f+0x10/0x40 [ext4]", frame("f", 0x10, 0x40, "ext4")),
            ("[<(____ptrval____)>] f+0x10/0x40", frame("f", 0x10, 0x40, "")),
            ("do_one_initcall+0x58/0x300", frame("do_one_initcall", 0x58, 0x300, "")),
            ("? f+0x1/0x2", frame("f", 1, 2, "")),
            ("[<0>] g.constprop.0+0x1/0x2 [m 12ab]", frame("g.constprop.0", 1, 2, "m")),
            ("[<00000000c3a5d3c8>] 0xffffffffc0000123", frame("", 0xffff_ffff_c000_0123, 0, "")),
            ("f+0x1a", frame("f", 0x1a, 0, "")),
            ("[<00000000c3a5", None),
            ("+0x1/0x2", None),
            ("f+0x+1/0x2", None),
            ("00 01 02", None),
            ("", None),
        ] {
            assert_eq!(decode_frame(text), expected, "{text}");
        }
    }

    #[test]
    fn heads_by_table() {
        let head = |text: &str| decode_head(text).map(|object| (object.address, object.bytes, object.is_percpu));
        assert_eq!(head(" 0xffff8881087ee300 (size 192):"), Some((0xffff_8881_087e_e300, 192, false)));
        assert_eq!(head(" (percpu) 0x607f3e0a1b40 (size 8):"), Some((0x607f_3e0a_1b40, 8, true)));
        assert_eq!(head(" 0xc1234560 (size 64):"), Some((0xc123_4560, 64, false)));
        assert_eq!(head(" 0xffff (size x):"), None);
        assert_eq!(head(" (size 192):"), None);
    }

    #[test]
    fn tasks_by_table() {
        assert_eq!(
            decode_comm("comm \"a\", pid 1\", pid 2013, jiffies 4294907416 (age 25.484s)"),
            Some(("a\", pid 1", 2013, 4_294_907_416, Some(25_484)))
        );
        assert_eq!(decode_comm("comm \"softirq\", pid 0, jiffies 1"), Some(("softirq", 0, 1, None)));
        assert_eq!(decode_comm("comm \"x\", pid 1"), None);
        assert_eq!(decode_comm("comm \"x\", pid 99999999999, jiffies 1"), None);
    }

    #[test]
    fn prefixes_by_table() {
        for line in [
            "kmemleak: unreferenced object",
            "[  312.501234] kmemleak: unreferenced object",
            "[  312.501234][   T12] kmemleak: unreferenced object",
            "[  312.501234] [    C1] unreferenced object",
            "<6>[  312.501234] kmemleak: unreferenced object",
            "[Mon Nov 23 07:40:11 2026] kmemleak: unreferenced object",
            "Nov 23 07:40:11 host kernel: kmemleak: unreferenced object",
            "unreferenced object",
        ] {
            assert_eq!(without_prefix(line), "unreferenced object", "{line}");
        }
        assert_eq!(without_prefix("    [<0000>] f+0x1/0x2"), "    [<0000>] f+0x1/0x2");
        assert_eq!(without_prefix("[ 1.5]     f+0x1/0x2"), "    f+0x1/0x2");
    }

    const TWO: &str = "unreferenced object 0xffff888101 (size 16):\n  comm \"insmod\", pid 7, jiffies 100 (age 5.250s)\n  \
                       hex dump (first 16 bytes):\n    00 01\n  backtrace (crc ab):\n    f+0x1/0x2 [m]\n    g+0x3/0x4\n\
                       unreferenced object 0x607f00 (size 8):\n  comm \"insmod\", pid 7, jiffies 101\n  hex dump (first 8 \
                       bytes on cpu 1):\n    00\n  backtrace:\n    f+0x1/0x2 [m]\n    g+0x3/0x4\n";

    #[test]
    fn equal_backtraces_are_one() {
        let dump = dump(TWO);
        assert_eq!((dump.objects.len(), dump.backtraces.len(), dump.cut_objects), (2, 1, 0));
        let [first, second] = &dump.objects[..] else { panic!() };
        assert_eq!((first.pid, first.age_ms, first.crc, first.is_percpu), (7, Some(5250), Some(0xab), false));
        assert_eq!((second.jiffies, second.age_ms, second.crc, second.is_percpu), (101, None, None, true));
        assert_eq!(dump.comms[first.comm as usize], "insmod");
        assert_eq!(dump.backtraces[0].frames.len(), 2);
    }

    #[test]
    fn an_object_that_is_there_twice_counts_once() {
        let dump = dump(&format!("{TWO}noise\n{TWO}"));
        assert_eq!((dump.objects.len(), dump.backtraces.len(), dump.unread.0), (2, 1, 0));
    }

    #[test]
    fn what_is_cut_off_is_counted() {
        let dump = dump("unreferenced object 0xff (size 16):\n  comm \"x\", pid 1, jiffies 5\nunreferenced obj");
        assert_eq!((dump.objects.len(), dump.cut_objects), (1, 1));
        let cut = super::tests::dump(&TWO[..TWO.len() - 6]);
        assert_eq!((cut.objects.len(), cut.unread.0), (2, 1));
    }
}
