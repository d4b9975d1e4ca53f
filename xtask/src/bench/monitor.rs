//! `bench monitor`: what the verdicts of `leakscope monitor` are worth, on series whose truth is known; and what the daemon
//! costs, in two manners of watching, beside process-exporter in the same minute, with 300 processes that all of them watch.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use leakscope_e2e::{leakscope_bin, repo_root};
use leakscope_trend::trial;

/// Series of each kind.
const SEEDS: u64 = 5;
const QUICK_SEEDS: u64 = 2;
const BEGIN: &str = "<!-- bench monitor -->\n";
const END: &str = "<!-- end -->\n";
const COST_BEGIN: &str = "<!-- bench monitor cost -->\n";
/// Programs that are watched.
const PROGRAMS: usize = 300;
/// As often as the daemon samples, and the exporter is scraped.
const INTERVAL: Duration = Duration::from_secs(10);
/// Passes in which the first ones of both are over.
const WARM_UP: Duration = Duration::from_secs(15);
const QUICK_SPAN: Duration = Duration::from_secs(60);
const SPAN: Duration = Duration::from_secs(180);
/// Clock ticks a second, in `/proc`: a constant of Linux's interface.
const TICKS: f64 = 100.0;
const EXPORTER: &str = "prometheus-process-exporter";

/// Runs all series and measures the daemon; writes both into docs/monitor.md when `write` is set.
///
/// # Errors
/// A program cannot be started; the document cannot be written, or has no place for the tables.
pub fn table(quick: bool, write: bool) -> Result<String> {
    let cost = cost(if quick { QUICK_SPAN } else { SPAN })?;
    let verdicts = trial::table(if quick { QUICK_SEEDS } else { SEEDS }, "");
    if write {
        let path = repo_root().join("docs/monitor.md");
        let text = fs::read_to_string(&path)?;
        // A quick run has fewer series than the table that stands there.
        let text = if quick { text } else { with_table(&text, BEGIN, &verdicts)? };
        fs::write(&path, with_table(&text, COST_BEGIN, &cost)?)?;
    }
    Ok(format!("{verdicts}\n{cost}"))
}

fn with_table(text: &str, begin: &str, table: &str) -> Result<String> {
    let (before, rest) = text.split_once(begin).context("docs/monitor.md has no place for the table")?;
    let (_, after) = rest.split_once(END).context("docs/monitor.md has no end of the table")?;
    Ok(format!("{before}{begin}{table}{END}{after}"))
}

/// Programs that end with us.
struct Started(Vec<Child>);

impl Drop for Started {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What a process has used.
struct Used {
    seconds: f64,
    resident_bytes: u64,
}

fn used(pid: u32) -> Result<Used> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("look at a process that is measured")?;
    let (_, rest) = stat.rsplit_once(')').context("/proc/PID/stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    // utime and stime are fields 14 and 15 of the manual; the third is the first here.
    let number = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    let kilobytes: u64 = resident.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(0);
    Ok(Used { seconds: (number(14) + number(15)) as f64 / TICKS, resident_bytes: kilobytes * 1024 })
}

/// What the daemon and the exporter take over `span`.
fn cost(span: Duration) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let mut programs = Started(Vec::new());
    for number in 0..PROGRAMS {
        // The kernel names a process after the file that it was started by.
        let link = folder.path().join(format!("bench-{number}"));
        std::os::unix::fs::symlink("/bin/sleep", &link)?;
        programs.0.push(Command::new(&link).arg("3600").stdout(Stdio::null()).spawn().context("start sleep")?);
    }
    let names: Vec<String> = (0..PROGRAMS).map(|number| format!("[[watch]]\nname = \"bench-{number}\"\n")).collect();
    let mut measured = Vec::new();
    let mut started = Started(Vec::new());
    for (what, watch) in [
        ("leakscope monitor, `top`, page scraped by Prometheus", "[[watch]]\ntop = 1000\n".to_owned()),
        ("the same, each program watched by its name, with its parts", names.concat()),
    ] {
        let port = free_port()?;
        let daemon = daemon(&folder.path().join(port.to_string()), &watch, port)?;
        measured.push((what, daemon.id(), port));
        started.0.push(daemon);
    }
    let exported = free_port()?;
    if let Some(exporter) = exporter(folder.path(), exported)? {
        measured.push(("process-exporter", exporter.id(), exported));
        started.0.push(exporter);
    }
    let wait = |until: Instant| -> Result<()> {
        while Instant::now() < until {
            std::thread::sleep(INTERVAL.min(until.saturating_duration_since(Instant::now())));
            for (_, _, port) in &measured {
                scrape(*port)?;
            }
        }
        Ok(())
    };
    wait(Instant::now() + WARM_UP)?;
    let before = measured.iter().map(|(_, pid, _)| used(*pid)).collect::<Result<Vec<_>>>()?;
    let begin = Instant::now();
    wait(begin + span)?;
    let took = begin.elapsed().as_secs_f64();
    let cores = std::thread::available_parallelism()?;
    let mut table = format!(
        "`cargo xtask bench monitor`, on {cores} cores:\n\n| {PROGRAMS} programs, every {} s, {took:.0} s | share of a core | resident |\n|---|---|---|\n",
        INTERVAL.as_secs()
    );
    for ((name, pid, _), before) in measured.iter().zip(before) {
        let after = used(*pid)?;
        let share = (after.seconds - before.seconds) / took * 100.0;
        let megabytes = after.resident_bytes as f64 / 1e6;
        table.push_str(&format!("| {name} | {share:.2} % | {megabytes:.0} MB |\n"));
    }
    Ok(table)
}

/// A daemon with a folder of its own.
fn daemon(folder: &Path, watch: &str, port: u16) -> Result<Child> {
    fs::create_dir(folder)?;
    let config = folder.join("monitor.toml");
    let state = folder.join("state");
    fs::write(&config, format!("state = \"{}\"\n{watch}[page]\nlisten = \"127.0.0.1:{port}\"\n", state.display()))?;
    let mut command = Command::new(leakscope_bin());
    command.args(["monitor", "run", "--config"]).arg(&config).stderr(Stdio::null());
    command.spawn().context("start leakscope monitor")
}

fn exporter(folder: &Path, port: u16) -> Result<Option<Child>> {
    let config = folder.join("exporter.yml");
    fs::write(&config, "process_names:\n  - name: \"{{.Comm}}\"\n    cmdline: [\".+\"]\n")?;
    let child = Command::new(EXPORTER)
        .arg(format!("-config.path={}", config.display()))
        .arg(format!("-web.listen-address=127.0.0.1:{port}"))
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    match child {
        Ok(child) => Ok(Some(child)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            eprintln!("left out: {EXPORTER} is not installed");
            Ok(None)
        }
        Err(error) => Err(error).context("start process-exporter"),
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn scrape(port: u16) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("scrape metrics")?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    anyhow::ensure!(
        answer.windows(7).any(|bench| bench == b"bench-7"),
        "port {port}: the programs are not among its metrics"
    );
    Ok(())
}
