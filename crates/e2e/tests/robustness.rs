//! Programs that are killed, and programs that do everything at once.
//!
//! `LEAKSCOPE_E2E_FULL=1` runs them as long as a release needs; otherwise they are short.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use leakscope_e2e::{Ending, Fixture, Run, Tool, compile, fixtures_dir, leakscope_bin};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

fn is_full() -> bool {
    std::env::var_os("LEAKSCOPE_E2E_FULL").is_some()
}

fn build(file: &str, plugins: &[&str]) -> Result<PathBuf> {
    let mut fixture = Fixture::read(&fixtures_dir().join("stress").join(file))?;
    fixture.plugins = plugins.iter().map(|plugin| plugin.to_string()).collect();
    Ok(compile(&fixture)?.remove(0).path)
}

/// The child of `parent` that runs `program`, as soon as there is one.
fn child_running(parent: u32, program: &Path) -> Result<Pid> {
    let begin = Instant::now();
    let program = program.canonicalize()?;
    loop {
        let tasks = std::fs::read_dir(format!("/proc/{parent}/task")).context("leakscope has ended")?;
        for task in tasks.flatten() {
            let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for child in children.split_whitespace() {
                if std::fs::read_link(format!("/proc/{child}/exe")).is_ok_and(|exe| exe == program) {
                    return Pid::from_raw(child.parse()?).context("a process id is positive");
                }
            }
        }
        ensure!(begin.elapsed() < Duration::from_secs(30), "no child runs {}", program.display());
        std::thread::yield_now();
    }
}

#[test]
fn a_killed_program_leaves_a_readable_recording() {
    if Tool::from_env().unwrap() != Tool::Leakscope {
        return;
    }
    let program = build("churn_forever.c", &[]).unwrap();
    let times = if is_full() { 200 } else { 20 };
    let mut state: u64 = 0x2545_f491_4f6c_dd1d;
    for time in 0..times {
        // Moments from the loader's work to some 60 ms of churn, the same ones in every run of the test.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let moment = Duration::from_micros((state >> 33) % 60_000);
        kill_once(&program, moment).unwrap_or_else(|error| panic!("kill {time}, after {moment:?}: {error:#}"));
    }
}

fn kill_once(program: &Path, moment: Duration) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let recording = scratch.path().join("killed.leak");
    let mut child = Command::new(leakscope_bin())
        .args(["run", "-q", "-o"])
        .arg(&recording)
        .arg(program)
        .stdout(std::fs::File::create(scratch.path().join("out"))?)
        .stderr(std::fs::File::create(scratch.path().join("err"))?)
        .process_group(0)
        .spawn()?;
    let outcome = child_running(child.id(), program).and_then(|target| {
        std::thread::sleep(moment);
        Ok(kill_process(target, Signal::KILL)?)
    });
    if outcome.is_err() {
        let group = Pid::from_raw(i32::try_from(child.id())?).context("pid")?;
        let _ = kill_process_group(group, Signal::KILL);
    }
    let status = child.wait()?;
    outcome?;
    let said = std::fs::read_to_string(scratch.path().join("err"))?;
    ensure!(recording.exists(), "no recording; leakscope ended with {status} and said: {said}");
    let report = Run::new(leakscope_bin()).args(["report", "--format", "json"]).arg(&recording).finish()?;
    ensure!(report.ending == Ending::Exit(0), "report: {:?}: {}", report.ending, report.stderr);
    let json: serde_json::Value = serde_json::from_slice(&report.stdout).context("the JSON report")?;
    ensure!(json.is_object(), "the report is no object");
    let text = Run::new(leakscope_bin()).arg("report").arg(&recording).finish()?;
    let shown = String::from_utf8_lossy(&text.stdout).into_owned() + &text.stderr;
    ensure!(shown.contains("not classified"), "the report does not say that blocks are not classified: {shown}");
    Ok(())
}

#[test]
fn sixty_four_threads_that_fork_and_load_libraries_keep_their_counts() {
    let tool = Tool::from_env().unwrap();
    let seconds = if is_full() { 600 } else { 20 };
    let program = build("stress.c", &["unloaded_plugin.c", "reloaded_plugin.c"]).unwrap();
    let limit = Duration::from_secs(seconds * 2 + 60);
    let options = ["--trace-children=yes".to_owned()];
    let (finished, reports) = tool.check(&program, &[seconds.to_string()], &options, &[], limit).unwrap();
    assert_eq!(finished.ending, Ending::Exit(0), "{}", finished.stderr);
    let said = String::from_utf8_lossy(&finished.stdout).into_owned();
    let counts: Vec<u64> = said.split_whitespace().map(|word| word.parse().unwrap()).collect();
    // Each child of fork has a report of its own, with what it inherited; process ids start again at the highest one.
    let lost = reports.iter().map(|report| {
        // Whatever kind: a stale word may keep a block, but none may be missing.
        let here = report.leaks.iter().filter(|leak| leak.stack.iter().any(|frame| frame.function == "case_lost"));
        here.fold((0, 0), |(blocks, bytes), leak| (blocks + leak.direct_blocks, bytes + leak.direct_bytes))
    });
    let (blocks, bytes) = lost.max().expect("a report");
    assert_eq!([blocks, bytes], [counts[0], counts[1]], "blocks and bytes, reported and counted by the program");
}

/// The program checks itself; the checker must have nothing to say, in no process, and each process must say so.
#[test]
fn everything_at_once_on_the_simulated_cpu() {
    let seconds = if is_full() { 600 } else { 5 };
    let program = build("memcheck.c", &[]).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let log = format!("--log-file={}", scratch.path().join("log.%p").display());
    let run = Run::new(leakscope_bin()).args(["memcheck", "--leak-check=no", "--error-exitcode=9", &log]).arg(&program);
    let finished = run.arg(seconds.to_string()).limit(Duration::from_secs(seconds * 3 + 120)).finish().unwrap();
    assert_eq!(finished.ending, Ending::Exit(0), "{}", finished.stderr);
    assert_eq!(finished.stderr, "");
    let said = String::from_utf8_lossy(&finished.stdout).into_owned();
    let counts: Vec<u64> = said.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert!(counts.len() == 6 && counts.iter().all(|&count| count > 0), "{said}");
    let mut reports = 0;
    for entry in std::fs::read_dir(scratch.path()).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(text.contains("ERROR SUMMARY: 0 errors from 0 contexts"), "{text}");
        reports += 1;
    }
    // A third of the children come by vfork, and every fifth of all executes a shell.
    assert!(reports > counts[2] / 2, "{reports} reports of {} children", counts[2]);
}
