//! What `monitor` and its subcommands take.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use leakscope_monitor::units;

/// `leakscope monitor`.
#[derive(Clone, Debug, Args)]
pub struct MonitorArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: MonitorCommand,
}

/// The subcommands of `monitor`.
#[derive(Clone, Debug, Subcommand)]
pub enum MonitorCommand {
    /// Watch in the foreground until SIGTERM
    Run(ConfigArgs),
    /// One pass, for cron; exit code 1 when something grows
    Once(OnceArgs),
    /// Write a commented configuration for this machine
    Init(InitArgs),
    /// Write a systemd unit or a crontab line, after showing it
    Install(InstallArgs),
    /// Take away what install wrote
    Uninstall(UninstallArgs),
    /// Say what is watched, and what is wrong
    Status(StatusArgs),
    /// Show how a target went
    History(HistoryArgs),
    /// Say why a target is judged as it is
    Why(WhyArgs),
    /// Send a sample through every channel that is configured
    TestAlert(ConfigArgs),
    /// Write a core of a process that goes on
    Core(CoreArgs),
    /// Take in what the monitors of other machines push, until SIGTERM
    Collect(CollectArgs),
}

/// `leakscope monitor collect`.
#[derive(Clone, Debug, Args)]
pub struct CollectArgs {
    /// The collector's configuration
    #[arg(long, short, value_name = "FILE", default_value = "/etc/leakscope/collect.toml")]
    pub config: PathBuf,
}

/// Whose history is looked at.
#[derive(Clone, Debug, Args)]
pub struct PlaceArgs {
    /// Where the configuration is.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Look into this state folder: of a monitor, of a collector, or a machine's of a collector
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// The machine, in a collector's state folder
    #[arg(long, value_name = "NAME", requires = "state")]
    pub machine: Option<String>,
}

/// Where the configuration is.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    /// The configuration
    #[arg(long, short, value_name = "FILE", default_value = "/etc/leakscope/monitor.toml")]
    pub config: PathBuf,
}

/// `leakscope monitor once`.
#[derive(Clone, Debug, Args)]
pub struct OnceArgs {
    /// Where the configuration is.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Print nothing but errors: the alarms go through the channels
    #[arg(long, short)]
    pub quiet: bool,
}

/// `leakscope monitor init`.
#[derive(Clone, Debug, Args)]
pub struct InitArgs {
    /// The file to write; - for standard output
    #[arg(value_name = "FILE", default_value = "/etc/leakscope/monitor.toml")]
    pub file: PathBuf,
    /// Write over a file that is there
    #[arg(long)]
    pub force: bool,
}

/// `leakscope monitor install`.
#[derive(Clone, Debug, Args)]
pub struct InstallArgs {
    /// A systemd unit
    #[arg(long, conflicts_with = "cron", required_unless_present = "cron")]
    pub systemd: bool,
    /// A line in this user's crontab, every five minutes
    #[arg(long)]
    pub cron: bool,
    /// Where the configuration is.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
    /// Put the unit here
    #[arg(long, value_name = "DIR", default_value = "/etc/systemd/system")]
    pub unit_dir: PathBuf,
}

/// `leakscope monitor uninstall`.
#[derive(Clone, Debug, Args)]
pub struct UninstallArgs {
    /// Do not ask
    #[arg(long, short)]
    pub yes: bool,
    /// Where the unit is
    #[arg(long, value_name = "DIR", default_value = "/etc/systemd/system")]
    pub unit_dir: PathBuf,
}

/// `leakscope monitor status`.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {
    /// Whose history.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// For programs
    #[arg(long, conflicts_with = "prometheus")]
    pub json: bool,
    /// In Prometheus' words, for the textfile collector of node_exporter
    #[arg(long)]
    pub prometheus: bool,
}

/// `leakscope monitor history`.
#[derive(Clone, Debug, Args)]
pub struct HistoryArgs {
    /// Whose history.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// The target, as `status` names it
    #[arg(value_name = "TARGET")]
    pub target: String,
    /// How far back
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = length)]
    pub last: Duration,
    /// All rows, for programs
    #[arg(long)]
    pub csv: bool,
}

/// `leakscope monitor why`.
#[derive(Clone, Debug, Args)]
pub struct WhyArgs {
    /// Whose history.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// The target, as `status` names it
    #[arg(value_name = "TARGET")]
    pub target: String,
}

/// `leakscope monitor core`.
#[derive(Clone, Debug, Args)]
pub struct CoreArgs {
    /// The process
    #[arg(value_name = "PID")]
    pub pid: u32,
    /// The file to write, which must not be there
    #[arg(long, short, value_name = "FILE")]
    pub output: PathBuf,
    /// How much memory may be in it; the largest mappings are left out first
    #[arg(long, value_name = "BYTES", default_value = "2GB", value_parser = units::bytes)]
    pub size: u64,
}

/// Days, too: histories are long.
fn length(text: &str) -> Result<Duration, String> {
    units::seconds(text).map(Duration::from_secs)
}
