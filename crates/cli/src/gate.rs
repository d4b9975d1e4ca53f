//! `leakscope gate`: fails a build on what its team said must fail, and says why.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::ArgMatches;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use leakscope_findings::analysis::{Detail, LeakCheck, Outcome};
use leakscope_findings::baseline::Baseline;
use leakscope_findings::gate::{FailOn, Finding, Verdict, findings, judge};
use leakscope_findings::suppressions::health::{RuleHealth, health};
use leakscope_findings::suppressions::{BUILT_IN_FILE, BUILT_IN_FOR_GATES};
use leakscope_findings::{Analysis, Fingerprint, Recording, Suppressions, analyse};
use leakscope_report::Process;

use crate::file_names::FileNames;
use crate::flags::{Format, GateArgs, PolicyArgs};
use crate::gate_words::{self, Context as Words};
use crate::output::{Destination, Outputs, Replacement};
use crate::plan::View;
use crate::{documents, import, record};

/// Exit code when something fails.
const FAILS: u8 = 1;

/// Runs the subcommand.
///
/// # Errors
/// When a file cannot be read, a report cannot be written, or the files do not say what was leaked.
pub fn main(args: &GateArgs, matches: &ArgMatches) -> Result<ExitCode> {
    let gate = Gate::new(&args.view, &args.policy, matches)?;
    let recording = read(&args.files, &gate.view)?;
    gate.finish(&recording, &args.files)
}

/// Today, in UTC: a date must not depend on where a pipeline runs.
pub fn today() -> Date {
    Timestamp::now().to_zoned(TimeZone::UTC).date()
}

/// Reads recordings, and what other tools wrote, into one.
///
/// # Errors
/// When one cannot be read.
pub fn read(files: &[PathBuf], view: &View) -> Result<Recording> {
    let mut names = FileNames::new(view.symbols.clone(), None);
    let mut recording = record::empty_recording();
    for path in files {
        recording.merge(import::read(path, &mut names, view)?);
    }
    Ok(recording)
}

/// A recording, held against rules.
pub struct Analysed {
    /// By process.
    pub analyses: Vec<Analysis>,
    /// Rules that were over and hid nothing.
    pub expired: Suppressions,
}

impl Analysed {
    /// Analyses all processes; shown are the leaks that `fail_on` is about.
    ///
    /// # Errors
    /// None but those of rules that are built in.
    pub fn new(recording: &Recording, view: &mut View, fail_on: &FailOn) -> Result<Self> {
        if view.default_suppressions {
            view.suppressions.add(BUILT_IN_FILE, BUILT_IN_FOR_GATES).context("the built-in rules")?;
        }
        view.options.leak_check = LeakCheck::Full;
        view.options.detail = Detail::All;
        view.options.show_leak_kinds = fail_on.kinds;
        view.options.errors_for_leak_kinds = fail_on.kinds;
        let expired = view.suppressions.expire(today());
        let analysis = |process| analyse(&recording.tool_version, process, &view.options, &view.suppressions);
        Ok(Self { analyses: recording.processes.iter().map(analysis).collect(), expired })
    }

    /// The health of all rules.
    pub fn health(&self, view: &View) -> Vec<RuleHealth> {
        health(&view.suppressions, &self.expired, &self.analyses)
    }

    /// The findings that are judged.
    ///
    /// # Errors
    /// When nothing is known of any process.
    pub fn findings(&self, fail_on: &FailOn) -> Result<Vec<Finding>> {
        let found = findings(&self.analyses, fail_on);
        let is_known = |analysis: &Analysis| matches!(analysis.outcome, Outcome::Classified(_));
        let asks_for_leaks = !fail_on.kinds.is_empty();
        if self.analyses.is_empty() {
            bail!(
                "the files hold no process, so nothing can be said of it; record again, and look for messages of `leakscope run`"
            );
        }
        if found.is_empty() && asks_for_leaks && !fail_on.live && !self.analyses.iter().any(is_known) {
            bail!(
                "the files do not say what was leaked: {}; let the program come to its end under `leakscope run`, or judge live blocks with --fail-on live",
                self.unknown().first().map_or("", String::as_str)
            );
        }
        Ok(found)
    }

    /// A sentence for each process whose blocks are not classified.
    fn unknown(&self) -> Vec<String> {
        let sentence = |analysis: &Analysis| {
            let reason = match &analysis.outcome {
                Outcome::Classified(_) => return None,
                Outcome::NotClassified(reason) => reason.as_str(),
                Outcome::NotChecked => "no leak check was made",
            };
            let program = Path::new(&analysis.process.executable).file_name().unwrap_or_default().to_string_lossy();
            Some(format!("{program} (process {}): {reason}", analysis.process.pid))
        };
        self.analyses.iter().filter_map(sentence).collect()
    }
}

/// What a gate knows before it sees a recording.
pub struct Gate {
    /// How reports look, and where they go.
    pub view: View,
    policy: PolicyArgs,
    baseline: Option<Baseline>,
    outputs: Outputs,
    recordings: Vec<Replacement>,
}

impl Gate {
    /// Reads baseline and rules and opens every output, so that mistakes are known at once.
    ///
    /// # Errors
    /// When options contradict each other, or a file that they name cannot be read.
    pub fn new(view: &crate::flags::ViewArgs, policy: &PolicyArgs, matches: &ArgMatches) -> Result<Self> {
        let view = View::new(view, matches, Destination::Stdout)?;
        let has_words = |format| !matches!(format, Format::ValgrindXml) && !is_profile(format);
        if let Some(target) = view.targets.iter().find(|target| !has_words(target.format)) {
            bail!(
                "--format {:?}: a gate writes text, json, github, gitlab, junit, sarif, markdown or html; `leakscope report` writes the others",
                target.format
            );
        }
        let baseline = policy.baseline.as_deref().map(read_baseline).transpose()?;
        let mut outputs = Outputs::default();
        outputs.prepare(&view.targets)?;
        let recordings = view.recordings.iter().map(|path| Replacement::create(path)).collect::<Result<Vec<_>>>()?;
        Ok(Self { view, policy: policy.clone(), baseline, outputs, recordings })
    }

    /// Judges a recording that was read from `files`, writes the reports, and gives the exit code.
    ///
    /// # Errors
    /// When the recording says nothing of leaks, or a report cannot be written.
    pub fn finish(mut self, recording: &Recording, files: &[PathBuf]) -> Result<ExitCode> {
        let fail_on = self.policy.fail_on();
        let analysed = Analysed::new(recording, &mut self.view, &fail_on)?;
        let rules = analysed.health(&self.view);
        let found = analysed.findings(&fail_on)?;
        let mut verdict = judge(found, &fail_on, self.baseline.as_ref(), self.policy.max_leaked, today());
        verdict.rules = rules.iter().filter(|rule| rule.breaks_its_word()).cloned().collect();
        verdict.unknown = analysed.unknown();
        let words = Words {
            verdict: &verdict,
            baseline: self.policy.baseline.as_deref(),
            files,
            root: documents::sources().root,
            health: self.policy.suppression_health.then_some(&rules[..]),
        };
        for target in &self.view.targets {
            let bytes = match target.format {
                Format::Text => gate_words::text(&words),
                Format::Json => gate_words::json(&words)?,
                format => document(format, recording, &analysed.analyses, &verdict, &words)?,
            };
            self.outputs.write(target, 0, &bytes)?;
        }
        record::save(recording, self.recordings)?;
        self.outputs.finish()?;
        Ok(if verdict.passes() { ExitCode::SUCCESS } else { ExitCode::from(FAILS) })
    }
}

fn is_profile(format: Format) -> bool {
    matches!(format, Format::Pprof | Format::Folded | Format::Speedscope)
}

/// Reads a baseline.
///
/// # Errors
/// When it does not exist, or has a mistake.
pub fn read_baseline(path: &Path) -> Result<Baseline> {
    let name = path.display();
    let text = std::fs::read_to_string(path).with_context(|| {
        format!(
            "{name}: cannot read the baseline; write one with `leakscope baseline update --baseline {name} FILE...`"
        )
    })?;
    Baseline::parse(&name.to_string(), &text).context("correct that line, or write the baseline again")
}

/// A document of the report crate that shows what fails and nothing else.
fn document(
    format: Format,
    recording: &Recording,
    analyses: &[Analysis],
    verdict: &Verdict,
    words: &Words<'_>,
) -> Result<Vec<u8>> {
    let failing: BTreeSet<Fingerprint> = verdict.failures.iter().map(|failure| failure.finding.fingerprint).collect();
    let analyses: Vec<Analysis> = analyses.iter().map(|analysis| only(analysis, &failing)).collect();
    let pairs = recording.processes.iter().zip(&analyses);
    let processes: Vec<Process<'_>> = pairs.map(|(recorded, analysis)| Process { recorded, analysis }).collect();
    let mut bytes = Vec::new();
    // Annotations and comments have room for a sentence; a gate may fail without any finding.
    for sentence in gate_words::sentences(words) {
        match format {
            Format::Github => {
                let sentence = sentence.replace('%', "%25");
                writeln!(bytes, "::error title=leakscope gate::{sentence}").context("rendering in memory")?;
            }
            Format::Markdown => {
                let plain = |c: char| if c.is_alphanumeric() || " ,./:()=-".contains(c) { c } else { '?' };
                let sentence: String = sentence.chars().map(plain).collect();
                writeln!(bytes, "> **gate:** {sentence}  ").context("rendering in memory")?;
            }
            _ => {}
        }
    }
    if format == Format::Markdown && !bytes.is_empty() {
        bytes.push(b'\n');
    }
    documents::render(&mut bytes, format, &processes, leakscope_report::Metric::Leaked)
        .context("rendering in memory")?;
    Ok(if format == Format::Junit { gate_words::junit_with_gate(&bytes, words) } else { bytes })
}

/// The analysis without what passes.
fn only(analysis: &Analysis, failing: &BTreeSet<Fingerprint>) -> Analysis {
    let mut analysis = analysis.clone();
    let kinds = analysis.options.show_leak_kinds;
    analysis.records.retain(|record| {
        let is_judged = record.kind.is_none_or(|kind| kinds.contains(kind));
        record.suppressed_by.is_none() && is_judged && failing.contains(&record.fingerprint)
    });
    for record in &mut analysis.records {
        (record.shown, record.is_error) = (true, true);
    }
    analysis.misuses.retain(|it| it.suppressed_by.is_none() && failing.contains(&it.fingerprint));
    analysis.memory_errors.retain(|it| it.suppressed_by.is_none() && failing.contains(&it.fingerprint));
    analysis
}
