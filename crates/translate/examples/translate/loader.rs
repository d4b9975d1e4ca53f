//! Loads ELF files and builds the first stack, as the kernel's `execve` does.

use std::fs::File;
use std::os::fd::AsRawFd;

pub struct Image {
    pub entry: u64,
    pub base: u64,
    pub headers: u64,
    pub header_count: u64,
    pub interpreter: Option<String>,
    /// Executable segments: start, end and protection.
    pub code: Vec<(u64, (u64, i32))>,
}

const PAGE: u64 = 0x1000;

pub fn find(name: &str) -> String {
    if name.contains('/') {
        return name.to_owned();
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let found =
        path.split(':').map(|folder| format!("{folder}/{name}")).find(|file| std::path::Path::new(file).exists());
    found.unwrap_or_else(|| panic!("{name}: not found in PATH"))
}

struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    file_bytes: u64,
    memory_bytes: u64,
}

fn segments(data: &[u8]) -> Vec<Segment> {
    let u64_at = |at: usize| u64::from_le_bytes(data[at..at + 8].try_into().unwrap());
    let u32_at = |at: usize| u32::from_le_bytes(data[at..at + 4].try_into().unwrap());
    let count = u16::from_le_bytes([data[56], data[57]]) as usize;
    let first = u64_at(32) as usize;
    (0..count)
        .map(|index| {
            let at = first + index * 56;
            Segment {
                kind: u32_at(at),
                flags: u32_at(at + 4),
                offset: u64_at(at + 8),
                address: u64_at(at + 16),
                file_bytes: u64_at(at + 32),
                memory_bytes: u64_at(at + 40),
            }
        })
        .collect()
}

pub fn load(path: &str, wanted: u64) -> Image {
    let data = std::fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    assert!(data.starts_with(b"\x7fELF"), "{path}: not an ELF file");
    let is_dynamic = data[16] == 3;
    let base = if is_dynamic { wanted } else { 0 };
    let u64_at = |at: usize| u64::from_le_bytes(data[at..at + 8].try_into().unwrap());
    let segments = segments(&data);
    let mut image = Image {
        entry: u64_at(24) + base,
        base,
        headers: 0,
        header_count: segments.len() as u64,
        interpreter: None,
        code: Vec::new(),
    };
    let file = File::open(path).expect("read it a moment ago");
    for segment in &segments {
        if segment.kind == 3 {
            let name = &data[segment.offset as usize..(segment.offset + segment.file_bytes - 1) as usize];
            image.interpreter = Some(String::from_utf8_lossy(name).into_owned());
        }
        if segment.kind == 1 {
            let (start, end, protection) = map_segment(&file, segment, base);
            if protection & libc::PROT_EXEC != 0 {
                image.code.push((start, (end, protection)));
            }
            if (segment.offset..segment.offset + segment.file_bytes).contains(&u64_at(32)) {
                image.headers = segment.address + base + u64_at(32) - segment.offset;
            }
        }
    }
    image
}

fn map_segment(file: &File, segment: &Segment, base: u64) -> (u64, u64, i32) {
    let start = (segment.address & !(PAGE - 1)) + base;
    let skipped = segment.address & (PAGE - 1);
    let file_end = (segment.address + segment.file_bytes).next_multiple_of(PAGE) + base;
    let end = (segment.address + segment.memory_bytes).next_multiple_of(PAGE) + base;
    let bits = [(4, libc::PROT_READ), (2, libc::PROT_WRITE), (1, libc::PROT_EXEC)];
    let protection = bits.iter().filter(|(flag, _)| segment.flags & flag != 0).map(|(_, bit)| bit).sum();
    unsafe {
        if segment.file_bytes > 0 {
            let got = libc::mmap(
                start as *mut _,
                (segment.file_bytes + skipped) as usize,
                protection,
                libc::MAP_PRIVATE | libc::MAP_FIXED,
                file.as_raw_fd(),
                (segment.offset - skipped) as i64,
            );
            assert_eq!(got as u64, start);
        }
        if segment.memory_bytes > segment.file_bytes {
            if segment.flags & 2 != 0 && segment.file_bytes > 0 {
                let zero = segment.address + base + segment.file_bytes;
                std::ptr::write_bytes(zero as *mut u8, 0, (file_end - zero) as usize);
            }
            let from = if segment.file_bytes > 0 { file_end } else { start };
            if end > from {
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
                let got = libc::mmap(from as *mut _, (end - from) as usize, protection, flags, -1, 0);
                assert_eq!(got as u64, from);
            }
        }
    }
    (start, end, protection)
}

/// Writes arguments, environment and auxiliary vector; gives the stack pointer.
pub fn fill_stack(end: u64, path: &str, arguments: &[String], program: &Image, interpreter: Option<&Image>) -> u64 {
    let mut top = end - 64;
    let mut put = |bytes: &[u8]| {
        top -= bytes.len() as u64;
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), top as *mut u8, bytes.len()) };
        top
    };
    let mut text = |text: &str| put(&[text.as_bytes(), &[0]].concat());
    let file_name = text(path);
    let platform = text("x86_64");
    let environment: Vec<u64> = std::env::vars().map(|(name, value)| text(&format!("{name}={value}"))).collect();
    let words: Vec<u64> = arguments.iter().map(|word| text(word)).collect();
    let random = put(&[7; 16]);
    let mut block = vec![words.len() as u64];
    block.extend(&words);
    block.push(0);
    block.extend(&environment);
    block.push(0);
    let own = |kind: u64| unsafe { libc::getauxval(kind) };
    let vector = [
        (3, program.headers),
        (4, 56),
        (5, program.header_count),
        (6, PAGE),
        (7, interpreter.map_or(0, |image| image.base)),
        (8, 0),
        (9, program.entry),
        (11, own(11)),
        (12, own(12)),
        (13, own(13)),
        (14, own(14)),
        (15, platform),
        (16, own(16)),
        (17, 100),
        (23, 0),
        (25, random),
        (26, own(26)),
        (31, file_name),
        (51, own(51)),
        (0, 0),
    ];
    for (kind, value) in vector {
        block.extend([kind, value]);
    }
    let stack = ((top & !15) - block.len() as u64 * 8) & !15;
    for (index, word) in block.iter().enumerate() {
        unsafe { ((stack + index as u64 * 8) as *mut u64).write(*word) };
    }
    stack
}
