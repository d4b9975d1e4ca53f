//! What this kernel offers for finding leaks: a row for each means, with the reason when it is not there and the next step.
//!
//! Looking changes nothing; only kmemleak is asked by a command that it does not know.

use crate::config::KernelConfig;
use crate::kmemleak::{self, Kmemleak};
use crate::mounts::{read_mount, read_tracefs};
use crate::{KernelError, Places};

/// Whether a means is at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It works now.
    Ready,
    /// It is there and not switched on, or not wholly.
    Off,
    /// It is not there.
    Missing,
    /// This user may not see it, or nothing tells.
    Unknown,
}

impl State {
    /// One word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ready => "yes",
            Self::Off => "off",
            Self::Missing => "no",
            Self::Unknown => "?",
        }
    }
}

/// A means of finding leaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What it is called.
    pub name: &'static str,
    /// Whether it is at hand.
    pub state: State,
    /// How that is known.
    pub reason: String,
    /// What to do to have it; empty when it is there, or nothing helps.
    pub next: String,
}

fn row(name: &'static str, state: State, reason: impl Into<String>, next: impl Into<String>) -> Row {
    Row { name, state, reason: reason.into(), next: next.into() }
}

/// All rows, and what they were found with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The kernel's release.
    pub release: String,
    /// Where its configuration was read; empty when nowhere.
    pub config_source: String,
    /// The rows.
    pub rows: Vec<Row>,
}

struct Probe<'a> {
    places: &'a Places,
    config: KernelConfig,
    release: String,
    cmdline: String,
}

/// Looks at the running kernel.
pub fn read_status(places: &Places) -> Status {
    let release = kmemleak::release();
    let config = KernelConfig::read(places, &release);
    let cmdline = places.read("/proc/cmdline").unwrap_or_default();
    let probe = Probe { places, config, release, cmdline };
    let rows = vec![
        probe.privileges(),
        probe.lockdown(),
        probe.debugfs(),
        probe.kmemleak(),
        probe.bpf(),
        probe.btf(),
        probe.tracepoints(),
        probe.kprobes(),
        probe.uprobes(),
        probe.addresses(),
        probe.slub_debug(),
        probe.page_owner(),
        probe.allocinfo(),
        probe.kasan(),
        probe.kfence(),
    ];
    Status { release: probe.release, config_source: probe.config.source, rows }
}

/// Capabilities that leak finders want, by number. Source: Linux `include/uapi/linux/capability.h`.
const CAPABILITIES: [(u32, &str, &str); 5] = [
    (39, "CAP_BPF", "tracing"),
    (38, "CAP_PERFMON", "tracing"),
    (21, "CAP_SYS_ADMIN", "kmemleak, mounting"),
    (34, "CAP_SYSLOG", "addresses, the kernel's log"),
    (2, "CAP_DAC_READ_SEARCH", "files of other users"),
];

/// Those that a set of capabilities lacks.
fn lacking(effective: u64) -> Vec<&'static str> {
    CAPABILITIES.iter().filter(|&&(number, ..)| effective >> number & 1 == 0).map(|&(_, name, _)| name).collect()
}

impl Probe<'_> {
    fn privileges(&self) -> Row {
        let name = "capabilities";
        let status = self.places.read("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        match line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok()) {
            None => row(name, State::Unknown, "/proc/self/status does not say", ""),
            Some(effective) => match lacking(effective)[..] {
                [] => row(name, State::Ready, "all that are needed", ""),
                ref missing => row(
                    name,
                    State::Missing,
                    format!("this user lacks {}", missing.join(", ")),
                    "run leakscope with sudo",
                ),
            },
        }
    }

    fn lockdown(&self) -> Row {
        let name = "no lockdown";
        match kmemleak::lockdown(self.places) {
            None => row(name, State::Ready, "lockdown does not restrict anything", ""),
            Some(mode) => row(
                name,
                State::Missing,
                format!(
                    "the mode is {mode}: debugfs is closed{}",
                    if mode == "integrity" { "" } else { ", tracing too" }
                ),
                "boot without Secure Boot, or with lockdown=none",
            ),
        }
    }

    fn debugfs(&self) -> Row {
        let name = "debugfs";
        match read_mount(self.places, "debugfs") {
            Some(place) => row(name, State::Ready, format!("mounted at {}", place.display()), ""),
            None if self.config.has("DEBUG_FS") == Some(false) => self.not_built(name, "DEBUG_FS"),
            None => row(name, State::Off, "not mounted", "mount -t debugfs none /sys/kernel/debug, or give --mount"),
        }
    }

    fn not_built(&self, name: &'static str, option: &str) -> Row {
        row(
            name,
            State::Missing,
            format!("built without CONFIG_{option} ({})", self.config.source),
            format!("a kernel with CONFIG_{option}"),
        )
    }

    fn kmemleak(&self) -> Row {
        let name = "kmemleak";
        match Kmemleak::open(self.places) {
            Ok(_) => row(name, State::Ready, "it is enabled", ""),
            Err(error) => {
                let state = match error {
                    KernelError::NotBuilt(_) => State::Missing,
                    KernelError::NotRoot(_) => State::Unknown,
                    _ => State::Off,
                };
                let text = error.to_string();
                let (reason, next) = text.rsplit_once("; ").unwrap_or((&text, ""));
                row(name, state, reason, next)
            }
        }
    }

    fn bpf(&self) -> Row {
        let name = "BPF";
        let sysctl = self.places.exists("/proc/sys/kernel/unprivileged_bpf_disabled");
        match (sysctl, self.config.has("BPF_SYSCALL")) {
            (true, _) | (_, Some(true)) => match self.places.read("/proc/sys/net/core/bpf_jit_enable").as_deref() {
                Some("0\n") => {
                    row(name, State::Ready, "interpreted only", "sysctl net.core.bpf_jit_enable=1 makes it faster")
                }
                _ => row(name, State::Ready, "the system call is there", ""),
            },
            (false, Some(false)) => self.not_built(name, "BPF_SYSCALL"),
            (false, None) => row(name, State::Unknown, "no configuration, and no sysctl of BPF", ""),
        }
    }

    fn btf(&self) -> Row {
        let name = "BTF";
        match std::fs::metadata(self.places.path("/sys/kernel/btf/vmlinux")) {
            Ok(file) => row(name, State::Ready, format!("/sys/kernel/btf/vmlinux, {} bytes", file.len()), ""),
            Err(_) if self.config.has("DEBUG_INFO_BTF") == Some(false) => self.not_built(name, "DEBUG_INFO_BTF"),
            Err(_) => row(name, State::Missing, "no /sys/kernel/btf/vmlinux", "a kernel with CONFIG_DEBUG_INFO_BTF"),
        }
    }

    /// Whether tracefs can be looked into; else the row that says why not.
    fn tracefs(&self, name: &'static str) -> Result<std::path::PathBuf, Row> {
        match read_tracefs(self.places) {
            Some(folder) => Ok(folder),
            None if !kmemleak::is_root() => {
                Err(row(name, State::Unknown, "only root may look into tracefs", "run leakscope with sudo"))
            }
            None if self.config.has("TRACING") == Some(false) => Err(self.not_built(name, "FTRACE")),
            None => Err(row(
                name,
                State::Unknown,
                "tracefs is not mounted",
                "mount -t tracefs none /sys/kernel/tracing to see; BPF itself does not need it",
            )),
        }
    }

    fn tracepoints(&self) -> Row {
        let name = "kmem tracepoints";
        let folder = match self.tracefs(name) {
            Ok(folder) => folder,
            Err(row) => return row,
        };
        let wanted = [
            "kmem/kmalloc",
            "kmem/kfree",
            "kmem/kmem_cache_alloc",
            "kmem/kmem_cache_free",
            "kmem/mm_page_alloc",
            "kmem/mm_page_free",
        ];
        let has = |event: &&&str| self.places.path(&folder).join("events").join(event).is_dir();
        let missing: Vec<&str> = wanted.iter().filter(|event| !has(event)).copied().collect();
        let percpu = has(&&"percpu/percpu_alloc_percpu");
        match missing[..] {
            [] if percpu => row(name, State::Ready, "slab, pages and percpu", ""),
            [] => row(name, State::Ready, "slab and pages; none of percpu memory", ""),
            ref missing if missing.len() == wanted.len() => {
                row(name, State::Missing, "none of them", "a kernel with CONFIG_TRACEPOINTS (CONFIG_FTRACE)")
            }
            ref missing => row(name, State::Off, format!("without {}", missing.join(", ")), ""),
        }
    }

    fn traced(&self, name: &'static str, file: &str, option: &str) -> Row {
        if self.config.has(option) == Some(false) {
            return self.not_built(name, option);
        }
        match self.tracefs(name) {
            Err(row) => row,
            Ok(folder) if self.places.path(&folder).join(file).exists() => {
                row(name, State::Ready, "they are there", "")
            }
            Ok(_) => {
                row(name, State::Missing, format!("no {file} in tracefs"), format!("a kernel with CONFIG_{option}"))
            }
        }
    }

    fn kprobes(&self) -> Row {
        match self.places.read("/sys/kernel/debug/kprobes/enabled").as_deref() {
            Some("0\n") => {
                row("kprobes", State::Off, "switched off in debugfs", "echo 1 > /sys/kernel/debug/kprobes/enabled")
            }
            _ => self.traced("kprobes", "kprobe_events", "KPROBE_EVENTS"),
        }
    }

    fn uprobes(&self) -> Row {
        self.traced("uprobes", "uprobe_events", "UPROBE_EVENTS")
    }

    fn addresses(&self) -> Row {
        let name = "function names";
        let table = self.places.read("/proc/kallsyms");
        // Before functions stand processors' own variables, whose addresses are small numbers.
        let is_function = |line: &&str| line.contains(" T ");
        match table.as_deref().and_then(|table| table.lines().find(is_function)) {
            None => row(name, State::Missing, "no /proc/kallsyms", "a kernel with CONFIG_KALLSYMS, or --system-map"),
            Some(line) if line.starts_with("0000000000000000 ") => row(
                name,
                State::Off,
                "/proc/kallsyms hides addresses from this user",
                "run leakscope with sudo, or sysctl kernel.kptr_restrict=1",
            ),
            Some(_) => row(name, State::Ready, "/proc/kallsyms shows addresses", ""),
        }
    }

    fn slub_debug(&self) -> Row {
        let name = "SLUB debug";
        if self.config.has("SLUB_DEBUG") == Some(false) {
            return self.not_built(name, "SLUB_DEBUG");
        }
        let Ok(caches) = std::fs::read_dir(self.places.path("/sys/kernel/slab")) else {
            let reason = "no /sys/kernel/slab";
            return match self.config.has("SLUB_DEBUG") {
                Some(true) if self.config.has("SYSFS") != Some(false) => {
                    row(name, State::Off, reason, "boot with slub_debug=FZPU")
                }
                _ => row(name, State::Unknown, reason, ""),
            };
        };
        let is_tracked = |cache: &std::path::Path| {
            std::fs::read_to_string(cache.join("store_user")).is_ok_and(|text| text.trim() == "1")
        };
        let (mut all, mut tracked) = (0_u32, 0_u32);
        for cache in caches.flatten() {
            all += 1;
            tracked += u32::from(is_tracked(&cache.path()));
        }
        match tracked {
            0 => row(name, State::Off, "built in; no cache keeps who allocated", "boot with slub_debug=FZPU"),
            _ => row(name, State::Ready, format!("{tracked} of {all} caches keep who allocated"), ""),
        }
    }

    fn page_owner(&self) -> Row {
        let name = "page_owner";
        if self.config.has("PAGE_OWNER") == Some(false) {
            return self.not_built(name, "PAGE_OWNER");
        }
        let asked = self.cmdline.split_whitespace().any(|word| word == "page_owner=on");
        match (asked, self.config.has("PAGE_OWNER")) {
            (true, _) => row(name, State::Ready, "/sys/kernel/debug/page_owner", ""),
            (false, Some(true)) => row(name, State::Off, "built in, not switched on", "boot with page_owner=on"),
            (false, _) => row(name, State::Unknown, "no configuration tells", ""),
        }
    }

    fn allocinfo(&self) -> Row {
        let name = "allocinfo";
        match self.places.read("/proc/sys/vm/mem_profiling").as_deref().map(str::trim) {
            Some("1") => row(name, State::Ready, "/proc/allocinfo counts by line", ""),
            Some(_) => row(name, State::Off, "built in, not counting", "sysctl vm.mem_profiling=1, or boot with it"),
            None if self.places.exists("/proc/allocinfo") => row(name, State::Ready, "/proc/allocinfo", ""),
            None => {
                row(name, State::Missing, "no /proc/allocinfo", "a kernel from 6.10 on with CONFIG_MEM_ALLOC_PROFILING")
            }
        }
    }

    fn kasan(&self) -> Row {
        let name = "KASAN";
        match self.config.has("KASAN") {
            Some(true) => row(name, State::Ready, "its reports are in the kernel's log", ""),
            Some(false) => self.not_built(name, "KASAN"),
            None => row(name, State::Unknown, "no configuration tells", ""),
        }
    }

    fn kfence(&self) -> Row {
        let name = "KFENCE";
        let interval = self.places.read("/sys/module/kfence/parameters/sample_interval");
        match interval.as_deref().map(str::trim) {
            Some("0") => row(
                name,
                State::Off,
                "built in, not sampling",
                "echo 100 > /sys/module/kfence/parameters/sample_interval",
            ),
            Some(milliseconds) => row(name, State::Ready, format!("samples every {milliseconds} ms"), ""),
            None if self.config.has("KFENCE") == Some(false) => self.not_built(name, "KFENCE"),
            None => row(name, State::Missing, "no /sys/module/kfence", "a kernel with CONFIG_KFENCE"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(files: &[(&str, &str)]) -> Status {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path.replace("RELEASE", &kmemleak::release()));
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        read_status(&Places::below(folder.path()))
    }

    fn state(status: &Status, name: &str) -> (State, String) {
        let row = status.rows.iter().find(|row| row.name == name).unwrap();
        (row.state, row.next.clone())
    }

    #[test]
    fn nothing_known_is_said_so() {
        let status = status(&[]);
        assert!(status.config_source.is_empty());
        for name in ["KASAN", "page_owner", "BPF"] {
            assert_eq!(state(&status, name).0, State::Unknown, "{name}");
        }
        assert_eq!(state(&status, "allocinfo").0, State::Missing);
    }

    #[test]
    fn every_row_that_is_not_ready_has_a_next_step_where_one_helps() {
        let status = status(&[
            (
                "boot/config-RELEASE",
                "CONFIG_DEBUG_KMEMLEAK=y\nCONFIG_SLUB_DEBUG=y\nCONFIG_PAGE_OWNER=y\nCONFIG_DEBUG_FS=y\n",
            ),
            ("proc/self/mounts", ""),
            ("proc/self/status", "Name:\tx\nCapEff:\t0000000000000000\n"),
            ("proc/sys/vm/mem_profiling", "0\n"),
            ("sys/module/kfence/parameters/sample_interval", "0\n"),
            ("sys/kernel/slab/kmalloc-64/store_user", "0\n"),
            ("sys/kernel/security/lockdown", "none [integrity] confidentiality\n"),
            ("proc/kallsyms", "0000000000000000 T _text\n"),
        ]);
        for (name, next) in [
            ("capabilities", "sudo"),
            ("no lockdown", "Secure Boot"),
            ("debugfs", "mount -t debugfs"),
            ("kmemleak", "mount -t debugfs"),
            ("SLUB debug", "slub_debug=FZPU"),
            ("page_owner", "page_owner=on"),
            ("allocinfo", "vm.mem_profiling=1"),
            ("KFENCE", "sample_interval"),
            ("KASAN", "CONFIG_KASAN"),
            ("BTF", "CONFIG_DEBUG_INFO_BTF"),
            ("function names", "sudo"),
        ] {
            let (state, step) = state(&status, name);
            assert!(state != State::Ready && step.contains(next), "{name}: {state:?} {step}");
        }
    }

    #[test]
    fn capabilities_by_bit() {
        assert_eq!(lacking(u64::MAX), [""; 0]);
        assert_eq!(lacking(u64::MAX ^ 1 << 39), ["CAP_BPF"]);
    }
}
