//! Names for frames of the kernel: run-time addresses from `/proc/kallsyms`, files, lines and inlined functions from
//! `vmlinux` and modules that have debug information.
//!
//! A frame says function, offset and the function's size. A file is used only where it has a function of that name and
//! size, and, on the machine that was scanned, the build id of what runs: a wrong file gives no names rather than wrong
//! ones. A kernel without CONFIG_KALLSYMS gives addresses only; `System.map` has their functions.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use leakscope_findings::recording::ResolvedFrame;
use leakscope_import::{KernelName, KernelNames};
use leakscope_kernel::dump::{Dump, Frame};
use leakscope_kernel::image::{self, Image, decode_build_id};
use leakscope_kernel::kallsyms::Kallsyms;
use leakscope_kernel::{Places, kmemleak};
use leakscope_symbols::{ModuleFile, Symbolizer};

use crate::flags::kernel::KernelNamesArgs;
use crate::record;

/// A file of a kernel is not larger: an allmodconfig vmlinux has half of that.
const MOST_FILE_BYTES: u64 = 4 << 30;
/// A module is not larger.
const MOST_MODULE_BYTES: u64 = 1 << 30;
/// `System.map` has some 10 million bytes.
const MOST_MAP_BYTES: u64 = 256 << 20;
/// Endings of compressed modules.
const COMPRESSED: [&str; 3] = [".gz", ".xz", ".zst"];
/// Folders within folders that are looked into for modules.
const DEEPEST_FOLDER: usize = 16;

/// Files of the kernel, found and read as they are needed.
pub struct Names {
    places: Places,
    args: KernelNamesArgs,
    is_live: bool,
    symbolizer: Symbolizer,
    /// Modules with debug information by name, once they were looked for.
    module_files: Option<HashMap<String, Vec<PathBuf>>>,
    images: HashMap<String, Option<Loaded>>,
    /// What could not be used, one sentence each.
    pub problems: Vec<String>,
}

struct Loaded {
    image: Image,
    file: ModuleFile,
    /// A linked module is kept as long as it may be read.
    _linked: Option<tempfile::TempPath>,
}

impl Names {
    /// `is_live` tells whether the frames come from the kernel that runs here.
    pub fn new(args: &KernelNamesArgs, symbols: leakscope_symbols::Options, is_live: bool) -> Self {
        Self {
            places: Places::default(),
            args: args.clone(),
            is_live,
            symbolizer: Symbolizer::new(symbols),
            module_files: None,
            images: HashMap::new(),
            problems: Vec::new(),
        }
    }

    /// Gives frames that are only addresses their functions. Where the running kernel says nothing, `System.map` does; its
    /// addresses are those of a kernel that was not moved when it was booted.
    pub fn name_addresses(&mut self, dump: &mut Dump) {
        let mut bare = dump
            .backtraces
            .iter_mut()
            .flat_map(|backtrace| &mut backtrace.frames)
            .filter(|frame| frame.function.is_empty())
            .peekable();
        if bare.peek().is_none() {
            return;
        }
        let live = if self.is_live { Kallsyms::read(&self.places) } else { Kallsyms::default() };
        let table = match &self.args.system_map {
            Some(path) if live.is_empty() => read_map(path, &mut self.problems),
            _ => live,
        };
        for frame in bare {
            if let Some(named) = table.frame(frame.offset) {
                *frame = named;
            }
        }
    }

    fn vmlinux(&self) -> Vec<PathBuf> {
        let release = kmemleak::release();
        match &self.args.vmlinux {
            Some(path) => vec![path.clone()],
            // Of another machine's kernel nothing here knows the names.
            None if !self.is_live => Vec::new(),
            None => [
                format!("/usr/lib/debug/boot/vmlinux-{release}"),
                format!("/usr/lib/debug/lib/modules/{release}/vmlinux"),
                format!("/usr/lib/debug/vmlinux-{release}"),
                format!("/boot/vmlinux-{release}"),
                format!("/lib/modules/{release}/build/vmlinux"),
            ]
            .into_iter()
            .map(|path| self.places.path(path))
            .collect(),
        }
    }

    fn candidates(&mut self, module: &str) -> Vec<PathBuf> {
        if module.is_empty() {
            return self.vmlinux();
        }
        if self.module_files.is_none() {
            let release = kmemleak::release();
            let mut folders = self.args.modules.clone();
            if self.is_live {
                folders.push(format!("/usr/lib/debug/lib/modules/{release}").into());
                folders.push(format!("/lib/modules/{release}").into());
            }
            let mut files = HashMap::new();
            for folder in &folders {
                collect_modules(folder, &mut files, 0);
            }
            self.module_files = Some(files);
        }
        self.module_files.as_ref().and_then(|files| files.get(module)).cloned().unwrap_or_default()
    }

    /// The build id of what runs.
    fn running_build_id(&self, module: &str) -> Option<Vec<u8>> {
        let path = match module {
            "" => "/sys/kernel/notes".to_owned(),
            _ => format!("/sys/module/{module}/notes/.note.gnu.build-id"),
        };
        let notes = std::fs::read(self.places.path(path)).ok().filter(|_| self.is_live)?;
        decode_build_id(&notes)
    }

    fn load(&mut self, module: &str) -> Option<Loaded> {
        let running = self.running_build_id(module);
        let asked = module.is_empty() && self.args.vmlinux.is_some();
        for path in self.candidates(module) {
            match read_image(&path, asked) {
                Ok(loaded) => {
                    let is_other =
                        matches!((&running, &loaded.image.build_id), (Some(running), Some(found)) if running != found);
                    if !is_other && loaded.image.has_debug_info {
                        return Some(loaded);
                    }
                    if is_other && asked {
                        let path = path.display();
                        self.problems.push(format!("{path}: its build id is not that of the running kernel; not used"));
                    }
                }
                Err(reason) if asked => self.problems.push(format!("{}: {reason}", path.display())),
                Err(_) => {}
            }
        }
        None
    }

    /// The frames of each address of one module.
    fn resolve_in(&mut self, module: &str, frames: &[&Frame]) -> Vec<Vec<ResolvedFrame>> {
        if !self.images.contains_key(module) {
            let loaded = self.load(module);
            self.images.insert(module.to_owned(), loaded);
        }
        let Some(Some(loaded)) = self.images.get(module) else { return vec![Vec::new(); frames.len()] };
        // A return address may be the first byte of what comes next: the byte before it is in the call.
        let address = |frame: &&Frame| {
            let begin = loaded.image.find(&frame.function, frame.size)?;
            Some(begin.wrapping_add(frame.offset.saturating_sub(1)))
        };
        let addresses: Vec<Option<u64>> = frames.iter().map(address).collect();
        let known: Vec<u64> = addresses.iter().flatten().copied().collect();
        let mut resolved = self.symbolizer.resolve(&loaded.file, &known, &mut |_| {}).into_iter();
        let mut of_known = || resolved.next().unwrap_or_default().into_iter().map(record::resolved).collect();
        addresses.iter().map(|address| if address.is_some() { of_known() } else { Vec::new() }).collect()
    }

    /// Run-time addresses of functions that are called so only once.
    fn run_time_addresses(&mut self, frames: &[&Frame]) -> HashMap<(String, String), u64> {
        let table = match (&self.args.system_map, self.is_live) {
            (Some(path), _) => read_map(path, &mut self.problems),
            (None, true) => Kallsyms::read(&self.places),
            (None, false) => return HashMap::new(),
        };
        let wanted: std::collections::HashSet<(&str, &str)> =
            frames.iter().map(|frame| (frame.function.as_str(), frame.module.as_str())).collect();
        let mut found: HashMap<(String, String), Option<u64>> = HashMap::new();
        for symbol in table.iter().filter(|symbol| wanted.contains(&(symbol.name, symbol.module))) {
            let entry = found.entry((symbol.name.to_owned(), symbol.module.to_owned()));
            entry.and_modify(|address| *address = None).or_insert(Some(symbol.address));
        }
        found.into_iter().filter_map(|(key, address)| Some((key, address?))).collect()
    }
}

impl KernelNames for Names {
    fn resolve(&mut self, frames: &[&Frame]) -> Vec<KernelName> {
        let addresses = self.run_time_addresses(frames);
        let mut names: Vec<KernelName> = frames
            .iter()
            .map(|frame| {
                let begin = addresses.get(&(frame.function.clone(), frame.module.clone())).copied();
                KernelName { pc: begin.map_or(0, |begin| begin.wrapping_add(frame.offset)), frames: Vec::new() }
            })
            .collect();
        let mut by_module: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (number, frame) in frames.iter().enumerate().filter(|(_, frame)| !frame.function.is_empty()) {
            by_module.entry(&frame.module).or_default().push(number);
        }
        for (module, numbers) in by_module {
            let of_module: Vec<&Frame> = numbers.iter().map(|&number| frames[number]).collect();
            for (number, resolved) in numbers.into_iter().zip(self.resolve_in(module, &of_module)) {
                names[number].frames = resolved;
            }
        }
        names
    }
}

/// Reads `System.map`; says why where it is none.
fn read_map(path: &Path, problems: &mut Vec<String>) -> Kallsyms {
    let mut text = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MOST_MAP_BYTES).read_to_end(&mut text));
    let table = Kallsyms::decode(String::from_utf8_lossy(&text).into_owned());
    let problem = match read {
        Err(error) => format!("{}: cannot read it: {error}", path.display()),
        Ok(_) if table.is_empty() => {
            format!("{}: it has no functions; expected the kernel's System.map", path.display())
        }
        Ok(_) => return table,
    };
    if !problems.contains(&problem) {
        problems.push(problem);
    }
    table
}

/// The bytes of a file, which may be compressed as distributions do it with modules.
fn read_plain(path: &Path) -> std::io::Result<Vec<u8>> {
    let file = std::fs::File::open(path)?;
    let mut bytes = Vec::new();
    if is_compressed(path) {
        leakscope_import::decompressed(Box::new(BufReader::new(file)))?
            .take(MOST_MODULE_BYTES)
            .read_to_end(&mut bytes)?;
    } else {
        file.take(MOST_FILE_BYTES).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

fn is_compressed(path: &Path) -> bool {
    path.extension().is_some_and(|ending| COMPRESSED.iter().any(|known| ending == &known[1..]))
}

/// Reads a file, and links it where it is a module.
fn read_image(path: &Path, asked: bool) -> Result<Loaded, String> {
    let metadata = std::fs::metadata(path).map_err(|error| format!("cannot look at it: {error}"))?;
    if !metadata.is_file() || metadata.len() > MOST_FILE_BYTES {
        return Err("it is no file of a kernel".to_owned());
    }
    let bytes = read_plain(path).map_err(|error| format!("cannot read it: {error}"))?;
    if asked && !bytes.starts_with(b"\x7fELF") {
        return Err("it is no ELF file; give the uncompressed vmlinux, not vmlinuz".to_owned());
    }
    let is_object = bytes.get(16..18) == Some(&[1, 0]);
    let linked = image::link(bytes).ok_or("it is no 64-bit ELF file")?;
    let image = Image::decode(&linked);
    if asked && !image.has_debug_info {
        return Err("it has no debug information; give the file of the kernel's debug package".to_owned());
    }
    if !is_object {
        return Ok(Loaded { image, file: ModuleFile { path: path.to_owned(), build_id: None }, _linked: None });
    }
    let write = || -> std::io::Result<tempfile::TempPath> {
        let mut file = tempfile::Builder::new().prefix("leakscope-module-").tempfile()?;
        std::io::Write::write_all(&mut file, &linked)?;
        Ok(file.into_temp_path())
    };
    let place = write().map_err(|error| format!("cannot write its linked form to a temporary file: {error}"))?;
    Ok(Loaded { image, file: ModuleFile { path: place.to_path_buf(), build_id: None }, _linked: Some(place) })
}

/// Modules below a folder, by the name that the kernel calls them by.
fn collect_modules(folder: &Path, files: &mut HashMap<String, Vec<PathBuf>>, depth: usize) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        // Links lead to the build's folder and out of here.
        let Ok(kind) = entry.file_type() else { continue };
        let path = entry.path();
        if kind.is_dir() && depth < DEEPEST_FOLDER {
            collect_modules(&path, files, depth + 1);
        } else if kind.is_file()
            && let Some(name) = module_name(&entry.file_name().to_string_lossy())
        {
            files.entry(name).or_default().push(path);
        }
    }
}

/// The name of the module in a file of this name; `None` for a file that is none.
fn module_name(file: &str) -> Option<String> {
    let plain = COMPRESSED.iter().find_map(|ending| file.strip_suffix(ending)).unwrap_or(file);
    let name = plain.strip_suffix(".ko.debug").or_else(|| plain.strip_suffix(".ko"))?;
    Some(name.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use leakscope_kernel::dump::Decoder;

    use super::*;

    #[test]
    fn modules_by_the_name_of_their_file() {
        for (file, name) in [
            ("snd-hda.ko", Some("snd_hda")),
            ("ext4.ko.debug", Some("ext4")),
            ("ext4.ko.xz", Some("ext4")),
            ("ext4.ko.zst", Some("ext4")),
            ("ext4.ko.debug.gz", Some("ext4")),
            ("modules.dep.gz", None),
            ("ext4.ko.bz2", None),
        ] {
            assert_eq!(module_name(file).as_deref(), name, "{file}");
        }
    }

    fn names(system_map: &Path) -> Names {
        let args = KernelNamesArgs { system_map: Some(system_map.to_owned()), ..KernelNamesArgs::default() };
        Names::new(&args, leakscope_symbols::Options::default(), false)
    }

    #[test]
    fn addresses_get_the_names_of_system_map() {
        let folder = tempfile::tempdir().unwrap();
        let map = folder.path().join("System.map");
        std::fs::write(&map, "ffffffff81000000 T _stext\nffffffff81000200 t make\nffffffff81000300 T end\n").unwrap();
        let mut decoder = Decoder::default();
        let text = "unreferenced object 0xffff888101 (size 16):\n  comm \"x\", pid 7, jiffies 100\n  backtrace:\n    \
                    [<00000000c3a5d3c8>] 0xffffffff81000210\n    0xffffffffc0000010\n    f+0x1/0x2\n";
        decoder.read(&mut text.as_bytes()).unwrap();
        let mut dump = decoder.finish();
        let mut named = names(&map);
        named.name_addresses(&mut dump);
        let frames = &dump.backtraces[0].frames;
        let shown: Vec<(&str, u64, u64)> =
            frames.iter().map(|frame| (frame.function.as_str(), frame.offset, frame.size)).collect();
        assert_eq!(shown, [("make", 0x10, 0x100), ("", 0xffff_ffff_c000_0010, 0), ("f", 1, 2)]);
        assert!(named.problems.is_empty());
        let mut none = names(&folder.path().join("none"));
        none.name_addresses(&mut dump);
        let addresses = none.run_time_addresses(&dump.backtraces[0].frames.iter().collect::<Vec<_>>());
        assert!(addresses.is_empty());
        assert_eq!(none.problems.len(), 1, "said once: {:?}", none.problems);
    }
}
