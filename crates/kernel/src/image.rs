//! Files of the kernel with names: where a function lies in `vmlinux` or in a module, and modules made readable.
//!
//! A module (`.ko`) is an object file that is not linked: its sections have no addresses yet, and its debug information is
//! full of holes that relocations fill. Nothing that reads DWARF by address can use it so. [`link`] does what the kernel
//! does at load, with addresses of its own choice: places the sections one behind the other, moves the symbols, and
//! applies the relocations of the debug sections. The result is only looked at, never run.
//!
//! Only little-endian 64-bit files. Sources: System V gABI, "Object Files"; the psABIs of x86-64 and AArch64; Linux
//! `kernel/module/main.c`, `layout_sections`.

use std::collections::HashMap;

use foldhash::fast::RandomState;

const ET_REL: u64 = 1;
const ET_DYN: u16 = 3;
const SHT_SYMTAB: u64 = 2;
const SHT_RELA: u64 = 4;
const SHT_NOTE: u64 = 7;
const SHT_NOBITS: u64 = 8;
const SHF_ALLOC: u64 = 2;
const SHF_COMPRESSED: u64 = 0x800;
const SHN_LORESERVE: u64 = 0xff00;
const STT_FUNC: u64 = 2;
const EM_X86_64: u64 = 62;
const EM_AARCH64: u64 = 183;
const HEADER_BYTES: u64 = 64;
const SYMBOL_BYTES: u64 = 24;
const RELA_BYTES: u64 = 24;
/// Where the first section comes to lie: address 0 means "nowhere" to readers.
const FIRST_ADDRESS: u64 = 0x1000;

/// A little-endian number of `bytes` bytes.
fn number(data: &[u8], at: u64, bytes: u64) -> Option<u64> {
    let (at, end) = (usize::try_from(at).ok()?, usize::try_from(at.checked_add(bytes)?).ok()?);
    Some(data.get(at..end)?.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
}

fn put(data: &mut [u8], at: u64, bytes: u64, value: u64) -> Option<()> {
    let (at, end) = (usize::try_from(at).ok()?, usize::try_from(at.checked_add(bytes)?).ok()?);
    data.get_mut(at..end)?.copy_from_slice(value.to_le_bytes().get(..end - at)?);
    Some(())
}

/// A section header, and where it stands.
#[derive(Clone, Copy, Debug)]
struct Section {
    header: u64,
    name: u64,
    kind: u64,
    flags: u64,
    address: u64,
    offset: u64,
    size: u64,
    link: u64,
    info: u64,
    align: u64,
}

fn sections(data: &[u8]) -> Option<Vec<Section>> {
    if !data.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, count) = (number(data, 40, 8)?, number(data, 60, 2)?);
    let section = |index: u64| {
        let header = table.checked_add(index * HEADER_BYTES)?;
        let field = |at: u64, bytes: u64| number(data, header.checked_add(at)?, bytes);
        Some(Section {
            header,
            name: field(0, 4)?,
            kind: field(4, 4)?,
            flags: field(8, 8)?,
            address: field(16, 8)?,
            offset: field(24, 8)?,
            size: field(32, 8)?,
            link: field(40, 4)?,
            info: field(44, 4)?,
            align: field(48, 8)?,
        })
    };
    (0..count).map(section).collect()
}

fn name_of<'a>(data: &'a [u8], sections: &[Section], section: &Section) -> Option<&'a [u8]> {
    let names = sections.get(usize::try_from(number(data, 62, 2)?).ok()?)?;
    text(data, names, section.name)
}

/// The text at an offset of a string table.
fn text<'a>(data: &'a [u8], table: &Section, offset: u64) -> Option<&'a [u8]> {
    let (begin, end) = (table.offset.checked_add(offset)?, table.offset.checked_add(table.size)?);
    let bytes = data.get(usize::try_from(begin).ok()?..usize::try_from(end).ok()?)?;
    bytes.get(..memchr::memchr(0, bytes)?)
}

/// The GNU build id in the bytes of notes; also of `/sys/kernel/notes` and `/sys/module/NAME/notes/...`.
pub fn decode_build_id(notes: &[u8]) -> Option<Vec<u8>> {
    const NT_GNU_BUILD_ID: u64 = 3;
    let mut at = 0;
    loop {
        let (name_bytes, bytes, kind) = (number(notes, at, 4)?, number(notes, at + 4, 4)?, number(notes, at + 8, 4)?);
        let name = at + 12;
        let contents = name.checked_add(name_bytes.checked_next_multiple_of(4)?)?;
        let range = |from: u64, bytes: u64| {
            notes.get(usize::try_from(from).ok()?..usize::try_from(from.checked_add(bytes)?).ok()?)
        };
        if kind == NT_GNU_BUILD_ID && range(name, name_bytes)? == b"GNU\0" {
            return Some(range(contents, bytes)?.to_vec());
        }
        at = contents.checked_add(bytes.checked_next_multiple_of(4)?)?;
    }
}

/// A file whose functions can be found by name.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// By name: address and size of each function that is called so.
    functions: HashMap<Box<[u8]>, Vec<(u64, u64)>, RandomState>,
    /// Its build id, if it has one.
    pub build_id: Option<Vec<u8>>,
    /// Whether it has DWARF.
    pub has_debug_info: bool,
}

impl Image {
    /// The functions of a file in its linked form; of one that is none, or is damaged, what can be read.
    pub fn decode(data: &[u8]) -> Self {
        let mut image = Self::default();
        let Some(sections) = sections(data) else { return image };
        for section in &sections {
            let contents =
                || data.get(usize::try_from(section.offset).ok()?..)?.get(..usize::try_from(section.size).ok()?);
            image.has_debug_info |= name_of(data, &sections, section) == Some(b".debug_info") && section.size > 0;
            if section.kind == SHT_NOTE && image.build_id.is_none() {
                image.build_id = contents().and_then(decode_build_id);
            }
            if section.kind == SHT_SYMTAB
                && let Some(strings) = usize::try_from(section.link).ok().and_then(|link| sections.get(link))
            {
                image.add_symbols(data, section, strings);
            }
        }
        image
    }

    fn add_symbols(&mut self, data: &[u8], table: &Section, strings: &Section) {
        for index in 0..table.size / SYMBOL_BYTES {
            let at = table.offset.saturating_add(index * SYMBOL_BYTES);
            let Some((name, kind, section)) = number(data, at, 4)
                .zip(number(data, at.saturating_add(4), 1))
                .zip(number(data, at.saturating_add(6), 2))
                .map(|((name, kind), section)| (name, kind, section))
            else {
                return;
            };
            let place = number(data, at.saturating_add(8), 8).zip(number(data, at.saturating_add(16), 8));
            let Some((address, size)) = place else { return };
            if kind & 0xf == STT_FUNC
                && section != 0
                && let Some(name) = text(data, strings, name)
            {
                self.functions.entry(name.into()).or_default().push((address, size));
            }
        }
    }

    /// The address of a function of this name and size; `None` when there is none, or several that differ. A size of 0
    /// is not compared.
    pub fn find(&self, name: &str, size: u64) -> Option<u64> {
        // The kernel counts the padding up to the next function as part of one.
        let fits = |&&(_, own): &&(u64, u64)| size == 0 || own <= size && size - own < 64;
        let mut all = self.functions.get(name.as_bytes())?.iter().filter(fits).map(|&(address, _)| address);
        let first = all.next()?;
        all.all(|other| other == first).then_some(first)
    }
}

/// A module with addresses and with relocated debug information; a linked file as it is. `None` for what is no file of
/// this kind.
pub fn link(mut data: Vec<u8>) -> Option<Vec<u8>> {
    let sections = sections(&data)?;
    if number(&data, 16, 2)? != ET_REL {
        return Some(data);
    }
    let machine = number(&data, 18, 2)?;
    let mut next = FIRST_ADDRESS;
    let mut addresses = vec![0; sections.len()];
    for (section, address) in sections.iter().zip(&mut addresses).filter(|(section, _)| section.flags & SHF_ALLOC != 0)
    {
        next = next.checked_next_multiple_of(section.align.clamp(1, 1 << 20))?;
        *address = next;
        put(&mut data, section.header + 16, 8, next)?;
        next = next.checked_add(section.size)?;
    }
    let mut values: HashMap<u64, Vec<u64>, RandomState> = HashMap::default();
    for (index, table) in sections.iter().enumerate().filter(|(_, section)| section.kind == SHT_SYMTAB) {
        let mut of_table = Vec::new();
        for symbol in 0..table.size / SYMBOL_BYTES {
            let at = table.offset.checked_add(symbol * SYMBOL_BYTES)?;
            let (section, value) = (number(&data, at + 6, 2)?, number(&data, at + 8, 8)?);
            let base = if section < SHN_LORESERVE { addresses.get(section as usize).copied().unwrap_or(0) } else { 0 };
            let value = value.wrapping_add(base);
            put(&mut data, at + 8, 8, value)?;
            of_table.push(value);
        }
        values.insert(index as u64, of_table);
    }
    for table in sections.iter().filter(|section| section.kind == SHT_RELA) {
        let Some(target) = usize::try_from(table.info).ok().and_then(|info| sections.get(info)) else { continue };
        let is_wanted = name_of(&data, &sections, target).is_some_and(|name| name.starts_with(b".debug"));
        if !is_wanted || target.flags & (SHF_ALLOC | SHF_COMPRESSED) != 0 || target.kind == SHT_NOBITS {
            continue;
        }
        let Some(symbols) = values.get(&table.link) else { continue };
        // A damaged table may claim to be longer than the file.
        let size = table.size.min(data.len() as u64);
        for index in 0..size / RELA_BYTES {
            relocate(&mut data, machine, table.offset.checked_add(index * RELA_BYTES)?, target, symbols);
        }
    }
    put(&mut data, 16, 2, ET_DYN.into())?;
    Some(data)
}

/// Applies one relocation; one that is damaged or of an unknown kind is left out.
fn relocate(data: &mut [u8], machine: u64, at: u64, target: &Section, symbols: &[u64]) -> Option<()> {
    let (offset, info, addend) = (number(data, at, 8)?, number(data, at + 8, 8)?, number(data, at + 16, 8)?);
    let value = symbols.get(usize::try_from(info >> 32).ok()?)?.wrapping_add(addend);
    let relative = value.wrapping_sub(target.address.wrapping_add(offset));
    let (bytes, value) = match (machine, info & 0xffff_ffff) {
        (EM_X86_64, 1) | (EM_AARCH64, 257) => (8, value),
        (EM_X86_64, 10 | 11) | (EM_AARCH64, 258) => (4, value),
        (EM_X86_64, 24) | (EM_AARCH64, 260) => (8, relative),
        (EM_X86_64, 2) | (EM_AARCH64, 261) => (4, relative),
        _ => return None,
    };
    if offset.checked_add(bytes)? > target.size {
        return None;
    }
    put(data, target.offset.checked_add(offset)?, bytes, value)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn compiled(source: &str, words: &[&str]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let (c, o) = (folder.path().join("x.c"), folder.path().join("x.o"));
        std::fs::write(&c, source).unwrap();
        let status = Command::new("cc").args(words).arg("-o").arg(&o).arg(&c).status().unwrap();
        assert!(status.success());
        std::fs::read(&o).unwrap()
    }

    const SOURCE: &str = "__attribute__((section(\".init.text\"))) int first(int a) { return a * 3; }\n\
                          int second(int a) { return first(a) + 1; }\n";

    #[test]
    fn a_module_gets_addresses() {
        let object = compiled(SOURCE, &["-g", "-O1", "-c"]);
        assert_eq!(Image::decode(&object).find("second", 0), Some(0), "not linked yet");
        let linked = link(object).unwrap();
        let image = Image::decode(&linked);
        let (first, second) = (image.find("first", 0).unwrap(), image.find("second", 0).unwrap());
        assert!(first >= FIRST_ADDRESS && second >= FIRST_ADDRESS && first != second);
        assert!(image.has_debug_info);
        assert_eq!(image.find("second", 1 << 20), None, "a function of another size is another one");
        assert_eq!(image.find("third", 0), None);
    }

    /// What binutils makes of it with the same section addresses is the oracle.
    #[test]
    fn lines_are_those_that_a_linker_gives() {
        let linked = link(compiled(SOURCE, &["-g", "-O1", "-c"])).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("linked");
        std::fs::write(&file, &linked).unwrap();
        let image = Image::decode(&linked);
        for (function, line) in [("first", ":1"), ("second", ":2")] {
            let address = format!("{:#x}", image.find(function, 0).unwrap());
            let output = Command::new("addr2line").args(["-f", "-e"]).arg(&file).arg(&address).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.starts_with(function) && text.trim_end().ends_with(line), "{text}");
        }
    }

    #[test]
    fn what_is_damaged_is_no_image() {
        let object = compiled(SOURCE, &["-g", "-c"]);
        for end in (0..object.len()).step_by(3) {
            let cut = object[..end].to_vec();
            Image::decode(&cut);
            let _ = link(cut);
        }
        for at in (0..object.len().min(2048)).chain(object.len() - 2048..object.len()) {
            for value in [0, 0x7f, 0xff] {
                let mut changed = object.clone();
                changed[at] = value;
                Image::decode(&changed);
                let _ = link(changed);
            }
        }
        assert!(link(b"noise".to_vec()).is_none());
    }

    #[test]
    fn build_ids() {
        let note = [&[4, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0][..], b"GNU\0", &[0xab, 0xcd]].concat();
        assert_eq!(decode_build_id(&note), Some(vec![0xab, 0xcd]));
        let other = [&[6, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0][..], b"Linux\0\0\0", &[1, 0, 0, 0], &note].concat();
        assert_eq!(decode_build_id(&other), Some(vec![0xab, 0xcd]));
        assert_eq!(decode_build_id(&note[..8]), None);
        assert_eq!(decode_build_id(&[0xff; 64]), None);
    }
}
