//! A small loader: enough for the programs of a distribution.

use std::ffi::{CStr, CString};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use leakscope_guest::{Backing, Mapping, Process};
use leakscope_translate::{Gpr, Guest};

const PAGE: u64 = 4096;
const STACK_END: u64 = 0x2f00_0000_0000;
const STACK_BYTES: u64 = 8 << 20;

struct Program {
    entry: u64,
    base: u64,
    headers: u64,
    header_count: u64,
    interpreter: Option<String>,
}

/// Finds a program as `execvp` does.
fn find(path: &CStr) -> Result<String, String> {
    let name = path.to_string_lossy().into_owned();
    if name.contains('/') {
        return Ok(name);
    }
    let folders = std::env::var("PATH").unwrap_or_else(|_| "/usr/bin:/bin".into());
    let found = folders
        .split(':')
        .map(|folder| format!("{folder}/{name}"))
        .find(|path| std::fs::metadata(path).is_ok_and(|file| file.is_file()));
    found.ok_or_else(|| format!("{name}: not found in PATH"))
}

/// Maps program and interpreter and makes the stack; returns the first registers.
pub fn load(
    process: &mut Process,
    path: &CStr,
    argv0: Option<CString>,
    words: &[CString],
    environment: &[CString],
) -> Result<Guest, String> {
    let mut file = find(path)?;
    let mut arguments = words.to_vec();
    if let Some(name) = argv0 {
        arguments[0] = name;
    }
    // An interpreter script runs its interpreter, with what stands behind it as one argument.
    for _ in 0..4 {
        let mut head = vec![0; 256];
        let opened = std::fs::File::open(&file).map_err(|error| format!("{file}: {error}"))?;
        let length = opened.read_at(&mut head, 0).map_err(|error| format!("{file}: {error}"))?;
        head.truncate(length);
        if !head.starts_with(b"#!") {
            break;
        }
        let line = String::from_utf8_lossy(head[2..].split(|&byte| byte == b'\n').next().unwrap_or(b"")).into_owned();
        let line = line.trim().to_owned();
        let (interpreter, option) = line.split_once(char::is_whitespace).unwrap_or((&line, ""));
        let c = |text: &str| CString::new(text).unwrap_or_default();
        let mut with = vec![c(interpreter)];
        if !option.is_empty() {
            with.push(c(option.trim()));
        }
        with.push(c(&file));
        arguments.splice(..1, with);
        file = interpreter.to_owned();
    }
    let program = map_program(process, &file)?;
    let interpreter = program.interpreter.as_ref().map(|name| map_program(process, name)).transpose()?;
    let absolute = std::fs::canonicalize(&file).map_err(|error| format!("{file}: {error}"))?;
    let name = absolute.file_name().map(|name| name.as_bytes().to_vec()).unwrap_or_default();
    let name = CString::new(name).unwrap_or_default();
    // SAFETY: a name of this process.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
    let setup = process.setup_mut();
    setup.program = absolute.into_os_string().into_vec();
    setup.arguments = arguments.iter().map(|word| word.as_bytes().to_vec()).collect();
    setup.environment = environment.iter().map(|word| word.as_bytes().to_vec()).collect();
    let (pointer, auxiliary) = make_stack(&program, interpreter.as_ref(), &file, &arguments, environment)?;
    process.setup_mut().auxiliary = auxiliary;
    process.space_mut().record(Mapping {
        start: STACK_END - STACK_BYTES,
        end: STACK_END,
        protection: 3,
        shared: false,
        backing: Backing::Stack,
    });
    let mut guest = Guest::new();
    guest.rip = interpreter.map_or(program.entry, |interpreter| interpreter.entry);
    guest.set_gpr(Gpr::Rsp, pointer);
    Ok(guest)
}

fn map(address: u64, bytes: u64, protection: i32, descriptor: i32, offset: u64) -> Result<(), String> {
    let kind = if descriptor < 0 { libc::MAP_ANONYMOUS } else { 0 };
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE | kind;
    // SAFETY: a new map where nothing is.
    let at = unsafe { libc::mmap(address as *mut _, bytes as usize, protection, flags, descriptor, offset as i64) };
    if at as u64 == address {
        Ok(())
    } else {
        Err(format!("cannot map {bytes:#x} bytes at {address:#x}: {}", std::io::Error::last_os_error()))
    }
}

fn map_program(process: &mut Process, path: &str) -> Result<Program, String> {
    let file = std::fs::File::open(path).map_err(|error| format!("{path}: {error}"))?;
    let mut head = vec![0; 4096];
    let length = file.read_at(&mut head, 0).map_err(|error| format!("{path}: {error}"))?;
    head.truncate(length);
    if length < 64 || &head[..5] != b"\x7fELF\x02" {
        return Err(format!("{path}: not an ELF file of 64 bits"));
    }
    let word = |at: usize, bytes: usize| -> u64 {
        head[at..at + bytes].iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
    };
    let (headers_at, count) = (word(32, 8), word(56, 2));
    let segments: Vec<[u64; 7]> = (0..count)
        .map(|at| {
            let at = (headers_at + 56 * at) as usize;
            [word(at, 4), word(at + 4, 4), word(at + 8, 8), word(at + 16, 8), word(at + 32, 8), word(at + 40, 8), 0]
        })
        .collect();
    let loads = || segments.iter().filter(|segment| segment[0] == 1);
    let end = loads().map(|segment| (segment[3] + segment[5]).next_multiple_of(PAGE)).max().unwrap_or(0);
    let base = if word(16, 2) == 3 { process.space_mut().place(end, true).ok_or("no room below 2 GB")? } else { 0 };
    let mut program = Program { entry: word(24, 8) + base, base, headers: 0, header_count: count, interpreter: None };
    for &[kind, flags, offset, address, file_bytes, memory_bytes, _] in &segments {
        if kind == 3 {
            let name = &head[offset as usize..(offset + file_bytes - 1) as usize];
            program.interpreter = Some(String::from_utf8_lossy(name).into_owned());
        }
        if kind != 1 {
            continue;
        }
        let protection = (flags >> 2 & 1 | flags & 2 | (flags & 1) << 2) as i32;
        let start = address + base;
        let page = start & !(PAGE - 1);
        let file_end = (start + file_bytes).next_multiple_of(PAGE);
        let memory_end = (start + memory_bytes).next_multiple_of(PAGE);
        let name: Arc<[u8]> = Arc::from(path.as_bytes());
        if file_bytes > 0 {
            let file_offset = offset - (start - page);
            map(page, start + file_bytes - page, protection, file.as_raw_fd(), file_offset)?;
            let backing = Backing::File { path: name, offset: file_offset };
            process.space_mut().record(Mapping { start: page, end: file_end, protection, shared: false, backing });
            if memory_bytes > file_bytes && flags & 2 != 0 {
                let zero = start + file_bytes;
                // SAFETY: the rest of the last page, just mapped and writable.
                unsafe { std::ptr::write_bytes(zero as *mut u8, 0, (file_end - zero) as usize) };
            }
        }
        let rest = if file_bytes > 0 { file_end } else { page };
        if memory_end > rest {
            map(rest, memory_end - rest, protection, -1, 0)?;
            let backing = Backing::Anonymous;
            process.space_mut().record(Mapping { start: rest, end: memory_end, protection, shared: false, backing });
        }
        if offset <= headers_at && headers_at < offset + file_bytes {
            program.headers = start + headers_at - offset;
        }
    }
    Ok(program)
}

fn make_stack(
    program: &Program,
    interpreter: Option<&Program>,
    path: &str,
    arguments: &[CString],
    environment: &[CString],
) -> Result<(u64, Vec<u8>), String> {
    map(STACK_END - STACK_BYTES, STACK_BYTES, 3, -1, 0)?;
    let mut at = STACK_END - 16;
    let mut put = |bytes: &[u8]| {
        at -= bytes.len() as u64;
        // SAFETY: on the stack that was just mapped; arguments are limited by the kernel to less.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
        at
    };
    let executed = put(&[path.as_bytes(), b"\0"].concat());
    let platform = put(b"x86_64\0");
    let random = put(&std::process::id().to_ne_bytes().repeat(4));
    let environment: Vec<u64> = environment.iter().map(|word| put(word.to_bytes_with_nul())).collect();
    let arguments: Vec<u64> = arguments.iter().map(|word| put(word.to_bytes_with_nul())).collect();
    // SAFETY: asks the C library.
    let own = |kind: u64| unsafe { libc::getauxval(kind) };
    let auxiliary = [
        (3, program.headers),
        (4, 56),
        (5, program.header_count),
        (6, PAGE),
        (7, interpreter.map_or(0, |interpreter| interpreter.base)),
        (8, 0),
        (9, program.entry),
        (11, own(11)),
        (12, own(12)),
        (13, own(13)),
        (14, own(14)),
        (15, platform),
        (16, own(16)),
        (17, own(17)),
        (23, own(23)),
        (25, random),
        (26, own(26)),
        (31, executed),
        (51, own(51)),
        (0, 0),
    ];
    let mut words = vec![arguments.len() as u64];
    words.extend(arguments.iter().chain([&0]).chain(&environment).chain([&0]));
    let auxiliary_at = words.len();
    words.extend(auxiliary.iter().flat_map(|&(kind, value)| [kind, value]));
    let pointer = (at - 8 * words.len() as u64) & !15;
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    // SAFETY: as above.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), pointer as *mut u8, bytes.len()) };
    Ok((pointer, bytes[8 * auxiliary_at..].to_vec()))
}
