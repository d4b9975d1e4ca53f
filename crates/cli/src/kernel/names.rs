//! Names for frames of the kernel: run-time addresses from `/proc/kallsyms`, files, lines and inlined functions from
//! `vmlinux` and modules that have debug information.
//!
//! A frame says function, offset and the function's size. A file is used only where it has a function of that name and
//! size, and, on the machine that was scanned, the build id of what runs: a wrong file gives no names rather than wrong
//! ones.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use leakscope_findings::recording::ResolvedFrame;
use leakscope_import::{KernelName, KernelNames};
use leakscope_kernel::dump::Frame;
use leakscope_kernel::image::{self, Image, decode_build_id};
use leakscope_kernel::kallsyms::Kallsyms;
use leakscope_kernel::{Places, kmemleak};
use leakscope_symbols::{ModuleFile, Symbolizer};

use crate::flags::kernel::KernelNamesArgs;
use crate::record;

/// A file of a kernel is not larger: an allmodconfig vmlinux has half of that.
const MOST_FILE_BYTES: u64 = 4 << 30;
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
    fn run_time_addresses(&self, frames: &[&Frame]) -> HashMap<(String, String), u64> {
        let table = match (&self.args.system_map, self.is_live) {
            (Some(path), _) => Kallsyms::decode(std::fs::read_to_string(path).unwrap_or_default()),
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

/// Reads a file, and links it where it is a module.
fn read_image(path: &Path, asked: bool) -> Result<Loaded, String> {
    let metadata = std::fs::metadata(path).map_err(|error| format!("cannot look at it: {error}"))?;
    if !metadata.is_file() || metadata.len() > MOST_FILE_BYTES {
        return Err("it is no file of a kernel".to_owned());
    }
    let bytes = std::fs::read(path).map_err(|error| format!("cannot read it: {error}"))?;
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
        } else if kind.is_file() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(name) = name.strip_suffix(".ko.debug").or_else(|| name.strip_suffix(".ko")) {
                files.entry(name.replace('-', "_")).or_default().push(path);
            }
        }
    }
}
