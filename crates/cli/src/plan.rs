//! What the flags amount to: high-level arguments, checked and with all files read.

use std::ffi::OsStr;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use leakscope_findings::Suppressions;
use leakscope_findings::analysis::{Detail, LeakCheck, Options};
use leakscope_findings::suppressions::{BUILT_IN, BUILT_IN_FILE};
use leakscope_launch::ledger::{Config, flags as wishes};
use leakscope_model::{LeakKind, LeakKindSet};
use leakscope_report::{text, valgrind_xml};

use crate::flags::{Color, Format, GenSuppressions, KeepStacks, RunArgs, Syntax, ViewArgs};
use crate::log_name::LogName;
use crate::output::{self, Destination, Target};

/// Frames that are recorded although a report shows fewer: other views of a recording may show more, and
/// below the deepest recorded frame two sites cannot be told apart.
const RECORDED_FRAMES: u32 = 128;

/// How reports look, and where they go.
pub struct View {
    /// For the analysis.
    pub options: Options,
    /// The user's rules.
    pub suppressions: Suppressions,
    /// For the symbolizer.
    pub symbols: leakscope_symbols::Options,
    /// Reports to write.
    pub targets: Vec<Target>,
    /// Recordings to write.
    pub recordings: Vec<PathBuf>,
    /// Exit code when there are findings; 0 for none of its own.
    pub error_exitcode: u8,
    /// Only what was found.
    pub quiet: bool,
    /// `-v`, `-vv`.
    pub verbose: u8,
    /// What no program can help is hidden.
    pub default_suppressions: bool,
    /// Rules for the findings are wanted, in this syntax.
    pub rules: Option<Syntax>,
    colour: Color,
    text: text::Style,
    xml: valgrind_xml::Style,
}

impl View {
    /// Makes decisions of flags. `matches` tells the order of options that overwrite each other.
    ///
    /// # Errors
    /// When options contradict each other, or a file that they name cannot be read.
    pub fn new(args: &ViewArgs, matches: &ArgMatches, default: Destination) -> Result<Self> {
        let errors_for_leak_kinds = args.errors_for_leak_kinds.unwrap_or(LeakKindSet::DEFAULT);
        let options = Options {
            leak_check: args.leak_check,
            show_leak_kinds: shown_kinds(args, matches),
            errors_for_leak_kinds,
            leak_resolution: args.leak_resolution,
            num_callers: args.num_callers.into(),
            show_below_main: args.show_below_main,
            show_mismatched_frees: args.show_mismatched_frees,
            check: None,
            detail: Detail::All,
        };
        let mut suppressions = Suppressions::new();
        if args.default_suppressions {
            suppressions.add(BUILT_IN_FILE, BUILT_IN).context("the built-in rules")?;
        }
        for path in &args.suppressions {
            crate::suppressions::add(&mut suppressions, path)?;
        }
        let mut symbols = leakscope_symbols::Options { demangle: args.demangle, ..Default::default() };
        symbols.debug_dirs.extend(args.extra_debuginfo_path.iter().cloned());
        let (recordings, reports): (Vec<_>, Vec<_>) = args
            .output
            .iter()
            .map(|path| expanded(path))
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .partition(|path| path.extension() == Some(OsStr::new("leak")));
        let rules = match args.gen_suppressions {
            GenSuppressions::No => None,
            GenSuppressions::Yes | GenSuppressions::All | GenSuppressions::Valgrind => Some(Syntax::Valgrind),
            GenSuppressions::Lsan => Some(Syntax::Lsan),
        };
        let gen_suppressions = rules == Some(Syntax::Valgrind);
        let mut view = Self {
            options,
            suppressions,
            symbols,
            targets: targets(args, reports, default)?,
            recordings,
            error_exitcode: args.error_exitcode,
            quiet: args.quiet,
            verbose: args.verbose,
            default_suppressions: args.default_suppressions,
            rules,
            colour: args.color,
            text: text::Style {
                verbosity: if args.quiet { 0 } else { 1 + args.verbose.min(1) },
                error_lists: args.show_error_list || args.list_errors || args.verbose > 0,
                gen_suppressions,
                directories: args.fullpath_after.is_some(),
                ..text::Style::default()
            },
            xml: valgrind_xml::Style {
                tool_command: tool_command(),
                user_comment: args.xml_user_comment.clone(),
                gen_suppressions,
            },
        };
        view.targets.dedup();
        if !args.ignored.given.is_empty() && !args.quiet {
            eprintln!("leakscope: warning: without effect here: {}", args.ignored.given.join(" "));
        }
        Ok(view)
    }

    /// Leaves out what none of the reports shows.
    pub fn limit_detail(&mut self) {
        let shows_part = |target: &Target| matches!(target.format, Format::Text | Format::ValgrindXml);
        if self.targets.iter().all(shows_part) {
            self.options.detail = Detail::Shown;
        }
    }

    /// The style of text for a place.
    pub fn text_style(&self, destination: &Destination) -> text::Style {
        let colour = match self.colour {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => {
                output::is_terminal(destination) && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            }
        };
        text::Style { colour, ..self.text.clone() }
    }

    /// The style of XML.
    pub fn xml_style(&self) -> &valgrind_xml::Style {
        &self.xml
    }

    /// Whether something is written of all processes together, so that they must be kept until the end.
    pub fn has_documents(&self) -> bool {
        self.rules.is_some() || self.targets.iter().any(|target| target.format.is_document())
    }

    /// Whether a report shows sites without findings, so that they need names.
    pub fn shows_all_sites(&self) -> bool {
        self.targets.iter().any(|target| target.format.shows_all_sites())
    }

    /// Whether a progress bar may be drawn.
    pub fn shows_progress(&self) -> bool {
        !self.quiet && std::io::stderr().is_terminal()
    }
}

/// A name for `-o` with the patterns of `--log-file`, so that the programs of a test suite leave a file each: `%p` is our
/// process id, `%n` the first number that makes an unused name. Other percent signs stand for themselves.
fn expanded(path: &Path) -> Result<PathBuf> {
    let Some(pattern) = path.to_str().filter(|name| ["%p", "%n", "%q{"].iter().any(|sign| name.contains(sign))) else {
        return Ok(path.to_owned());
    };
    let name = LogName::parse(pattern, |name| std::env::var_os(name)).with_context(|| format!("-o {pattern}"))?;
    let number = if pattern.contains("%n") {
        (0..).find(|&n| !name.expand(std::process::id(), n).exists()).unwrap_or(0)
    } else {
        0
    };
    Ok(name.expand(std::process::id(), number))
}

/// `--show-leak-kinds` and the two older options that change it, in the order in which they were written.
fn shown_kinds(args: &ViewArgs, matches: &ArgMatches) -> LeakKindSet {
    let place = |name: &str| matches.indices_of(name).and_then(|mut indices| indices.next_back());
    let set = |kinds: LeakKindSet, kind, on| if on { kinds.with(kind) } else { kinds.without(kind) };
    type Step = Box<dyn Fn(LeakKindSet) -> LeakKindSet>;
    let mut steps: Vec<(usize, Step)> = Vec::new();
    if let (Some(kinds), Some(at)) = (args.show_leak_kinds, place("show_leak_kinds")) {
        steps.push((at, Box::new(move |_| kinds)));
    }
    if let (Some(on), Some(at)) = (args.show_reachable, place("show_reachable")) {
        let step = move |kinds| if on { LeakKindSet::ALL } else { set(kinds, LeakKind::StillReachable, false) };
        steps.push((at, Box::new(step)));
    }
    if let (Some(on), Some(at)) = (args.show_possibly_lost, place("show_possibly_lost")) {
        steps.push((at, Box::new(move |kinds| set(kinds, LeakKind::PossiblyLost, on))));
    }
    steps.sort_by_key(|&(at, _)| at);
    steps.iter().fold(LeakKindSet::DEFAULT, |kinds, (_, step)| step(kinds))
}

/// Which reports go where.
fn targets(args: &ViewArgs, reports: Vec<PathBuf>, default: Destination) -> Result<Vec<Target>> {
    let log_name = |option: &str, pattern: &str| {
        LogName::parse(pattern, |name| std::env::var_os(name)).with_context(|| format!("{option}={pattern}"))
    };
    let mut targets = Vec::new();
    let xml = match (&args.xml_file, args.xml_fd) {
        (Some(_), Some(_)) => bail!("--xml-file and --xml-fd: give one of them"),
        (Some(pattern), None) => Some(Destination::Log(log_name("--xml-file", pattern)?)),
        (None, Some(number)) => Some(Destination::Descriptor(number)),
        (None, None) => None,
    };
    if args.xml {
        let Some(destination) = xml else { bail!("--xml=yes: it needs --xml-file=FILE or --xml-fd=N to say where to") };
        targets.push(Target { format: Format::ValgrindXml, destination });
    }
    let log = match (&args.log_file, args.log_fd) {
        (Some(_), Some(_)) => bail!("--log-file and --log-fd: give one of them"),
        (Some(pattern), None) => Some(Destination::Log(log_name("--log-file", pattern)?)),
        (None, Some(number)) => Some(Destination::Descriptor(number)),
        (None, None) => None,
    };
    for path in &reports {
        let format = args.format.unwrap_or_else(|| Format::of_file(path));
        targets.push(Target { format, destination: Destination::Whole(path.clone()) });
    }
    // With XML or a report file the usual place stays silent, unless it was asked for.
    if log.is_some() || targets.is_empty() {
        let format = if reports.is_empty() { args.format.unwrap_or(Format::Text) } else { Format::Text };
        targets.push(Target { format, destination: log.unwrap_or(default) });
    }
    Ok(targets)
}

/// Our own words of the command line, without the target's: for the XML.
fn tool_command() -> Vec<String> {
    std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect()
}

/// The name of the event log, for the injected code. A file that every process writes under its own name is only known
/// there; any other is made, or emptied, here, so that a wrong name is known before the program starts.
fn mtrace_log(pattern: &str) -> Result<leakscope_launch::ledger::LogName> {
    let option = format!("--mtrace-log={pattern}");
    let name = LogName::parse(pattern, |name| std::env::var_os(name)).with_context(|| option.clone())?;
    let for_target = name.for_target().with_context(|| format!("{option}: cannot find the present folder"))?;
    if name.depends_on_process() {
        let path = name.expand(std::process::id(), 0);
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if !folder.is_dir() {
            bail!("{option}: the folder {} is not there; make it first", folder.display());
        }
    } else {
        let path = name.expand(0, 0);
        // Opening a pipe would wait for its reader.
        let made = if path.exists() && !path.is_file() { Ok(()) } else { std::fs::File::create(&path).map(drop) };
        made.with_context(|| format!("{option}: cannot make the file"))?;
    }
    let limit = leakscope_launch::ledger::LOG_NAME_BYTES - 1;
    leakscope_launch::ledger::LogName::new(&for_target)
        .with_context(|| format!("{option}: the name has more than {limit} bytes; give a shorter one"))
}

/// What the injected code shall do.
///
/// # Errors
/// When the event log cannot be written.
pub fn config(args: &RunArgs) -> Result<Config> {
    let mut flags = wishes::SAMPLE_ADDRESSES;
    let keeps_frees =
        matches!(args.keep_stacktraces, KeepStacks::Free | KeepStacks::AllocAndFree | KeepStacks::AllocThenFree);
    let keeps_allocations = !matches!(args.keep_stacktraces, KeepStacks::Free | KeepStacks::None);
    for (bit, on) in [
        (wishes::CHECK_AT_EXIT, args.view.leak_check != LeakCheck::No),
        (wishes::TRACE_CHILDREN, args.trace_children),
        (wishes::RUN_FREERES, args.run_libc_freeres && args.run_cxx_freeres),
        (wishes::CANARY, args.canary),
        (wishes::FREE_STACKS, keeps_frees),
        (wishes::REALLOC_ZERO_IS_MISUSE, args.show_realloc_size_zero),
        (wishes::MISMATCHES, args.view.show_mismatched_frees),
        (wishes::CHILD_SILENT, args.child_silent_after_fork),
        (wishes::STACKS_ARE_ROOTS, args.use_stacks),
        (wishes::MTRACE_LOG, args.mtrace_log.is_some()),
    ] {
        if on {
            flags |= bit;
        }
    }
    Ok(Config {
        flags,
        sample_bytes: args.sample,
        // One frame, the caller of the allocator, is the least that makes a site.
        max_frames: if keeps_allocations { RECORDED_FRAMES.max(args.view.num_callers.into()) } else { 1 },
        heuristics: args.leak_check_heuristics.bits(),
        reserved: [0; 3],
        mtrace_log: args.mtrace_log.as_deref().map(mtrace_log).transpose()?.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, FromArgMatches};

    use super::*;
    use crate::flags::{Cli, Command};

    fn parse(words: &[&str]) -> (RunArgs, ArgMatches) {
        let words = ["leakscope", "run", "-q"].iter().chain(words).copied().chain(["prog"]);
        let matches = Cli::command().try_get_matches_from(words).unwrap();
        let Command::Run(args) = Cli::from_arg_matches(&matches).unwrap().command else { panic!() };
        let matches = matches.subcommand_matches("run").unwrap().clone();
        (*args, matches)
    }

    fn view(words: &[&str]) -> Result<View> {
        let (args, matches) = parse(words);
        View::new(&args.view, &matches, Destination::Stderr)
    }

    #[test]
    fn older_options_change_the_kinds_in_their_order() {
        use LeakKind::*;
        let all = LeakKindSet::ALL;
        for (words, expected) in [
            (&[][..], LeakKindSet::DEFAULT),
            (&["--show-reachable=yes"], all),
            (&["--show-reachable=no"], LeakKindSet::DEFAULT),
            (&["--show-possibly-lost=no"], LeakKindSet::NONE.with(DefinitelyLost)),
            (&["--show-reachable=yes", "--show-possibly-lost=no"], all.without(PossiblyLost)),
            (&["--show-possibly-lost=no", "--show-reachable=yes"], all),
            (&["--show-leak-kinds=all", "--show-reachable=no"], all.without(StillReachable)),
            (&["--show-reachable=no", "--show-leak-kinds=all"], all),
        ] {
            assert_eq!(view(words).unwrap().options.show_leak_kinds, expected, "{words:?}");
        }
    }

    #[test]
    fn where_reports_go() {
        let log = |text: &str| Destination::Log(LogName::parse(text, |_| None).unwrap());
        let whole = |text: &str| Destination::Whole(text.into());
        use Format::*;
        for (words, expected) in [
            (&[][..], vec![(Text, Destination::Stderr)]),
            (&["--format=json"], vec![(Json, Destination::Stderr)]),
            (&["-o", "r.leak"], vec![(Text, Destination::Stderr)]),
            (&["-o", "r.txt"], vec![(Text, whole("r.txt"))]),
            (&["-o", "r.json"], vec![(Json, whole("r.json"))]),
            (&["-o", "r", "--format", "valgrind-xml"], vec![(ValgrindXml, whole("r"))]),
            (&["-o", "r.json", "--log-fd=2"], vec![(Json, whole("r.json")), (Text, Destination::Descriptor(2))]),
            (&["--log-file=l.%p"], vec![(Text, log("l.%p"))]),
            (&["--xml=yes", "--xml-file=x"], vec![(ValgrindXml, log("x"))]),
            (
                &["--xml=yes", "--xml-fd=2", "--log-file=l"],
                vec![(ValgrindXml, Destination::Descriptor(2)), (Text, log("l"))],
            ),
        ] {
            let expected: Vec<Target> =
                expected.into_iter().map(|(format, destination)| Target { format, destination }).collect();
            assert_eq!(view(words).unwrap().targets, expected, "{words:?}");
        }
        assert_eq!(view(&["-o", "r.leak"]).unwrap().recordings, [PathBuf::from("r.leak")]);
        for words in
            [&["--xml=yes"][..], &["--log-file=a", "--log-fd=2"], &["--xml-file=a", "--xml-fd=2"], &["--log-file=%x"]]
        {
            assert!(view(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn wishes_by_table() {
        let flags = |words: &[&str]| config(&parse(words).0).unwrap().flags;
        let default = flags(&[]);
        for (word, bit, on) in [
            ("--leak-check=no", wishes::CHECK_AT_EXIT, false),
            ("--trace-children=yes", wishes::TRACE_CHILDREN, true),
            ("--run-libc-freeres=no", wishes::RUN_FREERES, false),
            ("--canary=no", wishes::CANARY, false),
            ("--keep-stacktraces=alloc-and-free", wishes::FREE_STACKS, true),
            ("--show-realloc-size-zero=yes", wishes::REALLOC_ZERO_IS_MISUSE, true),
            ("--show-mismatched-frees=no", wishes::MISMATCHES, false),
            ("--child-silent-after-fork=yes", wishes::CHILD_SILENT, true),
            ("--use-stacks=no", wishes::STACKS_ARE_ROOTS, false),
            ("--mtrace-log=/dev/null", wishes::MTRACE_LOG, true),
        ] {
            assert_eq!(default & bit == 0, on, "{word}");
            assert_eq!(flags(&[word]), default ^ bit, "{word}");
        }
        assert_eq!(config(&parse(&["--num-callers=300"]).0).unwrap().max_frames, 300);
        assert_eq!(config(&parse(&["--sample", "512K"]).0).unwrap().sample_bytes, 512 << 10);
    }
}
