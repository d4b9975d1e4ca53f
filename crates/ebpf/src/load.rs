//! What both tracers do to get their programs into the kernel.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use aya::maps::{Map, MapData};
use aya::{Btf, Ebpf, EbpfLoader, Endianness};

use crate::btf::Index;
use crate::table::Table;
use crate::{Error, Filter, Kind, Limits, sys};

/// Sites "stack not kept", one of each kind.
pub(crate) const RESERVED_SITES: u32 = 6;
const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";
/// Bytes of the ring for printed events.
const RING_BYTES: u32 = 1 << 20;

/// The kernel's types, for the loader and for us.
pub(crate) struct Types {
    pub(crate) btf: Btf,
    pub(crate) index: Index,
}

impl Types {
    pub(crate) fn read() -> Result<Self, Error> {
        let bytes = std::fs::read(BTF_PATH).map_err(Error::NoBtf)?;
        let index = Index::parse(&bytes).ok_or(Error::BadBtf)?;
        let btf = Btf::parse(&bytes, Endianness::default()).map_err(|_| Error::BadBtf)?;
        Ok(Self { btf, index })
    }
}

/// Refuses what the kernel would refuse with fewer words.
pub(crate) fn check_permission(what: &'static str) -> Result<(), Error> {
    const CAP_SYS_ADMIN: u32 = 21;
    const CAP_PERFMON: u32 = 38;
    const CAP_BPF: u32 = 39;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(u64::MAX);
    let has = |capability: u32| effective >> capability & 1 == 1;
    if !(has(CAP_SYS_ADMIN) || has(CAP_BPF) && has(CAP_PERFMON)) {
        return Err(Error::NotAllowed(what));
    }
    let lockdown = std::fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    if lockdown.contains("[confidentiality]") { Err(Error::LockedDown) } else { Ok(()) }
}

/// A loader with filters and sizes set.
pub(crate) fn loader<'a>(btf: &'a Btf, filter: &Filter, limits: &'a Limits) -> EbpfLoader<'a> {
    let mut loader = EbpfLoader::new();
    let mut comm = [0u8; 16];
    if let Some(name) = &filter.comm {
        let kept = name.len().min(15);
        comm[..kept].copy_from_slice(&name.as_bytes()[..kept]);
    }
    let half = |at: usize| u64::from_ne_bytes(std::array::from_fn(|byte| comm[at + byte]));
    let cgroup = filter.cgroup.unwrap_or(crate::Cgroup { id: 0, level: 0 });
    let (module_low, module_high) = filter.module_text.unwrap_or((0, 0));
    loader
        .btf(Some(btf))
        .set_global("self_tgid", leaked(std::process::id()), true)
        .set_global("wanted_tgid", leaked(filter.pid.unwrap_or(0)), true)
        .set_global("wants_comm", leaked(u32::from(filter.comm.is_some())), true)
        .set_global("comm_low", leaked(half(0)), true)
        .set_global("comm_high", leaked(half(8)), true)
        .set_global("wants_cgroup", leaked(u32::from(filter.cgroup.is_some())), true)
        .set_global("wanted_cgroup", leaked(cgroup.id), true)
        .set_global("cgroup_level", leaked(cgroup.level), true)
        .set_global("wants_module", leaked(u32::from(filter.module_text.is_some())), false)
        .set_global("module_low", leaked(module_low), false)
        .set_global("module_high", leaked(module_high), false)
        .set_global("prints_events", leaked(u32::from(limits.events_per_second > 0)), true)
        .set_global("events_per_second", leaked(limits.events_per_second), true)
        .set_max_entries("blocks", limits.blocks)
        .set_max_entries("sites", limits.sites + RESERVED_SITES)
        .set_max_entries("site_numbers", limits.sites)
        .set_max_entries("site_sums", limits.sites + RESERVED_SITES)
        .set_max_entries("free_sites", limits.sites)
        .set_max_entries("events", if limits.events_per_second > 0 { RING_BYTES } else { 4096 });
    loader
}

/// The loader keeps references to values until it loads; they are a few bytes, once for each tracer.
pub(crate) fn leaked<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// Loads the object: creates the maps, relocates the programs.
pub(crate) fn load(loader: &mut EbpfLoader<'_>, object: &[u8]) -> Result<Ebpf, Error> {
    sys::lift_memory_limit();
    loader.load(object).map_err(|error| Error::Load { what: "the maps".to_owned(), reason: chain(&error) })
}

/// An error with its causes. What the verifier says can be megabytes: its end tells most.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    const LONGEST: usize = 2000;
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    if text.len() > LONGEST {
        let start = (text.len() - LONGEST..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text = format!("... {}", &text[start..]);
    }
    text
}

/// The descriptors of the maps that both tracers have.
pub(crate) struct Maps {
    fds: HashMap<&'static str, OwnedFd>,
    /// Where blocks are besides the map `blocks`.
    pub(crate) table: Option<Table>,
    pub(crate) processors: usize,
}

const SHARED_MAPS: [(&str, &str); 8] = [
    ("blocks", "blocks"),
    ("site_numbers", "site_numbers"),
    ("sites", "sites"),
    ("free_sites", "free_sites"),
    ("site_sums", "site_sums"),
    ("states", "states"),
    ("lost", "lost"),
    ("names", "names"),
];
const CONTROL: &str = ".data.control";

impl Maps {
    /// Takes descriptors of the maps, and gives the programs the numbers of the sites to hand out.
    pub(crate) fn new(ebpf: &Ebpf, limits: &Limits) -> Result<Self, Error> {
        let mut fds = HashMap::new();
        for (name, key) in SHARED_MAPS.into_iter().chain([(CONTROL, CONTROL)]) {
            fds.insert(key, map_fd(ebpf, name)?);
        }
        let processors =
            aya::util::nr_cpus().map_err(|(_, error)| Error::Command { what: "count processors", error })?;
        let maps = Self { fds, table: None, processors };
        for number in 0..limits.sites {
            sys::push(maps.fd("free_sites"), number + RESERVED_SITES)
                .map_err(|error| Error::Command { what: "fill the queue of sites", error })?;
        }
        maps.set_sample(limits.sample_bytes)?;
        Ok(maps)
    }

    pub(crate) fn fd(&self, name: &'static str) -> BorrowedFd<'_> {
        self.fds[name].as_fd()
    }

    /// Sets the mean bytes between samples; 0 is every allocation.
    pub(crate) fn set_sample(&self, bytes: u64) -> Result<(), Error> {
        sys::write_element(self.fd(CONTROL), 0u32, bytes)
            .map_err(|error| Error::Command { what: "set the sampling rate", error })
    }
}

/// A descriptor of our own of a map.
pub(crate) fn map_fd(ebpf: &Ebpf, name: &str) -> Result<OwnedFd, Error> {
    let missing = || Error::Load { what: format!("the map {name}"), reason: "the object does not have it".to_owned() };
    let data: &MapData = match ebpf.map(name).ok_or_else(missing)? {
        Map::HashMap(data)
        | Map::Array(data)
        | Map::PerCpuArray(data)
        | Map::Queue(data)
        | Map::RingBuf(data)
        | Map::LruHashMap(data)
        | Map::Unsupported(data) => data,
        _ => return Err(missing()),
    };
    data.fd().as_fd().try_clone_to_owned().map_err(|error| Error::Command { what: "duplicate a descriptor", error })
}

/// What the kernel said of a program that it refused, in a sentence.
pub(crate) fn refused(program: &str, error: &aya::programs::ProgramError) -> Error {
    Error::Load { what: format!("the program {program}"), reason: chain(error) }
}

/// Whether the kernel refused a program without a look at it.
pub(crate) fn is_forbidden(error: &aya::programs::ProgramError) -> bool {
    use aya::programs::ProgramError;
    matches!(error, ProgramError::LoadError { io_error, .. } if io_error.raw_os_error() == Some(libc::EPERM))
}

/// Kinds by name, for messages.
pub(crate) fn names_of(kinds: &[Kind]) -> String {
    kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ")
}

/// Time of the clock that stamps blocks, nanoseconds.
pub(crate) fn monotonic_ns() -> u64 {
    sys::monotonic_ns()
}

/// Reads all of a hash map.
pub(crate) fn read_hash<K: sys::Plain, V: sys::Plain>(map: BorrowedFd<'_>) -> Result<Vec<(K, V)>, Error> {
    const AT_ONCE: usize = 4096;
    sys::read_hash(map, AT_ONCE).map_err(|error: io::Error| Error::Command { what: "read a table", error })
}
