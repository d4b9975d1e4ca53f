//! Where the functions of a running program's allocator are: which file, at which offset, by which of our programs.
//!
//! Files are opened below /proc/PID/root, so that a program in a container shows its own libraries.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use object::{Object, ObjectSegment, ObjectSymbol, SymbolKind};

use crate::Error;

/// A function to attach to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Probe {
    /// The file, as we can open it.
    pub(crate) path: PathBuf,
    /// Where in the file the function begins.
    pub(crate) offset: u64,
    /// The program at its entry.
    pub(crate) entry: &'static str,
    /// The program at its return.
    pub(crate) exit: Option<&'static str>,
    /// Its name.
    pub(crate) name: String,
}

/// A mapped file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// One past the last address.
    pub end: u64,
    /// Offset in the file.
    pub offset: u64,
    /// Whether it holds code.
    pub is_executable: bool,
    /// Path as the program saw it.
    pub path: String,
}

/// Names, and the programs for them.
const FUNCTIONS: &[(&str, &str, Option<&str>)] = &[
    ("malloc", "call_size", Some("end_block")),
    ("calloc", "call_count", Some("end_block")),
    ("realloc", "call_resize", Some("end_block")),
    ("reallocarray", "call_resize_count", Some("end_block")),
    ("memalign", "call_second", Some("end_block")),
    ("aligned_alloc", "call_second", Some("end_block")),
    ("posix_memalign", "call_out", Some("end_out")),
    ("valloc", "call_size", Some("end_block")),
    ("pvalloc", "call_size", Some("end_block")),
    ("free", "call_free", None),
];

/// What jemalloc and mimalloc have besides, behind their prefixes.
const MORE: &[(&str, &str, Option<&str>)] = &[
    ("mallocx", "call_size", Some("end_block")),
    ("rallocx", "call_resize", Some("end_block")),
    ("dallocx", "call_free", None),
    ("sdallocx", "call_free", None),
    ("zalloc", "call_size", Some("end_block")),
    ("malloc_aligned", "call_size", Some("end_block")),
    ("zalloc_aligned", "call_size", Some("end_block")),
    ("realloc_aligned", "call_resize", Some("end_block")),
    ("new", "call_size", Some("end_block")),
    ("free_size", "call_free", None),
    ("free_aligned", "call_free", None),
];

/// C++ operators: only of a module that has malloc too; those of libstdc++ call it.
const OPERATORS: &[(&str, &str, Option<&str>)] = &[
    ("_Znwm", "call_size", Some("end_block")),
    ("_Znam", "call_size", Some("end_block")),
    ("_ZnwmRKSt9nothrow_t", "call_size", Some("end_block")),
    ("_ZnamRKSt9nothrow_t", "call_size", Some("end_block")),
    ("_ZnwmSt11align_val_t", "call_size", Some("end_block")),
    ("_ZnamSt11align_val_t", "call_size", Some("end_block")),
    ("_ZdlPv", "call_free", None),
    ("_ZdaPv", "call_free", None),
    ("_ZdlPvm", "call_free", None),
    ("_ZdaPvm", "call_free", None),
    ("_ZdlPvSt11align_val_t", "call_free", None),
    ("_ZdaPvSt11align_val_t", "call_free", None),
    ("_ZdlPvmSt11align_val_t", "call_free", None),
];

const PREFIXES: &[&str] = &["je_", "_rjem_", "mi_", "tc_"];

/// The mapped files of a process.
pub(crate) fn read_mappings(pid: u32) -> Result<Vec<Mapping>, Error> {
    let path = format!("/proc/{pid}/maps");
    let text = std::fs::read_to_string(&path)
        .map_err(|error| Error::Target(format!("{path}: {error}; is process {pid} running?")))?;
    Ok(text.lines().filter_map(decode_mapping).collect())
}

fn decode_mapping(line: &str) -> Option<Mapping> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let rights = words.next()?;
    let offset = words.next()?;
    let path = words.nth(2)?.trim_start();
    if !path.starts_with('/') {
        return None;
    }
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        offset: u64::from_str_radix(offset, 16).ok()?,
        is_executable: rights.as_bytes().get(2) == Some(&b'x'),
        path: path.to_owned(),
    })
}

impl Mapping {
    /// The path by which anybody here can open the file: its own, unless the program sees other files than we do.
    pub fn path_for(&self, pid: u32) -> String {
        use std::os::unix::fs::MetadataExt;
        let identity = |path: &Path| std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        let theirs = reachable(pid, self);
        if identity(Path::new(&self.path)) == identity(&theirs) {
            self.path.clone()
        } else {
            theirs.display().to_string()
        }
    }
}

/// The path by which we can open a file that a process has mapped.
pub(crate) fn reachable(pid: u32, mapping: &Mapping) -> PathBuf {
    let below = PathBuf::from(format!("/proc/{pid}/root{}", mapping.path));
    if mapping.path.ends_with(" (deleted)") || !below.exists() {
        return PathBuf::from(format!("/proc/{pid}/map_files/{:x}-{:x}", mapping.start, mapping.end));
    }
    below
}

/// The functions of every allocator that a process has.
///
/// # Errors
/// There is none, or the process is not there.
pub(crate) fn find_probes(pid: u32) -> Result<Vec<Probe>, Error> {
    let mut probes = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for mapping in read_mappings(pid)?.iter().filter(|mapping| mapping.is_executable) {
        let name = mapping.path.rsplit('/').next().unwrap_or_default();
        // The loader's own malloc is for itself.
        if !seen.insert(mapping.path.clone()) || name.starts_with("ld-") || name.starts_with("ld.so") {
            continue;
        }
        let path = reachable(pid, mapping);
        let Ok(bytes) = std::fs::read(&path) else { continue };
        add_probes(&path, &bytes, &mut probes);
    }
    if probes.iter().any(|probe: &Probe| probe.exit.is_some()) {
        return Ok(probes.into_iter().collect());
    }
    Err(Error::Target(format!(
        "process {pid} has no function malloc that can be found: neither a library with one nor a symbol in its \
         executable; an executable that was stripped needs its debug symbols"
    )))
}

fn add_probes(path: &Path, bytes: &[u8], probes: &mut BTreeSet<Probe>) {
    let Ok(file) = object::File::parse(bytes) else { return };
    let mut found = Vec::new();
    for symbol in file.dynamic_symbols().chain(file.symbols()) {
        if symbol.kind() != SymbolKind::Text || symbol.is_undefined() || symbol.address() == 0 {
            continue;
        }
        let Ok(name) = symbol.name() else { continue };
        if let Some((entry, exit)) = program_of(name) {
            found.push((name.to_owned(), symbol.address(), entry, exit));
        }
    }
    let has_malloc = found.iter().any(|(name, ..)| name.ends_with("malloc"));
    let mut places = BTreeSet::new();
    // Names of one function, plain ones first.
    found.sort_by_key(|(name, address, ..)| (*address, name.len()));
    for (name, address, entry, exit) in found {
        if name.starts_with("_Z") && !has_malloc {
            continue;
        }
        let Some(offset) = file_offset(&file, address) else { continue };
        if places.insert(offset) {
            probes.insert(Probe { path: path.to_owned(), offset, entry, exit, name });
        }
    }
}

/// The programs for a function, if it is one of an allocator.
fn program_of(name: &str) -> Option<(&'static str, Option<&'static str>)> {
    let find = |table: &'static [(&str, &str, Option<&str>)], name: &str| {
        table.iter().find(|(known, ..)| *known == name).map(|&(_, entry, exit)| (entry, exit))
    };
    if let Some(found) = find(FUNCTIONS, name).or_else(|| find(OPERATORS, name)) {
        return Some(found);
    }
    let rest = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix))?;
    find(FUNCTIONS, rest).or_else(|| find(MORE, rest))
}

fn file_offset(file: &object::File<'_>, address: u64) -> Option<u64> {
    file.segments().find_map(|segment| {
        let (begin, (offset, bytes)) = (segment.address(), segment.file_range());
        (begin..begin.checked_add(bytes)?).contains(&address).then(|| offset + (address - begin))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_by_name() {
        assert_eq!(program_of("malloc"), Some(("call_size", Some("end_block"))));
        assert_eq!(program_of("_rjem_sdallocx"), Some(("call_free", None)));
        assert_eq!(program_of("mi_new"), Some(("call_size", Some("end_block"))));
        assert_eq!(program_of("je_posix_memalign"), Some(("call_out", Some("end_out"))));
        assert_eq!(program_of("new"), None);
        assert_eq!(program_of("mallocx"), None, "plain mallocx may be anybody's");
        assert_eq!(program_of("xmalloc"), None);
    }

    #[test]
    fn mappings_by_line() {
        let line = "7f0-7f8 r-xp 00026000 fe:00 1234      /usr/lib/a b.so (deleted)";
        let mapping = decode_mapping(line).unwrap();
        assert_eq!((mapping.start, mapping.end, mapping.offset), (0x7f0, 0x7f8, 0x26000));
        assert!(mapping.is_executable);
        assert_eq!(mapping.path, "/usr/lib/a b.so (deleted)");
        assert_eq!(decode_mapping("7f0-7f8 rw-p 00000000 00:00 0 "), None);
        assert_eq!(decode_mapping("7f0-7f8 rw-p 00000000 00:00 0       [heap]"), None);
    }

    #[test]
    fn our_own_process_has_malloc() {
        let probes = find_probes(std::process::id()).unwrap();
        for name in ["malloc", "free", "realloc", "calloc"] {
            assert!(probes.iter().any(|probe| probe.name == name), "{name}: {probes:?}");
        }
    }
}
