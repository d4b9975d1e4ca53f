//! A core file's bytes before its memory: headers and notes. Pure but for what `/proc` says beside the memory.
//!
//! ```text
//!  ELF header | program headers: PT_NOTE, PT_LOAD... | notes | (to a page) memory of each mapping up to its last kept page
//! ```
//!
//! Notes: NT_PRSTATUS of each thread, NT_PRPSINFO, NT_AUXV, NT_FILE. Source: elf(5), core(5), the kernel's `fs/binfmt_elf.c` and
//! `include/linux/elfcore.h` for the layouts on x86-64.

use leakscope_process::maps::Mapping;
use nix::libc::user_regs_struct;

const PAGE: u64 = 4096;
const HEADER_BYTES: u64 = 64;
const PROGRAM_HEADER_BYTES: u64 = 56;
const ET_CORE: u16 = 4;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const NT_PRSTATUS: u32 = 1;
const NT_PRPSINFO: u32 = 3;
const NT_AUXV: u32 = 6;
const NT_FILE: u32 = 0x4649_4c45;

/// A mapping, and which of its pages are kept.
pub(super) struct Segment {
    pub mapping: Mapping,
    /// First and end, in order.
    pub ranges: Vec<(u64, u64)>,
}

impl Segment {
    /// Bytes that are kept.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|(start, end)| end - start).sum()
    }

    /// Bytes in the file: up to the last page that is kept; what is not kept before it is a hole.
    fn file_bytes(&self) -> u64 {
        self.ranges.last().map_or(0, |(_, end)| end - self.mapping.start)
    }
}

/// Where everything is.
pub(super) struct Layout {
    /// The file's beginning: headers and notes.
    pub head: Vec<u8>,
    /// Where the memory of each segment begins.
    pub offsets: Vec<u64>,
    /// The file's length.
    pub end: u64,
}

impl Layout {
    pub fn new(notes: &[u8], segments: &[Segment]) -> Self {
        let count = segments.len() as u64 + 1;
        let notes_at = HEADER_BYTES + count * PROGRAM_HEADER_BYTES;
        let mut end = (notes_at + notes.len() as u64).next_multiple_of(PAGE);
        let mut head = header(count as u16);
        program_header(&mut head, PT_NOTE, 0, [notes_at, 0, notes.len() as u64, 0, 4]);
        let mut offsets = Vec::with_capacity(segments.len());
        for segment in segments {
            let Mapping { start, end: stop, readable, writable, executable, .. } = segment.mapping;
            let flags = u32::from(readable) << 2 | u32::from(writable) << 1 | u32::from(executable);
            program_header(&mut head, PT_LOAD, flags, [end, start, segment.file_bytes(), stop - start, PAGE]);
            offsets.push(end);
            end += segment.file_bytes();
        }
        head.extend_from_slice(notes);
        Self { head, offsets, end }
    }
}

fn header(program_headers: u16) -> Vec<u8> {
    // 64 bits, little-endian, version 1.
    let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend(ET_CORE.to_le_bytes());
    bytes.extend(EM_X86_64.to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    // Entry, program headers, section headers.
    for word in [0, HEADER_BYTES, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(0u32.to_le_bytes());
    for half in [HEADER_BYTES as u16, PROGRAM_HEADER_BYTES as u16, program_headers, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    bytes
}

/// `numbers`: offset, address, bytes in the file, bytes in memory, alignment.
fn program_header(bytes: &mut Vec<u8>, kind: u32, flags: u32, numbers: [u64; 5]) {
    let [offset, address, in_file, in_memory, alignment] = numbers;
    bytes.extend(kind.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    for word in [offset, address, 0, in_file, in_memory, alignment] {
        bytes.extend(word.to_le_bytes());
    }
}

/// All notes; `threads` with the first one in front.
pub(super) fn notes(pid: u32, threads: &[(u32, user_regs_struct)], maps: &[Mapping]) -> Vec<u8> {
    let mut notes = Vec::new();
    let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
    for (number, (thread, registers)) in threads.iter().enumerate() {
        note(&mut notes, NT_PRSTATUS, &status(*thread, registers));
        if number == 0 {
            note(&mut notes, NT_PRPSINFO, &process(pid, &read("comm"), &read("cmdline")));
            note(&mut notes, NT_AUXV, &read("auxv"));
            note(&mut notes, NT_FILE, &files(maps));
        }
    }
    notes
}

fn note(bytes: &mut Vec<u8>, kind: u32, text: &[u8]) {
    const NAME: &[u8; 8] = b"CORE\0\0\0\0";
    for word in [5, text.len() as u32, kind] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(NAME);
    bytes.extend(text);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// `struct elf_prstatus`.
fn status(thread: u32, registers: &user_regs_struct) -> Vec<u8> {
    const BYTES: usize = 336;
    const PID_AT: usize = 32;
    const REGISTERS_AT: usize = 112;
    let r = registers;
    let words = [
        r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9, r.r8, r.rax, r.rcx, r.rdx, r.rsi, r.rdi,
        r.orig_rax, r.rip, r.cs, r.eflags, r.rsp, r.ss, r.fs_base, r.gs_base, r.ds, r.es, r.fs, r.gs,
    ];
    let mut bytes = vec![0; REGISTERS_AT];
    bytes[PID_AT..PID_AT + 4].copy_from_slice(&thread.to_le_bytes());
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    bytes.resize(BYTES, 0);
    bytes
}

/// `struct elf_prpsinfo`.
fn process(pid: u32, name: &[u8], command_line: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 136];
    bytes[24..28].copy_from_slice(&pid.to_le_bytes());
    let name = name.trim_ascii_end();
    let name = &name[..name.len().min(15)];
    bytes[40..40 + name.len()].copy_from_slice(name);
    let line: Vec<u8> = command_line.iter().map(|&byte| if byte == 0 { b' ' } else { byte }).take(79).collect();
    bytes[56..56 + line.len()].copy_from_slice(&line);
    bytes
}

/// Count, page size; start, end and page of each mapped file; their names.
fn files(maps: &[Mapping]) -> Vec<u8> {
    let files: Vec<&Mapping> = maps.iter().filter(|mapping| mapping.inode != 0).collect();
    let mut bytes = Vec::new();
    for word in [files.len() as u64, PAGE] {
        bytes.extend(word.to_le_bytes());
    }
    for mapping in &files {
        for word in [mapping.start, mapping.end, mapping.file_offset / PAGE] {
            bytes.extend(word.to_le_bytes());
        }
    }
    for mapping in files {
        bytes.extend(mapping.name.as_encoded_bytes());
        bytes.push(0);
    }
    bytes
}
