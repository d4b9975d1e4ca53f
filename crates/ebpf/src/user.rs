//! The tracer of running programs: uprobes at the functions of their allocators. The programs themselves are not
//! touched, nothing is injected, and nothing stays when the tracer ends.

mod allocator;
mod stacks;

use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};

use aya::Ebpf;
use aya::maps::RingBuf;
use aya::programs::Program;

use crate::counters::ProgramFd;
use crate::layout::Block;
use crate::load::{self, Maps, Types};
use crate::snapshot::SiteCache;
use crate::{Counters, Error, Filter, Kind, Limits, Snapshot, Watch, events, object, sys};

pub use allocator::Mapping;
use allocator::{Probe, find_probes};
use stacks::Stacks;

/// What to trace.
#[derive(Clone, Debug)]
pub struct Config {
    /// The processes.
    pub pids: Vec<u32>,
    /// How much of them.
    pub limits: Limits,
    /// Walk stacks by frame pointers, in the kernel; otherwise they are copied and unwound by DWARF tables.
    pub by_frame_pointers: bool,
}

/// Tracks allocations from its creation until it is dropped.
pub struct Tracer {
    maps: Maps,
    ebpf: Ebpf,
    programs: Vec<ProgramFd>,
    notes: Vec<String>,
    functions: Vec<String>,
    sample_bytes: u64,
    started_ns: u64,
    stacks: Option<Stacks>,
    cache: SiteCache,
}

/// Programs by name; whether they see releases. Both numbers are indices of `states`.
const PROGRAMS: [(&str, bool); 9] = [
    ("call_free", true),
    ("end_block", false),
    ("end_out", false),
    ("call_size", false),
    ("call_count", false),
    ("call_second", false),
    ("call_out", false),
    ("call_resize", false),
    ("call_resize_count", false),
];

impl Tracer {
    /// Attaches to the allocators of the processes.
    ///
    /// # Errors
    /// When the user may not, the kernel cannot, or a process has no allocator that can be found.
    pub fn start(config: &Config) -> Result<Self, Error> {
        let object = object::umem()?;
        load::check_permission("tracing programs")?;
        if !cfg!(target_arch = "x86_64") {
            return Err(Error::Target("tracing programs works on x86-64 only so far".to_owned()));
        }
        let mut probes = Vec::new();
        for &pid in &config.pids {
            probes.push((pid, find_probes(pid)?));
        }
        let types = Types::read()?;
        let filter = Filter::default();
        let mut loader = load::loader(&types.btf, &filter, &config.limits);
        loader.set_global("copies_stacks", load::leaked(u32::from(!config.by_frame_pointers)), true);
        if config.by_frame_pointers {
            loader.set_max_entries("stack_copies", 4096);
        }
        let mut ebpf = load::load(&mut loader, object)?;
        let maps = Maps::new(&ebpf, &config.limits)?;
        let stacks = if config.by_frame_pointers { None } else { Some(Stacks::start(take_ring(&mut ebpf)?)) };
        let mut tracer = Self {
            maps,
            ebpf,
            programs: Vec::new(),
            notes: Vec::new(),
            functions: Vec::new(),
            sample_bytes: config.limits.sample_bytes,
            started_ns: load::monotonic_ns(),
            stacks,
            cache: SiteCache::default(),
        };
        // Releases first, then returns, then calls: what is seen to begin is seen to its end.
        for (name, is_release) in PROGRAMS {
            tracer.load(name, is_release)?;
            for (pid, of_process) in &probes {
                for probe in of_process.iter().filter(|probe| probe.entry == name || probe.exit == Some(name)) {
                    tracer.attach(name, probe, *pid)?;
                }
            }
        }
        for (pid, of_process) in &probes {
            let names: Vec<&str> = of_process.iter().map(|probe| probe.name.as_str()).collect();
            tracer.functions.push(format!("pid {pid}: {}", names.join(", ")));
        }
        Ok(tracer)
    }

    fn program(&mut self, name: &'static str) -> Result<&mut aya::programs::UProbe, Error> {
        match self.ebpf.program_mut(name) {
            Some(Program::UProbe(program)) => Ok(program),
            _ => Err(Error::Load { what: name.to_owned(), reason: "the object does not have it".to_owned() }),
        }
    }

    fn load(&mut self, name: &'static str, is_release: bool) -> Result<(), Error> {
        let program = self.program(name)?;
        program.load().map_err(|error| load::refused(name, &error))?;
        let fd = program.fd().ok().and_then(|fd| fd.as_fd().try_clone_to_owned().ok());
        if let Some(fd) = fd {
            self.programs.push(ProgramFd { name, number: u32::from(is_release), kind: Kind::User, is_release, fd });
        }
        Ok(())
    }

    fn attach(&mut self, name: &'static str, probe: &Probe, pid: u32) -> Result<(), Error> {
        let attached = self.program(name)?.attach(None, probe.offset, &probe.path, i32::try_from(pid).ok());
        attached.map(drop).map_err(|error| {
            let path = probe.path.display();
            Error::Target(format!(
                "{} in {path}: the kernel does not attach there: {}",
                probe.name,
                load::chain(&error)
            ))
        })
    }

    /// The functions that are watched, by process.
    pub fn functions(&self) -> &[String] {
        &self.functions
    }

    /// The printed events; once.
    ///
    /// # Errors
    /// When they were taken already.
    pub fn take_events(&mut self) -> Result<events::Events, Error> {
        events::Events::new(&mut self.ebpf)
    }
}

fn take_ring(ebpf: &mut Ebpf) -> Result<RingBuf<aya::maps::MapData>, Error> {
    let what = || "the ring of stacks".to_owned();
    let map =
        ebpf.take_map("stack_copies").ok_or_else(|| Error::Load { what: what(), reason: "missing".to_owned() })?;
    RingBuf::try_from(map).map_err(|error| Error::Load { what: what(), reason: load::chain(&error) })
}

/// The mapped files of a process.
///
/// # Errors
/// When the process is not there.
pub fn mappings(pid: u32) -> Result<Vec<Mapping>, Error> {
    allocator::read_mappings(pid)
}

impl Watch for Tracer {
    fn stop_allocations(&mut self) {
        // Entries before returns, so that no call is left half seen.
        for (name, is_release) in PROGRAMS.iter().rev() {
            if !is_release && let Ok(program) = self.program(name) {
                let _ = program.unload();
            }
        }
    }

    fn kinds(&self) -> &[Kind] {
        &[Kind::User]
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
        let Some(stacks) = &mut self.stacks else {
            return crate::snapshot::read(&self.maps, &mut self.cache, min_age_ns);
        };
        let snapshot = crate::snapshot::read(&self.maps, stacks, min_age_ns)?;
        let blocks: Vec<(u64, Block)> = load::read_hash(self.maps.fd("blocks"))?;
        let live: HashSet<(u64, u64)> = blocks.iter().map(|(key, block)| (*key, block.born_ns)).collect();
        stacks.retain(&live);
        Ok(snapshot)
    }

    fn counters(&self) -> Result<Counters, Error> {
        let mut counters = crate::counters::read(&self.maps, &self.programs)?;
        // All programs of one kind share their states; one of them tells for all.
        let mut seen = HashSet::new();
        for program in &mut counters.programs {
            if !seen.insert(program.is_release) {
                (program.events, program.bytes, program.unknown) = (0, 0, 0);
            }
        }
        counters.lost.stacks_cut += self.stacks.as_ref().map_or(0, Stacks::cut);
        Ok(counters)
    }

    fn names(&self) -> Result<BTreeMap<u32, String>, Error> {
        crate::snapshot::names(&self.maps)
    }

    fn measure(&self) -> Result<OwnedFd, Error> {
        sys::enable_statistics().map_err(|error| Error::Command { what: "measure run time", error })
    }
}
