//! The tracer of the kernel's allocators.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use aya::Ebpf;
use aya::programs::Program;

use crate::btf::{Index, Parameter};
use crate::counters::ProgramFd;
use crate::load::{self, Maps, Types};
use crate::table::{Sizes, Table};
use crate::{Counters, Error, Filter, Kind, Limits, Snapshot, Watch, events, object, sys};

/// What to trace.
#[derive(Clone, Debug)]
pub struct Config {
    /// Kinds of memory.
    pub kinds: Vec<Kind>,
    /// Whose allocations.
    pub filter: Filter,
    /// How much of them.
    pub limits: Limits,
    /// Where the function lies that all system calls go through (`do_syscall_64`): stacks end there. Without it they are
    /// right too, and cost more.
    pub outermost_text: Option<(u64, u64)>,
    /// Compare one in so many recalled stacks with what the kernel's unwinder says ([`CHECK_EVERY`]; 1 is all of them).
    pub check_every: u32,
}

/// A program that reads its arguments by their types, and the one that replaces it where the kernel does not allow that.
const TYPED: &str = "slab_cache";
const UNTYPED: &str = "slab_cache_raw";

/// How many recalled stacks one comparison with the kernel's unwinder stands for, unless somebody wants more.
pub const CHECK_EVERY: u32 = 256;

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    Tracepoint(&'static str),
    Entry(&'static str),
    Exit(&'static str),
    Probe(&'static str),
}

/// A program that fits the running kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Choice {
    program: &'static str,
    hook: Hook,
    /// Index of its `states`.
    number: u32,
    kind: Kind,
    is_release: bool,
}

/// The numbers of `bpf/kmem.bpf.c`.
mod number {
    pub(super) const KMALLOC: u32 = 0;
    pub(super) const KMALLOC_NODE: u32 = 1;
    pub(super) const SLAB: u32 = 2;
    pub(super) const SLAB_NODE: u32 = 3;
    pub(super) const PAGE: u32 = 4;
    pub(super) const PERCPU: u32 = 5;
    pub(super) const VMALLOC: u32 = 6;
    pub(super) const BULK: u32 = 7;
    pub(super) const KFREE: u32 = 8;
    pub(super) const SLAB_FREE: u32 = 9;
    pub(super) const PAGE_FREE: u32 = 10;
    pub(super) const PERCPU_FREE: u32 = 11;
    pub(super) const VMALLOC_FREE: u32 = 12;
    pub(super) const BULK_FREE: u32 = 13;
    pub(super) const RCU_FREE: u32 = 14;
    pub(super) const VMALLOC_CALL: u32 = 15;
}

/// Tracks allocations from its creation until it is dropped.
pub struct Tracer {
    // Before `ebpf`: programs stay loaded as long as descriptors are open, and links go away with `ebpf`.
    maps: Maps,
    ebpf: Ebpf,
    programs: Vec<ProgramFd>,
    links: Vec<(&'static str, bool)>,
    kinds: Vec<Kind>,
    notes: Vec<String>,
    sample_bytes: u64,
    sites: crate::snapshot::SiteCache,
    started_ns: u64,
}

impl Tracer {
    /// Loads and attaches the programs that fit this kernel.
    ///
    /// # Errors
    /// When the user may not, the kernel cannot, or it has nothing of what was asked for.
    pub fn start(config: &Config) -> Result<Self, Error> {
        let object = object::kmem()?;
        load::check_permission("tracing the kernel")?;
        let types = Types::read()?;
        let (choices, absent, mut notes) = choose(&types.index, &config.kinds);
        if choices.iter().all(|choice| choice.is_release) {
            return Err(Error::NoTracepoints(load::names_of(&config.kinds)));
        }
        if !absent.is_empty() {
            notes.push(format!("this kernel has no tracepoints for {}", load::names_of(&absent)));
        }
        let page_bytes = types.index.struct_bytes("page").filter(|bytes| bytes.is_power_of_two()).unwrap_or(0);
        let processors = aya::util::nr_cpus().map_or(1, |count| count as u32);
        let (outermost_low, outermost_high) = config.outermost_text.unwrap_or_default();
        let sizes = Sizes::of(config.limits.blocks);
        let mut loader = load::loader(&types.btf, &config.filter, &config.limits);
        loader
            .set_global("processors", load::leaked(processors), true)
            .set_global("page_struct_bytes", load::leaked(page_bytes), true)
            .set_global("outermost_low", load::leaked(outermost_low), true)
            .set_global("outermost_high", load::leaked(outermost_high), true)
            .set_global("check_every", load::leaked(config.check_every.max(1)), true)
            .set_global("has_table", load::leaked(u32::from(sizes.buckets > 0)), true)
            .set_global("last_bucket", load::leaked(sizes.buckets.saturating_sub(1)), true)
            .set_global("counts_table", load::leaked(u32::from(config.limits.sample_bytes > 0)), true)
            .set_max_entries("blocks", sizes.others)
            .set_max_entries("buckets", sizes.buckets.max(1))
            .set_max_entries("slots", sizes.slots());
        let ebpf = load::load(&mut loader, object)?;
        let mut maps = Maps::new(&ebpf, &config.limits)?;
        maps.table = Some(Table::new(&ebpf, sizes)?);
        let kinds = config.kinds.iter().copied().filter(|kind| !absent.contains(kind)).collect();
        let mut tracer = Self {
            maps,
            ebpf,
            programs: Vec::new(),
            links: Vec::new(),
            kinds,
            notes,
            sample_bytes: config.limits.sample_bytes,
            sites: crate::snapshot::SiteCache::default(),
            started_ns: load::monotonic_ns(),
        };
        // Releases first: a block whose allocation is seen must not be released unseen.
        for choice in choices.iter().filter(|choice| choice.is_release).chain(choices.iter().filter(|c| !c.is_release))
        {
            tracer.attach(choice, &types)?;
        }
        Ok(tracer)
    }

    /// Loads and attaches one program. fentry may be refused by a kernel without it; that is said, not fatal.
    fn attach(&mut self, choice: &Choice, types: &Types) -> Result<(), Error> {
        let missing = Error::Load { what: choice.program.to_owned(), reason: "the object does not have it".to_owned() };
        let program = self.ebpf.program_mut(choice.program).ok_or(missing)?;
        let attached = match (program, choice.hook) {
            (Program::BtfTracePoint(program), Hook::Tracepoint(name)) => {
                program.load(name, &types.btf).and_then(|()| program.attach().map(drop))
            }
            // Of the two kinds of tracepoint programs this one has arguments without types.
            (Program::RawTracePoint(program), Hook::Tracepoint(name)) => {
                program.load().and_then(|()| program.attach(name).map(drop))
            }
            (Program::FEntry(program), Hook::Entry(name)) => {
                program.load(name, &types.btf).and_then(|()| program.attach().map(drop))
            }
            (Program::FExit(program), Hook::Exit(name)) => {
                program.load(name, &types.btf).and_then(|()| program.attach().map(drop))
            }
            (Program::KProbe(program), Hook::Probe(name)) => {
                program.load().and_then(|()| program.attach(name, 0).map(drop))
            }
            _ => unreachable!("{choice:?} is of the kind that its section says"),
        };
        match (attached, choice.hook) {
            (Ok(()), _) => {}
            (Err(_), Hook::Tracepoint(_)) if choice.program == TYPED => {
                return self.attach(&Choice { program: UNTYPED, ..*choice }, types);
            }
            (Err(error), Hook::Tracepoint(_)) => return Err(load::refused(choice.program, &error)),
            (Err(_), Hook::Probe(function)) => {
                self.kinds.retain(|kind| *kind != choice.kind);
                self.notes.push(format!(
                    "this kernel has no tracepoints for {}, and no kprobe at {function}",
                    choice.kind.name()
                ));
                return Ok(());
            }
            (Err(error), Hook::Entry(function) | Hook::Exit(function)) => {
                let reason = if load::is_forbidden(&error) { "forbids fentry" } else { "has no fentry for it" };
                self.notes.push(format!(
                    "calls of {function} are not seen (the kernel {reason}): blocks that it releases look \
                     outstanding until their address is used again"
                ));
                return Ok(());
            }
        }
        let program = self.ebpf.program(choice.program).and_then(|program| program.fd().ok());
        let fd: Option<OwnedFd> = program.and_then(|fd| fd.as_fd().try_clone_to_owned().ok());
        if let Some(fd) = fd {
            self.programs.push(ProgramFd {
                name: choice.program,
                number: choice.number,
                kind: choice.kind,
                is_release: choice.is_release,
                fd,
            });
        }
        self.links.push((choice.program, choice.is_release));
        Ok(())
    }

    /// The printed events; once.
    ///
    /// # Errors
    /// When they were taken already.
    pub fn take_events(&mut self) -> Result<events::Events, Error> {
        events::Events::new(&mut self.ebpf)
    }
}

impl Watch for Tracer {
    fn stop_allocations(&mut self) {
        self.links.retain(|&(name, is_release)| {
            if is_release {
                return true;
            }
            // Unloading closes links and program.
            match self.ebpf.program_mut(name) {
                Some(Program::BtfTracePoint(program)) => drop(program.unload()),
                Some(Program::RawTracePoint(program)) => drop(program.unload()),
                Some(Program::FExit(program)) => drop(program.unload()),
                Some(Program::KProbe(program)) => drop(program.unload()),
                _ => {}
            }
            false
        });
    }

    fn kinds(&self) -> &[Kind] {
        &self.kinds
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn sample_bytes(&self) -> u64 {
        self.sample_bytes
    }

    fn started_ns(&self) -> u64 {
        self.started_ns
    }

    fn set_sample(&mut self, bytes: u64) -> Result<(), Error> {
        self.maps.set_sample(bytes)?;
        self.sample_bytes = bytes;
        Ok(())
    }

    fn snapshot(&mut self, min_age_ns: u64) -> Result<Snapshot, Error> {
        crate::snapshot::read(&self.maps, &mut self.sites, min_age_ns)
    }

    fn counters(&self) -> Result<Counters, Error> {
        crate::counters::read(&self.maps, &self.programs)
    }

    fn names(&self) -> Result<BTreeMap<u32, String>, Error> {
        crate::snapshot::names(&self.maps)
    }

    fn measure(&self) -> Result<OwnedFd, Error> {
        sys::enable_statistics().map_err(|error| Error::Command { what: "measure run time", error })
    }
}

/// Which programs fit the kernel's tracepoints and functions; which kinds it has none for; and what else it lacks.
fn choose(index: &Index, kinds: &[Kind]) -> (Vec<Choice>, Vec<Kind>, Vec<String>) {
    let (mut choices, mut absent, mut notes) = (Vec::new(), Vec::new(), Vec::new());
    for &kind in kinds {
        let of_kind = match kind {
            Kind::Kmalloc => kmalloc(index),
            Kind::Slab => slab(index, &mut notes),
            Kind::Pages => pages(index),
            Kind::PerCpu => per_cpu(index),
            Kind::Vmalloc => vmalloc(index),
            Kind::User => Vec::new(),
        };
        let complete = of_kind.iter().any(|c: &Choice| !c.is_release) && of_kind.iter().any(|c| c.is_release);
        if complete {
            choices.extend(of_kind);
        } else {
            absent.push(kind);
        }
    }
    // kfree releases slab objects too, and kmem_cache_free those of kmalloc.
    let mut seen = Vec::new();
    choices.retain(|choice: &Choice| {
        let is_new = !seen.contains(&choice.program);
        seen.push(choice.program);
        is_new
    });
    (choices, absent, notes)
}

fn allocation(program: &'static str, tracepoint: &'static str, number: u32, kind: Kind) -> Choice {
    Choice { program, hook: Hook::Tracepoint(tracepoint), number, kind, is_release: false }
}

fn release(program: &'static str, tracepoint: &'static str, number: u32, kind: Kind) -> Choice {
    Choice { program, hook: Hook::Tracepoint(tracepoint), number, kind, is_release: true }
}

/// Whether the third argument is a pointer to the cache, as in 5.19 and 6.0, and for caches from then on.
fn has_cache(arguments: &[Parameter]) -> bool {
    arguments.get(2).is_some_and(|argument| argument.is_pointer)
}

fn kmalloc(index: &Index) -> Vec<Choice> {
    let mut found = object_releases(index);
    if let Some(arguments) = index.tracepoint("kmalloc") {
        let program = if has_cache(&arguments) { "kmalloc_cache" } else { "kmalloc_plain" };
        found.push(allocation(program, "kmalloc", number::KMALLOC, Kind::Kmalloc));
    }
    if let Some(arguments) = index.tracepoint("kmalloc_node") {
        let program = if has_cache(&arguments) { "kmalloc_node_cache" } else { "kmalloc_node_plain" };
        found.push(allocation(program, "kmalloc_node", number::KMALLOC_NODE, Kind::Kmalloc));
    }
    found
}

fn slab(index: &Index, notes: &mut Vec<String>) -> Vec<Choice> {
    let mut found = object_releases(index);
    if let Some(arguments) = index.tracepoint("kmem_cache_alloc") {
        let program = match (has_cache(&arguments), arguments.len()) {
            (true, 6..) => "slab_both",
            (true, _) => "slab_cache",
            (false, _) => "slab_plain",
        };
        found.push(allocation(program, "kmem_cache_alloc", number::SLAB, Kind::Slab));
    }
    if let Some(arguments) = index.tracepoint("kmem_cache_alloc_node") {
        let program = if has_cache(&arguments) { "slab_node_both" } else { "slab_node_plain" };
        found.push(allocation(program, "kmem_cache_alloc_node", number::SLAB_NODE, Kind::Slab));
    }
    let bulk = ["kmem_cache_alloc_bulk_noprof", "kmem_cache_alloc_bulk"];
    match bulk.into_iter().find(|name| index.function(name).is_some_and(|parameters| parameters.len() == 4)) {
        Some(name) => found.push(Choice {
            program: "bulk_alloc",
            hook: Hook::Exit(name),
            number: number::BULK,
            kind: Kind::Slab,
            is_release: false,
        }),
        None => notes.push("objects that are allocated in bulk are not seen on this kernel".to_owned()),
    }
    found
}

/// Releases of objects, whichever of the two allocators they are of.
fn object_releases(index: &Index) -> Vec<Choice> {
    let mut found = Vec::new();
    if index.tracepoint("kfree").is_some() {
        found.push(release("kfree_plain", "kfree", number::KFREE, Kind::Kmalloc));
    }
    if index.tracepoint("kmem_cache_free").is_some() {
        found.push(release("slab_free", "kmem_cache_free", number::SLAB_FREE, Kind::Slab));
    }
    let entry =
        |program, name, number| Choice { program, hook: Hook::Entry(name), number, kind: Kind::Slab, is_release: true };
    if index.function("kmem_cache_free_bulk").is_some_and(|parameters| parameters.len() == 3) {
        found.push(entry("bulk_free", "kmem_cache_free_bulk", number::BULK_FREE));
    }
    // The block itself, or how far its head lies behind it.
    let second = index.function("kvfree_call_rcu").and_then(|parameters| parameters.into_iter().nth(1));
    match second.map(|second| second.name).as_deref() {
        Some("ptr") => found.push(entry("rcu_free", "kvfree_call_rcu", number::RCU_FREE)),
        Some("func") => found.push(entry("rcu_free_offset", "kvfree_call_rcu", number::RCU_FREE)),
        _ => {}
    }
    found
}

fn pages(index: &Index) -> Vec<Choice> {
    let mut found = Vec::new();
    if index.tracepoint("mm_page_alloc").is_some() {
        found.push(allocation("page_alloc", "mm_page_alloc", number::PAGE, Kind::Pages));
    }
    if index.tracepoint("mm_page_free").is_some() {
        found.push(release("page_free", "mm_page_free", number::PAGE_FREE, Kind::Pages));
    }
    found
}

fn per_cpu(index: &Index) -> Vec<Choice> {
    let mut found = Vec::new();
    if let Some(arguments) = index.tracepoint("percpu_alloc_percpu") {
        let program = if arguments.len() >= 10 { "percpu_site" } else { "percpu_plain" };
        found.push(allocation(program, "percpu_alloc_percpu", number::PERCPU, Kind::PerCpu));
    }
    if index.tracepoint("percpu_free_percpu").is_some() {
        found.push(release("percpu_free", "percpu_free_percpu", number::PERCPU_FREE, Kind::PerCpu));
    }
    found
}

fn vmalloc(index: &Index) -> Vec<Choice> {
    let mut found = Vec::new();
    if index.tracepoint("alloc_vmap_area").is_some_and(|arguments| arguments.len() == 6) {
        found.push(allocation("vmap_alloc", "alloc_vmap_area", number::VMALLOC, Kind::Vmalloc));
    }
    if index.tracepoint("free_vmap_area_noflush").is_some() {
        found.push(release("vmap_free", "free_vmap_area_noflush", number::VMALLOC_FREE, Kind::Vmalloc));
    }
    // A kprobe there takes its argument from a register of x86-64.
    if found.is_empty() && cfg!(target_arch = "x86_64") && index.function("remove_vm_area").is_some() {
        let probe = |program, name, number, is_release| Choice {
            program,
            hook: Hook::Probe(name),
            number,
            kind: Kind::Vmalloc,
            is_release,
        };
        found.push(probe("vmap_return", "__get_vm_area_node", number::VMALLOC, false));
        // Last: of two at one place the later one comes first, and the other puts the kernel's trampoline on the stack.
        found.push(probe("vmap_call", "__get_vm_area_node", number::VMALLOC_CALL, false));
        found.push(probe("vmap_remove", "remove_vm_area", number::VMALLOC_FREE, true));
    }
    found
}
