//! From a verdict to what people are told: the title, the evidence, the next command.

use std::fmt::Write;

use leakscope_alerts::Finding;
use leakscope_sampling::cgroup::GroupMemory;
use leakscope_sampling::machine::{Machine, read_slabs};
use leakscope_sampling::names::printable;
use leakscope_sampling::parts::read_parts;
use leakscope_sampling::process::read_processes;
use leakscope_sampling::{Places, Process, Target};
use leakscope_trend::{Growth, Verdict, remaining};

use crate::limits::{Bound, Room};
use crate::sites::Ledgers;
use crate::targets::{Known, Metric, PART_WORDS};
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
    if metric == Metric::Memory {
        details.extend(parts_line(known, growth.since_seconds));
    }
    let counts = [("threads", known.values[5]), ("descriptors", known.values[6])];
    let counts: Vec<String> = counts.iter().filter_map(|(name, value)| Some(format!("{} {name}", (*value)?))).collect();
    if !counts.is_empty() {
        details.push(counts.join(", "));
    }
    details
}

/// A part of memory that has grown by less than this share of all that grew is not named.
const LEAST_SHARE: f64 = 0.05;

/// Which parts of memory have grown since a moment, most first; or what there is, when none has.
pub fn parts_line(known: &Known, since: f64) -> Option<String> {
    let change = known.parts_since(since)?;
    let arenas = |part: usize| {
        if part == 1 { format!(" in {} regions of 64 MiB", change.arenas) } else { String::new() }
    };
    let mut grown: Vec<(u64, usize)> = (0..PART_WORDS.len())
        .map(|part| (change.now[part].saturating_sub(change.before[part]), part))
        .filter(|&(more, _)| more > 0)
        .collect();
    grown.sort_unstable_by_key(|&(more, part)| (std::cmp::Reverse(more), part));
    let all: u64 = grown.iter().map(|(more, _)| more).sum();
    grown.retain(|&(more, _)| more as f64 >= all as f64 * LEAST_SHARE);
    if grown.is_empty() {
        let parts = (0..PART_WORDS.len()).filter(|&part| change.now[part] > 0);
        let parts: Vec<String> = parts
            .map(|part| format!("{} {}{}", PART_WORDS[part], show_bytes(change.now[part] as f64), arenas(part)))
            .collect();
        return Some(format!("made of {}", parts.join(", ")));
    }
    let parts = grown.iter().map(|&(more, part)| {
        let now = show_bytes(change.now[part] as f64);
        format!("{} {} more (now {now}{})", PART_WORDS[part], show_bytes(more as f64), arenas(part))
    });
    let span = show_hours((change.to - change.from) / 3600.0);
    Some(format!("what grew within {span}: {}", parts.collect::<Vec<_>>().join(", ")))
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
    let reclaimable = match memory.reclaimable_bytes {
        0 => String::new(),
        bytes => format!(" ({} of it can be given back)", show_bytes(bytes as f64)),
    };
    format!(
        "{id}: {} of {}{reclaimable} in its control group, {} OOM kills",
        show(memory.current_bytes),
        show(memory.limit_bytes),
        memory.oom_kills
    )
}

/// Why a process is in need.
pub(crate) fn room_title(id: &str, room: &Room) -> String {
    let what = match room.bound {
        Bound::Addresses => "addresses are mapped",
        Bound::Data => "private data are mapped",
    };
    format!(
        "{id}: {} of {} {what} in process {}, {}: soon it is refused memory",
        show_bytes(room.used_bytes as f64),
        show_bytes(room.limit_bytes as f64),
        room.pid,
        room.bound.words()
    )
}

/// What the OOM killer did.
pub fn oom_title(id: &str, memory: &GroupMemory) -> String {
    let limit = memory.limit_bytes.map_or("its limit".to_owned(), |limit| show_bytes(limit as f64));
    format!("{id}: the OOM killer ended a process of its control group of {limit}; {} so far", memory.oom_kills)
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
        if let Some(parts) = read_parts(places, process.pid) {
            let bytes = parts.to_array();
            let words =
                PART_WORDS.iter().zip(bytes).map(|(word, bytes)| format!("{word} {}", show_bytes(bytes as f64)));
            let _ = writeln!(text, "{}; {} regions of arenas", words.collect::<Vec<_>>().join(", "), parts.arenas);
        }
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
    fn the_part_that_grows_is_named() {
        use leakscope_sampling::{Counters, Parts};
        let mut known = Known::new(Manner::default());
        let mut note = |at: f64, parts: Parts| {
            known.observe(at, &crate::targets::values(&Counters::default(), Some(parts)), 0, 0.0);
            parts_line(&known, 0.0).unwrap()
        };
        let parts = Parts { heap_bytes: 100_000_000, file_bytes: 5_000_000, ..Parts::default() };
        assert_eq!(note(0.0, parts), "made of heap 100 MB, mapped files 5.0 MB");
        let more = Parts { heap_bytes: 150_000_000, arena_bytes: 9_000_000, arenas: 2, file_bytes: 5_100_000, ..parts };
        let expected = "what grew within 60 min: heap 50 MB more (now 150 MB), thread arenas 9.0 MB more (now 9.0 MB in 2 regions of 64 MiB)";
        assert_eq!(note(3600.0, more), expected);
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
