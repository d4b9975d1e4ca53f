//! Reads the comment that opens a fixture program: how to build it, how to run it, and what a leak checker must say.
//!
//! ```text
//! // Every allocation function of C, one leak each.
//! //
//! // builds: -O0 | -O2 -fomit-frame-pointer
//! // exit: 0
//! //
//! // case      kind      bytes  blocks
//! // malloc    definite     24       1
//! //
//! // misuse       error        count
//! // double_free  InvalidFree      1
//! ```
//!
//! A case is the function `case_NAME`; a loss record belongs to the innermost such function of its stack. A row that
//! ends in `! reason` is not compared under Valgrind; the reason says what Valgrind does there.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// One expected sum of loss records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeakRow {
    /// The case, without `case_`.
    pub case: String,
    /// `definite`, `indirect`, `possible` or `reachable`.
    pub kind: String,
    /// Bytes in all.
    pub bytes: u64,
    /// Blocks in all.
    pub blocks: u64,
    /// What Valgrind does differently here.
    pub valgrind_differs: Option<String>,
}

/// One expected memory error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MisuseRow {
    /// The case, without `case_`.
    pub case: String,
    /// The kind in Valgrind's XML, such as `InvalidFree`.
    pub error: String,
    /// How many in all.
    pub count: u64,
    /// What Valgrind does differently here.
    pub valgrind_differs: Option<String>,
}

/// What a leak checker must find.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// Expected loss records.
    pub leaks: Vec<LeakRow>,
    /// Expected memory errors.
    pub misuse: Vec<MisuseRow>,
}

/// A fixture program and what its comment says.
#[derive(Debug, Clone)]
pub struct Fixture {
    /// The source file.
    pub source: PathBuf,
    /// One set of compiler flags for each build to test; never empty.
    pub builds: Vec<Vec<String>>,
    /// Linker words, such as `-ldl`.
    pub libs: Vec<String>,
    /// Sources in `fixtures/plugin` that become shared libraries beside the program.
    pub plugins: Vec<String>,
    /// Arguments of the program.
    pub args: Vec<String>,
    /// Options of the leak checker besides the usual ones.
    pub options: Vec<String>,
    /// Library to preload beside the checker's, as a user would.
    pub preload: Option<String>,
    /// File without which the fixture cannot run.
    pub requires: Option<String>,
    /// How many processes must have written a report.
    pub reports: usize,
    /// Whether the program dies natively, so that there is no ending and no output to compare with.
    pub native_dies: bool,
    /// Why the whole fixture is not run under Valgrind.
    pub not_valgrind: Option<String>,
    /// What must be found.
    pub table: Table,
}

const USUAL_FLAGS: &str = "-g -O1";

impl Fixture {
    /// Reads the comment of one source file.
    ///
    /// # Errors
    /// The file cannot be read, or a line of the comment is not understood.
    pub fn read(source: &Path) -> Result<Fixture> {
        let text = std::fs::read_to_string(source).with_context(|| format!("read {}", source.display()))?;
        let mut fixture = Fixture {
            source: source.to_path_buf(),
            builds: Vec::new(),
            libs: Vec::new(),
            plugins: Vec::new(),
            args: Vec::new(),
            options: Vec::new(),
            preload: None,
            requires: None,
            reports: 1,
            native_dies: false,
            not_valgrind: None,
            table: Table::default(),
        };
        let mut section = Section::Prose;
        for (index, line) in text.lines().enumerate() {
            let Some(line) = line.strip_prefix("//") else { break };
            fixture
                .take_line(line.trim(), &mut section)
                .with_context(|| format!("{}:{}: `{line}`", source.display(), index + 1))?;
        }
        if fixture.builds.is_empty() {
            fixture.builds.push(words(USUAL_FLAGS));
        }
        Ok(fixture)
    }

    fn take_line(&mut self, line: &str, section: &mut Section) -> Result<()> {
        if line.is_empty() {
            *section = Section::Prose;
            return Ok(());
        }
        let fields = words(line);
        match fields.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["case", "kind", "bytes", "blocks"] => *section = Section::Leaks,
            ["misuse", "error", "count"] => *section = Section::Misuse,
            _ => match section {
                Section::Prose => self.take_directive(line)?,
                Section::Leaks => self.table.leaks.push(leak_row(line)?),
                Section::Misuse => self.table.misuse.push(misuse_row(line)?),
            },
        }
        Ok(())
    }

    fn take_directive(&mut self, line: &str) -> Result<()> {
        let Some((key, value)) = line.split_once(": ") else { return Ok(()) };
        match key {
            "builds" => self.builds = value.split('|').map(|flags| with_usual(&words(flags))).collect(),
            "libs" => self.libs = words(value),
            "plugins" => self.plugins = words(value),
            "args" => self.args = words(value),
            "options" => self.options = words(value),
            "preload" => self.preload = Some(value.to_owned()),
            "requires" => self.requires = Some(value.to_owned()),
            "reports" => self.reports = value.parse()?,
            "native" => self.native_dies = value == "dies",
            "not under valgrind" => self.not_valgrind = Some(value.to_owned()),
            _ => {}
        }
        Ok(())
    }

    /// A short name: the file's, without folder and ending.
    pub fn name(&self) -> String {
        self.source.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }
}

enum Section {
    Prose,
    Leaks,
    Misuse,
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn with_usual(flags: &[String]) -> Vec<String> {
    let mut all = vec!["-g".to_owned()];
    all.extend_from_slice(flags);
    all
}

fn split_reason(line: &str) -> (Vec<String>, Option<String>) {
    match line.split_once(" ! ") {
        Some((row, reason)) => (words(row), Some(reason.trim().to_owned())),
        None => (words(line), None),
    }
}

fn leak_row(line: &str) -> Result<LeakRow> {
    let (fields, valgrind_differs) = split_reason(line);
    let [case, kind, bytes, blocks] = &fields[..] else {
        bail!("expected: case kind bytes blocks");
    };
    if !["definite", "indirect", "possible", "reachable"].contains(&kind.as_str()) {
        bail!("leak kind `{kind}`, expected definite, indirect, possible or reachable");
    }
    Ok(LeakRow {
        case: case.clone(),
        kind: kind.clone(),
        bytes: bytes.parse().context("bytes")?,
        blocks: blocks.parse().context("blocks")?,
        valgrind_differs,
    })
}

fn misuse_row(line: &str) -> Result<MisuseRow> {
    let (fields, valgrind_differs) = split_reason(line);
    let [case, error, count] = &fields[..] else { bail!("expected: misuse error count") };
    Ok(MisuseRow { case: case.clone(), error: error.clone(), count: count.parse().context("count")?, valgrind_differs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_carries_its_reason() {
        let row = leak_row("tls   reachable  16  2  ! Valgrind sees no dynamic TLS").unwrap();
        assert_eq!((row.bytes, row.blocks), (16, 2));
        assert_eq!(row.valgrind_differs.as_deref(), Some("Valgrind sees no dynamic TLS"));
    }

    #[test]
    fn a_wrong_row_is_refused() {
        assert!(leak_row("malloc lost 16 2").unwrap_err().to_string().contains("expected definite"));
        assert!(misuse_row("double_free InvalidFree").is_err());
    }
}
