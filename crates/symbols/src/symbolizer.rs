//! The door of the crate: modules in, frames out; which source each module's names came from.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::debuginfod::{Client, Debuginfod};
use crate::demangle::demangle;
use crate::dwarf::{Dwarf, DwarfFrame};
use crate::elf::Elf;
use crate::locate;
use crate::symtab::{NameRef, Symbols, SymbolsBuilder};
use crate::variables::{FrameState, Variable, Variables};

/// What the recorder knew of a module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ModuleFile {
    /// Where the module was loaded from.
    pub path: PathBuf,
    /// The GNU build id that the module had in memory.
    pub build_id: Option<Vec<u8>>,
}

/// Where to look for debug files, and how names are written.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folders that hold separate debug files, as `/usr/lib/debug` does.
    pub debug_dirs: Vec<PathBuf>,
    /// The servers to ask for what is not on this machine; `None` asks nobody.
    pub debuginfod: Option<Debuginfod>,
    /// Whether C++ and Rust names are demangled.
    pub demangle: bool,
}

impl Default for Options {
    /// `/usr/lib/debug`, the servers of the environment, demangled names.
    fn default() -> Options {
        Options {
            debug_dirs: vec![PathBuf::from("/usr/lib/debug")],
            debuginfod: Debuginfod::from_env(),
            demangle: true,
        }
    }
}

/// The best source of names that a module has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// DWARF in the module or in a debug file on this machine.
    Dwarf,
    /// DWARF that debuginfod sent, now or earlier.
    Debuginfod,
    /// `.symtab` or `.dynsym`: functions without files and lines.
    SymbolTable,
    /// The symbols in `.gnu_debugdata`: functions without files and lines.
    MiniDebugInfo,
    /// The file names nothing.
    None,
    /// The file is gone or cannot be read, and nothing else knows its build id.
    Missing,
    /// The file was replaced since the recording: its names would be wrong, so there are none.
    Replaced,
}

/// One function in a stack, real or inlined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// The function as Memcheck prints it: the demangled symbol, with parameters; for an inlined function the plain
    /// name of the source (`push_back`). Empty when only the line is known.
    pub function: String,
    /// The mangled symbol, which `fun:` lines of suppressions are matched with; `None` for an inlined function of a
    /// language that does not mangle.
    pub linkage_name: Option<String>,
    /// The name of the source file, without its folder.
    pub file: Option<String>,
    /// The folder of the source file at compile time.
    pub directory: Option<String>,
    /// The line, from 1.
    pub line: Option<u32>,
    /// The column, from 1.
    pub column: Option<u32>,
    /// Whether the function was inlined into the frame after it.
    pub inlined: bool,
}

impl Frame {
    /// The function with its scope and parameters, for inlined functions too.
    pub fn qualified_name(&self) -> String {
        self.linkage_name.as_deref().map_or_else(|| self.function.clone(), |name| demangle(name).into_owned())
    }
}

/// Resolves addresses, and keeps what it parsed.
pub struct Symbolizer {
    finder: Finder,
    modules: HashMap<ModuleFile, Module>,
}

impl Symbolizer {
    /// A symbolizer that has read nothing yet.
    pub fn new(options: Options) -> Symbolizer {
        let Options { debug_dirs, debuginfod, demangle } = options;
        let finder = Finder { debug_dirs, debuginfod: debuginfod.map(Client::new), demangle };
        Symbolizer { finder, modules: HashMap::new() }
    }

    /// The frames of each address, innermost first, in the order of `addresses`; an address that nothing names gets
    /// no frame. Addresses are those of link time (`Svma`); of a return address, pass the byte before it.
    ///
    /// `progress` hears how many of `addresses` are done, now and then and at the end. The first call for a module
    /// may download its debug file.
    pub fn resolve(
        &mut self,
        module: &ModuleFile,
        addresses: &[u64],
        progress: &mut dyn FnMut(usize),
    ) -> Vec<Vec<Frame>> {
        let demangle = self.finder.demangle;
        let loaded = self.module(module);
        let mut order: Vec<usize> = (0..addresses.len()).collect();
        order.sort_unstable_by_key(|&index| addresses[index]);
        let mut results: Vec<Vec<Frame>> = Vec::new();
        results.resize_with(addresses.len(), Vec::new);
        let mut previous: Option<usize> = None;
        for (done, &index) in order.iter().enumerate() {
            results[index] = match previous {
                Some(previous) if addresses[previous] == addresses[index] => results[previous].clone(),
                _ => loaded.frames(addresses[index], demangle),
            };
            previous = Some(index);
            if done % 1024 == 1023 {
                progress(done + 1);
            }
        }
        progress(addresses.len());
        results
    }

    /// Where the names of a module come from.
    pub fn source(&mut self, module: &ModuleFile) -> Source {
        self.module(module).source
    }

    /// The separate debug file that a module's names come from; `None` when it is the module itself or nothing.
    pub fn debug_file(&mut self, module: &ModuleFile) -> Option<&Path> {
        self.module(module).debug_file.as_deref()
    }

    /// The data symbol around an address of link time, as it is shown, and how far into it the address is.
    pub fn data_symbol(&mut self, module: &ModuleFile, address: u64) -> Option<(String, u64)> {
        let demangled = self.finder.demangle;
        let data = self.data(module);
        let name = data.symbols.find(address)?;
        let start = data.symbols.start(address)?;
        let raw = String::from_utf8_lossy(data.symbols.name(name)).into_owned();
        let shown = if demangled { demangle(&raw).into_owned() } else { raw };
        (!shown.is_empty()).then_some((shown, address - start))
    }

    /// Where the data symbol around an address of link time begins and ends.
    pub fn data_extent(&mut self, module: &ModuleFile, address: u64) -> Option<(u64, u64)> {
        self.data(module).symbols.extent(address)
    }

    /// Where the variables of a frame lie, as ranges relative to its canonical frame address: those that depend on nothing
    /// else. For the parameters see [`Symbolizer::local_variable`].
    pub fn frame_variables(&mut self, module: &ModuleFile, pc: u64, frame: FrameState, bias: u64) -> Vec<(i64, i64)> {
        self.data(module).variables.as_mut().map_or_else(Vec::new, |variables| variables.frame(pc, frame, bias))
    }

    /// The name of the section that an address of link time lies in: `.data`.
    pub fn section(&mut self, module: &ModuleFile, address: u64) -> Option<String> {
        let elf = Elf::open(&self.module(module).main_file.clone()?)?;
        Some(String::from_utf8_lossy(elf.section_of(address)?).into_owned())
    }

    /// Where the function around an address of link time begins.
    pub fn function_start(&mut self, module: &ModuleFile, address: u64) -> Option<u64> {
        self.module(module).symbols.start(address)
    }

    /// The global or static variable at an address of link time.
    pub fn global_variable(&mut self, module: &ModuleFile, address: u64) -> Option<Variable> {
        self.data(module).variables.as_mut()?.global(address)
    }

    /// The local variable or parameter at an address of run time, for a frame of the function around `pc`, an address of
    /// link time in the instruction that runs or the call that is on its way. `bias` is the difference of the two.
    pub fn local_variable(
        &mut self,
        module: &ModuleFile,
        pc: u64,
        frame: FrameState,
        bias: u64,
        address: u64,
    ) -> Option<Variable> {
        self.data(module).variables.as_mut()?.local(pc, frame, bias, address)
    }

    /// What is known of a module's data, read when it is first asked for.
    fn data(&mut self, module: &ModuleFile) -> &mut Data {
        let loaded = self.module(module);
        if loaded.data.is_none() {
            let files = (loaded.main_file.clone(), loaded.debug_file.clone());
            let data = self.finder.data(files.0.as_deref(), files.1.as_deref());
            self.module(module).data = Some(data);
        }
        self.module(module).data.get_or_insert_default()
    }

    fn module(&mut self, module: &ModuleFile) -> &mut Module {
        if !self.modules.contains_key(module) {
            let loaded = self.finder.load(module);
            self.modules.insert(module.clone(), loaded);
        }
        self.modules.get_mut(module).expect("inserted above")
    }
}

/// Finds the files of a module.
struct Finder {
    debug_dirs: Vec<PathBuf>,
    debuginfod: Option<Client>,
    demangle: bool,
}

impl Finder {
    fn load(&mut self, module: &ModuleFile) -> Module {
        let on_disk = Elf::open(&module.path);
        let disk_id = on_disk.as_ref().and_then(Elf::build_id);
        let replaced = matches!((&module.build_id, &disk_id), (Some(recorded), Some(found)) if recorded != found);
        let main = on_disk.filter(|_| !replaced);
        let build_id = module.build_id.clone().or(disk_id);

        // A debug file with the recorded build id is right even when the module itself is gone or replaced.
        let own_dwarf = main.as_ref().is_some_and(Elf::has_debug_info);
        let mut debug = None;
        let mut downloaded = false;
        if !own_dwarf {
            debug = build_id
                .as_deref()
                .and_then(|id| locate::by_build_id(&self.debug_dirs, id))
                .or_else(|| main.as_ref().and_then(|main| locate::by_debug_link(&self.debug_dirs, main)));
            if !debug.as_ref().is_some_and(Elf::has_debug_info)
                && let Some(found) = build_id.as_deref().and_then(|id| self.debuginfod.as_mut()?.find(id))
            {
                debug = Some(found);
                downloaded = true;
            }
        }
        let mut loaded = self.read(&module.path, main.as_ref(), debug.as_ref());
        if loaded.source == Source::Dwarf && downloaded {
            loaded.source = Source::Debuginfod;
        }
        if main.is_none() && debug.is_none() {
            loaded.source = if replaced { Source::Replaced } else { Source::Missing };
        }
        loaded
    }

    fn read(&mut self, path: &Path, main: Option<&Elf>, debug: Option<&Elf>) -> Module {
        let mut builder = SymbolsBuilder::default();
        let mut source = Source::None;
        let mut has_symtab = false;
        for elf in [main, debug].into_iter().flatten() {
            has_symtab |= builder.add(elf, ".symtab");
        }
        if let Some(main) = main {
            if builder.add(main, ".dynsym") || has_symtab {
                source = Source::SymbolTable;
            }
            if !has_symtab
                && let Some(mini) = main.mini_debug_info()
                && builder.add(&mini, ".symtab")
            {
                source = Source::MiniDebugInfo;
            }
        } else if has_symtab {
            source = Source::SymbolTable;
        }
        let dwarf_file = [main, debug].into_iter().flatten().find(|elf| elf.has_debug_info());
        let dwarf = dwarf_file.and_then(|elf| {
            let supplement = self.supplement(elf);
            Dwarf::load(elf, supplement.as_ref(), path)
        });
        if dwarf.is_some() {
            source = Source::Dwarf;
        }
        let (main_file, debug_file) = (main.map(|elf| elf.path.clone()), debug.map(|elf| elf.path.clone()));
        Module { source, main_file, debug_file, symbols: builder.finish(), dwarf, last_symbol: None, data: None }
    }

    fn data(&mut self, main: Option<&Path>, debug: Option<&Path>) -> Data {
        let files: Vec<Elf> = [main, debug].into_iter().flatten().filter_map(Elf::open).collect();
        let mut builder = SymbolsBuilder::default();
        for elf in &files {
            builder.add_data(elf, ".symtab");
        }
        if let Some(first) = files.first() {
            builder.add_data(first, ".dynsym");
        }
        let variables = files.iter().find(|elf| elf.has_debug_info()).and_then(|elf| {
            let supplement = self.supplement(elf);
            Variables::load(elf, supplement.as_ref())
        });
        Data { symbols: builder.finish(), variables }
    }

    fn supplement(&mut self, debug_file: &Elf) -> Option<Elf> {
        let (_, build_id) = debug_file.alt_link()?;
        locate::by_alt_link(&self.debug_dirs, debug_file)
            .or_else(|| self.debuginfod.as_mut().and_then(|client| client.find(&build_id)))
    }
}

/// A module whose files have been found and opened.
struct Module {
    source: Source,
    /// The module itself, when it is there and unchanged.
    main_file: Option<PathBuf>,
    debug_file: Option<PathBuf>,
    symbols: Symbols,
    dwarf: Option<Dwarf>,
    /// The symbol that was named last: sorted addresses ask for the same one again and again.
    last_symbol: Option<(NameRef, String, String)>,
    /// Its data, once somebody asked.
    data: Option<Data>,
}

/// What is known of a module's data.
#[derive(Default)]
struct Data {
    symbols: Symbols,
    variables: Option<Variables>,
}

impl Module {
    fn frames(&mut self, address: u64, demangled: bool) -> Vec<Frame> {
        let mut frames = self.dwarf.as_mut().map(|dwarf| dwarf.frames(address)).unwrap_or_default();
        let outermost = frames.pop();
        let mut result: Vec<Frame> = frames.into_iter().map(|frame| inlined_frame(frame, demangled)).collect();
        let symbol = self.symbol(address, demangled);
        if outermost.is_none() && symbol.is_none() {
            return result;
        }
        let (dwarf_name, mut frame) = match outermost {
            Some(mut outermost) => (outermost.name.take(), located(outermost)),
            None => (None, Frame::default()),
        };
        // The symbol before DWARF, as Memcheck does: it tells clones and thunks apart.
        if let Some((linkage_name, function)) = symbol {
            frame.function = function;
            frame.linkage_name = Some(linkage_name);
        } else if let Some(name) = dwarf_name {
            frame.function = if demangled { demangle(&name).into_owned() } else { name.clone() };
            frame.linkage_name = Some(name);
        }
        result.push(frame);
        result
    }

    /// The raw and the shown name of the symbol at an address.
    fn symbol(&mut self, address: u64, demangled: bool) -> Option<(String, String)> {
        if self.symbols.is_empty() {
            return None;
        }
        let found = self.symbols.find(address)?;
        if let Some((last, raw, shown)) = &self.last_symbol
            && *last == found
        {
            return Some((raw.clone(), shown.clone()));
        }
        let raw = String::from_utf8_lossy(self.symbols.name(found)).into_owned();
        if raw.is_empty() {
            return None;
        }
        let shown = if demangled { demangle(&raw).into_owned() } else { raw.clone() };
        self.last_symbol = Some((found, raw.clone(), shown.clone()));
        Some((raw, shown))
    }
}

fn inlined_frame(mut frame: DwarfFrame, demangled: bool) -> Frame {
    let name = frame.name.take();
    let linkage_name = name.clone().filter(|name| crate::demangle::is_mangled(name));
    let function = match (frame.short_name.take(), name) {
        (Some(short), _) if demangled => short.as_ref().to_owned(),
        (None, Some(name)) if demangled => demangle(&name).into_owned(),
        (_, name) => name.unwrap_or_default(),
    };
    Frame { function, linkage_name, inlined: true, ..located(frame) }
}

/// A frame with its place in the source only.
fn located(frame: DwarfFrame) -> Frame {
    let (directory, file) = match frame.file {
        Some(path) => match path.rsplit_once('/') {
            Some(("", file)) => (Some("/".to_owned()), Some(file.to_owned())),
            Some((directory, file)) => (Some(directory.to_owned()), Some(file.to_owned())),
            None => (None, Some(path)),
        },
        None => (None, None),
    };
    Frame { file, directory, line: frame.line, column: frame.column, ..Frame::default() }
}
