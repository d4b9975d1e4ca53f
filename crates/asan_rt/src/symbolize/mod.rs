//! Names for addresses, inside the process: DWARF by `addr2line`, symbol tables by a reader of our own.
//!
//! Only reports ask, so this may take its time and memory; both come from the arena. One thread at a time.

mod debug_info;
mod demangle;
pub mod elf;
mod variables;

pub use demangle::demangle;

use crate::modules::{self, Module};
use crate::options::options;
use crate::sys;
use addr2line::Context;
use alloc::boxed::Box;
use alloc::ffi::CString;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use debug_info::{DebugInfo, Reader};
use elf::{Elf, Symbol};
use leakscope_rt::memory::Lock;

/// What is known of an address in code.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// The address itself.
    pub address: usize,
    /// The function, demangled.
    pub function: Option<String>,
    /// Its source file.
    pub file: Option<String>,
    /// Line; 0 when unknown.
    pub line: u32,
    /// Column; 0 when unknown.
    pub column: u32,
    /// The object's path.
    pub module: Option<String>,
    /// The address as linked.
    pub offset: usize,
    /// The object's build id.
    pub build_id: Vec<u8>,
}

/// A variable at an address.
#[derive(Clone, Debug)]
pub struct Variable {
    /// Its name.
    pub name: String,
    /// Its source file.
    pub file: String,
    /// Line; 0 when unknown.
    pub line: u32,
    /// Its address.
    pub start: usize,
    /// Its bytes; 0 when unknown.
    pub bytes: usize,
}

struct Object {
    module: Module,
    symbols: Vec<Symbol<'static>>,
    /// Reads `info`, and so is dropped before it.
    context: Option<Box<Context<Reader<'static>>>>,
    info: Option<Box<DebugInfo>>,
}

struct Cache {
    lock: Lock,
    objects: UnsafeCell<Vec<Object>>,
}
// SAFETY: the objects are only touched with the lock held.
unsafe impl Sync for Cache {}

static CACHE: Cache = Cache { lock: Lock::new(), objects: UnsafeCell::new(Vec::new()) };

fn load(module: Module) -> Object {
    let path = CString::new(module.path.as_str()).ok();
    let Some(own) = path.and_then(|path| sys::map_file(&path)).and_then(Elf::new) else {
        return Object { module, symbols: Vec::new(), context: None, info: None };
    };
    let (info, apart) = debug_info::find(&module, own);
    let mut symbols = own.symbols();
    symbols.extend(apart.iter().flat_map(Elf::symbols));
    symbols.sort_by_key(|symbol| symbol.value);
    let info = info.map(Box::new);
    let context = info.as_deref().and_then(|info| {
        // SAFETY: `info` stays where it is, in its box, as long as the context that is made of it.
        let info: &'static DebugInfo = unsafe { &*core::ptr::from_ref(info) };
        Context::from_dwarf(info.dwarf()).ok().map(Box::new)
    });
    Object { module, symbols, context, info }
}

/// Runs `body` with the object that holds an address.
fn with_object<R>(address: usize, body: impl FnOnce(&Object) -> R) -> Option<R> {
    let _held = CACHE.lock.lock();
    // SAFETY: the lock is held.
    let objects = unsafe { &mut *CACHE.objects.get() };
    let holds = |object: &Object| object.module.contains(address);
    if !objects.iter().any(holds) {
        let module = modules::find(address)?;
        // Something else may have been there before.
        objects.retain(|object| {
            !object.module.segments.iter().any(|&(start, ..)| module.segments.iter().any(|&(s, ..)| s == start))
        });
        objects.push(load(module));
    }
    objects.iter().find(|object| holds(object)).map(body)
}

/// Forgets what was read: an object may have gone.
pub fn forget() {
    let Some(_held) = CACHE.lock.try_lock() else { return };
    // SAFETY: the lock is held.
    unsafe { (*CACHE.objects.get()).clear() };
}

impl Object {
    fn svma(&self, address: usize) -> usize {
        address.wrapping_sub(self.module.bias)
    }

    fn symbol(&self, svma: u64, functions: bool) -> Option<&Symbol<'static>> {
        let after = self.symbols.partition_point(|symbol| symbol.value <= svma);
        let before = self.symbols.get(..after)?;
        // The nearest start that reaches this far; without a size, any that is near.
        before.iter().rev().take(64).filter(|symbol| symbol.is_function == functions).find(|symbol| {
            let distance = svma - symbol.value;
            distance < symbol.bytes || (symbol.bytes == 0 && distance < 1 << 20)
        })
    }

    fn frame(&self, address: usize) -> Frame {
        Frame {
            address,
            module: Some(self.module.path.clone()),
            offset: self.svma(address),
            build_id: self.module.build_id.clone(),
            ..Frame::default()
        }
    }

    fn frames(&self, address: usize) -> Vec<Frame> {
        let svma = self.svma(address) as u64;
        let mut all = Vec::new();
        // Of our own library only the name of the exported function means something to a user.
        let context = self.context.as_ref().filter(|_| !modules::is_own_code(address));
        if let Some(context) = context
            && let Ok(mut found) = context.find_frames(svma).skip_all_loads()
        {
            while let Ok(Some(inner)) = found.next() {
                let mut frame = self.frame(address);
                frame.function = inner.function.and_then(|name| name.raw_name().ok().map(|name| demangle(&name)));
                if let Some(location) = inner.location {
                    frame.file = location.file.map(strip_prefix);
                    frame.line = location.line.unwrap_or(0);
                    frame.column = location.column.unwrap_or(0);
                }
                all.push(frame);
            }
            if !options().symbolize_inline_frames && all.len() > 1 {
                // The outermost function, at the innermost line.
                let outermost = all.pop();
                all.truncate(1);
                if let (Some(first), Some(outermost)) = (all.first_mut(), outermost) {
                    first.function = outermost.function;
                }
            }
        }
        if all.is_empty() {
            all.push(self.frame(address));
        }
        if let Some(first) = all.first_mut().filter(|frame| frame.file.is_none() && frame.function.is_some()) {
            // Code that the compiler made on its own has no line, but a file.
            first.file = self.unit_name(svma);
        }
        if let Some(outermost) = all.last_mut().filter(|frame| frame.function.is_none()) {
            let symbol = self.symbol(svma, true);
            outermost.function = symbol.map(|symbol| demangle(symbol.name));
            if outermost.file.is_none() {
                outermost.file = symbol.and_then(|symbol| symbol.file).map(String::from);
            }
        }
        all
    }
}

impl Object {
    /// The source file of the compilation unit at an address.
    fn unit_name(&self, svma: u64) -> Option<String> {
        let unit = self.context.as_ref()?.find_dwarf_and_unit(svma).skip_all_loads()?;
        let name = unit.name.as_ref()?.to_string_lossy();
        if name.starts_with('/') {
            return Some(strip_prefix(&name));
        }
        let folder = unit.comp_dir.as_ref().map(|folder| folder.to_string_lossy()).unwrap_or_default();
        Some(strip_prefix(&alloc::format!("{folder}/{name}")))
    }
}

fn strip_prefix(path: &str) -> String {
    let prefix = options().strip_path_prefix;
    let stripped = match path.find(prefix) {
        Some(at) if !prefix.is_empty() => path.get(at + prefix.len()..).unwrap_or(path),
        _ => path,
    };
    String::from(stripped.strip_prefix("./").unwrap_or(stripped))
}

/// The functions at an address in code, innermost first; at least one frame, which may be empty.
#[must_use]
pub fn frames_at(address: usize) -> Vec<Frame> {
    if !options().symbolize {
        let module = modules::find(address);
        return alloc::vec![match module {
            Some(module) => Frame {
                address,
                offset: address.wrapping_sub(module.bias),
                module: Some(module.path),
                build_id: module.build_id,
                ..Frame::default()
            },
            None => Frame { address, ..Frame::default() },
        }];
    }
    with_object(address, |object| object.frames(address))
        .unwrap_or_else(|| alloc::vec![Frame { address, ..Frame::default() }])
}

/// The variable at an address.
#[must_use]
pub fn variable_at(address: usize) -> Option<Variable> {
    with_object(address, |object| {
        let svma = object.svma(address) as u64;
        let (file, line) = object.info.as_ref().and_then(|info| variables::find(info, svma)).unwrap_or_default();
        let symbol = object.symbol(svma, false);
        if symbol.is_none() && line == 0 {
            return None;
        }
        Some(Variable {
            name: symbol.map_or_else(String::new, |symbol| String::from(symbol.name)),
            file: strip_prefix(&file),
            line,
            start: symbol.map_or(address, |symbol| (symbol.value as usize).wrapping_add(object.module.bias)),
            bytes: symbol.map_or(0, |symbol| symbol.bytes as usize),
        })
    })
    .flatten()
}

/// Opens the lock in a forked child, whoever held it.
pub fn after_fork_in_child() {
    if !CACHE.lock.is_open() {
        CACHE.lock.release();
    }
}
