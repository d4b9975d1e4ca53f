//! Where a global variable is defined: a search of the debug information for a variable at an address.

use super::debug_info::{DebugInfo, Reader};
use alloc::string::{String, ToString};
use gimli::{AttributeValue, Reader as _};

/// File and line of the variable at an address as linked.
pub(super) fn find(info: &DebugInfo, svma: u64) -> Option<(String, u32)> {
    let dwarf = info.dwarf();
    let mut headers = dwarf.units();
    while let Ok(Some(header)) = headers.next() {
        let Ok(unit) = dwarf.unit(header) else { continue };
        let mut entries = unit.entries();
        while let Ok(Some(entry)) = entries.next_dfs() {
            if entry.tag() != gimli::DW_TAG_variable {
                continue;
            }
            let Some(address) = address_of(&dwarf, &unit, entry.attr_value(gimli::DW_AT_location)) else { continue };
            if address != svma {
                continue;
            }
            // A definition may refer to its declaration for the place.
            let declared = match entry.attr_value(gimli::DW_AT_specification) {
                Some(AttributeValue::UnitRef(at)) => unit.entry(at).ok(),
                _ => None,
            };
            for candidate in [Some(entry), declared.as_ref()].into_iter().flatten() {
                if let Some(place) = place_of(&dwarf, &unit, candidate) {
                    return Some(place);
                }
            }
        }
    }
    None
}

fn address_of(
    dwarf: &gimli::Dwarf<Reader<'_>>,
    unit: &gimli::Unit<Reader<'_>>,
    location: Option<AttributeValue<Reader<'_>>>,
) -> Option<u64> {
    const ADDR: u8 = 0x03;
    const ADDRX: u8 = 0xa1;
    let Some(AttributeValue::Exprloc(expression)) = location else { return None };
    let mut bytes = expression.0;
    match bytes.read_u8().ok()? {
        ADDR => bytes.read_u64().ok(),
        ADDRX => {
            let index = bytes.read_uleb128().ok()?;
            dwarf.address(unit, gimli::DebugAddrIndex(usize::try_from(index).ok()?)).ok()
        }
        _ => None,
    }
}

fn place_of(
    dwarf: &gimli::Dwarf<Reader<'_>>,
    unit: &gimli::Unit<Reader<'_>>,
    entry: &gimli::DebuggingInformationEntry<Reader<'_>>,
) -> Option<(String, u32)> {
    let line = entry.attr_value(gimli::DW_AT_decl_line)?.udata_value()?;
    let AttributeValue::FileIndex(index) = entry.attr_value(gimli::DW_AT_decl_file)? else { return None };
    let program = unit.line_program.as_ref()?;
    let file = program.header().file(index)?;
    let text = |value| dwarf.attr_string(unit, value).ok().map(|text| text.to_string_lossy().to_string());
    let name = text(file.path_name())?;
    let mut path = String::new();
    if !name.starts_with('/') {
        let folder = file.directory(program.header()).and_then(text).unwrap_or_default();
        if !folder.starts_with('/')
            && let Some(base) = &unit.comp_dir
        {
            path.push_str(&base.to_string_lossy());
            path.push('/');
        }
        if !folder.is_empty() {
            path.push_str(&folder);
            path.push('/');
        }
    }
    path.push_str(&name);
    Some((path, u32::try_from(line).ok()?))
}
