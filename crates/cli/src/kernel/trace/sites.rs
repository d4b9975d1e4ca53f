//! From addresses of the kernel to frames, with what belongs to tracing and to interrupted code taken off.

use std::collections::BTreeSet;

use leakscope_ebpf::Kind;
use leakscope_import::TracedSite;
use leakscope_kernel::Places;
use leakscope_kernel::alloc::{is_entry, plain_name, split_front};
use leakscope_kernel::dump::Frame;
use leakscope_kernel::kallsyms::Kallsyms;
use leakscope_model::AllocFn;

use crate::tracing::{Group, Resolved};

/// A page of the kernel's; the guard behind a mapping of vmalloc is one.
const PAGE_BYTES: f64 = 4096.0;

/// Names for addresses of the kernel.
pub struct Kernel {
    symbols: Kallsyms,
    modules: Modules,
}

/// Modules by name and address, as far as they are loaded.
type Modules = BTreeSet<(String, String)>;

/// The modules that are loaded now.
pub fn loaded_modules() -> Modules {
    modules_of(&std::fs::read_to_string("/proc/modules").unwrap_or_default())
}

/// `name size users by state address` of /proc/modules.
fn modules_of(list: &str) -> Modules {
    let module = |line: &str| {
        let mut words = line.split(' ');
        Some((words.next()?.to_owned(), words.nth(4)?.to_owned()))
    };
    list.lines().filter_map(module).collect()
}

impl Kernel {
    /// Names from a table that was read when these modules were loaded.
    pub fn new(symbols: Kallsyms, modules: Modules) -> Self {
        Self { symbols, modules }
    }

    /// Reads the table again if a module was loaded since; gives whether. Of those that went their names are kept.
    pub fn refresh(&mut self) -> bool {
        let modules = loaded_modules();
        let has_more = !modules.is_subset(&self.modules);
        if has_more {
            self.symbols = Kallsyms::read(&Places::default());
            self.modules = modules;
        }
        has_more
    }

    /// The frame of a return address.
    fn frame(&self, address: u64) -> Frame {
        self.symbols.frame(address).unwrap_or_else(|| Frame { offset: address, ..Frame::default() })
    }

    /// ` caller+0x12 [module]`, or nothing.
    pub fn name_of(&self, address: u64) -> String {
        if address == 0 {
            return String::new();
        }
        let frame = self.frame(address);
        let module = if frame.module.is_empty() { String::new() } else { format!(" [{}]", frame.module) };
        if frame.function.is_empty() {
            format!(" {address:#x}")
        } else {
            format!(" {}+{:#x}{module}", frame.function, frame.offset)
        }
    }

    /// What of a site is its own: without our program in front, without whom an interrupt interrupted.
    pub fn resolve(&self, addresses: &[u64]) -> Resolved {
        let mut frames: Vec<Frame> = addresses.iter().map(|&address| self.frame(address)).collect();
        let own = frames.iter().take(6).rposition(is_tracing).map_or(0, |at| at + 1);
        frames.drain(..own);
        let mut kept = addresses[own..].to_vec();
        // Behind an interrupt's entry lies whatever ran then.
        let interrupt = frames.iter().position(|frame| is_interrupt(&frame.function));
        if let Some(at) = interrupt {
            frames.truncate(at + 1);
            kept.truncate(at + 1);
        }
        let module = frames.iter().map(|frame| frame.module.as_str()).find(|module| !module.is_empty());
        let (front, function) = split_front(frames.iter().map(|frame| frame.function.as_str()));
        let end = frames.iter().position(|frame| is_entry(&frame.function)).unwrap_or(frames.len());
        let shown = frames[front.min(end)..end].iter().map(|frame| match frame.module.as_str() {
            "" => plain_name(&frame.function).to_owned(),
            module => format!("{} [{module}]", plain_name(&frame.function)),
        });
        Resolved {
            module: module.unwrap_or("vmlinux").to_owned(),
            function: function.demangled().to_owned(),
            names: shown.collect(),
            has_guard_page: frames.iter().any(|frame| frame.function.starts_with("__get_vm_area_node")),
            backs: (front > 0 && function != AllocFn::AllocPages).then(|| function.demangled()),
            is_interrupt: interrupt.is_some(),
            addresses: kept,
        }
    }

    /// A group as the recording wants it.
    pub fn traced(&self, group: &Group) -> TracedSite<Frame> {
        let frames: Vec<Frame> = group.addresses.iter().map(|&address| self.frame(address)).collect();
        let (live_bytes, live_blocks) = (group.live.bytes.value.round(), group.live.blocks.value.round());
        TracedSite {
            // Pages behind a kmalloc have its function in front, and are pages nonetheless.
            function: Some(function_of(group.kind)),
            frames,
            live_bytes: live_bytes as u64,
            live_blocks: live_blocks as u64,
            allocated_bytes: group.allocated_bytes.max(live_bytes) as u64,
            allocated_blocks: group.allocated_blocks.max(live_blocks) as u64,
            note: group.note(),
        }
    }
}

/// Bytes that a mapping of vmalloc has besides what was asked for.
pub fn guard_bytes(resolved: &Resolved) -> f64 {
    if resolved.has_guard_page { PAGE_BYTES } else { 0.0 }
}

fn function_of(kind: Kind) -> AllocFn {
    match kind {
        Kind::Kmalloc => AllocFn::Kmalloc,
        Kind::Slab => AllocFn::KmemCacheAlloc,
        Kind::Pages => AllocFn::AllocPages,
        Kind::PerCpu => AllocFn::AllocPercpu,
        Kind::Vmalloc => AllocFn::Vmalloc,
        Kind::User => AllocFn::Malloc,
    }
}

/// Frames of the programs and of what calls them.
fn is_tracing(frame: &Frame) -> bool {
    let name = frame.function.as_str();
    frame.module == "bpf"
        || name.is_empty()
        || ["bpf_trace_run", "__bpf_trace", "__traceiter_", "bpf_prog_", "bpf_trampoline_", "bpf_get_stack"]
            .iter()
            .any(|front| name.starts_with(front))
}

/// What an interrupt enters by. Exceptions such as page faults belong to the code that causes them.
fn is_interrupt(name: &str) -> bool {
    [
        "asm_common_interrupt",
        "asm_sysvec_",
        "common_interrupt",
        "sysvec_",
        "__common_interrupt",
        "gic_handle_irq",
        "el1h_64_irq",
    ]
    .iter()
    .any(|front| name.starts_with(front))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "ffffffff81000100 T entry_SYSCALL_64_after_hwframe\nffffffff81000200 T do_syscall_64\n\
                         ffffffff81000300 T vfs_open\nffffffff81000400 T kmem_cache_alloc_noprof\n\
                         ffffffff81000500 T bpf_trace_run5\nffffffff81000600 T asm_sysvec_apic_timer_interrupt\n\
                         ffffffff81000700 T sock_alloc\nffffffffc0000000 t leak_one\t[leaky]\n\
                         ffffffffc0001000 t bpf_prog_123_slab_cache\t[bpf]\n";

    fn kernel() -> Kernel {
        Kernel::new(Kallsyms::decode(TABLE.to_owned()), Modules::new())
    }

    #[test]
    fn what_is_not_the_sites_own_is_taken_off() {
        let stack = [
            0xffff_ffff_c000_1010,
            0xffff_ffff_8100_0510,
            0xffff_ffff_8100_0410,
            0xffff_ffff_c000_0010,
            0xffff_ffff_8100_0310,
            0xffff_ffff_8100_0210,
            0xffff_ffff_8100_0110,
        ];
        let resolved = kernel().resolve(&stack);
        assert_eq!(resolved.names, ["leak_one [leaky]", "vfs_open"]);
        assert_eq!((resolved.module.as_str(), resolved.function.as_str()), ("leaky", "kmem_cache_alloc"));
        assert_eq!(resolved.addresses, stack[2..]);
    }

    #[test]
    fn whom_an_interrupt_came_upon_is_not_to_blame() {
        let stack = [0xffff_ffff_8100_0410, 0xffff_ffff_8100_0710, 0xffff_ffff_8100_0610, 0xffff_ffff_8100_0310];
        let resolved = kernel().resolve(&stack);
        assert_eq!(resolved.addresses, stack[..3]);
        assert!(resolved.is_interrupt);
        assert_eq!(resolved.names[0], "sock_alloc");
    }

    #[test]
    fn callers_of_events() {
        assert_eq!(kernel().name_of(0xffff_ffff_c000_0010), " leak_one+0x10 [leaky]");
        assert_eq!(kernel().name_of(0), "");
        assert_eq!(kernel().name_of(0x1234), " 0x1234");
    }

    #[test]
    fn modules_by_name_and_address() {
        let one = modules_of("leaky 16384 0 [permanent], Live 0xffffffffc03b4000 (OE)\n");
        let again = modules_of("leaky 16384 7 a, Live 0xffffffffc03b4000 (OE)\nbroken\n");
        assert_eq!(one, again, "who uses it does not matter");
        assert_ne!(one, modules_of("leaky 16384 0 - Live 0xffffffffc03c0000 (OE)\n"));
    }
}
