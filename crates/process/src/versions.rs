//! Symbol versions: which ones a library needs of another, which ones a library defines, and which C library a program
//! will load.
//!
//! A preloaded library that needs a version which the program's own C library lacks ends the program before `main`, so
//! it is looked at first. Sources: ld.so(8), and "ELF Symbol Versioning" in the Linux Standard Base.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use object::elf::{self, FileHeader64};
use object::read::elf::{Dyn, FileHeader, SectionTable};
use object::read::{ReadCache, ReadRef};
use object::{Endianness, SectionIndex};

use crate::elf::ElfError;

type Header = FileHeader64<Endianness>;

/// More entries than any library has; a damaged table may lead in circles.
const MOST_ENTRIES: usize = 4096;

fn corrupt(error: object::read::Error) -> ElfError {
    ElfError::Corrupt(error.to_string())
}

fn open<'data, R: ReadRef<'data>>(data: R) -> Result<(Endianness, SectionTable<'data, Header, R>), ElfError> {
    let header = Header::parse(data).map_err(corrupt)?;
    let endian = header.endian().map_err(corrupt)?;
    let sections = header.sections(endian, data).map_err(corrupt)?;
    Ok((endian, sections))
}

/// The versions that the 64-bit library with these bytes cannot do without, of the library with this name.
///
/// # Errors
/// It is no such library, or its tables are damaged.
pub fn decode_needed_versions(bytes: &[u8], of: &str) -> Result<Vec<String>, ElfError> {
    let (endian, sections) = open(bytes)?;
    let Some((needs, link)) = sections.gnu_verneed(endian, bytes).map_err(corrupt)? else { return Ok(Vec::new()) };
    let strings = sections.strings(endian, bytes, link).map_err(corrupt)?;
    let mut versions = Vec::new();
    for need in needs.take(MOST_ENTRIES) {
        let (need, entries) = need.map_err(corrupt)?;
        if need.file(endian, strings).map_err(corrupt)? != of.as_bytes() {
            continue;
        }
        for entry in entries.take(MOST_ENTRIES) {
            let entry = entry.map_err(corrupt)?;
            if entry.vna_flags.get(endian).0 & elf::VER_FLG_WEAK.0 == 0 {
                versions.push(String::from_utf8_lossy(entry.name(endian, strings).map_err(corrupt)?).into_owned());
            }
        }
    }
    Ok(versions)
}

/// The versions that a 64-bit library defines, in the order of its table.
///
/// # Errors
/// The file cannot be read, is no such library, or its tables are damaged.
pub fn read_defined_versions(path: &Path) -> Result<Vec<String>, ElfError> {
    let data = ReadCache::new(File::open(path)?);
    let data = &data;
    let (endian, sections) = open(data)?;
    let Some((definitions, link)) = sections.gnu_verdef(endian, data).map_err(corrupt)? else { return Ok(Vec::new()) };
    let strings = sections.strings(endian, data, link).map_err(corrupt)?;
    let mut versions = Vec::new();
    for definition in definitions.take(MOST_ENTRIES) {
        // The first name is the version's own; others are those that it inherits from.
        let (_, mut names) = definition.map_err(corrupt)?;
        if let Some(name) = names.next().map_err(corrupt)? {
            versions.push(String::from_utf8_lossy(name.name(endian, strings).map_err(corrupt)?).into_owned());
        }
    }
    Ok(versions)
}

/// The names of the libraries that a 64-bit program or library asks for itself.
///
/// # Errors
/// The file cannot be read, is no such file, or its tables are damaged.
pub fn read_needed(path: &Path) -> Result<Vec<String>, ElfError> {
    let data = ReadCache::new(File::open(path)?);
    let data = &data;
    let (endian, sections) = open(data)?;
    let Some((entries, link)) = sections.dynamic(endian, data).map_err(corrupt)? else { return Ok(Vec::new()) };
    let strings = sections.strings(endian, data, link).map_err(corrupt)?;
    let needed = entries.iter().filter(|entry| entry.d_tag(endian) == elf::DT_NEEDED).take(MOST_ENTRIES);
    let name = |entry: &elf::Dyn64<Endianness>| {
        let offset = u32::try_from(entry.d_val(endian)).unwrap_or(u32::MAX);
        let name = strings.get(offset).map_err(|()| ElfError::Corrupt("the name of a library lies nowhere".into()))?;
        Ok(String::from_utf8_lossy(name).into_owned())
    };
    needed.map(name).collect()
}

/// The file that `program` will load as `library`: searched in its run path, in `library_path` (the value of
/// `LD_LIBRARY_PATH`) and beside its loader, with which the C library is always installed. `None` when it is in none of
/// them; the loader's own cache and built-in folders are not read.
///
/// # Errors
/// The program cannot be read or is damaged.
pub fn find_library(
    program: &Path,
    interpreter: &Path,
    library: &str,
    library_path: Option<&OsStr>,
) -> Result<Option<PathBuf>, ElfError> {
    let mut folders = Vec::new();
    let RunPath { rpath, runpath } = read_run_path(program)?;
    let origin = program.canonicalize()?.parent().map(Path::to_path_buf).unwrap_or_default();
    let mut add = |list: &[u8], separators: &[u8]| {
        for entry in list.split(|byte| separators.contains(byte)).filter(|entry| !entry.is_empty()) {
            folders.push(expand_origin(entry, &origin));
        }
    };
    if runpath.is_empty() {
        add(&rpath, b":");
    }
    add(library_path.unwrap_or_default().as_bytes(), b":;");
    add(&runpath, b":");
    folders.extend(interpreter.canonicalize()?.parent().map(Path::to_path_buf));
    // The loader passes over libraries for other machines.
    let fits = |path: &PathBuf| path.is_file() && read_defined_versions(path).is_ok();
    Ok(folders.into_iter().map(|folder| folder.join(library)).find(fits))
}

/// `$ORIGIN` and `${ORIGIN}` stand for the program's folder.
fn expand_origin(entry: &[u8], origin: &Path) -> PathBuf {
    for token in [&b"$ORIGIN"[..], b"${ORIGIN}"] {
        if let Some(rest) = entry.strip_prefix(token) {
            let rest = rest.strip_prefix(b"/").unwrap_or(rest);
            return origin.join(OsStr::from_bytes(rest));
        }
    }
    PathBuf::from(OsStr::from_bytes(entry))
}

#[derive(Default)]
struct RunPath {
    rpath: Vec<u8>,
    runpath: Vec<u8>,
}

fn read_run_path(program: &Path) -> Result<RunPath, ElfError> {
    let data = ReadCache::new(File::open(program)?);
    let data = &data;
    let (endian, sections) = open(data)?;
    let mut found = RunPath::default();
    // A program may lack section headers; then its run path is not known here, and the loader's folder decides.
    let Some((entries, link)) = sections.dynamic(endian, data).map_err(corrupt)? else { return Ok(found) };
    let link = if link == SectionIndex(0) { return Ok(found) } else { link };
    let strings = sections.strings(endian, data, link).map_err(corrupt)?;
    for entry in entries {
        let tag = entry.d_tag(endian);
        if tag == elf::DT_RPATH || tag == elf::DT_RUNPATH {
            let offset = u32::try_from(entry.d_val(endian)).unwrap_or(u32::MAX);
            let text = strings.get(offset).unwrap_or_default().to_vec();
            if tag == elf::DT_RPATH { found.rpath = text } else { found.runpath = text }
        }
    }
    Ok(found)
}
