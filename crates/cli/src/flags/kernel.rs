//! What `kernel` and its subcommands take.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::trace::{KERNEL_TRACE_HELP, KernelTraceArgs};
use super::values::duration;
use super::{DiffArgs, ViewArgs};

/// `leakscope kernel`.
#[derive(Clone, Debug, Args)]
pub struct KernelArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: KernelCommand,
}

/// The subcommands of `kernel`.
#[derive(Clone, Debug, Subcommand)]
pub enum KernelCommand {
    /// Say what this kernel offers for finding leaks, why not more, and what to do about it
    Status(StatusArgs),
    /// Let kmemleak scan, scan again until what it sees is confirmed, and report leaks by backtrace
    #[command(args_override_self = true, after_help = SCAN_HELP)]
    Scan(Box<ScanArgs>),
    /// Compare two scans, or two kernels: recordings (.leak) or dumps of kmemleak
    #[command(args_override_self = true)]
    Diff(Box<DiffArgs>),
    /// Print what kmemleak knows of the object at an address
    Dump(DumpArgs),
    /// Let kmemleak forget all that it reports now, so that later scans show only what is new
    Clear(MountArgs),
    /// Change kmemleak's settings
    Set(SetArgs),
    /// Watch allocations live, and report what outlives a while, by stack; also in production
    #[command(args_override_self = true, after_help = KERNEL_TRACE_HELP)]
    Trace(Box<KernelTraceArgs>),
}

/// May debugfs be mounted?
#[derive(Clone, Debug, Default, Args)]
pub struct MountArgs {
    /// Mount debugfs if it is not, and unmount it at the end; without this nothing is mounted
    #[arg(long)]
    pub mount: bool,
}

/// `leakscope kernel status`.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// For programs
    #[arg(long)]
    pub json: bool,
}

/// kmemleak's settings.
#[derive(Clone, Debug, Default, Args)]
pub struct SettingsArgs {
    /// Whether kmemleak takes the stacks of tasks for roots; off finds more leaks and more that are none
    #[arg(long, value_name = "on|off", require_equals = true)]
    pub stack: Option<OnOff>,
    /// How often kmemleak scans by itself: so many seconds, on (every 600) or off (never)
    #[arg(long, value_name = "SECS|on|off", value_parser = auto_scan, require_equals = true)]
    pub scan: Option<AutoScan>,
}

/// `leakscope kernel set`.
#[derive(Clone, Debug, Args)]
pub struct SetArgs {
    /// What to change.
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Switch kmemleak off until the next boot; it cannot be switched on again
    #[arg(long)]
    pub off_until_reboot: bool,
    /// May debugfs be mounted?
    #[command(flatten)]
    pub mount: MountArgs,
}

/// `leakscope kernel scan`.
#[derive(Clone, Debug, Args)]
pub struct ScanArgs {
    /// How the report looks.
    #[command(flatten)]
    pub view: ViewArgs,
    /// Scan again so many times after an object is seen first; what is not seen each time is unconfirmed
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub rescan: u32,
    /// Spread the scans over this time; an object that is younger at the end is unconfirmed
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub min_age: Duration,
    /// Let kmemleak forget what it reports now, first: only what is allocated from now on is reported
    #[arg(long)]
    pub clear: bool,
    /// kmemleak's settings.
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Where names come from.
    #[command(flatten)]
    pub names: KernelNamesArgs,
    /// Write what kmemleak wrote after the last scan to FILE as well, as it is
    #[arg(long, value_name = "FILE")]
    pub keep_dump: Option<PathBuf>,
    /// May debugfs be mounted?
    #[command(flatten)]
    pub mount: MountArgs,
}

/// Where the names of the kernel's functions come from.
#[derive(Clone, Debug, Default, Args)]
pub struct KernelNamesArgs {
    /// The kernel's own file with debug information, for files and lines [default: where distributions put it]
    #[arg(long, value_name = "FILE")]
    pub vmlinux: Option<PathBuf>,
    /// System.map, for addresses without a name when /proc/kallsyms says nothing
    #[arg(long, value_name = "FILE")]
    pub system_map: Option<PathBuf>,
    /// Look for modules (.ko, .ko.debug) here first [default: /lib/modules/RELEASE and /usr/lib/debug]
    #[arg(long, value_name = "DIR")]
    pub modules: Vec<PathBuf>,
}

/// `leakscope kernel dump`.
#[derive(Clone, Debug, Args)]
pub struct DumpArgs {
    /// The address of the object, or one inside of it, in hex
    #[arg(value_name = "ADDR", value_parser = address)]
    pub address: u64,
    /// May debugfs be mounted?
    #[command(flatten)]
    pub mount: MountArgs,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnOff {
    /// On
    On,
    /// Off
    Off,
}

/// `--scan`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AutoScan {
    /// Every 600 seconds.
    On,
    /// Never.
    Off,
    /// Every so many seconds.
    Every(u32),
}

fn auto_scan(text: &str) -> Result<AutoScan, String> {
    match text {
        "on" => Ok(AutoScan::On),
        "off" => Ok(AutoScan::Off),
        _ => match text.trim_end_matches('s').parse() {
            // The kernel takes 0 for "only once more".
            Ok(seconds) if seconds > 0 => Ok(AutoScan::Every(seconds)),
            _ => Err("expected seconds from 1 on, `on` or `off`".to_owned()),
        },
    }
}

fn address(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    u64::from_str_radix(digits, 16).map_err(|_| "expected an address in hex, such as 0xffff8881087ee300".to_owned())
}

/// Help of `kernel scan`.
const SCAN_HELP: &str = "\
Needs root and a kernel with CONFIG_DEBUG_KMEMLEAK; `leakscope kernel status` says what is missing. kmemleak reports what
nothing that it scans points to, from the second scan after the allocation on and no sooner than 5 seconds after it. It
sees kmalloc, kmem_cache_alloc, vmalloc and memblock, alloc_percpu from 6.12 on, and never alloc_pages.

Leaks that every scan saw are definitely lost; what was seen less often, or is too young, is unconfirmed and counts as
possibly lost.

Exit code: --error-exitcode on findings; 2 when the kernel cannot be scanned.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_by_table() {
        assert_eq!(auto_scan("600"), Ok(AutoScan::Every(600)));
        assert_eq!(auto_scan("off"), Ok(AutoScan::Off));
        assert!(auto_scan("0").is_err() && auto_scan("-1").is_err() && auto_scan("").is_err());
        assert_eq!(address("0xff"), Ok(255));
        assert_eq!(address("ff"), Ok(255));
        assert!(address("0x").is_err() && address("xyz").is_err());
    }
}
