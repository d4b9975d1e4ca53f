//! `bench asan`: our run-time library beside gcc's and clang's own, under the same programs: each was built once, by gcc
//! with `-fsanitize=address`, and finds one of the three libraries by `LD_LIBRARY_PATH`.
//!
//! In every round each library runs once, one after the other; ratios are taken within the round.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use leakscope_e2e::{Ending, Run, fixtures_dir, target_dir};

use super::pairs::spread;
use super::redis::{Manner, Server};
use super::workloads;
use crate::step::{first_line, step};

const SONAMES: [&str; 2] = ["libclang_rt.asan-x86_64.so", "libasan.so.8"];
const LIMIT: Duration = Duration::from_secs(300);
const INPUT_BYTES: usize = 6 << 20;
const SQL_ROWS: usize = 60_000;
const REDIS_REQUESTS: u32 = 60_000;
/// Built by gcc, as Debian's packages are, with frame pointers: the others walk along them.
const FLAGS: [&str; 6] = ["-O2", "-g", "-w", "-fsanitize=address", "-fno-omit-frame-pointer", "-pthread"];

struct Program {
    name: &'static str,
    what: &'static str,
    target: &'static str,
    words: Vec<String>,
    load: Load,
}

/// What a program works on.
enum Load {
    /// What its words say.
    Words,
    /// A file as its standard input.
    Input(PathBuf),
    /// redis-benchmark, eight requests at a time: it is a server.
    Redis,
}

struct Cost {
    cpu: f64,
    peak: f64,
}

/// Measures every program in so many rounds; gives the table.
///
/// # Errors
/// A library or a source is not installed, or a program fails.
pub fn table(quick: bool) -> Result<String> {
    let rounds = if quick { 5 } else { 11 };
    let dir = target_dir().join("bench/asan");
    std::fs::create_dir_all(&dir)?;
    let libraries = libraries(&dir)?;
    let mut text =
        "| program | to reach | gcc's library | clang's library | leakscope's | leakscope's to the better of both |\n\
                    |---|---|---|---|---|---|\n"
            .to_owned();
    for program in programs(&dir)? {
        text += &row(&program, &libraries, rounds)?;
        eprintln!("{}", text.lines().last().unwrap_or_default());
    }
    text += &format!(
        "\nCells: median seconds of user and system time, and the peak of resident memory, {rounds} rounds. The last column: the \
         median ratio of time to the library that is quicker on the median, within each round (least to greatest), and the \
         ratio of peaks to the lesser of the two. All programs are built by gcc with `{}`; gcc's library does not look for \
         uses after return unless it is asked to, clang's and leakscope's do. Options are left as they are, but for \
         `detect_leaks=0`.\n\n\
         | library | version |\n|---|---|\n| gcc's | {} |\n| clang's | {} |\n",
        FLAGS.join(" "),
        first_line(&["gcc", "--version"]),
        first_line(&["clang-19", "--version"]),
    );
    Ok(text)
}

/// A folder for each library, in which it has all names: gcc's, clang's, ours.
fn libraries(dir: &Path) -> Result<[PathBuf; 3]> {
    step(&["cargo", "build", "--profile", "injected", "-p", "leakscope-asan"])?;
    let files = [
        PathBuf::from(first_line(&["gcc", "-print-file-name=libasan.so"])),
        PathBuf::from(first_line(&["clang-19", &format!("-print-file-name={}", SONAMES[0])])),
        target_dir().join("injected/libleakscope_asan.so"),
    ];
    let mut folders = [dir.join("gcc"), dir.join("clang"), dir.join("leakscope")];
    for (folder, file) in folders.iter_mut().zip(files) {
        let file = file.canonicalize().with_context(|| format!("{}; next: cargo xtask setup", file.display()))?;
        std::fs::create_dir_all(&folder)?;
        for name in SONAMES {
            let link = folder.join(name);
            let _ = std::fs::remove_file(&link);
            symlink(&file, &link).with_context(|| format!("make {}", link.display()))?;
        }
    }
    Ok(folders)
}

fn build(compiler: &str, more: &[&str], sources: &[PathBuf], out: &Path) -> Result<String> {
    let run = Run::new(compiler).args(FLAGS).args(more).arg("-o").arg(out).args(sources).args(["-lm", "-ldl"]);
    let run = run.limit(Duration::from_secs(900));
    let finished = run.finish()?;
    if finished.ending != Ending::Exit(0) {
        bail!("{}\n{}", run.shown(), finished.stderr);
    }
    Ok(out.to_string_lossy().into_owned())
}

fn programs(dir: &Path) -> Result<Vec<Program>> {
    let source = |name: &str| fixtures_dir().join("bench").join(name);
    let heap = build("g++", &[], &[source("asan_heap.cpp")], &dir.join("asan_heap"))?;
    let churn = build("g++", &[], &[source("churn4.cpp")], &dir.join("churn4"))?;
    let sites = build("g++", &[], &[source("alloc1.cpp")], &dir.join("alloc1"))?;
    let mut list = vec![
        Program {
            name: "trees, maps, blocks",
            what: "C++, one thread",
            target: "0.9",
            words: vec![heap.clone(), "1".into(), "200000".into()],
            load: Load::Words,
        },
        Program {
            name: "trees, maps, blocks",
            what: "C++, four threads",
            target: "0.9",
            words: vec![heap, "4".into(), "70000".into()],
            load: Load::Words,
        },
        Program {
            name: "churn4",
            what: "maps of strings, four threads",
            target: "0.9",
            words: vec![churn, "150000".into()],
            load: Load::Words,
        },
        Program {
            name: "alloc1",
            what: "2 M blocks, 256 stacks of 8 frames",
            target: "0.9",
            words: vec![sites, "2000000".into()],
            load: Load::Words,
        },
    ];
    let amalgamation = sqlite_source()?;
    let include = format!("-I{}", amalgamation.parent().unwrap_or(Path::new("/")).display());
    let sqlite = dir.join("sqlite");
    let words = ["-DSQLITE_THREADSAFE=0", &include];
    let sqlite = build("gcc", &words, &[source("asan_sqlite.c"), amalgamation], &sqlite)?;
    list.push(Program {
        name: "sqlite3",
        what: "an in-memory database, built with the checks",
        target: "1.0",
        words: vec![sqlite, "2".into()],
        load: Load::Input(workloads::write(dir, "script.sql", &workloads::sql_script_of(SQL_ROWS / 2))?),
    });
    let text = workloads::write(dir, "text", &workloads::text_input(INPUT_BYTES))?.to_string_lossy().into_owned();
    if let Some(xz) = xz(dir)? {
        let words = [&xz, "-3", "-T1", "-k", "-c", &text].map(str::to_owned).to_vec();
        list.push(Program { name: "xz", what: "6 MiB of text, -3", target: "1.0", words, load: Load::Words });
    }
    if let Some(redis) = redis(dir)? {
        list.push(Program {
            name: "redis",
            what: "60,000 requests of 4 kinds by redis-benchmark, 8 at a time",
            target: "1.0",
            words: vec![redis],
            load: Load::Redis,
        });
    }
    Ok(list)
}

/// The one-file source that cargo has fetched for the crate that holds it.
fn sqlite_source() -> Result<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cargo"), PathBuf::from);
    let found = std::fs::read_dir(home.join("registry/src"))?
        .flatten()
        .filter_map(|index| std::fs::read_dir(index.path()).ok())
        .flat_map(Iterator::flatten)
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libsqlite3-sys-")))
        .map(|path| path.join("sqlite3/sqlite3.c"))
        .find(|path| path.is_file());
    found.context("sqlite3.c of the crate libsqlite3-sys is not in cargo's registry; next: cargo fetch")
}

fn xz(dir: &Path) -> Result<Option<String>> {
    let make = "./configure -q --disable-shared --disable-nls --disable-doc --disable-scripts; make -s";
    from_source(dir, "xz", "xz-utils", make, "src/xz/xz")
}

fn redis(dir: &Path) -> Result<Option<String>> {
    let make = "make -s -C src redis-server MALLOC=libc USE_SYSTEMD=no LDFLAGS=-fsanitize=address";
    from_source(dir, "redis-server", "redis", make, "src/redis-server")
}

/// A program from Debian's source of a package; `None` where the machine has no source packages.
fn from_source(dir: &Path, name: &str, package: &str, make: &str, built: &str) -> Result<Option<String>> {
    let program = dir.join(name);
    if !program.exists() {
        let script = format!(
            "set -e; cd '{}'; apt-get -qq source --download-only {package}; mkdir -p {package}-source; \
             tar xf {package}_*.orig.tar.[gx]z -C {package}-source --strip-components=1; cd {package}-source; \
             export CFLAGS='{}' ASAN_OPTIONS=detect_leaks=0; {make}; cp {built} ../{name}",
            dir.display(),
            FLAGS.join(" ")
        );
        let finished = Run::new("sh").args(["-c", &script]).limit(Duration::from_secs(900)).finish()?;
        if finished.ending != Ending::Exit(0) {
            eprintln!("  {name} is left out: {}", finished.stderr.lines().last().unwrap_or_default());
            return Ok(None);
        }
    }
    Ok(Some(program.to_string_lossy().into_owned()))
}

fn row(program: &Program, libraries: &[PathBuf; 3], rounds: usize) -> Result<String> {
    let mut all: [Vec<Cost>; 3] = Default::default();
    for _ in 0..rounds {
        for (costs, folder) in all.iter_mut().zip(libraries) {
            costs.push(once(program, folder)?);
        }
    }
    let median = |values: &[f64]| spread(values).unwrap_or_default().0;
    let cpu = all.each_ref().map(|costs| median(&costs.iter().map(|cost| cost.cpu).collect::<Vec<f64>>()));
    let peak = all.each_ref().map(|costs| costs.iter().map(|cost| cost.peak).fold(0.0, f64::max));
    let [gcc, clang, ours] = &all;
    let better = if cpu[0] <= cpu[1] { gcc } else { clang };
    let ratios: Vec<f64> = ours.iter().zip(better).map(|(ours, other)| ours.cpu / other.cpu.max(0.001)).collect();
    let (ratio, least, greatest) = spread(&ratios).unwrap_or_default();
    let cell = |at: usize| format!("{:.2} s, {:.0} MB", cpu[at], peak[at]);
    Ok(format!(
        "| {}: {} | {} | {} | {} | {} | **{ratio:.2}** ({least:.2} to {greatest:.2}), memory {:.2} |\n",
        program.name,
        program.what,
        program.target,
        cell(0),
        cell(1),
        cell(2),
        peak[2] / peak[0].min(peak[1])
    ))
}

fn once(program: &Program, folder: &Path) -> Result<Cost> {
    let mut words = program.words.iter();
    let run = Run::new(words.next().map_or("", String::as_str)).args(words).limit(LIMIT);
    // clang's library takes redis's two tables `digits`, which gcc tells apart by their file, for one variable.
    let options =
        if matches!(program.load, Load::Redis) { "detect_leaks=0:detect_odr_violation=0" } else { "detect_leaks=0" };
    let run = run.env("LD_LIBRARY_PATH", folder).env("ASAN_OPTIONS", options);
    let run = match &program.load {
        Load::Words => run,
        Load::Input(path) => run.stdin(path),
        Load::Redis => return once_redis(run),
    };
    let finished = run.finish()?;
    if finished.ending != Ending::Exit(0) {
        bail!("{}: {:?}: {}", run.shown(), finished.ending, finished.stderr.lines().last().unwrap_or_default());
    }
    Ok(Cost { cpu: finished.cpu.as_secs_f64(), peak: finished.max_rss_bytes as f64 / 1e6 })
}

/// The server's own processor time and peak, from its start to the last answer.
fn once_redis(beginning: Run) -> Result<Cost> {
    let scratch = tempfile::tempdir()?;
    let server = Server::spawn(beginning, scratch.path())?;
    server.load(Manner::Pipelined, REDIS_REQUESTS)?;
    let (cpu, peak) = (server.used()?, server.peak_bytes()? as f64 / 1e6);
    match server.stop(LIMIT)? {
        Some(0) => Ok(Cost { cpu, peak }),
        code => bail!("redis-server ended with {code:?}"),
    }
}
