//! The run-time library of AddressSanitizer, which this binary carries: put where programs find it, under the names that
//! they ask for; and a program run with it, beside which we stay to read what it found.
//!
//! ```text
//!  <place>/<hash>/libleakscope_asan.so      the library itself, verified before each use
//!  <place>/asan/libasan.so.8           ->   ../<hash>/libleakscope_asan.so
//!  <place>/asan/libclang_rt.asan-..so  ->   the same
//! ```
//!
//! The folder of links keeps its name when leakscope is updated, so that programs whose run path it stands in find the
//! newest library: the ABI between compilers and run-times has one version. Runs in our own process.

use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::Error;
use crate::cache::{self, Carried, Library};
use crate::service::End;
use crate::signals::SignalSource;

/// The library; empty where there is none for this architecture.
const LIBRARY: Carried<'static> = Carried {
    content: include_bytes!(concat!(env!("OUT_DIR"), "/asan.so")),
    hash: env!("LEAKSCOPE_ASAN_SHA256"),
    file_name: "libleakscope_asan.so",
};
/// A library to use instead, for work on it.
const OVERRIDE: &str = "LEAKSCOPE_ASAN_SO";
/// Names that programs ask for: those of clang's library, with and without the architecture in it, and of gcc's.
pub const SONAMES: [&str; 3] = ["libclang_rt.asan-x86_64.so", "libclang_rt.asan.so", "libasan.so.8"];
/// How often to look where nothing tells of an end.
const LOOK: Duration = Duration::from_millis(50);

/// The library, in place.
#[derive(Debug)]
pub struct Runtime {
    /// The folder in which it has the names that programs ask for.
    pub folder: PathBuf,
    /// Keeps the lock on the file.
    _library: Library,
}

/// Puts the library in place, under all its names.
///
/// # Errors
/// [`Error::NoPlace`], or the machine is none that the library is for.
pub fn unpack() -> Result<Runtime, Error> {
    if let Some(path) = std::env::var_os(OVERRIDE).map(PathBuf::from) {
        let path = path.canonicalize().map_err(|error| {
            Error::NoPlace(vec![(path, format!("{OVERRIDE} names it, and it cannot be read: {error}"))])
        })?;
        return of_file(&path);
    }
    if LIBRARY.content.is_empty() {
        return Err(Error::Refused("`leakscope asan` needs x86-64; `leakscope run` works on this machine, too".into()));
    }
    let library = cache::unpack_as_file(LIBRARY)?;
    let base = library.path.ancestors().nth(2).unwrap_or(Path::new("/"));
    let folder = base.join("asan");
    make_links(&folder, &Path::new("..").join(LIBRARY.hash).join(LIBRARY.file_name))?;
    Ok(Runtime { folder, _library: library })
}

/// Links to a file of the user's, in a folder of their own: those of others stay as they are.
fn of_file(path: &Path) -> Result<Runtime, Error> {
    // The carried library's place is as good for its links.
    let library = cache::unpack_as_file(LIBRARY)?;
    let base = library.path.ancestors().nth(2).unwrap_or(Path::new("/"));
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    let folder = base.join(format!("asan-{:016x}", hasher.finish()));
    make_links(&folder, path)?;
    Ok(Runtime { folder, _library: library })
}

fn make_links(folder: &Path, target: &Path) -> Result<(), Error> {
    let failed = |error: std::io::Error| Error::NoPlace(vec![(folder.to_owned(), error.to_string())]);
    match std::fs::create_dir(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    for name in SONAMES {
        let link = folder.join(name);
        if std::fs::read_link(&link).is_ok_and(|found| found == target) {
            continue;
        }
        // Another version's link, which programs may look up in this moment; and two of us may make the same one.
        let fresh = folder.join(format!(".{name}.{}", std::process::id()));
        symlink(target, &fresh).and_then(|()| std::fs::rename(&fresh, &link)).map_err(failed)?;
    }
    Ok(())
}

/// Whether a program asks for one of the libraries; `None` for what is no ELF file (a script) or cannot be read.
pub fn needs_runtime(program: &Path) -> Option<bool> {
    let needed = leakscope_process::versions::read_needed(program).ok()?;
    Some(needed.iter().any(|name| SONAMES.contains(&name.as_str())))
}

/// What to run beside us.
#[derive(Debug)]
pub struct Launch {
    /// Path of the program, as [`crate::preflight::find`] found it.
    pub program: PathBuf,
    /// What the program shall find in `argv[0]`.
    pub argv0: OsString,
    /// The other arguments.
    pub arguments: Vec<OsString>,
    /// Variables that it gets besides ours.
    pub environment: Vec<(&'static str, OsString)>,
}

/// Runs a program to its end; gives its process id and how it ended. Call it before any other thread is started.
///
/// # Errors
/// When it cannot be started.
pub fn run(launch: &Launch) -> Result<(u32, End), Error> {
    let (mut signals, inherited) = SignalSource::take_over().map_err(Error::system("take over signals"))?;
    let mut command = Command::new(&launch.program);
    command.arg0(&launch.argv0).args(&launch.arguments);
    command.envs(launch.environment.iter().map(|(name, value)| (name, value)));
    // SAFETY: `restore` makes async-signal-safe calls only, and allocates nothing.
    unsafe { command.pre_exec(move || inherited.restore()) };
    let started = command.spawn().map_err(|source| Error::Start { program: launch.program.clone(), source });
    let ended = started.map(|mut child| {
        let end = wait(&mut child, &mut signals);
        (child.id(), end)
    });
    let _ = inherited.restore_mask();
    ended
}

/// Waits for the program, and hands on the signals that processes send us; the terminal's reach it by themselves.
fn wait(child: &mut Child, signals: &mut SignalSource) -> End {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pidfd: Option<OwnedFd> = pid.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    loop {
        match child.try_wait() {
            Ok(Some(status)) => {
                return match (status.code(), status.signal()) {
                    (Some(code), _) => End::Exited(code),
                    (None, Some(signal)) => End::Signaled { signal, out_of_memory: false },
                    (None, None) => End::Unknown,
                };
            }
            Ok(None) => {}
            Err(_) => return End::Unknown,
        }
        let mut fds = vec![PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
        fds.extend(pidfd.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        let pause = Timespec { tv_sec: 0, tv_nsec: LOOK.as_nanos() as i64 };
        let _ = rustix::event::poll(&mut fds, pidfd.is_none().then_some(&pause));
        while let Some(arrived) = signals.next() {
            if arrived.by_process
                && let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(arrived.signal))
            {
                let _ = rustix::process::kill_process(pid, signal);
            }
        }
    }
}
