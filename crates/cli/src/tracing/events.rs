//! `--print-events`: what a SystemTap script that prints kmalloc and kfree prints.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use leakscope_ebpf::Watch;
use leakscope_ebpf::events::Events;
use leakscope_ebpf::interrupts::Interrupts;

use super::Target;
use crate::flags::trace::WatchArgs;

/// How often the ring is looked at.
const POLL: Duration = Duration::from_millis(50);

/// Prints events until the window ends or somebody interrupts.
///
/// # Errors
/// When standard output cannot be written, for other reasons than that nobody reads it any more.
pub fn print_events(
    tracer: &mut dyn Watch,
    events: &mut Events,
    watch: &WatchArgs,
    interrupts: &Interrupts,
    target: &Target,
) -> Result<ExitCode> {
    let end = (!watch.window.is_zero()).then(|| Instant::now() + watch.window);
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut printed = 0u64;
    let is_closed = |error: &std::io::Error| error.kind() == std::io::ErrorKind::BrokenPipe;
    loop {
        let left = end.map_or(POLL, |end| end.saturating_duration_since(Instant::now()).min(POLL));
        let stop = interrupts.wait(left) || end.is_some_and(|end| Instant::now() >= end);
        if stop {
            tracer.stop_allocations();
        }
        while let Some(event) = events.next_event() {
            // A block of kmalloc may come back through its cache, so releases there are watched as well.
            if !tracer.kinds().contains(&event.kind) {
                continue;
            }
            printed += 1;
            let (kind, address) = (event.kind.name(), event.address);
            let what = if event.is_release { "free " } else { "alloc" };
            let seconds = event.ns as f64 / 1e9;
            let (comm, tgid, tid) = (&event.comm, event.tgid, event.tid);
            let bytes =
                if event.is_release { String::new() } else { format!(" {} of {}", event.requested, event.usable) };
            let caller = target.name_of(event.call_site);
            let line = format!("{seconds:.6} {comm}/{tgid}/{tid} {what} {kind} {address:#x}{bytes}{caller}");
            match writeln!(out, "{line}") {
                Err(error) if is_closed(&error) => return Ok(ExitCode::SUCCESS),
                other => other?,
            }
            // What is produced while we print must not keep us from ending.
            if stop && printed.is_multiple_of(65536) {
                break;
            }
        }
        match out.flush() {
            Err(error) if is_closed(&error) => return Ok(ExitCode::SUCCESS),
            other => other?,
        }
        if stop {
            break;
        }
    }
    let lost = tracer.counters()?.lost;
    eprintln!(
        "leakscope: {printed} events printed; {} above the rate of --events-per-second and {} that found no room are not",
        lost.events_rate, lost.events_full
    );
    Ok(ExitCode::SUCCESS)
}
