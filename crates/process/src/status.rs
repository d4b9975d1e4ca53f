//! `/proc/PID/status` and `/proc/PID/statm`. Source: proc_pid_status(5), proc_pid_statm(5).

use std::io;

/// What the kernel says of a process.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Status {
    /// Name of the program, cut to 15 bytes by the kernel.
    pub name: String,
    /// State letter: R, S, D, T (stopped), t (traced), Z, X.
    pub state: char,
    /// Parent.
    pub parent_pid: u32,
    /// Real and effective user.
    pub uids: (u32, u32),
    /// Process that traces it, 0 for none.
    pub tracer_pid: u32,
    /// Resident bytes.
    pub resident_bytes: u64,
    /// Threads.
    pub threads: u32,
    /// Bit n-1 for signal n: signals of the main thread that are blocked.
    pub blocked_signals: u64,
    /// Likewise: ignored.
    pub ignored_signals: u64,
    /// Likewise: caught by a handler.
    pub caught_signals: u64,
    /// Whether `no_new_privs` is set.
    pub no_new_privs: bool,
}

impl Status {
    /// Whether a handler is installed for signal `number`.
    pub fn catches(&self, number: i32) -> bool {
        (1..=64).contains(&number) && self.caught_signals >> (number - 1) & 1 != 0
    }
}

/// Reads the status of process `pid`.
///
/// # Errors
/// When the process is gone.
pub fn read_status(pid: u32) -> io::Result<Status> {
    Ok(decode_status(&String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/status"))?)))
}

/// The facts in the text of a status file; what is missing or malformed stays zero.
pub fn decode_status(text: &str) -> Status {
    let mut status = Status::default();
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        let mut words = value.split_ascii_whitespace();
        let mut number = || words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        let mask = || u64::from_str_radix(value, 16).unwrap_or(0);
        match key {
            "Name" => status.name = value.to_owned(),
            "State" => status.state = value.chars().next().unwrap_or('?'),
            "PPid" => status.parent_pid = number() as u32,
            "Uid" => status.uids = (number() as u32, number() as u32),
            "TracerPid" => status.tracer_pid = number() as u32,
            "VmRSS" => status.resident_bytes = number().saturating_mul(1024),
            "Threads" => status.threads = number() as u32,
            "SigBlk" => status.blocked_signals = mask(),
            "SigIgn" => status.ignored_signals = mask(),
            "SigCgt" => status.caught_signals = mask(),
            "NoNewPrivs" => status.no_new_privs = number() == 1,
            _ => {}
        }
    }
    status
}

/// Resident bytes of process `pid`; `None` when it is gone.
pub fn read_resident_bytes(pid: u32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_status() {
        let status = read_status(std::process::id()).unwrap();
        assert_eq!(status.parent_pid, std::os::unix::process::parent_id());
        assert!(status.resident_bytes > 100_000 && status.threads >= 1);
        // The Rust runtime ignores SIGPIPE and catches SIGSEGV to tell stack overflows apart.
        assert!(status.ignored_signals >> 12 & 1 == 1 && status.catches(11));
        assert!(!status.catches(0) && !status.catches(65));
        let resident = read_resident_bytes(std::process::id()).unwrap();
        assert!(resident.abs_diff(status.resident_bytes) < 64 << 20);
    }

    #[test]
    fn nonsense_gives_zeros() {
        assert_eq!(decode_status("Name\nUid: x\nVmRSS: 99999999999999999999 kB\nSigCgt: zz\n"), Status::default());
        assert_eq!(decode_status("VmRSS:\t18446744073709551615 kB").resident_bytes, u64::MAX);
    }
}
