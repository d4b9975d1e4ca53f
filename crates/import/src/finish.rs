//! From what a log said to recordings: names for bare addresses, and the allocator's own frames taken off.
//!
//! Our fingerprints and Memcheck's suppressions want stacks that begin with the allocation function and go on with
//! its caller. Every tool shows other frames in front (a hook, an interceptor, `operator new` in the C++ library above
//! the `malloc` that it calls), so these are recognised by name here, after addresses have got names.

use std::collections::BTreeMap;
use std::sync::Arc;

use leakscope_findings::recording::{FrameRecord, Module, ProcessRecording, ResolvedFrame};
use leakscope_model::{AllocFn, MisuseKind, Tool};

use crate::sink::{Base, Front, Map, Process, Sink, Unread};

/// Gives names to addresses of files that are at hand. Importing reads no file itself.
pub trait Resolver {
    /// The lowest link-time address of the file (0 for libraries and most executables), `None` when it is not there.
    fn first_svma(&mut self, path: &str) -> Option<u64>;

    /// The frames of each link-time address, innermost first, in the order of `addresses`; of an address without a
    /// name none. Addresses lie inside of their instruction.
    fn resolve(&mut self, path: &str, build_id: &[u8], addresses: &[u64]) -> Vec<Vec<ResolvedFrame>>;
}

/// Resolves nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoNames;

impl Resolver for NoNames {
    fn first_svma(&mut self, _path: &str) -> Option<u64> {
        None
    }

    fn resolve(&mut self, _path: &str, _build_id: &[u8], _addresses: &[u64]) -> Vec<Vec<ResolvedFrame>> {
        Vec::new()
    }
}

/// What a file held.
#[derive(Debug, Default)]
pub struct Imported {
    /// Its processes, in the order in which they appear.
    pub processes: Vec<ProcessRecording>,
    /// What could not be read.
    pub unread: Unread,
}

pub(crate) fn finish(sink: Sink, resolver: &mut dyn Resolver) -> Imported {
    let processes = sink.processes.into_iter().map(|process| finish_process(process, resolver)).collect();
    Imported { processes, unread: sink.unread }
}

fn finish_process(mut process: Process, resolver: &mut dyn Resolver) -> ProcessRecording {
    place(&mut process);
    name(&mut process, resolver);
    strip(&mut process);
    let sum = |process: &ProcessRecording, pick: fn(&leakscope_findings::recording::Totals) -> u64| {
        process.sites.iter().map(|site| pick(&site.totals)).fold(0_u64, u64::saturating_add)
    };
    if let Some((allocations, releases, bytes)) = process.heap {
        let known_blocks = sum(&process.out, |totals| totals.allocated_blocks);
        let known_bytes = sum(&process.out, |totals| totals.allocated_bytes);
        let known_frees = sum(&process.out, |totals| totals.freed_blocks);
        // Wrong releases are calls too, and are counted by themselves in a report.
        let wrong = process.out.misuses.iter().filter(|misuse| is_wrong_release(misuse.kind));
        let wrong = wrong.fold(0_u64, |sum, misuse| sum.saturating_add(misuse.count.into()));
        let rest = &mut process.out.sites[0].totals;
        rest.allocated_blocks = allocations.saturating_sub(known_blocks);
        rest.allocated_bytes = bytes.saturating_sub(known_bytes);
        rest.freed_blocks = releases.saturating_sub(known_frees).saturating_sub(wrong);
    }
    for check in &mut process.out.checks {
        let records = check.records.as_deref().unwrap_or_default();
        if check.blocks == 0 && check.bytes == 0 {
            check.blocks = records.iter().fold(0, |sum, record| sum.saturating_add(record.blocks));
            check.bytes = records.iter().fold(0, |sum, record| sum.saturating_add(record.bytes));
        }
    }
    process.out.strings = process.strings.list;
    process.out
}

/// Calls that released nothing.
fn is_wrong_release(kind: MisuseKind) -> bool {
    matches!(kind, MisuseKind::DoubleFree | MisuseKind::InvalidFree | MisuseKind::InteriorFree)
}

/// Finds the module of each bare address, where the log had the process's memory map.
fn place(process: &mut Process) {
    if process.mappings.is_empty() {
        return;
    }
    let mut first: Map<Arc<str>, u64> = Map::default();
    for mapping in &process.mappings {
        let start = first.entry(mapping.path.clone()).or_insert(mapping.start);
        *start = (*start).min(mapping.start);
    }
    let mut mappings = std::mem::take(&mut process.mappings);
    mappings.sort_by_key(|mapping| mapping.start);
    for number in 1..process.out.locations.len() {
        let location = process.out.locations[number];
        if location.module != 0 {
            continue;
        }
        let after = mappings.partition_point(|mapping| mapping.start <= location.pc);
        let Some(mapping) = after.checked_sub(1).map(|at| &mappings[at]) else { continue };
        if location.pc >= mapping.end || !mapping.path.starts_with('/') {
            continue;
        }
        let offset = location.pc - first[&mapping.path];
        let module = process.module(&mapping.path, Base::FirstByte, location.pc, Some(offset));
        process.out.locations[number].module = module;
        process.offsets[number] = Some(offset);
    }
}

/// Names for locations that have a module and an address in it but no function.
fn name(process: &mut Process, resolver: &mut dyn Resolver) {
    let mut wanted: BTreeMap<u32, Vec<(u64, u32)>> = BTreeMap::new();
    for (number, location) in process.out.locations.iter().enumerate().skip(1) {
        let named = process.out.frames_of(location).iter().any(|frame| frame.function != 0);
        if let (Some(offset), false) = (process.offsets[number], named || location.module == 0) {
            wanted.entry(location.module - 1).or_default().push((offset, number as u32));
        }
    }
    let mut shifts = vec![0_u64; process.modules.len()];
    for (&module, addresses) in &mut wanted {
        let text = process.modules[module as usize].clone();
        let first = resolver.first_svma(&text.path);
        if text.base == Base::FirstByte {
            shifts[module as usize] = first.unwrap_or(0);
        }
        if first.is_none() {
            continue;
        }
        addresses.sort_unstable();
        let shift = shifts[module as usize];
        let svmas: Vec<u64> = addresses.iter().map(|&(offset, _)| offset.wrapping_add(shift)).collect();
        let resolved = resolver.resolve(&text.path, &text.build_id, &svmas);
        for (&(_, number), frames) in addresses.iter().zip(resolved).filter(|(_, frames)| !frames.is_empty()) {
            let location = &mut process.out.locations[number as usize];
            location.first_frame = process.out.frames.len() as u32;
            location.frames = frames.len() as u32;
            for frame in &frames {
                let record = process.strings.frame(frame);
                process.out.frames.push(record);
            }
        }
    }
    for (&number, &function) in &process.fallback {
        let location = &mut process.out.locations[number as usize];
        if location.frames == 0 {
            location.first_frame = process.out.frames.len() as u32;
            location.frames = 1;
            process.out.frames.push(FrameRecord { function, ..FrameRecord::default() });
        }
    }
    process.out.modules = process
        .modules
        .iter()
        .zip(&shifts)
        .map(|(module, &shift)| Module {
            start: module.bias.unwrap_or(0),
            end: u64::MAX,
            load_bias: module.bias.unwrap_or(0).wrapping_sub(shift),
            path: module.path.clone(),
            build_id: module.build_id.clone(),
            unloaded: false,
        })
        .collect();
}

/// Takes the allocator's frames off the stacks of sites, and says which module they were in.
fn strip(process: &mut Process) {
    let named: Vec<Option<AllocFn>> = process.strings.list.iter().map(|name| alloc_fn(name)).collect();
    let mut hook = None;
    for number in 1..process.out.sites.len() {
        let site = &process.out.sites[number];
        let front = process.fronts[number];
        let (leaf, function, module) = stripped(&process.out, site.leaf, front, &named);
        hook = hook.or(module);
        let site = &mut process.out.sites[number];
        site.leaf = leaf;
        site.function = function;
    }
    // Without one a report would call it ours.
    if process.out.witness.tool != Tool::Leakscope && process.out.hook_module.is_none() {
        process.out.hook_module = Some(hook.unwrap_or_else(|| {
            let path = process.out.witness.tool.name().into();
            process.out.modules.push(Module { path, ..Module::default() });
            process.out.modules.len() as u32 - 1
        }));
    }
}

/// Frames in front that may be an allocator's own.
const DEEPEST_FRONT: usize = 12;

/// The leaf without the allocator's frames, the allocation function, and its module.
fn stripped(
    process: &ProcessRecording,
    leaf: u32,
    front: Front,
    named: &[Option<AllocFn>],
) -> (u32, AllocFn, Option<u32>) {
    if let Front::Absent(function) = front {
        return (leaf, function, None);
    }
    let mut rest = leaf;
    let mut function = None;
    let mut module = None;
    let mut node = leaf;
    for depth in 0..DEEPEST_FRONT {
        let Some(at) = process.nodes.get(node as usize).filter(|_| node != 0) else { break };
        let location = process.locations[at.location as usize];
        let frame = process.frames_of(&location).last().copied().unwrap_or_default();
        let by_name = [frame.linkage_name, frame.function].iter().find_map(|&name| named[name as usize]);
        let path = process.module_of(&location).map(|module| module.path.as_ref()).unwrap_or_default();
        let takes = match front {
            _ if by_name.is_some() => true,
            Front::Callee => depth == 0 && (frame.function == 0 || is_allocator(path) && !is_program_like(frame, path)),
            Front::Deep => function.is_none() && (is_allocator(path) || is_internal(&process.string(frame.function))),
            Front::Caller | Front::Absent(_) => false,
        };
        if !takes {
            break;
        }
        function = by_name.or(function);
        module = module.or(location.module.checked_sub(1));
        node = at.parent;
        rest = node;
    }
    (rest, function.unwrap_or(AllocFn::Malloc), module)
}

/// A named function of a library that is known to hold an allocator may still be one that only calls it, as `strdup`
/// of a sanitizer's run time does.
fn is_program_like(frame: FrameRecord, path: &str) -> bool {
    frame.function != 0 && is_sanitizer(path)
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn is_sanitizer(path: &str) -> bool {
    let name = file_name(path);
    ["libasan.", "liblsan.", "libtsan.", "libhwasan.", "libclang_rt."].iter().any(|front| name.starts_with(front))
}

fn is_allocator(path: &str) -> bool {
    let name = file_name(path);
    is_sanitizer(path)
        || ["libjemalloc", "libtcmalloc", "libmimalloc", "libc_malloc_debug", "vgpreload_"]
            .iter()
            .any(|front| name.starts_with(front))
}

/// jemalloc's own functions, in a program that it is linked into.
fn is_internal(function: &str) -> bool {
    ["prof_", "je_", "_rjem_", "imalloc", "ialloc", "large_", "arena_"].iter().any(|front| function.starts_with(front))
}

/// The allocation function that other tools and allocators call so.
pub(crate) fn alloc_fn(name: &str) -> Option<AllocFn> {
    if name.is_empty() || name.len() > 96 {
        return None;
    }
    let name = name.split_once('@').map_or(name, |(front, _)| front);
    let known = |name: &str| {
        AllocFn::ALL.iter().copied().find(|function| function.symbol() == name || function.demangled() == name)
    };
    if let Some(function) = known(name) {
        return Some(function);
    }
    for front in
        ["__libc_", "__interceptor_", "___interceptor_", "je_", "_rjem_", "_rjem_je_", "tc_", "mi_", "replace_"]
    {
        if let Some(function) = name.strip_prefix(front).and_then(known) {
            return Some(function);
        }
    }
    match name {
        "operator new" | "replace_operator_new" | "tc_new" => Some(AllocFn::New),
        "operator new[]" | "replace_operator_new_array" | "tc_newarray" => Some(AllocFn::NewArray),
        "operator delete" | "replace_operator_delete" => Some(AllocFn::Delete),
        "operator delete[]" | "replace_operator_delete_array" => Some(AllocFn::DeleteArray),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocation_functions_by_table() {
        for (name, expected) in [
            ("malloc", Some(AllocFn::Malloc)),
            ("__interceptor_realloc", Some(AllocFn::Realloc)),
            ("operator new(unsigned long)", Some(AllocFn::New)),
            ("_Znam", Some(AllocFn::NewArray)),
            ("_rjem_malloc", Some(AllocFn::Malloc)),
            ("malloc@@GLIBC_2.2.5", Some(AllocFn::Malloc)),
            ("operator delete[](void*)", Some(AllocFn::DeleteArray)),
            ("strdup", None),
            ("my_malloc", None),
            ("", None),
        ] {
            assert_eq!(alloc_fn(name), expected, "{name}");
        }
    }
}
