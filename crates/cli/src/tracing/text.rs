//! The table of `kernel trace` and `trace`, live and at the end.

use std::fmt::Write;

use leakscope_ebpf::{Estimate, Owner};

use super::{Moment, Session};

/// Frames of a stack that are shown.
const FRAMES: usize = 12;
/// Rows of the tables by module, control group and process.
const ROWS: usize = 5;

/// The whole table. `is_live` is a screen that is drawn again: shorter.
pub fn render(moment: &Moment, session: &Session<'_>, top: usize, is_live: bool) -> String {
    let mut out = String::new();
    let age = session.min_age.as_secs_f64();
    let how = match moment.sample_bytes {
        0 => "every allocation tracked".to_owned(),
        bytes => format!("one sample in {}", size(bytes as f64)),
    };
    let cost =
        session.percent.map_or(String::new(), |percent| format!(", tracing takes {percent:.1} % of the processors"));
    let _ =
        writeln!(out, "outstanding after {:.0} s, at least {age:.0} s old; {how}{cost}", moment.elapsed.as_secs_f64());
    kinds(&mut out, moment);
    let (frames, rows) = if is_live { (5, 3) } else { (FRAMES, ROWS) };
    for (number, group) in moment.groups.iter().take(top).enumerate() {
        let _ = writeln!(
            out,
            "\n{}. {} bytes in {} blocks  {}{}",
            number + 1,
            estimate(group.live.bytes),
            estimate(group.live.blocks),
            group.kind.name(),
            if group.cache.is_empty() { String::new() } else { format!(" {}", group.cache) },
        );
        let _ = writeln!(out, "   {}", group.note());
        if group.names.is_empty() {
            let _ = writeln!(out, "     [stack not kept: there was no room for more stacks]");
        }
        for name in group.names.iter().take(frames) {
            let _ = writeln!(out, "     {name}");
        }
        if group.names.len() > frames {
            let _ = writeln!(out, "     ... {} more", group.names.len() - frames);
        }
    }
    if moment.groups.len() > top {
        let rest = moment.groups.iter().skip(top);
        let bytes: f64 = rest.map(|group| group.live.bytes.value).sum();
        let _ = writeln!(out, "\nand {} more stacks with {} together", moment.groups.len() - top, size(bytes));
    }
    owners(&mut out, "module", &moment.modules, rows);
    owners(&mut out, "control group", &moment.cgroups, rows);
    owners(&mut out, "process", &moment.processes, rows);
    let lost = lost_words(moment);
    if lost.is_empty() {
        let _ = writeln!(out, "\nnothing was lost: no table was full, no stack and no event is missing");
    } else {
        let _ = writeln!(out, "\nnot seen or not kept:");
        for words in &lost {
            let _ = writeln!(out, "  {words}");
        }
    }
    let shown = if is_live { session.notes.len().saturating_sub(2) } else { 0 };
    for note in session.notes.iter().skip(shown) {
        let _ = writeln!(out, "note: {note}");
    }
    out
}

/// What of a view fits on a terminal of so many columns and rows; more would scroll its begin away. The last row stays
/// free for the cursor.
pub fn fitted(view: &str, size: Option<(u16, u16)>) -> String {
    let Some((columns, rows)) = size.filter(|&(columns, rows)| columns > 0 && rows > 2) else { return view.to_owned() };
    let room = usize::from(rows) - 1;
    let all = view.lines().count();
    let kept = if all > room { room - 1 } else { all };
    let mut out = String::new();
    for line in view.lines().take(kept) {
        out.extend(line.chars().take(columns.into()));
        out.push('\n');
    }
    if kept < all {
        let _ = writeln!(out, "... {} more lines; all are printed at the end", all - kept);
    }
    out
}

fn kinds(out: &mut String, moment: &Moment) {
    let _ = writeln!(
        out,
        "{:8} {:>24} {:>24} {:>14} {:>14}",
        "", "outstanding, any age", "blocks", "allocations", "releases"
    );
    for &kind in &moment.kinds {
        let live = moment.snapshot.all.get(&kind).copied().unwrap_or_default();
        let (allocations, _) = moment.counters.allocations(kind);
        let (releases, _) = moment.counters.releases(kind);
        let _ = writeln!(
            out,
            "{:8} {:>24} {:>24} {allocations:>14} {releases:>14}",
            kind.name(),
            sized(live.usable),
            estimate(live.blocks),
        );
    }
}

fn owners(out: &mut String, what: &str, owners: &[(String, Owner)], rows: usize) {
    if owners.is_empty() {
        return;
    }
    let _ = writeln!(out, "\nby {what}:");
    for (name, owner) in owners.iter().take(rows) {
        let _ = writeln!(out, "  {:>24} in {:>12} blocks  {name}", sized(owner.bytes), estimate(owner.blocks));
    }
    if owners.len() > rows {
        let bytes: f64 = owners.iter().skip(rows).map(|(_, owner)| owner.bytes.value).sum();
        let _ = writeln!(out, "  {:>24} of {} others", size(bytes), owners.len() - rows);
    }
}

/// What was lost, one sentence each; empty when nothing was.
pub fn lost_words(moment: &Moment) -> Vec<String> {
    let lost = &moment.counters.lost;
    let mut words = Vec::new();
    let mut say = |count: u64, what: &str| {
        if count > 0 {
            words.push(format!("{count} {what}"));
        }
    };
    say(
        lost.blocks_full,
        "allocations were not tracked because the table of blocks was full; sample less often, or raise --max-blocks",
    );
    say(lost.blocks_busy, "allocations were not tracked because the table was locked on that processor");
    say(lost.block_bytes, "bytes are in allocations that were not tracked");
    say(
        lost.frees_busy,
        "releases found the table locked; their blocks look outstanding until the address is used again",
    );
    say(lost.stacks_full, "allocations found no room for their stack; their bytes are under \"stack not kept\"");
    say(lost.stacks_failed, "allocations had no stack");
    say(lost.stacks_cut, "stacks were deeper than 64 frames and are cut");
    say(
        lost.stacks_wrong,
        "stacks of those that were compared with the kernel's were wrong, and were put right; of some hundreds one is compared",
    );
    say(lost.missed_frees, "blocks were released unseen; they were taken off when their address was allocated again");
    say(lost.bulk_blocks, "blocks of bulk calls were beyond those that are looked at");
    say(lost.events_missed, "events came while the same program ran on that processor and were not seen");
    say(lost.names, "processes have no name: there was no room");
    say(lost.calls, "calls of the allocator were seen in part only");
    words
}

/// `1234` or `1234 +-56`.
fn estimate(estimate: Estimate) -> String {
    if estimate.variance > 0.0 {
        format!("{:.0} +-{:.0}", estimate.value, estimate.margin())
    } else {
        format!("{:.0}", estimate.value)
    }
}

/// `1.2 MiB` or `1.2 MiB +-0.1 MiB`.
fn sized(estimate: Estimate) -> String {
    if estimate.variance > 0.0 {
        format!("{} +-{}", size(estimate.value), size(estimate.margin()))
    } else {
        size(estimate.value)
    }
}

/// Bytes for people.
fn size(bytes: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{value:.0} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_cut_to_the_terminal() {
        let view = "one\ntwo is long\nthree\nfour\n";
        assert_eq!(fitted(view, Some((7, 5))), "one\ntwo is \nthree\nfour\n");
        assert_eq!(fitted(view, Some((80, 4))), "one\ntwo is long\n... 2 more lines; all are printed at the end\n");
        assert_eq!(fitted(view, None), view);
        assert_eq!(fitted(view, Some((0, 0))), view);
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(size(512.0), "512 B");
        assert_eq!(size(1536.0), "1.5 KiB");
        assert_eq!(estimate(Estimate { value: 10.0, variance: 0.0 }), "10");
        assert_eq!(estimate(Estimate { value: 1000.0, variance: 2500.0 }), "1000 +-98");
    }
}
