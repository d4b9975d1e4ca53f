//! The ledgers of programs that run under `leakscope run`: live bytes by allocation site, without asking anybody.
//!
//! `leakscope run` keeps a memfd for each process that it traces. Who may look at a process's descriptors (its user, and
//! root) can open the memfd again through `/proc/PID/fd`, for reading. The program is not disturbed, and no leak check is
//! made; a launcher that ends takes the ledger with it, and then there is none.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;

use leakscope_ledger::reader::{ModuleIndex, Snapshot};
use leakscope_model::{AllocFn, SiteId};

use crate::{Places, Process};

/// The name of a ledger's memfd.
const LEDGER_LINK: &[u8] = b"/memfd:leakscope-ledger";
/// The name of the launcher.
const LAUNCHER: &[u8] = b"leakscope";
/// Frames of a stack that are kept: all that are recorded, because a finding's identity is its whole path.
const FRAMES: usize = 256;

/// A ledger of a running process.
#[derive(Debug)]
pub struct Ledger {
    /// The traced process.
    pub pid: u32,
    /// Tells this ledger from another one of the same process, which has become another program by `exec`.
    pub identity: u64,
    file: File,
}

/// A return address, ready for a symbolizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameAddress {
    /// The module's path as the target saw it; empty when no file holds the code.
    pub module: Vec<u8>,
    /// Its build id; empty when it has none.
    pub build_id: Vec<u8>,
    /// The address of the call at link time.
    pub address: u64,
}

/// What is alive of one allocation site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveSite {
    /// Its number, the same while the process lives.
    pub id: u32,
    /// The function that allocated.
    pub function: AllocFn,
    /// Bytes requested and not released.
    pub bytes: u64,
    /// Blocks.
    pub blocks: u64,
    /// The frames, the caller of `function` first.
    pub stack: Vec<FrameAddress>,
}

/// The ledgers that the launchers among `processes` hold, of those processes that run.
pub fn find_ledgers(places: &Places, processes: &[Process]) -> Vec<Ledger> {
    let mut ledgers = Vec::new();
    for launcher in processes.iter().filter(|process| process.name == LAUNCHER) {
        let folder = places.path(format!("/proc/{}/fd", launcher.pid));
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_ledger = fs::read_link(&path).is_ok_and(|link| link.as_os_str().as_bytes().starts_with(LEDGER_LINK));
            if !is_ledger {
                continue;
            }
            let Ok(file) = File::open(&path) else { continue };
            let Some(process) = read(&file).map(|snapshot| snapshot.process) else { continue };
            let (pid, identity) = (process.pid, process.start_monotonic_ns);
            if pid == 0 || !processes.iter().any(|process| process.pid == pid) {
                continue;
            }
            // The same ledger may stand behind two descriptors; of two of a process the younger one is in use.
            match ledgers.iter_mut().find(|known: &&mut Ledger| known.pid == pid) {
                Some(known) if known.identity < identity => *known = Ledger { pid, identity, file },
                Some(_) => {}
                None => ledgers.push(Ledger { pid, identity, file }),
            }
        }
    }
    ledgers
}

fn read(file: &File) -> Option<Snapshot> {
    Snapshot::read(file, file.metadata().ok()?.len()).ok()
}

impl Ledger {
    /// Live bytes of each site by its number; `None` when it cannot be read any more.
    pub fn read_bytes_by_site(&self) -> Option<Vec<u64>> {
        Some(read(&self.file)?.totals.iter().map(|totals| totals.live_bytes()).collect())
    }

    /// What is alive of some sites, with their stacks.
    pub fn read_sites(&self, ids: &[u32]) -> Vec<LiveSite> {
        let Some(snapshot) = read(&self.file) else { return Vec::new() };
        let modules = snapshot.module_index();
        let known = ids.iter().filter(|&&id| (id as usize) < snapshot.totals.len());
        known.map(|&id| site(&snapshot, &modules, id as usize)).collect()
    }
}

fn site(snapshot: &Snapshot, modules: &ModuleIndex, index: usize) -> LiveSite {
    let totals = &snapshot.totals[index];
    let stack = snapshot.stack(SiteId(index as u32)).take(FRAMES).map(|(_, node)| {
        let number = modules.find(&snapshot.modules, node.lookup_pc(), node.epoch);
        let module = number.and_then(|number| snapshot.modules.get(number.0 as usize));
        // Code that no file holds has its address alone.
        let bare = FrameAddress { module: Vec::new(), build_id: Vec::new(), address: node.lookup_pc() };
        module.map_or(bare, |module| FrameAddress {
            module: module.path.clone(),
            build_id: module.build_id.clone(),
            address: module.svma(node.lookup_pc()).0,
        })
    });
    LiveSite {
        id: index as u32,
        function: snapshot.sites.get(index).map_or(AllocFn::Malloc, |site| site.function),
        bytes: totals.live_bytes(),
        blocks: totals.live_blocks(),
        stack: stack.collect(),
    }
}
