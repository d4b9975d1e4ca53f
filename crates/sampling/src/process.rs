//! Processes: who runs, and how much memory each has. Source: proc_pid_stat(5), proc_pid_status(5), proc_pid_smaps(5).

use std::fs;
use std::io;

use crate::Places;

/// A process as its `stat` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Name, at most 15 bytes, any bytes.
    pub name: Vec<u8>,
    /// Parent.
    pub parent_pid: u32,
    /// Start in clock ticks after boot: with the id it tells processes apart that have had the same id.
    pub start_ticks: u64,
    /// Threads.
    pub threads: u32,
    /// Resident bytes.
    pub resident_bytes: u64,
    /// State letter; Z for one that has ended.
    pub state: u8,
}

/// Memory and other things of a process or of several together; `None` is unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Resident bytes.
    pub resident_bytes: u64,
    /// Of these: not backed by files.
    pub anonymous_bytes: Option<u64>,
    /// On swap.
    pub swap_bytes: Option<u64>,
    /// Resident, shared pages divided by their sharers.
    pub proportional_bytes: Option<u64>,
    /// Resident, written, nobody else's.
    pub private_dirty_bytes: Option<u64>,
    /// Threads.
    pub threads: u64,
    /// Open descriptors.
    pub descriptors: Option<u64>,
    /// Live bytes of the ledger, for programs under `leakscope run`.
    pub live_bytes: Option<u64>,
    /// Addresses, mapped with memory or without: what RLIMIT_AS bounds.
    pub address_bytes: Option<u64>,
    /// Of these: private and writable, what RLIMIT_DATA bounds.
    pub data_bytes: Option<u64>,
}

/// What a process may have at most; `None` is unlimited or unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// RLIMIT_AS.
    pub address_bytes: Option<u64>,
    /// RLIMIT_DATA.
    pub data_bytes: Option<u64>,
    /// RLIMIT_NOFILE.
    pub descriptors: Option<u64>,
}

impl Counters {
    /// Adds what another process has. What is unknown of one is unknown of the sum.
    pub fn add(&mut self, other: &Self) {
        let both = |a: Option<u64>, b: Option<u64>| Some(a?.saturating_add(b?));
        self.resident_bytes = self.resident_bytes.saturating_add(other.resident_bytes);
        self.anonymous_bytes = both(self.anonymous_bytes, other.anonymous_bytes);
        self.swap_bytes = both(self.swap_bytes, other.swap_bytes);
        self.proportional_bytes = both(self.proportional_bytes, other.proportional_bytes);
        self.private_dirty_bytes = both(self.private_dirty_bytes, other.private_dirty_bytes);
        self.threads = self.threads.saturating_add(other.threads);
        self.descriptors = both(self.descriptors, other.descriptors);
        self.address_bytes = both(self.address_bytes, other.address_bytes);
        self.data_bytes = both(self.data_bytes, other.data_bytes);
        // Only some of the processes of a target may be under `leakscope run`.
        self.live_bytes = match (self.live_bytes, other.live_bytes) {
            (None, only) | (only, None) => only,
            (Some(a), Some(b)) => Some(a.saturating_add(b)),
        };
    }
}

/// All processes, kernel threads left out. What ends meanwhile is left out as well.
///
/// # Errors
/// When `/proc` cannot be listed.
pub fn read_processes(places: &Places) -> io::Result<Vec<Process>> {
    let mut processes = Vec::with_capacity(512);
    for entry in fs::read_dir(places.path("/proc"))? {
        let Ok(entry) = entry else { continue };
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        processes.extend(read_process(places, pid).filter(|process| !is_kernel_thread(process)));
    }
    Ok(processes)
}

/// One process; `None` when it is gone.
pub fn read_process(places: &Places, pid: u32) -> Option<Process> {
    let bytes = fs::read(places.path(format!("/proc/{pid}/stat"))).ok()?;
    decode_stat(&bytes, rustix::param::page_size() as u64)
}

/// Kernel threads have no memory of their own and descend from process 2.
fn is_kernel_thread(process: &Process) -> bool {
    process.pid == 2 || process.parent_pid == 2
}

/// The facts in a `stat` line. The name stands in parentheses and may hold parentheses, spaces and newlines.
pub fn decode_stat(bytes: &[u8], page_bytes: u64) -> Option<Process> {
    let open = bytes.iter().position(|&byte| byte == b'(')?;
    let close = bytes.iter().rposition(|&byte| byte == b')')?;
    let pid = std::str::from_utf8(&bytes[..open]).ok()?.trim().parse().ok()?;
    let name = bytes.get(open + 1..close)?.to_vec();
    let rest = std::str::from_utf8(&bytes[close + 1..]).ok()?;
    // Field 3 of the manual comes first here.
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    Some(Process {
        pid,
        name,
        parent_pid: number(4)? as u32,
        start_ticks: number(22)?,
        threads: number(20)? as u32,
        // Negative for a moment when per-thread counts have not been added up.
        resident_bytes: number(24).unwrap_or(0).saturating_mul(page_bytes),
        state: *fields.first()?.as_bytes().first()?,
    })
}

/// Memory, threads and descriptors of a process, without a walk through its page tables.
pub fn read_counters(places: &Places, process: &Process) -> Option<Counters> {
    let mut counters = read_status(places, process.pid)?;
    counters.resident_bytes =
        counters.resident_bytes.max(if counters.threads == 0 { process.resident_bytes } else { 0 });
    counters.descriptors = read_descriptors(places, process.pid);
    Some(counters)
}

/// The facts in a `status` file; what is missing is unknown.
pub fn decode_status(bytes: &[u8]) -> Counters {
    let mut counters = Counters::default();
    let mut shared_memory = None;
    let mut anonymous = None;
    for line in bytes.split(|&byte| byte == b'\n') {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
        let value = || {
            let text = std::str::from_utf8(&line[colon + 1..]).ok()?;
            text.split_ascii_whitespace().next()?.parse::<u64>().ok()
        };
        let bytes = || value().map(|kilobytes| kilobytes.saturating_mul(1024));
        match &line[..colon] {
            b"VmRSS" => counters.resident_bytes = bytes().unwrap_or(0),
            b"RssAnon" => anonymous = bytes(),
            b"RssShmem" => shared_memory = bytes(),
            b"VmSwap" => counters.swap_bytes = bytes(),
            b"VmSize" => counters.address_bytes = bytes(),
            b"VmData" => counters.data_bytes = bytes(),
            b"Threads" => counters.threads = value().unwrap_or(0),
            _ => {}
        }
    }
    counters.anonymous_bytes = anonymous.map(|bytes| bytes.saturating_add(shared_memory.unwrap_or(0)));
    counters
}

/// The same without descriptors, of which a process may have many: cheap enough for every second.
pub fn read_status(places: &Places, pid: u32) -> Option<Counters> {
    Some(decode_status(&fs::read(places.path(format!("/proc/{pid}/status"))).ok()?))
}

/// Open descriptors. Since Linux 6.2 the folder's size is their number; before that they are counted.
pub fn read_descriptors(places: &Places, pid: u32) -> Option<u64> {
    let folder = places.path(format!("/proc/{pid}/fd"));
    match fs::metadata(&folder).ok()?.len() {
        0 => Some(fs::read_dir(&folder).ok()?.count() as u64),
        count => Some(count),
    }
}

/// Whether the kernel shows us a process's memory map: not that of another user's, unless we are root.
pub fn is_ours_to_see(places: &Places, pid: u32) -> bool {
    // The same right as for the map; kernel threads, which have none, and processes that are gone answer otherwise.
    let denied = |error: std::io::Error| error.kind() == std::io::ErrorKind::PermissionDenied;
    !fs::read_link(places.path(format!("/proc/{pid}/exe"))).is_err_and(denied)
}

/// Adds to `counters` what `smaps_rollup` says. The kernel walks the page tables for it: a millisecond a gigabyte and more.
pub fn read_rollup(places: &Places, pid: u32, counters: &mut Counters) {
    // A process of another user opens, and then gives nothing.
    if let Ok(bytes) = fs::read(places.path(format!("/proc/{pid}/smaps_rollup"))) {
        decode_rollup(&bytes, counters);
    }
}

fn decode_rollup(bytes: &[u8], counters: &mut Counters) {
    for line in String::from_utf8_lossy(bytes).lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let number = value.split_ascii_whitespace().next().and_then(|word| word.parse::<u64>().ok());
        let bytes = number.map(|kilobytes| kilobytes.saturating_mul(1024));
        match key {
            "Pss" => counters.proportional_bytes = bytes,
            "Private_Dirty" => counters.private_dirty_bytes = bytes,
            _ => {}
        }
    }
}

/// What a process may have at most.
pub fn read_limits(places: &Places, pid: u32) -> Limits {
    let text = places.read(&format!("/proc/{pid}/limits")).unwrap_or_default();
    Limits {
        address_bytes: decode_limit(&text, "Max address space"),
        data_bytes: decode_limit(&text, "Max data size"),
        descriptors: decode_limit(&text, "Max open files"),
    }
}

fn decode_limit(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(name: &str) -> Vec<u8> {
        format!("42 ({name}) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 3 0 987 1000000 250 18446744073709551615 1\n")
            .into()
    }

    #[test]
    fn names_may_hold_anything() {
        for name in ["sh", "a b", "x) S 1 (y", "new\nline", ")", ""] {
            let process = decode_stat(&stat(name), 4096).unwrap();
            assert_eq!(process.name, name.as_bytes());
            let facts = (process.pid, process.parent_pid, process.threads, process.start_ticks, process.resident_bytes);
            assert_eq!(facts, (42, 7, 3, 987, 250 * 4096));
        }
        for wrong in ["", "42", "42 (sh", "42 (sh)", "42 (sh) S", "x (sh) S 7", ")(", "1 )( S 1 2 3"] {
            assert_eq!(decode_stat(wrong.as_bytes(), 4096), None, "{wrong}");
        }
    }

    #[test]
    fn this_process_is_among_them() {
        let places = Places::default();
        let own = std::process::id();
        let found = read_processes(&places).unwrap();
        let process = found.iter().find(|process| process.pid == own).unwrap();
        let mut counters = read_counters(&places, process).unwrap();
        read_rollup(&places, own, &mut counters);
        let proportional = counters.proportional_bytes.unwrap();
        assert!(counters.resident_bytes > 500_000 && proportional <= counters.resident_bytes * 2, "{counters:?}");
        let kept: Vec<_> = (0..20).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let more = read_descriptors(&places, own).unwrap();
        assert!(more >= counters.descriptors.unwrap() + kept.len() as u64 - 4, "{more} {counters:?}");
        assert!(read_limits(&places, own).descriptors.is_some());
        assert!(!found.iter().any(|process| process.name == b"kthreadd"));
    }

    /// Of another process: in this one other tests come and go as threads.
    #[test]
    fn threads_are_those_of_its_folder() {
        let places = Places::default();
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let found = read_processes(&places).unwrap();
        let process = found.iter().find(|process| process.pid == child.id()).unwrap();
        let counters = read_counters(&places, process).unwrap();
        let folder = std::fs::read_dir(format!("/proc/{}/task", child.id())).unwrap();
        assert_eq!(counters.threads, folder.count() as u64);
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    /// Against what the shell was told.
    #[test]
    fn limits_and_what_they_bound() {
        let places = Places::default();
        let script = "ulimit -v 500000; ulimit -d 300000; ulimit -n 77; echo ready; exec cat";
        let mut child = std::process::Command::new("sh")
            .args(["-c", script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        let limits = read_limits(&places, child.id());
        let expected =
            Limits { address_bytes: Some(512_000_000), data_bytes: Some(307_200_000), descriptors: Some(77) };
        assert_eq!(limits, expected);
        let counters = read_status(&places, child.id()).unwrap();
        let (addresses, data) = (counters.address_bytes.unwrap(), counters.data_bytes.unwrap());
        assert!(data > 0 && data < addresses && counters.resident_bytes <= addresses, "{counters:?}");
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn what_vanishes_is_unknown() {
        let places = Places::default();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let process = read_process(&places, child.id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(read_counters(&places, &process), None);
        assert_eq!(read_process(&places, process.pid), None);
        let mut counters = Counters::default();
        read_rollup(&places, process.pid, &mut counters);
        assert_eq!(counters, Counters::default());
    }

    #[test]
    fn sums_know_what_is_unknown() {
        let mut sum = Counters { resident_bytes: 1, swap_bytes: Some(2), live_bytes: None, ..Counters::default() };
        sum.add(&Counters { resident_bytes: 4, swap_bytes: None, live_bytes: Some(9), ..Counters::default() });
        assert_eq!((sum.resident_bytes, sum.swap_bytes, sum.live_bytes), (5, None, Some(9)));
    }

    #[test]
    fn nonsense_is_no_number() {
        let counters =
            decode_status(b"VmRSS: x kB\nRssAnon:\nVmSwap: 3 kB\nThreads: 99999999999999999999999\n\xff:\n:");
        assert_eq!(counters, Counters { swap_bytes: Some(3072), ..Counters::default() });
        assert_eq!(decode_limit("Max open files            unlimited  unlimited  files", "Max open files"), None);
        assert_eq!(decode_limit("Max open files            1024  unlimited  files", "Max open files"), Some(1024));
    }
}
