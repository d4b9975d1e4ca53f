//! What is new in a state folder, as Parquet; each sample once.
//!
//! A run first writes down what it is going to do: for each machine up to which time, under the next number. Then it writes
//! the files, whose names come from that number, and at last that it is done. A run that finds one that was not done does
//! that one again: samples behind a position never change, so the same names get the same content, and what is there
//! already is left alone. Each file appears whole or not at all.
//!
//! One export of a state folder at a time, by a lock in it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use chrono::DateTime;
use datafusion::arrow::array::RecordBatch;
use leakscope_history::{Event, History, Stretch};
use parquet::arrow::ArrowWriter;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::place::Place;
use crate::rows::{self, Sample};

/// Samples that are read at a time.
const STRETCH_SAMPLES: usize = 100_000;
/// Machines whose samples share files: so many are held in memory, compressed, at a time.
const MACHINES: usize = 50;
const VERSION: u32 = 1;

/// What has been exported.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Done {
    version: u32,
    /// The number of the next run.
    next: u64,
    /// Up to which time, by machine.
    upto: BTreeMap<String, u64>,
    /// What the run under way is going to have done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    under_way: Option<BTreeMap<String, u64>>,
}

/// What a run has written.
#[derive(Debug, Default)]
pub struct Written {
    machines: usize,
    samples: usize,
    events: usize,
    files: usize,
    bytes: usize,
    /// Files that an unfinished run had written already.
    there: usize,
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machines, samples, events, files, bytes, there } = self;
        write!(f, "{samples} samples and {events} events of {machines} machines: {files} files, {bytes} bytes")?;
        if *there > 0 {
            write!(f, "; {there} files were there from a run that had not ended")?;
        }
        Ok(())
    }
}

/// Exports what is new.
///
/// # Errors
/// When the state folder cannot be read or is being exported, or the place cannot be written.
pub async fn run(state: &Path, place: &Place, source: Option<&str>) -> Result<Written> {
    let machines = machines(state)?;
    let _lock = lock(state)?;
    let source = source_name(source, &machines)?;
    let path = place.path(&format!("_leakscope/{source}.json"));
    let mut done = match place.get(&path).await? {
        Some(text) => serde_json::from_slice::<Done>(&text).with_context(|| format!("{path} is not what we wrote"))?,
        None => Done { version: VERSION, ..Done::default() },
    };
    if done.version != VERSION {
        bail!("{path}: version {}; this build knows {VERSION}; upgrade leakscope-lake", done.version);
    }
    let mut written = Written::default();
    if let Some(unfinished) = done.under_way.clone() {
        carry_out(&machines, place, &source, unfinished, &mut done, &mut written).await?;
        keep(place, &path, &done).await?;
    }
    let plan = plan(&machines, &done.upto)?;
    if !plan.is_empty() {
        done.under_way = Some(plan.clone());
        keep(place, &path, &done).await?;
        carry_out(&machines, place, &source, plan, &mut done, &mut written).await?;
        keep(place, &path, &done).await?;
    }
    Ok(written)
}

/// Writes the files of a plan; they are on the disk when it is marked as done.
async fn carry_out(
    machines: &BTreeMap<String, PathBuf>,
    place: &Place,
    source: &str,
    plan: BTreeMap<String, u64>,
    done: &mut Done,
    written: &mut Written,
) -> Result<()> {
    place.sync()?;
    let names: Vec<&String> = plan.keys().collect();
    for (part, names) in names.chunks(MACHINES).enumerate() {
        let mut files = Files::default();
        for &name in names {
            let Some(history) = machines.get(name) else {
                bail!(
                    "{name}: its history is gone, and a run that exports it has not ended; bring it back, or take it out of _leakscope/{source}.json"
                );
            };
            read(name, history, done.upto.get(name).copied().unwrap_or(0), plan[name], &mut files, written)?;
        }
        files.put(place, &format!("{source}-{:06}-{part:03}.parquet", done.next), written).await?;
    }
    place.sync()?;
    written.machines += plan.len();
    done.upto.extend(plan);
    done.under_way = None;
    done.next += 1;
    Ok(())
}

async fn keep(place: &Place, path: &object_store::path::Path, done: &Done) -> Result<()> {
    place.put(path, serde_json::to_vec_pretty(done).context("write down what is done")?).await
}

/// The histories of a state folder: a collector's machines, or one monitor's.
fn machines(state: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    let own = state.join("history.sqlite");
    if own.exists() {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").context("read this machine's name")?;
        found.insert(name.trim().to_owned(), own);
    }
    for entry in std::fs::read_dir(state.join("machines")).into_iter().flatten() {
        let entry = entry.with_context(|| format!("read {}", state.join("machines").display()))?;
        let history = entry.path().join("history.sqlite");
        if history.exists() {
            found.insert(entry.file_name().to_string_lossy().into_owned(), history);
        }
    }
    if found.is_empty() {
        bail!("{}: no history; expected the state folder of `leakscope monitor run` or `collect`", state.display());
    }
    Ok(found)
}

fn lock(state: &Path) -> Result<File> {
    let path = state.join("lake.lock");
    let lock = File::create(&path).with_context(|| format!("make {}", path.display()))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("{}: another export works there; wait for it", state.display()))?;
    Ok(lock)
}

fn source_name(given: Option<&str>, machines: &BTreeMap<String, PathBuf>) -> Result<String> {
    if let Some(name) = given {
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            bail!("--source `{name}`: expected letters, digits and `-`");
        }
        return Ok(name.to_owned());
    }
    let [(name, path)] = machines.iter().collect::<Vec<_>>()[..] else {
        bail!("this is a collector's state folder; name it with --source, each collector differently");
    };
    let stream = History::open_read_only(path)?.stream()?;
    Ok(format!("{}-{}", fit(name).replace(['.', '_'], "-"), &stream[..8]))
}

/// Up to which time each machine that has something new is exported.
fn plan(machines: &BTreeMap<String, PathBuf>, upto: &BTreeMap<String, u64>) -> Result<BTreeMap<String, u64>> {
    let mut plan = BTreeMap::new();
    for (name, path) in machines {
        let newest = History::open_read_only(path)?.newest().unwrap_or(0);
        if newest > upto.get(name).copied().unwrap_or(0) {
            plan.insert(name.clone(), newest);
        }
    }
    Ok(plan)
}

/// Files that grow in memory, by their folder.
#[derive(Default)]
struct Files(BTreeMap<String, ArrowWriter<Vec<u8>>>);

impl Files {
    fn write(&mut self, folder: String, batch: &RecordBatch) -> Result<()> {
        let writer = match self.0.entry(folder) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => entry.insert(rows::writer(&batch.schema())?),
        };
        writer.write(batch).context("add to a Parquet file")
    }

    async fn put(self, place: &Place, name: &str, written: &mut Written) -> Result<()> {
        for (folder, writer) in self.0 {
            let path = place.path(&format!("{folder}/{name}"));
            if place.has(&path).await? {
                written.there += 1;
                continue;
            }
            let bytes = writer.into_inner().context("end a Parquet file")?;
            written.files += 1;
            written.bytes += bytes.len();
            place.put(&path, bytes).await?;
        }
        Ok(())
    }
}

/// Reads what a machine has after one time and up to another.
fn read(machine: &str, path: &Path, mut after: u64, upto: u64, files: &mut Files, written: &mut Written) -> Result<()> {
    let history = History::open_read_only(path)?;
    while after < upto {
        let mut stretch = history.stretch(after, STRETCH_SAMPLES)?;
        if stretch.ticks.is_empty() {
            return Ok(());
        }
        after = stretch.upto;
        stretch.ticks.retain(|tick| tick.at <= upto);
        stretch.events.retain(|event| event.at <= upto);
        write_samples(machine, &stretch, files, written)?;
        write_events(machine, &stretch.events, files, written)?;
    }
    Ok(())
}

fn write_samples(machine: &str, stretch: &Stretch, files: &mut Files, written: &mut Written) -> Result<()> {
    let mut by_folder: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
    for tick in &stretch.ticks {
        let day = day(tick.at)?;
        for sample in &tick.samples {
            let folder = format!("samples/day={day}/service={}", service(&sample.target));
            by_folder.entry(folder).or_default().push(Sample {
                machine: machine.to_owned(),
                target: sample.target.clone(),
                at: tick.at,
                life: sample.life,
                values: sample.values,
            });
        }
    }
    for (folder, mut samples) in by_folder {
        // A target's values stand together: their differences are small.
        samples.sort_by(|a, b| a.target.cmp(&b.target).then(a.at.cmp(&b.at)));
        written.samples += samples.len();
        files.write(folder, &rows::sample_batch(&samples)?)?;
    }
    Ok(())
}

fn write_events(machine: &str, events: &[Event], files: &mut Files, written: &mut Written) -> Result<()> {
    for of_day in events.chunk_by(|a, b| a.at / 86_400 == b.at / 86_400) {
        files.write(format!("events/day={}", day(of_day[0].at)?), &rows::event_batch(machine, of_day)?)?;
        written.events += of_day.len();
    }
    Ok(())
}

/// The day of a time, in UTC.
///
/// # Errors
/// When it is beyond all calendars.
pub fn day(at: u64) -> Result<String> {
    let time = i64::try_from(at).ok().and_then(|at| DateTime::from_timestamp(at, 0));
    Ok(time.with_context(|| format!("{at} s is no time"))?.format("%Y-%m-%d").to_string())
}

/// The service of a target: what stands behind its kind; all that is the kernel's together.
pub fn service(target: &str) -> String {
    match target.split_once(':') {
        Some(("kernel", _)) => "kernel".to_owned(),
        Some((_, name)) if !name.is_empty() => fit(name),
        _ => fit(target),
    }
}

/// A name as it can stand in a path everywhere: other characters become `_`, and the column `target` has the real one.
fn fit(name: &str) -> String {
    let is_fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let fit: String = name.chars().take(64).map(|c| if is_fit(c) { c } else { '_' }).collect();
    // Some readers leave out what begins with a point or a line.
    match fit.strip_prefix(['.', '_']) {
        Some(rest) => format!("x{rest}"),
        None => fit,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_of_targets() {
        for (target, expected) in [
            ("name:nginx", "nginx"),
            ("unit:foo@1.service", "foo_1.service"),
            ("kernel:slab", "kernel"),
            ("cgroup:/system.slice/x", "xsystem.slice_x"),
            ("name:..", "x."),
            ("name:a b/../c", "a_b_.._c"),
            ("name:\u{fffd}", "x"),
            ("machine", "machine"),
        ] {
            assert_eq!(service(target), expected, "{target}");
        }
    }

    #[test]
    fn days_by_hand() {
        assert_eq!(day(0).unwrap(), "1970-01-01");
        assert_eq!(day(1_795_478_399).unwrap(), "2026-11-23");
        assert_eq!(day(1_795_478_400).unwrap(), "2026-11-24");
        assert!(day(u64::MAX).is_err());
    }
}
