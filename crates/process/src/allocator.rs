//! Allocators that are linked into a program itself: its calls to them never pass the dynamic loader, so an injected
//! library cannot see them.
//!
//! Judged by the symbol table, and only where it leaves no doubt: a program without one, or one that may pass its calls
//! on to the C library, is not accused.

use std::fs::File;
use std::path::Path;

use object::Endianness;
use object::elf::{self, FileHeader64};
use object::read::ReadCache;
use object::read::elf::{FileHeader, Sym};

use crate::elf::ElfError;

/// Names that only an allocator's own code defines: what allocates, what releases, what the allocator is called.
const KNOWN: [(&str, &str, &str); 7] = [
    ("je_malloc", "je_free", "jemalloc"),
    ("_rjem_malloc", "_rjem_sdallocx", "jemalloc"),
    ("tc_malloc", "tc_free", "tcmalloc"),
    ("mi_malloc", "mi_free", "mimalloc"),
    ("rpmalloc", "rpfree", "rpmalloc"),
    ("sn_malloc", "sn_free", "snmalloc"),
    ("scalable_malloc", "scalable_free", "tbbmalloc"),
];
/// With these a function called `malloc` can reach the C library's.
const WAYS_OUT: [&str; 5] = ["dlsym", "dlvsym", "__libc_malloc", "__libc_memalign", "__libc_calloc"];

/// An allocator inside a program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OwnAllocator {
    /// Its name, where the symbols tell it.
    pub name: Option<&'static str>,
    /// The function that allocates.
    pub allocates: &'static str,
    /// The function that releases.
    pub releases: &'static str,
}

/// The allocator that a 64-bit program has in itself; `None` when its symbol table, if it has one, shows none.
///
/// # Errors
/// The file cannot be read, or its tables are damaged.
pub fn read_own_allocator(path: &Path) -> Result<Option<OwnAllocator>, ElfError> {
    let corrupt = |error: object::read::Error| ElfError::Corrupt(error.to_string());
    let data = ReadCache::new(File::open(path)?);
    let data = &data;
    let header = FileHeader64::<Endianness>::parse(data).map_err(corrupt)?;
    let endian = header.endian().map_err(corrupt)?;
    let sections = header.sections(endian, data).map_err(corrupt)?;
    let symbols = sections.symbols(endian, data, elf::SHT_SYMTAB).map_err(corrupt)?;
    let mut defined = [[false; 2]; KNOWN.len() + 1];
    for symbol in symbols.iter() {
        if symbol.st_type() != elf::STT_FUNC || symbol.is_undefined(endian) {
            continue;
        }
        // A damaged name is the name of nothing.
        let name = symbol.name(endian, symbols.strings()).unwrap_or_default();
        // Most names end the search here.
        if !name.ends_with(b"alloc") && !name.ends_with(b"free") && !name.ends_with(b"allocx") {
            continue;
        }
        for (found, (allocates, releases, _)) in
            defined.iter_mut().zip(KNOWN.into_iter().chain([("malloc", "free", "")]))
        {
            found[0] |= name == allocates.as_bytes();
            found[1] |= name == releases.as_bytes();
        }
    }
    for (found, (allocates, releases, name)) in defined.iter().zip(KNOWN) {
        if *found == [true; 2] {
            return Ok(Some(OwnAllocator { name: Some(name), allocates, releases }));
        }
    }
    if defined[KNOWN.len()] != [true; 2] {
        return Ok(None);
    }
    let imported = sections.symbols(endian, data, elf::SHT_DYNSYM).map_err(corrupt)?;
    let may_pass_on = imported.iter().filter(|symbol| symbol.is_undefined(endian)).any(|symbol| {
        let name = symbol.name(endian, imported.strings()).unwrap_or_default();
        WAYS_OUT.iter().any(|way| way.as_bytes() == name)
    });
    Ok((!may_pass_on).then_some(OwnAllocator { name: None, allocates: "malloc", releases: "free" }))
}
