//! The parts of an ELF file that symbolisation needs: sections, notes, and the links to separate debug files.
//!
//! A reader of our own, about a hundred lines, because `object` either wants a mapping (unsafe here) or its
//! `ReadCache`, whose documentation warns that malformed files make it grow much larger than the file, and because
//! its `File::parse` reads the symbol tables at once and fails as a whole when they are damaged.
//!
//! Only 64-bit files: the recorder takes no others. Source: System V gABI, "Object Files".

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gimli::{EndianSlice, Reader, RunTimeEndian};

const SHT_NOTE: u32 = 7;
const SHT_NOBITS: u32 = 8;
const SHF_ALLOC: u64 = 2;
const SHF_TLS: u64 = 0x400;
const SHF_COMPRESSED: u64 = 0x800;
const PT_NOTE: u32 = 4;
const NT_GNU_BUILD_ID: u32 = 3;
const ELFCOMPRESS_ZLIB: u32 = 1;
const ELFCOMPRESS_ZSTD: u32 = 2;

/// Longer notes and links than this are not what they pretend to be.
const SMALL_SECTION_BYTES: u64 = 64 << 10;
/// Real debug sections shrink 3 to 10 times; what grows more than this is a decompression bomb.
const MAX_EXPANSION: u64 = 256;
/// More memory than any real mini debuginfo asks for: `xz -9` needs 64 MiB.
const XZ_MEMORY_KIB: u32 = 70 << 10;

/// Where the bytes of an ELF image are.
enum Data {
    File { file: File, len: u64 },
    Memory(Arc<[u8]>),
}

impl Data {
    fn len(&self) -> u64 {
        match self {
            Data::File { len, .. } => *len,
            Data::Memory(bytes) => bytes.len() as u64,
        }
    }

    /// The bytes of a range, or `None` when the range is not wholly inside. Checked before anything is allocated.
    fn range(&self, offset: u64, len: u64) -> Option<Arc<[u8]>> {
        if offset.checked_add(len)? > self.len() {
            return None;
        }
        let size = usize::try_from(len).ok()?;
        match self {
            Data::File { file, .. } => {
                let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, size).collect();
                file.read_exact_at(Arc::get_mut(&mut bytes)?, offset).ok()?;
                Some(bytes)
            }
            Data::Memory(bytes) => {
                let start = usize::try_from(offset).ok()?;
                Some(Arc::from(bytes.get(start..start + size)?))
            }
        }
    }
}

/// One section header.
pub(crate) struct Section {
    name: Box<[u8]>,
    kind: u32,
    flags: u64,
    address: u64,
    offset: u64,
    size: u64,
    pub(crate) link: u32,
}

impl Section {
    /// Where the section ends in memory; zero for sections that are not loaded.
    pub(crate) fn end_address(&self) -> u64 {
        self.address.saturating_add(self.size)
    }
}

/// An ELF file whose headers have been read.
pub(crate) struct Elf {
    data: Data,
    pub(crate) endian: RunTimeEndian,
    pub(crate) sections: Vec<Section>,
    /// File ranges of PT_NOTE segments: all that names the build in a file without section headers.
    note_segments: Vec<(u64, u64)>,
    /// Where the file was opened; empty for an image in memory.
    pub(crate) path: PathBuf,
}

impl Elf {
    /// Opens a regular file and reads its headers. `None` when it is missing, unreadable or no 64-bit ELF file.
    pub(crate) fn open(path: &Path) -> Option<Elf> {
        // A path can come from hostile debug info: opening a FIFO would block, a device would never end.
        if !std::fs::metadata(path).ok()?.is_file() {
            return None;
        }
        let file = File::open(path).ok()?;
        let len = file.metadata().ok()?.len();
        Elf::parse(Data::File { file, len }, path.to_path_buf())
    }

    fn parse(data: Data, path: PathBuf) -> Option<Elf> {
        let header = data.range(0, 64)?;
        if !header.starts_with(b"\x7fELF\x02") {
            return None;
        }
        let endian = match header[5] {
            1 => RunTimeEndian::Little,
            2 => RunTimeEndian::Big,
            _ => return None,
        };
        let mut reader = EndianSlice::new(&header, endian);
        reader.skip(32).ok()?;
        let segments_offset = reader.read_u64().ok()?;
        let sections_offset = reader.read_u64().ok()?;
        reader.skip(4 + 2 + 2).ok()?;
        let segment_count = u64::from(reader.read_u16().ok()?);
        reader.skip(2).ok()?;
        let section_count = u64::from(reader.read_u16().ok()?);
        let name_index = u32::from(reader.read_u16().ok()?);
        let mut elf = Elf { data, endian, sections: Vec::new(), note_segments: Vec::new(), path };
        // Either table may be damaged: what the other one gives is still good.
        elf.read_segments(segments_offset, segment_count);
        elf.read_sections(sections_offset, section_count, name_index);
        Some(elf)
    }

    fn read_segments(&mut self, offset: u64, count: u64) -> Option<()> {
        let table = self.data.range(offset, count * 56)?;
        for raw in table.chunks_exact(56) {
            let mut reader = EndianSlice::new(raw, self.endian);
            let kind = reader.read_u32().ok()?;
            reader.skip(4).ok()?;
            let offset = reader.read_u64().ok()?;
            reader.skip(16).ok()?;
            let size = reader.read_u64().ok()?;
            if kind == PT_NOTE && size <= SMALL_SECTION_BYTES {
                self.note_segments.push((offset, size));
            }
        }
        Some(())
    }

    fn read_sections(&mut self, offset: u64, mut count: u64, mut name_index: u32) -> Option<()> {
        if offset == 0 {
            return None;
        }
        if count == 0 || name_index == 0xffff {
            // Counts that do not fit into the file header stand in the first section header.
            let first = self.data.range(offset, 64)?;
            let (header, _) = decode_section(&first, self.endian)?;
            count = if count == 0 { header.size } else { count };
            name_index = if name_index == 0xffff { header.link } else { name_index };
        }
        let table = self.data.range(offset, count.checked_mul(64)?)?;
        let mut headers = Vec::with_capacity(table.len() / 64);
        for raw in table.chunks_exact(64) {
            headers.push(decode_section(raw, self.endian)?);
        }
        let names = headers.get(name_index as usize).and_then(|(s, _)| self.data.range(s.offset, s.size));
        for (mut section, name_offset) in headers {
            if let Some(rest) = names.as_deref().and_then(|names| names.get(name_offset as usize..)) {
                // No name that we look for is near 64 bytes, and hostile tables have no terminator.
                section.name = rest.iter().copied().take(64).take_while(|&byte| byte != 0).collect();
            }
            self.sections.push(section);
        }
        Some(())
    }

    /// The first section of that name that has contents in this file.
    pub(crate) fn section(&self, name: &str) -> Option<&Section> {
        self.sections
            .iter()
            .find(|section| *section.name == *name.as_bytes() && section.kind != SHT_NOBITS && section.size > 0)
    }

    /// The name of the section that an address of link time lies in.
    pub(crate) fn section_of(&self, address: u64) -> Option<&[u8]> {
        let holds = |section: &&Section| section.address <= address && address < section.end_address();
        let loaded = self.sections.iter().filter(|section| section.flags & SHF_ALLOC != 0);
        loaded.filter(|section| section.flags & SHF_TLS == 0).find(holds).map(|section| &*section.name)
    }

    /// The contents of a DWARF section, decompressed; `None` when it is absent or damaged.
    pub(crate) fn debug_section(&self, name: &str) -> Option<Arc<[u8]>> {
        if let Some(section) = self.section(name) {
            return self.contents(section);
        }
        let gnu_name = format!(".z{}", name.strip_prefix('.')?);
        let raw = self.contents(self.section(&gnu_name)?)?;
        // "ZLIB" and the size in big endian, whatever the byte order of the file.
        let size = u64::from_be_bytes(raw.strip_prefix(b"ZLIB")?.get(..8)?.try_into().ok()?);
        inflate(flate2::read::ZlibDecoder::new(&raw[12..]), size, raw.len())
    }

    /// The contents of a section, decompressed.
    pub(crate) fn contents(&self, section: &Section) -> Option<Arc<[u8]>> {
        let raw = self.data.range(section.offset, section.size)?;
        if section.flags & SHF_COMPRESSED == 0 {
            return Some(raw);
        }
        let mut reader = EndianSlice::new(&raw, self.endian);
        let kind = reader.read_u32().ok()?;
        reader.skip(4).ok()?;
        let size = reader.read_u64().ok()?;
        reader.skip(8).ok()?;
        let packed = reader.slice();
        match kind {
            ELFCOMPRESS_ZLIB => inflate(flate2::read::ZlibDecoder::new(packed), size, packed.len()),
            ELFCOMPRESS_ZSTD => inflate(ruzstd::decoding::StreamingDecoder::new(packed).ok()?, size, packed.len()),
            _ => None,
        }
    }

    fn small_section(&self, name: &str) -> Option<Arc<[u8]>> {
        self.section(name).filter(|section| section.size <= SMALL_SECTION_BYTES).and_then(|s| self.contents(s))
    }

    /// Whether the file itself holds DWARF units.
    pub(crate) fn has_debug_info(&self) -> bool {
        self.section(".debug_info").is_some() || self.section(".zdebug_info").is_some()
    }

    /// The GNU build id.
    pub(crate) fn build_id(&self) -> Option<Vec<u8>> {
        let sections = self
            .sections
            .iter()
            .filter(|section| section.kind == SHT_NOTE && section.size <= SMALL_SECTION_BYTES)
            .map(|section| (section.offset, section.size));
        // A debug file keeps the program headers of the stripped file, whose offsets mean nothing in it: there the
        // section is right, so it goes first.
        sections
            .chain(self.note_segments.iter().copied())
            .take(256)
            .find_map(|(offset, size)| decode_build_id(&self.data.range(offset, size)?, self.endian))
    }

    /// `.gnu_debuglink`: the name of the separate debug file and the CRC-32 of its bytes.
    pub(crate) fn debug_link(&self) -> Option<(OsString, u32)> {
        let bytes = self.small_section(".gnu_debuglink")?;
        let end = bytes.iter().position(|&byte| byte == 0)?;
        let mut crc = EndianSlice::new(bytes.get((end + 4) & !3..)?, self.endian);
        Some((OsString::from_vec(bytes[..end].to_vec()), crc.read_u32().ok()?))
    }

    /// `.gnu_debugaltlink`: the path of the file that dwz moved shared units to, and its build id.
    pub(crate) fn alt_link(&self) -> Option<(PathBuf, Vec<u8>)> {
        let bytes = self.small_section(".gnu_debugaltlink")?;
        let end = bytes.iter().position(|&byte| byte == 0)?;
        Some((OsString::from_vec(bytes[..end].to_vec()).into(), bytes[end + 1..].to_vec()))
    }

    /// The ELF image inside `.gnu_debugdata`, which holds the symbols that `strip` took.
    pub(crate) fn mini_debug_info(&self) -> Option<Elf> {
        let packed = self.contents(self.section(".gnu_debugdata")?)?;
        let reader = lzma_rust2::XzReader::new_mem_limit(&packed[..], false, XZ_MEMORY_KIB);
        let image = inflate(reader, u64::MAX, packed.len())?;
        Elf::parse(Data::Memory(image), PathBuf::new())
    }
}

/// Reads the build id of an ELF file; `None` when it has none or cannot be read.
pub fn read_build_id(path: &Path) -> Option<Vec<u8>> {
    Elf::open(path)?.build_id()
}

/// A section header without its name, and the offset of that name.
fn decode_section(raw: &[u8], endian: RunTimeEndian) -> Option<(Section, u32)> {
    let mut reader = EndianSlice::new(raw, endian);
    let name_offset = reader.read_u32().ok()?;
    let kind = reader.read_u32().ok()?;
    let flags = reader.read_u64().ok()?;
    let address = reader.read_u64().ok()?;
    let offset = reader.read_u64().ok()?;
    let size = reader.read_u64().ok()?;
    let link = reader.read_u32().ok()?;
    Some((Section { name: Box::default(), kind, flags, address, offset, size, link }, name_offset))
}

fn decode_build_id(notes: &[u8], endian: RunTimeEndian) -> Option<Vec<u8>> {
    let mut reader = EndianSlice::new(notes, endian);
    loop {
        let name_len = reader.read_u32().ok()? as usize;
        let value_len = reader.read_u32().ok()? as usize;
        let kind = reader.read_u32().ok()?;
        let name = reader.split(name_len.checked_next_multiple_of(4)?).ok()?;
        let value = reader.split(value_len).ok()?;
        if kind == NT_GNU_BUILD_ID && name.slice() == b"GNU\0" && !value.is_empty() {
            return Some(value.slice().to_vec());
        }
        reader.skip(value_len.checked_next_multiple_of(4)? - value_len).ok()?;
    }
}

/// Reads a compressed stream, and no more of it than the file claims or than a real one can hold.
fn inflate(reader: impl Read, claimed: u64, packed_len: usize) -> Option<Arc<[u8]>> {
    let limit = claimed.min((packed_len as u64).saturating_mul(MAX_EXPANSION));
    let mut bytes = Vec::new();
    reader.take(limit).read_to_end(&mut bytes).ok()?;
    Some(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, value: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        note.extend((name.len() as u32).to_le_bytes());
        note.extend((value.len() as u32).to_le_bytes());
        note.extend(kind.to_le_bytes());
        note.extend(name);
        note.resize(note.len().next_multiple_of(4), 0);
        note.extend(value);
        note.resize(note.len().next_multiple_of(4), 0);
        note
    }

    #[test]
    fn build_id_is_found_behind_other_notes() {
        let mut notes = note(b"GNU\0", 5, &[1; 16]);
        notes.extend(note(b"Xen\0", NT_GNU_BUILD_ID, &[2; 5]));
        notes.extend(note(b"GNU\0", NT_GNU_BUILD_ID, &[3; 20]));
        assert_eq!(decode_build_id(&notes, RunTimeEndian::Little), Some(vec![3; 20]));
        for cut in 0..notes.len() {
            assert_eq!(decode_build_id(&notes[..cut], RunTimeEndian::Little), None, "cut at {cut}");
        }
    }

    #[test]
    fn a_stream_that_expands_too_much_is_cut() {
        let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut packed, &vec![0; 1 << 20]).unwrap();
        let packed = packed.finish().unwrap();
        let bytes = inflate(flate2::read::ZlibDecoder::new(&packed[..]), u64::MAX, packed.len()).unwrap();
        assert_eq!(bytes.len() as u64, packed.len() as u64 * MAX_EXPANSION);
    }
}
