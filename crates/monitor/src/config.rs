//! The configuration: TOML to what is to be done; every mistake with line and column, all at once.
//!
//! Pure but for [`Config::read`]. A minimal one:
//!
//! ```toml
//! [[watch]]
//! name = "nginx"
//!
//! [mail]
//! to = ["ops@example.org"]
//! ```

mod channels;
pub mod collector;
mod outlets;
mod table;

use std::fmt;
use std::path::{Path, PathBuf};

use leakscope_alerts::{Channel, Policy};
use leakscope_sampling::Selector;
use toml::de::DeTable;

use crate::checks::Plan;
use crate::error::MonitorError;
use crate::targets::Manner;
use crate::units;
pub use collector::Collector;
pub use outlets::{Otlp, PAGE, Page};
use table::{Problems, Table};

/// A mistake in the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong and what was expected.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.text)
    }
}

/// One thing to watch.
#[derive(Clone, Debug, PartialEq)]
pub struct WatchEntry {
    /// What.
    pub selector: Selector,
    /// A limit instead of that of the group or the machine, bytes.
    pub limit_bytes: Option<u64>,
    /// The first seconds of each life are not looked at.
    pub warm_up_seconds: u64,
    /// When a core is taken.
    pub core: CorePolicy,
}

/// When a core of a running process is taken, which goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CorePolicy {
    /// Never.
    #[default]
    Never,
    /// Once in each life of a target, when its control group comes near its limit.
    Once,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Config {
    /// Seconds between two samples.
    pub interval_seconds: u64,
    /// The shortest window that is judged, seconds; the others are shorter in proportion.
    pub window_seconds: f64,
    /// How often what is checked.
    pub checks: Plan,
    /// Largest core that is taken, bytes.
    pub core_bytes: u64,
    /// The page, if there is one.
    pub page: Option<Page>,
    /// Where metrics are pushed to, if anywhere.
    pub otlp: Option<Otlp>,
    /// Where the history is pushed to, if anywhere.
    pub collector: Option<Collector>,
    /// Where everything is kept.
    pub state: PathBuf,
    /// How this machine is called in messages.
    pub machine: Option<String>,
    /// What is watched.
    pub watch: Vec<WatchEntry>,
    /// Whether the kernel's own memory is watched.
    pub kernel: bool,
    /// Per cent of time in which tasks wait for memory that are a finding by themselves.
    pub pressure_percent: f64,
    /// When to speak.
    pub policy: Policy,
    /// To whom.
    pub channels: Vec<Channel>,
}

const DEFAULT_INTERVAL: u64 = 10;
/// A window of 64 bins must have bins that are not much shorter than a second.
const SHORTEST_WINDOW: f64 = 45.0;
/// A leak check stops the program for a moment.
const LEAST_CHECK_SECONDS: u64 = 10;
const DEFAULT_WARM_UP: u64 = 120;
const DEFAULT_PRESSURE: u64 = 20;
const DEFAULT_CORE_BYTES: u64 = 2_000_000_000;
/// Where root's daemon keeps its state.
pub const SYSTEM_STATE: &str = "/var/lib/leakscope";

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// When it cannot be read, or has mistakes: all of them.
    pub fn read(path: &Path) -> Result<Self, MonitorError> {
        let text = std::fs::read_to_string(path).map_err(|source| MonitorError::File {
            path: path.to_owned(),
            what: "read the configuration (`leakscope monitor init` writes one)",
            source,
        })?;
        Self::decode(&text).map_err(|problems| MonitorError::Config { path: path.to_owned(), problems })
    }

    /// How a target is judged, with a warm-up of so many seconds.
    pub fn manner(&self, warm_up_seconds: u64) -> Manner {
        Manner { warm_up_seconds, window_seconds: self.window_seconds }
    }

    /// The configuration in a text.
    ///
    /// # Errors
    /// All mistakes, in the order of the text.
    pub fn decode(text: &str) -> Result<Self, Vec<Problem>> {
        decode_with(text, |root, problems| {
            let config = decode_root(root);
            root.finish();
            if config.watch.is_empty() && !config.kernel && problems.is_empty() {
                problems.add(
                    0..0,
                    "nothing is watched; write [[watch]] with name, pid_file, unit, cgroup, container or top".into(),
                );
            }
            config
        })
    }
}

/// What a text says, by who knows its keys; or all mistakes, in the order of the text.
fn decode_with<T>(text: &str, decode: impl FnOnce(&Table<'_>, &Problems) -> T) -> Result<T, Vec<Problem>> {
    let problems = Problems::new(text);
    let (document, syntax) = DeTable::parse_recoverable(text);
    for error in &syntax {
        problems.add(error.span().unwrap_or_default(), error.message().to_owned());
    }
    if !syntax.is_empty() {
        return Err(problems.sorted());
    }
    let root = Table::new("the configuration", document.get_ref(), document.span(), &problems);
    let decoded = decode(&root, &problems);
    let found = problems.sorted();
    if found.is_empty() { Ok(decoded) } else { Err(found) }
}

fn decode_root(root: &Table<'_>) -> Config {
    let interval_seconds = root.with("interval", units::seconds).unwrap_or(DEFAULT_INTERVAL);
    if !(1..=3600).contains(&interval_seconds) {
        root.problem("interval", "must be between 1s and 1h");
    }
    let pressure = root.number("pressure", 1..=100).unwrap_or(DEFAULT_PRESSURE);
    let usual = Manner::default().window_seconds;
    let window_seconds = root.with("window", units::seconds).map_or(usual, |seconds| (seconds as f64).min(usual));
    if window_seconds < SHORTEST_WINDOW {
        root.problem("window", "must be between 45s and 11m");
    }
    if window_seconds < 56.0 * interval_seconds as f64 {
        root.problem("window", "must hold at least 56 intervals; write a shorter `interval`");
    }
    let every = |key| {
        let seconds = root.with(key, units::seconds);
        if seconds.is_some_and(|seconds| seconds < LEAST_CHECK_SECONDS) {
            root.problem(key, "must be at least 10s");
        }
        seconds
    };
    let checks =
        Plan { leak_check: every("leak_check"), kmemleak: every("kmemleak"), kernel_trace: every("kernel_trace") };
    let watch: Vec<WatchEntry> = root.tables("watch").iter().filter_map(decode_watch).collect();
    Config {
        interval_seconds,
        window_seconds,
        checks,
        core_bytes: root.with("core_size", units::bytes).unwrap_or(DEFAULT_CORE_BYTES),
        page: outlets::page(root, PAGE),
        otlp: outlets::otlp(root),
        collector: collector::collector(root),
        state: root.string("state").map_or_else(default_state, PathBuf::from),
        machine: root.string("machine").map(str::to_owned),
        watch,
        kernel: root.boolean("kernel").unwrap_or(true),
        pressure_percent: pressure as f64,
        policy: decode_policy(root),
        channels: channels::decode(root),
    }
}

/// `/var/lib/leakscope` for root, the folder for state of the user otherwise.
pub fn default_state() -> PathBuf {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    if rustix::process::geteuid().is_root() {
        return PathBuf::from(SYSTEM_STATE);
    }
    let base = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute()).or_else(home);
    base.map_or_else(|| PathBuf::from(SYSTEM_STATE), |base| base.join("leakscope"))
}

fn decode_policy(root: &Table<'_>) -> Policy {
    let defaults = Policy::default();
    let Some(alerts) = root.table("alerts") else { return defaults };
    let policy = Policy {
        repeat_seconds: match alerts.string("repeat") {
            Some("never") => None,
            _ => alerts.with("repeat", units::seconds).or(defaults.repeat_seconds),
        },
        quiet_hours: alerts.with("quiet_hours", units::hours),
        most_a_day: alerts.number("most_a_day", 1..=100_000).map_or(defaults.most_a_day, |number| number as u32),
        digest_hour: alerts.with("digest", |text| units::hours(&format!("{text}-00:00")).map(|(hour, _)| hour)),
    };
    alerts.finish();
    policy
}

fn decode_watch(table: &Table<'_>) -> Option<WatchEntry> {
    const KINDS: [&str; 6] = ["name", "pid_file", "unit", "cgroup", "container", "top"];
    let given: Vec<&str> = KINDS.into_iter().filter(|key| table.has(key)).collect();
    let text = |key| table.string(key).map(str::to_owned);
    let selector = match given.as_slice() {
        ["name"] => text("name").map(Selector::Name),
        ["pid_file"] => text("pid_file").map(|path| Selector::PidFile(path.into())),
        ["unit"] => text("unit").map(|unit| Selector::Unit(if unit.contains('.') { unit } else { unit + ".service" })),
        ["cgroup"] => text("cgroup").map(Selector::Cgroup),
        ["container"] => text("container").map(Selector::Container),
        ["top"] => table.number("top", 1..=1000).map(|number| Selector::Top(number as usize)),
        _ => {
            given.iter().for_each(|key| _ = table.has_used(key));
            table.own_problem(&format!("one of {} is expected, found {}", KINDS.join(", "), given.len()));
            None
        }
    };
    let entry = WatchEntry {
        selector: selector.unwrap_or(Selector::Top(1)),
        limit_bytes: table.with("limit", units::bytes),
        warm_up_seconds: table.with("warm_up", units::seconds).unwrap_or(DEFAULT_WARM_UP),
        core: table.with("core", core_policy).unwrap_or_default(),
    };
    table.finish();
    Some(entry)
}

fn core_policy(text: &str) -> Result<CorePolicy, String> {
    match text {
        "never" => Ok(CorePolicy::Never),
        "once" => Ok(CorePolicy::Once),
        _ => Err(format!("`{text}` is no time for a core; write \"never\" or \"once\" (in each life, near the limit)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = "[[watch]]\nname = \"nginx\"\n\n[mail]\nto = [\"ops@example.org\"]\n";

    #[test]
    fn five_lines_are_enough() {
        let config = Config::decode(MINIMAL).unwrap();
        assert_eq!(config.watch[0].selector, Selector::Name("nginx".into()));
        assert_eq!((config.interval_seconds, config.channels.len(), config.kernel), (10, 1, true));
        assert_eq!(config.policy, Policy::default());
    }

    #[test]
    fn all_mistakes_at_once_with_their_places() {
        let text = "intervall = \"10s\"\ninterval = \"10\"\n[[watch]]\nname = \"a\"\nunit = \"b\"\n[[watch]]\ntop = \"x\"\n[mail]\nto = [\"nobody\"]\nport = 99999\n[alerts]\nquiet_hours = \"late\"\n[webhook]\nurl = \"ftp://x\"\n";
        let problems = Config::decode(text).unwrap_err();
        let places: Vec<(usize, usize)> = problems.iter().map(|problem| (problem.line, problem.column)).collect();
        assert_eq!(places, [(1, 1), (2, 12), (3, 1), (7, 7), (9, 7), (10, 8), (12, 15), (14, 7)], "{problems:#?}");
        assert!(
            problems[0].text.contains("`intervall`") && problems[0].text.contains("interval"),
            "{}",
            problems[0].text
        );
        assert!(problems[1].to_string().starts_with("2:12: `10` is no time"), "{}", problems[1]);
    }

    #[test]
    fn wrong_syntax_has_a_place() {
        let problems = Config::decode("interval = \n[[watch]]\nname = \"a\n").unwrap_err();
        assert_eq!(problems.first().map(|problem| problem.line), Some(1), "{problems:?}");
        assert!(Config::decode("kernel = false").unwrap_err()[0].text.contains("nothing is watched"));
        assert!(Config::decode("").is_ok(), "the kernel is watched");
    }

    #[test]
    fn the_page_is_refused_where_others_could_read_it() {
        let problem = |text: &str| Config::decode(text).map(|_| ()).map_err(|problems| problems[0].to_string());
        assert_eq!(problem("[page]\n"), Ok(()));
        assert_eq!(problem("[page]\nlisten = \"[::1]:80\"\n"), Ok(()));
        assert!(
            problem("[page]\nlisten = \"0.0.0.0:80\"\n").unwrap_err().starts_with("2:10: beyond this machine a token")
        );
        let token = "[page]\nlisten = \"0.0.0.0:80\"\ntoken_file = \"/t\"\n";
        assert!(problem(token).unwrap_err().contains("TLS is needed"));
        assert_eq!(problem(&format!("{token}certificate = \"/c\"\nkey = \"/k\"\n")), Ok(()));
        assert_eq!(problem(&format!("{token}behind_proxy = true\n")), Ok(()));
        assert!(problem("[page]\ntoken = \"x\"\n").unwrap_err().contains("token_file"));
        assert!(problem("[page]\nlisten = \"80\"\n").unwrap_err().contains("no place to listen"));
        assert!(problem("[page]\ncertificate = \"/c\"\n").unwrap_err().contains("needs `key`"));
        assert!(problem("[otlp]\n").unwrap_err().contains("`url` is missing"));
        assert!(problem("[otlp]\nurl = \"collector\"\n").unwrap_err().contains("no web address"));
    }

    #[test]
    fn windows_and_checks() {
        let config = Config::decode("interval = \"1s\"\nwindow = \"1m\"\nleak_check = \"1h\"\n").unwrap();
        assert_eq!((config.window_seconds, config.checks.leak_check, config.checks.kmemleak), (60.0, Some(3600), None));
        assert_eq!(Config::decode("window = \"12m\"\n").unwrap().window_seconds, Manner::default().window_seconds);
        let problem = |text: &str| Config::decode(text).unwrap_err()[0].to_string();
        assert!(problem("window = \"2m\"\n").starts_with("1:10: must hold at least 56 intervals"));
        assert!(problem("interval = \"1s\"\nwindow = \"30s\"\n").contains("45s"));
        assert!(problem("kmemleak = \"1s\"\n").contains("10s"));
    }

    #[test]
    fn cores_by_policy() {
        let config =
            Config::decode("core_size = \"5GB\"\n[[watch]]\nname = \"a\"\n[[watch]]\nunit = \"b\"\ncore = \"once\"\n");
        let config = config.unwrap();
        let policies: Vec<CorePolicy> = config.watch.iter().map(|entry| entry.core).collect();
        assert_eq!((policies, config.core_bytes), (vec![CorePolicy::Never, CorePolicy::Once], 5_000_000_000));
        let problem = Config::decode("[[watch]]\nunit = \"b\"\ncore = \"always\"\n").unwrap_err()[0].to_string();
        assert!(problem.starts_with("3:8: `always` is no time for a core"), "{problem}");
    }

    #[test]
    fn secrets_are_named_not_written() {
        let text = "[mail]\nto = [\"a@b.c\"]\nhost = \"h\"\nuser = \"u\"\npassword = \"p\"\n";
        let problems = Config::decode(text).unwrap_err();
        assert!(problems[0].text.contains("password_file"), "{problems:?}");
        assert!(!problems[0].text.contains("\"p\""));
    }
}
