//! Where an object's debug information is: in its own file, or apart from it, compressed or not.

use super::elf::{self, Contents, Elf};
use crate::modules::Module;
use crate::sys;
use alloc::boxed::Box;
use alloc::ffi::CString;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use gimli::{EndianSlice, LittleEndian, SectionId};
use miniz_oxide::inflate::{TINFLStatus, core as inflate};

/// Where distributions put debug information that is packaged apart.
const DEBUG_FOLDER: &str = "/usr/lib/debug";
/// What is read of an object.
const SECTIONS: [SectionId; 10] = [
    SectionId::DebugAbbrev,
    SectionId::DebugAddr,
    SectionId::DebugAranges,
    SectionId::DebugInfo,
    SectionId::DebugLine,
    SectionId::DebugLineStr,
    SectionId::DebugRanges,
    SectionId::DebugRngLists,
    SectionId::DebugStr,
    SectionId::DebugStrOffsets,
];
/// Inflated bytes of an object at most: a report is not to take all of the machine's memory.
const MOST_BYTES: usize = 1 << 30;

/// Fills a slice from compressed bytes; false when they are damaged or of another length.
type Unpack = fn(&[u8], &mut [u8]) -> bool;
pub(super) type Reader<'d> = EndianSlice<'d, LittleEndian>;

/// The debug information of an object.
pub(super) struct DebugInfo {
    elf: Elf<'static>,
    inflated: Vec<(SectionId, Vec<u8>)>,
}

impl DebugInfo {
    /// Of a file that has some and can be inflated.
    fn of(elf: Elf<'static>) -> Option<Self> {
        elf.contents(SectionId::DebugInfo.name())?;
        let mut inflated = Vec::new();
        let mut room = MOST_BYTES;
        for section in SECTIONS {
            let (bytes, packed, unpack): (_, _, Unpack) = match elf.contents(section.name()) {
                Some(Contents::Zlib { bytes, packed }) => (bytes, packed, zlib),
                Some(Contents::Zstd { bytes, packed }) => (bytes, packed, zstd),
                Some(Contents::Plain(_)) | None => continue,
            };
            room = room.checked_sub(bytes)?;
            let mut unpacked = vec![0; bytes];
            if !unpack(packed, &mut unpacked) {
                return None;
            }
            inflated.push((section, unpacked));
        }
        Some(Self { elf, inflated })
    }

    fn section(&self, wanted: SectionId) -> &[u8] {
        match self.inflated.iter().find(|(section, _)| *section == wanted) {
            Some((_, bytes)) => bytes,
            None => self.elf.section_bytes(wanted.name()).unwrap_or_default(),
        }
    }

    /// Its DWARF sections.
    pub fn dwarf(&self) -> gimli::Dwarf<Reader<'_>> {
        let load = |section| Ok::<_, gimli::Error>(EndianSlice::new(self.section(section), LittleEndian));
        gimli::Dwarf::load(load).unwrap_or_default()
    }
}

/// The debug information of an object, and the file that was split from it, where that was found.
pub(super) fn find(module: &Module, own: Elf<'static>) -> (Option<DebugInfo>, Option<Elf<'static>>) {
    if let Some(info) = DebugInfo::of(own) {
        return (Some(info), None);
    }
    let apart = candidates(module, own).into_iter().find_map(|path| {
        let elf = Elf::new(sys::map_file(&CString::new(path).ok()?)?)?;
        (elf.build_id()? == module.build_id).then_some(elf)
    });
    (apart.and_then(DebugInfo::of), apart)
}

/// Where the file may be that was split from an object: by its build id, and by the name in `.gnu_debuglink`. Both are
/// taken by the same build id only.
fn candidates(module: &Module, own: Elf<'_>) -> Vec<String> {
    let mut paths = Vec::new();
    let Some((first, rest)) = module.build_id.split_first().filter(|(_, rest)| !rest.is_empty()) else { return paths };
    let mut name = format!("{DEBUG_FOLDER}/.build-id/{first:02x}/");
    for byte in rest {
        name.push_str(&format!("{byte:02x}"));
    }
    name.push_str(".debug");
    paths.push(name);
    let folder = module.path.rfind('/').and_then(|end| module.path.get(..end));
    // A name, not a path: anything else would lead out of the folders below.
    let link = own.section_bytes(".gnu_debuglink").and_then(|bytes| elf::text_at(bytes, 0));
    if let (Some(folder), Some(link)) = (folder, link.filter(|link| !link.is_empty() && !link.contains('/'))) {
        paths.push(format!("{folder}/{link}"));
        paths.push(format!("{folder}/.debug/{link}"));
        paths.push(format!("{DEBUG_FOLDER}{folder}/{link}"));
        paths.retain(|path| *path != module.path);
    }
    paths
}

fn zlib(packed: &[u8], out: &mut [u8]) -> bool {
    use inflate::inflate_flags::{TINFL_FLAG_PARSE_ZLIB_HEADER, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF};
    let flags = TINFL_FLAG_PARSE_ZLIB_HEADER | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let mut state = Box::<inflate::DecompressorOxide>::default();
    let (status, _, written) = inflate::decompress(&mut state, packed, out, 0, flags);
    status == TINFLStatus::Done && written == out.len()
}

fn zstd(packed: &[u8], out: &mut [u8]) -> bool {
    let written = ruzstd::decoding::FrameDecoder::new().decode_all(packed, out);
    written.is_ok_and(|written| written == out.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// This program with its debug sections compressed.
    fn packed(kind: &str) -> Vec<u8> {
        let thread = std::thread::current().id();
        let path = std::env::temp_dir().join(format!("leakscope-{}-{thread:?}-{kind}", std::process::id()));
        let own = std::env::current_exe().expect("this program");
        let done = Command::new("objcopy")
            .arg(std::format!("--compress-debug-sections={kind}"))
            .args([&own, &path])
            .status()
            .expect("objcopy is installed");
        assert!(done.success());
        let data = std::fs::read(&path).expect("just written");
        std::fs::remove_file(&path).expect("ours");
        data
    }

    fn info_of(data: Vec<u8>) -> Option<DebugInfo> {
        DebugInfo::of(Elf::new(data.leak())?)
    }

    #[test]
    fn compressed_sections_are_those_before_compression() {
        let own = info_of(std::fs::read("/proc/self/exe").expect("this program")).expect("tests are built with lines");
        assert!(own.inflated.is_empty());
        for kind in ["zlib", "zstd"] {
            let info = info_of(packed(kind)).expect("whole");
            assert!(!info.inflated.is_empty(), "{kind}");
            for section in SECTIONS {
                assert!(info.section(section) == own.section(section), "{kind}: {}", section.name());
            }
        }
    }

    #[test]
    fn damaged_sections_are_no_trouble() {
        let mut state = 7u64;
        let mut next = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for kind in ["zlib", "zstd"] {
            let whole = packed(kind);
            let packed_info = match Elf::new(&whole).and_then(|elf| elf.contents(".debug_abbrev")) {
                Some(Contents::Zlib { packed, .. } | Contents::Zstd { packed, .. }) => packed,
                other => panic!("{kind}: {other:?}"),
            };
            let start = packed_info.as_ptr() as usize - whole.as_ptr() as usize;
            let unpack: Unpack = if kind == "zlib" { zlib } else { zstd };
            for _ in 0..500 {
                let mut damaged = packed_info.to_vec();
                for _ in 0..1 + next(4) {
                    let at = next(damaged.len());
                    damaged[at] = next(256) as u8;
                }
                damaged.truncate(1 + next(damaged.len()));
                // Whatever it says: it comes back.
                let _ = unpack(&damaged, &mut vec![0; 1 << 16]);
            }
            // The header before it: kinds and sizes that are none.
            for damage in [3u64, u64::MAX] {
                let mut damaged = whole.clone();
                damaged[start - 16..start - 8].copy_from_slice(&damage.to_le_bytes());
                let info = info_of(damaged);
                let is_left_out = info.is_none_or(|info| info.section(SectionId::DebugAbbrev).is_empty());
                assert!(is_left_out, "{kind}: {damage} bytes");
            }
        }
    }
}
