//! From a verdict to what people are told: the title, the evidence, the next command.

use std::fmt::Write;

use leakscope_alerts::Finding;
use leakscope_sampling::cgroup::GroupMemory;
use leakscope_sampling::machine::{Machine, read_slabs};
use leakscope_sampling::names::printable;
use leakscope_sampling::process::read_processes;
use leakscope_sampling::{Places, Process, Target};
use leakscope_trend::{Growth, Verdict, remaining};

use crate::sites::Ledgers;
use crate::targets::{Known, Metric};
use crate::units::{show_bytes, show_hours};

/// What will meet its limit so soon is urgent, hours.
const URGENT_HOURS: f64 = 12.0;

/// The finding of a metric that grows.
pub fn growth(id: &str, metric: Metric, known: &Known, at: u64) -> Option<Finding> {
    let Verdict::Growing(growth) = known.verdict(metric) else { return None };
    let value = metric.of(&known.values)?;
    let limit = match metric {
        Metric::Memory | Metric::Live => known.limit.map(|(limit, what)| (limit as f64, what)),
        Metric::Descriptors => known.descriptor_limit.map(|limit| (limit as f64, "its limit of open files")),
        Metric::Threads => None,
    };
    let left = limit.map(|(limit, _)| remaining(value, limit, &growth));
    let show = |value: f64| if metric.is_bytes() { show_bytes(value) } else { format!("{value:.0}") };
    let until = left.filter(|left| left.likely_hours < 24.0 * 365.0).map_or_else(String::new, |left| {
        format!(", {} until {}", show_hours(left.likely_hours), limit.map_or("", |(_, what)| what))
    });
    let title = format!(
        "{id}: {} grows by {}/h ({} to {}){until}",
        metric.word(),
        show(growth.per_hour),
        show(growth.low_per_hour),
        show(growth.high_per_hour)
    );
    Some(Finding {
        key: format!("{id}/{}", metric.word()),
        target: id.to_owned(),
        title,
        evidence: Vec::new(),
        details: details(metric, known, &growth, value, left.map(|left| (left.soonest_hours, left.latest_hours)), at),
        next: format!("leakscope monitor why {}", quoted(id)),
        value,
        per_hour: growth.per_hour,
        hours_left: left.map(|left| left.likely_hours).filter(|hours| hours.is_finite()),
        since: growth.since_seconds.max(0.0) as u64,
        urgent: left.is_some_and(|left| left.likely_hours < URGENT_HOURS),
        series: known.series(metric),
    })
}

fn details(
    metric: Metric,
    known: &Known,
    growth: &Growth,
    value: f64,
    left: Option<(f64, f64)>,
    at: u64,
) -> Vec<String> {
    let show = |value: f64| if metric.is_bytes() { show_bytes(value) } else { format!("{value:.0}") };
    let lasted = (at as f64 - growth.since_seconds).max(0.0) / 3600.0;
    let mut details = vec![format!(
        "now {}, {} more than {} ago; shown by a window of {}, {:.1} standard deviations from no trend",
        show(value),
        show(value - growth.start_value),
        show_hours(lasted),
        show_hours(growth.window_seconds / 3600.0),
        growth.z
    )];
    if let (Some((soonest, latest)), Some((limit, what))) = (left, known.limit)
        && metric == Metric::Memory
    {
        details.push(format!(
            "limit: {} ({what}), in {} at the earliest, {} at the latest",
            show_bytes(limit as f64),
            show_hours(soonest),
            show_hours(latest)
        ));
    }
    let parts: [(&str, Option<u64>); 6] = [
        ("resident", known.values[0]),
        ("anonymous", known.values[1]),
        ("swap", known.values[2]),
        ("proportional", known.values[3]),
        ("private and dirty", known.values[4]),
        ("live heap", known.values[7]),
    ];
    let parts: Vec<String> =
        parts.iter().filter_map(|(name, value)| Some(format!("{name} {}", show_bytes((*value)? as f64)))).collect();
    if metric.is_bytes() && parts.len() > 1 {
        details.push(parts.join(", "));
    }
    let counts = [("threads", known.values[5]), ("descriptors", known.values[6])];
    let counts: Vec<String> = counts.iter().filter_map(|(name, value)| Some(format!("{} {name}", (*value)?))).collect();
    if !counts.is_empty() {
        details.push(counts.join(", "));
    }
    details
}

/// A word for a shell.
fn quoted(word: &str) -> String {
    let is_plain = word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":._-/@".contains(&byte));
    if is_plain { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

/// A finding that does not wait.
pub fn urgent(key: &str, target: &str, title: String, at: u64) -> Finding {
    Finding {
        key: key.to_owned(),
        target: target.to_owned(),
        title,
        details: vec![
            "what each process has at this moment is in the folder `captures` of the state folder".to_owned(),
        ],
        evidence: Vec::new(),
        next: "leakscope monitor status".to_owned(),
        value: 1.0,
        per_hour: 0.0,
        hours_left: None,
        since: at,
        urgent: true,
        series: Vec::new(),
    }
}

/// Why a group is in need.
pub fn group_title(id: &str, memory: &GroupMemory) -> String {
    let show = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), |bytes| show_bytes(bytes as f64));
    format!(
        "{id}: {} of {} in its control group, {} OOM kills",
        show(memory.current_bytes),
        show(memory.limit_bytes),
        memory.oom_kills
    )
}

/// Why the machine is in need.
pub fn machine_title(machine: &Machine) -> String {
    format!(
        "the machine runs out of memory: {} of {} available, tasks wait {:.0} % of the time",
        show_bytes(machine.available_bytes as f64),
        show_bytes(machine.total_bytes as f64),
        machine.some_pressure.unwrap_or(0.0)
    )
}

/// The processes of a target with the most memory.
pub fn add_processes(finding: &mut Finding, target: &Target, processes: &[Process]) {
    let mut largest: Vec<&Process> = target.processes.iter().map(|&index| &processes[index]).collect();
    if largest.len() < 2 {
        finding.details.extend(largest.first().map(|process| format!("process {}", process.pid)));
        return;
    }
    largest.sort_by_key(|process| std::cmp::Reverse(process.resident_bytes));
    let shown: Vec<String> = largest
        .iter()
        .take(5)
        .map(|process| format!("{} ({})", process.pid, show_bytes(process.resident_bytes as f64)))
        .collect();
    finding.details.push(format!("{} processes, the largest: {}", largest.len(), shown.join(", ")));
}

/// The largest slab caches, when we may see them.
pub fn slabs(places: &Places) -> Option<String> {
    let slabs = read_slabs(places);
    let shown: Vec<String> = slabs
        .iter()
        .take(5)
        .map(|slab| format!("{} {}", printable(slab.name.as_bytes()), show_bytes(slab.bytes as f64)))
        .collect();
    (!shown.is_empty()).then(|| format!("largest caches: {}", shown.join(", ")))
}

/// The names with the most resident memory on this machine, most first.
pub fn largest_names(most: usize) -> Vec<String> {
    let places = Places::default();
    let mut processes = read_processes(&places).unwrap_or_default();
    processes.sort_by_key(|process| std::cmp::Reverse(process.resident_bytes));
    let mut names: Vec<String> = Vec::new();
    for name in processes.iter().map(|process| printable(&process.name)) {
        if names.len() < most && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// What each process has now, with `smaps_rollup` and the sites of its ledger.
pub fn capture<'a>(
    places: &Places,
    what: &str,
    processes: impl Iterator<Item = &'a Process>,
    ledgers: &mut Ledgers,
) -> String {
    let mut text = format!("capture of {what}\n");
    for process in processes {
        let _ = writeln!(
            text,
            "\nprocess {} {}: resident {}",
            process.pid,
            printable(&process.name),
            show_bytes(process.resident_bytes as f64)
        );
        text.push_str(&places.read(&format!("/proc/{}/smaps_rollup", process.pid)).unwrap_or_default());
        for site in ledgers.grown(&[process.pid], 0.0) {
            let _ = writeln!(text, "{}", site.line());
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::Manner;

    #[test]
    fn words_for_shells() {
        assert_eq!(quoted("name:nginx"), "name:nginx");
        assert_eq!(quoted("name:a b'; rm -rf $HOME"), "'name:a b'\\''; rm -rf $HOME'");
    }

    #[test]
    fn a_growing_target_says_how_long_it_has() {
        let mut known = Known::new(Manner { warm_up_seconds: 0, ..Manner::default() });
        known.limit = Some((2_000_000_000, "its control group's limit"));
        for step in 0..400u64 {
            let mut values = leakscope_history::Values::default();
            values[0] = Some(100_000_000 + step * 500_000);
            known.observe(1.7e9 + step as f64 * 10.0, &values, 0, 1e6);
        }
        let finding = growth("name:x", Metric::Memory, &known, 1_700_004_000).unwrap();
        assert!(
            finding.title.starts_with("name:x: memory grows by 180 MB/h (179 MB to 181 MB), 9.4 h until its control"),
            "{}",
            finding.title
        );
        assert!(finding.urgent && finding.series.len() > 20 && finding.next.ends_with("why name:x"));
        assert_eq!(growth("name:x", Metric::Threads, &known, 1_700_004_000), None);
    }
}
