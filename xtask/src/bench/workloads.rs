//! The programs that are measured, with their inputs; everything is made afresh under `target/bench`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use leakscope_e2e::{Ending, Run, fixtures_dir, target_dir};

use super::tools::Tool;
use crate::step::first_line;

/// A program with its arguments and input.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Its name on the command line and in the table.
    pub name: &'static str,
    /// What it is, for the table.
    pub what: String,
    /// The ratio to reach.
    pub target: &'static str,
    program: PathBuf,
    args: Vec<String>,
    stdin: Option<PathBuf>,
}

impl Workload {
    /// This workload under a tool.
    pub fn under(&self, tool: Tool, scratch: &Path) -> Run {
        self.with(tool.start(&self.program, scratch), scratch)
    }

    /// The rest of a command that begins with the program: arguments, folder and input.
    pub fn with(&self, beginning: Run, scratch: &Path) -> Run {
        let run = beginning.args(&self.args).dir(scratch);
        match &self.stdin {
            Some(path) => run.stdin(path),
            None => run,
        }
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }
}

/// Names in the table's order.
pub const NAMES: &[&str] = &["alloc1", "churn4", "sqlite3", "cc1plus", "bzip2", "xz"];

/// Builds what the workload of this name needs.
///
/// # Errors
/// A program is missing or a build fails.
pub fn prepare(name: &str) -> Result<Workload> {
    let dir = target_dir().join("bench");
    std::fs::create_dir_all(&dir)?;
    let workload = |name, what: &str, target, program: PathBuf, args: &[&str], stdin| Workload {
        name,
        what: what.to_owned(),
        target,
        program,
        args: args.iter().map(|arg| arg.to_string()).collect(),
        stdin,
    };
    Ok(match name {
        "alloc1" => {
            let what = "one thread, 8-deep stacks, 256 sites, 10 M allocations, -O2 -fomit-frame-pointer";
            workload("alloc1", what, "1.40", build(&dir, "alloc1")?, &["10000000"], None)
        }
        "churn4" => {
            let what = "4 threads, maps of strings to vectors of strings, 700,000 rounds each";
            workload("churn4", what, "1.25", build(&dir, "churn4")?, &["700000"], None)
        }
        "sqlite3" => {
            let script = write(&dir, "script.sql", &sql_script())?;
            let what = "the shell on an in-memory database: 400,000 rows, joins, an index, text functions";
            workload("sqlite3", what, "1.08", installed("sqlite3")?, &[":memory:"], Some(script))
        }
        "cc1plus" => {
            let what =
                "gcc's C++ compiler, -O1, on a preprocessed file that includes 25 headers of the standard library";
            let compiler = PathBuf::from(first_line(&["gcc", "-print-prog-name=cc1plus"]));
            let input = preprocessed(&dir)?.to_string_lossy().into_owned();
            let args = ["-quiet", "-fpreprocessed", "-std=c++17", "-O1", "-o", "/dev/null", &input];
            workload("cc1plus", what, "1.20", compiler, &args, None)
        }
        "bzip2" => {
            let input = write(&dir, "text", &text_input(12 << 20))?.to_string_lossy().into_owned();
            workload("bzip2", "12 MiB of text", "1.02", installed("bzip2")?, &["-k", "-c", &input], None)
        }
        "xz" => {
            let input = write(&dir, "text", &text_input(12 << 20))?.to_string_lossy().into_owned();
            workload(
                "xz",
                "12 MiB of text, one thread, -3",
                "1.02",
                installed("xz")?,
                &["-3", "-T1", "-k", "-c", &input],
                None,
            )
        }
        other => {
            bail!("no workload `{other}`; there are {}, redis, exit-check, snapshot, memory, stacks", NAMES.join(", "))
        }
    })
}

/// Builds one program of fixtures/bench.
///
/// # Errors
/// The compiler refuses it.
pub fn build(dir: &Path, name: &str) -> Result<PathBuf> {
    std::fs::create_dir_all(dir)?;
    let path = dir.join(name);
    let source = fixtures_dir().join("bench").join(name).with_extension("cpp");
    let compile = Run::new("g++").args(["-O2", "-g", "-fomit-frame-pointer", "-pthread", "-o"]).arg(&path).arg(source);
    let compile = compile.limit(Duration::from_secs(120));
    let finished = compile.finish()?;
    if finished.ending != Ending::Exit(0) {
        bail!("{}\n{}", compile.shown(), finished.stderr);
    }
    Ok(path)
}

/// The full path of a program on PATH.
///
/// # Errors
/// There is none.
pub fn installed(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|path| path.is_file())
        .with_context(|| format!("{program} is not installed; next: cargo xtask setup"))
}

pub(super) fn write(dir: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = dir.join(name);
    std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

fn sql_script() -> String {
    sql_script_of(100_000)
}

/// The script on so many items, and three times as many sales.
pub(super) fn sql_script_of(items: usize) -> String {
    "create table item(id integer primary key, name text, price real, stock integer);\n\
     create table sale(item integer, day integer, amount integer);\n\
     with recursive n(i) as (select 1 union all select i + 1 from n where i < ITEMS)\n\
       insert into item select i, printf('item %d %s', i, hex(i * 7919)), i % 977 * 1.25, i % 31 from n;\n\
     with recursive n(i) as (select 1 union all select i + 1 from n where i < SALES)\n\
       insert into sale select i * 31 % ITEMS + 1, i % 365, i % 7 from n;\n\
     create index sale_item on sale(item);\n\
     select count(*), sum(price * amount) from item join sale on item.id = sale.item;\n\
     select day, count(distinct item), group_concat(substr(name, 1, 3)) from item join sale on item.id = sale.item \
     where stock < 3 group by day order by day limit 5;\n\
     update item set name = upper(replace(name, 'item', 'thing')) || length(name) where id % 2 = 0;\n\
     select name, price from item order by name desc limit 10;\n\
     delete from sale where amount = 3;\n\
     select sum(length(name)) from item;\n"
        .replace("ITEMS", &items.to_string())
        .replace("SALES", &(3 * items).to_string())
}

/// Words of a fixed vocabulary in an order that repeats too late for any compressor's window.
pub(super) fn text_input(bytes: usize) -> String {
    const WORDS: &[&str] = &[
        "heap",
        "block",
        "site",
        "stack",
        "frame",
        "lost",
        "reachable",
        "thread",
        "signal",
        "module",
        "record",
        "the",
        "of",
        "and",
        "to",
        "a",
        "in",
        "is",
        "that",
        "for",
        "leak",
        "check",
        "every",
        "when",
        "\n",
    ];
    let mut state: u64 = 0x2545_f491_4f6c_dd1d;
    let mut text = String::with_capacity(bytes + 32);
    while text.len() < bytes {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let random = (state >> 33) as usize;
        text.push_str(WORDS[random % WORDS.len()]);
        if random & 0x700 == 0 {
            let _ = write!(text, " {:x}", random >> 11);
        }
        text.push(' ');
    }
    text
}

fn preprocessed(dir: &Path) -> Result<PathBuf> {
    const HEADERS: &[&str] = &[
        "algorithm",
        "any",
        "array",
        "chrono",
        "deque",
        "filesystem",
        "fstream",
        "functional",
        "future",
        "iostream",
        "list",
        "map",
        "memory",
        "mutex",
        "numeric",
        "optional",
        "random",
        "regex",
        "set",
        "sstream",
        "string",
        "thread",
        "unordered_map",
        "variant",
        "vector",
    ];
    let mut source: String = HEADERS.iter().map(|header| format!("#include <{header}>\n")).collect();
    for i in 0..8 {
        let _ = write!(
            source,
            "std::map<std::string, std::vector<int>> f{i}(std::istream &in) {{\n  std::map<std::string, std::vector<int>> m;\n  \
             std::string s;\n  while (std::getline(in, s)) {{\n    std::smatch match;\n    \
             if (std::regex_match(s, match, std::regex(\"([a-z]+){i}\"))) m[match[1]].push_back({i});\n  }}\n  \
             std::unordered_map<int, std::variant<int, std::string>> u;\n  u.emplace({i}, s);\n  \
             for (auto &e : m) std::sort(e.second.begin(), e.second.end(), [](int a, int b) {{ return a % {i}1 < b; }});\n  \
             return m;\n}}\n"
        );
    }
    let input = write(dir, "headers.cpp", &source)?;
    let output = dir.join("headers.ii");
    let run = Run::new("g++").args(["-std=c++17", "-E", "-o"]).arg(&output).arg(input);
    let finished = run.finish()?;
    if finished.ending != Ending::Exit(0) {
        bail!("{}\n{}", run.shown(), finished.stderr);
    }
    Ok(output)
}
