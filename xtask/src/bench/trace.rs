//! `bench kernel`, its second half: what `kernel trace` costs those who run meanwhile.
//!
//! In each round every manner of tracing runs once, none among them, and its ratio is taken within its round. A tracer is
//! started, waited for until it says that it is attached, and interrupted after the workload.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use leakscope_e2e::{Run, leakscope_bin, target_dir};

use super::pairs::spread;
use super::peers::Peers;
use super::reports::{Cost, once};
use crate::step::step;

/// Workloads by name: what prepares one, and what is measured. `$D` is a folder of their own.
const WORKLOADS: [(&str, &str, &str); 3] = [
    (
        "`find / \\| xargs cat`, 20,000 files",
        "true",
        "find /usr -xdev -type f -size -64k 2>/dev/null | head -20000 | tr '\\n' '\\0' | xargs -0 cat >/dev/null",
    ),
    (
        "`git clone` of a local repository",
        "git -c init.defaultBranch=main init -q $D/from && cd $D/from && i=0 && while [ $i -lt 2000 ]; do echo $i > f$i; i=$((i+1)); done \
         && git add . && git -c user.name=x -c user.email=x@x commit -qm x",
        "rm -rf $D/to && git clone -q --no-hardlinks $D/from $D/to",
    ),
    (
        "parallel build (`make -j2`, 40 files of C)",
        "i=0; printf 'all:' > $D/Makefile; while [ $i -lt 40 ]; do printf ' %s.o' $i >> $D/Makefile; \
         printf '#include <stdio.h>\\n#include <stdlib.h>\\n#include <string.h>\\nint f%s(int x) { return printf(\"%%d\", x); }\\n' $i > $D/$i.c; \
         i=$((i+1)); done; printf '\\n' >> $D/Makefile",
        "cd $D && rm -f *.o && make -s -j2",
    ),
];

/// A manner of tracing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Off,
    Floor,
    Sampled,
    Exact,
    Bcc,
    Bpftrace,
}

const MANNERS: [(Manner, &str); 6] = [
    (Manner::Off, "not traced"),
    (Manner::Floor, "six programs that do nothing"),
    (Manner::Sampled, "`kernel trace`, at most 1.03"),
    (Manner::Exact, "`kernel trace --sample 0`, at most 1.25"),
    (Manner::Bcc, "bcc's memleak"),
    (Manner::Bpftrace, "bpftrace"),
];

impl Manner {
    /// What starts it, and the words that it prints when it is attached.
    fn command(self, peers: &Peers) -> Option<(Command, &'static str)> {
        let (mut command, words) = match self {
            Self::Off => return None,
            Self::Floor => (Command::new(target_dir().join("release/examples/floor")), "attached"),
            Self::Bcc => peers.memleak(),
            Self::Bpftrace => peers.bpftrace(),
            Self::Sampled | Self::Exact => {
                let mut command = Command::new(leakscope_bin());
                command.args(["kernel", "trace", "--for", "0", "--min-age", "1s", "--once"]);
                if self == Self::Exact {
                    command.args(["--sample", "0"]);
                }
                (command, "Ctrl-C ends it")
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Some((command, words))
    }

    /// Starts it and waits until it is attached.
    fn start(self, peers: &Peers) -> Result<Option<Child>, String> {
        let Some((mut command, words)) = self.command(peers) else { return Ok(None) };
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        let mut last = String::new();
        // What nobody reads must not fill a pipe.
        let (attached, errors) = if matches!(self, Self::Floor | Self::Sampled | Self::Exact) {
            (lines_until(child.stderr.take(), words, &mut last), None)
        } else {
            let errors = child.stderr.take().map(last_line);
            (lines_until(child.stdout.take(), words, &mut last), errors)
        };
        if attached {
            return Ok(Some(child));
        }
        let _ = child.wait();
        let said = errors.and_then(|thread| thread.join().ok()).filter(|line| !line.is_empty());
        Err(format!("does not run here: {}", said.unwrap_or(last)))
    }
}

/// The last line with words in it, once there is no more.
fn last_line(input: ChildStderr) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let lines = BufReader::new(input).lines().map_while(Result::ok);
        lines.filter(|line| line.contains(char::is_alphanumeric)).last().unwrap_or_default()
    })
}

/// Reads lines until one has these words; the rest is thrown away by a thread.
fn lines_until<R: Read + Send + 'static>(input: Option<R>, words: &str, last: &mut String) -> bool {
    let Some(input) = input else { return false };
    let mut lines = BufReader::new(input).lines();
    for line in lines.by_ref() {
        let Ok(line) = line else { return false };
        last.clone_from(&line);
        if line.contains(words) {
            std::thread::spawn(move || lines.for_each(drop));
            return true;
        }
    }
    false
}

fn stop(child: Option<Child>) -> Result<()> {
    let Some(mut child) = child else { return Ok(()) };
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().context("kill")?;
    ensure!(status.success(), "the tracer ended before the workload did");
    // What it prints must not fill a pipe.
    for mut output in child
        .stdout
        .take()
        .map(|out| Box::new(out) as Box<dyn Read>)
        .into_iter()
        .chain(child.stderr.take().map(|out| Box::new(out) as Box<dyn Read>))
    {
        let _ = std::io::copy(&mut output, &mut std::io::sink());
    }
    child.wait().context("wait for the tracer").map(drop)
}

fn shell(words: &str, folder: &Path) -> Result<Cost> {
    let run = Run::new("sh").args(["-c", words]).env("D", folder);
    Ok(Cost::of(&once(&run, &[0])?))
}

/// Measures, in so many rounds; gives the table.
///
/// # Errors
/// A workload fails.
pub fn table(quick: bool) -> Result<String> {
    let rounds = if quick { 5 } else { 15 };
    step(&["cargo", "build", "--release", "--package", "leakscope-ebpf", "--example", "floor"])?;
    std::fs::create_dir_all(target_dir().join("bench"))?;
    let mut text = String::from("\n| workload |");
    for (_, name) in MANNERS {
        text += &format!(" {name} |");
    }
    text += &format!("\n{}|\n", "|---".repeat(MANNERS.len() + 1));
    let peers_scratch = tempfile::tempdir_in(target_dir().join("bench"))?;
    let peers = Peers::prepare(peers_scratch.path())?;
    for (name, prepare, measured) in WORKLOADS {
        let scratch = tempfile::tempdir_in(target_dir().join("bench"))?;
        shell(prepare, scratch.path())?;
        // Files are in the page cache, and the tools too.
        shell(measured, scratch.path())?;
        let mut costs: Vec<Result<Vec<Cost>, String>> = MANNERS.iter().map(|_| Ok(Vec::new())).collect();
        for round in 0..rounds {
            for (at, (manner, _)) in MANNERS.into_iter().enumerate() {
                let Ok(values) = &mut costs[at] else { continue };
                match manner.start(&peers) {
                    Err(reason) => costs[at] = Err(reason),
                    Ok(tracer) => {
                        let cost = shell(measured, scratch.path());
                        stop(tracer)?;
                        let cost = cost?;
                        eprintln!(
                            "  {name}, round {}: {manner:?} {:.2} s, CPU {:.2} s",
                            round + 1,
                            cost.seconds,
                            cost.cpu_seconds
                        );
                        values.push(cost);
                    }
                }
            }
        }
        text += &row(name, &costs);
    }
    text += &format!(
        "\nProcessor time of the workload: seconds without tracing, and ratios to them within {rounds} rounds, median (least to \
         greatest), then the ratio of wall time. All kinds of memory are traced; the peers keep each block with its stack, as \
         `--sample 0` does, and trace kmalloc, slab objects and pages. The programs that do nothing are on the tracepoints of \
         these: less cannot be had of tracepoints.\n"
    );
    Ok(text)
}

/// The row of a workload: seconds of the first manner, and of the others ratios to it within each round.
fn row(name: &str, costs: &[Result<Vec<Cost>, String>]) -> String {
    let mut text = format!("| {name} |");
    let Some(Ok(native)) = costs.first() else { return text + "\n" };
    for (at, costs) in costs.iter().enumerate() {
        let costs = match costs {
            Err(reason) => {
                text += &format!(" {} |", reason.replace('|', "/"));
                continue;
            }
            Ok(costs) => costs,
        };
        let ratios = |of: fn(&Cost) -> f64| -> Vec<f64> {
            let base = |own: &Cost| if at == 0 { 1.0 } else { of(own) };
            costs.iter().zip(native).map(|(cost, own)| of(cost) / base(own)).collect()
        };
        text += &match (spread(&ratios(|cost| cost.cpu_seconds)), spread(&ratios(|cost| cost.seconds))) {
            (Some((cpu, ..)), Some((wall, ..))) if at == 0 => format!(" CPU {cpu:.2} s, {wall:.2} s |"),
            (Some((cpu, least, greatest)), Some((wall, ..))) => {
                format!(" **{cpu:.2}** ({least:.2} to {greatest:.2}), wall {wall:.2} |")
            }
            _ => " - |".to_owned(),
        };
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_within_rounds() {
        let cost = |seconds: f64| Cost { seconds, cpu_seconds: seconds / 2.0, peak_megabytes: 0.0 };
        let native = Ok(vec![cost(1.0), cost(2.0), cost(4.0)]);
        let traced = Ok(vec![cost(1.5), cost(3.2), cost(4.4)]);
        let row = row("w", &[native, traced, Err("a | b".to_owned()), Ok(Vec::new())]);
        assert_eq!(row, "| w | CPU 1.00 s, 2.00 s | **1.50** (1.10 to 1.60), wall 1.50 | a / b | - |\n");
    }
}
