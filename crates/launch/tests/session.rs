//! Sessions with real processes. The injected library is a small C program, `client.c`, that speaks the wire
//! protocol; each test waits for events, never for time.

use std::ffi::OsString;
use std::io::Read;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::Relaxed;

use leakscope_launch::ledger_file::{LedgerFile, Sample, fitting_capacity};
use leakscope_launch::{End, Ended, Event, Request, Session, snapshot};
use leakscope_ledger::layout::{self, AreaId, Config, Header, origin};

/// Builds `client.c` once per test run.
fn client() -> &'static Path {
    static CLIENT: OnceLock<PathBuf> = OnceLock::new();
    CLIENT.get_or_init(|| {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("client-{}.so", std::process::id()));
        let (areas, _) = layout::areas(fitting_capacity());
        let defines = [
            ("OFFSET_STATE", offset_of!(Header, state)),
            ("OFFSET_SNAPSHOT_WANTED", offset_of!(Header, snapshot_wanted)),
            ("OFFSET_SNAPSHOT_DONE", offset_of!(Header, snapshot_done)),
            ("OFFSET_USED_COUNTERS", offset_of!(Header, used) + 4 * AreaId::Counters as usize),
            ("OFFSET_COUNTERS", areas[AreaId::Counters as usize].offset as usize),
            ("NUDGE_SIGNAL", snapshot::NUDGE_SIGNAL as usize),
        ];
        let status = Command::new("gcc")
            .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-pthread"])
            .args(defines.map(|(name, value)| format!("-D{name}={value}UL")))
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/client.c"))
            .arg("-o")
            .arg(&path)
            .status()
            .expect("gcc is installed");
        assert!(status.success());
        path
    })
}

fn start_with(library: &Path, program: &str, arguments: &[&str]) -> Session {
    Session::start(Request {
        program: program.into(),
        argv0: program.into(),
        arguments: arguments.iter().map(OsString::from).collect(),
        library: library.into(),
        config: Config { max_frames: 12, ..Config::default() },
    })
    .unwrap()
}

fn start(script: &str, arguments: &[&str]) -> Session {
    let all: Vec<&str> = ["-c", script, "sh"].into_iter().chain(arguments.iter().copied()).collect();
    start_with(client(), "/bin/bash", &all)
}

#[derive(Default)]
struct Story {
    ended: Vec<Ended>,
    first: Option<(End, bool)>,
    waiting: Vec<Vec<u32>>,
}

fn finish(session: &Session) -> Story {
    let mut story = Story::default();
    while let Some(event) = session.next_event() {
        match event {
            Event::Ended(ended) => story.ended.push(ended),
            Event::FirstEnded { end, started } => story.first = Some((end, started)),
            Event::Waiting { pids } => story.waiting.push(pids),
            Event::NoLedger { pid, reason } => panic!("{pid}: {reason}"),
        }
    }
    story
}

#[test]
fn one_process_with_its_exit_code_and_counters() {
    let session = start("exit 7", &[]);
    let story = finish(&session);
    assert_eq!(story.first, Some((End::Exited(7), true)));
    let [ended] = &story.ended[..] else { panic!("{:?}", story.ended) };
    assert_eq!((ended.pid, ended.origin, ended.end), (session.first_pid(), origin::START, End::Exited(7)));
    assert_eq!(ended.parent_pid, std::process::id());
    let header = ended.ledger.header();
    assert_eq!(header.state.load(Relaxed), layout::state::ENDED);
    assert_eq!((header.config.max_frames, header.magic), (12, layout::MAGIC));
    let live = ended.ledger.live();
    assert_eq!((live.bytes, live.blocks), (300, 3));
    assert!(header.used[AreaId::Series as usize].load(Relaxed) >= 1);
}

#[test]
fn death_by_signal() {
    let story = finish(&start("kill -SEGV $$", &[]));
    let end = End::Signaled { signal: libc::SIGSEGV, out_of_memory: false };
    assert_eq!(story.first, Some((end, true)));
    assert_eq!(story.ended[0].end, end);
}

#[test]
fn forked_and_executed_processes_get_their_own_ledgers() {
    // The subshell is a fork; inside it, exec replaces the program under the same process id.
    let story = finish(&start("(exec /bin/true); (exit 3); exit 0", &[]));
    let mut kinds: Vec<(u32, bool)> =
        story.ended.iter().map(|ended| (ended.origin, ended.end == End::Replaced)).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, [(origin::START, false), (origin::FORK, false), (origin::FORK, true), (origin::EXEC, false)]);
    assert_eq!(story.first, Some((End::Exited(0), true)));
}

/// Two pipes with names, for a program to say that it is up, and to be told to end. A descriptor to inherit instead would
/// be inherited by the programs of tests that run at the same time.
fn named_pipes(name: &str) -> [String; 2] {
    ["up", "down"].map(|end| {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{end}-{}", std::process::id()));
        let _ = std::fs::remove_file(&place);
        assert!(Command::new("mkfifo").arg(&place).status().unwrap().success());
        place.into_os_string().into_string().unwrap()
    })
}

#[test]
fn a_daemon_is_waited_for() {
    let [up, down] = &named_pipes("daemon");
    let session = start("(echo up >$1; read line <$2) & exit 4", &[up, down]);
    assert_eq!(std::fs::read_to_string(up).unwrap(), "up\n");
    let mut daemon = 0;
    loop {
        match session.next_event().unwrap() {
            Event::Waiting { pids } => {
                assert_eq!((pids.len(), daemon), (1, 0));
                daemon = pids[0];
                std::fs::write(down, "end\n").unwrap();
            }
            Event::FirstEnded { end, started } => assert_eq!((end, started), (End::Exited(4), true)),
            Event::Ended(ended) if ended.origin == origin::FORK => {
                assert_eq!((ended.pid, ended.end), (daemon, End::Unknown));
                break;
            }
            Event::Ended(ended) => assert_eq!(ended.pid, session.first_pid()),
            other @ Event::NoLedger { .. } => panic!("{other:?}"),
        }
    }
    assert!(session.next_event().is_none());
}

#[test]
fn the_exit_code_is_kept_when_the_library_does_not_start() {
    let empty = Path::new(env!("CARGO_TARGET_TMPDIR")).join("empty.so");
    let built =
        Command::new("gcc").args(["-shared", "-o"]).arg(&empty).args(["-x", "c", "/dev/null"]).status().unwrap();
    assert!(built.success());
    let story = finish(&start_with(&empty, "/bin/sh", &["-c", "exit 9"]));
    assert_eq!(story.first, Some((End::Exited(9), false)));
    assert!(story.ended.is_empty());
}

#[test]
fn a_wrong_token_gets_nothing() {
    let script = "CLIENT_WRONG_TOKEN=1 exec /bin/true";
    let story = finish(&start(script, &[]));
    // Only the shell itself has a ledger; the program that it turned into was refused.
    assert_eq!(story.ended.len(), 1);
    assert_eq!(story.ended[0].origin, origin::START);
}

#[test]
fn signal_mask_dispositions_and_descriptors_are_as_without_us() {
    // This test's thread has the mask that the target must find; the runtime's SIGPIPE is not the user's.
    let facts = "grep -E 'Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd | wc -w";
    let mut bare = Command::new("/bin/bash");
    // SAFETY: does nothing. It makes the standard library fork: posix_spawn also ignores a signal of glibc's own.
    unsafe { std::os::unix::process::CommandExt::pre_exec(&mut bare, || Ok(())) };
    let bare = bare.args(["-c", facts]).output().unwrap();
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("facts");
    finish(&start("eval \"$1\" > \"$2\" 2>&1", &[facts, file.to_str().unwrap()]));
    assert_eq!(std::fs::read_to_string(file).unwrap(), String::from_utf8(bare.stdout).unwrap());
}

#[test]
fn snapshots_of_an_idle_process_that_can_be_woken() {
    let [up, down] = &named_pipes("idle");
    let script = "CLIENT_HANDLES_NUDGE=1 exec bash -c 'echo up >$1; read line <$2' bash $1 $2";
    let session = start(script, &[up, down]);
    assert_eq!(std::fs::read_to_string(up).unwrap(), "up\n");
    for round in 1..=2 {
        let mut ledger = snapshot::request(session.first_pid()).unwrap();
        let mut header = [0; layout::HEADER_BYTES];
        ledger.read_exact(&mut header).unwrap();
        assert_eq!(header[..8], layout::MAGIC);
        let done = offset_of!(Header, snapshot_done);
        assert_eq!(header[done], round);
        assert!(std::os::unix::fs::FileExt::write_at(&ledger, b"x", 0).is_err());
    }
    std::fs::write(down, "end\n").unwrap();
    assert_eq!(finish(&session).first, Some((End::Exited(0), true)));
}

#[test]
fn snapshots_of_strangers_are_refused_with_a_sentence() {
    let error = snapshot::request(std::process::id()).unwrap_err().to_string();
    assert!(error.contains("was not started by `leakscope run`"), "{error}");
    // Process ids stay below 2^22.
    let error = snapshot::request(1 << 23).unwrap_err().to_string();
    assert!(error.contains("no such process"), "{error}");
}

#[test]
fn a_full_series_keeps_every_second_sample() {
    let ledger = LedgerFile::create(&Config::default(), layout::Capacity::SMALL, origin::START).unwrap();
    let used = || ledger.header().used[AreaId::Series as usize].load(Relaxed);
    let sample = |n: u32| Sample { monotonic_ns: n.into(), live_bytes: 2, live_blocks: 3, resident_bytes: 4 };
    for n in 0..layout::SERIES {
        assert!(!ledger.push_sample(sample(n)));
    }
    assert_eq!(used(), layout::SERIES);
    assert!(ledger.push_sample(sample(layout::SERIES)));
    assert_eq!(used(), layout::SERIES / 2 + 1);
    let area = layout::areas(layout::Capacity::SMALL).0[AreaId::Series as usize];
    for n in 0..=layout::SERIES / 2 {
        let mut time = [0; 8];
        std::os::unix::fs::FileExt::read_exact_at(ledger.file(), &mut time, area.offset + u64::from(n * area.stride))
            .unwrap();
        assert_eq!(u64::from_ne_bytes(time), u64::from(2 * n));
    }
}

#[test]
fn a_program_that_cannot_start_leaves_the_mask_alone() {
    let mask = || {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        status.lines().find(|line| line.starts_with("SigBlk")).unwrap().to_owned()
    };
    let before = mask();
    let error = Session::start(Request {
        program: "/nonexistent/program".into(),
        argv0: "program".into(),
        arguments: Vec::new(),
        library: client().into(),
        config: Config::default(),
    })
    .unwrap_err();
    assert!(error.to_string().contains("/nonexistent/program"), "{error}");
    assert_eq!(mask(), before);
}
