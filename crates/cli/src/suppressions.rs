//! `leakscope suppressions`: what rules hide, and rules for what was found.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::ArgMatches;
use leakscope_findings::analysis::{Frame, LeakCheck};
use leakscope_findings::suppressions::health::{Ailment, health};
use leakscope_findings::suppressions::{Error, Generated, Specifics, generate};
use leakscope_findings::{Analysis, Fingerprint, Recording, Suppressions, analyse};

use crate::flags::{CheckArgs, GenerateArgs, SuppressionsArgs, SuppressionsCommand, Syntax};
use crate::gate::{read, today};
use crate::gate_words::{counted, health_table};
use crate::output::{self, Destination};
use crate::plan::View;

/// Rules that are warned of one by one.
const MOST_WARNINGS: usize = 4;

/// Runs the subcommand.
///
/// # Errors
/// When a file cannot be read.
pub fn main(args: &SuppressionsArgs, matches: &ArgMatches) -> Result<ExitCode> {
    let matches = matches.subcommand().map_or(matches, |(_, matches)| matches);
    match &args.command {
        SuppressionsCommand::Check(args) => check(args, matches),
        SuppressionsCommand::Generate(args) => generate_all(args, matches),
    }
}

/// Reads rules from a file and says what of it has no effect.
///
/// # Errors
/// When it cannot be read or has a mistake.
pub fn add(suppressions: &mut Suppressions, path: &Path) -> Result<()> {
    let text = std::fs::read(path)
        .with_context(|| format!("{}: cannot read the suppression file; check its path", path.display()))?;
    let mut rules = Suppressions::new();
    rules
        .add(&path.display().to_string(), &String::from_utf8_lossy(&text))
        .context("correct that line, or leave the file out")?;
    for note in rules.notes() {
        eprintln!("leakscope: warning: {note}");
    }
    suppressions.append(rules);
    Ok(())
}

fn check(args: &CheckArgs, matches: &ArgMatches) -> Result<ExitCode> {
    let mut rules = Suppressions::new();
    for path in &args.rules {
        add(&mut rules, path)?;
    }
    let count = rules.rules().len();
    let expired = rules.expire(today());
    if args.files.is_empty() {
        for rule in expired.rules() {
            let until = rule.limits.until.map(|day| day.to_string()).unwrap_or_default();
            output::print(&format!("{}:{}: {}: its last day was {until}\n", rule.file, rule.line, rule.name))?;
        }
        output::print(&format!(
            "{} can be read; name recordings behind -- to see what they hide\n",
            counted(count, "rule")
        ))?;
        return Ok(if expired.rules().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let mut view = View::new(&args.view, matches, Destination::Stdout)?;
    view.options.leak_check = LeakCheck::Full;
    let recording = read(&args.files, &view)?;
    let analysis = |process| analyse(&recording.tool_version, process, &view.options, &rules);
    let analyses: Vec<Analysis> = recording.processes.iter().map(analysis).collect();
    let health = health(&rules, &expired, &analyses);
    output::print(&health_table(&health))?;
    Ok(if health.iter().any(|rule| rule.breaks_its_word()) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The health of the view's rules, as a table.
pub fn health_of(recording: &Recording, view: &View) -> String {
    let analysis = |process| analyse(&recording.tool_version, process, &view.options, &view.suppressions);
    let analyses: Vec<Analysis> = recording.processes.iter().map(analysis).collect();
    let mut rules = health(&view.suppressions, &Suppressions::new(), &analyses);
    // Nothing was taken out here: what is over still hides, and is told all the same.
    for rule in &mut rules {
        let over = rule.limits.until.filter(|&until| until < today());
        rule.ailments.extend(over.map(Ailment::Expired));
    }
    health_table(&rules)
}

/// A finding that a rule is wanted for.
struct Wanted {
    error: Error,
    frames: Vec<Arc<Frame>>,
}

fn generate_all(args: &GenerateArgs, matches: &ArgMatches) -> Result<ExitCode> {
    let mut view = View::new(&args.view, matches, Destination::Stdout)?;
    view.options.leak_check = LeakCheck::Full;
    let recording = read(&args.files, &view)?;
    output::print(&rules_for(&recording, &view, args.syntax)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Rules for all findings that the view shows, as one file; warnings stand in it as comments, and on standard error.
///
/// # Errors
/// None but those of rules that we wrote ourselves.
pub fn rules_for(recording: &Recording, view: &View, syntax: Syntax) -> Result<String> {
    let mut wanted: BTreeMap<Fingerprint, Wanted> = BTreeMap::new();
    let mut add = |fingerprint, error, frames: &[Arc<Frame>]| {
        wanted.entry(fingerprint).or_insert_with(|| Wanted { error, frames: frames.to_vec() });
    };
    for process in &recording.processes {
        let analysis = analyse(&recording.tool_version, process, &view.options, &view.suppressions);
        for record in analysis.shown_records() {
            if let Some(kind) = record.kind {
                add(record.fingerprint, Error::Leak(kind), record.stack.all_frames());
            }
        }
        for misuse in analysis.shown_misuses().filter(|_| syntax == Syntax::Valgrind) {
            add(misuse.fingerprint, Error::Misuse(misuse.kind), misuse.stack.all_frames());
        }
    }
    let wanted: Vec<(Fingerprint, Wanted)> = wanted.into_iter().collect();
    let stacks: Vec<&[Arc<Frame>]> = wanted.iter().map(|(_, wanted)| &wanted.frames[..]).collect();
    let mut out = String::new();
    let lines = Specifics::new(&stacks);
    let mut broad = 0;
    for (number, (fingerprint, finding)) in wanted.iter().enumerate() {
        let (text, hides_too) = match syntax {
            Syntax::Valgrind => {
                let text = generate(&finding.error, &finding.frames).text();
                let text = text.replace(Generated::NAME, &format!("leakscope {fingerprint}"));
                let hides = hidden_by(&text, &wanted, number)?;
                (text, hides)
            }
            Syntax::Lsan => match lines.of(number) {
                Some(found) => (format!("{}\n", found.line), found.hides_too),
                None => {
                    eprintln!(
                        "leakscope: warning: {fingerprint}: no frame of it has a name, so no `leak:` line can be written; --syntax=valgrind can"
                    );
                    continue;
                }
            },
        };
        if !hides_too.is_empty() {
            let others: Vec<String> = hides_too.iter().take(5).map(|&other| wanted[other].0.to_string()).collect();
            let warning = format!("hides {} too: {}", counted(hides_too.len(), "other finding"), others.join(" "));
            broad += 1;
            if !view.quiet && broad <= MOST_WARNINGS {
                eprintln!("leakscope: warning: the rule for {fingerprint} {warning}");
            }
            out += &format!("# over-broad: {warning}\n");
        }
        if syntax == Syntax::Lsan {
            out += &format!("# {fingerprint}\n");
        }
        out += &text;
    }
    if !view.quiet && broad > MOST_WARNINGS {
        eprintln!(
            "leakscope: warning: {broad} of {} hide other findings too; each has `# over-broad` above it",
            counted(wanted.len(), "rule")
        );
    }
    Ok(out)
}

/// The other findings that a rule hides.
fn hidden_by(rule: &str, wanted: &[(Fingerprint, Wanted)], number: usize) -> Result<Vec<usize>> {
    let mut rules = Suppressions::new();
    rules.add("generated rules", rule).context("a rule of our own")?;
    let hides = |wanted: &Wanted| rules.find(&wanted.error, &wanted.frames).is_some();
    let others = wanted.iter().enumerate().filter(|&(other, (_, wanted))| other != number && hides(wanted));
    Ok(others.map(|(other, _)| other).collect())
}
