//! Frames of an address from DWARF: `addr2line` over `gimli`, and the files that split DWARF lives in.
//!
//! Units, line tables and functions are parsed when an address first needs them, once. The readers share ownership of
//! their sections (`Arc`), so a parsed module can be kept without borrowing from itself.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use addr2line::{Context, LookupContinuation, LookupResult, SplitDwarfLoad};
use gimli::{AttributeValue, DebugInfoOffset, Reader, UnitOffset, UnitRef};

use crate::demangle::is_mangled;
use crate::elf::Elf;
use crate::units::{Bytes, MAX_LINKS, Units};

/// One frame as DWARF has it, innermost first in a list.
pub(crate) struct DwarfFrame {
    /// The linkage name, or `DW_AT_name` where there is none.
    pub(crate) name: Option<String>,
    /// `DW_AT_name`; looked up for inlined frames only.
    pub(crate) short_name: Option<Arc<str>>,
    pub(crate) file: Option<String>,
    pub(crate) line: Option<u32>,
    pub(crate) column: Option<u32>,
}

/// The DWARF of one module.
pub(crate) struct Dwarf {
    context: Context<Bytes>,
    split: SplitFiles,
    names: Names,
}

impl Dwarf {
    /// Reads the sections of a file. `supplement` is the file that dwz moved shared units to; `module` is the path of
    /// the module, beside which packages and split units are looked for too.
    pub(crate) fn load(elf: &Elf, supplement: Option<&Elf>, module: &Path) -> Option<Dwarf> {
        let mut dwarf = load_sections(elf)?;
        if let Some(supplement) = supplement {
            dwarf.set_sup(load_sections(supplement)?);
        }
        // Units that share abbreviations (LTO, dwz, Rust) would each parse them again.
        dwarf.populate_abbreviations_cache(gimli::AbbreviationsCacheStrategy::Duplicates);
        let context = Context::from_dwarf(dwarf).ok()?;
        let mut folders = Vec::new();
        let mut packages = Vec::new();
        for path in [module, elf.path.as_path()] {
            let mut package = path.as_os_str().to_owned();
            package.push(".dwp");
            packages.push(PathBuf::from(package));
            folders.extend(path.parent().map(Path::to_path_buf));
        }
        Some(Dwarf { context, split: SplitFiles { folders, packages, package: None }, names: Names::default() })
    }

    /// The frames of an address, innermost first; empty when DWARF does not cover it.
    pub(crate) fn frames(&mut self, address: u64) -> Vec<DwarfFrame> {
        let frames = self.try_frames(address).unwrap_or_default();
        if !frames.is_empty() {
            return frames;
        }
        // The functions of a unit may be damaged while its line table is whole.
        let location = self.context.find_location(address).ok().flatten();
        location.map(|location| frame(None, Some(location))).into_iter().collect()
    }

    fn try_frames(&mut self, address: u64) -> Result<Vec<DwarfFrame>, gimli::Error> {
        let mut iter = drive(self.context.find_frames(address), &mut self.split)?;
        let mut frames = Vec::new();
        let mut offsets = Vec::new();
        while let Some(found) = iter.next()? {
            let name = found.function.and_then(|function| Some(function.raw_name().ok()?.into_owned()));
            frames.push(frame(name, found.location));
            offsets.push(found.dw_die_offset);
        }
        // An unmangled name is DW_AT_name already, and the outermost frame is named by its symbol.
        let wanted = |frame: &DwarfFrame| frame.name.as_deref().is_some_and(is_mangled);
        let inlined = frames.len().saturating_sub(1);
        if frames[..inlined].iter().any(wanted)
            && let Some(unit) = drive(self.context.find_dwarf_and_unit(address), &mut self.split)
        {
            for (frame, offset) in frames[..inlined].iter_mut().zip(offsets) {
                if wanted(frame) {
                    frame.short_name = offset.and_then(|offset| self.names.short_name(unit, offset));
                }
            }
        }
        Ok(frames)
    }
}

fn frame(name: Option<String>, location: Option<addr2line::Location<'_>>) -> DwarfFrame {
    let location = location.unwrap_or(addr2line::Location { file: None, line: None, column: None });
    // Line 0 means "no line of the source", column 0 "the whole line".
    let line = location.line.filter(|&line| line != 0);
    DwarfFrame {
        name,
        short_name: None,
        file: location.file.map(str::to_owned),
        line,
        column: location.column.filter(|&column| column != 0 && line.is_some()),
    }
}

fn load_sections(elf: &Elf) -> Option<gimli::Dwarf<Bytes>> {
    gimli::Dwarf::load(|id| Ok::<_, ()>(section(elf, Some(id.name())))).ok()
}

/// A section, empty when it is absent or damaged: the others may be enough.
fn section(elf: &Elf, name: Option<&str>) -> Bytes {
    // addr2line never looks at variables, locations, macros and types, and they are half of the bytes.
    let unused = [".debug_loc", ".debug_loclists", ".debug_macinfo", ".debug_macro", ".debug_types", ".debug_names"];
    any_section(elf, name.filter(|name| !unused.contains(&name.trim_end_matches(".dwo"))))
}

fn any_section(elf: &Elf, name: Option<&str>) -> Bytes {
    let bytes = name.and_then(|name| elf.debug_section(name)).unwrap_or_default();
    Bytes::new(bytes, elf.endian)
}

/// Runs a lookup to its end, loading the split units that it asks for.
fn drive<L: LookupContinuation<Buf = Bytes>>(mut lookup: LookupResult<L>, split: &mut SplitFiles) -> L::Output {
    loop {
        lookup = match lookup {
            LookupResult::Output(output) => return output,
            LookupResult::Load { load, continuation } => continuation.resume(split.load(&load).map(Arc::new)),
        };
    }
}

/// Where the split units of a module may be.
struct SplitFiles {
    folders: Vec<PathBuf>,
    packages: Vec<PathBuf>,
    /// The package once it was looked for; `Some(None)` when there is none.
    package: Option<Option<gimli::DwarfPackage<Bytes>>>,
}

impl SplitFiles {
    fn load(&mut self, load: &SplitDwarfLoad<Bytes>) -> Option<gimli::Dwarf<Bytes>> {
        let packages = &self.packages;
        let package = self.package.get_or_insert_with(|| packages.iter().find_map(|path| open_package(path)));
        if let Some(package) = package
            && let Ok(Some(dwarf)) = package.find_cu(load.dwo_id, &load.parent)
        {
            return Some(dwarf);
        }
        let to_path = |bytes: &Bytes| Some(PathBuf::from(OsStr::from_bytes(&bytes.to_slice().ok()?)));
        let name = load.path.as_ref().and_then(to_path)?;
        let build_folder = load.comp_dir.as_ref().and_then(to_path).unwrap_or_default();
        // The build folder first; beside the module for builds that were moved.
        let mut candidates = vec![build_folder.join(&name)];
        for folder in &self.folders {
            candidates.push(folder.join(&name));
            candidates.extend(name.file_name().map(|file| folder.join(file)));
        }
        candidates.iter().find_map(|path| open_unit(path, load))
    }
}

fn open_package(path: &Path) -> Option<gimli::DwarfPackage<Bytes>> {
    let elf = Elf::open(path)?;
    let empty = Bytes::new(Arc::default(), elf.endian);
    // Every section: the index of a package cuts a part out of each, wanted or not.
    gimli::DwarfPackage::load(|id| Ok::<_, gimli::Error>(any_section(&elf, id.dwo_name())), empty).ok()
}

fn open_unit(path: &Path, load: &SplitDwarfLoad<Bytes>) -> Option<gimli::Dwarf<Bytes>> {
    let elf = Elf::open(path)?;
    let mut dwarf = gimli::Dwarf::load(|id| Ok::<_, gimli::Error>(section(&elf, id.dwo_name()))).ok()?;
    dwarf.make_dwo(&load.parent);
    let header = dwarf.units().next().ok()??;
    let unit = dwarf.unit(header).ok()?;
    // A file left over from another build has the right name and the wrong contents.
    (unit.dwo_id == Some(load.dwo_id)).then_some(dwarf)
}

/// Where a function's entry is: in a split unit or the dwz file or neither, and its offset there.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct EntryKey {
    dwo_id: Option<u64>,
    supplement: bool,
    unit: usize,
    entry: usize,
}

/// `DW_AT_name` of inlined functions, which `addr2line` passes over in favour of the linkage name.
#[derive(Default)]
struct Names {
    cache: HashMap<EntryKey, Option<Arc<str>>>,
    /// Units that names were followed into.
    units: Units,
}

impl Names {
    fn short_name(&mut self, unit: UnitRef<'_, Bytes>, entry: UnitOffset) -> Option<Arc<str>> {
        let unit_offset = unit.header.debug_info_offset().map_or(0, |offset| offset.0);
        let dwo_id = unit.dwo_id.map(|id| id.0);
        let key = EntryKey { dwo_id, supplement: false, unit: unit_offset, entry: entry.0 };
        if let Some(name) = self.cache.get(&key) {
            return name.clone();
        }
        let name = self.follow(unit, false, entry, MAX_LINKS);
        self.cache.insert(key, name.clone());
        name
    }

    fn follow(&mut self, unit: UnitRef<'_, Bytes>, supplement: bool, at: UnitOffset, links: u32) -> Option<Arc<str>> {
        let entry = unit.entry(at).ok()?;
        if let Some(value) = entry.attr_value(gimli::DW_AT_name) {
            return Some(Arc::from(unit.attr_string(value).ok()?.to_string_lossy().ok()?));
        }
        let links = links.checked_sub(1)?;
        let target =
            entry.attr_value(gimli::DW_AT_abstract_origin).or_else(|| entry.attr_value(gimli::DW_AT_specification))?;
        match target {
            AttributeValue::UnitRef(offset) => self.follow(unit, supplement, offset, links),
            AttributeValue::DebugInfoRef(offset) => self.follow_across(unit.dwarf, supplement, offset, links),
            AttributeValue::DebugInfoRefSup(offset) => self.follow_across(unit.dwarf.sup()?, true, offset, links),
            _ => None,
        }
    }

    /// Follows a reference into another unit of the same file; `dwarf` is that file.
    fn follow_across(
        &mut self,
        dwarf: &gimli::Dwarf<Bytes>,
        supplement: bool,
        target: DebugInfoOffset,
        links: u32,
    ) -> Option<Arc<str>> {
        if dwarf.file_type == gimli::DwarfFileType::Dwo {
            // A split unit is alone in its file; and offsets of one such file say nothing about another.
            return None;
        }
        let place = self.units.place_in(dwarf, supplement, target)?;
        self.follow(place.unit.unit_ref(dwarf), supplement, place.at, links)
    }
}
