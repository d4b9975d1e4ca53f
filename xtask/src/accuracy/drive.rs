//! Runs one program natively, under leakscope or under Memcheck, and gathers what it printed and what was reported.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use leakscope_e2e::{Ending, Report, Run, leakscope_bin, parse_report};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::programs::{Drive, Subject, make_web_root};
use crate::bench::redis::{Manner, Server, free_port};
use crate::bench::workloads::installed;

/// What watches the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checker {
    /// Nothing.
    Native,
    /// `leakscope run`.
    Leakscope,
    /// `valgrind --tool=memcheck`.
    Memcheck,
}

/// One run.
#[derive(Debug)]
pub struct Observed {
    /// How it ended.
    pub ending: Ending,
    /// What it printed, or what its client received.
    pub stdout: Vec<u8>,
    /// What was reported of its first process; none natively.
    pub report: Option<Report>,
    /// Why there is no report although there should be.
    pub trouble: Option<String>,
}

const CHECK: &[&str] = &["--leak-check=full", "--show-leak-kinds=all", "--num-callers=40", "--xml=yes"];
const LIMIT: Duration = Duration::from_secs(180);

impl Checker {
    fn start(self, program: &Path, xml: &Path) -> Run {
        let file = format!("--xml-file={}", xml.display());
        let run = match self {
            Checker::Native => Run::new(program),
            Checker::Leakscope => Run::new(leakscope_bin()).arg("run").args(CHECK).arg(file).arg(program),
            Checker::Memcheck => {
                Run::new("valgrind").args(["--command-line-only=yes", "-q"]).args(CHECK).arg(file).arg(program)
            }
        };
        // Hash tables whose order depends on chance would change the output from run to run.
        run.env("PYTHONHASHSEED", "0").env("PERL_HASH_SEED", "0").env("HOME", "/nonexistent").limit(LIMIT)
    }
}

/// Runs a program in the folder of inputs.
///
/// # Errors
/// It cannot be started, or a server that it needs cannot.
pub fn observe(subject: &Subject, checker: Checker, inputs: &Path) -> Result<Observed> {
    let scratch = tempfile::tempdir()?;
    let xml = scratch.path().join("report.%p");
    let first = &subject.argv[0];
    let program = if first.starts_with('/') { first.into() } else { installed(first)? };
    let start = checker.start(&program, &xml).dir(inputs);
    let (ending, stdout, said) = match subject.drive {
        Drive::Alone { stdin } => {
            let run = start.args(&subject.argv[1..]);
            let run = stdin.map(|file| inputs.join(file)).iter().fold(run, |run, file| run.stdin(file));
            let finished = run.finish()?;
            (finished.ending, finished.stdout, finished.stderr)
        }
        Drive::WebClient => {
            let server = WebServer::start(inputs)?;
            let url = format!("http://127.0.0.1:{}/index.html", server.port);
            let finished = start.args(&subject.argv[1..]).arg(&url).arg(&url).finish()?;
            (finished.ending, finished.stdout, finished.stderr)
        }
        Drive::Redis => {
            let server = Server::spawn(start, scratch.path())?;
            server.load(Manner::Pipelined, 2000)?;
            let code = server.stop(LIMIT)?;
            (Ending::Exit(code.unwrap_or(-1)), Vec::new(), String::new())
        }
        Drive::Nginx => {
            let (code, pages) = nginx(&start, inputs, scratch.path())?;
            (Ending::Exit(code), pages, String::new())
        }
    };
    let (report, trouble) = match checker {
        Checker::Native => (None, None),
        _ => match first_report(scratch.path()) {
            Ok(report) => (Some(report), None),
            Err(error) => (None, Some(format!("{error:#}; {}", said.lines().last().unwrap_or_default()))),
        },
    };
    Ok(Observed { ending, stdout, report, trouble })
}

/// The report of the process that was started first; children of fork write their own beside it.
fn first_report(dir: &Path) -> Result<Report> {
    let mut reports = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(pid) = name.strip_prefix("report.").and_then(|pid| pid.parse::<u32>().ok()) {
            reports.push((pid, path));
        }
    }
    let (_, path) = reports.into_iter().min().context("no report was written")?;
    parse_report(&std::fs::read_to_string(path)?)
}

/// python3's own web server, run natively; ended when dropped.
struct WebServer {
    child: Child,
    port: u16,
}

impl WebServer {
    fn start(inputs: &Path) -> Result<WebServer> {
        let port = free_port()?;
        let root = make_web_root(inputs)?;
        let child = Command::new("python3")
            .args(["-m", "http.server", "--bind", "127.0.0.1", &port.to_string()])
            .current_dir(root)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("start python3 -m http.server")?;
        let server = WebServer { child, port };
        wait_for(port)?;
        Ok(server)
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        end_group(&mut self.child);
    }
}

fn end_group(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It may have ended in this moment; then there is nothing to kill.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

fn wait_for(port: u16) -> Result<()> {
    let begin = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        if begin.elapsed() > Duration::from_secs(60) {
            bail!("nothing listens on port {port} after 60 s");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Sends SIGQUIT until the server has ended: it looks at the signal's mark before it waits for events, so one that comes
/// between the two is seen at the next event only.
fn quit(child: &mut Child, scratch: &Path) -> Result<i32> {
    let pid: i32 = std::fs::read_to_string(scratch.join("pid"))?.trim().parse()?;
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.code().unwrap_or(-1));
        }
        if begin.elapsed() > LIMIT {
            bail!("nginx did not end within {} s of SIGQUIT", LIMIT.as_secs());
        }
        // It may have ended in this moment, with its report still to come.
        let _ = kill_process(Pid::from_raw(pid).context("pid")?, Signal::QUIT);
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// One process in the foreground, three requests, then the signal that lets it finish.
fn nginx(start: &Run, inputs: &Path, scratch: &Path) -> Result<(i32, Vec<u8>)> {
    let port = free_port()?;
    let root = make_web_root(inputs)?;
    let dir = scratch.display();
    let config = format!(
        "daemon off;\nmaster_process off;\npid {dir}/pid;\nerror_log {dir}/error.log;\nevents {{ worker_connections 64; }}\n\
         http {{ access_log off; client_body_temp_path {dir}/a; proxy_temp_path {dir}/b; fastcgi_temp_path {dir}/c; \
         uwsgi_temp_path {dir}/d; scgi_temp_path {dir}/e;\n  \
         server {{ listen 127.0.0.1:{port}; root {}; location /gone {{ return 410; }} }} }}\n",
        root.display()
    );
    let file = scratch.join("nginx.conf");
    std::fs::write(&file, config)?;
    let log = std::fs::File::create(scratch.join("nginx.out"))?;
    let run = start.clone().arg("-c").arg(&file);
    let mut child = run.command()?.stdout(log.try_clone()?).stderr(log).process_group(0).spawn()?;
    let outcome = (|| {
        wait_for(port)?;
        let mut pages = Vec::new();
        for path in ["/index.html", "/missing", "/gone"] {
            pages.extend(fetch(port, path)?);
        }
        Ok((quit(&mut child, scratch)?, pages))
    })();
    match outcome {
        Ok((code, pages)) => Ok((code, pages)),
        Err(error) => {
            end_group(&mut child);
            Err(error)
        }
    }
}

/// The body of an answer; its head has a date in it.
fn fetch(port: u16, path: &str) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").context("an answer has a head")?;
    Ok(answer.split_off(head + 4))
}
