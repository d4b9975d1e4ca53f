//! JUnit XML: each process is a suite, each finding a failed test. For CI servers that show test results.
//!
//! Source: the schema that Jenkins' xUnit plugin publishes (`junit-10.xsd`), and what GitLab reads of it. Names hold
//! no numbers that change from run to run, so that a server can follow a finding over builds. A program without
//! findings is one passed test. Kinds that are shown but no errors pass, with their words in `system-out`.

use std::io::{self, Write};

use crate::Process;
use crate::escape::xml;
use crate::finding::{self, Finding, Level, Occurrences};

/// Writes the document on all processes.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut dyn Write, processes: &[Process<'_>]) -> io::Result<()> {
    let suites: Vec<Suite> = processes.iter().map(|&process| Suite::new(process)).collect();
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
    fn new(process: Process<'_>) -> Self {
        let analysis = process.analysis;
        let program = xml(finding::program(analysis));
        let findings = finding::findings(analysis);
        let unknown = finding::not_classified(analysis);
        let mut cases = String::new();
        let mut occurrences = Occurrences::default();
        for finding in &findings {
            cases += &case(&program, finding, occurrences.next(finding.fingerprint));
        }
        if let Some(reason) = &unknown {
            cases += &format!(
                "    <testcase classname=\"{program}\" name=\"leak check\" time=\"0\">\n      <skipped message=\"{}\"/>\n    </testcase>\n",
                xml(reason)
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

fn case(program: &str, finding: &Finding<'_>, occurrence: u32) -> String {
    let at = finding::site(finding.stack).map(finding::code).unwrap_or_default();
    let mut name = format!("{} in {at} [{}]", finding.rule.words, finding.fingerprint);
    if occurrence > 1 {
        name += &format!(" #{occurrence}");
    }
    let mut words = format!("{}\n", xml(&finding.title));
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
