//! Mapped files with code: told to the outside, their unwind tables known, their functions looked for.

use std::ffi::CString;

use leakscope_ledger::events::{self, Event};

use crate::elf_symbols::{Facts, SymbolFile};
use crate::engine::Memcheck;
use crate::functions::{Function, matches};

/// A mapped file.
#[derive(Clone, Debug)]
pub struct Module {
    /// Its number.
    pub number: u32,
    /// Lowest address.
    pub start: u64,
    /// End.
    pub end: u64,
    /// Run-time address less link-time address.
    pub bias: u64,
    /// Path.
    pub path: Vec<u8>,
    /// Whether it is mapped.
    pub is_there: bool,
}

/// All modules that were ever mapped.
#[derive(Clone, Debug, Default)]
pub struct Modules {
    list: Vec<Module>,
    folded: Vec<u64>,
}

impl Modules {
    /// The mapped module around an address.
    pub fn find(&self, address: u64) -> Option<&Module> {
        self.list.iter().rev().find(|module| module.is_there && (module.start..module.end).contains(&address))
    }

    /// Whether the linker made one function of several there, so that nobody knows which of them was called.
    pub fn is_folded(&self, address: u64) -> bool {
        self.folded.contains(&address)
    }
}

impl Modules {
    /// Those that are mapped.
    pub fn mapped(&self) -> Vec<Module> {
        self.list.iter().filter(|module| module.is_there).cloned().collect()
    }
}

/// A function of a module that wants a hook: address, function, whether it is an IFUNC.
pub struct Found {
    /// Run-time address.
    pub address: u64,
    /// Which function.
    pub function: Function,
    /// `STT_GNU_IFUNC`.
    pub is_indirect: bool,
}

impl Memcheck {
    /// A file was mapped with execute permission: `offset` of it lies at `address`. Gives the functions to replace.
    pub fn module_mapped(&mut self, path: &[u8], address: u64, offset: u64) -> Vec<Found> {
        if self.modules.find(address).is_some_and(|module| module.path == path) {
            return Vec::new();
        }
        let Some(file) = CString::new(path).ok().and_then(|path| SymbolFile::open(&path)) else { return Vec::new() };
        let Some(linked) = file.address_of_code(offset) else { return Vec::new() };
        let bias = address.wrapping_sub(linked);
        let facts = file.facts();
        let (start, end) = (facts.extent.0.wrapping_add(bias), facts.extent.1.wrapping_add(bias));
        let number = self.modules.list.len() as u32;
        self.modules.list.push(Module { number, start, end, bias, path: path.to_vec(), is_there: true });
        self.output.tell(&Event::Module(events::Module {
            number,
            start,
            end,
            load_bias: bias,
            path: path.to_vec(),
            build_id: facts.build_id.clone(),
        }));
        if let Some(header) = facts.eh_frame_hdr {
            self.unwinder.add(start, end, header.wrapping_add(bias));
            self.recall.forget();
        }
        self.functions_of(&file, &facts, bias, path)
    }

    fn functions_of(&mut self, file: &SymbolFile, facts: &Facts, bias: u64, path: &[u8]) -> Vec<Found> {
        let is_program = path == self.program.path;
        let has_strings = is_program || is_c_library(&facts.soname);
        let soname: &[u8] = if facts.soname.is_empty() { b"NONE" } else { &facts.soname };
        let standard = is_c_library(soname) || is_cxx_library(soname) || is_program;
        let has_allocator = match &self.options.allocator_sonames {
            None => true,
            Some(patterns) => standard || patterns.iter().any(|pattern| matches(pattern.as_bytes(), soname)),
        };
        let (names, freeres, folded) = (&self.names, &mut self.freeres, &mut self.modules.folded);
        let mut found: Vec<Found> = Vec::new();
        let wrappers = &mut self.wrappers;
        file.functions(|symbol| {
            let address = symbol.value.wrapping_add(bias);
            if symbol.name.starts_with(b"_vg") {
                wrappers.add(symbol.name, address);
            }
            if matches!(symbol.name, b"__libc_freeres" | b"_ZN9__gnu_cxx9__freeresEv") && !freeres.contains(&address) {
                // libstdc++ first, as Memcheck does.
                if symbol.name.starts_with(b"_ZN") { freeres.insert(0, address) } else { freeres.push(address) }
            }
            let Some(function) = names.find(symbol.name) else { return };
            let wanted = match function {
                Function::Text(_) => has_strings,
                Function::Alloc(_) | Function::UsableSize => has_allocator,
            };
            if !wanted {
                return;
            }
            match found.iter().find(|known| known.address == address) {
                None => found.push(Found { address, function, is_indirect: symbol.is_indirect }),
                Some(known) if family(known.function) != family(function) => folded.push(address),
                Some(_) => {}
            }
        });
        found
    }

    /// Memory was unmapped: modules in it are gone. Gives whether any was.
    pub fn modules_unmapped(&mut self, start: u64, end: u64) -> bool {
        self.recall.unmapped(start, end);
        let mut gone = Vec::new();
        for module in &mut self.modules.list {
            if module.is_there && start <= module.start && module.start < end {
                module.is_there = false;
                gone.push(module.number);
                self.unwinder.remove(module.start, module.end);
                self.recall.forget();
                self.freeres.retain(|address| !(module.start..module.end).contains(address));
            }
        }
        for &number in &gone {
            self.output.tell(&Event::ModuleGone { number });
        }
        !gone.is_empty()
    }
}

fn family(function: Function) -> Option<leakscope_model::AllocFamily> {
    match function {
        Function::Alloc(function) => Some(function.family()),
        _ => None,
    }
}

fn is_c_library(soname: &[u8]) -> bool {
    soname.starts_with(b"libc.so") || soname.starts_with(b"ld-linux") || soname.starts_with(b"libc.musl")
}

fn is_cxx_library(soname: &[u8]) -> bool {
    soname.starts_with(b"libstdc++") || soname.starts_with(b"libc++")
}
