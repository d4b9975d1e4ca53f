//! What `kernel trace` and `trace` take.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::ViewArgs;
use super::kernel::KernelNamesArgs;
use super::values::{bytes, duration};

/// How long, how often, and how much; for both tracers.
#[derive(Clone, Debug, Args)]
pub struct WatchArgs {
    /// Trace for so long; 0: until interrupted
    #[arg(long = "for", value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub window: Duration,
    /// Show what is at least so old: younger blocks may be on their way to be released [default: 10s, at most a third of --for]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub min_age: Option<Duration>,
    /// Refresh the view on a terminal so often
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = duration)]
    pub interval: Duration,
    /// Print once, at the end
    #[arg(long)]
    pub once: bool,
    /// Print JSON, once, at the end
    #[arg(long)]
    pub json: bool,
    /// Track one allocation in so many bytes on average; 0 tracks all of them, exactly
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub sample: Option<u64>,
    /// Sample less when tracing takes more than this share of the machine's processor time
    /// [default: 2%, without a limit when everything is tracked]
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    pub max_overhead: Option<f64>,
    /// Print each allocation and release as it happens, with address and size
    #[arg(long)]
    pub print_events: bool,
    /// Events to print each second, at most; the others are counted
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub events_per_second: u64,
    /// Sites to print
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub top: usize,
    /// Room for outstanding blocks [default: 262144, or 1048576 when nothing is sampled]
    #[arg(long, value_name = "N", hide = true, value_parser = clap::value_parser!(u32).range(1..=64 << 20))]
    pub max_blocks: Option<u32>,
    /// Room for stacks.
    #[arg(long, value_name = "N", hide = true, default_value_t = 16384, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub max_stacks: u32,
}

impl WatchArgs {
    /// The age from which blocks are shown.
    pub fn min_age(&self) -> Duration {
        const USUAL: Duration = Duration::from_secs(10);
        self.min_age.unwrap_or(if self.window.is_zero() { USUAL } else { USUAL.min(self.window / 3) })
    }
}

/// `leakscope kernel trace`.
#[derive(Clone, Debug, Args)]
pub struct KernelTraceArgs {
    /// How reports look (with --format or -o).
    #[command(flatten)]
    pub view: ViewArgs,
    /// How long and how much.
    #[command(flatten)]
    pub watch: WatchArgs,
    /// Trace kmalloc; without one of these five, all of them
    #[arg(long)]
    pub kmalloc: bool,
    /// Trace objects of slab caches
    #[arg(long)]
    pub slab: bool,
    /// Trace whole pages
    #[arg(long)]
    pub pages: bool,
    /// Trace per-CPU memory
    #[arg(long)]
    pub percpu: bool,
    /// Trace vmalloc
    #[arg(long)]
    pub vmalloc: bool,
    /// Only allocations by tasks of this name
    #[arg(long, value_name = "NAME")]
    pub comm: Option<String>,
    /// Only allocations by this process
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// Only allocations in this control group (version 2) and those below it
    #[arg(long, value_name = "PATH")]
    pub cgroup: Option<PathBuf>,
    /// Only allocations with a function of this module on the stack
    #[arg(long, value_name = "NAME")]
    pub module: Option<String>,
    /// Where names come from.
    #[command(flatten)]
    pub names: KernelNamesArgs,
}

/// `leakscope trace`.
#[derive(Clone, Debug, Args)]
pub struct TraceArgs {
    /// How reports look (with --format or -o).
    #[command(flatten)]
    pub view: ViewArgs,
    /// How long and how much.
    #[command(flatten)]
    pub watch: WatchArgs,
    /// Trace all processes of this name
    #[arg(long, value_name = "NAME", conflicts_with = "pid")]
    pub comm: Option<String>,
    /// Walk stacks by frame pointers, in the kernel: cheaper, and wrong where code was built without them
    #[arg(long)]
    pub frame_pointers: bool,
    /// Process to trace
    #[arg(value_name = "PID", required_unless_present = "comm")]
    pub pid: Option<u32>,
}

/// Help of `trace`.
pub const TRACE_HELP: &str = "\
Needs root and a kernel of 5.8 or later with BTF and uprobes. The program is not stopped, nothing is injected into it, and
nothing stays behind. Watches malloc and its family in the C library, jemalloc, tcmalloc, mimalloc, or the executable, also
in containers. What was allocated before is not seen; each call of the allocator costs the program some microseconds
while it is traced.

Exit code: --error-exitcode on findings; 2 when the program cannot be traced.";

fn percent(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.trim_end_matches('%').parse().ok();
    let is_sensible = |number: &f64| *number > 0.0 && *number <= 100.0;
    number.filter(is_sensible).ok_or_else(|| "expected a share such as 2% or 0.5%".to_owned())
}

/// Help of `kernel trace`.
pub const KERNEL_TRACE_HELP: &str = "\
Needs root (or CAP_BPF and CAP_PERFMON) and a kernel of 5.8 or later with BTF; no kprobes, no modules, no debug build.
Shows what was allocated while tracing and not released, by stack. Slabs and user memory are made of pages, so bytes of
pages are not to be added to those of the others. Nothing stays behind, however the command ends.

Exit code: --error-exitcode on findings; 2 when the kernel cannot be traced.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_by_table() {
        assert_eq!(percent("2%"), Ok(2.0));
        assert_eq!(percent("0.5"), Ok(0.5));
        for wrong in ["", "%", "0", "-1%", "101%", "x"] {
            assert!(percent(wrong).is_err(), "{wrong}");
        }
    }
}
