//! Names for addresses that an imported file gives as module and offset, from the files of this machine.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use leakscope_findings::recording::ResolvedFrame;
use leakscope_import::Resolver;
use leakscope_symbols::{ModuleFile, Symbolizer};

/// Bytes of a file in which its program headers lie.
const HEADERS: u64 = 64 << 10;

/// Looks files up where the log says they are, or where the user says the program is.
pub struct FileNames {
    symbolizer: Symbolizer,
    program: Option<PathBuf>,
    first: HashMap<String, Option<u64>>,
}

impl FileNames {
    /// `program` stands for every file of the log that has its name.
    pub fn new(options: leakscope_symbols::Options, program: Option<PathBuf>) -> Self {
        Self { symbolizer: Symbolizer::new(options), program, first: HashMap::new() }
    }

    fn path(&self, path: &str) -> PathBuf {
        let logged = Path::new(path);
        match &self.program {
            Some(program) if program.file_name() == logged.file_name() => program.clone(),
            _ => logged.to_owned(),
        }
    }
}

impl Resolver for FileNames {
    fn first_svma(&mut self, path: &str) -> Option<u64> {
        if let Some(&known) = self.first.get(path) {
            return known;
        }
        let file = self.path(path);
        // A pipe or a device with the name of a module would be waited for.
        let is_file = std::fs::metadata(&file).is_ok_and(|metadata| metadata.is_file());
        let mut head = Vec::new();
        let read = is_file && File::open(&file).and_then(|file| file.take(HEADERS).read_to_end(&mut head)).is_ok();
        let first = if read { decode_first_svma(&head) } else { None };
        self.first.insert(path.to_owned(), first);
        first
    }

    fn resolve(&mut self, path: &str, build_id: &[u8], addresses: &[u64]) -> Vec<Vec<ResolvedFrame>> {
        let module = ModuleFile { path: self.path(path), build_id: (!build_id.is_empty()).then(|| build_id.to_vec()) };
        let frames = self.symbolizer.resolve(&module, addresses, &mut |_| {});
        frames.into_iter().map(|frames| frames.into_iter().map(crate::record::resolved).collect()).collect()
    }
}

/// The link-time address of the first mapped byte of an ELF file: that of its lowest loaded segment, rounded down to a
/// page, as the kernel maps it. Source: `man 5 elf`.
fn decode_first_svma(head: &[u8]) -> Option<u64> {
    const PT_LOAD: u64 = 1;
    if head.get(..4)? != b"\x7fELF" || *head.get(5)? != 1 {
        return None;
    }
    let is_64 = *head.get(4)? == 2;
    let number = |at: usize, bytes: usize| {
        let bytes = head.get(at..at.checked_add(bytes)?)?;
        Some(bytes.iter().rev().fold(0_u64, |value, &byte| value << 8 | u64::from(byte)))
    };
    let (table, entry_bytes, entries) = match is_64 {
        true => (number(32, 8)?, number(54, 2)?, number(56, 2)?),
        false => (number(28, 4)?, number(42, 2)?, number(44, 2)?),
    };
    let mut first = None;
    for entry in 0..entries {
        let at = usize::try_from(table.checked_add(entry.checked_mul(entry_bytes)?)?).ok()?;
        let Some(kind) = number(at, 4) else { break };
        let address = if is_64 { number(at.checked_add(16)?, 8) } else { number(at.checked_add(8)?, 4) };
        let Some(address) = address else { break };
        if kind == PT_LOAD {
            let page = address & !0xfff;
            first = Some(first.map_or(page, |first: u64| first.min(page)));
        }
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_binary_begins_somewhere() {
        let path = std::env::current_exe().unwrap();
        let mut names = FileNames::new(leakscope_symbols::Options::default(), None);
        // Test binaries are position independent.
        assert_eq!(names.first_svma(path.to_str().unwrap()), Some(0));
        assert_eq!(names.first_svma("/nowhere"), None);
    }

    #[test]
    fn damaged_headers_give_nothing() {
        assert_eq!(decode_first_svma(b"\x7fELF\x02\x01"), None);
        let mut head = vec![0_u8; 64];
        head[..6].copy_from_slice(b"\x7fELF\x02\x01");
        head[32..40].fill(0xff);
        head[54..58].fill(0xff);
        assert_eq!(decode_first_svma(&head), None);
    }
}
