//! Checks that take their time: leak checks of programs under `leakscope run`, kmemleak's scans, traces of the kernel.
//!
//! Each is a run of this very program (`leakscope snapshot`, `kernel scan`, `kernel trace`) whose JSON report is read: the
//! same code and the same identities of findings as by hand. What symbols and tables take is given back when the run ends,
//! a check that hangs is ended, and one that crashes does not take the daemon with it. Checks run one after another, on a
//! thread of their own.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use leakscope_alerts::{Evidence, Finding};
use leakscope_history::{Found, Site};
use leakscope_sampling::names::printable;
use serde_json::Value;

use crate::sites::site_of;
use crate::units::{show_bytes, show_hours};

/// How long the kernel is traced each time, seconds.
const TRACE_SECONDS: u64 = 30;
/// What a trace may take of the machine.
const TRACE_OVERHEAD: &str = "1%";
/// A check that takes longer is ended.
const PATIENCE: Duration = Duration::from_secs(300);
/// Leaks that are kept of one check.
const MOST: usize = 50;
/// A report that is longer is not read.
const LONGEST_BYTES: u64 = 64 << 20;

/// How often each check runs, seconds; `None` never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Leak checks of programs under `leakscope run`.
    pub leak_check: Option<u64>,
    /// kmemleak's scans.
    pub kmemleak: Option<u64>,
    /// Traces of the kernel's allocations, sampled.
    pub kernel_trace: Option<u64>,
}

/// A check to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Of a process of a target.
    LeakCheck {
        /// The target.
        target: String,
        /// The process.
        pid: u32,
    },
    /// Of the kernel, by kmemleak.
    Kmemleak,
    /// Of the kernel, by tracing.
    KernelTrace,
}

impl Order {
    /// What it is called in findings.
    pub fn source(&self) -> &'static str {
        match self {
            Self::LeakCheck { .. } => "leak check",
            Self::Kmemleak => "kmemleak",
            Self::KernelTrace => "kernel trace",
        }
    }

    /// The target that findings belong to.
    pub fn target(&self) -> &str {
        match self {
            Self::LeakCheck { target, .. } => target,
            Self::Kmemleak => "kernel:kmemleak",
            Self::KernelTrace => "kernel:trace",
        }
    }

    fn arguments(&self) -> Vec<String> {
        let words: &[&str] = match self {
            Self::LeakCheck { .. } => &["snapshot", "--show-leak-kinds=definite,possible"],
            Self::Kmemleak => &["kernel", "scan"],
            Self::KernelTrace => &["kernel", "trace", "--once"],
        };
        let mut arguments: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        arguments.push("--format=json".to_owned());
        match self {
            Self::LeakCheck { pid, .. } => arguments.push(pid.to_string()),
            Self::KernelTrace => {
                arguments.extend([format!("--for={TRACE_SECONDS}s"), format!("--max-overhead={TRACE_OVERHEAD}")]);
            }
            Self::Kmemleak => {}
        }
        arguments
    }
}

/// A loss record of a check.
#[derive(Clone, Debug, PartialEq)]
pub struct Leak {
    /// Whether nothing points to it any more.
    pub is_lost: bool,
    /// What it is in the history and in alarms.
    pub evidence: Evidence,
}

/// What came of a check.
#[derive(Debug)]
pub struct Outcome {
    /// Which one.
    pub order: Order,
    /// The leaks; or why there are none.
    pub leaks: Result<Vec<Leak>, String>,
}

/// Bytes and blocks that are lost, by fingerprint.
type Lost = BTreeMap<String, (u64, u64)>;

/// What the history is to keep of an outcome.
#[derive(Debug, Default, PartialEq)]
pub struct Noted {
    /// The findings.
    pub found: Vec<Found>,
    /// What each site has now, of all processes of the target that were checked.
    pub profile: Vec<Site>,
    /// Why there is nothing, if so.
    pub complaint: Option<String>,
}

/// What has been checked, and what was found.
pub struct Checks {
    plan: Plan,
    orders: Option<Sender<Order>>,
    outcomes: Option<Receiver<Outcome>>,
    running: Arc<Mutex<Option<Child>>>,
    waiting: usize,
    last: BTreeMap<&'static str, f64>,
    /// Of the last check of each process: when, and what was lost.
    before: HashMap<(String, u32), (f64, Lost)>,
    /// What is wrong by the last checks, and when it was seen.
    open: BTreeMap<String, (f64, Finding)>,
}

impl Checks {
    /// A plan; `open` are the alarms that were open when the last daemon ended.
    pub fn new<'a>(plan: Plan, open: impl Iterator<Item = &'a Finding>, at: f64) -> Self {
        let ours = |finding: &&Finding| finding.key.contains("/leak/") || finding.key.starts_with("kernel/kmemleak/");
        Self {
            plan,
            orders: None,
            outcomes: None,
            running: Arc::default(),
            waiting: 0,
            last: BTreeMap::new(),
            before: HashMap::new(),
            open: open.filter(ours).map(|finding| (finding.key.clone(), (at, finding.clone()))).collect(),
        }
    }

    /// When a check was made last, out of a history.
    pub fn resume(&mut self, source: &'static str, at: f64) {
        self.last.insert(source, at);
    }

    /// What is to be checked now; `traced` are the processes that have a ledger, with their targets.
    pub fn due(&mut self, at: f64, traced: &[(String, u32)]) -> Vec<Order> {
        let mut due = Vec::new();
        if self.waiting > 0 {
            return due;
        }
        let leak_checks = traced.iter().map(|(target, pid)| Order::LeakCheck { target: target.clone(), pid: *pid });
        for (every, orders) in [
            (self.plan.leak_check, leak_checks.collect::<Vec<_>>()),
            (self.plan.kmemleak, vec![Order::Kmemleak]),
            (self.plan.kernel_trace, vec![Order::KernelTrace]),
        ] {
            let (Some(every), Some(first)) = (every, orders.first()) else { continue };
            let source = first.source();
            // A clock that was set back does not put a check off for ever.
            let is_due = self.last.get(source).is_none_or(|&last| at - last >= every as f64 || at < last);
            if is_due {
                self.last.insert(source, at);
                due.extend(orders);
            }
        }
        due
    }

    /// Lets a check run on the thread of checks, which is started with the first one.
    pub fn start(&mut self, program: &Path, order: Order) {
        let orders = self.orders.get_or_insert_with(|| {
            let (orders, wanted) = mpsc::channel::<Order>();
            let (done, outcomes) = mpsc::channel();
            let (program, running) = (program.to_owned(), Arc::clone(&self.running));
            self.outcomes = Some(outcomes);
            thread::spawn(move || {
                for order in wanted {
                    let leaks = run(&program, &order, &running);
                    // Nobody may be listening any more.
                    let _ = done.send(Outcome { order, leaks });
                }
            });
            orders
        });
        self.waiting += usize::from(orders.send(order).is_ok());
    }

    /// What has come of checks since the last call.
    pub fn outcomes(&mut self) -> Vec<Outcome> {
        let outcomes: Vec<Outcome> = self.outcomes.iter().flat_map(Receiver::try_iter).collect();
        self.waiting = self.waiting.saturating_sub(outcomes.len());
        outcomes
    }

    /// Takes an outcome into account; gives what the history is to keep.
    pub fn note(&mut self, outcome: Outcome, at: f64) -> Noted {
        let Outcome { order, leaks } = outcome;
        let leaks = match leaks {
            Ok(leaks) => leaks,
            Err(reason) => {
                let complaint = format!("{} of {}: {reason}", order.source(), order.target());
                return Noted { complaint: Some(complaint), ..Noted::default() };
            }
        };
        let mut profile = Vec::new();
        match &order {
            Order::LeakCheck { target, pid } => {
                self.note_leak_check(target, *pid, &leaks, at);
                profile = self.lost(target, at);
                for site in &mut profile {
                    let named = leaks.iter().find(|leak| leak.evidence.fingerprint == site.fingerprint);
                    site.stack = named.map(|leak| leak.evidence.stack.clone()).unwrap_or_default();
                }
            }
            Order::Kmemleak => {
                self.open.retain(|key, _| !key.starts_with("kernel/kmemleak/"));
                let lost = leaks.iter().filter(|leak| leak.is_lost);
                self.open.extend(lost.map(|leak| {
                    let finding = kernel_finding(leak, at);
                    (finding.key.clone(), (at, finding))
                }));
                profile.extend(leaks.iter().map(|leak| site_of(&leak.evidence)));
            }
            Order::KernelTrace => profile.extend(leaks.iter().map(|leak| site_of(&leak.evidence))),
        }
        let found = leaks.iter().map(|leak| found(order.target(), &leak.evidence, at as u64)).collect();
        Noted { found, profile, complaint: None }
    }

    /// What the last checks of a target's processes have found lost.
    fn lost(&self, target: &str, at: f64) -> Vec<Site> {
        let every = self.plan.leak_check.unwrap_or(0) as f64;
        let mut sum = Lost::new();
        let of_target = self.before.iter().filter(|((of, _), (seen, _))| of == target && at - seen < every.max(1.0));
        for (fingerprint, (bytes, blocks)) in of_target.flat_map(|(_, (_, lost))| lost) {
            let known = sum.entry(fingerprint.clone()).or_default();
            *known = (known.0.saturating_add(*bytes), known.1.saturating_add(*blocks));
        }
        let site = |(fingerprint, (bytes, blocks))| Site { fingerprint, stack: Vec::new(), bytes, blocks };
        sum.into_iter().map(site).collect()
    }

    /// What is lost and has become more since the check before is an alarm; what was lost at the start is not.
    fn note_leak_check(&mut self, target: &str, pid: u32, leaks: &[Leak], at: f64) {
        let prefix = format!("{target}/leak/");
        self.open.retain(|key, _| !key.starts_with(&prefix));
        let mut now = Lost::new();
        for leak in leaks.iter().filter(|leak| leak.is_lost) {
            let (bytes, blocks) = now.entry(leak.evidence.fingerprint.clone()).or_default();
            *bytes = bytes.saturating_add(leak.evidence.bytes);
            *blocks = blocks.saturating_add(leak.evidence.blocks);
        }
        if let Some((before_at, before)) = self.before.get(&(target.to_owned(), pid)) {
            for leak in leaks.iter().filter(|leak| leak.is_lost) {
                let bytes = now.get(&leak.evidence.fingerprint).map_or(0, |(bytes, _)| *bytes);
                let known = before.get(&leak.evidence.fingerprint).map_or(0, |(bytes, _)| *bytes);
                if bytes > known {
                    let finding = leak_finding(target, pid, leak, (*before_at, known, bytes), at);
                    self.open.insert(finding.key.clone(), (at, finding));
                }
            }
        }
        // A target's processes come and go; those that are gone are forgotten with the next check of their target.
        self.before.retain(|(known, process), (seen, _)| known != target || *process == pid || at - *seen < 86_400.0);
        self.before.insert((target.to_owned(), pid), (at, now));
    }

    /// What is wrong by the last checks. What no check has seen for twice its interval is over.
    pub fn findings(&mut self, at: f64) -> Vec<Finding> {
        let (leaks, kernel) = (self.plan.leak_check, self.plan.kmemleak);
        self.open.retain(|key, (seen, _)| {
            let every = if key.starts_with("kernel/") { kernel } else { leaks };
            every.is_some_and(|every| at - *seen < 2.0 * every as f64 + 600.0)
        });
        self.open.values().map(|(_, finding)| finding.clone()).collect()
    }

    /// When each kind of check was made last.
    pub fn last(&self) -> impl Iterator<Item = (&'static str, f64)> {
        self.last.iter().map(|(source, at)| (*source, *at))
    }
}

impl Drop for Checks {
    fn drop(&mut self) {
        if let Some(child) = self.running.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            // It may just have ended.
            let _ = child.kill();
        }
    }
}

/// Runs a check and waits for it; gives its leaks, or why there are none.
///
/// # Errors
/// What the run said, or that it took too long.
pub fn run(program: &Path, order: &Order, running: &Mutex<Option<Child>>) -> Result<Vec<Leak>, String> {
    let mut child = Command::new(program)
        .args(order.arguments())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{}: cannot be started: {error}", program.display()))?;
    let (output, complaints) = (child.stdout.take(), child.stderr.take());
    let held = || running.lock().unwrap_or_else(PoisonError::into_inner);
    *held() = Some(child);
    let (said, heard) = mpsc::channel();
    let reader = thread::spawn(move || {
        let mut text = String::new();
        let read = output.map(|output| output.take(LONGEST_BYTES).read_to_string(&mut text));
        let _ = said.send(());
        read.transpose().map(|_| text)
    });
    let complainer = thread::spawn(move || {
        let mut text = String::new();
        // What cannot be read is not shown; the report tells what matters.
        let _ = complaints.map(|complaints| complaints.take(1 << 20).read_to_string(&mut text));
        text
    });
    let is_late = heard.recv_timeout(PATIENCE).is_err();
    let child = held().take();
    let status = child.and_then(|mut child| {
        if is_late {
            let _ = child.kill();
        }
        child.wait().ok()
    });
    let text = reader.join().ok().and_then(Result::ok).unwrap_or_default();
    let complaints = complainer.join().unwrap_or_default();
    if is_late {
        return Err(format!("it took longer than {} s and was ended", PATIENCE.as_secs()));
    }
    if !status.is_some_and(|status| status.success()) {
        let last = complaints.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it was ended");
        return Err(printable_line(last.trim_start_matches("leakscope: ")));
    }
    decode(&text, order)
}

/// A line of another program's words, in one line and of bounded length.
fn printable_line(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(400).collect()
}

/// The leaks in a JSON report.
fn decode(text: &str, order: &Order) -> Result<Vec<Leak>, String> {
    let mut leaks = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let document: Value =
            serde_json::from_str(line).map_err(|error| format!("its report cannot be read: {error}"))?;
        let records = document["records"].as_array().into_iter().flatten();
        let shown = records.filter(|record| record["shown"] == true);
        leaks.extend(shown.filter_map(|record| decode_record(record, order)));
    }
    leaks.sort_by_key(|leak: &Leak| std::cmp::Reverse(leak.evidence.bytes));
    leaks.truncate(MOST);
    Ok(leaks)
}

fn decode_record(record: &Value, order: &Order) -> Option<Leak> {
    let (bytes, blocks) = (record["bytes"].as_u64()?, record["blocks"].as_u64()?);
    let kind = record["kind"].as_str()?;
    let words = match order {
        Order::KernelTrace => "outstanding",
        _ if kind == "definite" => "definitely lost",
        _ => "possibly lost",
    };
    let frames = record["stack"]["frames"].as_array().into_iter().flatten();
    Some(Leak {
        is_lost: kind == "definite",
        evidence: Evidence {
            source: order.source().to_owned(),
            fingerprint: record["fingerprint"].as_str()?.to_owned(),
            known_since: None,
            title: format!("{} {words} in {blocks} blocks", show_bytes(bytes as f64)),
            stack: frames.map(shown).collect(),
            bytes,
            blocks,
        },
    })
}

/// `load (cache.c:12)`, `load`, or `libx.so+0x12` without a name.
fn shown(frame: &Value) -> String {
    let text = |key: &str| frame[key].as_str().map(|text| printable(text.as_bytes()));
    let function = text("function").or_else(|| {
        let module = frame["module"].as_str()?.rsplit('/').next()?;
        Some(format!("{}+{}", printable(module.as_bytes()), text("module_offset")?))
    });
    let function = function.unwrap_or_else(|| "???".to_owned());
    match (text("file"), frame["line"].as_u64()) {
        (Some(file), Some(line)) => format!("{function} ({file}:{line})"),
        _ => function,
    }
}

/// The frame that a finding is named after: the first behind the allocation function.
fn place(evidence: &Evidence) -> &str {
    evidence.stack.get(1).or(evidence.stack.first()).map_or("an unknown place", String::as_str)
}

fn leak_finding(target: &str, pid: u32, leak: &Leak, change: (f64, u64, u64), at: f64) -> Finding {
    let (before_at, before, now) = change;
    let hours = ((at - before_at) / 3600.0).max(1e-6);
    let more = (now - before) as f64;
    Finding {
        key: format!("{target}/leak/{}", leak.evidence.fingerprint),
        target: target.to_owned(),
        title: format!(
            "{target}: {} definitely lost at {}, {} more in {}",
            show_bytes(now as f64),
            place(&leak.evidence),
            show_bytes(more),
            show_hours(hours)
        ),
        details: vec![format!("nothing in process {pid} points to these blocks any more")],
        evidence: vec![leak.evidence.clone()],
        next: format!("leakscope snapshot {pid}"),
        value: now as f64,
        per_hour: more / hours,
        hours_left: None,
        since: before_at as u64,
        urgent: false,
        series: Vec::new(),
    }
}

fn kernel_finding(leak: &Leak, at: f64) -> Finding {
    Finding {
        key: format!("kernel/kmemleak/{}", leak.evidence.fingerprint),
        target: Order::Kmemleak.target().to_owned(),
        title: format!(
            "the kernel leaks at {}: {} in {} objects that nothing points to",
            place(&leak.evidence),
            show_bytes(leak.evidence.bytes as f64),
            leak.evidence.blocks
        ),
        details: Vec::new(),
        evidence: vec![leak.evidence.clone()],
        next: "leakscope kernel scan".to_owned(),
        value: leak.evidence.bytes as f64,
        per_hour: 0.0,
        hours_left: None,
        since: at as u64,
        urgent: false,
        series: Vec::new(),
    }
}

/// Evidence as the history keeps it.
pub fn found(target: &str, evidence: &Evidence, at: u64) -> Found {
    Found {
        target: target.to_owned(),
        source: evidence.source.clone(),
        fingerprint: evidence.fingerprint.clone(),
        title: evidence.title.clone(),
        stack: evidence.stack.clone(),
        bytes: evidence.bytes,
        blocks: evidence.blocks,
        first_at: at,
        last_at: at,
    }
}

/// The program that we are, for checks.
pub fn own_program() -> PathBuf {
    // After an upgrade the link leads to the deleted file, which still runs by this name.
    PathBuf::from("/proc/self/exe")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leak(fingerprint: &str, bytes: u64, is_lost: bool) -> Leak {
        let record = serde_json::json!({
            "shown": true, "kind": if is_lost { "definite" } else { "possible" }, "bytes": bytes, "blocks": 2,
            "fingerprint": fingerprint, "stack": { "frames": [
                { "function": "malloc", "module": "leakscope" },
                { "function": "load\u{1b}", "file": "x.c", "line": 7 },
                { "module": "/lib/liba.so", "module_offset": "0x12" }, {},
            ] },
        });
        let hidden =
            serde_json::json!({ "shown": false, "kind": "definite", "bytes": 1, "blocks": 1, "fingerprint": "h" });
        let text = format!("{}\n\n", serde_json::json!({ "records": [record, hidden] }));
        decode(&text, &Order::LeakCheck { target: "t".into(), pid: 5 }).unwrap().remove(0)
    }

    fn outcome(leaks: &[Leak]) -> Outcome {
        Outcome { order: Order::LeakCheck { target: "t".into(), pid: 5 }, leaks: Ok(leaks.to_vec()) }
    }

    #[test]
    fn what_is_lost_and_grows_is_an_alarm_until_a_check_says_otherwise() {
        let plan = Plan { leak_check: Some(3600), ..Plan::default() };
        let mut checks = Checks::new(plan, [].iter(), 0.0);
        let keys = |checks: &mut Checks, at| -> Vec<String> {
            checks.findings(at).into_iter().map(|finding| finding.key).collect()
        };
        let noted = checks.note(outcome(&[leak("f1", 100, true), leak("f2", 100, false)]), 0.0);
        let lost = site_of(&leak("f1", 100, true).evidence);
        assert_eq!((noted.found.len(), noted.complaint, noted.profile), (2, None, vec![lost]));
        assert_eq!(keys(&mut checks, 1.0), [""; 0], "what was lost at first is known, and no alarm");
        checks.note(outcome(&[leak("f1", 150, true), leak("f2", 900, false), leak("f3", 7, true)]), 3600.0);
        let findings = checks.findings(3601.0);
        assert_eq!(findings[0].title, "t: 150 B definitely lost at load\u{fffd} (x.c:7), 50 B more in 60 min");
        assert_eq!(findings[0].evidence[0].stack[2..], ["liba.so+0x12", "???"]);
        assert_eq!(keys(&mut checks, 3601.0), ["t/leak/f1", "t/leak/f3"]);
        checks.note(outcome(&[leak("f1", 150, true), leak("f3", 8, true)]), 7200.0);
        assert_eq!(keys(&mut checks, 7201.0), ["t/leak/f3"]);
        // Another daemon goes on with what was open.
        let open = checks.findings(7201.0);
        let mut next = Checks::new(plan, open.iter(), 7300.0);
        assert_eq!(keys(&mut next, 7301.0), ["t/leak/f3"]);
        assert_eq!(keys(&mut next, 7300.0 + 7800.0), [""; 0], "no check has seen it for long");
    }

    #[test]
    fn each_check_at_its_time() {
        let plan = Plan { leak_check: Some(60), kmemleak: None, kernel_trace: Some(600) };
        let mut checks = Checks::new(plan, [].iter(), 0.0);
        let traced = [("t".to_owned(), 5), ("t".to_owned(), 6)];
        assert_eq!(checks.due(10.0, &[]), [Order::KernelTrace]);
        assert_eq!(checks.due(20.0, &traced).len(), 2);
        assert_eq!(checks.due(79.0, &traced), []);
        assert_eq!(checks.due(80.0, &traced)[1], Order::LeakCheck { target: "t".into(), pid: 6 });
        assert_eq!(checks.due(5.0, &[]), [Order::KernelTrace], "the clock was set back");
    }

    #[test]
    fn a_run_that_fails_says_why() {
        let held = Mutex::new(None);
        let reason = |program: &str| run(Path::new(program), &Order::Kmemleak, &held).unwrap_err();
        assert!(reason("/nonexistent/leakscope").contains("cannot be started"));
        assert_eq!(reason("false"), "it was ended");
        assert_eq!(run(Path::new("true"), &Order::Kmemleak, &held), Ok(Vec::new()));
        // `echo` repeats its arguments, which are no report.
        assert!(reason("echo").contains("its report cannot be read"));
        assert!(
            decode("{", &Order::Kmemleak).is_err() && decode("{\"records\":3}", &Order::Kmemleak) == Ok(Vec::new())
        );
    }
}
