//! `bench kernel`, its second half: what `kernel trace` costs those who run meanwhile.
//!
//! In each round every manner of tracing runs once, none among them, and its ratio is taken within its round. A tracer is
//! started, waited for until it says that it is attached, and interrupted after the workload.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use leakscope_e2e::{leakscope_bin, target_dir};

use super::pairs::spread;

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
    Sampled,
    Exact,
    Bcc,
}

const MANNERS: [(Manner, &str); 4] = [
    (Manner::Off, "not traced"),
    (Manner::Sampled, "`kernel trace`, at most 1.03"),
    (Manner::Exact, "`kernel trace --sample 0`, at most 1.25"),
    (Manner::Bcc, "bcc's memleak"),
];

impl Manner {
    fn command(self) -> Option<Command> {
        let mut command = match self {
            Self::Off => return None,
            Self::Bcc => {
                let mut command = Command::new("memleak-bpfcc");
                command.args(["-o", "1000", "1000"]).env("PYTHONUNBUFFERED", "1");
                command
            }
            Self::Sampled | Self::Exact => {
                let mut command = Command::new(leakscope_bin());
                command.args(["kernel", "trace", "--for", "0", "--min-age", "1s", "--once"]);
                if self == Self::Exact {
                    command.args(["--sample", "0"]);
                }
                command
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Some(command)
    }

    /// Starts it and waits until it is attached.
    fn start(self) -> Result<Option<Child>, String> {
        let Some(mut command) = self.command() else { return Ok(None) };
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        let mut last = String::new();
        let attached = if self == Self::Bcc {
            lines_until(child.stdout.take(), "Attaching", &mut last)
        } else {
            lines_until(child.stderr.take(), "Ctrl-C ends it", &mut last)
        };
        if attached {
            return Ok(Some(child));
        }
        let mut words = String::new();
        if let Some(mut stderr) = child.stderr.take() {
            let _ = stderr.read_to_string(&mut words);
        }
        let _ = child.wait();
        let reason = words.lines().rfind(|line| !line.trim().is_empty()).map_or(last.clone(), str::to_owned);
        Err(format!("does not run here: {reason}"))
    }
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

fn shell(words: &str, folder: &Path) -> Result<f64> {
    let begin = Instant::now();
    let status = Command::new("sh").args(["-c", words]).env("D", folder).status().context("start sh")?;
    ensure!(status.success(), "{words}: {status}");
    Ok(begin.elapsed().as_secs_f64())
}

/// Measures, in so many rounds; gives the table.
///
/// # Errors
/// A workload fails.
pub fn table(quick: bool) -> Result<String> {
    let rounds = if quick { 3 } else { 9 };
    std::fs::create_dir_all(target_dir().join("bench"))?;
    let mut text = String::from("\n| workload |");
    for (_, name) in MANNERS {
        text += &format!(" {name} |");
    }
    text += "\n|---|---|---|---|---|\n";
    for (name, prepare, measured) in WORKLOADS {
        let scratch = tempfile::tempdir_in(target_dir().join("bench"))?;
        shell(prepare, scratch.path())?;
        // Files are in the page cache, and the tools too.
        shell(measured, scratch.path())?;
        let mut ratios: Vec<Result<Vec<f64>, String>> = vec![Ok(Vec::new()); MANNERS.len()];
        for round in 0..rounds {
            let mut native = 0.0;
            for (at, (manner, _)) in MANNERS.into_iter().enumerate() {
                let Ok(values) = &mut ratios[at] else { continue };
                match manner.start() {
                    Err(reason) => ratios[at] = Err(reason),
                    Ok(tracer) => {
                        let seconds = shell(measured, scratch.path());
                        stop(tracer)?;
                        let seconds = seconds?;
                        if manner == Manner::Off {
                            native = seconds;
                            values.push(seconds);
                        } else {
                            values.push(seconds / native);
                        }
                        eprintln!("  {name}, round {}: {manner:?} {seconds:.2} s", round + 1);
                    }
                }
            }
        }
        text += &format!("| {name} |");
        for (at, values) in ratios.iter().enumerate() {
            text += &match values {
                Err(reason) => format!(" {} |", reason.replace('|', "/")),
                Ok(values) => match spread(values) {
                    None => " - |".to_owned(),
                    Some((median, ..)) if at == 0 => format!(" {median:.2} s |"),
                    Some((median, least, greatest)) => format!(" **{median:.2}** ({least:.2} to {greatest:.2}) |"),
                },
            };
        }
        text += "\n";
    }
    text += &format!(
        "\nWall time: seconds without tracing, and ratios to them within {rounds} rounds, median (least to greatest). All kinds of \
         memory are traced.\n"
    );
    Ok(text)
}
