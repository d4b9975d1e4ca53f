//! ELF files as reports need them: sections, symbols, build ids. Reads mapped bytes; trusts nothing in them.

use alloc::vec::Vec;

/// Names and values of an ELF file.
#[derive(Clone, Copy)]
pub struct Elf<'d> {
    data: &'d [u8],
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    data.get(at..at + 2).map(|bytes| u16::from_le_bytes([bytes[0], bytes[1]]))
}

fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    data.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)
}

/// The text that ends with a zero byte.
pub(super) fn text_at(data: &[u8], at: usize) -> Option<&str> {
    let rest = data.get(at..)?;
    let end = rest.iter().position(|&byte| byte == 0)?;
    core::str::from_utf8(rest.get(..end)?).ok()
}

/// A function or variable.
#[derive(Clone, Copy, Debug)]
pub struct Symbol<'d> {
    /// Address as linked.
    pub value: u64,
    /// Bytes; 0 when unknown.
    pub bytes: u64,
    /// Mangled name.
    pub name: &'d str,
    /// Whether it is a function.
    pub is_function: bool,
    /// The source file, for what only that file sees.
    pub file: Option<&'d str>,
}

struct Section {
    name: u32,
    kind: u32,
    flags: u64,
    offset: u64,
    bytes: u64,
    link: u32,
}

/// What a section holds.
#[derive(Clone, Copy, Debug)]
pub enum Contents<'d> {
    /// The bytes themselves.
    Plain(&'d [u8]),
    /// Bytes to inflate by zlib.
    Zlib {
        /// How many they will be.
        bytes: usize,
        /// Compressed.
        packed: &'d [u8],
    },
    /// Bytes to inflate by Zstandard.
    Zstd {
        /// How many they will be.
        bytes: usize,
        /// Compressed.
        packed: &'d [u8],
    },
}

const HEADER_BYTES: usize = 64;
const NOBITS: u32 = 8;
const COMPRESSED: u64 = 1 << 11;
/// Of a compressed section: its kind, its size, and its alignment.
const COMPRESSION_HEADER_BYTES: usize = 24;
/// Deflate's best; what says more of itself is damaged.
const MOST_RATIO: usize = 1032;

impl<'d> Elf<'d> {
    /// A 64-bit little-endian file; `None` for any other.
    #[must_use]
    pub fn new(data: &'d [u8]) -> Option<Self> {
        (data.len() > HEADER_BYTES && data.starts_with(b"\x7fELF\x02\x01")).then_some(Self { data })
    }

    fn section(&self, number: usize) -> Option<Section> {
        let count = usize::from(u16_at(self.data, 60)?);
        if number >= count {
            return None;
        }
        let at = usize::try_from(u64_at(self.data, 40)?).ok()?.checked_add(number * 64)?;
        Some(Section {
            name: u32_at(self.data, at)?,
            kind: u32_at(self.data, at + 4)?,
            flags: u64_at(self.data, at + 8)?,
            offset: u64_at(self.data, at + 24)?,
            bytes: u64_at(self.data, at + 32)?,
            link: u32_at(self.data, at + 40)?,
        })
    }

    fn bytes_of(&self, section: &Section) -> Option<&'d [u8]> {
        if section.kind == NOBITS {
            return None;
        }
        let start = usize::try_from(section.offset).ok()?;
        self.data.get(start..start.checked_add(usize::try_from(section.bytes).ok()?)?)
    }

    /// What a section holds; `None` when there is none of this name, or it is damaged.
    #[must_use]
    pub fn contents(&self, name: &str) -> Option<Contents<'d>> {
        let names = self.bytes_of(&self.section(usize::from(u16_at(self.data, 62)?))?)?;
        let mut sections = (0..usize::from(u16_at(self.data, 60)?)).map_while(|number| self.section(number));
        let section = sections.find(|section| text_at(names, section.name as usize) == Some(name))?;
        let data = self.bytes_of(&section)?;
        if section.flags & COMPRESSED == 0 {
            return Some(Contents::Plain(data));
        }
        let packed = data.get(COMPRESSION_HEADER_BYTES..)?;
        let bytes = usize::try_from(u64_at(data, 8)?).ok()?;
        if bytes / MOST_RATIO > packed.len() {
            return None;
        }
        match u32_at(data, 0)? {
            1 => Some(Contents::Zlib { bytes, packed }),
            2 => Some(Contents::Zstd { bytes, packed }),
            _ => None,
        }
    }

    /// The bytes of a section; `None` when there is none of this name, or it is compressed.
    #[must_use]
    pub fn section_bytes(&self, name: &str) -> Option<&'d [u8]> {
        match self.contents(name)? {
            Contents::Plain(bytes) => Some(bytes),
            Contents::Zlib { .. } | Contents::Zstd { .. } => None,
        }
    }

    /// Its GNU build id.
    #[must_use]
    pub fn build_id(&self) -> Option<&'d [u8]> {
        build_id(self.section_bytes(".note.gnu.build-id")?)
    }

    /// Every function and variable of `.symtab` and `.dynsym` that is defined.
    #[must_use]
    pub fn symbols(&self) -> Vec<Symbol<'d>> {
        const SYMTAB: u32 = 2;
        const DYNSYM: u32 = 11;
        const ENTRY: usize = 24;
        let mut all = Vec::new();
        for number in 0..usize::from(u16_at(self.data, 60).unwrap_or(0)) {
            let Some(section) = self.section(number).filter(|section| matches!(section.kind, SYMTAB | DYNSYM)) else {
                continue;
            };
            let names = self.section(section.link as usize).and_then(|names| self.bytes_of(&names));
            let (Some(names), Some(bytes)) = (names, self.bytes_of(&section)) else { continue };
            let mut source = None;
            for entry in bytes.chunks_exact(ENTRY) {
                const FILE: u8 = 4;
                let (kind, is_local) = (entry[4] & 15, entry[4] >> 4 == 0);
                if kind == FILE {
                    source = u32_at(entry, 0).and_then(|name| text_at(names, name as usize));
                }
                let is_defined = u16_at(entry, 6).is_some_and(|section| section != 0);
                // Objects, functions, and indirect functions.
                if !is_defined || !matches!(kind, 0 | 1 | 2 | 10) {
                    continue;
                }
                let (Some(name), Some(value), Some(size)) = (u32_at(entry, 0), u64_at(entry, 8), u64_at(entry, 16))
                else {
                    continue;
                };
                match text_at(names, name as usize) {
                    Some(name) if !name.is_empty() && value != 0 && (kind != 0 || size != 0) => {
                        let is_function = kind == 2 || kind == 10;
                        let file = source.filter(|file| is_local && !file.is_empty());
                        all.push(Symbol { value, bytes: size, name, is_function, file });
                    }
                    _ => {}
                }
            }
        }
        all
    }
}

/// The GNU build id in a note segment.
#[must_use]
pub fn build_id(notes: &[u8]) -> Option<&[u8]> {
    const GNU_BUILD_ID: u32 = 3;
    let mut at = 0usize;
    loop {
        let name_bytes = u32_at(notes, at)? as usize;
        let data_bytes = u32_at(notes, at + 4)? as usize;
        let kind = u32_at(notes, at + 8)?;
        let data = at.checked_add(12)?.checked_add(name_bytes.checked_next_multiple_of(4)?)?;
        if kind == GNU_BUILD_ID && notes.get(at + 12..at + 16) == Some(b"GNU\0") {
            return notes.get(data..data.checked_add(data_bytes)?);
        }
        at = data.checked_add(data_bytes.checked_next_multiple_of(4)?)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_symbols_and_build_id() {
        let data = std::fs::read("/proc/self/exe").expect("this program");
        let elf = Elf::new(&data).expect("an ELF file");
        assert!(elf.symbols().iter().any(|symbol| symbol.is_function && symbol.name == "main"));
        assert!(elf.section_bytes(".text").is_some_and(|text| !text.is_empty()));
        assert!(elf.section_bytes(".no-such").is_none());
    }

    #[test]
    fn damaged_files_are_no_trouble() {
        let data = std::fs::read("/proc/self/exe").expect("this program");
        let mut state = 1u64;
        for _ in 0..50 {
            let mut damaged = data.get(..4096.min(data.len())).expect("long enough").to_vec();
            for _ in 0..40 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let at = 6 + (state >> 33) as usize % 58;
                damaged[at] = (state >> 20) as u8;
            }
            if let Some(elf) = Elf::new(&damaged) {
                let _ = (elf.symbols().len(), elf.section_bytes(".text"));
            }
            let _ = build_id(&damaged);
        }
    }
}
