//! Are the recorded stacks right? Every Nth allocation of a workload is unwound by the C library's `backtrace()` as
//! well, in the same process (`fixtures/bench/full_unwind.c`, preloaded behind leakscope's library), and must be the
//! stack of a recorded site, frame by frame down to `_start`.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use leakscope_e2e::{Ending, Run, fixtures_dir, leakscope_bin, target_dir};
use leakscope_findings::{ProcessRecording, decode};

use super::redis::{Manner, Server};
use super::workloads;

/// Workloads, and which of their allocations are unwound. Those of bzip2 and xz are few.
const SAMPLED: [(&str, u32); 7] =
    [("alloc1", 997), ("churn4", 997), ("sqlite3", 97), ("cc1plus", 97), ("bzip2", 1), ("xz", 1), ("redis", 97)];
/// Requests of each kind to redis-server.
const REDIS_REQUESTS: u32 = 50_000;

/// How the stacks of one workload compare.
pub struct Compared {
    /// The workload.
    pub name: String,
    /// Allocations that were unwound.
    pub samples: usize,
    /// Those whose stack was recorded.
    pub equal: usize,
    /// Distinct stacks among them.
    pub distinct: usize,
    /// The first that was not recorded.
    pub difference: Option<String>,
}

impl Compared {
    /// A row of the table.
    pub fn row(&self) -> String {
        let share = 100.0 * self.equal as f64 / self.samples.max(1) as f64;
        format!("| {} | {} | {} | {} | {share:.3} % |", self.name, self.samples, self.distinct, self.equal)
    }
}

/// Compares all workloads that can be run; a reason stands for each other one.
///
/// # Errors
/// The library cannot be built.
pub fn compare_all() -> Result<Vec<Result<Compared, String>>> {
    let library = build()?;
    let one = |&(name, every): &(&str, u32)| {
        let compared = compare(&library, name, every).map_err(|error| format!("{name}: {error:#}"));
        match &compared {
            Ok(compared) => {
                eprintln!("  {}", compared.row());
                if let Some(difference) = &compared.difference {
                    eprintln!("  the first that differs: {difference}");
                }
            }
            Err(reason) => eprintln!("  {reason}"),
        }
        compared
    };
    Ok(SAMPLED.iter().map(one).collect())
}

fn build() -> Result<PathBuf> {
    let dir = target_dir().join("bench");
    std::fs::create_dir_all(&dir)?;
    let (source, library) = (fixtures_dir().join("bench/full_unwind.c"), dir.join("full_unwind.so"));
    let run = Run::new("gcc").args(["-O2", "-g", "-fPIC", "-shared", "-o"]).arg(&library).arg(source);
    let finished = run.finish()?;
    if finished.ending != Ending::Exit(0) {
        bail!("{}\n{}", run.shown(), finished.stderr);
    }
    Ok(library)
}

fn compare(library: &Path, name: &str, every: u32) -> Result<Compared> {
    let scratch = tempfile::tempdir()?;
    let (recording, unwound) = (scratch.path().join("run.leak"), scratch.path().join("unwound"));
    let traced = |program: &Path| {
        Run::new(leakscope_bin())
            .args(["run", "-q", "--show-leak-kinds=none", "-o"])
            .arg(&recording)
            .arg("--")
            .arg(program)
            .env("LD_PRELOAD", library)
            .env("FULL_UNWIND_PROGRAM", program.file_name().unwrap_or_default())
            .env("FULL_UNWIND_FILE", &unwound)
            .env("FULL_UNWIND_EVERY", every.to_string())
            .limit(std::time::Duration::from_secs(120))
    };
    let program = if name == "redis" {
        let program = workloads::installed("redis-server")?;
        let server = Server::spawn(traced(&program), scratch.path())?;
        server.load(Manner::Pipelined, REDIS_REQUESTS)?;
        server.stop(std::time::Duration::from_secs(60))?;
        program
    } else {
        let workload = workloads::prepare(name)?;
        let finished = workload.with(traced(workload.program()), scratch.path()).finish()?;
        if finished.ending != Ending::Exit(0) {
            bail!("{:?}: {}", finished.ending, finished.stderr.lines().last().unwrap_or_default());
        }
        workload.program().to_path_buf()
    };
    let bytes = std::fs::read(&recording).context("the recording")?;
    let (recorded, problems) = decode(&bytes)?;
    if let Some(problem) = problems.first() {
        bail!("the recording: {problem}");
    }
    // The kernel names the file that a link leads to.
    let program = program.canonicalize()?;
    let file_name = program.file_name();
    let is_program = |process: &&ProcessRecording| Path::new(&process.process.executable).file_name() == file_name;
    let process = recorded.processes.iter().find(is_program);
    let process = process.with_context(|| format!("no process of {} was recorded", program.display()))?;
    let text = std::fs::read_to_string(&unwound).context("no allocation was unwound")?;
    held_against(name, process, &text)
}

/// `text` has a line of return addresses for each sample.
fn held_against(name: &str, process: &ProcessRecording, text: &str) -> Result<Compared> {
    let known: HashSet<Vec<u64>> = (1..process.sites.len() as u32)
        .map(|site| process.stack(site).map(|location| process.locations[location as usize].pc).collect())
        .collect();
    let mut compared = Compared { name: name.to_owned(), samples: 0, equal: 0, distinct: 0, difference: None };
    let mut distinct = BTreeSet::new();
    for line in text.lines() {
        let addresses: Vec<u64> = line
            .split(' ')
            .map(|word| u64::from_str_radix(word, 16))
            .collect::<Result<_, _>>()
            .context("an address")?;
        let Some(mut stack) = callers(process, &addresses) else { continue };
        // A recording has the byte before the return address, which is inside of the call.
        stack.iter_mut().for_each(|address| *address -= 1);
        stack.truncate(process.process.max_frames as usize);
        compared.samples += 1;
        if known.contains(&stack) {
            compared.equal += 1;
        } else {
            compared.difference.get_or_insert_with(|| line.to_owned());
        }
        distinct.insert(stack);
    }
    compared.distinct = distinct.len();
    Ok(compared)
}

/// The stack of an allocation of the program's; `None` for one that leakscope's library makes in its own work, such as
/// loading what it needs for the leak check, which it does not record. The stack comes without the innermost frames that are the work of the two libraries: the unwinder's own, leakscope's
/// hooks, and what they call of the C++ library to get there (`operator new` calls `malloc`).
fn callers(process: &ProcessRecording, addresses: &[u64]) -> Option<Vec<u64>> {
    let module = |address: u64| {
        let module = process.modules.iter().find(|module| (module.start..module.end).contains(&address));
        module.map_or("", |module| module.path.rsplit('/').next().unwrap_or_default())
    };
    let is_ours = |&address: &u64| {
        let name = module(address);
        name == "full_unwind.so" || name == "libleakscope_preload.so"
    };
    let mut start = 0;
    loop {
        start += addresses[start..].iter().take_while(|address| is_ours(address)).count();
        let rest = &addresses[start..];
        let inner = rest.iter().take_while(|&&address| module(address).starts_with("libstdc++")).count();
        if inner == 0 || !rest.get(inner).is_some_and(is_ours) {
            return (!rest.iter().any(is_ours)).then(|| rest.to_vec());
        }
        start += inner;
    }
}

#[cfg(test)]
mod tests {
    use leakscope_findings::recording::{Location, Module, Node, Site};

    use super::*;

    #[test]
    fn samples_are_held_against_recorded_stacks() {
        let module =
            |path: &str, start: u64| Module { path: path.into(), start, end: start + 0x1000, ..Module::default() };
        let location = |pc| Location { pc, ..Location::default() };
        let mut process = ProcessRecording {
            modules: vec![
                module("/x/app", 0x1000),
                module("/x/full_unwind.so", 0x2000),
                module("/x/libleakscope_preload.so", 0x3000),
                module("/x/libstdc++.so.6", 0x4000),
            ],
            locations: vec![location(0), location(0x10ff), location(0x11ff)],
            nodes: vec![Node::default(), Node { location: 2, parent: 0 }, Node { location: 1, parent: 1 }],
            sites: vec![Site::default(), Site { leaf: 2, ..Site::default() }],
            ..ProcessRecording::default()
        };
        process.process.max_frames = 2;
        let text = "2001 3001 1100 1200\n\
                    2001 3001 4001 3002 1100 1200\n\
                    2001 3001 1100 1200 1300\n\
                    2001 3001 1100\n\
                    2001 3001 1101 1200\n\
                    2001 3001 4001 1100 1200\n\
                    2001 3001 4001 4002 3003 1100 1200\n\
                    2001 3001 1100 3003 1200\n";
        let compared = held_against("x", &process, text).unwrap();
        // Equal; through `operator new`; cut at the limit of frames; `operator new`
        // again. Not: too short, another call, called by libstdc++. Left out: made by leakscope's library.
        assert_eq!((compared.samples, compared.equal, compared.distinct), (7, 4, 4));
        assert_eq!(compared.difference.as_deref(), Some("2001 3001 1100"));
        assert!(held_against("x", &process, "zz").is_err());
    }
}
