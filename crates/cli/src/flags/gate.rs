//! What `gate`, `baseline`, `suppressions` and `cargo` take.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use jiff::civil::Date;
use leakscope_findings::baseline::date;
use leakscope_findings::gate::FailOn;
use leakscope_model::{LeakKind, LeakKindSet};

use super::ViewArgs;
use super::values::bytes;

/// What must fail; for `gate`, `baseline` and `cargo`.
#[derive(Clone, Debug, Args)]
pub struct PolicyArgs {
    /// Findings that are set aside; `leakscope baseline update` writes it
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// What fails: some of definite,indirect,possible,reachable,live,errors,growth, or all
    /// [default: definite,possible,errors,growth]
    #[arg(long, value_name = "WHAT", value_parser = fail_on)]
    pub fail_on: Option<FailOn>,
    /// Fail when more is leaked in all, set aside or not (K, M, G); without --baseline this alone decides on leaks
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub max_leaked: Option<u64>,
    /// Do not fail when a finding is over its ceiling in the baseline
    #[arg(long)]
    pub new_only: bool,
    /// Say what each suppression rule hides, and what is wrong with it
    #[arg(long)]
    pub suppression_health: bool,
}

impl PolicyArgs {
    /// What must fail.
    pub fn fail_on(&self) -> FailOn {
        let fail_on = self.fail_on.unwrap_or_default();
        FailOn { growth: fail_on.growth && !self.new_only, ..fail_on }
    }
}

/// `leakscope gate`.
#[derive(Clone, Debug, Args)]
pub struct GateArgs {
    /// How the report looks.
    #[command(flatten)]
    pub view: ViewArgs,
    /// What must fail.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Recordings, judged together; also anything that `leakscope import` reads
    #[arg(value_name = "FILE", required = true, num_args = 1..)]
    pub files: Vec<PathBuf>,
}

/// `leakscope cargo`.
#[derive(Clone, Debug, Args)]
pub struct CargoArgs {
    /// How the report looks.
    #[command(flatten)]
    pub view: ViewArgs,
    /// What must fail.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// Cargo's own words: test, nextest run, run or bench, and their options
    #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true, allow_hyphen_values = true, num_args = 1..)]
    pub words: Vec<OsString>,
}

/// `leakscope baseline`.
#[derive(Clone, Debug, Args)]
pub struct BaselineArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: BaselineCommand,
}

/// What `leakscope baseline` does.
#[derive(Clone, Debug, Subcommand)]
pub enum BaselineCommand {
    /// Make the baseline what was found: adds what is new, drops what is gone, keeps reasons and dates
    Update(Box<UpdateArgs>),
    /// Say whether the file can be read, and what in it has expired or stands twice; exit code 1 if anything
    Check(BaselineFile),
    /// List the findings that are set aside, the largest first
    Show(BaselineFile),
}

/// The file of a baseline.
#[derive(Clone, Debug, Args)]
pub struct BaselineFile {
    /// The baseline
    #[arg(value_name = "BASELINE", default_value = "leaks.baseline")]
    pub file: PathBuf,
}

/// `leakscope baseline update`.
#[derive(Clone, Debug, Args)]
pub struct UpdateArgs {
    /// How recordings are read.
    #[command(flatten)]
    pub view: ViewArgs,
    /// The baseline; it is written if it does not exist
    #[arg(long, value_name = "FILE", default_value = "leaks.baseline")]
    pub baseline: PathBuf,
    /// What is judged, as for `leakscope gate`
    #[arg(long, value_name = "WHAT", value_parser = fail_on)]
    pub fail_on: Option<FailOn>,
    /// Why the new findings are set aside
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub reason: String,
    /// The last day on which new findings, and those that have expired, pass
    #[arg(long, value_name = "YYYY-MM-DD", value_parser = day)]
    pub until: Option<Date>,
    /// Keep entries that were not seen: the recordings are of a part of the tests
    #[arg(long)]
    pub keep_unseen: bool,
    /// Recordings; also anything that `leakscope import` reads
    #[arg(value_name = "FILE", required = true, num_args = 1..)]
    pub files: Vec<PathBuf>,
}

/// `leakscope suppressions`.
#[derive(Clone, Debug, Args)]
pub struct SuppressionsArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: SuppressionsCommand,
}

/// What `leakscope suppressions` does.
#[derive(Clone, Debug, Subcommand)]
pub enum SuppressionsCommand {
    /// Say what each rule hides, and which are unused, over-broad, over their budget or expired; exit code 1 for the
    /// latter two
    Check(Box<CheckArgs>),
    /// Write a rule for each finding, and warn of those that hide more than their finding
    Generate(Box<GenerateArgs>),
}

/// `leakscope suppressions check`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// How recordings are read.
    #[command(flatten)]
    pub view: ViewArgs,
    /// Suppression files of Valgrind's or LeakSanitizer's syntax
    #[arg(value_name = "RULES", required = true, num_args = 1..)]
    pub rules: Vec<PathBuf>,
    /// Recordings; without them only the files are read
    #[arg(value_name = "FILE", last = true)]
    pub files: Vec<PathBuf>,
}

/// `leakscope suppressions generate`.
#[derive(Clone, Debug, Args)]
pub struct GenerateArgs {
    /// How recordings are read.
    #[command(flatten)]
    pub view: ViewArgs,
    /// Whose syntax
    #[arg(long, value_name = "SYNTAX", default_value = "valgrind")]
    pub syntax: Syntax,
    /// Recordings; also anything that `leakscope import` reads
    #[arg(value_name = "FILE", required = true, num_args = 1..)]
    pub files: Vec<PathBuf>,
}

/// Syntax of suppression files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Syntax {
    /// Valgrind's
    Valgrind,
    /// LeakSanitizer's: one name of a function each
    Lsan,
}

/// Help of `gate`.
pub const GATE_HELP: &str = "\
Findings of all files are merged by fingerprint, so the recordings of a suite that ran in several parts are judged as
one. --format github, junit, sarif, gitlab, markdown and html show what fails and nothing else.

Exit code: 0 when nothing fails, 1 when something does, 2 when the usage is wrong or a file cannot be read, or when
the files do not say what was leaked.";

/// Help of `cargo`.
pub const CARGO_HELP: &str = "\
Runs cargo with leakscope as the runner of the programs that it builds, keeps a recording of each, and judges all of
them together, as `leakscope gate` does. Also as `cargo leakscope test`, when leakscope is found as cargo-leakscope:

    ln -s \"$(command -v leakscope)\" ~/.cargo/bin/cargo-leakscope

Exit code: cargo's own when a test fails; else as of `leakscope gate`. -o FILE.leak keeps the recordings as one.";

fn day(text: &str) -> Result<Date, String> {
    date(text).ok_or_else(|| "expected a date, such as 2027-01-31".to_owned())
}

/// `definite,errors`, or `all`.
fn fail_on(text: &str) -> Result<FailOn, String> {
    let nothing = FailOn { kinds: LeakKindSet::NONE, live: false, errors: false, growth: false };
    if text == "all" {
        return Ok(FailOn { kinds: LeakKindSet::ALL, live: true, errors: true, growth: true });
    }
    text.split(',').try_fold(nothing, |mut fail_on, word| {
        match word {
            "live" => fail_on.live = true,
            "errors" => fail_on.errors = true,
            "growth" => fail_on.growth = true,
            _ => {
                let kind = LeakKind::ALL.into_iter().find(|kind| kind.option_word() == word);
                let expected = "expected all, or some of definite,indirect,possible,reachable,live,errors,growth";
                fail_on.kinds = fail_on.kinds.with(kind.ok_or(expected)?);
            }
        }
        Ok(fail_on)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_by_table() {
        let of = |kinds: &[LeakKind]| kinds.iter().fold(LeakKindSet::NONE, |set, &kind| set.with(kind));
        use LeakKind::*;
        for (text, kinds, live, errors, growth) in [
            ("definite", of(&[DefinitelyLost]), false, false, false),
            ("errors,growth", of(&[]), false, true, true),
            ("possible,reachable,live", of(&[PossiblyLost, StillReachable]), true, false, false),
            ("all", of(&LeakKind::ALL), true, true, true),
        ] {
            assert_eq!(fail_on(text), Ok(FailOn { kinds, live, errors, growth }), "{text}");
        }
        for text in ["", "definite,", "leaks", "all,definite"] {
            assert!(fail_on(text).is_err(), "{text}");
        }
    }
}
