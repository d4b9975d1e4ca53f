//! Functions of a mapped ELF file by name, its unwind table and its build id. Total: any file gives an answer.

use std::ffi::CStr;

/// A symbol of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol<'a> {
    /// Its name, without a version.
    pub name: &'a [u8],
    /// Its address as linked.
    pub value: u64,
    /// Its size.
    pub bytes: u64,
    /// It is resolved by a call (`STT_GNU_IFUNC`).
    pub is_indirect: bool,
}

/// A file that can be looked into.
pub struct SymbolFile {
    start: *const u8,
    bytes: usize,
}

const SHT_SYMTAB: u32 = 2;
const SHT_DYNSYM: u32 = 11;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const PT_DYNAMIC: u32 = 2;
const PF_X: u32 = 1;
const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
const NT_GNU_BUILD_ID: u32 = 3;
/// Source: Go, `cmd/link/internal/ld/elf.go`.
const NT_GO_BUILD_ID: u32 = 4;
const DT_SONAME: u64 = 14;
const DT_STRTAB: u64 = 5;
const STT_FUNC: u8 = 2;
const STT_GNU_IFUNC: u8 = 10;

/// What the program headers of a file say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Lowest and highest page of its segments, as linked.
    pub extent: (u64, u64),
    /// Address of `.eh_frame_hdr` as linked.
    pub eh_frame_hdr: Option<u64>,
    /// GNU build id.
    pub build_id: Vec<u8>,
    /// `DT_SONAME`.
    pub soname: Vec<u8>,
    /// Go's compiler made it.
    pub is_go: bool,
}

impl SymbolFile {
    /// Maps a file to look into; `None` when that is not possible.
    pub fn open(path: &CStr) -> Option<Self> {
        // SAFETY: plain calls; the map is private and at an address of the kernel's choice.
        unsafe {
            let fd = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
            if fd < 0 {
                return None;
            }
            let mut stat: libc::stat = std::mem::zeroed();
            let known = libc::fstat(fd, &mut stat) == 0 && stat.st_mode & libc::S_IFMT == libc::S_IFREG;
            let bytes = if known { stat.st_size as usize } else { 0 };
            let at = if bytes > 64 {
                libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ, libc::MAP_PRIVATE, fd, 0)
            } else {
                libc::MAP_FAILED
            };
            libc::close(fd);
            let file = (at != libc::MAP_FAILED).then(|| Self { start: at as *const u8, bytes })?;
            (file.file().get(..5) == Some(b"\x7fELF\x02")).then_some(file)
        }
    }

    fn file(&self) -> &[u8] {
        // SAFETY: mapped until `self` is dropped. A file that shrinks meanwhile makes an access fault, as in ld.so.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }

    fn at<const N: usize>(&self, offset: u64) -> Option<[u8; N]> {
        let offset = usize::try_from(offset).ok()?;
        self.file().get(offset..offset.checked_add(N)?)?.try_into().ok()
    }

    fn long(&self, offset: u64) -> Option<u64> {
        self.at(offset).map(u64::from_le_bytes)
    }

    fn word(&self, offset: u64) -> Option<u32> {
        self.at(offset).map(u32::from_le_bytes)
    }

    fn half(&self, offset: u64) -> Option<u16> {
        self.at(offset).map(u16::from_le_bytes)
    }

    fn string(&self, offset: u64) -> Option<&[u8]> {
        let rest = self.file().get(usize::try_from(offset).ok()?..)?;
        let end = rest.iter().take(4096).position(|&byte| byte == 0)?;
        rest.get(..end)
    }

    /// Each function with a name and an address.
    pub fn functions(&self, mut each: impl FnMut(Symbol<'_>)) {
        let Some((sections, count)) = self.long(40).zip(self.half(60)) else { return };
        for number in 0..u64::from(count) {
            let header = sections.saturating_add(64 * number);
            if !matches!(self.word(header.saturating_add(4)), Some(SHT_SYMTAB | SHT_DYNSYM)) {
                continue;
            }
            let _ = self.table(sections, header, &mut each);
        }
    }

    fn table(&self, sections: u64, header: u64, each: &mut impl FnMut(Symbol<'_>)) -> Option<()> {
        let (offset, bytes) = (self.long(header + 24)?, self.long(header + 32)?);
        let link = u64::from(self.word(header + 40)?);
        let strings = self.long(sections.checked_add(64 * link + 24)?)?;
        for number in 0..bytes / 24 {
            let symbol = offset.checked_add(24 * number)?;
            let [kind] = self.at(symbol + 4)?;
            let value = self.long(symbol + 8)?;
            if value == 0 || !matches!(kind & 15, STT_FUNC | STT_GNU_IFUNC) {
                continue;
            }
            let name = self.string(strings.checked_add(self.word(symbol)?.into())?)?;
            let name = name.split(|&byte| byte == b'@').next().unwrap_or_default();
            each(Symbol { name, value, bytes: self.long(symbol + 16)?, is_indirect: kind & 15 == STT_GNU_IFUNC });
        }
        Some(())
    }

    /// What the program headers say.
    pub fn facts(&self) -> Facts {
        let mut facts = Facts { extent: (u64::MAX, 0), ..Facts::default() };
        let mut dynamic = None;
        let Some((headers, count)) = self.long(32).zip(self.half(56)) else { return facts };
        for number in 0..u64::from(count) {
            let at = headers.saturating_add(56 * number);
            let Some(kind) = self.word(at) else { break };
            let field = |index: u64| self.long(at.saturating_add(index)).unwrap_or(0);
            let (offset, address, file_bytes, bytes) = (field(8), field(16), field(32), field(40));
            match kind {
                PT_LOAD => {
                    facts.extent.0 = facts.extent.0.min(address & !4095);
                    facts.extent.1 = facts.extent.1.max(address.saturating_add(bytes).saturating_add(4095) & !4095);
                }
                PT_GNU_EH_FRAME => facts.eh_frame_hdr = Some(address),
                PT_NOTE => {
                    if let Some(id) = self.note(offset, file_bytes, *b"GNU\0", NT_GNU_BUILD_ID) {
                        facts.build_id = id.to_vec();
                    }
                    facts.is_go |= self.note(offset, file_bytes, *b"Go\0\0", NT_GO_BUILD_ID).is_some();
                }
                PT_DYNAMIC => dynamic = Some((offset, file_bytes)),
                _ => {}
            }
        }
        if let Some(soname) = dynamic.and_then(|(offset, bytes)| self.soname(offset, bytes)) {
            facts.soname = soname.to_vec();
        }
        facts
    }

    /// The address as linked of what lies at an offset of the file, in an executable mapping that begins there.
    ///
    /// Segments may share a page of the file, as lld lays them out: then it is at two addresses, and the mapping's is that
    /// of the segment which begins with the page and may be executed.
    pub fn address_of_code(&self, wanted: u64) -> Option<u64> {
        let (headers, count) = self.long(32).zip(self.half(56))?;
        let segments = (0..u64::from(count)).filter_map(|number| {
            let at = headers.checked_add(56 * number)?;
            if self.word(at)? != PT_LOAD {
                return None;
            }
            let (offset, address, bytes) = (self.long(at + 8)?, self.long(at + 16)?, self.long(at + 32)?);
            let page = offset & !4095;
            let is_within = page <= wanted && wanted < offset.checked_add(bytes)?;
            let is_code = self.word(at + 4)? & PF_X != 0;
            is_within.then(|| ((is_code, page == wanted), (address & !4095).wrapping_add(wanted - page)))
        });
        segments.max_by_key(|&(fit, _)| fit).map(|(_, address)| address)
    }

    fn offset_of_address(&self, wanted: u64) -> Option<u64> {
        let (headers, count) = self.long(32).zip(self.half(56))?;
        (0..u64::from(count)).find_map(|number| {
            let at = headers.checked_add(56 * number)?;
            if self.word(at)? != PT_LOAD {
                return None;
            }
            let (offset, address, bytes) = (self.long(at + 8)?, self.long(at + 16)?, self.long(at + 32)?);
            (address <= wanted && wanted - address < bytes).then(|| offset.wrapping_add(wanted - address))
        })
    }

    fn soname(&self, offset: u64, bytes: u64) -> Option<&[u8]> {
        let (mut name, mut strings) = (None, None);
        for number in 0..bytes / 16 {
            let at = offset.checked_add(16 * number)?;
            match self.long(at)? {
                0 => break,
                DT_SONAME => name = self.long(at + 8),
                DT_STRTAB => strings = self.long(at + 8),
                _ => {}
            }
        }
        self.string(self.offset_of_address(strings?)?.checked_add(name?)?)
    }

    fn note(&self, mut offset: u64, bytes: u64, owner: [u8; 4], wanted: u32) -> Option<&[u8]> {
        let end = offset.checked_add(bytes)?;
        while offset.checked_add(12)? <= end {
            let (name, description) = (u64::from(self.word(offset)?), u64::from(self.word(offset + 4)?));
            let kind = self.word(offset + 8)?;
            let name_at = offset + 12;
            let description_at = name_at + name.next_multiple_of(4);
            if kind == wanted && self.at::<4>(name_at) == Some(owner) {
                return self.file().get(description_at as usize..(description_at + description) as usize);
            }
            offset = description_at + description.next_multiple_of(4);
        }
        None
    }
}

impl Drop for SymbolFile {
    fn drop(&mut self) {
        // SAFETY: the map is this object's alone.
        unsafe { libc::munmap(self.start as *mut _, self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_c_library_has_its_functions() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = maps.lines().find(|line| line.contains("/libc.so") || line.contains("/libc-2")).unwrap();
        let path = std::ffi::CString::new(line.split_whitespace().last().unwrap()).unwrap();
        let base = u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
        let file = SymbolFile::open(&path).unwrap();
        let facts = file.facts();
        assert_eq!(facts.soname, b"libc.so.6");
        assert_eq!(facts.build_id.len(), 20);
        assert!(facts.eh_frame_hdr.is_some_and(|at| at < facts.extent.1));
        let mut found = std::collections::HashMap::new();
        file.functions(|symbol| {
            found.insert(symbol.name.to_vec(), (symbol.value, symbol.is_indirect));
        });
        assert!(found[&b"strlen"[..]].1 && !found[&b"malloc"[..]].1);
        // The loader agrees on where `malloc` is.
        // SAFETY: a plain call with a C string.
        let malloc = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"malloc".as_ptr()) } as u64;
        let first = file.address_of_code(0).unwrap();
        assert_eq!(found[&b"malloc"[..]].0 + base - first, malloc);
    }

    /// Two segments of lld's kind: the first ends, and the second begins, within one page of the file.
    #[test]
    fn a_page_of_two_segments_is_the_mappings_own() {
        let mut bytes = vec![0_u8; 0x3000];
        bytes[..5].copy_from_slice(b"\x7fELF\x02");
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[56..58].copy_from_slice(&2_u16.to_le_bytes());
        // Type, flags, offset, address, physical address, bytes in the file and in memory, alignment.
        for (number, (flags, offset, address, size)) in
            [(4_u32, 0_u64, 0_u64, 0x1888_u64), (5, 0x1888, 0x2888, 0x1000)].into_iter().enumerate()
        {
            let mut header = [1_u32.to_le_bytes(), flags.to_le_bytes()].concat();
            header.extend([offset, address, address, size, size, 0x1000].iter().flat_map(|word| word.to_le_bytes()));
            bytes[64 + 56 * number..][..56].copy_from_slice(&header);
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        std::fs::write(&path, &bytes).unwrap();
        let file = SymbolFile::open(&std::ffi::CString::new(path.to_str().unwrap()).unwrap()).unwrap();
        assert_eq!(file.address_of_code(0x1000), Some(0x2000), "not 0x1000, where the first segment has it");
        assert_eq!(file.address_of_code(0), Some(0));
        assert_eq!(file.address_of_code(0x2000), Some(0x3000));
        assert_eq!(file.address_of_code(0x3000), None);
        assert!(!file.facts().is_go);

        // A third header: the note that Go's linker writes, with a build id of four bytes.
        bytes[56..58].copy_from_slice(&3_u16.to_le_bytes());
        let header = [4_u32.to_le_bytes(), 4_u32.to_le_bytes()].concat();
        let header =
            [header, [0x200_u64, 0, 0, 20, 20, 4].iter().flat_map(|word| word.to_le_bytes()).collect()].concat();
        bytes[64 + 112..][..56].copy_from_slice(&header);
        let note: Vec<u8> = [4_u32, 4, 4].iter().flat_map(|word| word.to_le_bytes()).chain(*b"Go\0\0abcd").collect();
        bytes[0x200..0x200 + note.len()].copy_from_slice(&note);
        std::fs::write(&path, &bytes).unwrap();
        let file = SymbolFile::open(&std::ffi::CString::new(path.to_str().unwrap()).unwrap()).unwrap();
        assert!(file.facts().is_go);
    }

    #[test]
    fn cut_and_changed_files_give_an_answer() {
        let program = std::fs::read("/proc/self/exe").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        for at in (0..512).step_by(3) {
            let mut bytes = program.clone();
            bytes[at] ^= 0xff;
            bytes.truncate(if at % 2 == 0 { 70 + at * 50 } else { bytes.len() });
            std::fs::write(&path, &bytes).unwrap();
            if let Some(file) = SymbolFile::open(&name) {
                let mut count = 0;
                file.functions(|_| count += 1);
                let _ = (file.facts(), file.address_of_code(4096), count);
            }
        }
        assert!(SymbolFile::open(c"/").is_none() && SymbolFile::open(c"/nowhere").is_none());
    }
}
