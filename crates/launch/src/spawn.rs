//! Starting the target: its environment, its signals, and the service thread beside it.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;

use leakscope_ledger::layout::Config;
use leakscope_ledger::wire;

use crate::environment::{self, Exec};
use crate::service::{Event, Service};
use crate::signals::{Inherited, SignalSource};
use crate::{Error, socket};

/// What to start, and how.
#[derive(Debug)]
pub struct Request {
    /// Path of the program, as [`crate::preflight::check`] found it.
    pub program: PathBuf,
    /// What the program shall find in `argv[0]`.
    pub argv0: OsString,
    /// The other arguments.
    pub arguments: Vec<OsString>,
    /// Path of the injected library.
    pub library: PathBuf,
    /// What the injected code shall do.
    pub config: Config,
}

/// A running target and those of its descendants that are traced.
#[derive(Debug)]
pub struct Session {
    first_pid: u32,
    events: Receiver<Event>,
    service: Option<JoinHandle<()>>,
    inherited: Inherited,
}

/// What the target proves in its Hello.
pub(crate) type Token = [u8; 16];

impl Session {
    /// Starts the program. Call it before any other thread is started: signals are blocked for this thread
    /// and for those that it starts, until the session is dropped.
    ///
    /// # Errors
    /// When the program cannot be started, or the kernel refuses a socket or a thread.
    pub fn start(request: Request) -> Result<Self, Error> {
        let (signals, inherited) = SignalSource::take_over().map_err(Error::system("take over signals"))?;
        let session = Self::start_inner(request, signals, inherited);
        if session.is_err() {
            let _ = inherited.restore();
        }
        session
    }

    fn start_inner(request: Request, signals: SignalSource, inherited: Inherited) -> Result<Self, Error> {
        let (listener, name, token) = listen()?;
        let child = spawn(&request, &name, &token, inherited)?;
        let first_pid = child.id();
        let variable = format!("{}={}", wire::ENV, address(&name, &token)).into_bytes();
        let (sender, events) = mpsc::channel();
        let service = Service::new(listener, variable, token, request.config, child, signals, sender)?;
        let service = std::thread::Builder::new()
            .name("leakscope-serve".into())
            .spawn(move || service.run())
            .map_err(Error::system("start the service thread"))?;
        Ok(Self { first_pid, events, service: Some(service), inherited })
    }

    /// Process id of the program that was started.
    pub fn first_pid(&self) -> u32 {
        self.first_pid
    }

    /// The next event; blocks. `None` when everything has ended.
    pub fn next_event(&self) -> Option<Event> {
        self.events.recv().ok()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The thread ends by itself once all processes have ended; with the receiver still there it is not
        // waited for when the caller gives up early.
        if let Some(service) = self.service.take().filter(JoinHandle::is_finished) {
            let _ = service.join();
        }
        let _ = self.inherited.restore_mask();
    }
}

/// A socket under a random name, and a random token.
pub(crate) fn listen() -> Result<(OwnedFd, String, Token), Error> {
    let mut random = [0u8; 24];
    let filled = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(Error::system("get random bytes"))?;
    if filled != random.len() {
        return Err(Error::System { what: "get random bytes", source: io::ErrorKind::UnexpectedEof.into() });
    }
    let mut token = Token::default();
    token.copy_from_slice(&random[..16]);
    let name = format!("leakscope-{}-{}", std::process::id(), hex(&random[16..]));
    let listener = socket::listen(&name).map_err(Error::system("listen on a unix socket"))?;
    Ok((listener, name, token))
}

/// The value of the variable that tells a target where to ask.
pub(crate) fn address(name: &str, token: &Token) -> String {
    format!("{name}:{}", hex(token))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn spawn(request: &Request, name: &str, token: &Token, inherited: Inherited) -> Result<Child, Error> {
    let failed = |source| Error::Start { program: request.program.clone(), source };
    let given = environment::given();
    let variable = format!("{}={}", wire::ENV, address(name, token));
    let exec = Exec::new(request, environment::traced(&given, &request.library, &variable)).map_err(failed)?;
    // `Command` makes the process and reports what goes wrong in it; it never comes to its own exec, which would hand
    // over its arguments and a sorted copy of the environment.
    let mut command = Command::new(&request.program);
    // SAFETY: `restore` and `run` make async-signal-safe calls only, and allocate nothing.
    unsafe { command.pre_exec(move || inherited.restore().and_then(|()| Err(exec.run()))) };
    command.spawn().map_err(failed)
}
