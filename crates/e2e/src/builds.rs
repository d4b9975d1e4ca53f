//! The same sources built in other ways, and what becomes of the fingerprints of their findings.
//!
//! Two findings have the same call path when the functions from the allocation to `main`, inlined ones included, have
//! the same bare names: without scope, template arguments, parameters and what a compiler appends. That is coarser than
//! what a fingerprint is made of, and found in another way, so a name that the fingerprint spells differently in two
//! builds shows as a loss.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::fixture::Fixture;
use crate::paths::{fixtures_dir, leakscope_bin};
use crate::run::{Ending, Run};

/// One way to build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Build {
    /// What it is, for a table.
    pub name: &'static str,
    /// The C and the C++ compiler.
    pub compilers: (&'static str, &'static str),
    /// Flags of the compiler.
    pub flags: &'static [&'static str],
    /// Whether names and lines are moved to a `.debug` file that `.gnu_debuglink` names.
    pub is_stripped: bool,
    /// Whether the sources lie in another folder.
    pub is_moved: bool,
    /// Whether 40 lines with functions of their own are inserted above.
    pub is_shifted: bool,
}

const GCC: (&str, &str) = ("gcc", "g++");
const CLANG: (&str, &str) = ("clang-19", "clang++-19");
const PIE: &[&str] = &["-O2", "-fPIE", "-pie"];
const NO_PIE: &[&str] = &["-O2", "-fno-pie", "-no-pie"];
const GCC_O2: Build =
    Build { name: "gcc -O2", compilers: GCC, flags: PIE, is_stripped: false, is_moved: false, is_shifted: false };

impl Build {
    /// gcc -O0.
    pub const PLAIN: Build = Build { name: "gcc -O0", flags: &["-O0", "-fPIE", "-pie"], ..GCC_O2 };
    /// gcc -O2, position-independent.
    pub const OPTIMISED: Build = GCC_O2;
    /// clang -O2.
    pub const CLANG: Build = Build { name: "clang -O2", compilers: CLANG, ..GCC_O2 };
    /// gcc -O2 with a separate debug file.
    pub const STRIPPED: Build = Build { name: "gcc -O2, separate debug file", is_stripped: true, ..GCC_O2 };
    /// gcc -O2 at a fixed address.
    pub const NO_PIE: Build = Build { name: "gcc -O2, not PIE", flags: NO_PIE, ..GCC_O2 };
    /// gcc -O2 of sources in another folder.
    pub const MOVED: Build = Build { name: "gcc -O2, other folder", is_moved: true, ..GCC_O2 };
    /// gcc -O2 of sources that grew above.
    pub const SHIFTED: Build = Build { name: "gcc -O2, 40 lines above", is_shifted: true, ..GCC_O2 };
    /// All of it together, with gcc.
    pub const ALL: Build = Build {
        name: "gcc -O2, all of these",
        flags: NO_PIE,
        is_stripped: true,
        is_moved: true,
        is_shifted: true,
        ..GCC_O2
    };
    /// All of it together, with clang.
    pub const CLANG_ALL: Build = Build { name: "clang -O2, all of these", compilers: CLANG, ..Build::ALL };

    /// Whether its compilers are installed.
    pub fn is_possible(&self) -> bool {
        [self.compilers.0, self.compilers.1].iter().all(|name| Run::new(name).arg("--version").finish().is_ok())
    }

    fn compiler(&self, source: &Path) -> &'static str {
        if source.extension().is_some_and(|ending| ending == "c") { self.compilers.0 } else { self.compilers.1 }
    }
}

/// One finding, as far as its identity is concerned.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// What leakscope says that it is.
    pub fingerprint: String,
    /// `leak`, or the kind of the wrong call.
    pub class: String,
    /// Bare names of the functions, innermost first.
    pub path: Vec<String>,
    /// The linker's names, where there are any: which function exactly.
    pub exact: Vec<String>,
}

/// How many findings kept their fingerprint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kept {
    /// Findings of the build that is compared with.
    pub findings: usize,
    /// Those of them whose call path the other build has too.
    pub same_path: usize,
    /// Those of these whose fingerprint the other build has too.
    pub kept: usize,
    /// Findings whose fingerprint the other build has, whatever their path.
    pub kept_of_all: usize,
    /// What was lost, one line each.
    pub lost: Vec<String>,
}

impl Kept {
    /// Adds those of another program.
    pub fn add(&mut self, other: Kept) {
        self.findings += other.findings;
        self.same_path += other.same_path;
        self.kept += other.kept;
        self.kept_of_all += other.kept_of_all;
        self.lost.extend(other.lost);
    }

    /// Share of the findings with the same path that kept their fingerprint.
    pub fn share(&self) -> f64 {
        self.kept as f64 / self.same_path.max(1) as f64
    }

    /// Share of all findings that did.
    pub fn raw_share(&self) -> f64 {
        self.kept_of_all as f64 / self.findings.max(1) as f64
    }
}

/// Builds a fixture below `dir` and gives what leakscope finds in it.
///
/// # Errors
/// A compiler or `leakscope run` fails.
pub fn findings(fixture: &Fixture, build: &Build, dir: &Path) -> Result<BTreeSet<Finding>> {
    let dir = dir.join(build.name.replace([' ', ',', '+'], "_")).join(fixture.name());
    std::fs::create_dir_all(&dir)?;
    let program = compile(fixture, build, &dir).with_context(|| format!("{}, {}", fixture.name(), build.name))?;
    let report = dir.join("report.json");
    let run = Run::new(leakscope_bin()).args(["run", "-q", "--num-callers=200", "--format=json", "-o"]).arg(&report);
    let run = run.args(&fixture.options).arg("--").arg(&program).args(&fixture.args).dir(&dir);
    let finished = run.finish()?;
    let text = std::fs::read_to_string(&report)
        .with_context(|| format!("{} left no report: {}", run.shown(), finished.stderr))?;
    let mut found = BTreeSet::new();
    for line in text.lines() {
        collect(&serde_json::from_str(line)?, &mut found)?;
    }
    Ok(found)
}

/// Compares what two builds of one program gave.
pub fn compare(before: &BTreeSet<Finding>, after: &BTreeSet<Finding>) -> Kept {
    let paths: BTreeSet<(&str, &[String])> = after.iter().map(|found| (&*found.class, &found.path[..])).collect();
    let fingerprints: BTreeSet<&str> = after.iter().map(|found| &*found.fingerprint).collect();
    let mut kept = Kept::default();
    for finding in before {
        let is_kept = fingerprints.contains(&*finding.fingerprint);
        let same_path = paths.contains(&(&finding.class, &finding.path));
        kept.findings += 1;
        kept.kept_of_all += usize::from(is_kept);
        kept.same_path += usize::from(same_path);
        kept.kept += usize::from(same_path && is_kept);
        if same_path && !is_kept {
            kept.lost.push(format!("{} {}", finding.class, finding.exact.join(" < ")));
        }
    }
    kept
}

/// Fingerprints that two different call paths of one build share. Two calls in one function are one path: lines
/// shift. A function that calls itself, or comes back, counts once, as in the fingerprint.
pub fn collisions(findings: &BTreeSet<Finding>) -> Vec<String> {
    let mut by_fingerprint: BTreeMap<&str, BTreeSet<Vec<&str>>> = BTreeMap::new();
    for finding in findings {
        let mut seen = BTreeSet::new();
        let names = std::iter::once(&finding.class).chain(&finding.exact).map(String::as_str);
        let path = names.filter(|name| seen.insert(*name)).collect();
        by_fingerprint.entry(&finding.fingerprint).or_default().insert(path);
    }
    let shared = by_fingerprint.into_iter().filter(|(_, paths)| paths.len() > 1);
    shared.map(|(fingerprint, paths)| format!("{fingerprint}: {paths:?}")).collect()
}

fn collect(document: &Value, found: &mut BTreeSet<Finding>) -> Result<()> {
    for key in ["records", "errors"] {
        for one in document[key].as_array().context("the report has records and errors")? {
            let frames = one["stack"]["frames"].as_array().context("a stack has frames")?;
            let shown = usize::try_from(one["stack"]["shown"].as_u64().context("a stack says what is shown")?)?;
            let word = |value: &Value| value.as_str().map(str::to_owned);
            let callers = || frames.iter().take(shown).skip(1);
            let mut path: Vec<String> = callers().map(bare_name).collect();
            if let Some(main) = path.iter().position(|name| name == "main") {
                path.truncate(main + 1);
            }
            path.dedup_by(|later, earlier| later == earlier && later.starts_with('?'));
            let exact = |frame: &Value| word(&frame["linkage_name"]).or_else(|| word(&frame["function"])).map(whole);
            let mut exact: Vec<String> = callers().filter_map(exact).collect();
            // The cold part of `main` is not shown as such, and what is below it is then.
            if let Some(main) = exact.iter().position(|name| name == "main") {
                exact.truncate(main + 1);
            }
            found.insert(Finding {
                fingerprint: word(&one["fingerprint"]).context("a finding has a fingerprint")?,
                class: if key == "records" { "leak".to_owned() } else { word(&one["kind"]).unwrap_or_default() },
                path,
                exact,
            });
        }
    }
    Ok(())
}

/// The function that a compiler moved a part out of.
fn whole(name: String) -> String {
    name.strip_suffix(".cold").map(str::to_owned).unwrap_or(name)
}

/// The last word of a function's name; `?` and the module for code without a name.
fn bare_name(frame: &Value) -> String {
    let Some(name) = frame["function"].as_str() else {
        return format!("?{}", frame["module"].as_str().and_then(|path| path.rsplit('/').next()).unwrap_or_default());
    };
    if let Some((_, operator)) = name.split_once("operator") {
        let end = operator.get(1..).and_then(|rest| rest.find('(')).map_or(operator.len(), |at| at + 1);
        return format!("operator{}", &operator[..end]);
    }
    let mut depth = 0_usize;
    let mut flat = String::new();
    for letter in name.chars() {
        match letter {
            '<' | '(' | '{' | '[' => depth += 1,
            '>' | ')' | '}' | ']' => depth = depth.saturating_sub(1),
            _ if depth == 0 => flat.push(letter),
            _ => {}
        }
    }
    let last = flat.trim_end_matches(" const").rsplit("::").next().unwrap_or_default();
    last.split(['.', '@']).next().unwrap_or_default().trim().to_owned()
}

fn compile(fixture: &Fixture, build: &Build, dir: &Path) -> Result<PathBuf> {
    let sources = if build.is_moved || build.is_shifted { copied(fixture, build, dir)? } else { fixtures_dir() };
    let relative = fixture.source.strip_prefix(fixtures_dir()).context("a fixture lies in fixtures")?;
    // What the fixture needs besides its level of optimisation, such as `-std=c++17`.
    let own: Vec<&String> = fixture.builds[0]
        .iter()
        .filter(|flag| !flag.starts_with("-O") && !flag.starts_with("-f") && *flag != "-g")
        .collect();
    let compiler = |source: &Path| Run::new(build.compiler(source)).args(["-g", "-w", "-pthread"]).args(&own);
    for plugin in &fixture.plugins {
        let source = sources.join("plugin").join(plugin);
        let library = dir.join(Path::new(plugin).with_extension("so"));
        done(compiler(&source).args(["-O2", "-shared", "-fPIC", "-o"]).arg(&library).arg(&source))?;
        if build.is_stripped {
            separate(&library)?;
        }
    }
    let (source, program) = (sources.join(relative), dir.join(fixture.name()));
    let run = compiler(&source).args(build.flags).arg("-Wl,-rpath,$ORIGIN").arg("-o").arg(&program).arg(&source);
    done(run.args(&fixture.libs))?;
    if build.is_stripped {
        separate(&program)?;
    }
    Ok(program)
}

/// Moves names and lines to a file beside it.
fn separate(file: &Path) -> Result<()> {
    let debug = PathBuf::from(format!("{}.debug", file.display()));
    done(Run::new("objcopy").arg("--only-keep-debug").arg(file).arg(&debug))?;
    done(Run::new("strip").arg("--strip-all").arg(file))?;
    done(Run::new("objcopy").arg(format!("--add-gnu-debuglink={}", debug.display())).arg(file))
}

/// A copy of the fixture's sources, its own files grown by 40 lines above when asked.
fn copied(fixture: &Fixture, build: &Build, dir: &Path) -> Result<PathBuf> {
    let top = dir.join(if build.is_moved { "another/place/for/sources" } else { "fixtures" });
    let own: Vec<PathBuf> = std::iter::once(fixture.source.clone())
        .chain(fixture.plugins.iter().map(|plugin| fixtures_dir().join("plugin").join(plugin)))
        .collect();
    let header = fixtures_dir().join("c/fixture.h");
    for from in own.iter().chain([&header]) {
        let text = std::fs::read_to_string(from).with_context(|| format!("read {}", from.display()))?;
        let above = if build.is_shifted && from != &header { forty_lines(from) } else { String::new() };
        let to = top.join(from.strip_prefix(fixtures_dir())?);
        std::fs::create_dir_all(to.parent().context("a file lies in a folder")?)?;
        std::fs::write(&to, above + &text)?;
    }
    Ok(top)
}

/// Functions, and in C++ lambdas too: they shift the numbers that compilers give.
fn forty_lines(source: &Path) -> String {
    let is_c = source.extension().is_some_and(|ending| ending == "c");
    let line = |number| match (is_c, number % 2) {
        (false, 1) => format!("static auto inserted_{number} = [](int value) {{ return value + {number}; }};\n"),
        _ => format!("static int inserted_{number}(int value) {{ return value + {number}; }}\n"),
    };
    (0..40).map(line).collect()
}

fn done(run: Run) -> Result<()> {
    let run = run.limit(Duration::from_secs(120));
    let finished = run.finish()?;
    if finished.ending != Ending::Exit(0) {
        bail!("{}\n{}", run.shown(), finished.stderr);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(fingerprint: &str, names: &[&str]) -> Finding {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        Finding { fingerprint: fingerprint.into(), class: "leak".into(), path: names.clone(), exact: names }
    }

    #[test]
    fn a_lost_fingerprint_and_another_path_are_told_apart() {
        let before = BTreeSet::from([finding("1", &["a", "main"]), finding("2", &["b", "main"]), finding("3", &["c"])]);
        let after = BTreeSet::from([finding("1", &["a", "main"]), finding("9", &["b", "main"]), finding("4", &["d"])]);
        let kept = compare(&before, &after);
        assert_eq!((kept.findings, kept.same_path, kept.kept, kept.kept_of_all), (3, 2, 1, 1));
        assert_eq!(kept.lost, ["leak b < main"]);
        assert_eq!((kept.share(), kept.raw_share()), (0.5, 1.0 / 3.0));
    }

    #[test]
    fn recursion_is_no_collision_and_another_function_is() {
        let once = finding("1", &["walk", "main"]);
        let deep = finding("1", &["walk", "walk", "main"]);
        assert_eq!(collisions(&BTreeSet::from([once.clone(), deep])), Vec::<String>::new());
        assert_eq!(collisions(&BTreeSet::from([once, finding("1", &["run", "main"])])).len(), 1);
    }

    #[test]
    fn bare_names_have_no_noise() {
        let bare = |name: &str| bare_name(&serde_json::json!({ "function": name }));
        assert_eq!(bare("std::vector<Item, std::allocator<Item> >::push_back(Item const&)"), "push_back");
        assert_eq!(bare("(anonymous namespace)::read.constprop.0"), "read");
        assert_eq!(bare("main::{lambda(int)#2}::operator()(int) const"), "operator()");
        assert_eq!(bare("operator new(unsigned long)"), "operator new");
        assert_eq!(bare_name(&serde_json::json!({ "function": null, "module": "/lib/libx.so" })), "?libx.so");
    }
}
