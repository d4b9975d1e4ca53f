//! The headers of an ELF program. Total: any bytes give an answer.

/// What kind of file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Linked for a fixed address.
    Fixed,
    /// May lie anywhere.
    Relocatable,
}

/// A loadable segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Address as linked.
    pub address: u64,
    /// Bytes in memory.
    pub memory_bytes: u64,
    /// Where its bytes begin in the file.
    pub offset: u64,
    /// How many of them there are.
    pub file_bytes: u64,
    /// `PROT_*`.
    pub protection: i32,
}

/// What a loader must know of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Headers {
    /// How it was linked.
    pub kind: Kind,
    /// Address of its first instruction, as linked.
    pub entry: u64,
    /// Where its program headers are in the file.
    pub header_offset: u64,
    /// How many there are.
    pub header_count: u16,
    /// Address of the program headers as linked, when a segment says it.
    pub header_address: Option<u64>,
    /// Loadable segments in ascending order.
    pub segments: Vec<Segment>,
    /// Place of the interpreter's name in the file.
    pub interpreter: Option<(u64, u64)>,
    /// Whether the stack must be executable.
    pub executable_stack: bool,
}

const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_PHDR: u32 = 6;
const PT_GNU_STACK: u32 = 0x6474_e551;
const PAGE: u64 = 4096;

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_le_bytes)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    array(bytes, at).map(u64::from_le_bytes)
}

const CUT: &str = "its ELF headers are cut off or wrong; build or install it again";

impl Headers {
    /// Reads the headers from a file's bytes.
    ///
    /// # Errors
    /// What is wrong with the file, and what to do.
    pub fn decode(file: &[u8]) -> Result<Self, &'static str> {
        if file.get(..4) != Some(b"\x7fELF") {
            return Err("it is neither an ELF program nor a script; give the program that runs it first");
        }
        match file.get(4) {
            Some(2) => {}
            Some(1) => return Err("it is a 32-bit program, and leakscope takes 64-bit ones; build it for 64 bits"),
            _ => return Err(CUT),
        }
        if file.get(5) != Some(&1) || half(file, 18) != Some(62) {
            return Err("it is a program for another architecture, and this leakscope is for x86-64; use one there");
        }
        let kind = match half(file, 16) {
            Some(2) => Kind::Fixed,
            Some(3) => Kind::Relocatable,
            _ => return Err("it is an object or core file, not a program; link it first"),
        };
        Self::decode_rest(file, kind).ok_or(CUT)
    }

    fn decode_rest(file: &[u8], kind: Kind) -> Option<Self> {
        let header_offset = long(file, 32)?;
        let header_count = half(file, 56)?;
        if usize::from(half(file, 54)?) != PROGRAM_HEADER_BYTES || file.len() < HEADER_BYTES {
            return None;
        }
        let mut headers = Self {
            kind,
            entry: long(file, 24)?,
            header_offset,
            header_count,
            header_address: None,
            segments: Vec::new(),
            interpreter: None,
            executable_stack: false,
        };
        for number in 0..usize::from(header_count) {
            let at = usize::try_from(header_offset).ok()?.checked_add(number * PROGRAM_HEADER_BYTES)?;
            let flags = word(file, at + 4)?;
            let (offset, address) = (long(file, at + 8)?, long(file, at + 16)?);
            let (file_bytes, memory_bytes) = (long(file, at + 32)?, long(file, at + 40)?);
            match word(file, at)? {
                PT_LOAD if memory_bytes > 0 => {
                    // As the kernel: what does not lie in pages as in the file cannot be mapped.
                    let end = address.checked_add(memory_bytes)?;
                    if file_bytes > memory_bytes || offset % PAGE != address % PAGE || end > 1 << 46 {
                        return None;
                    }
                    let bit = |flag: u32, protection| if flags & flag != 0 { protection } else { 0 };
                    let protection = bit(4, libc::PROT_READ) | bit(2, libc::PROT_WRITE) | bit(1, libc::PROT_EXEC);
                    headers.segments.push(Segment { address, memory_bytes, offset, file_bytes, protection });
                }
                PT_INTERP => headers.interpreter = Some((offset, file_bytes)),
                PT_PHDR => headers.header_address = Some(address),
                PT_GNU_STACK => headers.executable_stack = flags & 1 != 0,
                _ => {}
            }
        }
        let ascending = headers.segments.is_sorted_by(|a, b| a.address + a.memory_bytes <= b.address);
        if headers.segments.is_empty() || !ascending {
            return None;
        }
        if headers.header_address.is_none() {
            let holds = |s: &&Segment| s.offset <= header_offset && header_offset - s.offset < s.file_bytes;
            let segment = headers.segments.iter().find(holds);
            headers.header_address = segment.map(|s| s.address + header_offset - s.offset);
        }
        Some(headers)
    }

    /// Lowest and highest page that segments touch, as linked.
    pub fn extent(&self) -> (u64, u64) {
        let first = self.segments.first().map_or(0, |s| s.address / PAGE * PAGE);
        let last = self.segments.last().map_or(0, |s| (s.address + s.memory_bytes).next_multiple_of(PAGE));
        (first, last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_can_be_read() {
        let file = std::fs::read("/proc/self/exe").unwrap();
        let headers = Headers::decode(&file).unwrap();
        assert_eq!(headers.kind, Kind::Relocatable);
        assert!(headers.interpreter.is_some() && headers.header_address.is_some() && !headers.executable_stack);
        assert!(headers.segments.iter().any(|s| s.protection == libc::PROT_READ | libc::PROT_EXEC));
        let (low, high) = headers.extent();
        assert!((low..high).contains(&headers.entry));
    }

    #[test]
    fn wrong_files_by_table() {
        let file = std::fs::read("/proc/self/exe").unwrap();
        let changed = |at: usize, byte: u8| {
            let mut bytes = file[..8192].to_vec();
            bytes[at] = byte;
            Headers::decode(&bytes)
        };
        assert!(changed(0, 0).unwrap_err().contains("neither"));
        assert!(changed(4, 1).unwrap_err().contains("32-bit"));
        assert!(changed(18, 183).unwrap_err().contains("architecture"));
        assert!(changed(16, 1).unwrap_err().contains("object"));
        assert!(changed(54, 1).unwrap_err().contains("cut off"));
        assert!(Headers::decode(b"#!/bin/sh\n").is_err() && Headers::decode(b"").is_err());
    }

    /// Every cut of a header, and every byte of it changed, gives an answer.
    #[test]
    fn no_bytes_make_it_panic() {
        let file = std::fs::read("/proc/self/exe").unwrap();
        let headers = &file[..1024.min(file.len())];
        for length in 0..headers.len() {
            let _ = Headers::decode(&headers[..length]);
        }
        let mut bytes = headers.to_vec();
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let old = std::mem::replace(&mut bytes[at], value);
                if let Ok(headers) = Headers::decode(&bytes) {
                    let _ = headers.extent();
                }
                bytes[at] = old;
            }
        }
    }
}
