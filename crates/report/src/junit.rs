//! JUnit XML: each process is a suite, each finding a failed test. For CI servers that show test results.
//!
//! Source: the schema that Jenkins' xUnit plugin publishes (`junit-10.xsd`), and what GitLab reads of it. Names hold
//! no numbers that change from run to run, so that a server can follow a finding over builds. A program without
//! findings is one passed test. Kinds that are shown but no errors pass, with their words in `system-out`. Blocks that
//! nobody classified are no tests: the leak check is a skipped one, and its `system-out` lists the largest of them.

use std::io::{self, Write};

use leakscope_findings::Analysis;

use crate::escape::xml;
use crate::finding::{self, Finding, Level, Occurrences};
use crate::witnesses::Witnesses;
use crate::{Process, witnesses};

/// Writes the document on all processes.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut dyn Write, processes: &[Process<'_>]) -> io::Result<()> {
    let witnesses = Witnesses::of(processes);
    let suites: Vec<Suite> = processes.iter().map(|&process| Suite::new(process, &witnesses)).collect();
    let sum = |of: fn(&Suite) -> usize| suites.iter().map(of).sum::<usize>();
    writeln!(out, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>")?;
    writeln!(
        out,
        "<testsuites name=\"leakscope\" tests=\"{}\" failures=\"{}\" errors=\"0\">",
        sum(|suite| suite.tests),
        sum(|suite| suite.failures)
    )?;
    for suite in &suites {
        out.write_all(suite.text.as_bytes())?;
    }
    writeln!(out, "</testsuites>")
}

struct Suite {
    text: String,
    tests: usize,
    failures: usize,
}

impl Suite {
    fn new<'a>(process: Process<'a>, witnesses: &Witnesses<'a>) -> Self {
        let analysis = process.analysis;
        let program = xml(finding::program(analysis));
        let (live, mut findings): (Vec<Finding<'_>>, Vec<Finding<'_>>) =
            finding::findings(analysis).into_iter().partition(Finding::is_only_live);
        for finding in &mut findings {
            finding.witnesses = witnesses.of_finding(finding);
        }
        let unknown = finding::not_classified(analysis);
        let mut cases = String::new();
        let mut occurrences = Occurrences::default();
        for finding in &findings {
            cases += &case(&program, finding, occurrences.next(finding.fingerprint));
        }
        if let Some(reason) = &unknown {
            cases += &format!(
                "    <testcase classname=\"{program}\" name=\"leak check\" time=\"0\">\n      <skipped message=\"{}\"/>\n{}    </testcase>\n",
                xml(reason),
                live_blocks(analysis, &live)
            );
        } else if findings.is_empty() {
            cases += &format!("    <testcase classname=\"{program}\" name=\"leak check\" time=\"0\"/>\n");
        }
        let tests = findings.len() + usize::from(unknown.is_some() || findings.is_empty());
        let failures = findings.iter().filter(|finding| finding.level > Level::Note).count();
        let process = &analysis.process;
        let seconds = process.end_monotonic_ns.saturating_sub(process.start_monotonic_ns) as f64 / 1e9;
        let mut text = format!(
            "  <testsuite name=\"{program}\" tests=\"{tests}\" failures=\"{failures}\" errors=\"0\" skipped=\"{}\" time=\"{seconds:.3}\">\n",
            u8::from(unknown.is_some())
        );
        text += "    <properties>\n";
        for (name, value) in [
            ("command", process.command_line.join(" ")),
            ("pid", process.pid.to_string()),
            ("end", finding::end(analysis)),
            ("tool", analysis.witness.to_string()),
        ] {
            text += &format!("      <property name=\"{name}\" value=\"{}\"/>\n", xml(&value));
        }
        text += "    </properties>\n";
        text += &cases;
        let losses = finding::losses(analysis);
        if !losses.is_empty() {
            text += &format!("    <system-err>{}</system-err>\n", xml(&losses.join("; ")));
        }
        text += "  </testsuite>\n";
        Self { text, tests, failures }
    }
}

/// What was live where nobody classified it.
fn live_blocks(analysis: &Analysis, live: &[Finding<'_>]) -> String {
    let Some(sentence) = finding::live(analysis, true) else { return String::new() };
    let mut words = format!("{}\n", xml(&sentence));
    for finding in live {
        let at = finding::site(finding.stack).map(finding::line).unwrap_or_default();
        words += &format!("  {}, in {} [{}]\n", xml(&finding.title), xml(&at), finding.fingerprint);
    }
    format!("      <system-out>{words}</system-out>\n")
}

fn case(program: &str, finding: &Finding<'_>, occurrence: u32) -> String {
    let at = finding::site(finding.stack).map(finding::code).unwrap_or_default();
    let mut name = format!("{} in {at} [{}]", finding.rule.words, finding.fingerprint);
    if occurrence > 1 {
        name += &format!(" #{occurrence}");
    }
    let mut words = format!("{}\n", xml(&finding.title));
    if let Some(seen_by) = witnesses::words(finding) {
        words += &format!("  {}\n", xml(&seen_by));
    }
    for (heading, stack) in std::iter::once(("", finding.stack)).chain(finding.more.iter().copied()) {
        if !heading.is_empty() {
            words += &format!("  {}\n", xml(heading));
        }
        for (i, frame) in stack.frames().iter().enumerate() {
            words += &format!("    {} {}\n", if i == 0 { "at" } else { "by" }, xml(&finding::line(frame)));
        }
    }
    let inside = if finding.level == Level::Note {
        format!("<system-out>{words}</system-out>")
    } else {
        format!("<failure type=\"{}\" message=\"{}\">{words}</failure>", finding.rule.id, xml(&finding.title))
    };
    format!(
        "    <testcase classname=\"{program}\" name=\"{}\" time=\"0\">\n      {inside}\n    </testcase>\n",
        xml(&name)
    )
}
