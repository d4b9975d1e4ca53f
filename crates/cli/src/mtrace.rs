//! `leakscope mtrace`: what the script says that comes with glibc, faster, and with names for PIE and libraries.
//!
//! Lines and their order are the script's (glibc 2.36, `malloc/mtrace.pl`), so that what reads its output reads this.

use std::collections::HashMap;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use leakscope_import::mtrace::{CallerId, Callers, Oddity, caller};
use leakscope_import::{Resolver, mtrace};

use crate::file_names::FileNames;
use crate::flags::MtraceArgs;
use crate::import::open_with;

const HELP: &str = "help: `leakscope run --mtrace-log=LOG ./program` writes one; glibc does when the program calls mtrace(), \
                    and since 2.34 only if it is started so: LD_PRELOAD=libc_malloc_debug.so.0 MALLOC_TRACE=LOG ./program";

/// An address that follows a call is looked up one byte before it.
const BEFORE: u64 = 1;

/// Runs the subcommand.
///
/// # Errors
/// When the log cannot be read, or holds nothing of mtrace's.
pub fn main(args: &MtraceArgs) -> Result<ExitCode> {
    let (log, binary) = in_order(&args.log, args.binary.as_deref());
    let name = log.display();
    let input = open_with(log, io::IsTerminal::is_terminal(&io::stderr())).context(HELP)?;
    let mut input = leakscope_import::decompressed(input).with_context(|| format!("{name}: cannot read it"))?;
    let names =
        (!args.no_names).then(|| FileNames::new(leakscope_symbols::Options::default(), binary.map(Path::to_owned)));
    let mut places = Places { names, known: HashMap::new() };
    let mut out = BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let mut written = Ok(());
    let trace = mtrace::read(&mut *input, &mut |callers, oddity| {
        if written.is_ok() {
            written = write_oddity(&mut out, callers, oddity, &mut places);
        }
    });
    let trace = trace.with_context(|| format!("{name}: cannot read on"))?;
    if let Some((line, text)) = &trace.unread.first {
        eprintln!("leakscope: {name}: {} lines could not be read; the first is {line}: {text}", trace.unread.lines);
    }
    if trace.counts.allocations == 0 && trace.counts.releases == 0 && trace.unread.lines == trace.counts.lines {
        bail!("{name}: no log of mtrace's: {} lines, none of them an event. {HELP}", trace.counts.lines);
    }
    let leaks = !trace.live.is_empty();
    let written = written.and_then(|()| write_leaks(&mut out, trace, &mut places)).and_then(|()| out.flush());
    match written {
        // A reader that has seen enough is no error.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("standard output: cannot write the report")
        }
        _ => Ok(ExitCode::from(u8::from(leaks))),
    }
}

/// Log and program: the script takes them the other way round, so an ELF file in the log's place is the program.
fn in_order<'a>(log: &'a Path, binary: Option<&'a Path>) -> (&'a Path, Option<&'a Path>) {
    let is_elf = |path: &Path| {
        let mut head = [0; 4];
        path.is_file()
            && std::fs::File::open(path).is_ok_and(|mut file| file.read_exact(&mut head).is_ok())
            && head == *b"\x7fELF"
    };
    match binary {
        Some(binary) if is_elf(log) && !is_elf(binary) => (binary, Some(log)),
        _ => (log, binary),
    }
}

/// Where callers are, each looked up once.
struct Places {
    names: Option<FileNames>,
    known: HashMap<CallerId, String>,
}

impl Places {
    fn of(&mut self, callers: &Callers, id: CallerId) -> &str {
        if !self.known.contains_key(&id) {
            let place = self.look_up(&callers.text(id));
            self.known.insert(id, place);
        }
        &self.known[&id]
    }

    /// `/tmp/mt.c:10 (main)`, as far as it is known; the bare address of the script otherwise.
    fn look_up(&mut self, text: &str) -> String {
        let Some(caller) = caller(text) else { return text.to_owned() };
        let bare = match caller.function {
            "" => format!("{:#x}", caller.address),
            function => format!("{:#x} ({function})", caller.address),
        };
        let Some(names) = &mut self.names else { return format!("{:#x}", caller.address) };
        let Some(first) = names.first_svma(caller.module) else { return bare };
        let address = caller.address.wrapping_sub(BEFORE).wrapping_add(first);
        let frames = names.resolve(caller.module, &[], &[address]);
        let Some(frame) = frames.into_iter().next().and_then(|frames| frames.into_iter().next()) else { return bare };
        let function = frame.function.unwrap_or_default();
        let directory = frame.directory.map_or_else(PathBuf::new, PathBuf::from);
        let place = match (frame.file, frame.line) {
            (Some(file), Some(line)) => format!("{}:{line} ({function})", directory.join(file).display()),
            _ => format!("{function} in {}", caller.module),
        };
        // Names in files are not ours: no control character reaches the terminal.
        place.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
    }
}

/// `%#018x`, which has no prefix for zero.
fn address(address: u64) -> String {
    if address == 0 { "0".repeat(18) } else { format!("{address:#018x}") }
}

/// `%#8x`, likewise.
fn size(bytes: u64) -> String {
    if bytes == 0 { format!("{:>8}", 0) } else { format!("{bytes:#8x}") }
}

fn write_oddity(out: &mut impl Write, callers: &Callers, oddity: Oddity, places: &mut Places) -> io::Result<()> {
    match oddity {
        Oddity::AllocDuplicate { address: at, line, first, caller } => {
            let place = places.of(callers, first).to_owned();
            writeln!(out, "+ {} Alloc {line} duplicate: {place} {}", address(at), callers.text(caller))
        }
        Oddity::FreeUnknown { address: at, line, caller } => {
            writeln!(out, "- {} Free {line} was never alloc'd {}", address(at), places.of(callers, caller))
        }
        Oddity::ReallocUnknown { address: at, line, caller } => {
            writeln!(out, "- {} Realloc {line} was never alloc'd {}", address(at), places.of(callers, caller))
        }
        Oddity::ReallocDuplicate { address: at, line, bytes, first, caller } => {
            let place = places.of(callers, first).to_owned();
            let now = places.of(callers, caller);
            let bytes = if bytes == 0 { "0".repeat(10) } else { format!("{bytes:#010x}") };
            writeln!(out, "+ {} Realloc {line} duplicate: {bytes} {place} {now}", address(at))
        }
    }
}

/// Hex digits as text sort by their first digit: the script sorts addresses as text.
fn as_text(address: u64) -> (u64, u32) {
    (address << (address.leading_zeros() / 4 * 4).min(60), u64::BITS - address.leading_zeros() / 4)
}

fn write_leaks(out: &mut impl Write, trace: mtrace::Trace, places: &mut Places) -> io::Result<()> {
    let mtrace::Trace { mut live, callers, .. } = trace;
    if live.is_empty() {
        return writeln!(out, "No memory leaks.");
    }
    live.sort_unstable_by_key(|block| as_text(block.address));
    writeln!(out, "\nMemory not freed:\n-----------------\n           Address     Size     Caller")?;
    for block in live {
        writeln!(out, "{} {}  at {}", address(block.address), size(block.bytes), places.of(&callers, block.caller))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_perls() {
        assert_eq!(address(0x55), "0x0000000000000055");
        assert_eq!(size(0xfa0), "   0xfa0");
        assert_eq!(size(0), "       0");
    }

    #[test]
    fn addresses_sort_as_text() {
        let mut addresses = [0x2e36, 0x7f00_0000_0000, 0x10, 0x1, 0x5555_0000];
        addresses.sort_by_key(|&address| as_text(address));
        let mut texts = addresses.map(|address: u64| format!("{address:#x}"));
        let sorted = texts.clone();
        texts.sort();
        assert_eq!(sorted, texts);
    }
}
