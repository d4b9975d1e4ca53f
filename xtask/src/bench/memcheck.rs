//! `bench memcheck`: `leakscope memcheck` beside Memcheck, with and without its undefined values, and native.
//!
//! In every round each of the four runs once, one after the other; ratios are taken within the round.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use leakscope_e2e::{Ending, Run, leakscope_bin, target_dir};

use super::pairs::spread;
use super::workloads::{self, installed};
use crate::step::first_line;

/// The columns beside native.
const COLUMNS: [&str; 3] = ["leakscope memcheck", "Memcheck --undef-value-errors=no", "Memcheck as it is by default"];

struct Program {
    name: &'static str,
    what: &'static str,
    target: &'static str,
    words: Vec<String>,
    stdin: Option<PathBuf>,
}

impl Program {
    /// This program behind the words of a tool.
    fn after(&self, tool: &[&str]) -> Run {
        let mut words = tool.iter().copied().chain(self.words.iter().map(String::as_str));
        let run = Run::new(words.next().unwrap_or_default()).args(words).limit(LIMIT);
        match &self.stdin {
            Some(path) => run.stdin(path),
            None => run,
        }
    }
}

/// For one run under the slowest tool.
const LIMIT: Duration = Duration::from_secs(600);
const INPUT_BYTES: usize = 3 << 20;
const SQL: &str = "CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c INTEGER);\n\
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 120000)\n\
    INSERT INTO t SELECT i, 'row ' || (i * 7919 % 10007), i % 97 FROM n;\n\
    CREATE INDEX t_b ON t(b);\n\
    SELECT count(*), sum(length(x.b)) FROM t x JOIN t y ON x.c = y.a WHERE x.b > 'row 5';\n\
    SELECT c, count(*), max(b) FROM t GROUP BY c ORDER BY 2 DESC LIMIT 3;\n";

/// User and system seconds, and peak resident megabytes, of one run.
struct Cost {
    cpu: f64,
    wall: f64,
    peak: f64,
}

/// Measures every program in so many rounds; gives the table.
///
/// # Errors
/// A program is not installed, or fails natively.
pub fn table(quick: bool) -> Result<String> {
    let rounds = if quick { 3 } else { 7 };
    let mut text = format!(
        "| program | to reach | native | {} | a fifth of Memcheck's time |\n|---|---|---|---|---|---|---|\n",
        COLUMNS.join(" | ")
    );
    for program in programs()? {
        text += &row(&program, rounds)?;
        eprintln!("{}", text.lines().last().unwrap_or_default());
    }
    text += &format!(
        "\nCells: median ratio of user and system time to native (least to greatest of {rounds} rounds), then the peak of resident \
         memory. The last column: leakscope's time as a share of Memcheck's with its default options, which is to be at most \
         20 %. leakscope does not follow undefined values, as the middle column does not either.\n\n\
         | tool | version | command |\n|---|---|---|\n\
         | leakscope memcheck | {} | `leakscope memcheck -q --leak-check=no -- PROGRAM` |\n\
         | Memcheck | {} | `valgrind -q --leak-check=no PROGRAM` |\n",
        first_line(&[&leakscope_bin().to_string_lossy(), "--version"]),
        first_line(&["valgrind", "--version"]),
    );
    Ok(text)
}

fn programs() -> Result<Vec<Program>> {
    let dir = target_dir().join("bench");
    std::fs::create_dir_all(&dir)?;
    let text = workloads::write(&dir, "shorter_text", &workloads::text_input(INPUT_BYTES))?;
    let script = workloads::write(&dir, "shorter.sql", SQL)?;
    let mut list = Vec::new();
    let mut add = |name, what, target, program: PathBuf, args: &[&str], stdin| {
        let words =
            std::iter::once(program.to_string_lossy().into_owned()).chain(args.iter().map(|arg| (*arg).to_owned()));
        list.push(Program { name, what, target, words: words.collect(), stdin });
    };
    let input = text.to_string_lossy().into_owned();
    add("xz", "3 MiB of text, one thread, -3", "1.6", installed("xz")?, &["-3", "-T1", "-k", "-c", &input], None);
    add("bzip2", "3 MiB of text", "1.6", installed("bzip2")?, &["-k", "-c", &input], None);
    add("sqlite3", "120,000 rows, a join, an index", "3.2", installed("sqlite3")?, &[":memory:"], Some(script));
    let code = "my %h; for my $i (1..2000000) { $h{$i % 5000} .= 'x' if $i % 3; } print length($h{77}), qq(\\n);";
    add("perl", "a loop over a hash of strings", "3.2", installed("perl")?, &["-e", code], None);
    let python = PathBuf::from("/usr/bin/python3");
    let code = "d = {}\nfor i in range(1500000):\n    d[i % 5000] = d.get(i % 5000, 0) + i\nprint(sum(d.values()))";
    add("python", "a loop over a dictionary", "3.2", python.clone(), &["-I", "-S", "-c", code], None);
    add("alloc1", "C++ that allocates 1.5 M blocks", "2.5", workloads::build(&dir, "alloc1")?, &["1500000"], None);
    add("python, start-up", "nothing but start and end", "150 ms", python, &["-I", "-S", "-c", "pass"], None);
    Ok(list)
}

fn row(program: &Program, rounds: usize) -> Result<String> {
    let ours = leakscope_bin();
    let runs = [
        program.after(&[]),
        program.after(&[&ours.to_string_lossy(), "memcheck", "-q", "--leak-check=no", "--"]),
        program.after(&["valgrind", "-q", "--leak-check=no", "--undef-value-errors=no"]),
        program.after(&["valgrind", "-q", "--leak-check=no"]),
    ];
    let mut native = Vec::new();
    let mut ratios: [Vec<f64>; 3] = Default::default();
    let (mut shares, mut walls, mut peaks) = (Vec::new(), Vec::new(), [0.0f64; 4]);
    for _ in 0..rounds {
        let costs = runs.iter().map(once).collect::<Result<Vec<Cost>>>()?;
        for (column, cost) in costs[1..].iter().enumerate() {
            ratios[column].push(cost.cpu / costs[0].cpu.max(0.001));
        }
        shares.push(100.0 * costs[1].cpu / costs[3].cpu);
        walls.push(costs[1].wall * 1000.0);
        native.push(costs[0].cpu);
        for (most, cost) in peaks.iter_mut().zip(&costs) {
            *most = most.max(cost.peak);
        }
    }
    let shown = |values: &[f64], digits: usize| {
        let (median, least, greatest) = spread(values).unwrap_or_default();
        format!("**{median:.digits$}** ({least:.digits$} to {greatest:.digits$})")
    };
    let mut cells: Vec<String> =
        ratios.iter().zip(&peaks[1..]).map(|(r, peak)| format!("{}, {peak:.0} MB", shown(r, 2))).collect();
    if program.target.ends_with("ms") {
        cells[0] += &format!("; {} ms", shown(&walls, 0));
    }
    let (seconds, _, _) = spread(&native).unwrap_or_default();
    Ok(format!(
        "| {}: {} | {} | {seconds:.2} s, {:.0} MB | {} | {} % |\n",
        program.name,
        program.what,
        program.target,
        peaks[0],
        cells.join(" | "),
        shown(&shares, 0)
    ))
}

fn once(run: &Run) -> Result<Cost> {
    let finished = run.finish()?;
    if finished.ending != Ending::Exit(0) {
        bail!("{}: {:?}: {}", run.shown(), finished.ending, finished.stderr.lines().last().unwrap_or_default());
    }
    let peak = finished.max_rss_bytes as f64 / 1e6;
    Ok(Cost { cpu: finished.cpu.as_secs_f64(), wall: finished.wall.as_secs_f64(), peak })
}
