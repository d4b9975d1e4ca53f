//! Passes over real processes, at times of our own: a quarter of an hour goes by in a second.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use leakscope_history::History;
use leakscope_monitor::{Config, Watch};
use leakscope_sampling::Places;

/// Allocates as many bytes as each line says, and keeps them when the number is positive.
const PROGRAM: &str = "
import sys
open('/proc/self/comm', 'w').write(sys.argv[1])
kept = []
print('ready', flush=True)
for line in sys.stdin:
    size = int(line)
    block = b'x' * abs(size)
    if size > 0:
        kept.append(block)
    del block
    print('done', flush=True)
";

struct Program {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Program {
    fn start(name: &str) -> Self {
        Self::limited(name, "true")
    }

    /// With limits that a shell sets first.
    fn limited(name: &str, limit: &str) -> Self {
        let mut child = Command::new("sh")
            .args(["-c", &format!("{limit}; exec python3 -c \"$1\" \"$2\""), "sh", PROGRAM, name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        let mut program = Self { child, input, output };
        program.heard();
        program
    }

    fn heard(&mut self) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the program has ended");
    }

    fn allocate(&mut self, bytes: i64) {
        writeln!(self.input, "{bytes}").unwrap();
        self.heard();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn watch(text: &str) -> Watch {
    Watch::new(Config::decode(text).unwrap(), Places::default())
}

const START: f64 = 1_700_000_000.0;

#[test]
fn a_leak_of_1_mb_a_minute_is_found_in_15_minutes_and_its_twin_never() {
    let (mut leaky, mut twin) = (Program::start("lsm-leaky"), Program::start("lsm-twin"));
    let mut watch = watch(
        "kernel = false\npressure = 100\n[[watch]]\nname = \"lsm-leaky\"\nwarm_up = \"0s\"\n[[watch]]\nname = \"lsm-twin\"\nwarm_up = \"0s\"\n",
    );
    let mut found_after = None;
    for step in 0..180 {
        leaky.allocate(1_000_000 / 6);
        twin.allocate(-1_000_000 / 6);
        let pass = watch.pass(START + f64::from(step) * 10.0);
        assert_eq!(pass.samples.len(), 2);
        assert!(!pass.findings.iter().any(|finding| finding.target == "name:lsm-twin"), "{:?}", pass.findings);
        if let Some(finding) = pass.findings.first() {
            found_after.get_or_insert((step, finding.clone()));
        }
    }
    let (step, finding) = found_after.expect("the leak is found");
    assert!(step * 10 <= 15 * 60, "found after {} s", step * 10);
    assert_eq!(finding.key, "name:lsm-leaky/memory");
    assert!((45e6..75e6).contains(&finding.per_hour), "{}", finding.per_hour);
    assert!(finding.details.iter().any(|line| line.starts_with("process ")), "{:?}", finding.details);
}

/// What the kernel says of a process, in bytes.
fn status(program: &Program, key: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", program.child.id())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    line.trim_start_matches(':').split_ascii_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

/// Limits of addresses, by the shell's option, by what the kernel calls what they bound, and by their names.
const BOUNDS: [(&str, &str, &str); 2] = [("-v", "VmSize", "RLIMIT_AS"), ("-d", "VmData", "RLIMIT_DATA")];

#[test]
fn near_a_limit_of_addresses_a_capture_is_written_before_memory_is_refused() {
    for (option, key, name) in BOUNDS {
        let limit = 600_000 * 1024u64;
        let mut program = Program::limited("lsm-bound", &format!("ulimit {option} 600000"));
        let mut watch = watch("kernel = false\npressure = 100\n[[watch]]\nname = \"lsm-bound\"\ncore = \"once\"\n");
        let pass = watch.pass(START);
        assert!(pass.capture.is_none() && pass.findings.is_empty() && !watch.is_guarding(START), "{name}");
        // To four fifths: nothing is said, and it is looked at between passes.
        program.allocate((limit * 4 / 5 - status(&program, key)) as i64);
        let pass = watch.pass(START + 10.0);
        assert!(pass.capture.is_none() && pass.findings.is_empty(), "{name}: {:?}", pass.findings);
        assert!(watch.is_guarding(START + 10.0) && !watch.is_near_limit(), "{name}");
        program.allocate((limit * 97 / 100 - status(&program, key)) as i64);
        assert!(watch.is_near_limit(), "{name}: {} of {limit}", status(&program, key));
        let pass = watch.pass(START + 11.0);
        let capture = pass.capture.unwrap();
        assert!(capture.contains("lsm-bound: resident ") && capture.contains("other anonymous memory"), "{capture}");
        let titles: Vec<&str> = pass.findings.iter().map(|finding| finding.title.as_str()).collect();
        assert!(titles.len() == 1 && titles[0].contains(name) && titles[0].contains("of 614 MB"), "{titles:?}");
        assert!(pass.findings[0].urgent && pass.findings[0].key == "name:lsm-bound/addresses");
        assert_eq!(pass.cores, [("name:lsm-bound".to_owned(), program.child.id())]);
        // What is captured is not captured each second; what goes on is still said, once in the book.
        assert!(!watch.is_guarding(START + 12.0));
        let pass = watch.pass(START + 21.0);
        assert_eq!((pass.capture, pass.cores.len(), pass.findings.len()), (None, 0, 1));
    }
}

#[test]
fn time_until_a_limit_is_that_of_the_nearest_one() {
    for (option, key, name) in BOUNDS {
        let mut program = Program::limited("lsm-addr", &format!("ulimit {option} 1500000"));
        let mut watch = watch("kernel = false\npressure = 100\n[[watch]]\nname = \"lsm-addr\"\nwarm_up = \"0s\"\n");
        let mut last = Vec::new();
        for step in 0..80 {
            program.allocate(2_000_000);
            last = watch.pass(START + f64::from(step) * 10.0).findings;
        }
        let left = (1_500_000 * 1024 - status(&program, key)) as f64;
        let [finding] = last.as_slice() else { panic!("{name}: {last:?}") };
        assert!(finding.title.contains(&format!("until its {name}")), "{}", finding.title);
        let expected = left / finding.per_hour;
        assert!((finding.hours_left.unwrap() / expected - 1.0).abs() < 0.01, "{name}: {finding:?}, {expected} h");
        assert!((finding.per_hour / 720e6 - 1.0).abs() < 0.1, "{finding:?}");
        // The machine has more than that: otherwise this says nothing.
        assert!(left < 1.6e9);
    }
}

#[test]
fn a_restart_is_an_event_and_does_not_resolve_what_was_found() {
    let mut leaky = Program::start("lsm-again");
    let mut watch = watch("kernel = false\npressure = 100\n[[watch]]\nname = \"lsm-again\"\nwarm_up = \"0s\"\n");
    let mut at = START;
    let mut pass = |watch: &mut Watch| {
        at += 10.0;
        watch.pass(at)
    };
    while pass(&mut watch).findings.is_empty() {
        leaky.allocate(400_000);
    }
    drop(leaky);
    let between = pass(&mut watch);
    assert_eq!((between.samples.len(), between.findings.len(), between.missing.len()), (0, 1, 1));
    let _again = Program::start("lsm-again");
    let after = pass(&mut watch);
    assert_eq!(after.events[0].kind, "restart");
    assert_eq!((after.samples[0].life, after.findings.len()), (1, 1));
}

#[test]
fn hostile_names_are_made_printable_and_many_names_are_bounded() {
    let _program = Program::start("x\n<b>\"\x1b");
    let mut watch = watch("pressure = 100\n[[watch]]\ntop = 3\n");
    let pass = watch.pass(START);
    let programs = pass.samples.iter().filter(|sample| sample.target.starts_with("name:")).count();
    assert_eq!(programs, 3);
    let all =
        Watch::new(Config::decode("pressure = 100\n[[watch]]\ntop = 1000\n").unwrap(), Places::default()).pass(START);
    assert!(all.samples.iter().any(|sample| sample.target.starts_with("name:x\u{fffd}<b>\"\u{fffd}")));
    assert!(!all.samples.iter().any(|sample| sample.target.contains(char::is_control)));
}

#[test]
fn what_a_history_holds_is_remembered_after_a_restart_of_the_daemon() {
    let mut leaky = Program::start("lsm-resume");
    let text = "kernel = false\npressure = 100\n[[watch]]\nname = \"lsm-resume\"\nwarm_up = \"0s\"\n";
    let mut first = watch(text);
    let folder = tempfile::tempdir().unwrap();
    let (mut history, _) = History::open(&folder.path().join("h")).unwrap();
    let mut at = START;
    while at < START + 1200.0 {
        leaky.allocate(300_000);
        at += 10.0;
        let pass = first.pass(at);
        history.write_tick(pass.at, &pass.samples, &pass.events).unwrap();
    }
    let id = "name:lsm-resume";
    let mut second = watch(text);
    second.resume(id, &history.all_rows(id, at as u64).unwrap(), first.life_fact(id).as_deref());
    let pass = second.pass(at + 10.0);
    assert_eq!((pass.samples[0].life, pass.events.len()), (0, 0), "the same process is the same life");
    assert_eq!(pass.findings.len(), 1, "and still grows");
}

/// The clock is set forward by an hour and by a day in the middle of a series: what is steady stays so, and what leaks is
/// still found.
#[test]
fn a_clock_that_jumps_is_no_growth() {
    let (mut leaky, mut twin) = (Program::start("lsm-jump"), Program::start("lsm-jumptwin"));
    let mut watch = watch(
        "kernel = false\npressure = 100\n[[watch]]\nname = \"lsm-jump\"\nwarm_up = \"0s\"\n[[watch]]\nname = \"lsm-jumptwin\"\nwarm_up = \"0s\"\n",
    );
    let mut at = START;
    let mut found = false;
    for step in 0..400 {
        leaky.allocate(300_000);
        twin.allocate(-300_000);
        at += match step {
            100 => 3600.0,
            200 => 86_400.0,
            _ => 10.0,
        };
        let pass = watch.pass(at);
        assert!(!pass.findings.iter().any(|finding| finding.target == "name:lsm-jumptwin"), "{:?}", pass.findings);
        found |= pass.findings.iter().any(|finding| finding.target == "name:lsm-jump");
        assert!(pass.events.is_empty(), "{:?}", pass.events);
    }
    assert!(found);
}
