//! redis-server's own processor time under redis-benchmark, on the loopback interface only.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use leakscope_e2e::Run;
use rustix::process::{Pid, Signal, kill_process_group};

use super::pairs::{Cost, Rounds, Series, Share, rounds};
use super::tools::Tool;
use super::workloads::installed;

/// How redis-benchmark asks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As it does by itself: each client waits for its answer before it asks again, so much of the time is the kernel's.
    Plain,
    /// Eight requests at a time, on many keys: the server allocates most of the time.
    Pipelined,
}

impl Manner {
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &[],
            Self::Pipelined => &["-c", "20", "-r", "10000", "-d", "64", "-P", "8"],
        }
    }
}

const START_LIMIT: Duration = Duration::from_secs(60);

/// A server that is running under a tool; killed with its group if it is dropped before it was stopped.
pub struct Server {
    child: Child,
    port: u16,
    stopped: bool,
}

impl Server {
    /// Starts it under a tool and waits until it takes connections.
    ///
    /// # Errors
    /// It ends, or it does not listen within a minute.
    pub fn start(tool: Tool, scratch: &Path) -> Result<Server> {
        Server::spawn(tool.start(&installed("redis-server")?, scratch), scratch)
    }

    /// Starts it with this beginning of its command line.
    ///
    /// # Errors
    /// It ends, or it does not listen within a minute.
    pub fn spawn(beginning: Run, scratch: &Path) -> Result<Server> {
        let port = free_port()?;
        let run = beginning.dir(scratch).args(["--port", &port.to_string()]).args(SERVER_OPTIONS);
        let log = std::fs::File::create(scratch.join("server.out"))?;
        let child = run.command()?.stdout(log.try_clone()?).stderr(log).process_group(0).spawn()?;
        let mut server = Server { child, port, stopped: false };
        let begin = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if let Some(status) = server.child.try_wait()? {
                let said = std::fs::read_to_string(scratch.join("server.out")).unwrap_or_default();
                bail!("redis-server ended with {status}: {}", said.lines().last().unwrap_or_default());
            }
            if begin.elapsed() > START_LIMIT {
                bail!("redis-server does not listen after {} s", START_LIMIT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// The client's load: a fixed number of requests of four kinds.
    ///
    /// # Errors
    /// The client fails.
    pub fn load(&self, manner: Manner, requests: u32) -> Result<()> {
        let port = self.port.to_string();
        let status = Command::new("redis-benchmark")
            .args(["-h", "127.0.0.1", "-p", &port, "-q"])
            .args(manner.options())
            .args(["-t", "set,get,lpush,hset", "-n", &requests.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .context("start redis-benchmark")?;
        if !status.success() {
            bail!("redis-benchmark ended with {status}");
        }
        Ok(())
    }

    fn ask(&self, words: &[&str]) -> Result<String> {
        let port = self.port.to_string();
        let output = Command::new("redis-cli").args(["-h", "127.0.0.1", "-p", &port]).args(words).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// User and system seconds of the server's own process so far.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn used(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()?))?;
        // Fields 14 and 15, counted after the name in parentheses, which may hold blanks; ticks of 1/100 s.
        let fields: Vec<&str> = stat.rsplit_once(')').context("stat")?.1.split_whitespace().collect();
        let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    /// The most resident memory that the server's own process has had, in bytes.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn peak_bytes(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
        Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? << 10)
    }

    fn pid(&self) -> Result<u32> {
        let info = self.ask(&["info", "server"])?;
        let pid = info.lines().find_map(|line| line.strip_prefix("process_id:")).context("no process_id")?;
        Ok(pid.trim().parse()?)
    }

    /// Asks it to end and returns its exit code.
    ///
    /// # Errors
    /// It does not end by itself within the limit.
    pub fn stop(mut self, limit: Duration) -> Result<Option<i32>> {
        self.ask(&["shutdown", "nosave"])?;
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.stopped = true;
                return Ok(status.code());
            }
            if begin.elapsed() > limit {
                bail!("redis-server did not end within {} s", limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.stopped {
            if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
                // It may have ended in this moment; then there is nothing to kill.
                let _ = kill_process_group(group, Signal::KILL);
            }
            let _ = self.child.wait();
        }
    }
}

const SERVER_OPTIONS: &[&str] =
    &["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no", "--io-threads", "1"];

/// A port of the loopback interface that nothing listens on.
///
/// # Errors
/// There is none.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// One run for each tool and round; the ratio is of the server's processor time.
///
/// # Errors
/// The native server fails.
pub fn measure(
    tools: &[Tool],
    count: Rounds,
    share: Share,
    manner: Manner,
    requests: u32,
) -> Result<BTreeMap<Tool, Series>> {
    let mut all = rounds(tools, count, share, |tool, limit| {
        once(tool, manner, requests, limit).map_err(|error| format!("{error:#}"))
    })?;
    // Of the wall time the client, which is not measured, has the greater part.
    all.values_mut().for_each(|series| series.wall.clear());
    Ok(all)
}

fn once(tool: Tool, manner: Manner, requests: u32, limit: Duration) -> Result<Cost> {
    let scratch = tempfile::tempdir()?;
    let begin = Instant::now();
    let server = Server::start(tool, scratch.path())?;
    server.load(manner, requests)?;
    let cpu = server.used()?;
    let wall = begin.elapsed().as_secs_f64();
    server.stop(limit)?;
    Ok(Cost { wall, cpu })
}
