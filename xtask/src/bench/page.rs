//! The table of measurements as Markdown, with what is needed to repeat it.

use std::collections::BTreeMap;

use anyhow::Result;
use leakscope_e2e::repo_root;

use super::pairs::{Series, spread};
use super::stacks::Compared;
use super::tools::Tool;
use crate::generated::rewrite;
use crate::step::first_line;

/// The table while it is filled.
pub struct Page {
    tools: Vec<Tool>,
    command: String,
    cells: BTreeMap<(String, Tool), String>,
    rows: Vec<Row>,
    stacks: Vec<Result<Compared, String>>,
}

struct Row {
    name: String,
    what: String,
    target: String,
}

impl Page {
    /// An empty table with these columns.
    pub fn new(tools: &[Tool], words: &[String]) -> Page {
        let command = std::iter::once("cargo xtask bench").chain(words.iter().map(String::as_str));
        Page {
            tools: tools.to_vec(),
            command: command.filter(|word| *word != "--write").collect::<Vec<_>>().join(" "),
            cells: BTreeMap::new(),
            rows: Vec::new(),
            stacks: Vec::new(),
        }
    }

    /// Sets one cell; what a tool said when it failed must not break the table.
    pub fn set(&mut self, row: &str, tool: Tool, text: String) {
        let text: String = text.trim().replace(['\n', '|'], " ").chars().take(160).collect();
        self.cells.insert((row.to_owned(), tool), text);
    }

    /// Adds a row whose cells are set already.
    pub fn row(&mut self, name: &str, what: &str, target: &str) {
        self.rows.push(Row { name: name.to_owned(), what: what.to_owned(), target: target.to_owned() });
    }

    /// Adds a row of ratios: wall where it was taken, and processor time.
    pub fn ratios(&mut self, name: &str, what: &str, target: &str, series: &BTreeMap<Tool, Series>) {
        for (tool, series) in series {
            self.set(name, *tool, ratio_cell(*tool, series));
        }
        self.row(name, what, target);
    }

    /// Adds how recorded stacks compare with complete unwinding.
    pub fn stacks(&mut self, stacks: Vec<Result<Compared, String>>) {
        self.stacks = stacks;
    }

    fn stacks_table(&self) -> String {
        if self.stacks.is_empty() {
            return String::new();
        }
        let mut text = String::from(
            "\nStacks: sampled allocations that the C library's `backtrace()` unwound too, in the same process, and those of \
             them whose whole stack leakscope recorded (at least 99.9 % are to be reached).\n\n\
             | workload | sampled | distinct stacks | equal | share |\n|---|---|---|---|---|\n",
        );
        for compared in &self.stacks {
            match compared {
                Ok(compared) => text += &compared.row(),
                Err(reason) => text += &format!("| {} | - | - | - | - |", reason.replace(['\n', '|'], " ")),
            }
            text.push('\n');
        }
        text
    }

    /// The row that was added last, for the terminal.
    pub fn last_row(&self) -> String {
        self.rows.last().map(|row| self.row_text(row, &self.tools)).unwrap_or_default()
    }

    fn row_text(&self, row: &Row, tools: &[Tool]) -> String {
        let cell = |tool: &Tool| self.cells.get(&(row.name.clone(), *tool)).cloned().unwrap_or_else(|| "-".to_owned());
        let cells: Vec<String> = tools.iter().map(cell).collect();
        format!("| {} | {} | {} |", row.name, row.target, cells.join(" | "))
    }

    fn table(&self, tools: &[Tool]) -> String {
        let heads: Vec<&str> = tools.iter().map(|tool| tool.title()).collect();
        let mut text = format!("| workload | to reach | {} |\n", heads.join(" | "));
        text += &format!("|{}\n", "---|".repeat(tools.len() + 2));
        for row in &self.rows {
            text += &self.row_text(row, tools);
            text.push('\n');
        }
        text
    }

    /// The whole generated part.
    pub fn markdown(&self) -> String {
        let mut text = format!("Taken on {} with `{}`.\n\n", today(), self.command);
        text += &self.table(&self.tools);
        text += "\nCells: median ratio of wall time to native (least to greatest over the rounds), then the ratio of user \
                 and system time of all processes; `native` is in seconds. In every round each tool runs once, and a ratio \
                 is taken within its round; the shorter a workload, the more rounds it has; heaptrack's default mode and Memcheck run in one round only, with a time limit.\n\n";
        for row in &self.rows {
            text += &format!("- **{}**: {}\n", row.name, row.what);
        }
        text += &self.stacks_table();
        text += "\n| tool | version | command |\n|---|---|---|\n";
        for tool in &self.tools {
            text += &format!("| {} | {} | `{}` |\n", tool.title(), tool.version(), tool.command());
        }
        text += &machine();
        text
    }

    /// The table alone, for the README.
    pub fn excerpt(&self) -> String {
        format!("{}\nFrom docs/benchmarks.md, which says how to repeat it.\n", self.table(&self.tools))
    }
}

/// Renews docs/benchmarks.md and the table in the README.
///
/// # Errors
/// A page cannot be written or lacks its markers.
pub fn write(text: &str, excerpt: &str) -> Result<()> {
    rewrite(&repo_root().join("docs/benchmarks.md"), "speed", text)?;
    rewrite(&repo_root().join("README.md"), "speed", excerpt)
}

/// Renews one of the tables of docs/benchmarks.md that stand by themselves.
///
/// # Errors
/// The page cannot be written or lacks the markers.
pub fn write_table(name: &str, table: &str) -> Result<()> {
    let text = format!("Taken on {} with `cargo xtask bench {name}`.\n\n{table}{}", today(), machine());
    rewrite(&repo_root().join("docs/benchmarks.md"), name, &text)
}

fn machine() -> String {
    let kernel = first_line(&["uname", "-r"]);
    format!("\nMachine: {}, {} processors, Linux {kernel}.\n", processor(), processors())
}

fn ratio_cell(tool: Tool, series: &Series) -> String {
    if let Some(reason) = &series.failed {
        return reason.clone();
    }
    if tool == Tool::Native {
        let wall: Vec<f64> = series.costs.iter().map(|cost| cost.wall).collect();
        let cpu: Vec<f64> = series.costs.iter().map(|cost| cost.cpu).collect();
        let median = |values: &[f64]| spread(values).map_or(0.0, |(median, ..)| median);
        return format!("{:.2} s, CPU {:.2} s", median(&wall), median(&cpu));
    }
    let cpu = spread(&series.cpu).map_or_else(|| "-".to_owned(), |(median, ..)| format!("{median:.2}"));
    match spread(&series.wall) {
        Some((median, least, greatest)) if series.wall.len() > 1 => {
            format!("**{median:.2}** ({least:.2} to {greatest:.2}), CPU {cpu}")
        }
        Some((median, ..)) => format!("**{median:.2}**, CPU {cpu}"),
        None => match spread(&series.cpu) {
            Some((median, least, greatest)) => format!("CPU **{median:.2}** ({least:.2} to {greatest:.2})"),
            None => "-".to_owned(),
        },
    }
}

/// The date, from the system's own clock.
pub fn today() -> String {
    first_line(&["date", "+%Y-%m-%d"])
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(": ")).map_or("unknown", |(_, name)| name).to_owned()
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}
