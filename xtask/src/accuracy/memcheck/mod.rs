//! `accuracy memcheck`: the programs of `programs.toml` natively, under `leakscope memcheck` and under Memcheck without
//! undefined values. A program must print and return the same as natively, and no error may be reported that Memcheck does
//! not report; each exception has a line in docs/accuracy.toml.

mod results;
mod suites;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use leakscope_e2e::{Ending, Finished, Report, Run, fixtures_dir, leakscope_bin, parse_report, repo_root};
use serde::Deserialize;

use super::programs::make_inputs;
use super::{KINDS, Notes, one_line};
use crate::bench::redis::free_port;
use crate::bench::tools::Tool;
use crate::generated::rewrite;
use crate::step::{build_leakscope, first_line, on_path};

const LIMIT: Duration = Duration::from_secs(600);
/// Longer than any prefix.
const PREFIX_BYTES: usize = 1024;

#[derive(Deserialize)]
struct Programs {
    program: Vec<Program>,
}

/// One program, as `programs.toml` has it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Program {
    name: String,
    /// Debian's packages.
    package: String,
    script: String,
    /// `--trace-children=yes`.
    #[serde(default)]
    children: bool,
    /// Why Valgrind is not asked.
    memcheck: Option<String>,
    /// In the subset that the tests run.
    #[serde(default)]
    quick: bool,
}

/// What stands before a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Checker {
    Native,
    Leakscope,
    Memcheck,
}

impl Checker {
    /// The words of `$M`, which stand in the environment, too: of the same length for all.
    fn prefix(self, reports: &Path, children: bool, variables: &str) -> String {
        let file = reports.join("report.%p");
        let options = format!(
            "--leak-check=full --show-leak-kinds=all --num-callers=40 --xml=yes --xml-file={} --trace-children={}",
            file.display(),
            if children { "yes" } else { "no" }
        );
        let words = match self {
            Checker::Native => String::new(),
            Checker::Leakscope => format!("env {variables} {} memcheck {options} --", leakscope_bin().display()),
            Checker::Memcheck => {
                format!("valgrind -q --command-line-only=yes --undef-value-errors=no --error-limit=no {options}")
            }
        };
        format!("{words:<PREFIX_BYTES$}")
    }
}

/// What Valgrind and its start script add to the environment, for leakscope's runs: shells and interpreters copy each variable
/// to their heap. The loader's own variable gets another name of the same length.
fn variables_of_valgrind() -> Result<String> {
    let path = std::env::var("PATH").context("PATH")?;
    let words = ["-i", &format!("PATH={path}"), "PWD=/", "valgrind", "-q", "--command-line-only=yes", "env"];
    let finished = Run::new("env").args(words).dir("/").finish()?;
    anyhow::ensure!(finished.ending == Ending::Exit(0), "valgrind env: {}", finished.stderr);
    let text = String::from_utf8_lossy(&finished.stdout).into_owned();
    let added = text.lines().filter(|line| !line.starts_with("PATH=") && !line.starts_with("PWD="));
    Ok(added.map(|line| line.replacen("LD_PRELOAD=", "LE_PRELOAD=", 1)).collect::<Vec<_>>().join(" "))
}

/// One run of a script.
struct Observed {
    finished: Finished,
    reports: Vec<Report>,
}

/// An error's kind, and the function or module that makes it.
type Error = (String, String);

impl Observed {
    fn errors(&self) -> BTreeSet<Error> {
        let all = self.reports.iter().flat_map(|report| &report.errors);
        all.map(|error| {
            let place = error.stack.first().map_or_else(String::new, |frame| {
                let object = frame.object.rsplit('/').next().unwrap_or_default();
                if frame.function.is_empty() { object.to_owned() } else { frame.function.clone() }
            });
            (error.kind.clone(), if place.is_empty() { "generated code".to_owned() } else { place })
        })
        .collect()
    }

    fn leaks(&self) -> [(u64, u64); 4] {
        KINDS.map(|kind| {
            let each = self.reports.iter().map(|report| report.total(kind));
            each.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
        })
    }

    fn seconds(&self) -> f64 {
        self.finished.cpu.as_secs_f64()
    }
}

struct Row {
    name: String,
    behaves: Result<(), String>,
    /// Errors that leakscope alone reports, and Memcheck alone.
    ours_only: Vec<Error>,
    theirs_only: Vec<Error>,
    same: usize,
    same_leaks: Option<bool>,
    seconds: [Option<f64>; 3],
}

/// Runs the named programs and suites, or all whose packages are installed. `--resume` keeps what an earlier run found of a
/// suite, `--minutes=N` begins no test of a suite later than that.
///
/// # Errors
/// A program does not behave as natively, a report has no explanation, or an input cannot be made.
pub fn run(words: &[String]) -> Result<()> {
    let (flags, names): (Vec<&String>, Vec<&String>) = words.iter().partition(|word| word.starts_with('-'));
    let (mut write, mut quick) = (false, false);
    let mut effort = suites::Effort { resume: false, limit: None };
    for flag in flags {
        match (flag.as_str(), flag.strip_prefix("--minutes=").map(str::parse::<u64>)) {
            ("--write", _) => write = true,
            ("--quick", _) => quick = true,
            ("--resume", _) => effort.resume = true,
            (_, Some(Ok(minutes))) => effort.limit = Some(Duration::from_secs(60 * minutes)),
            _ => bail!("usage: cargo xtask accuracy memcheck [NAME..] [--quick] [--write] [--resume] [--minutes=N]"),
        }
    }
    build_leakscope()?;
    let is_wanted = |name: &str| names.is_empty() || names.iter().any(|wanted| *wanted == name);
    let mut rows = Vec::new();
    let variables = if on_path("valgrind") { variables_of_valgrind()? } else { String::new() };
    let inputs = scratch()?;
    make_inputs(inputs.path())?;
    copy_fixtures(inputs.path())?;
    let all = programs()?;
    let (here, missing): (Vec<Program>, Vec<Program>) =
        all.into_iter().partition(|program| is_installed(&program.package));
    for program in here.iter().filter(|program| is_wanted(&program.name) && (!quick || program.quick)) {
        let row = compare(program, inputs.path(), &variables, !quick).with_context(|| program.name.clone())?;
        println!("{}", row.text());
        rows.push(row);
    }
    let wants_suite = |name: &str| !quick && is_wanted(name);
    let suites = suites::run(&wants_suite, effort)?;
    for program in missing.iter().filter(|program| is_wanted(&program.name)) {
        eprintln!("left out: {}; next: apt-get install --no-install-recommends {}", program.name, program.package);
    }
    if rows.is_empty() && suites.is_empty() {
        bail!("no program or suite of this name is installed");
    }
    let notes = super::notes()?;
    if write {
        let path = repo_root().join("docs/accuracy.md");
        let before = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        rewrite(&path, "accuracy memcheck", &page(&before, &rows, &suites, &notes)?)?;
    }
    judge(&rows, &suites, &notes)
}

fn programs() -> Result<Vec<Program>> {
    let parsed: Programs = toml::from_str(include_str!("programs.toml")).context("programs.toml")?;
    Ok(parsed.program)
}

/// Whether what the packages bring is here, however it came.
fn is_installed(packages: &str) -> bool {
    packages.split(' ').all(|package| {
        let program = match package {
            "coreutils" => "ls",
            "findutils" => "find",
            "diffutils" => "diff",
            "xz-utils" => "xz",
            "libxml2-utils" => "xmllint",
            "groff-base" => "groff",
            "busybox-static" => "busybox",
            "php-cli" => "php",
            "tcl" => "tclsh",
            "nodejs" => "node",
            "default-jre-headless" => "java",
            "default-jdk-headless" => "javac",
            "golang-go" => "go",
            "musl-tools" => "musl-gcc",
            "lld-19" => "ld.lld-19",
            "binutils" => "ld",
            "ninja-build" => "ninja",
            "openssh-client" => "ssh-keygen",
            "imagemagick" => return Path::new("/usr/bin/convert").exists(),
            "redis-tools" => "redis-cli",
            "nginx-light" => "nginx",
            "x11-apps" => "xeyes",
            "xvfb" => "Xvfb",
            "dpkg" => "dpkg-query",
            "apt" => "apt-cache",
            "postgresql" => return Path::new("/usr/lib/postgresql").is_dir(),
            other => other,
        };
        on_path(program)
    })
}

/// A folder that other users may enter: postgres does not run as root.
fn scratch() -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
    Ok(dir)
}

fn copy_fixtures(to: &Path) -> Result<()> {
    for entry in std::fs::read_dir(fixtures_dir().join("real"))? {
        let path = entry?.path();
        std::fs::copy(&path, to.join(path.file_name().context("a name")?))?;
    }
    Ok(())
}

fn compare(program: &Program, inputs: &Path, variables: &str, with_memcheck: bool) -> Result<Row> {
    let native = observe(program, Checker::Native, inputs, variables)?;
    let ours = observe(program, Checker::Leakscope, inputs, variables)?;
    // What is reported has to be explained, in the quick run too.
    let asked = program.memcheck.is_none() && (with_memcheck || !ours.errors().is_empty());
    let theirs = if asked { Some(observe(program, Checker::Memcheck, inputs, variables)?) } else { None };
    let difference = |what: &str, ours: &[u8], native: &[u8]| {
        let (ours, native) = (String::from_utf8_lossy(ours), String::from_utf8_lossy(native));
        let first = ours.lines().zip(native.lines()).find(|(ours, native)| ours != native);
        let shown =
            first.map_or_else(|| ours.lines().last().unwrap_or_default().to_owned(), |(ours, _)| ours.to_owned());
        Err(format!("other {what} than natively: {}", one_line(&shown)))
    };
    let behaves = if ours.finished.ending != native.finished.ending {
        let said = ours.finished.stderr.lines().last().unwrap_or_default();
        Err(format!("ended {:?}, natively {:?}; {}", ours.finished.ending, native.finished.ending, one_line(said)))
    } else if ours.finished.stdout != native.finished.stdout {
        difference("output", &ours.finished.stdout, &native.finished.stdout)
    } else if ours.reports.is_empty() {
        Err("no report".to_owned())
    } else {
        Ok(())
    };
    let (found, expected) = (ours.errors(), theirs.as_ref().map(Observed::errors).unwrap_or_default());
    if let Some(theirs) = theirs.as_ref().filter(|theirs| theirs.leaks() != ours.leaks()) {
        let of = KINDS.join(", ");
        eprintln!("{}: bytes and blocks of {of}: {:?}, Memcheck's {:?}", program.name, ours.leaks(), theirs.leaks());
    }
    let is_same_program = theirs.as_ref().map(|theirs| theirs.finished.ending == native.finished.ending);
    Ok(Row {
        name: program.name.clone(),
        behaves,
        ours_only: found.difference(&expected).cloned().collect(),
        theirs_only: expected.difference(&found).cloned().collect(),
        same: found.intersection(&expected).count(),
        same_leaks: theirs
            .as_ref()
            .filter(|_| is_same_program == Some(true))
            .map(|theirs| theirs.leaks() == ours.leaks()),
        seconds: [Some(native.seconds()), Some(ours.seconds()), theirs.as_ref().map(Observed::seconds)],
    })
}

fn observe(program: &Program, checker: Checker, inputs: &Path, variables: &str) -> Result<Observed> {
    let scratch = scratch()?;
    let (out, reports) = (scratch.path().join("out"), scratch.path().join("reports"));
    for dir in [&out, &reports] {
        std::fs::create_dir(dir)?;
        // Sticky, as /tmp is.
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o1777))?;
    }
    let port = free_port()?;
    let mut finished = Run::new("sh")
        .args(["-eu", "-c", &program.script])
        .env("M", checker.prefix(&reports, program.children, variables))
        .env("OUT", &out)
        .env("PORT", port.to_string())
        // Hash tables whose order depends on chance would change the output from run to run.
        .env("PYTHONHASHSEED", "0")
        .env("PERL_HASH_SEED", "0")
        .env("HOME", "/nonexistent")
        .env("RUSTUP_HOME", rustup_home())
        .env("GOPATH", out.join("go"))
        .dir(inputs)
        .limit(LIMIT)
        .finish()?;
    // What is another each time is no difference.
    for (changing, name) in [(out.display().to_string(), "OUT"), (port.to_string(), "PORT")] {
        let text = String::from_utf8_lossy(&finished.stdout).replace(&changing, name);
        finished.stdout = text.into_bytes();
    }
    let mut read = Vec::new();
    for entry in std::fs::read_dir(&reports)? {
        let text = std::fs::read_to_string(entry?.path())?;
        // A process that a signal ended may have left a half one.
        read.extend(parse_report(&text).ok());
    }
    Ok(Observed { finished, reports: read })
}

fn rustup_home() -> PathBuf {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    std::env::var_os("RUSTUP_HOME").map_or_else(|| home.join(".rustup"), PathBuf::from)
}

impl Row {
    fn text(&self) -> String {
        let behaves = match &self.behaves {
            Ok(()) => "same".to_owned(),
            Err(reason) => one_line(reason),
        };
        let seconds = self.seconds.map(|seconds| seconds.map_or_else(|| "-".to_owned(), |s| format!("{s:.2}")));
        let leaks = match self.same_leaks {
            None => "-",
            Some(true) => "equal",
            Some(false) => "differ",
        };
        format!("| {} | {behaves} | {} | {leaks} | {} |", self.name, self.errors_text(), seconds.join(" | "))
    }

    fn errors_text(&self) -> String {
        match (self.same, self.ours_only.len(), self.theirs_only.len()) {
            (0, 0, 0) => "none".to_owned(),
            (same, 0, 0) => format!("{same}, equal"),
            (same, ours, theirs) => format!("{same} equal, {ours} leakscope's, {theirs} Memcheck's"),
        }
    }
}

fn judge(rows: &[Row], suites: &[suites::Suite], notes: &Notes) -> Result<()> {
    let mut wrong = Vec::new();
    for row in rows.iter().filter(|row| row.same_leaks == Some(false) && !notes.memcheck_leaks.contains_key(&row.name))
    {
        wrong.push(format!("{}: other leaks than Memcheck's, and no line in docs/accuracy.toml", row.name));
    }
    let notes = &notes.memcheck;
    for row in rows.iter().filter(|row| !notes.contains_key(&row.name)) {
        if let Err(reason) = &row.behaves {
            wrong.push(format!("{}: {reason}", row.name));
        }
        if !row.ours_only.is_empty() {
            wrong.push(format!("{}: reported, and not by Memcheck: {:?}", row.name, row.ours_only));
        }
    }
    for suite in suites {
        let unknown: Vec<_> =
            suite.failed.iter().filter(|name| !notes.contains_key(&format!("{}: {name}", suite.name))).collect();
        if !unknown.is_empty() {
            wrong.push(format!("{}: pass natively, fail here: {unknown:?}", suite.name));
        }
    }
    eprintln!("accuracy memcheck: {} programs, {} suites", rows.len(), suites.len());
    if !wrong.is_empty() {
        bail!("accuracy memcheck:\n  {}", wrong.join("\n  "));
    }
    Ok(())
}

/// The generated part of docs/accuracy.md. Rows of what was not run this time stay as they were.
fn page(before: &str, rows: &[Row], suites: &[suites::Suite], notes: &Notes) -> Result<String> {
    let new = |name: &str| rows.iter().find(|row| row.name == name).map(Row::text);
    let names: Vec<String> = programs()?.into_iter().map(|program| program.name).collect();
    let lines: Vec<String> =
        names.iter().filter_map(|name| new(name).or_else(|| kept(before, name).map(str::to_owned))).collect();
    let cell = |line: &str, number: usize| line.split('|').nth(number).unwrap_or_default().trim().to_owned();
    let same = lines.iter().filter(|line| cell(line, 2) == "same").count();
    let quiet =
        lines.iter().filter(|line| !cell(line, 3).contains("leakscope's") || cell(line, 3).contains(" 0 leakscope's"));
    let mut text = format!(
        "{} programs; {same} print and return the same as natively; in {} nothing is reported that Memcheck does not report. \
         {}, {}, Linux {}.\n\nReports are counted by kind and function. Seconds are of the processor, with all child \
         processes: natively, under leakscope, under Memcheck with `--undef-value-errors=no`. Leaks: bytes and blocks of \
         all kinds, of all processes together.\n\n",
        lines.len(),
        quiet.count(),
        Tool::Leakscope.version(),
        Tool::Memcheck.version(),
        first_line(&["uname", "-r"])
    );
    text +=
        "| program | behaves | reports | leaks | natively | leakscope | Memcheck |\n|---|---|---|---|---|---|---|\n";
    for line in &lines {
        text += line;
        text.push('\n');
    }
    text += "\n| test suite | tests | tried | pass natively | of these pass under leakscope | natively | leakscope | on |\n\
             |---|---|---|---|---|---|---|---|\n";
    for name in suites::NAMES {
        match suites.iter().find(|suite| suite.name == name) {
            Some(suite) => text += &suite.text(),
            None => text.extend(kept(before, name).map(|line| format!("{line}\n"))),
        }
    }
    text += "\nWhat differs:\n\n";
    for (name, note) in &notes.memcheck {
        text += &format!("- **{name}**: {note}\n");
    }
    text += "\nWhose leaks differ:\n\n";
    let differing: Vec<String> =
        lines.iter().filter(|line| cell(line, 4) == "differ").map(|line| cell(line, 1)).collect();
    for name in &differing {
        let note = notes.memcheck_leaks.get(name).map_or("not explained yet", String::as_str);
        text += &format!("- **{name}**: {note}\n");
    }
    Ok(text)
}

/// The row of a table that begins with a name.
fn kept<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, part) = text.split_once("<!-- generated: accuracy memcheck -->")?;
    part.lines().find(|line| {
        let rest = line.strip_prefix("| ").and_then(|line| line.strip_prefix(name));
        rest.is_some_and(|rest| rest.starts_with(" |") || suites::NAMES.contains(&name) && rest.starts_with(' '))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_other_runs_are_kept() {
        let text = "| ls | old |\n<!-- generated: accuracy memcheck -->\n| ls | new |\n| perl fork | x |\n| perl's tests 5.36 | 3 |\n";
        assert_eq!(kept(text, "ls"), Some("| ls | new |"));
        assert_eq!(kept(text, "perl"), None);
        assert_eq!(kept(text, "perl's tests"), Some("| perl's tests 5.36 | 3 |"));
    }

    #[test]
    fn the_list_can_be_read() {
        let programs = programs().unwrap();
        let names: BTreeSet<&str> = programs.iter().map(|program| program.name.as_str()).collect();
        assert_eq!(names.len(), programs.len(), "each name once");
        assert!(names.len() >= 60);
        for program in &programs {
            assert!(program.script.contains("$M") || program.script.starts_with("sh "), "{}", program.name);
        }
    }
}
