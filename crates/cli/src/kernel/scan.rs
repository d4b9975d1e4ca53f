//! `leakscope kernel scan`: lets kmemleak scan until what it sees is confirmed, and reports it.
//!
//! kmemleak needs two scans to report an object: the first one takes the checksum of its contents, so that what is still
//! written to is not reported. So scans come in this order: one that takes checksums, one whose dump shows what is
//! suspect, and the rescans that confirm it. They are spread over `--min-age`, so that what was allocated before the
//! command is as old at its end.

use std::fs::File;
use std::io::{BufRead, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ArgMatches;
use leakscope_findings::ProcessRecording;
use leakscope_findings::recording::Sample;
use leakscope_import::{Scans, kernel_scan};
use leakscope_kernel::Places;
use leakscope_kernel::clock::Clock;
use leakscope_kernel::config::KernelConfig;
use leakscope_kernel::dump::{Decoder, Dump};
use leakscope_kernel::kmemleak::{Kmemleak, release};
use leakscope_kernel::sightings::Sightings;

use super::control;
use super::names::Names;
use crate::flags::kernel::ScanArgs;
use crate::output::{Destination, Outputs, Replacement};
use crate::plan::View;
use crate::{documents, record};

/// kmemleak reports nothing that is younger. Source: Linux `mm/kmemleak.c`, `MSECS_MIN_AGE`.
const LEAST_AGE: Duration = Duration::from_secs(5);

/// Runs the subcommand.
///
/// # Errors
/// kmemleak cannot be used, and what to do; or a report cannot be written.
pub fn main(args: &ScanArgs, matches: &ArgMatches) -> Result<ExitCode> {
    let view = View::new(&args.view, matches, Destination::Stdout)?;
    // A wrong name is known before the scans take their minute.
    let mut outputs = Outputs::default();
    outputs.prepare(&view.targets)?;
    let files = view.recordings.iter().map(|path| Replacement::create(path)).collect::<Result<Vec<_>>>()?;
    let opened = control::open(&args.mount)?;
    control::apply(&opened.kmemleak, &args.settings)?;
    let mut recording = record::empty_recording();
    recording.processes.push(scan(args, &view, &opened.kmemleak)?);
    let mut errors = false;
    for process in &recording.processes {
        errors |= record::report(process, &recording.tool_version, &view, &mut outputs)?.has_errors();
    }
    documents::write(&recording, &view, leakscope_report::Metric::Leaked, &mut outputs)?;
    record::save(&recording, files)?;
    outputs.finish()?;
    Ok(if errors { ExitCode::from(view.error_exitcode) } else { ExitCode::SUCCESS })
}

fn scan(args: &ScanArgs, view: &View, kmemleak: &Kmemleak) -> Result<ProcessRecording> {
    let places = Places::default();
    let config = KernelConfig::read(&places, &release());
    let begin_jiffies = Clock::read(&places, &config).map(|clock| clock.jiffies);
    if args.clear {
        // Only what has been reported can be set aside: two scans report what there is.
        kmemleak.scan()?;
        kmemleak.scan()?;
        kmemleak.clear()?;
    }
    let begin = Instant::now();
    say(view, "scan 1 takes checksums");
    kmemleak.scan()?;
    let (mut sightings, mut series, mut last) = (Sightings::default(), Vec::new(), Dump::default());
    let sighted = args.rescan + 1;
    for number in 1..=sighted {
        let due = args.min_age.max(LEAST_AGE) * number / sighted;
        std::thread::sleep(due.saturating_sub(begin.elapsed()));
        kmemleak.scan()?;
        let keep = args.keep_dump.as_deref().filter(|_| number == sighted);
        last = read_dump(kmemleak, keep)?;
        sightings.add(&last);
        series.push(sample(&last, begin.elapsed()));
        say(view, &format!("scan {} of {}: {} objects", number + 1, sighted + 1, last.objects.len()));
    }
    let clock = Clock::read(&places, &config);
    let milliseconds = u64::try_from(args.min_age.as_millis()).unwrap_or(u64::MAX);
    let judged = sightings.judge(&last, milliseconds, clock);
    if judged.withdrawn > 0 {
        say(view, &format!("{} objects were suspect and are no more", judged.withdrawn));
    }
    let mut names = Names::new(&args.names, view.symbols.clone(), true);
    names.name_addresses(&mut last);
    let scans = Scans { judged: Some(&judged), clock, begin_jiffies, series, problems: problems(&last) };
    let mut recorded = kernel_scan(&last, &scans, &mut names);
    recorded.problems.append(&mut names.problems);
    Ok(recorded)
}

fn say(view: &View, words: &str) {
    if !view.quiet {
        eprintln!("leakscope: {words}");
    }
}

fn problems(dump: &Dump) -> Vec<String> {
    let (lines, first) = &dump.unread;
    let shown = |text: &str| text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
    let words = |(number, text): &(u64, String)| {
        format!("{lines} lines of kmemleak could not be read; the first is {number}: {}", shown(text))
    };
    first.iter().map(words).collect()
}

fn sample(dump: &Dump, after: Duration) -> Sample {
    Sample {
        monotonic_ns: u64::try_from(after.as_nanos()).unwrap_or(u64::MAX),
        live_bytes: dump.objects.iter().fold(0, |sum, object| sum.saturating_add(object.bytes)),
        live_blocks: dump.objects.len() as u64,
        resident_bytes: 0,
    }
}

/// Reads a dump, and writes it to a file as well if that is asked for.
fn read_dump(kmemleak: &Kmemleak, keep: Option<&Path>) -> Result<Dump> {
    let mut input = kmemleak.open_dump()?;
    let mut decoder = Decoder::default();
    let place = kmemleak.path().display().to_string();
    match keep {
        None => decoder.read(&mut input).with_context(|| format!("{place}: cannot read on"))?,
        Some(path) => {
            let name = path.display();
            let file = File::create(path).with_context(|| format!("{name}: cannot create it"))?;
            let mut both = std::io::BufReader::new(Copied { input: &mut input, file });
            decoder.read(&mut both).with_context(|| format!("{place}: cannot be copied to {name}"))?;
        }
    }
    Ok(decoder.finish())
}

/// A reader that writes what it reads to a file.
struct Copied<'a> {
    input: &'a mut dyn BufRead,
    file: File,
}

impl Read for Copied<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let bytes = self.input.read(out)?;
        self.file.write_all(&out[..bytes])?;
        Ok(bytes)
    }
}
